/** The kernels around the blocks (end_layers.cu) against their definitions. Bounds are argued where they stand. */
import { elementsToFloat32 } from "../../../../../src/checkpoint/element-types.js";
import { floatsToHalfBytes } from "../../../../../src/common/half.js";
import type { CudaEngineDevice } from "../../../../../src/backend/cuda/infer/device.js";
import { packedBytes, packWeights } from "../../../../../src/backend/cuda/infer/layout.js";
import {
  EndLayerKernels,
  type CodeTable,
} from "../../../../../src/backend/cuda/infer/end-layer-kernels.js";
import { placeTable } from "../../../../../src/backend/cuda/infer/code-table.js";
import { parseScheme, type GroupSize } from "../../../../../src/backend/contract/scheme.js";
import { ROW_CHECKS } from "./rows.js";
import { roundHalf, type Check } from "./support.js";

function numbers(length: number, seed: number): Float32Array {
  return Float32Array.from(
    { length },
    (_, i) => Math.sin((i + 1) * 12.9898 + seed) * Math.cos(i * 0.37 + seed),
  );
}

/** 16-bit numbers and their bytes: truncated to bfloat16, or rounded to halves. */
function sixteen(values: Float32Array, bf16: boolean): { bytes: Uint8Array; values: Float32Array } {
  const bits = new Uint32Array(values.buffer.slice(0));
  const bytes = bf16
    ? new Uint8Array(Uint16Array.from(bits, (word) => word >>> 16).buffer)
    : floatsToHalfBytes(values, "check");
  const back = new Float32Array(values.length);
  elementsToFloat32(bf16 ? "BF16" : "F16", bytes, back, 0);
  return { bytes, values: back };
}

const pack = (rows: number, columns: number, bits: 4 | 8, gated: boolean): Check => ({
  name: `pack w${bits} ${rows}×${columns}${gated ? " gated" : ""}`,
  run: (device: CudaEngineDevice) => {
    const limit = bits === 4 ? 8 : 128;
    const codes = Int8Array.from(
      { length: rows * columns },
      (_, i) => ((i * 7919 + (i >> 5)) % (2 * limit)) - limit,
    );
    const order = { rows, gated };
    const bytes = packedBytes(order, columns, bits);
    const packed = device.allocate(bytes);
    device.driver.fillBytes(packed, 0xa5, bytes, device.stream);
    new EndLayerKernels(device).pack(device.put(codes), columns, order, bits, packed);
    const got = device.read(packed, new Uint8Array(bytes));
    const want = packWeights(codes, columns, order, bits);
    return got.every((byte, i) => byte === want[i]) ? 0 : Infinity;
  },
});

const logits = (
  rows: number,
  vocab: number,
  cols: number,
  bf16: boolean,
  norm: boolean,
): Check => ({
  name: `logits ${rows}×${vocab}×${cols} ${bf16 ? "bf16" : "f16"}${norm ? "" : " without norm"}`,
  run: (device: CudaEngineDevice) => {
    const total = rows + 3;
    const x = numbers(total * cols, 1).map((value) => 3 * value);
    const gain = numbers(cols, 2).map((value) => 1 + value / 2);
    const table = sixteen(numbers(vocab * cols, 3), bf16);
    const chosen = Int32Array.from({ length: rows }, (_, i) => (i * 5 + 2) % total);
    const out = device.allocate(rows * vocab * 4);
    device.driver.fillBytes(out, 0xff, rows * vocab * 4, device.stream);
    new EndLayerKernels(device).logits({
      x: device.put(x),
      chosen: device.put(chosen),
      rows,
      cols,
      gain: norm ? device.put(gain) : undefined,
      epsilon: 1e-5,
      table: { pointer: device.put(table.bytes), bf16 },
      vocab,
      parts: device.allocate(rows * cols * 4),
      out,
    });
    const got = device.read(out, new Float32Array(rows * vocab));
    let worst = 0;
    for (let i = 0; i < rows; i++) {
      const row = Float64Array.from(x.subarray(chosen[i] * cols, (chosen[i] + 1) * cols));
      if (norm) {
        const square = row.reduce((sum, value) => sum + value * value, 0) / cols;
        row.forEach((value, k) => (row[k] = (value / Math.sqrt(square + 1e-5)) * gain[k]));
      }
      for (let v = 0; v < vocab; v++) {
        let [sum, size] = [0, 0];
        for (let k = 0; k < cols; k++) {
          const term = row[k] * table.values[v * cols + k];
          sum += term;
          size += Math.abs(term);
        }
        // Two bfloat16 leave 2⁻¹⁷ of a factor, two halves 2⁻²³, the norm some 2⁻²¹; the matrix units cut off what lies
        // below f32's last bit, at every eight columns of the two parts, at most 2⁻²³ of all terms each time.
        const bound = (bf16 ? 2 ** -16 : 2 ** -20) + (cols / 4) * 2 ** -23;
        const error = Math.abs(got[i * vocab + v] - sum) / (bound * size);
        worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
      }
    }
    return worst;
  },
});

