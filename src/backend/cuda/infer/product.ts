/**
 * How an integer product is cut into blocks of threads: which kernel takes it, compiled how, with what grid. The results do
 * not depend on it.
 */
import { PlanishError } from "../../../common/errors.js";
import type { CudaDeviceInfo, Grid } from "../driver.js";
import { BLOCK_COLUMNS, featureTiles, roundUp, TILE_FEATURES } from "./layout.js";
import type { GemmRequest, PlainProduct } from "./requests.js";

export interface ProductPlan {
  readonly file:
    "gemm" | "gemm_narrow" | "gemm_prefill" | "gemm_mma" | "gemm_group" | "gemm_group_narrow";
  readonly defines: readonly string[];
  readonly grid: Grid;
  readonly threads: number;
  readonly shared: number;
  /** Blocks of columns. */
  readonly blocks: number;
  readonly tiles: number;
  /** Blocks of threads leave sums for each other in the exchange. */
  readonly exchanges: boolean;
}

/** What a plan depends on of a GPU. */
export type ProductDevice = Pick<
  CudaDeviceInfo,
  "capability" | "multiprocessors" | "sharedBytesPerBlock"
>;

/** Counters of groups of blocks (COUNTERS in gemm_mma.cu), and bytes of sums after them. */
const EXCHANGE_GROUPS = 4096;
const EXCHANGE_SUMS = 18 * 2 ** 20;
/** Bytes of the memory in which blocks that share columns leave their sums; zero before its first use. */
export const EXCHANGE_BYTES = 4 * EXCHANGE_GROUPS + EXCHANGE_SUMS;
/** Blocks of columns that a block of threads of gemm.cu has at least, where there are as many. */
const LEAST_STRETCH = 4;
/** Words of it that gemm.cu has for counters. */
export const EXCHANGE_COUNTERS = EXCHANGE_GROUPS;

/** The kernel that multiplies. */
export function productKernel(
  { capability }: ProductDevice,
  { bits, activationBits = 8, plain }: GemmRequest,
): "wgmma" | PlainProduct {
  const nibbles = bits === 4 && activationBits <= 4;
  if (plain === "mma-s4" && !nibbles)
    throw new PlanishError(
      `a product of 4-bit codes cannot take weights of ${bits} and activations of ${activationBits} bits`,
    );
  if (plain) return plain;
  if (capability === 90) return "wgmma";
  if (capability < 80) return "dp4a";
  // The matrix units of 4-bit codes are Ampere's and Ada's.
  return nibbles && capability < 90 ? "mma-s4" : "mma-s8";
}

/** @throws PlanishError when the codes have too little room, or the kernel asked for does not take their widths. */
export function planProduct(request: GemmRequest, device: ProductDevice): ProductPlan {
  const { tokens, order, columns, bits, accumulate, halves } = request;
  const kernel = productKernel(device, request);
  const tiles = featureTiles(order);
  const blocks = roundUp(columns, BLOCK_COLUMNS) / BLOCK_COLUMNS;
  const width = request.tile ?? tileTokens(kernel, tokens, tiles, device);
  if (kernel === "dp4a" && width > 64)
    throw new PlanishError("dot products are compiled for tiles of at most 64 tokens");
  if (request.capacity % width !== 0 || tokens > request.capacity)
    throw new PlanishError(
      `codes of ${request.capacity} rows cannot feed a product of ${tokens} tokens; give a multiple of ${width}`,
    );
  const stage = (TILE_FEATURES * 128 * bits) / 8 + width * 128;
  const cut = { tiles, blocks, width, tokenTiles: Math.ceil(tokens / width), stage };
  const common = [
    `WBITS=${bits}`,
    `EPILOGUE=${order.gated ? 2 : accumulate ? 1 : 0}`,
    `OUT16=${halves ? 1 : 0}`,
  ];
  const plan =
    kernel !== "wgmma"
      ? planPlain(kernel, cut, request.split, device)
      : width <= 16 && 2 * narrowStage(cut) <= NARROW_RINGS
        ? planNarrow(cut, request, device)
        : planWgmma(cut, request.split, device);
  return { ...plan, blocks, tiles, defines: [...common, ...plan.defines] };
}

/** Tokens of a tile. */
function tileTokens(
  kernel: "wgmma" | PlainProduct,
  tokens: number,
  tiles: number,
  { multiprocessors }: ProductDevice,
): number {
  const most = kernel === "dp4a" ? 64 : 128;
  let width = 8;
  while (width < tokens && width < most) width *= 2;
  if (kernel === "wgmma" || width < 128) return width;
  // Half the tile where whole ones would leave more than half of the multiprocessors idle.
  return Math.ceil(tokens / 128) * tiles * 2 <= multiprocessors ? 64 : 128;
}

interface Cut {
  readonly tiles: number;
  readonly tokenTiles: number;
  readonly blocks: number;
  /** Tokens of a tile. */
  readonly width: number;
  /** Bytes of a buffer of the ring: a block of columns of weights and codes. */
  readonly stage: number;
}

type CutPlan = Omit<ProductPlan, "blocks" | "tiles">;

