// Judges a folder of answers by the ten lines of format.md, section 5, without Python. It needs Node, and no package:
//
//     node judge.mjs cases answers                      the verdict on what lies in answers/
//     node judge.mjs cases answers -- ./harness WORDS   asks a program first, section 8, and puts its answers there
//
// Status 0: nothing is wrong; 1: something is, or nothing was judged; 2: it cannot be done.
// A program is trusted here not to write where it should not; minipeft verify trusts it in nothing.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const LIMIT = 20_000; // milliseconds that an answer may take
const KINDS = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array, I32: Int32Array, I8: Int8Array, U8: Uint8Array };
const UNITS = { float64: 2 ** -53, float32: 2 ** -24 };
const STANDS_BY = { unmerge: "merge", unmerge_bfloat16: "merge_bfloat16" };

class Wrong extends Error {} // FAIL

const json = (path) => JSON.parse(readFileSync(path, "utf8"));

/** {name: {dtype, shape, data}} of a safetensors file, data being numbers. Throws for a file that is none. */
function tensors(path) {
  const file = readFileSync(path);
  const begin = 8 + Number(file.readBigUInt64LE(0));
  if (!(begin <= file.length)) throw new Error("the header is longer than the file");
  const found = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(JSON.parse(file.toString("utf8", 8, begin)))) {
    if (name === "__metadata__" || !KINDS[dtype]) continue;
    const bytes = Uint8Array.from(file.subarray(begin + data_offsets[0], begin + data_offsets[1]));
    const data = Float64Array.from(new KINDS[dtype](bytes.buffer), Number);
    if (data.length !== shape.reduce((n, d) => n * d, 1)) throw new Error(`the data of ${name} do not have its shape`);
    found[name] = { dtype, shape, data };
  }
  return found;
}

/** B A, and the projectors on the rows of A and the columns of B, which do not depend on the signs and turns of the factors. */
function factored({ A, B }, { shape: [out, wide] }, dtype) {
  const r = A?.shape[0];
  if (!A || !B || A.dtype !== dtype || B.dtype !== dtype || !(r > 0 && r <= Math.min(out, wide))
    || String([A.shape, B.shape]) !== String([[r, wide], [out, r]])) throw new Wrong("A and B are no factors of W");
  const rows = (t, n, at) => Array.from({ length: n }, (_, i) => Array.from({ length: t.data.length / n }, (_, j) => t.data[at(i, j)]));
  const a = rows(A, r, (i, j) => i * wide + j);
  const b = rows(B, r, (i, j) => j * r + i); // Bᵀ
  const tensor = (m) => ({ dtype, shape: [m.length, m[0].length], data: Float64Array.from(m.flat()) });
  const product = (x, y) => x[0].map((_, i) => y[0].map((_, j) => x.reduce((sum, _, k) => sum + x[k][i] * y[k][j], 0))); // Xᵀ Y
  return { BA: tensor(product(b, a)), A_rows: tensor(product(a, solved(a))), B_columns: tensor(product(b, solved(b))) };
}

/** The moments that are wanted of what several adapters began with. */
function moments(got, wanted, { times, shapes }, dtype) {
  const found = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const a = got[name];
    if (!a) throw new Wrong(`${name} is missing`);
    if (String(a.shape) !== String([times, ...shape])) throw new Wrong(`${name}: expected shape [${[times, ...shape]}], found [${a.shape}]`);
    if (a.dtype !== dtype) throw new Wrong(`${name}: expected dtype ${dtype}, found ${a.dtype}`);
    if (!a.data.every(Number.isFinite)) throw new Wrong(`${name} has NaN or infinite values`);
    const mean = (power) => a.data.reduce((sum, v) => sum + v ** power, 0) / a.data.length;
    const all = { mean: mean(1), square: mean(2), kurtosis: mean(4) / mean(2) ** 2 };
    for (const [k, v] of Object.entries(all)) if (`${name}.${k}` in wanted) found[`${name}.${k}`] = { dtype, shape: [], data: [v] };
  }
  return found;
}