/** A table of codes on a grid of groups, as it is placed, and what its entries are. */
function codeTable(
  device: CudaEngineDevice,
  [vocab, cols]: readonly [number, number],
  grid: { readonly bits: number; readonly group: GroupSize; readonly offset?: boolean },
  single: boolean,
): { table: CodeTable; values: Float32Array } {
  const { bits, group, offset = false } = grid;
  const groups = cols / group;
  const least = offset ? 0 : -(2 ** (bits - 1));
  const codes = Int8Array.from(
    { length: vocab * cols },
    (_, i) => least + ((i * 7919 + (i >> 4)) % 2 ** bits),
  );
  const steps = (seed: number) =>
    numbers(vocab * groups, seed).map((x) => (single ? x / 3 : roundHalf(x)));
  const [scale, offsets] = [
    steps(5).map((x) => Math.abs(x) / 8 + (single ? 0 : 2 ** -10)),
    steps(6),
  ];
  const matrix = {
    codes,
    scale: single ? scale : scale.map(roundHalf),
    group,
    bits,
    offset: offset ? offsets : undefined,
  };
  const { table } = placeTable(device, [vocab, cols], matrix, parseScheme("w4a4kv4"));
  const values = Float32Array.from(codes, (code, i) => {
    const at = Math.floor(i / cols) * groups + Math.floor((i % cols) / group);
    return matrix.scale[at] * code + (offset ? offsets[at] : 0);
  });
  return { table, values };
}

const codeLogits = (
  rows: number,
  shape: readonly [number, number],
  grid: Parameters<typeof codeTable>[2],
  { single = false, cap }: { readonly single?: boolean; readonly cap?: number } = {},
): Check => ({
  name:
    `logits ${rows}×${shape.join("×")} of ${grid.bits} bits in ${grid.group}` +
    `${grid.offset ? " with offsets" : ""}${single ? ", f32 scales" : ""}${cap ? ", capped" : ""}`,
  run: (device: CudaEngineDevice) => {
    const [vocab, cols] = shape;
    const x = numbers(rows * cols, 1).map((value) => 3 * value);
    const { table, values } = codeTable(device, shape, grid, single);
    const chosen = Int32Array.from({ length: rows }, (_, i) => rows - 1 - i);
    const out = device.allocate(rows * vocab * 4);
    device.driver.fillBytes(out, 0xff, rows * vocab * 4, device.stream);
    new EndLayerKernels(device).logits({
      ...{
        x: device.put(x),
        chosen: device.put(chosen),
        rows,
        cols,
        epsilon: 0,
        table,
        vocab,
        cap,
      },
      parts: device.allocate(rows * cols * 4),
      out,
    });
    const got = device.read(out, new Float32Array(rows * vocab));
    let worst = 0;
    for (let i = 0; i < rows; i++)
      for (let v = 0; v < vocab; v++) {
        let [sum, size] = [0, 0];
        for (let k = 0; k < cols; k++) {
          const term = x[chosen[i] * cols + k] * values[v * cols + k];
          sum += term;
          // Beside an offset, what is multiplied is larger than the entry.
          size += Math.abs(term) * (grid.offset ? 4 : 1);
        }
        const want = cap ? cap * Math.tanh(sum / cap) : sum;
        // As with tables of halves; a group's sum is scaled and added with two roundings more.
        const bound = 2 ** -20 + (cols / 4) * 2 ** -23;
        const error = Math.abs(got[i * vocab + v] - want) / (bound * size + 1e-5 * (cap ?? 0));
        worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
      }
    return worst;
  },
});

