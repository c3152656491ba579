/** Bytes of files for tests: safetensors with any header, small GGUF files. */

/** Bytes of a safetensors file with the given header (an object, or raw text) and data. */
export function safetensorsBytes(
  header: object | string,
  data: Uint8Array = new Uint8Array(0),
  claimedLength?: bigint,
): Uint8Array {
  const text = new TextEncoder().encode(
    typeof header === "string" ? header : JSON.stringify(header),
  );
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, claimedLength ?? BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
}

export type GgufField =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly bool: boolean }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly f32s: readonly number[] }
  | { readonly i32s: readonly number[] };

export interface GgufTensorSpec {
  readonly name: string;
  /** Fastest dimension first, as in the file. */
  readonly extents: readonly number[];
  readonly type: number;
  readonly data: Uint8Array;
  /** Overrides the offset that follows from what came before. */
  readonly offset?: number;
}

/** Writes little-endian values one after the other. */
export class ByteWriter {
  readonly #parts: Uint8Array[] = [];
  length = 0;

  bytes(part: Uint8Array): this {
    this.#parts.push(part);
    this.length += part.length;
    return this;
  }

  u32(value: number): this {
    const part = new Uint8Array(4);
    new DataView(part.buffer).setUint32(0, value, true);
    return this.bytes(part);
  }

  f32(value: number): this {
    const part = new Uint8Array(4);
    new DataView(part.buffer).setFloat32(0, value, true);
    return this.bytes(part);
  }

  u64(value: number | bigint): this {
    const part = new Uint8Array(8);
    new DataView(part.buffer).setBigUint64(0, BigInt(value), true);
    return this.bytes(part);
  }

  string(text: string): this {
    const bytes = new TextEncoder().encode(text);
    return this.u64(bytes.length).bytes(bytes);
  }

  pad(alignment: number): this {
    return this.bytes(new Uint8Array((alignment - (this.length % alignment)) % alignment));
  }

  result(): Uint8Array {
    const all = new Uint8Array(this.length);
    let at = 0;
    for (const part of this.#parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }
}

function writeField(out: ByteWriter, field: GgufField): void {
  if ("u32" in field) out.u32(4).u32(field.u32);
  else if ("f32" in field) out.u32(6).f32(field.f32);
  else if ("bool" in field) out.u32(7).bytes(Uint8Array.of(field.bool ? 1 : 0));
  else if ("string" in field) out.u32(8).string(field.string);
  else if ("strings" in field) {
    out.u32(9).u32(8).u64(field.strings.length);
    for (const text of field.strings) out.string(text);
  } else if ("f32s" in field) {
    out.u32(9).u32(6).u64(field.f32s.length);
    for (const value of field.f32s) out.f32(value);
  } else {
    out.u32(9).u32(5).u64(field.i32s.length);
    for (const value of field.i32s) out.u32(value >>> 0);
  }
}

/** Bytes of a GGUF file, version 3 with alignment 32. */
export function ggufBytes(
  metadata: Readonly<Record<string, GgufField>>,
  tensors: readonly GgufTensorSpec[],
): Uint8Array {
  const out = new ByteWriter().bytes(new TextEncoder().encode("GGUF")).u32(3);
  out.u64(tensors.length).u64(Object.keys(metadata).length);
  for (const [key, field] of Object.entries(metadata)) writeField(out.string(key), field);
  let offset = 0;
  for (const { name, extents, type, data, offset: given } of tensors) {
    out.string(name).u32(extents.length);
    for (const extent of extents) out.u64(extent);
    out.u32(type).u64(given ?? offset);
    offset = Math.ceil((offset + data.length) / 32) * 32;
  }
  for (const { data } of tensors) out.pad(32).bytes(data);
  return out.pad(32).result();
}

/** Bytes of float32 values. */
export function float32Bytes(values: ArrayLike<number>): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}