/** (X Xᵀ)⁻¹ X, by elimination. */
function solved(x) {
  const m = x.map((row) => [...x.map((other) => row.reduce((sum, v, k) => sum + v * other[k], 0)), ...row]);
  for (let i = 0; i < m.length; i++) {
    const best = m.reduce((p, row, k) => (k >= i && Math.abs(row[i]) > Math.abs(m[p][i]) ? k : p), i);
    [m[i], m[best]] = [m[best], m[i]];
    m[i] = m[i].map((v) => v / m[i][i]);
    for (let k = 0; k < m.length; k++) if (k !== i) m[k] = m[k].map((v, j) => v - m[k][i] * m[i][j]);
  }
  return m.map((row) => row.slice(m.length));
}

/** Write some tensors over those of their names in a safetensors file, whose shapes they have. Throws for others. */
function overwrite(path, others) {
  const file = readFileSync(path);
  const begin = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, begin));
  for (const [name, { shape, data }] of Object.entries(others)) {
    const there = header[name];
    if (!there) continue;
    if (there.dtype !== "F64" || String(there.shape) !== String(shape)) throw new Error(`${name} has not the shape that it has elsewhere`);
    data.forEach((v, i) => file.writeDoubleLE(v, begin + there.data_offsets[0] + 8 * i));
  }
  writeFileSync(path, file);
  return createHash("sha256").update(file).digest("hex");
}

/** Throws `Wrong` where y, made of fresh arrays, is not the base's output x Wᵀ + b: what `identity` asks for. */
function unchanged(y, { x, W, b }, dtype) {
  const [wide, sum] = [W.shape[1], (f) => f.reduce((s, v) => s + v, 0)];
  const row = (t, i) => Array.from(t.data.subarray(i * wide, (i + 1) * wide));
  let [size, worst] = [Math.max(...b.data.map(Math.abs)), 0];
  const products = Array.from({ length: x.data.length / wide }, (_, i) => W.shape[0] && Array.from(b.data, (_, o) => row(x, i).map((v, k) => v * row(W, o)[k])));
  const most = Math.max(...products.flat().map((terms) => sum(terms.map(Math.abs))));
  if (y?.data?.length !== products.length * b.data.length) throw new Wrong("a fresh adapter gives no y of its shape");
  products.flat().forEach((terms, i) => { worst = Math.max(worst, Math.abs(sum(terms) + b.data[i % b.data.length] - y.data[i])); });
  size = 4 * (size + most);
  if (!(worst <= 8 * UNITS[dtype] * size)) throw new Wrong(`a fresh adapter changes the model: y is off by ${worst.toPrecision(3)}`);
}

/** Throws `Wrong` for what is not as wanted: lines 4 to 8. */
function compare(about, folder, got, dtype) {
  const kind = dtype === "float64" ? "F64" : "F32";
  const { class: name, K } = about.tolerance;
  const wanted = tensors(join(folder, "want.safetensors"));
  const mine = name === "SUBSPACE" ? factored(got, about.tensors.W, kind) : name === "DRAWN" ? moments(got, wanted, about.options, kind) : got;
  for (const [key, want] of Object.entries(wanted)) {
    if (!mine[key]) throw new Wrong(`${key} is missing`);
    if (String(mine[key].shape) !== String(want.shape)) throw new Wrong(`${key}: expected shape [${want.shape}], found [${mine[key].shape}]`);
    if (want.dtype === "F64" && mine[key].dtype !== kind) throw new Wrong(`${key}: expected dtype ${kind}, found ${mine[key].dtype}`);
    if (name === "SHAPES") continue;
    const unit = name === "COND" || name === "SUBSPACE" ? UNITS[dtype] * about.want[key].cond : name === "DRAWN" ? about.want[key].cond : 0;
    want.data.forEach((w, i) => {
      const error = Math.abs(mine[key].data[i] - w);
      if (!Number.isFinite(mine[key].data[i])) throw new Wrong(`${key} has NaN or infinite values`);
      if (unit ? !(error / unit <= K) : error !== 0) throw new Wrong(`${key} is off by ${error.toPrecision(3)} at element ${i}`);
    });
  }
}

