/** Where a step's rows live between kernels. Sized once, for the most rows that go through the blocks together. */
import type { ModelShape } from "../../contract/inference.js";
import type { Scheme } from "../../contract/scheme.js";
import { RotaryRows } from "../../contract/rotary.js";
import { rotariesOf, rotaryKey, sitesOf, type BlockProgram } from "../../contract/program.js";
import type { EngineMemory, Place } from "./memory.js";

/** Rows that go through the blocks together; longer steps are cut. */
export const STEP_ROWS = 512;
/** Codes of one site at most: one set for each linear with clips of its own. */
export const MOST_SETS = 4;

/** Rotary tables of a step's rows, [rows, dims/2], for one kind of rotary positions. */
export interface RotaryBuffers {
  readonly rows: RotaryRows;
  readonly cosine: Place<Float32Array>;
  readonly sine: Place<Float32Array>;
  /** What multiplies queries of a step's rows, where they grow; their angles are those of keys. */
  readonly growth?: Place<Float32Array>;
}

export interface StepBuffers {
  readonly ids: Place<Int32Array>;
  readonly positions: Place<Int32Array>;
  /** CacheChunk records. */
  readonly chunks: Place<Int32Array>;
  /** Which state each chunk's sequence has. */
  readonly slots: Place<Int32Array>;
  readonly embedded: Place<Float32Array>;
  /**
   * Codes that linears read, [MOST_SETS][rows, widest], and their scales. Linears with static grids take turns in it, with
   * as many columns as they have.
   */
  readonly codes: Place<Int8Array>;
  readonly scales: Place<Float32Array>;
  /** As `scales`, where activations have offsets. */
  readonly offsets?: Place<Float32Array>;
  /** The same for linears that read reals. */
  readonly reals: Place<Float32Array>;
  /** Rows that logits are wanted of. */
  readonly chosen: Place<Int32Array>;
  readonly last: Place<Float32Array>;
  readonly normed: Place<Float32Array>;
  /** Codes of such rows and their scales, for a head of few bits. */
  readonly headCodes?: Place<Int8Array>;
  readonly headScales?: Place<Float32Array>;
}

/** Channels of the widest activation that linears read. */
export function widestSite(programs: readonly BlockProgram[]): number {
  return Math.max(...programs.flatMap((program) => sitesOf(program).map(({ width }) => width)));
}

export function stepBuffers(
  memory: EngineMemory,
  { hiddenSize, stateWidth = hiddenSize }: Pick<ModelShape, "hiddenSize" | "stateWidth">,
  embeddingSize: number,
  programs: readonly BlockProgram[],
  { activationGroup, activationOffset }: Scheme,
  /** Channels per scale of a head of few bits. */
  headGroup?: number,
): StepBuffers {
  const widest = widestSite(programs);
  const perRow = MOST_SETS * (activationGroup ? Math.ceil(widest / activationGroup) : 1);
  const rows = (width: number) => memory.alloc<Float32Array>("f32", STEP_ROWS * width);
  const integers = (count: number) => memory.alloc<Int32Array>("i32", count);
  return {
    ids: integers(STEP_ROWS),
    positions: integers(STEP_ROWS),
    chunks: integers(STEP_ROWS * 4),
    slots: integers(STEP_ROWS),
    embedded: rows(Math.max(embeddingSize, stateWidth)),
    codes: memory.alloc<Int8Array>("i8", MOST_SETS * STEP_ROWS * widest),
    scales: rows(perRow),
    offsets: activationOffset ? rows(perRow) : undefined,
    reals: rows(widest),
    chosen: integers(STEP_ROWS),
    last: rows(stateWidth),
    normed: rows(Math.max(embeddingSize, hiddenSize)),
    headCodes: headGroup ? memory.alloc<Int8Array>("i8", STEP_ROWS * embeddingSize) : undefined,
    headScales: headGroup ? rows(embeddingSize / headGroup) : undefined,
  };
}

/** Tables of every kind of rotary positions that the blocks use, by `rotaryKey`. */
export function rotaryBuffers(
  memory: EngineMemory,
  programs: readonly BlockProgram[],
): ReadonlyMap<string, RotaryBuffers> {
  return new Map(
    rotariesOf(programs).map((rotary) => {
      const table = () => memory.alloc<Float32Array>("f32", (STEP_ROWS * rotary.dims) / 2);
      const growth = rotary.growth && memory.alloc<Float32Array>("f32", STEP_ROWS);
      const rows = new RotaryRows(rotary);
      return [rotaryKey(rotary), { rows, growth, cosine: table(), sine: table() }];
    }),
  );
}
