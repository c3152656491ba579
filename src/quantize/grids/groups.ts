/**
 * A scheme's grids of weights and activations: bits, a group, whether there is an offset. What a graph does with them, how
 * folding rounds on them, and which models they fit.
 */
import type { RealArray } from "../../backend/contract/buffer.js";
import type { BlockProgram, LinearSite } from "../../backend/contract/program.js";
import { formatScheme, LEGAL_GROUPS, type Scheme } from "../../backend/contract/scheme.js";
import { roundHalfEven } from "../../backend/reference/train/quantize.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import { UsageError } from "../../common/errors.js";
import { floatToHalfBits } from "../../common/half.js";
import type { ModelConfig } from "../../models/config.js";
import {
  fakeQuantizeAsym,
  quantizeOffset,
  quantizeRows,
  type ClipPair,
} from "../../tensor/ops/index.js";
import type { Graph, Tensor } from "../../tensor/tensor.js";
import type { GridSteps } from "../schema/weight-rounder.js";

/** Smallest scale of a symmetric weight grid (docs/methods.md, Grids). */
export const WEIGHT_SCALE_FLOOR = 1e-5;

/** Smallest 16-bit float above zero: no stored scale is less. */
const SMALLEST_HALF = 2 ** -24;

export interface Grid {
  readonly bits: number;
  /** Channels that share a scale; absent: the row, or token. */
  readonly group?: number;
  /**
   * Whether each of these has an offset, too: a real one, or of activations (`zero`) a whole number of steps, so that zero,
   * around which they crowd, stays zero.
   */
  readonly offset?: boolean;
  readonly zero?: boolean;
}

/** The grid of a block's weight, by its linear's path: its own, or the scheme's. */
export function weightGrid(scheme: Scheme, path: string): Grid {
  return (
    scheme.own?.weights?.[path] ?? {
      bits: scheme.weightBits,
      group: scheme.weightGroup,
      offset: scheme.weightOffset,
    }
  );
}

export function activationGrid(scheme: Scheme, site: LinearSite): Grid {
  return {
    bits: scheme.own?.activationBits?.[site] ?? scheme.activationBits,
    group: scheme.activationGroup,
    offset: scheme.activationOffset,
    zero: scheme.activationOffset,
  };
}

/** Clipping logits of a weight [rows, cols]: one for each scale. */
export function weightClipShape(
  [rows, cols]: readonly number[],
  { weightGroup }: Scheme,
): readonly [number, number] {
  return [rows, weightGroup ? cols / weightGroup : 1];
}

export interface OnGridOptions {
  readonly clip?: ClipPair;
  /** Learned rounding, same shape as x. */
  readonly rounding?: Tensor;
  /** Of symmetric grids; 0 means "a zero row gets scale 1". */
  readonly scaleFloor?: number;
}

/** A tensor on a grid that its own values span. */
export function onGrid(g: Graph, x: Tensor, grid: Grid, options: OnGridOptions = {}): Tensor {
  const { bits, group, offset, zero } = grid;
  const { clip, rounding, scaleFloor } = options;
  if (zero) return fakeQuantizeAsym(g, x, { bits, cols: group, clip });
  return offset
    ? quantizeOffset(g, x, { bits, group, clip, shift: rounding })
    : quantizeRows(g, x, { bits, group, clip, offset: rounding, scaleFloor });
}

/**
 * Codes and steps of a weight [rows, cols] in single precision, statement by statement as backends compute them. 16-bit
 * weights often lie exactly between two levels (w = (j+½)·max/7): float64 would send such ties another way than the model
 * that was simulated.
 */