/** Embedded rows of a table of codes, times a factor. */
const codeEmbed = (grid: Parameters<typeof codeTable>[2], single: boolean): Check => ({
  name: `embed ${grid.bits} bits in ${grid.group}${grid.offset ? " with offsets" : ""}`,
  run: (device: CudaEngineDevice) => {
    const [vocab, cols, rows, half] = [37, 256, 9, 4];
    const { table, values } = codeTable(device, [vocab, cols], grid, single);
    const ids = Int32Array.from({ length: rows }, (_, i) => (i * 11) % vocab);
    const x = device.allocate(rows * cols * 4);
    device.driver.fillBytes(x, 0xff, rows * cols * 4, device.stream);
    new EndLayerKernels(device).embed({
      ...{
        table,
        factor: 1.5,
        ids: device.put(ids),
        positions: device.put(ids),
        rows,
        cols,
        half,
        x,
      },
      frequencies: device.put(new Float64Array(half)),
      cosine: device.allocate(4 * rows * half),
      sine: device.allocate(4 * rows * half),
    });
    const got = device.read(x, new Float32Array(rows * cols));
    let worst = 0;
    got.forEach((value, i) => {
      const want = 1.5 * values[ids[Math.floor(i / cols)] * cols + (i % cols)];
      // A fused multiplication and addition, the shifted offset and the factor, of numbers of some ones.
      const error = Math.abs(value - want) / (2 ** -20 * (Math.abs(want) + 4));
      worst = Number.isNaN(error) ? Infinity : Math.max(worst, error);
    });
    return worst;
  },
});

const CODE_TABLE_CHECKS: readonly Check[] = [
  codeLogits(1, [300, 256], { bits: 8, group: 64 }),
  codeLogits(13, [257, 576], { bits: 6, group: 64 }, { cap: 20 }),
  codeLogits(30, [130, 1024], { bits: 4, group: 64 }),
  codeLogits(70, [130, 640], { bits: 4, group: 128 }, { single: true }),
  codeLogits(3, [200, 640], { bits: 4, group: 32, offset: true }),
  codeLogits(5, [200, 144], { bits: 6, group: 16 }, { single: true }),
  codeLogits(9, [200, 144], { bits: 4, group: 16, offset: true }),
  codeLogits(20, [140, 512], { bits: 5, group: 32, offset: true }, { single: true }),
  codeEmbed({ bits: 8, group: 64 }, false),
  codeEmbed({ bits: 4, group: 32 }, false),
  codeEmbed({ bits: 4, group: 16, offset: true }, true),
];

const embed = (bf16: boolean): Check => ({
  name: `embed ${bf16 ? "bf16" : "f16"}`,
  run: (device: CudaEngineDevice) => {
    const [vocab, cols, half, rows] = [37, 300, 24, 9];
    const table = sixteen(numbers(vocab * cols, 5), bf16);
    const ids = Int32Array.from({ length: rows }, (_, i) => (i * 11) % vocab);
    const positions = Int32Array.from({ length: rows }, (_, i) => i ** 5);
    const frequencies = Float64Array.from({ length: half }, (_, i) => 10000 ** (-i / half));
    const poisoned = (count: number) => {
      const pointer = device.allocate(4 * count);
      device.driver.fillBytes(pointer, 0xff, 4 * count, device.stream);
      return pointer;
    };
    const [x, cosine, sine] = [poisoned(rows * cols), poisoned(rows * half), poisoned(rows * half)];
    new EndLayerKernels(device).embed({
      table: { pointer: device.put(table.bytes), bf16 },
      ids: device.put(ids),
      positions: device.put(positions),
      rows,
      cols,
      frequencies: device.put(frequencies),
      half,
      x,
      cosine,
      sine,
    });
    const got = device.read(x, new Float32Array(rows * cols));
    if (
      got.some((value, i) => value !== table.values[ids[Math.floor(i / cols)] * cols + (i % cols)])
    )
      return Infinity;
    let worst = 0;
    const turns = [cosine, sine].map((at) => device.read(at, new Float32Array(rows * half)));
    for (let i = 0; i < rows * half; i++) {
      const angle = positions[Math.floor(i / half)] * frequencies[i % half];
      // Double sines rounded to f32.
      for (const [j, want] of [Math.cos(angle), Math.sin(angle)].entries())
        worst = Math.max(worst, Math.abs(turns[j][i] - want) / 2 ** -23);
    }
    return worst;
  },
});

export const END_LAYER_CHECKS: readonly Check[] = [
  pack(300, 200, 4, false),
  pack(512, 384, 8, false),
  pack(400, 130, 4, true),
  pack(300, 130, 8, true),
  logits(1, 300, 256, true, true),
  logits(13, 257, 72, false, true),
  logits(30, 128, 1000, true, false),
  logits(70, 130, 640, false, true),
  embed(true),
  embed(false),
  ...CODE_TABLE_CHECKS,
  ...ROW_CHECKS,
];
