// LoRA, DoRA and (IA)³ on a linear, with their gradients written out. x and y are matrices here: rows are tokens.
// A method is {arrays(settings, out, in), start(settings, W, b), steps(given), backward(given, g), merged(given)}; `given` holds
// x, W, b, the arrays by their letters, `s` the scale, `settings`, and perhaps `keep`, a dropout mask. `steps` are y, named 6.y, and on
// the way there what a trace holds.

export const matrix = (rows, cols, data = new Float64Array(rows * cols)) => ({ rows, cols, data });

/** A B, A Bᵀ or Aᵀ B. */
export function product(A, B, { left = false, right = false } = {}) {
  const [rows, inner] = left ? [A.cols, A.rows] : [A.rows, A.cols];
  const [other, cols] = right ? [B.cols, B.rows] : [B.rows, B.cols];
  if (inner !== other) throw new Error(`matrices of ${inner} and ${other} do not multiply`);
  const C = matrix(rows, cols);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let k = 0; k < inner; k++) {
        sum += A.data[left ? k * A.cols + i : i * A.cols + k] * B.data[right ? j * B.cols + k : k * B.cols + j];
      }
      C.data[i * cols + j] = sum;
    }
  }
  return C;
}

/** f element by element, of matrices of one shape; f is told the row and the column too. */
export const map = (f, A, ...rest) =>
  matrix(A.rows, A.cols, A.data.map((a, i) => f(a, ...rest.map((B) => B.data[i]), Math.floor(i / A.cols), i % A.cols)));
export const add = (A, B) => map((a, b) => a + b, A, B);
export const minus = (A, B) => map((a, b) => a - b, A, B);
export const times = (s, A) => map((a) => s * a, A);
const shifted = (A, v) => map((a, _, j) => a + v.data[j], A); // v beside every row
const columns = (A, v) => map((a, _, j) => a * v.data[j], A); // column j times v_j
const rowwise = (A, v) => map((a, i) => a * v.data[i], A); // row i times v_i

export const transpose = (A) => map((_, i, j) => A.data[j * A.cols + i], matrix(A.cols, A.rows));
/** A row for every id, with a one at its place. */
export function oneHot({ data }, width) {
  const rows = matrix(data.length, width);
  data.forEach((id, i) => { rows.data[i * width + id] = 1; });
  return rows;
}

/** A vector with f(row or column i). */
const vector = (n, f) => matrix(1, n, Float64Array.from({ length: n }, (_, i) => f(i)));
const sums = (A) => product(vector(A.rows, () => 1), A); // of every column
const dots = (A, B) => vector(A.rows, (i) => {
  let sum = 0;
  for (let j = 0; j < A.cols; j++) sum += A.data[i * A.cols + j] * B.data[i * A.cols + j];
  return sum;
});

/** x Wᵀ + b. */
const linear = (x, W, b) => shifted(product(x, W, { right: true }), b);

/** x as the adapter sees it: with its dropout mask, if there is one. */
const dropped = ({ keep, settings }, x) => (keep ? map((a, k) => (a * k) / (1 - settings.dropout), x, keep) : x);

const uniform = (rows, cols) => map(() => (2 * Math.random() - 1) / Math.sqrt(cols), matrix(rows, cols));

const lora = {
  base: ({ x, W, b }) => linear(x, W, b),
  peft: { A: "lora_A.weight", B: "lora_B.weight", c: "lora_B.bias" },
  arrays: ({ r, lora_bias }, out, in_) => ({ A: [r, in_], B: [out, r], ...(lora_bias && { c: [out] }) }),
  start: ({ r, lora_bias }, { W }) =>
    ({ A: uniform(r, W.cols), B: matrix(W.rows, r), ...(lora_bias && { c: matrix(1, W.rows) }) }),
  steps(given) {
    const { x, W, b, A, B, c, s } = given;
    const base = linear(x, W, b);
    const h = product(dropped(given, x), A, { right: true });
    const low = product(h, B, { right: true });
    return { "0.base": base, "1.h": h, "2.low": low, "6.y": add(base, times(s, c ? shifted(low, c) : low)) };
  },
  backward(given, g) {
    const { x, W, A, B, c, s } = given;
    const seen = dropped(given, x);
    const gB = times(s, product(g, B)); // s g B: the gradient at x Aᵀ
    return {
      x: add(product(g, W), dropped(given, product(gB, A))),
      A: product(gB, seen, { left: true }),
      B: times(s, product(g, product(seen, A, { right: true }), { left: true })),
      ...(c && { c: times(s, sums(g)) }),
    };
  },
  merged: ({ W, b, A, B, c, s }) => ({ W: add(W, times(s, product(B, A))), b: c ? add(b, times(s, c)) : b }),
};

const dora = {
  peft: { ...lora.peft, m: "lora_magnitude_vector" },
  arrays: (settings, out, in_) => ({ ...lora.arrays(settings, out, in_), m: [out] }),
  start: (settings, base) => ({ ...lora.start(settings, base), m: norms(base.W) }),
  steps(given) {
    const { x, W, b } = given;
    const V = magnified(given);
    const merged = dora.merged(given).W;
    const y = given.keep
      ? add(linear(x, W, b), product(dropped(given, x), minus(merged, W), { right: true }))
      : linear(x, merged, b);
    return { "0.base": linear(x, W, b), "3.V": V, "4.norm": norms(V), "6.y": y };
  },
  backward(given, g) {
    const { x, W, A, B, m, s, settings } = given;
    const V = magnified(given);
    const n = norms(V);
    const merged = dora.merged(given).W;
    const gW = product(g, dropped(given, x), { left: true }); // by W'
    const along = dots(gW, V); // ⟨gW_i, V_i⟩
    let gV = rowwise(gW, map((m_i, n_i) => m_i / n_i, m, n));
    if (settings.grad === "full") { // through ‖V‖ as well
      gV = minus(gV, rowwise(V, map((m_i, n_i, a_i) => (m_i * a_i) / n_i ** 3, m, n, along)));
    }
    const gx = given.keep
      ? add(product(g, W), dropped(given, product(g, minus(merged, W))))
      : product(g, merged);
    return {
      x: gx,
      A: times(s, product(B, gV, { left: true })),
      B: times(s, product(gV, A, { right: true })),
      m: map((a_i, n_i) => a_i / n_i, along, n),
    };
  },
  merged(given) {
    const V = magnified(given);
    return { W: rowwise(V, map((m_i, n_i) => m_i / n_i, given.m, norms(V))), b: given.b }; // the bias is not scaled
  },
};
// V = W + s B A, without s B0 A0 where training starts from a part of W
function magnified(given) {
  const V = lora.merged(given).W;
  return given.B0 ? minus(V, times(given.s, product(given.B0, given.A0))) : V;
}
const norms = (V) => map(Math.sqrt, dots(V, V));

const ia3 = {
  peft: { l: "ia3_l" },
  arrays: (_, out) => ({ l: [out] }),
  start: (_, { W }) => ({ l: vector(W.rows, () => 1) }),
  steps({ x, W, b, l }) {
    const base = linear(x, W, b);
    return { "0.base": base, "6.y": columns(base, l) };
  },
  backward: ({ x, W, b, l }, g) => ({
    x: product(columns(g, l), W),
    l: sums(map((a, y) => a * y, g, linear(x, W, b))),
  }),
  merged: ({ W, b, l }) => ({ W: rowwise(W, l), b: columns(b, l) }),
};

export const METHODS = { lora, dora, ia3 }; // a method more is an entry more
