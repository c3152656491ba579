/**
 * Scales and offsets of weights in groups of columns, as the kernels of grouped products read them
 * (native/cuda/engine/gemm_group.cuh): [tile of 256][group][256 features], as halves where that is what they are.
 */
import { floatToHalfBits } from "../../../common/half.js";
import { PlanishError } from "../../../common/errors.js";
import type { PackedLinear, QuantizedMatrix } from "../../contract/packed.js";
import { LEGAL_GROUPS, type GroupSize } from "../../contract/scheme.js";
import type { DevicePointer } from "../driver.js";
import {
  BLOCK_COLUMNS,
  orderFeatures,
  roundUp,
  TILE_FEATURES,
  type FeatureOrder,
} from "./layout.js";

/** How the weights of a product have their scales. */
export interface WeightGroups {
  /** Columns that share a scale. */
  readonly columns: GroupSize;
  /** Scales and offsets are halves, else f32. */
  readonly halves: boolean;
  /** Offsets beside the scales. */
  readonly offset?: DevicePointer;
  /** What was taken from a code beside an offset. */
  readonly shift: number;
}

/**
 * Columns that share a scale of a weight; undefined for the row.
 * @throws PlanishError when kernels have no such groups, or they do not divide the columns.
 */
export function groupOf(
  what: string,
  { group, offset }: Pick<QuantizedMatrix, "group" | "offset">,
  columns: number,
): GroupSize | undefined {
  const found = LEGAL_GROUPS.find((size) => size === group);
  if (found !== undefined && columns % found === 0) return found;
  if ((group === undefined || group === columns) && !offset) return undefined;
  throw new PlanishError(
    `${what} has scales for groups of ${group ?? columns} of its ${columns} input channels; groups of ` +
      `${LEGAL_GROUPS.filter((size) => columns % size === 0).join(", ")} have CUDA kernels`,
  );
}

/** What codes of some bits are shifted by beside an offset, so that they fit 4 bits. */
export function codeShift({ offset }: QuantizedMatrix, bits: number): number {
  return offset && bits === 4 ? 8 : 0;
}

/** Values [rows, groups] in the order of tiles; `fill` stands where the matrix has no rows or columns. */
export function orderGroups(
  values: Float32Array,
  columns: number,
  group: number,
  order: FeatureOrder,
  fill: number,
): Float32Array {
  const own = columns / group;
  const groups = roundUp(columns, BLOCK_COLUMNS) / group;
  const tiles = Math.ceil(
    order.gated ? order.rows / 2 / (TILE_FEATURES / 2) : order.rows / TILE_FEATURES,
  );
  const ordered = new Float32Array(tiles * groups * TILE_FEATURES).fill(fill);
  const column = new Float32Array(order.rows);
  for (let g = 0; g < own; g++) {
    for (let row = 0; row < order.rows; row++) column[row] = values[row * own + g];
    const placed = orderFeatures(column, order, fill);
    for (let tile = 0; tile < tiles; tile++)
      ordered.set(
        placed.subarray(tile * TILE_FEATURES, (tile + 1) * TILE_FEATURES),
        (tile * groups + g) * TILE_FEATURES,
      );
  }
  return ordered;
}

/** As halves where asked for; every value is one then. */
export function asStored(values: Float32Array, halves: boolean): Float32Array | Uint16Array {
  return halves ? Uint16Array.from(values, floatToHalfBits) : values;
}

/** What linears must share to go in one product. */
export function gridKey(
  { path, shape, quantized }: PackedLinear,
  bits: (own: number | undefined) => number,
): string {
  if (!quantized) return "";
  return [
    bits(quantized.bits),
    groupOf(path, quantized, shape[1]) ?? 0,
    quantized.offset ? "offsets" : "",
  ].join(" ");
}