/** [outcome, why] of a case, lines 2 to 8. */
function judged(about, folder, answers, dtype) {
  const [told, out] = [".json", ".safetensors"].map((end) => join(answers, about.id + end));
  if (!existsSync(told) && !existsSync(out)) return ["SKIP", "no answer"];
  try {
    const { status, reason = "" } = existsSync(told) ? json(told) : { status: "done" };
    const refused = about.tolerance.class === "REJECT";
    if (status === "unsupported") return ["SKIP", reason];
    if (status === "rejected") return refused ? ["PASS", ""] : ["FAIL", `rejected: ${reason}`];
    if (status !== "done") return ["ERROR", reason || `an unknown status, ${JSON.stringify(status)}`];
    if (refused) return ["FAIL", "accepted a file that does not fit"];
    compare(about, folder, tensors(out), dtype);
    return ["PASS", ""];
  } catch (why) {
    return [why instanceof Wrong ? "FAIL" : "ERROR", why.message];
  }
}

/** The answers of a program to some lines, each an object. Throws for anything else on its standard output. */
function asked([program, ...words], ...questions) {
  const input = [...questions, { do: "stop" }].map((line) => `${JSON.stringify(line)}\n`).join("");
  const { stdout, stderr, status, signal, error } = spawnSync(program, words, { input, timeout: LIMIT, killSignal: "SIGKILL", encoding: "utf8" });
  const said = (stdout ?? "").split("\n").filter((line) => line.trim());
  if (said.length !== questions.length || error) {
    const last = (stderr ?? "").trim().split("\n").at(-1);
    const ended = error ? error.message : `it ended with ${signal ?? `status ${status}`}${last && `: ${last}`}`;
    throw new Error(said.length > questions.length ? `${said.length} answers to ${questions.length} questions` : ended);
  }
  return said.map((line) => JSON.parse(line));
}

