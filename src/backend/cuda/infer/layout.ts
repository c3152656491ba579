/**
 * Where the engine's CUDA kernels expect things: weights in the order of the matrix units, codes of activations,
 * transforms as halves, pages of the cache. Counterparts: native/cuda/engine/{gemm,site,engine}.cu(h).
 */
import type { GroupSize } from "../../contract/scheme.js";
import { floatToHalfBits } from "../../../common/half.js";

/** Columns of a block of codes and weights. */
export const BLOCK_COLUMNS = 128;
/** Rows of weights that one block of threads multiplies. */
export const TILE_FEATURES = 256;
/** Positions of a page of the cache. */
export const PAGE_TOKENS = 64;

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

/** Which of a matrix's rows lies where in a tile of 256: `gated` pairs a tile of 64 rows of gate with one of up. */
export interface FeatureOrder {
  /** Rows of the source: those of gate, then those of up, when gated. */
  readonly rows: number;
  readonly gated: boolean;
}

/** Tiles of 256 features: the rows, and for a gated pair both matrices' rows. */
export function featureTiles({ rows, gated }: FeatureOrder): number {
  return Math.ceil(gated ? rows / 2 / (TILE_FEATURES / 2) : rows / TILE_FEATURES);
}

/**
 * Source row held by row `r` (0 … 15) of a warp's 16 rows in tile `t` (0, 1) of 64, in a warpgroup's warp; −1: none.
 * After a warp has exchanged rows and columns, its lanes hold consecutive features (gemm.cu, featureOf).
 */
export function sourceRow(
  order: FeatureOrder,
  tile: number,
  warpgroup: number,
  warp: number,
  t: number,
  r: number,
): number {
  const g = r % 8;
  const h = r >> 3;
  if (order.gated) {
    const half = order.rows / 2;
    const feature =
      (tile * TILE_FEATURES) / 2 + warpgroup * 64 + warp * 16 + 4 * (g >> 1) + 2 * h + (g % 2);
    return feature < half ? t * half + feature : -1;
  }
  const feature =
    tile * TILE_FEATURES + warpgroup * 128 + warp * 32 + 8 * (g >> 1) + 4 * t + 2 * h + (g % 2);
  return feature < order.rows ? feature : -1;
}

/** Bytes of packed weights. */
export function packedBytes(order: FeatureOrder, columns: number, bits: 4 | 8): number {
  return (featureTiles(order) * TILE_FEATURES * roundUp(columns, BLOCK_COLUMNS) * bits) / 8;
}

/**
 * Integer codes [rows, columns] in the order of the A operand of wgmma and mma: a thread's registers for 64 columns of
 * 16 rows lie together. Rows and columns beyond the matrix are zero. With 4 bits a word holds registers 2i (low
 * nibbles) and 2i + 1 (high ones) of a step.
 */
export function packWeights(
  codes: Int8Array,
  columns: number,
  order: FeatureOrder,
  bits: 4 | 8,
): Uint8Array {
  const tiles = featureTiles(order);
  const blocks = roundUp(columns, BLOCK_COLUMNS) / BLOCK_COLUMNS;
  const packed = new Uint8Array(packedBytes(order, columns, bits));
  const threadBytes = 4 * bits;
  for (let tile = 0; tile < tiles; tile++)
    for (let warpgroup = 0; warpgroup < 2; warpgroup++)
      for (let t = 0; t < 2; t++)
        for (let warp = 0; warp < 4; warp++)
          for (let r = 0; r < 16; r++) {
            const row = sourceRow(order, tile, warpgroup, warp, t, r);
            if (row < 0) continue;
            for (let column = 0; column < columns; column++) {
              const block = Math.floor(column / BLOCK_COLUMNS);
              const within = column % BLOCK_COLUMNS;
              const half = within >> 6;
              const step = (within >> 5) & 1;
              const k = within & 31;
              // Registers 0 … 3: row below 8 or not, columns below 16 or not; four columns each.
              const register = (r >> 3) + 2 * (k >> 4);
              const thread = warp * 32 + (r % 8) * 4 + ((k % 16) >> 2);
              const byte = k % 4;
              const base =
                ((((tile * blocks + block) * 2 + warpgroup) * 2 + t) * 2 + half) *
                  128 *
                  threadBytes +
                thread * threadBytes;
              const code = codes[row * columns + column];
              if (bits === 8) packed[base + step * 16 + register * 4 + byte] = code & 255;
              else
                packed[base + (step * 2 + (register >> 1)) * 4 + byte] |=
                  (code & 15) << (4 * (register % 2));
            }
          }
  return packed;
}

/** Scales or biases of features in the order of tiles: gate's 128, then up's 128, when gated; `fill` beyond the matrix. */
export function orderFeatures(
  values: ArrayLike<number>,
  order: FeatureOrder,
  fill: number,
): Float32Array {
  const ordered = new Float32Array(featureTiles(order) * TILE_FEATURES).fill(fill);
  if (!order.gated) {
    for (let i = 0; i < order.rows; i++) ordered[i] = values[i];
    return ordered;
  }
  const half = order.rows / 2;
  for (let i = 0; i < half; i++) {
    const at = Math.floor(i / 128) * TILE_FEATURES + (i % 128);
    ordered[at] = values[i];
    ordered[at + 128] = values[half + i];
  }
  return ordered;
}

