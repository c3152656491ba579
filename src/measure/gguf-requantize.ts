/**
 * A GGUF file with its matrices in another plain type (F16, Q8_0, Q4_0), so that peers run the same weights in their own
 * formats. Metadata is copied byte by byte; vectors stay F32; as llama.cpp's own tool does for rows of this length, a
 * 4-bit file keeps its embedding (and tied head) in Q8_0. Block layouts: src/checkpoint/gguf-blocks.ts.
 */
import { elementsToFloat32, isElementType } from "../checkpoint/element-types.js";
import { FileReader } from "../checkpoint/file-reader.js";
import { BLOCK_FORMATS } from "../checkpoint/gguf-blocks.js";
import { parseGguf, type GgufTensor } from "../checkpoint/gguf-parser.js";
import { writeGguf } from "../checkpoint/gguf-writer.js";
import { floatToHalfBits } from "../common/half.js";
import { PlanishError } from "../common/errors.js";
import { readUserFile } from "../common/read-file.js";

export const PLAIN_TYPES = ["F16", "Q8_0", "Q4_0"] as const;
export type PlainType = (typeof PLAIN_TYPES)[number];

/** Elements and bytes of a block. */
const BLOCKS: Readonly<Record<PlainType | "F32", readonly [number, number]>> = {
  F32: [1, 4],
  F16: [1, 2],
  Q8_0: [32, 34],
  Q4_0: [32, 18],
};
/** Bytes of GGUF's scalar metadata types by their code; 8 is a string, 9 an array. */
const SCALAR_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

/** Byte at which metadata ends and tensor descriptions begin. */
function metadataEnd(file: Buffer): number {
  let at = 24;
  const text = () => {
    at += 8 + Number(file.readBigUInt64LE(at));
  };
  const value = (type: number): void => {
    if (type === 8) text();
    else if (type === 9) {
      const element = file.readUInt32LE(at);
      const count = Number(file.readBigUInt64LE(at + 4));
      at += 12;
      for (let i = 0; i < count; i++) value(element);
    } else at += SCALAR_BYTES[type];
  };
  const keys = Number(file.readBigUInt64LE(16));
  for (let i = 0; i < keys; i++) {
    text();
    const type = file.readUInt32LE(at);
    at += 4;
    value(type);
  }
  return at;
}

function decoded(file: Buffer, tensor: GgufTensor): Float32Array {
  const bytes = Uint8Array.from(file.subarray(tensor.position, tensor.position + tensor.bytes));
  const out = new Float32Array(tensor.shape.reduce((a, b) => a * b, 1));
  if (isElementType(tensor.type)) {
    elementsToFloat32(tensor.type, bytes, out, 0);
    return out;
  }
  BLOCK_FORMATS[tensor.type].decode(bytes, out, 0);
  return out;
}

/** Rounds as llama.cpp's reference quantizers do. */
function encoded(values: Float32Array, type: PlainType | "F32"): Uint8Array {
  const [elements, size] = BLOCKS[type];
  const out = new Uint8Array((values.length / elements) * size);
  const view = new DataView(out.buffer);
  for (let block = 0, at = 0; block < values.length; block += elements, at += size) {
    if (type === "F32") view.setFloat32(at, values[block], true);
    else if (type === "F16") view.setUint16(at, floatToHalfBits(values[block]), true);
    else {
      let extreme = 0;
      for (let i = 0; i < 32; i++)
        if (Math.abs(values[block + i]) > Math.abs(extreme)) extreme = values[block + i];
      const d = type === "Q8_0" ? Math.abs(extreme) / 127 : extreme / -8;
      const inverse = d === 0 ? 0 : 1 / d;
      view.setUint16(at, floatToHalfBits(d), true);
      if (type === "Q8_0")
        for (let i = 0; i < 32; i++)
          view.setInt8(at + 2 + i, Math.round(values[block + i] * inverse));
      else
        for (let i = 0; i < 16; i++) {
          const nibble = (x: number) => Math.min(15, Math.floor(x * inverse + 8.5));
          out[at + 2 + i] = nibble(values[block + i]) | (nibble(values[block + 16 + i]) << 4);
        }
    }
  }
  return out;
}

function typeFor(tensor: GgufTensor, wanted: PlainType): PlainType | "F32" {
  if (tensor.shape.length < 2) return "F32";
  if (wanted === "F16" || tensor.shape[tensor.shape.length - 1] % 32 !== 0) return "F16";
  return /^(token_embd|output)\./.test(tensor.name) ? "Q8_0" : wanted;
}

/** Files are held in memory whole. */
const MAX_GGUF_BYTES = 2 ** 31 - 2;

/** Writes `target` with the weights of `source` rounded to `type`. @throws PlanishError when the source is no GGUF file. */
export async function requantizeGguf(
  source: string,
  target: string,
  type: PlainType,
): Promise<void> {
  const file = readUserFile(source, { most: MAX_GGUF_BYTES });
  if (file.toString("latin1", 0, 4) !== "GGUF")
    throw new PlanishError(`${source} is not a GGUF file; give one, the peers read nothing else`);
  using reader = new FileReader(source);
  const entries = parseGguf(reader).tensors.map((tensor) => {
    const rounded = typeFor(tensor, type);
    const { name, shape } = tensor;
    return { name, shape, type: rounded, data: () => encoded(decoded(file, tensor), rounded) };
  });
  await writeGguf(target, file.subarray(0, metadataEnd(file)), entries);
}
