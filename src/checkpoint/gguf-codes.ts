/**
 * The block types of GGUF as what they are: integer codes with a scale, and perhaps an offset, per group of columns
 * (`gguf-blocks.ts` says how each lies in memory). Nothing is rounded: every entry is scale·code, or scale·code + offset,
 * with the very numbers of the file; products of a half with a 6- or 8-bit scale are exact in float32.
 */
import { PlanishError } from "../common/errors.js";
import type { StoredCodes, StoredGrid, StoredTensor } from "./checkpoint.js";
import { halfFloats } from "./element-types.js";
import {
  BLOCK_FORMATS,
  fifthBits,
  int8,
  kMin,
  kScale,
  mxfp4Code,
  sixBits,
  type BlockType,
} from "./gguf-blocks.js";

interface Grid extends StoredGrid {
  /** Writes a block's codes at `to`, and its groups' scales and offsets from `first` on. */
  readonly read: (bytes: Uint8Array, at: number, out: Writable, to: number, first: number) => void;
}

interface Writable {
  readonly codes: Int8Array;
  readonly scale: Float32Array;
  readonly offset: Float32Array;
}

const half = (bytes: Uint8Array, at: number): number =>
  halfFloats()[bytes[at] | (bytes[at + 1] << 8)];

/** 16 pairs: low nibbles are elements 0–15, high nibbles 16–31; with `high`, their fifth bits; less `middle`. */
function pairs(
  bytes: Uint8Array,
  at: number,
  codes: Int8Array,
  to: number,
  middle: number,
  high = 0,
): void {
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + i];
    codes[to + i] = ((pair & 15) | (((high >>> i) & 1) << 4)) - middle;
    codes[to + 16 + i] = ((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - middle;
  }
}

/** Scales and minima of a block of Q4_K or Q5_K, then its nibbles with their fifth bits, which lie at `high`. */
function superBlock(
  bytes: Uint8Array,
  at: number,
  { codes, scale, offset }: Writable,
  to: number,
  first: number,
  high?: number,
): void {
  const [d, dmin] = [half(bytes, at), half(bytes, at + 2)];
  const nibbles = high === undefined ? at + 16 : at + 48;
  for (let j = 0; j < 8; j++) {
    scale[first + j] = d * kScale(bytes, at + 4, j);
    offset[first + j] = -dmin * kMin(bytes, at + 4, j);
    const quants = nibbles + 32 * (j >> 1);
    const shift = 4 * (j & 1);
    for (let i = 0; i < 32; i++) {
      const fifth = high === undefined ? 0 : ((bytes[high + i] >> j) & 1) << 4;
      codes[to + 32 * j + i] = ((bytes[quants + i] >> shift) & 15) | fifth;
    }
  }
}

const GRIDS: Readonly<Record<BlockType, Grid>> = {
  Q8_0: {
    bits: 8,
    group: 32,
    offset: false,
    read(bytes, at, { codes, scale }, to, first) {
      scale[first] = half(bytes, at);
      for (let i = 0; i < 32; i++) codes[to + i] = int8(bytes[at + 2 + i]);
    },
  },
  Q4_0: {
    bits: 4,
    group: 32,
    offset: false,
    read(bytes, at, { codes, scale }, to, first) {
      scale[first] = half(bytes, at);
      pairs(bytes, at + 2, codes, to, 8);
    },
  },
  Q4_1: {
    bits: 4,
    group: 32,
    offset: true,
    read(bytes, at, { codes, scale, offset }, to, first) {
      scale[first] = half(bytes, at);
      offset[first] = half(bytes, at + 2);
      pairs(bytes, at + 4, codes, to, 0);
    },
  },
  Q5_0: {
    bits: 5,
    group: 32,
    offset: false,
    read(bytes, at, { codes, scale }, to, first) {
      scale[first] = half(bytes, at);
      pairs(bytes, at + 6, codes, to, 16, fifthBits(bytes, at + 2));
    },
  },
  Q5_1: {
    bits: 5,
    group: 32,
    offset: true,
    read(bytes, at, { codes, scale, offset }, to, first) {
      scale[first] = half(bytes, at);
      offset[first] = half(bytes, at + 2);
      pairs(bytes, at + 8, codes, to, 0, fifthBits(bytes, at + 4));
    },
  },
  Q4_K: {
    bits: 4,
    group: 32,
    offset: true,
    read: (bytes, at, out, to, first) => superBlock(bytes, at, out, to, first),
  },
  Q5_K: {
    bits: 5,
    group: 32,
    offset: true,
    read: (bytes, at, out, to, first) => superBlock(bytes, at, out, to, first, at + 16),
  },
  MXFP4: {
    bits: 5,
    group: 32,
    offset: false,
    read(bytes, at, { codes, scale }, to, first) {
      scale[first] = 2 ** (bytes[at] - 128);
      for (let i = 0; i < 16; i++) {
        codes[to + i] = mxfp4Code(bytes[at + 1 + i] & 15);
        codes[to + 16 + i] = mxfp4Code(bytes[at + 1 + i] >> 4);
      }
    },
  },
  Q6_K: {
    bits: 6,
    group: 16,
    offset: false,
    read(bytes, at, { codes, scale }, to, first) {
      const d = half(bytes, at + 208);
      for (let g = 0; g < 16; g++) scale[first + g] = d * int8(bytes[at + 192 + g]);
      sixBits(bytes, at, (element, q) => (codes[to + element] = q - 32));
    },
  },
};

/** The grid of a stored type; undefined for types that hold no codes. */
export function storedGrid(type: string): StoredGrid | undefined {
  if (!Object.hasOwn(GRIDS, type)) return undefined;
  const { bits, group, offset } = GRIDS[type as BlockType];
  return { bits, group, offset };
}

/**
 * The codes of a tensor's bytes.
 * @throws PlanishError when a scale or an offset is no finite number.
 */
export function storedCodes(tensor: StoredTensor, bytes: Uint8Array): StoredCodes {
  const type = tensor.type as BlockType;
  const { bits, group, offset, read } = GRIDS[type];
  const { blockElements, blockBytes } = BLOCK_FORMATS[type];
  const blocks = bytes.byteLength / blockBytes;
  const count = blocks * blockElements;
  const out: Writable = {
    codes: new Int8Array(count),
    scale: new Float32Array(count / group),
    offset: new Float32Array(offset ? count / group : 0),
  };
  const each = blockElements / group;
  for (let block = 0; block < blocks; block++)
    read(bytes, block * blockBytes, out, block * blockElements, block * each);
  const finite = (values: Float32Array) => values.every(Number.isFinite);
  if (!finite(out.scale) || !finite(out.offset))
    throw new PlanishError(
      `${tensor.file}: tensor ${tensor.name} has a scale that is no finite number; fetch the model again`,
    );
  return { codes: out.codes, scale: out.scale, group, bits, ...(offset && { offset: out.offset }) };
}
