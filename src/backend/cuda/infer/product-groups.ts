/**
 * How an integer product with scales of groups is cut into blocks of threads. The results do not depend on it: f32 sums go
 * over the columns in one order (native/cuda/engine/gemm_group.cuh).
 */
import { PlanishError } from "../../../common/errors.js";
import { BLOCK_COLUMNS, featureTiles, roundUp } from "./layout.js";
import type { ProductDevice, ProductPlan } from "./product.js";
import type { GemmRequest, ProductGroups } from "./requests.js";

/** Features of a slab, which a warp multiplies: of a gated pair half as many of each. Eight are a tile. */
const SLAB = 32;
const SLABS = 8;
/** Bytes of rings that a block of threads has at most: two blocks share a multiprocessor, or one has it. */
const SHARED_RING = 100 * 1024;
const OWN_RING = 200 * 1024;
const MOST_STAGES = 6;

/** What a block of threads has at a time of a block of columns. */
interface Stage {
  readonly slabs: number;
  readonly tokens: number;
}

/** @throws PlanishError when the codes have too little room, or the GPU has no such kernels. */
export function planGroupProduct(
  request: GemmRequest,
  groups: ProductGroups,
  device: ProductDevice,
): ProductPlan {
  const { tokens, order, columns, bits, accumulate, halves, capacity } = request;
  if (device.capability < 80)
    throw new PlanishError("products with scales of groups need a GPU of compute capability 8.0");
  const tiles = featureTiles(order);
  const blocks = roundUp(columns, BLOCK_COLUMNS) / BLOCK_COLUMNS;
  const width = request.tile ?? (tokens <= 8 ? 8 : tokens <= 16 ? 16 : tokens <= 32 ? 32 : 64);
  if (capacity % width !== 0 || tokens > capacity)
    throw new PlanishError(
      `codes of ${capacity} rows cannot feed a product of ${tokens} tokens; give a multiple of ${width}`,
    );
  const defines = [
    `WBITS=${bits}`,
    `EPILOGUE=${order.gated ? 2 : accumulate ? 1 : 0}`,
    `OUT16=${halves ? 1 : 0}`,
    `WGROUP=${groups.weights ?? 0}`,
    `AGROUP=${groups.activations ?? 0}`,
    `OFFSETS=${groups.offset === undefined ? 0 : 1}`,
    `SHIFT=${groups.shift ?? 0}`,
    `SUMGROUP=${groups.sums?.columns ?? 64}`,
    `SCALE16=${groups.halves ? 1 : 0}`,
  ];
  const common = { blocks, tiles, exchanges: false } as const;
  const narrow =
    width <= 16 && tokens <= width && !request.wide
      ? planNarrow(width, request, groups, device)
      : undefined;
  if (narrow) return { ...common, ...narrow, defines: [...defines, ...narrow.defines] };
  const { slabs, across, stage, stages } = cutFor(
    { width, tokenTiles: Math.ceil(tokens / width), tiles },
    (each) => roundUp(stageBytes(bits, groups, { slabs: each, tokens: width }), 128),
    device,
  );
  return {
    ...common,
    file: "gemm_group",
    defines: [
      ...defines,
      `TOKENS=${width / across}`,
      `SLABS=${slabs}`,
      `ACROSS=${across}`,
      `STAGES=${stages}`,
    ],
    grid: [Math.ceil(tokens / width), tiles * (SLABS / slabs)],
    threads: 32 * slabs * across,
    shared: stages * stage,
  };
}

/** Bytes of weights, codes and scales of one block of columns. */
function stageBytes(
  bits: 4 | 8,
  { weights, activations, halves, offset, sums }: ProductGroups,
  { slabs, tokens }: Stage,
): number {
  const perBlock = (group: number | undefined) => (group ? BLOCK_COLUMNS / group : 0);
  const scale = perBlock(weights) * slabs * SLAB * (halves ? 2 : 4);
  const offsets = offset === undefined ? 0 : 1;
  return (
    (slabs * SLAB * BLOCK_COLUMNS * bits) / 8 +
    tokens * BLOCK_COLUMNS +
    scale * (1 + offsets) +
    4 * tokens * (perBlock(activations) + offsets * perBlock(sums?.columns))
  );
}