export function roundInSingle(
  weight: RealArray,
  cols: number,
  { bits, group, offset }: Grid,
  rounding?: RealArray,
): GridSteps & { readonly codes: Int8Array } {
  const width = group ?? cols;
  const groups = weight.length / width;
  const codes = new Int8Array(weight.length);
  const scale = new Float32Array(groups);
  const least = offset ? 0 : -(2 ** (bits - 1));
  const most = offset ? 2 ** bits - 1 : 2 ** (bits - 1) - 1;
  const offsets = offset ? new Float32Array(groups) : undefined;
  for (let n = 0; n < groups; n++) {
    const [start, end] = [n * width, (n + 1) * width];
    const lo = offsets ? lowest(weight, start, end) : 0;
    if (offsets) offsets[n] = lo;
    scale[n] = offsets
      ? Math.fround(Math.fround(highest(weight, start, end) - lo) / most) || 1
      : Math.max(Math.fround(largest(weight, start, end) / most), Math.fround(WEIGHT_SCALE_FLOOR));
    for (let i = start; i < end; i++) {
      const level = Math.fround(Math.fround(Math.fround(weight[i]) - lo) / scale[n]);
      const moved = rounding ? Math.fround(level + Math.fround(rounding[i])) : level;
      codes[i] = Math.min(Math.max(roundHalfEven(moved), least), most);
    }
  }
  return { codes, scale, bits, group, offset: offsets };
}

function largest(x: RealArray, start: number, end: number): number {
  let most = 0;
  for (let i = start; i < end; i++) most = Math.max(most, Math.abs(Math.fround(x[i])));
  return most;
}

function highest(x: RealArray, start: number, end: number): number {
  let most = -Infinity;
  for (let i = start; i < end; i++) most = Math.max(most, Math.fround(x[i]));
  return most;
}

function lowest(x: RealArray, start: number, end: number): number {
  let least = Infinity;
  for (let i = start; i < end; i++) least = Math.min(least, Math.fround(x[i]));
  return least;
}

/** Steps of groups as the artifact holds them, in 16 bits; a scale per row has 32, and stays. */
export function storedSteps<S extends GridSteps>(steps: S): S {
  if (steps.group === undefined) return steps;
  const half = (x: number): number => halfFloats()[floatToHalfBits(x)];
  return {
    ...steps,
    scale: steps.scale.map((s) => Math.max(half(s), SMALLEST_HALF)),
    offset: steps.offset?.map(half),
  };
}

/** What codes stand for, [rows, cols]. */
export function dequantized(
  codes: ArrayLike<number>,
  cols: number,
  { scale, offset, group }: Pick<GridSteps, "scale" | "offset" | "group">,
): Float32Array {
  const width = group ?? cols;
  const out = new Float32Array(codes.length);
  for (let n = 0, i = 0; i < out.length; n++)
    for (const end = i + width; i < end; i++)
      out[i] = offset ? offset[n] + scale[n] * codes[i] : scale[n] * codes[i];
  return out;
}

/** @throws UsageError where a scheme's groups do not divide a width of the model, with those that divide every one. */
export function checkGroups(
  programs: readonly BlockProgram[],
  { hiddenSize, embeddingSize }: ModelConfig,
  scheme: Scheme,
): void {
  const { weightGroup, activationGroup, tableGroup } = scheme;
  const columns = embeddingSize ?? hiddenSize;
  if (tableGroup && columns % tableGroup !== 0) {
    const fit = LEGAL_GROUPS.filter((size) => columns % size === 0);
    throw new UsageError(
      `scheme ${formatScheme(scheme)} has tables in groups of ${tableGroup} channels, which do not divide this model's embedding of ${columns}; ` +
        (fit.length > 0 ? `groups of ${fit.join(" or ")} do` : "none does, so leave out the h"),
    );
  }
  const widths = new Map<number, string>();
  for (const program of programs)
    for (const { path, shape } of Object.values(program.linears))
      if (!widths.has(shape[1])) widths.set(shape[1], path);
  for (const group of [weightGroup, activationGroup]) {
    if (group === undefined) continue;
    for (const [width, path] of widths) {
      if (width % group === 0) continue;
      const fit = LEGAL_GROUPS.filter((size) => [...widths.keys()].every((w) => w % size === 0));
      throw new UsageError(
        `scheme ${formatScheme(scheme)} has groups of ${group} channels, which do not divide the ${width} that ${path} reads; ` +
          (fit.length > 0
            ? `groups of ${fit.join(" or ")} divide every width of this model`
            : "none divides every width of this model, so leave groups out"),
      );
    }
  }
}
