// Safetensors files: docs/format.md, section 1. A tensor is {dtype, shape, data}, data being a typed array.

import { readFileSync, writeFileSync } from "node:fs";

const KINDS = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array, I32: Int32Array, U8: Uint8Array };

/** The tensors of a file, by name. Throws for a file that is none. */
export function read(path) {
  const file = readFileSync(path);
  const length = file.length < 8 ? Infinity : Number(file.readBigUInt64LE(0));
  if (8 + length > file.length) throw new Error(`${path}: the header is longer than the file`);
  const header = JSON.parse(file.toString("utf8", 8, 8 + length));
  const found = {};
  delete header.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    const Kind = KINDS[dtype];
    if (!Kind) throw new Error(`${path}: ${name} is of dtype ${dtype}, which is not read here`);
    const size = shape.reduce((n, d) => n * d, 1);
    if (end - begin !== size * Kind.BYTES_PER_ELEMENT || 8 + length + end > file.length) {
      throw new Error(`${path}: the data of ${name} do not have its shape`);
    }
    const bytes = Uint8Array.from(file.subarray(8 + length + begin, 8 + length + end)); // copied: now it is aligned
    found[name] = { dtype, shape, data: new Kind(bytes.buffer) };
  }
  return found;
}

/** Write matrices {name: {shape, data}} in float64. */
export function write(path, tensors) {
  const header = {};
  const parts = [];
  let at = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const bytes = Buffer.from(Float64Array.from(data).buffer);
    header[name] = { dtype: "F64", shape, data_offsets: [at, at + bytes.length] };
    parts.push(bytes);
    at += bytes.length;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
  writeFileSync(path, Buffer.concat([length, Buffer.from(text), ...parts]));
}
