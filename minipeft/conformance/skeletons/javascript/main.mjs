// LoRA, DoRA and (IA)³ in JavaScript, judged by recorded cases: README.md says how to run this, and how to go on.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { METHODS, add, map, matrix, minus, oneHot, times, transpose } from "./methods.mjs";
import { read, write } from "./safetensors.mjs";

const ABOUT = {
  name: "mine", version: "0.1", language: "JavaScript", dtypes: ["float64"],
  methods: Object.keys(METHODS), readings: { dora: { grad: "*" } },
};
const MODULE = "base_model.model.layer."; // the one module of the files in `load` cases

class Unsupported extends Error {}
class Rejected extends Error {}

/** A tensor as a matrix: all axes but the last are rows. */
function flat({ shape, data }) {
  const cols = shape.at(-1) ?? 1;
  return matrix(cols ? data.length / cols : 0, cols, Float64Array.from(data, Number));
}

const scale = ({ alpha, r, rslora }) => alpha / (rslora ? Math.sqrt(r) : r);

const forward = (method, given) => method.steps(given)["6.y"];

/** What a method computes with: x, W, b, its arrays, the settings, the scale. */
const givenOf = (settings, tensors) => ({
  ...Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, flat(t)])), settings, s: scale(settings),
});

/** A token table as a linear: its words are one-hot rows, W and the factors stand on their side, the magnitude is the linear's. */
function turned({ ids, W, A, B, m_emb, settings, s, "g.y": g }) {
  return { x: oneHot(ids, W.rows), W: transpose(W), b: matrix(1, W.cols), A: transpose(B), B: transpose(A), m: m_emb, settings, s, "g.y": g };
}
const turnedBack = ({ y, A, B, m }) => (y ? { y } : { A: transpose(B), B: transpose(A), ...(m && { m_emb: m }) });

/** The nearest bfloat16, ties to even: of the 52 bits of a double's fraction, 7 stay. */
function bfloat16(a) {
  const bits = new BigUint64Array(new Float64Array([a]).buffer);
  const rest = bits[0] & ((1n << 45n) - 1n);
  const kept = bits[0] - rest;
  const up = rest > 1n << 44n || (rest === 1n << 44n && (kept >> 45n) & 1n);
  bits[0] = up ? kept + (1n << 45n) : kept;
  return new Float64Array(bits.buffer)[0];
}