/** Ask for the outputs with the arrays that it has begun with, in METHOD.forward.usual: they come to lie in ID.y.safetensors. */
function fresh(command, start, { id, method, want }, folder, answers, dtype) {
  const [like, out] = [`${method}.forward.usual`, resolve(answers, `${id}.y.safetensors`)];
  const scratch = mkdtempSync(join(tmpdir(), "judge-"));
  rmSync(out, { force: true });
  try {
    const place = join(scratch, ...like.split("."));
    cpSync(join(folder, ...like.split(".")), place, { recursive: true });
    const about = json(join(place, "case.json"));
    const begun = Object.entries(tensors(join(answers, `${id}.safetensors`))).filter(([name]) => name in want);
    about.digests["in.safetensors"] = overwrite(join(place, "in.safetensors"), Object.fromEntries(begun));
    writeFileSync(join(place, "case.json"), JSON.stringify(about));
    const [, answer] = asked(command, start, { do: "case", id: like, folder: place, out, dtype });
    if (answer.status !== "done") rmSync(out, { force: true });
  } catch {
    rmSync(out, { force: true }); // then names and shapes alone are compared
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Put the answers of a program into a folder, one process a case: what it did to one costs no other. */
function ask(command, cases, folder, answers) {
  const start = { do: "start", format: 1 };
  const [self] = asked(command, start);
  for (const { about, place } of cases.filter(({ about }) => self.methods.includes(about.method))) {
    const out = resolve(answers, `${about.id}.safetensors`);
    let answer;
    rmSync(out, { force: true });
    try {
      const question = { do: "case", id: about.id, folder: resolve(folder, place), out, dtype: self.dtypes[0] };
      [, answer] = asked(command, start, question);
      if (answer.id !== about.id) answer = { status: "error", reason: "the answer has not the id of its question" };
    } catch (why) {
      answer = { status: "error", reason: why.message };
    }
    writeFileSync(join(answers, `${about.id}.json`), JSON.stringify(answer));
    if (about.options.identity && answer.status === "done") fresh(command, start, about, folder, answers, self.dtypes[0]);
  }
  writeFileSync(join(answers, "about.json"), JSON.stringify(self));
}

function main([folder, answers, dashes, ...command]) {
  if (!answers || (dashes && (dashes !== "--" || !command.length))) throw new Error("expected CASES ANSWERS, then perhaps -- PROGRAM");
  const cases = json(join(folder, "index.json")).cases.map(({ path }) => ({ place: path, about: json(join(folder, path, "case.json")) }));
  mkdirSync(answers, { recursive: true });
  if (command.length) ask(command, cases, folder, answers);
  const said = existsSync(join(answers, "about.json")) ? json(join(answers, "about.json")) : {};
  const { dtypes: [dtype] = ["float64"], readings = {} } = said;
  const there = new Set(said.methods ?? cases.filter(({ about: { id } }) => [".json", ".safetensors"].some((end) => existsSync(join(answers, id + end)))).map(({ about }) => about.method));
  const usual = Object.fromEntries(cases.map(({ about }) => [about.id, about.readings]));
  const found = {}; // id -> [outcome, why, case]
  for (const { about, place } of cases.filter(({ about }) => there.has(about.method))) {
    const own = Object.entries(readings[about.method] ?? {}).filter(([name]) => name in about.readings); // line 1
    const other = own.some(([name, reading]) => reading !== "*" && reading !== about.readings[name]);
    const [outcome, why] = other ? ["N/A", ""] : judged(about, join(folder, place), answers, dtype);
    const unusual = own.some(([name]) => ![undefined, about.readings[name]].includes(usual[`${about.method}.forward.usual`]?.[name]));
    found[about.id] = [outcome === "PASS" && unusual ? "READING" : outcome, why, about];
  }
  const first = Object.fromEntries(Object.entries(found).map(([id, [outcome]]) => [id, outcome]));
  const open = new Set(); // fresh arrays of which it is not known whether they leave the model as it is
  for (const [id, [outcome, , about]] of Object.entries(found)) { // identity
    if (!about.options.identity || !["PASS", "READING"].includes(outcome)) continue;
    const y = join(answers, `${id}.y.safetensors`);
    const held = join(folder, about.method, "dequantize", "usual", "want.safetensors"); // a base that is quantised
    const known = existsSync(y) && (!("code" in about.config) || existsSync(held));
    if (!known || !["PASS", "READING"].includes(first[`${about.method}.forward.usual`])) { open.add(id); continue; }
    try {
      const given = tensors(join(folder, ...id.split("."), "in.safetensors"));
      unchanged(tensors(y).y, existsSync(held) ? { ...given, W: tensors(held).W } : given, dtype);
    } catch (why) {
      found[id] = [why instanceof Wrong ? "FAIL" : "ERROR", why.message, about];
    }
  }
  for (const [id, [outcome, , about]] of Object.entries(found)) { // line 9
    const refused = about.check === "load" && about.tolerance.class === "REJECT";
    const by = refused ? `${about.method}.load.plain` : `${about.method}.${STANDS_BY[about.check]}.${about.variant}`;
    if (["PASS", "READING"].includes(outcome) && ["SKIP", "ERROR"].includes(first[by])) found[id] = ["SKIP", `it shows nothing: ${by} is not answered`, about];
  }
  let [bad, right] = [0, 0];
  for (const method of [...there].sort()) { // line 10
    const all = Object.values(found).filter(([, , about]) => about.method === method);
    if (!all.length) continue;
    const of = (...outcomes) => all.filter(([outcome]) => outcomes.includes(outcome));
    const part = (outcome, words) => of(outcome).length && `${of(outcome).length} ${words}: ${[...new Set(of(outcome).map(([, , about]) => about.check))].join(", ")}`;
    const rest = [part("FAIL", "wrong"), part("ERROR", of("ERROR").length === 1 ? "error" : "errors"), part("SKIP", "not answered")].filter(Boolean).join("; ");
    const word = ["FAIL", "ERROR", "READING", "PASS"].find((w) => of(w).length) ?? "SKIP";
    const good = of("PASS", "READING").length;
    console.log(`${method} ${word === "READING" ? "PASS (reading)" : word} ${good} of ${all.length - of("N/A").length}${rest && ` (${rest})`}`);
    for (const [outcome, why, { id }] of of("FAIL", "ERROR")) console.log(`  ${outcome} ${id}: ${why}`.replace(/[^\x20-\x7e\xa0-\uffff]/g, "?"));
    if (of("PASS", "READING").some(([, , { id }]) => open.has(id))) console.log("  of init names and shapes alone were compared: whether a fresh adapter leaves the model as it is, minipeft verify says");
    bad += of("FAIL", "ERROR").length;
    right += good;
  }
  if (!right && !bad) console.log("nothing was judged");
  return bad || !right ? 1 : 0;
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (why) {
  console.error(`judge: ${why.message}`);
  process.exitCode = 2;
}
