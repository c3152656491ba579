/**
 * Every kernel of the CUDA engine against a plain definition in float64, on small shapes, odd ones among them. Needs a
 * GPU: `npm run test:cuda` runs them with the rest of the lane, run.ts alone. Outputs are poisoned first, so that a value
 * nobody wrote is found.
 */
import { attention } from "./checks/attention.js";
import { gemm } from "./checks/gemm.js";
import { GROUP_GEMM_CHECKS } from "./checks/gemm-groups.js";
import { site } from "./checks/site.js";
import type { Check } from "./checks/support.js";

const both = { hasLeft: true, hasRight: true };

/** The kernel of other architectures, which every GPU can be made to take, in each of its ways to multiply. */
const PLAIN_PRODUCTS: readonly Check[] = [
  ...(["mma-s4", "mma-s8", "dp4a"] as const).flatMap((plain) => [
    ...[1, 8, 13, 37, 64].flatMap((tokens) => [
      gemm({ tokens, rows: 256, columns: 128, plain }),
      gemm({ tokens, rows: 300, columns: 1000, split: 2, plain }),
    ]),
    // Blocks that leave their sums to the last one, more columns than the ring holds, fewer than there are blocks.
    gemm({ tokens: 5, rows: 512, columns: 1024, split: 8, bias: true, plain }),
    gemm({ tokens: 16, rows: 512, columns: 1376, split: 4, halves: true, plain }),
    gemm({ tokens: 64, rows: 256, columns: 1376, split: 8, accumulate: true, plain }),
    gemm({ tokens: 3, rows: 400, columns: 640, split: 4, gated: true, halves: true, plain }),
    gemm({ tokens: 33, rows: 400, columns: 640, split: 2, gated: true, plain }),
    gemm({ tokens: 2, rows: 300, columns: 200, split: 8, plain }),
    gemm({ tokens: 9, rows: 768, columns: 256, sets: [1, 2], plain }),
    gemm({ tokens: 30, rows: 300, columns: 1100, accumulate: true, bias: true, plain }),
    gemm({ tokens: 1, rows: 512, columns: 11008, accumulate: true, bias: true, plain }),
    gemm({ tokens: 2, rows: 768, columns: 1376, sets: [1, 2], halves: true, plain }),
    gemm({ tokens: 1, rows: 34000, columns: 128, plain }),
    // More tokens than a tile has.
    gemm({ tokens: 130, rows: 300, columns: 600, plain }),
    gemm({ tokens: 400, rows: 300, columns: 200, halves: true, bias: true, plain }),
  ]),
  // Tiles of 128 tokens, which few features would not get.
  ...(["mma-s4", "mma-s8"] as const).flatMap((plain) => [
    gemm({ tokens: 130, rows: 300, columns: 200, tile: 128, plain }),
    gemm({ tokens: 200, rows: 256, columns: 1152, halves: true, bias: true, tile: 128, plain }),
    gemm({ tokens: 256, rows: 512, columns: 512, accumulate: true, tile: 128, plain }),
    gemm({ tokens: 129, rows: 700, columns: 384, gated: true, halves: true, tile: 128, plain }),
    gemm({ tokens: 129, rows: 512, columns: 384, gated: true, tile: 128, plain }),
    gemm({ tokens: 140, rows: 768, columns: 256, sets: [1, 2], halves: true, tile: 128, plain }),
    gemm({ tokens: 400, rows: 9216, columns: 128, gated: true, halves: true, plain }),
  ]),
  ...(["mma-s8", "dp4a"] as const).flatMap((plain) => [
    gemm({ tokens: 7, rows: 300, columns: 200, bits: 8, plain }),
    gemm({ tokens: 20, rows: 256, columns: 384, bits: 8, accumulate: true, plain }),
    gemm({ tokens: 64, rows: 256, columns: 1024, bits: 8, split: 2, plain }),
    gemm({ tokens: 150, rows: 300, columns: 640, bits: 8, plain }),
    gemm({ tokens: 13, rows: 300, columns: 1000, activationBits: 8, split: 2, plain }),
    gemm({ tokens: 20, rows: 600, columns: 640, activationBits: 8, gated: true, plain }),
  ]),
  gemm({ tokens: 150, rows: 300, columns: 640, bits: 8, tile: 128, plain: "mma-s8" }),
  gemm({ tokens: 150, rows: 300, columns: 640, activationBits: 8, tile: 128, plain: "mma-s8" }),
  gemm({ tokens: 40, rows: 300, columns: 640, activationBits: 3, plain: "mma-s4" }),
];