/** Slabs of a block of threads, warps beside each other along the tokens, bytes of a buffer of the ring, and buffers. */
function cutFor(
  cut: { readonly width: number; readonly tokenTiles: number; readonly tiles: number },
  stageOf: (slabs: number) => number,
  { multiprocessors, sharedBytesPerBlock }: ProductDevice,
) {
  const { width, tokenTiles, tiles } = cut;
  // Whole tiles where they fill the GPU, else what does, or the least; and what fits.
  for (let slabs = SLABS; ; slabs /= 2) {
    // Up to sixteen warps; with eight slabs eight of 64 tokens, of which two blocks share a multiprocessor.
    const across = slabs === SLABS ? Math.max(1, width / 64) : Math.min(width / 8, 16 / slabs);
    const stage = stageOf(slabs);
    // 1 KB of a block is the system's.
    const most = slabs * across <= 8 ? SHARED_RING : OWN_RING;
    const ring = Math.min(most, sharedBytesPerBlock - 1024);
    const stages = Math.min(MOST_STAGES, Math.floor(ring / stage));
    const fills = (tokenTiles * tiles * SLABS) / slabs >= multiprocessors;
    if (stages >= 2 && (fills || slabs === 1)) return { slabs, across, stage, stages };
    if (slabs === 1)
      throw new PlanishError(
        `a product of groups needs ${2 * stage} bytes of shared memory, and the GPU has ${ring}`,
      );
  }
}

/** Warps and halves of the memory in which their integers meet, best first. */
const NARROW_WAYS = [
  { warps: 16, buffers: 2 },
  { warps: 16, buffers: 1 },
  { warps: 8, buffers: 2 },
  { warps: 8, buffers: 1 },
] as const;
const MOST_NARROW_STAGES = 4;

/** Up to sixteen tokens: 32 features at a time to a block, over all columns; undefined where shared memory is too small. */
function planNarrow(
  width: number,
  { bits, order }: Pick<GemmRequest, "bits" | "order">,
  groups: ProductGroups,
  { multiprocessors, sharedBytesPerBlock }: ProductDevice,
): Pick<ProductPlan, "file" | "defines" | "grid" | "threads" | "shared"> | undefined {
  const bytes = stageBytes(bits, groups, { slabs: 1, tokens: width });
  const scales = bytes - (SLAB * BLOCK_COLUMNS * bits) / 8 - width * BLOCK_COLUMNS;
  const step = roundUp(bytes, 128);
  const unit = Math.min(groups.weights ?? BLOCK_COLUMNS, groups.activations ?? BLOCK_COLUMNS);
  const part = roundUp((BLOCK_COLUMNS / unit) * width * (SLAB + 1) * 4 + scales, 16);
  const features = order.gated ? order.rows / 2 : order.rows;
  const own = order.gated ? SLAB / 2 : SLAB;
  for (const { warps, buffers } of NARROW_WAYS) {
    const left = sharedBytesPerBlock - 4096 - 128 - buffers * warps * part;
    const stages = Math.min(MOST_NARROW_STAGES, Math.floor(left / (warps * step)));
    if (stages < 2 || own * width > 32 * warps) continue;
    return {
      file: "gemm_group_narrow",
      defines: [`TOKENS=${width}`, `STAGES=${stages}`, `WARPS=${warps}`, `BUFFERS=${buffers}`],
      grid: [Math.min(Math.ceil(features / own), multiprocessors)],
      threads: 32 * warps,
      shared: warps * (stages * step + buffers * part),
    };
  }
  return undefined;
}