const ASKS = {
  forward: ({ method, given }) => ({ y: forward(method, given) }),
  vjp: ({ method, given }) => method.backward(given, given["g.y"]),
  merge: ({ method, given }) => method.merged(given),
  delta: ({ method, given }) => ({ delta: minus(method.merged(given).W, given.W) }),
  unmerge({ method, given }) {
    const kept = { W: map((a) => a, given.W), b: map((a) => a, given.b) };
    const layer = { ...given, ...method.merged(given) };
    Object.assign(layer, kept);
    return { W: layer.W, b: layer.b };
  },
  combine({ method, given, about, tensors }) {
    const { x, W, b } = given;
    const base = METHODS.lora.base(given);
    return { y: about.options.weights.reduce((y, weight, i) => {
      const own = Object.entries(tensors).filter(([name]) => name.endsWith(`.${i}`)).map(([name, t]) => [name.slice(0, -2), t]);
      const one = forward(method, { x, W, b, ...givenOf(about.options.adapters[i], Object.fromEntries(own)) });
      return add(y, times(weight, minus(one, base)));
    }, base) };
  },
  merge_bfloat16({ method, given }) {
    const { W, b } = method.merged(given);
    return { W: map(bfloat16, W), b: map(bfloat16, b) };
  },
  unmerge_bfloat16: (asked) => ASKS.unmerge(asked),
  init: ({ method, given }) => method.start(given.settings, given),
  draw({ method, given, about }) {
    const each = Array.from({ length: about.options.times }, () => method.start(given.settings, given));
    return Object.fromEntries(Object.keys(about.options.shapes).map((k) => [k, stacked(each.map((arrays) => arrays[k]))]));
  },
  train({ method, given, about }) {
    const step = OPTIMISERS[about.options.optimiser.kind];
    if (!step) throw new Unsupported(`no optimiser ${about.options.optimiser.kind}`);
    const names = Object.keys(about.tensors).filter((k) => about.tensors[k].role === "array");
    const now = { ...given };
    const state = Object.fromEntries(names.map((k) => [k, { m: map(() => 0, given[k]), v: map(() => 0, given[k]) }]));
    for (let t = 1; t <= about.options.optimiser.steps; t++) {
      const gradients = method.backward(now, minus(forward(method, now), given["target.y"]));
      const factor = clipping(names.map((k) => gradients[k]), about.options.optimiser.clip);
      for (const k of names) now[k] = step(about.options.optimiser, now[k], times(factor, gradients[k]), state[k], t);
    }
    return Object.fromEntries([...names, "W"].map((k) => [k, now[k]]));
  },
  fit: (asked) => ASKS.train(asked), // these methods have no rates, no penalty, and do nothing between steps
  save: ({ method, given, about }) => saved(method, given, about),
  load({ method, given, about, folder }) {
    const config = JSON.parse(readFileSync(join(folder, "adapter", "adapter_config.json")));
    const settings = {
      ...about.config, r: config.rank_pattern?.layer ?? config.r, alpha: config.alpha_pattern?.layer ?? config.lora_alpha, rslora: Boolean(config.use_rslora),
      lora_bias: Boolean(config.lora_bias),
    };
    const arrays = adapter(method, settings, given.W, read(join(folder, "adapter", "adapter_model.safetensors")));
    return { y: forward(method, { ...given, ...arrays, settings, s: scale(settings) }) };
  },
};

/** What all gradients are multiplied by, so that their common norm is within the limit. */
function clipping(gradients, limit = Infinity) {
  const norm = Math.sqrt(gradients.reduce((sum, { data }) => data.reduce((s, g) => s + g * g, sum), 0));
  return norm > limit ? limit / norm : 1;
}

/** Matrices of one shape below each other. */
function stacked(each) {
  const out = matrix(each.length * each[0].rows, each[0].cols);
  each.forEach(({ data }, i) => out.data.set(data, i * data.length));
  return out;
}

/** The tensors of a file of PEFT, by their keys. */
function saved(method, given, about) {
  const letters = Object.keys(method.arrays(about.config, ...about.tensors.W.shape));
  return Object.fromEntries(letters.map((letter) => [MODULE + method.peft[letter], given[letter]]));
}

const OPTIMISERS = {
  sgd({ lr, momentum, weight_decay }, theta, g, state) {
    state.v = map((v, g) => momentum * v + g, state.v, g);
    return map((a, v) => a - lr * (v + weight_decay * a), theta, state.v);
  },
  adamw({ lr, beta1, beta2, eps, weight_decay }, theta, g, state, t) {
    state.m = map((m, g) => beta1 * m + (1 - beta1) * g, state.m, g);
    state.v = map((v, g) => beta2 * v + (1 - beta2) * g * g, state.v, g);
    const step = (m, v) => m / (1 - beta1 ** t) / (Math.sqrt(v / (1 - beta2 ** t)) + eps);
    return map((a, m, v) => a - lr * (step(m, v) + weight_decay * a), theta, state.m, state.v);
  },
};