/**
 * Blocks that share a tile's columns, where there are more multiprocessors than tiles: enough that the device is full of
 * loads.
 */
function splitFor({ tiles, tokenTiles, blocks }: Cut, most: number, room: number): number {
  let split = 1;
  while (split < most && tiles * tokenTiles * split * 2 <= room && blocks >= split * 4) split *= 2;
  return split;
}

function planWgmma(cut: Cut, asked: number | undefined, device: ProductDevice): CutPlan {
  const { tiles, tokenTiles, blocks, width, stage } = cut;
  const { multiprocessors } = device;
  const prefill = width === 128;
  const stages = Math.max(2, Math.floor(((prefill ? 200 : 120) * 1024) / stage));
  const common = { shared: stages * stage, defines: [`TOKENS=${width}`, `STAGES=${stages}`] };
  const items = tokenTiles * tiles;
  if (prefill)
    return {
      ...common,
      file: "gemm_prefill",
      grid: [Math.min(items, multiprocessors)],
      threads: 384,
      exchanges: false,
    };
  // Blocks wait for each other: one for each multiprocessor. What they leave for each other costs as much as some blocks of columns.
  const room = Math.floor(EXCHANGE_SUMS / (2 * TILE_FEATURES * 4 * width));
  const wanted = items * (asked ?? Math.max(1, Math.floor(blocks / LEAST_STRETCH)));
  const grid = Math.min(wanted, multiprocessors, items * blocks, room);
  if (items * blocks * grid >= 2 ** 32 || blocks >= 2 ** 16)
    throw new PlanishError(
      `a product of ${items} tiles and ${blocks} blocks of columns is larger than the CUDA kernel counts`,
    );
  return { ...common, file: "gemm", grid: [grid], threads: 288, exchanges: true };
}

/** Warps of gemm_narrow.cu, which take the blocks of columns in turn, and bytes of a block's rings. */
const NARROW_WARPS = 16;
const NARROW_RINGS = 160 * 1024;

/** Up to sixteen tokens: 32 features at a time to a block, over all columns. */
function planNarrow(cut: Cut, { order }: GemmRequest, device: ProductDevice): CutPlan {
  const { width } = cut;
  const features = order.gated ? order.rows / 2 : order.rows;
  const slabs = Math.ceil(features / (order.gated ? 16 : 32));
  const stage = narrowStage(cut);
  const stages = Math.floor(NARROW_RINGS / stage);
  return {
    file: "gemm_narrow",
    defines: [`TOKENS=${width}`, `STAGES=${stages}`],
    grid: [Math.min(slabs, device.multiprocessors)],
    threads: NARROW_WARPS * 32,
    shared: NARROW_WARPS * width * 33 * 4 + stages * stage,
    exchanges: false,
  };
}

/** Bytes of weights and codes that the warps multiply at a time: of 32 features, an eighth of a tile's, and all tokens. */
function narrowStage({ stage, width }: Cut): number {
  const codes = width * 128;
  return NARROW_WARPS * ((stage - codes) / 8 + codes);
}

function planPlain(
  kernel: PlainProduct,
  cut: Cut,
  asked: number | undefined,
  device: ProductDevice,
): CutPlan {
  const { tiles, tokenTiles, width, stage } = cut;
  const { multiprocessors, sharedBytesPerBlock } = device;
  // Two blocks of few tokens fit A100's multiprocessor; 1 KB of a block is the system's.
  const ring = Math.min((width === 128 ? 144 : 80) * 1024, sharedBytesPerBlock - 1024);
  const stages = kernel === "dp4a" ? 1 : Math.max(2, Math.floor(ring / stage));
  const shared = stages * stage;
  // As many as the kernel's registers are for (RESIDENT).
  const registers = width <= 32 || (width === 64 && kernel === "mma-s4") ? 2 : 1;
  const memory = Math.floor((sharedBytesPerBlock + 1024) / (shared + 1024));
  const resident = Math.min(registers, memory);
  // The last block of a group reads what the others left, which takes the longer the more tokens and blocks there are.
  const most = width <= 16 ? 8 : width === 32 ? 4 : width === 64 ? 2 : 1;
  let split = asked ?? splitFor(cut, most, multiprocessors * resident);
  const groups = tiles * tokenTiles;
  const fits = () =>
    groups <= EXCHANGE_GROUPS && groups * split * TILE_FEATURES * width * 4 <= EXCHANGE_SUMS;
  const across = width === 128 ? 2 : 1;
  if (across > 1) split = 1;
  while (split > 1 && !fits()) split = Math.floor(split / 2);
  return {
    file: "gemm_mma",
    defines: [
      `TOKENS=${width / across}`,
      `ACROSS=${across}`,
      `SPLIT=${split}`,
      ...(kernel === "dp4a"
        ? ["DP4A=1"]
        : [`STAGES=${stages}`, `NIBBLES=${kernel === "mma-s4" ? 1 : 0}`]),
    ],
    grid: [tokenTiles * split, tiles],
    threads: 256,
    shared,
    exchanges: split > 1,
  };
}
