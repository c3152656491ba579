/**
 * What runs a model for the engine: one step over chunks of several sequences, on a paged KV cache. The scheduler
 * above decides who runs and which pages they own; an executor only computes.
 *
 * A row's result depends on the tokens before it and on nothing else: not on how a prompt was cut into chunks, nor on
 * what else shares the step. So the same prompt and seed give the same text alone or in a batch. (An executor may ask
 * for cuts between pages.)
 */
import type { ModelConfig } from "../models/config.js";

/** Consecutive tokens of one sequence, to be processed in one step. */
export interface Chunk {
  /** Token ids, at least one. */
  readonly tokens: Int32Array;
  /** Position of `tokens[0]`: how many tokens of this sequence are in the cache already. */
  readonly start: number;
  /** Pages of this sequence in order; together they hold at least `start + tokens.length` positions. */
  readonly pages: Int32Array;
  /** Rows of logits wanted: none, the last token's, or every token's. */
  readonly logits: "none" | "last" | "all";
}

/** A model that is ready to run. */
export interface Executor extends Disposable {
  readonly config: ModelConfig;
  /** One line: device, instruction set, threads, and the arithmetic (e.g. "w4a4kv4, integer"). */
  readonly description: string;
  /** Positions that a page holds. */
  readonly pageTokens: number;
  /** Bytes of one page: keys and values of all layers, with their scales. */
  readonly bytesPerPage: number;
  /** Bytes of weights as they lie in memory. */
  readonly weightBytes: number;
  /** Rows depend in their last bits on cuts of a prompt elsewhere than between pages, so prompts should be cut there. */
  readonly cutAtPages?: boolean;
  /** Bytes that the device has left for pages; absent: they lie in the machine's own memory. */
  freeBytes?(): number;
  /** Makes room for this many pages; what earlier pages held is lost. @throws PlanishError when memory is short. */
  reserve(pages: number): void;
  /** Copies one page's contents over another's, so that a shared, half-filled page can be continued twice. */
  copyPage(from: number, to: number): void;
  /**
   * Processes the chunks and writes their keys and values into their pages.
   * @returns per chunk the logits asked for, [rows, vocabSize] row-major; undefined for "none". The arrays are the caller's.
   */
  step(chunks: readonly Chunk[]): readonly (Float32Array | undefined)[];
}
