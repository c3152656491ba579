/** What kernels with scales of groups compute, stated plainly in float64 on emulated memory. */
import { codeOffset } from "../../../../src/backend/cuda/infer/layout.js";
import { silu, type Launch } from "./emulated-launch.js";
import type { EmulatedMemory } from "./emulated-memory.js";

/** Weights as they were before they were packed. */
export interface EmulatedWeights {
  readonly codes: Int8Array;
  readonly rows: number;
  readonly columns: number;
  readonly gated: boolean;
}

/** A product with scales of groups, in float64: each code times its scales. */
export function multiplyGroups(
  memory: EmulatedMemory,
  packed: ReadonlyMap<number, EmulatedWeights>,
  { kernel, args }: Launch,
): void {
  const [weightsAt, codesAt, tokenScale, featureScale, bias, out, tokens, capacity] = args;
  const [blocks, features, outStride, set1, set2, offsetAt, sumsAt] = args.slice(8);
  const { EPILOGUE, WGROUP, AGROUP, OFFSETS, SHIFT, SUMGROUP, SCALE16 } = kernel.defines;
  const weights = packed.get(weightsAt);
  if (!weights) throw new Error("gemm_group: these weights were never packed");
  const { codes, rows, columns, gated } = weights;
  if (blocks !== Math.ceil(columns / 128) || (EPILOGUE === 2) !== gated)
    throw new Error("gemm_group: another shape than the weights'");
  const stored = (at: number, index: number): number =>
    SCALE16 ? memory.halves(at + 2 * index, 1, 0)[0] : memory.rest(Float32Array, at)[index];
  const wGroups = WGROUP ? (blocks * 128) / WGROUP : 0;
  const aGroups = AGROUP ? (blocks * 128) / AGROUP : 1;
  const sumCount = (blocks * 128) / SUMGROUP;
  const tileOf = (row: number) => Math.floor((gated ? row % features : row) / (gated ? 128 : 256));
  const placeOf = (row: number) =>
    gated ? ((row % features) % 128) + (row >= features ? 128 : 0) : row % 256;
  const dequantized = Array.from({ length: rows }, (_, row) => {
    const at = (group: number) => (tileOf(row) * wGroups + group) * 256 + placeOf(row);
    const groups = Array.from({ length: Math.max(1, wGroups) }, (__, group) => {
      if (!WGROUP)
        return {
          scale: memory.rest(Float32Array, featureScale)[tileOf(row) * 256 + placeOf(row)],
          offset: 0,
        };
      const scale = stored(featureScale, at(group));
      return { scale, offset: OFFSETS ? stored(offsetAt, at(group)) + SHIFT * scale : 0 };
    });
    return { groups, codes: codes.subarray(row * columns, (row + 1) * columns) };
  });
  const activations = memory.rest(Int8Array, codesAt);
  const scales = memory.rest(Float32Array, tokenScale);
  const sums = OFFSETS ? memory.rest(Float32Array, sumsAt) : new Float32Array();
  const setOf = (row: number) => (tileOf(row) >= set2 ? 2 : tileOf(row) >= set1 ? 1 : 0);
  const value = (token: number, row: number) => {
    const set = setOf(row);
    const { groups, codes: own } = dequantized[row];
    let sum = 0;
    for (let c = 0; c < columns; c++) {
      const { scale } = groups[WGROUP ? Math.floor(c / WGROUP) : 0];
      const a = AGROUP ? Math.floor(c / AGROUP) : 0;
      const code = activations[set * blocks * capacity * 128 + codeOffset(capacity, token, c)];
      sum += own[c] * scale * code * scales[(set * aGroups + a) * capacity + token];
    }
    for (let s = 0; OFFSETS && s < sumCount; s++) {
      const of = sums[(set * sumCount + s) * capacity + token];
      sum +=
        groups[Math.floor((s * SUMGROUP) / WGROUP)].offset *
        of *
        (AGROUP ? 1 : scales[set * capacity + token]);
    }
    const place = tileOf(row) * 256 + placeOf(row);
    return sum + (bias === 0 ? 0 : memory.rest(Float32Array, bias)[place]);
  };
  for (let token = 0; token < tokens; token++) {
    const to = memory.view(Float32Array, out + 4 * token * outStride, features);
    for (let f = 0; f < features; f++) {
      const result = gated ? silu(value(token, f)) * value(token, features + f) : value(token, f);
      to[f] = EPILOGUE === 1 ? to[f] + result : result;
    }
  }
}

/** Tables of codes by where they lie, as they came and with what was added to each. */
export class EmulatedTables {
  private readonly codes = new Map<number, Int8Array>();

  constructor(private readonly memory: EmulatedMemory) {}

  pack({ kernel, args }: Launch): void {
    const [codes, bias, words, packed] = args;
    const { BITS } = kernel.defines;
    const count = (words * 32) / BITS;
    this.memory.view(Uint8Array, packed, 4 * words);
    // What a kernel takes off again.
    const taken = BITS === 8 ? 128 : 8;
    this.codes.set(
      packed,
      this.memory.view(Int8Array, codes, count).map((code) => code + bias - taken),
    );
  }

  /** Rows of a table, dequantized. */
  rows(
    { kernel }: Launch,
    [codesAt, scaleAt, offsetAt]: readonly number[],
    cols: number,
  ): (row: number) => Float32Array {
    const { SPAN, SCALE16, OFFSETS, SHIFT } = kernel.defines;
    const codes = this.codes.get(codesAt);
    if (!codes) throw new Error("a table that was never packed");
    const groups = cols / SPAN;
    const stored = (at: number, row: number): ArrayLike<number> =>
      SCALE16
        ? this.memory.halves(at + 2 * row * groups, groups, 0)
        : this.memory.view(Float32Array, at + 4 * row * groups, groups);
    return (row) => {
      const scale = stored(scaleAt, row);
      const offset = OFFSETS ? stored(offsetAt, row) : undefined;
      return Float32Array.from(codes.subarray(row * cols, (row + 1) * cols), (code, c) => {
        const group = Math.floor(c / SPAN);
        return scale[group] * code + (offset ? offset[group] + SHIFT * scale[group] : 0);
      });
    };
  }
}