/** `lengths`: cached tokens of each sequence, the one of this step included. */
const ring = (
  headDim: number,
  [heads, kvHeads]: readonly [number, number],
  lengths: readonly number[],
  ways: Partial<Parameters<typeof attention>[0]>,
): Check =>
  attention({
    headDim,
    heads,
    kvHeads,
    kept: 4,
    sequences: lengths.map((length) => ({ start: length - 1, rows: 1 })),
    ...ways,
  });

/**
 * Decoding with rings of pages (Hopper): more pages per warp than places, warps without a page, splits without one, blocks of
 * several splits, windows, grouped heads, last pages that end anywhere. Each is compared with pages straight in registers too,
 * bit for bit.
 */
const RINGS: readonly Check[] = [
  ring(128, [4, 4], [1500, 64, 65, 1], { ring: 2, splits: 1 }),
  ring(128, [2, 2], [1985], { ring: 1, splits: 1 }),
  ring(128, [2, 2], [1985, 700], { ring: 3, splits: 3, shares: 3, matrix: true }),
  ring(128, [2, 2], [2000, 130], { ring: 2, splits: 8, shares: 1 }),
  ring(128, [2, 2], [2000, 130], { ring: 2, splits: 8, shares: 3 }),
  ring(128, [2, 2], [2000, 130], { ring: 0, splits: 5, shares: 2 }),
  ring(128, [12, 1], [1000, 63], { ring: 2, splits: 2, shares: 1 }),
  ring(128, [8, 2], [1000, 63], { ring: 2, splits: 2, window: 777 }),
  ring(96, [4, 2], [900, 193], { ring: 2, splits: 2, shares: 1, matrix: true }),
  ring(64, [8, 2], [1300, 5], { ring: 3, splits: 1, window: 500, norm: true }),
  ring(64, [5, 1], [1300, 5], { ring: 3, splits: 4, shares: 2 }),
  ring(32, [8, 4], [2200, 129], { ring: 6, splits: 1 }),
  ring(32, [8, 4], [2200, 129], { ring: 4, splits: 6, shares: 4 }),
  ring(128, [4, 4], [1300, 64], { ring: 4, warps: 2, splits: 2, shares: 1 }),
  ring(128, [4, 4], [1300, 64], { ring: 1, warps: 8, splits: 2 }),
  // As it is chosen for many rows, with more blocks than places.
  ring(
    128,
    [16, 16],
    Array.from({ length: 40 }, (_, i) => 1 + ((i * 97) % 450)),
    { splits: 2, shares: 1 },
  ),
];

/** Codes with scales of groups, of either kind of grid, and sums of codes; groups that end where rows of a site do not. */
const GROUP_SITES: readonly Check[] = [
  site({ shape: { left: 64, right: 64, ...both }, tokens: 5, input: "rms", grid: { span: 64 } }),
  site({ shape: { left: 12, right: 16, ...both }, tokens: 9, input: "plain", grid: { span: 32 } }),
  site({
    shape: { left: 86, right: 128, ...both },
    tokens: 4,
    input: "gated",
    grid: { span: 128, sums: 32 },
    sets: 2,
  }),
  site({
    shape: { left: 32, right: 64, hasLeft: true, hasRight: false },
    tokens: 6,
    input: "splits",
    splits: 3,
    bits: 8,
    grid: { span: 64, sums: 64 },
  }),
  site({
    shape: { left: 16, right: 15, ...both },
    tokens: 200,
    input: "plain",
    grid: { span: 16, zero: true, sums: 16 },
  }),
  site({
    shape: { left: 24, right: 24, ...both },
    tokens: 7,
    input: "rms",
    bits: 6,
    grid: { span: 64, zero: true },
  }),
  site({
    shape: { left: 64, right: 64, ...both },
    tokens: 3,
    input: "rms",
    bits: 8,
    grid: { sums: 32 },
  }),
  site({
    shape: { left: 86, right: 128, ...both },
    tokens: 3,
    input: "plain",
    precise: false,
    halves: true,
    grid: { span: 128 },
  }),
  site({
    shape: { left: 1, right: 512, hasLeft: false, hasRight: false },
    tokens: 3,
    input: "plain",
    bits: 8,
    sets: 3,
    grid: { span: 32, sums: 16 },
  }),
];

