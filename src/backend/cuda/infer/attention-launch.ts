/**
 * How attention of single tokens is cut and launched (attention_decode.cu): pages through rings in shared memory or straight
 * to registers, pieces of a sequence, blocks of threads. What a piece gives is the same to the bit whichever way its pages
 * come and however many pieces a block has; it depends on `warps` only.
 */
import { PlanishError } from "../../../common/errors.js";
import { pageLayout, type CacheShape } from "./layout.js";

/** Rows up to which a step waits for weights and for latencies more than for anything else. */
export const NARROW_ROWS = 8;

/** What a plan asks of the device. */
export interface PlanDevice {
  readonly capability: number;
  readonly multiprocessors: number;
  /** Shared memory that a block can have; a multiprocessor has 1 KiB more, and takes as much per block. */
  readonly sharedBytesPerBlock: number;
}

/** Wishes, for comparisons. */
export interface DecodeWishes {
  /** Pages that a warp has in shared memory; 0: pages come straight to registers. */
  readonly ring?: number;
  readonly warps?: number;
}

export interface DecodePlan {
  /** Groups of four query heads that a block takes. */
  readonly tiles: 1 | 2;
  readonly warps: number;
  readonly ring: number;
  readonly sharedBytes: number;
  /** Blocks of a multiprocessor. */
  readonly resident: number;
  /** Blocks per piece of a sequence. */
  readonly headBlocks: number;
}

/** Bytes of a block's rings; three blocks then share a multiprocessor of Hopper. */
const RING_BYTES = 72 * 1024;
const RESERVED = 1024 + 512;
/** Warps of a multiprocessor that registers suffice for: whole pages in them beside the sums of eight heads need more. */
const WARPS = { ring: 12, registers: 12, wide: 8 } as const;

/** @throws PlanishError when a ring is wished for where there cannot be one. */
export function decodePlan(
  device: PlanDevice,
  shape: CacheShape,
  rows: number,
  wishes: DecodeWishes = {},
): DecodePlan {
  const { headDim, heads, kvHeads, kept } = shape;
  const group = heads / kvHeads;
  const tiles = group <= 4 ? 1 : 2;
  const headBlocks = kvHeads * Math.ceil(group / (4 * tiles));
  const warps = wishes.warps ?? 4;
  const perPlace = warps * pageLayout(headDim, kept).bytes;
  const possible = device.capability >= 90 && kept === 4;
  if (wishes.ring && !possible)
    throw new PlanishError("rings of pages need a Hopper GPU and a cache of 4 bits");
  const blocksOf = (ring: number) =>
    Math.min(
      Math.floor(WARPS.ring / warps),
      Math.floor((device.sharedBytesPerBlock + 1024) / (ring * perPlace + RESERVED)),
    );
  // Few rows: a warp has a page or two, and a copy takes longer to arrive than a load. Fewer than two blocks per
  // multiprocessor (Blackwell's small ones) would leave it idle while a block begins or ends.
  const deepest = Math.max(2, Math.floor(RING_BYTES / perPlace));
  const suits = possible && rows > NARROW_ROWS && blocksOf(deepest) >= 2;
  const ring = wishes.ring ?? (suits ? deepest : 0);
  const inRegisters = kept === 4 && tiles === 1 ? WARPS.registers : WARPS.wide;
  return {
    tiles,
    warps,
    ring,
    sharedBytes: ring * perPlace,
    resident: Math.max(1, ring > 0 ? blocksOf(ring) : Math.floor(inRegisters / warps)),
    headBlocks,
  };
}

/**
 * Time of `blocks` blocks with `share` of a sequence each, in times that a multiprocessor full of blocks needs for whole
 * sequences. With rings, reading memory sets the pace: the blocks of a last round that is not full are done sooner, since
 * each gets more of it, up to two and a half times.
 */
function rounds(device: PlanDevice, plan: DecodePlan, blocks: number, share: number): number {
  const full = blocks / (device.multiprocessors * plan.resident);
  if (plan.ring === 0) return Math.ceil(full) * share;
  const whole = Math.floor(full);
  return (whole + (full > whole ? Math.max(full - whole, 0.4) : 0)) * share;
}

/**
 * Pieces of each sequence for `sequences` of at most `pages` pages: enough blocks for every multiprocessor, in a number
 * that fills the last round of them well.
 */
export function splitsFor(
  device: PlanDevice,
  plan: DecodePlan,
  sequences: number,
  pages: number,
): number {
  const blocks = sequences * plan.headBlocks;
  const most = Math.max(1, Math.min(Math.ceil(pages / 4), 32));
  const wanted = Math.min(most, Math.ceil((2 * device.multiprocessors) / blocks));
  // A piece costs a start and a join, some 3% of a whole sequence.
  const time = (splits: number) =>
    rounds(device, plan, blocks * splits, 1 / splits) + 0.03 * splits;
  let best = wanted;
  for (let splits = wanted + 1; splits <= Math.min(most, wanted + 4); splits++)
    if (time(splits) < time(best)) best = splits;
  return best;
}

/** Blocks that share a sequence's pieces: with rings one has several of them, and copies go on from one to the next. */
export function sharesFor(
  device: PlanDevice,
  plan: DecodePlan,
  sequences: number,
  splits: number,
): number {
  if (plan.ring === 0) return splits;
  const blocks = sequences * plan.headBlocks;
  const time = (shares: number) =>
    rounds(device, plan, blocks * shares, Math.ceil(splits / shares) / splits) + 0.03 * shares;
  let best = 1;
  for (let shares = 2; shares <= splits; shares++) if (time(shares) < time(best)) best = shares;
  return best;
}