/** Where the code of a row's column lies among codes of `capacity` rows (a multiple of 8). */
export function codeOffset(capacity: number, row: number, column: number): number {
  const block = Math.floor(column / BLOCK_COLUMNS);
  const piece = ((column >> 4) % 8) ^ (row % 8);
  return (block * capacity + row) * BLOCK_COLUMNS + piece * 16 + (column % 16);
}

/** Bytes of codes of one set. */
export function codeBytes(capacity: number, columns: number): number {
  return capacity * roundUp(columns, BLOCK_COLUMNS);
}

/** A site's transform as the kernel is compiled for it. */
export interface SiteShape {
  readonly left: number;
  readonly right: number;
  readonly hasLeft: boolean;
  readonly hasRight: boolean;
}

/** Sizes inside the site kernel: padded rows and columns; what rows are padded to, and threads when a warp has as many. */
export function siteGeometry({ left, right }: SiteShape): {
  rows: number;
  columns: number;
  height: number;
  threads: number;
} {
  const height = left * right > 8192 ? 32 : 16;
  const rows = roundUp(left, height);
  const columns = roundUp(right, 32);
  return { rows, columns, height, threads: (rows / height) * columns };
}

/** How a site's codes have their scales, beside one for a token. */
export interface SiteGrid {
  /** Columns that share a scale. */
  readonly span?: GroupSize;
  /** Codes of a group are those of an unsigned grid less its zero point. */
  readonly zero?: boolean;
  /** Columns whose codes are summed, for products with offsets. */
  readonly sums?: GroupSize;
}

/** Groups of so many columns in whole blocks of columns. */
export function groupCount(columns: number, group: GroupSize): number {
  return roundUp(columns, BLOCK_COLUMNS) / group;
}

/** @param splits Of attention, when the site joins them. */
export function siteSharedBytes(
  shape: SiteShape,
  tail: boolean,
  { span, sums }: SiteGrid = {},
  splits = 0,
): number {
  const { left, right, hasLeft, hasRight } = shape;
  const { rows, columns } = siteGeometry(shape);
  // With groups the transformed row lies where its halves lay.
  const values = span ? roundUp(2 * left * (right + 8), 8) : 0;
  const halves =
    Math.max((tail ? 2 : 1) * rows * (columns + 8), values) +
    (hasLeft ? rows * (rows + 8) : 0) +
    (hasRight ? columns * (columns + 8) : 0);
  const scales = span && sums ? roundUp(groupCount(left * right, span), 4) : 0;
  const codes = roundUp(left * right, BLOCK_COLUMNS);
  return 2 * halves + 4 * scales + Math.max(codes, 8 * left * splits);
}

/**
 * Blocks of threads that share a row in site_cluster.cu, 32 columns each, and their threads; undefined where the row is not
 * cut so.
 */
export function siteClusterSize(
  shape: SiteShape,
): { readonly blocks: number; readonly threads: number; readonly ownRows: number } | undefined {
  const { left, right, hasLeft, hasRight } = shape;
  const blocks = right / 32;
  if (!hasLeft || !Number.isInteger(blocks) || blocks < 2 || blocks > 8) return undefined;
  if ((left * right) % BLOCK_COLUMNS !== 0) return undefined;
  const tiles = siteGeometry(shape).rows / 16;
  const each = Math.ceil(tiles / blocks);
  const warps = Math.max(8, tiles, hasRight ? each * blocks : 0);
  return warps > 32 ? undefined : { blocks, threads: warps * 32, ownRows: each * 16 };
}

/** Shared memory of each of those blocks. */
export function siteClusterSharedBytes(shape: SiteShape): number {
  const { ownRows } = siteClusterSize(shape)!;
  const { rows, columns } = siteGeometry(shape);
  const halves =
    2 * rows * (32 + 8) +
    rows * (rows + 8) +
    (shape.hasRight ? (2 * ownRows + columns) * (columns + 8) : 0);
  return 2 * halves + (shape.hasRight ? ownRows * shape.right : shape.left * 32);
}

/** A square matrix as halves with rows of `padded` + 8, zeros outside. */
export function paddedHalves(matrix: ArrayLike<number>, size: number, padded: number): Uint16Array {
  const halves = new Uint16Array(padded * (padded + 8));
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++)
      halves[i * (padded + 8) + j] = floatToHalfBits(matrix[i * size + j]);
  return halves;
}

/** Parts of one page of one KV head (PageLayout in engine.cuh). */
export function pageLayout(
  headDim: number,
  bits: 4 | 16,
): Readonly<
  Record<"values" | "keyScale" | "valueScale" | "keyZero" | "valueZero" | "bytes", number>
> {
  const values = (PAGE_TOKENS * headDim * bits) / 8;
  const keyScale = 2 * values;
  const grids = bits === 16 ? 0 : PAGE_TOKENS;
  const valueScale = keyScale + 4 * grids;
  const keyZero = valueScale + 4 * grids;
  const valueZero = keyZero + 2 * grids;
  return { values, keyScale, valueScale, keyZero, valueZero, bytes: valueZero + 2 * grids };
}

/** Heads of a cache, and how they are kept. */
export interface CacheShape {
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Bits kept: 4, or 16 for halves. */
  readonly kept: 4 | 16;
}