/** The arrays of a file of PEFT. Every tensor must be wanted, every array there, every shape right. */
function adapter(method, settings, W, tensors) {
  const wanted = method.arrays(settings, W.rows, W.cols);
  const keys = Object.fromEntries(Object.keys(wanted).map((letter) => [MODULE + method.peft[letter], letter]));
  for (const key of Object.keys(tensors)) if (!keys[key]) throw new Rejected(`unexpected tensor ${key}`);
  const found = {};
  for (const [key, letter] of Object.entries(keys)) {
    if (!tensors[key]) throw new Rejected(`${key} is missing`);
    const shape = key.endsWith("ia3_l") ? [...wanted[letter], 1] : wanted[letter];
    if (String(tensors[key].shape) !== String(shape)) {
      throw new Rejected(`${key}: expected shape [${shape}], found [${tensors[key].shape}]`);
    }
    found[letter] = flat({ shape: wanted[letter], data: tensors[key].data });
  }
  return found;
}

/** The shape a result is written in: that of the tensor it is, was made of, or belongs to. */
function shapeOf(name, about, method) {
  const { x, ids, W } = about.tensors;
  if (name === "y") return ids ? [...ids.shape, W.shape[1]] : [...x.shape.slice(0, -1), W.shape[0]];
  if (name === "delta") return W.shape;
  if (about.ask === "save") {
    const letter = Object.keys(method.peft).find((k) => MODULE + method.peft[k] === name);
    return name.endsWith("ia3_l") ? [...about.tensors[letter].shape, 1] : about.tensors[letter].shape;
  }
  if (about.ask === "draw") return [about.options.times, ...about.options.shapes[name]];
  return about.tensors[name]?.shape ?? method.arrays(about.config, ...W.shape)[name];
}

/** The intermediates of the outputs, for `minipeft verify bisect`. */
function traced(method, given, about) {
  const steps = { ...method.steps(given), "5.merged": method.merged(given).W };
  const shape = (name, { rows, cols }) => {
    if (name === "3.V" || name === "5.merged") return [rows, cols];
    return name === "4.norm" ? [cols] : [...about.tensors.x.shape.slice(0, -1), cols];
  };
  return Object.fromEntries(Object.entries(steps).map(([name, A]) => [name, { shape: shape(name, A), data: A.data }]));
}

function solve({ folder, out, trace, dtype = "float64" }) {
  const about = JSON.parse(readFileSync(join(folder, "case.json")));
  const method = METHODS[about.method];
  if (!method) throw new Unsupported(`there is no ${about.method}`);
  if (dtype !== "float64") throw new Unsupported(`there is no ${dtype}`);
  const table = about.place === "table" && about.method !== "ia3";
  if (about.place !== "linear" && !table) throw new Unsupported(`${about.method} is not there at the place ${about.place}`);
  if (!ASKS[about.ask]) throw new Unsupported(`${about.ask} is not there`);
  const tensors = read(join(folder, "in.safetensors"));
  if (tensors.l_ff) throw new Unsupported("(IA)³ scales outputs only");
  const given = givenOf(about.config, tensors);
  const asked = { method, given: table ? turned(given) : given, about, folder, tensors };
  const results = table ? turnedBack(ASKS[about.ask](asked)) : ASKS[about.ask](asked);
  write(out, Object.fromEntries(Object.entries(results).map(
    ([name, { data }]) => [name, { shape: shapeOf(name, about, method), data }])));
  if (trace && about.place === "linear") write(trace, traced(method, given, about));
}

function answer(line) {
  let id;
  try {
    const asked = JSON.parse(line);
    ({ id } = asked);
    if (asked.do === "stop") process.exit(0);
    if (asked.do === "start") {
      if (asked.format === 1) return ABOUT;
      process.stderr.write(`expected format 1, found ${asked.format}\n`);
      process.exit(1);
    }
    if (asked.do !== "case") throw new Error("expected start, case or stop");
    solve(asked);
    return { id, status: "done" };
  } catch (why) {
    if (why instanceof Unsupported) return { id, status: "unsupported", reason: why.message, url: "" };
    if (why instanceof Rejected) return { id, status: "rejected", reason: why.message };
    return { id, status: "error", reason: String(why) };
  }
}

for await (const line of createInterface({ input: process.stdin })) process.stdout.write(`${JSON.stringify(answer(line))}\n`);
