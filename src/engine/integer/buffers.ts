/** Where a step's rows live between kernels. Sized once, for the most rows that go through the blocks together. */
import type { ModelConfig } from "../../models/config.js";
import type { EngineMemory, Place } from "./memory.js";

/** Rows that go through the blocks together; longer steps are cut. */
export const STEP_ROWS = 512;
/** Codes of one site at most: one set for each linear with clips of its own. */
export const MOST_SETS = 3;

export interface StepBuffers {
  readonly ids: Place<Int32Array>;
  readonly positions: Place<Int32Array>;
  /** Rotary tables, [rows, headDim/2]. */
  readonly cosine: Place<Float32Array>;
  readonly sine: Place<Float32Array>;
  /** CacheChunk records. */
  readonly chunks: Place<Int32Array>;
  /** The residual stream, [rows, hidden]. */
  readonly x: Place<Float32Array>;
  readonly embedded: Place<Float32Array>;
  readonly q: Place<Float32Array>;
  readonly k: Place<Float32Array>;
  readonly v: Place<Float32Array>;
  readonly mixed: Place<Float32Array>;
  readonly gate: Place<Float32Array>;
  readonly up: Place<Float32Array>;
  /**
   * Codes that linears read, [MOST_SETS][rows, widest], and their scales. Linears with static grids take turns in it, with
   * as many columns as they have.
   */
  readonly codes: Place<Int8Array>;
  readonly scales: Place<Float32Array>;
  /** The same for linears that read reals. */
  readonly reals: Place<Float32Array>;
  /** Rows that logits are wanted of. */
  readonly chosen: Place<Int32Array>;
  readonly last: Place<Float32Array>;
  readonly normed: Place<Float32Array>;
}

/** Channels of the widest activation that linears read. */
export function widestSite(config: ModelConfig): number {
  const { hiddenSize, intermediateSize, headDim, numHeads } = config;
  return Math.max(hiddenSize, intermediateSize, numHeads * headDim);
}

export function stepBuffers(memory: EngineMemory, config: ModelConfig): StepBuffers {
  const { hiddenSize, intermediateSize, headDim, numHeads, numKvHeads } = config;
  const embedding = config.embeddingSize ?? hiddenSize;
  const attention = numHeads * headDim;
  const widest = widestSite(config);
  const rows = (width: number) => memory.alloc<Float32Array>("f32", STEP_ROWS * width);
  const integers = (count: number) => memory.alloc<Int32Array>("i32", count);
  return {
    ids: integers(STEP_ROWS),
    positions: integers(STEP_ROWS),
    cosine: rows(Math.ceil(headDim / 2)),
    sine: rows(Math.ceil(headDim / 2)),
    chunks: integers(STEP_ROWS * 4),
    x: rows(hiddenSize),
    embedded: rows(Math.max(embedding, hiddenSize)),
    q: rows(attention),
    k: rows(numKvHeads * headDim),
    v: rows(numKvHeads * headDim),
    mixed: rows(attention),
    gate: rows(intermediateSize),
    up: rows(intermediateSize),
    codes: memory.alloc<Int8Array>("i8", MOST_SETS * STEP_ROWS * widest),
    scales: rows(MOST_SETS),
    reals: rows(widest),
    chosen: integers(STEP_ROWS),
    last: rows(hiddenSize),
    normed: rows(Math.max(embedding, hiddenSize)),
  };
}