export const CHECKS: readonly Check[] = [
  ...GROUP_GEMM_CHECKS,
  ...GROUP_SITES,
  ...[1, 8, 13, 37, 64].flatMap((tokens) => [
    gemm({ tokens, rows: 256, columns: 128 }),
    gemm({ tokens, rows: 300, columns: 1000, split: 2 }),
  ]),
  gemm({ tokens: 5, rows: 512, columns: 1024, split: 8, bias: true }),
  gemm({ tokens: 16, rows: 512, columns: 1376, split: 4, halves: true }),
  gemm({ tokens: 64, rows: 256, columns: 1376, split: 8, accumulate: true }),
  gemm({ tokens: 3, rows: 400, columns: 640, split: 4, gated: true, halves: true }),
  gemm({ tokens: 33, rows: 400, columns: 640, split: 2, gated: true }),
  gemm({ tokens: 9, rows: 768, columns: 256, sets: [1, 2] }),
  // Up to eight tokens: every split and epilogue, more columns than the buffers hold, more blocks than multiprocessors.
  gemm({ tokens: 1, rows: 512, columns: 11008, split: 8, accumulate: true, bias: true }),
  gemm({ tokens: 8, rows: 300, columns: 4096, split: 2, accumulate: true }),
  gemm({ tokens: 2, rows: 768, columns: 1376, split: 4, sets: [1, 2], halves: true }),
  gemm({ tokens: 7, rows: 600, columns: 2048, split: 2, gated: true }),
  gemm({ tokens: 1, rows: 34000, columns: 128, split: 1 }),
  gemm({ tokens: 1, rows: 17200, columns: 900, split: 2, gated: true }),
  gemm({ tokens: 3, rows: 8800, columns: 512, split: 4 }),
  gemm({ tokens: 8, rows: 5000, columns: 1100, split: 8, accumulate: true }),
  gemm({ tokens: 6, rows: 300, columns: 1024, bits: 8, split: 2, accumulate: true }),
  // Codes that stay in registers, for other sets too, and codes that come along; long columns of bytes; gates of few columns;
  // the rows of one tile only.
  gemm({ tokens: 16, rows: 34000, columns: 256, sets: [20, 77] }),
  gemm({ tokens: 12, rows: 9000, columns: 4096, gated: true }),
  gemm({ tokens: 16, rows: 4400, columns: 2200, gated: true, halves: true }),
  gemm({ tokens: 13, rows: 5000, columns: 5000, accumulate: true, bias: true }),
  gemm({ tokens: 16, rows: 300, columns: 5000, bits: 8 }),
  gemm({ tokens: 11, rows: 4600, columns: 2100, bits: 8, sets: [3, 9] }),
  gemm({ tokens: 2, rows: 34, columns: 33 }),
  // Stretches that begin and end within tiles, in the same tile and in the next; more blocks than a tile has columns.
  gemm({ tokens: 64, rows: 4096, columns: 4096, accumulate: true }),
  gemm({ tokens: 50, rows: 12288, columns: 1024, bias: true, halves: true }),
  gemm({ tokens: 20, rows: 9000, columns: 1100, gated: true }),
  gemm({ tokens: 31, rows: 256, columns: 5000 }),
  gemm({ tokens: 64, rows: 768, columns: 3000, sets: [1, 2], bits: 8 }),
  gemm({ tokens: 130, rows: 300, columns: 200 }),
  gemm({ tokens: 200, rows: 256, columns: 1152, halves: true, bias: true }),
  gemm({ tokens: 256, rows: 512, columns: 512, accumulate: true }),
  gemm({ tokens: 129, rows: 700, columns: 384, gated: true, halves: true }),
  gemm({ tokens: 129, rows: 512, columns: 384, gated: true }),
  gemm({ tokens: 140, rows: 768, columns: 256, sets: [1, 2], halves: true }),
  // More tiles than multiprocessors, so that a block has several.
  gemm({ tokens: 300, rows: 12800, columns: 256, halves: true, bias: true }),
  gemm({ tokens: 260, rows: 11600, columns: 1000, accumulate: true }),
  gemm({ tokens: 400, rows: 9216, columns: 128, gated: true, halves: true }),
  gemm({ tokens: 7, rows: 300, columns: 200, bits: 8, split: 1 }),
  gemm({ tokens: 64, rows: 256, columns: 1024, bits: 8, split: 2 }),
  gemm({ tokens: 150, rows: 300, columns: 640, bits: 8 }),
  ...PLAIN_PRODUCTS,
  site({ shape: { left: 64, right: 64, ...both }, tokens: 5, input: "rms" }),
  site({ shape: { left: 64, right: 64, ...both }, tokens: 300, input: "rms", precise: false }),
  site({ shape: { left: 86, right: 128, ...both }, tokens: 3, input: "plain", halves: true }),
  site({ shape: { left: 86, right: 128, ...both }, tokens: 3, input: "gated", size: 3 }),
  // More rows than blocks.
  site({
    shape: { left: 86, right: 128, ...both },
    tokens: 270,
    input: "plain",
    halves: true,
    precise: false,
  }),
  site({ shape: { left: 64, right: 64, ...both }, tokens: 600, input: "rms", precise: false }),
  site({
    shape: { left: 22, right: 24, ...both },
    tokens: 5,
    input: "gated",
    halves: true,
    precise: false,
  }),
  site({
    shape: { left: 22, right: 24, ...both },
    tokens: 5,
    input: "plain",
    halves: true,
    precise: false,
    size: 1e-5,
    sets: 2,
  }),
  site({ shape: { left: 16, right: 16, ...both }, tokens: 9, input: "rms", bits: 8, sets: 3 }),
  site({ shape: { left: 22, right: 32, ...both }, tokens: 9, input: "gated", sets: 2 }),
  site({ shape: { left: 7, right: 11, ...both }, tokens: 4, input: "plain", size: 1e6 }),
  site({
    shape: { left: 1, right: 96, hasLeft: false, hasRight: false },
    tokens: 4,
    input: "plain",
  }),
  site({
    shape: { left: 8, right: 32, hasLeft: true, hasRight: false },
    tokens: 4,
    input: "splits",
    splits: 3,
  }),
  site({
    shape: { left: 32, right: 128, hasLeft: true, hasRight: false },
    tokens: 2,
    input: "splits",
    splits: 1,
  }),
  site({
    shape: { left: 32, right: 128, hasLeft: true, hasRight: false },
    tokens: 2,
    input: "plain",
    halves: true,
    precise: false,
  }),
  // Few precise rows of f32: clusters of blocks, with one and two products, padding, several sets and more splits than a
  // thread holds at once. Each is compared with one block per row too, bit for bit.
  site({ shape: { left: 86, right: 128, ...both }, tokens: 1, input: "plain" }),
  site({ shape: { left: 86, right: 128, ...both }, tokens: 9, input: "plain", sets: 2 }),
  site({ shape: { left: 112, right: 128, ...both }, tokens: 7, input: "gated", size: 3 }),
  site({ shape: { left: 6, right: 64, ...both }, tokens: 3, input: "plain", bits: 8, sets: 3 }),
  site({
    shape: { left: 20, right: 96, hasLeft: true, hasRight: true },
    tokens: 2,
    input: "gated",
  }),
  site({ shape: { left: 40, right: 256, ...both }, tokens: 3, input: "plain", size: 1e6 }),
  ...[1, 8, 9, 12, 13, 32].map((splits) =>
    site({
      shape: { left: 32, right: 128, hasLeft: true, hasRight: false },
      tokens: splits === 8 ? 16 : 2,
      input: "splits",
      splits,
    }),
  ),
  site({
    shape: { left: 14, right: 64, hasLeft: true, hasRight: false },
    tokens: 5,
    input: "splits",
    splits: 5,
    sets: 2,
  }),
  attention({ headDim: 32, heads: 8, kvHeads: 4, kept: 4, sequences: [{ start: 0, rows: 5 }] }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 37, rows: 100 },
      { start: 0, rows: 150 },
    ],
    matrix: true,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 70, rows: 3 },
      { start: 10, rows: 20 },
    ],
    matrix: true,
    norm: true,
    window: 40,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 16,
    sequences: [{ start: 20, rows: 140 }],
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [{ start: 0, rows: 200 }],
    matrix: true,
    halves: true,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 16,
    sequences: [{ start: 5, rows: 80 }],
    halves: true,
  }),
  attention({
    headDim: 96,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 3, rows: 70 },
      { start: 0, rows: 9 },
    ],
    matrix: true,
  }),
  attention({
    headDim: 128,
    heads: 2,
    kvHeads: 1,
    kept: 4,
    sequences: [
      { start: 100, rows: 130 },
      { start: 0, rows: 128 },
      { start: 200, rows: 150 },
    ],
    halves: true,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 1,
    kept: 16,
    sequences: [{ start: 30, rows: 250 }],
    halves: true,
    window: 100,
  }),
  // More pages than buffers, in even and odd numbers; scores far apart; a window that begins beyond the buffers; a last
  // page of one token; fewer rows than a warpgroup has.
  attention({
    headDim: 128,
    heads: 2,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 0, rows: 513 },
      { start: 383, rows: 66 },
    ],
    matrix: true,
    halves: true,
    size: 50,
  }),
  attention({
    headDim: 128,
    heads: 2,
    kvHeads: 1,
    kept: 16,
    sequences: [
      { start: 250, rows: 200 },
      { start: 64, rows: 65 },
    ],
    size: 50,
  }),
  attention({
    headDim: 32,
    heads: 2,
    kvHeads: 1,
    kept: 4,
    sequences: [
      { start: 500, rows: 140 },
      { start: 5, rows: 60 },
    ],
    window: 70,
    size: 20,
  }),
  attention({
    headDim: 96,
    heads: 2,
    kvHeads: 2,
    kept: 16,
    sequences: [{ start: 300, rows: 200 }],
    window: 190,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 2,
    kept: 4,
    sequences: Array.from({ length: 20 }, (_, i) => ({ start: 3 * i + 40, rows: 1 })),
    matrix: true,
    norm: true,
    splits: 2,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 4,
    sequences: [
      { start: 200, rows: 1 },
      { start: 63, rows: 1 },
      { start: 64, rows: 1 },
      { start: 0, rows: 1 },
    ],
    matrix: true,
    splits: 3,
  }),
  attention({
    headDim: 128,
    heads: 12,
    kvHeads: 1,
    kept: 4,
    sequences: [{ start: 300, rows: 1 }],
    splits: 2,
  }),
  attention({
    headDim: 64,
    heads: 8,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 150, rows: 1 },
      { start: 5, rows: 1 },
    ],
    window: 50,
  }),
  attention({
    headDim: 32,
    heads: 8,
    kvHeads: 4,
    kept: 16,
    sequences: [
      { start: 130, rows: 1 },
      { start: 1, rows: 1 },
    ],
    splits: 2,
  }),
  attention({
    headDim: 128,
    heads: 8,
    kvHeads: 8,
    kept: 16,
    sequences: [{ start: 500, rows: 1 }],
    splits: 4,
  }),
  ...RINGS,
];
