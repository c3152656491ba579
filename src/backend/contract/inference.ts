/**
 * What an engine asks of a device: one step over chunks of several sequences, on a paged KV cache. The scheduler above
 * decides who runs and which pages they own; an executor only computes.
 *
 * A row's result depends on the tokens before it and on nothing else: not on how a prompt was cut into chunks, nor on
 * what else shares the step. So the same prompt and seed give the same text alone or in a batch. (An executor may ask
 * for cuts between pages.)
 */
import { PlanishError } from "../../common/errors.js";
import type { HostNorm, PackedBlock, QuantizedMatrix } from "./packed.js";
import type { BlockProgram, NormStep } from "./program.js";
import type { Scheme } from "./scheme.js";

/** What surrounds the blocks, in numbers. */
export interface ModelShape {
  readonly hiddenSize: number;
  readonly vocabSize: number;
  readonly maxPositions: number;
  /** Positions come from a table, and end with it. */
  readonly learnedPositions: boolean;
  /** Channels between blocks, where more than hidden states goes along, behind them. */
  readonly stateWidth?: number;
}

/** A matrix as a checkpoint stores it, [rows, columns], read when it is placed. */
export interface StoredMatrix {
  readonly shape: readonly [number, number];
  /** The type as stored: "BF16", "F16", or another that is rounded to halves. */
  readonly type: string;
  values(): Float32Array;
  /** The 16-bit numbers themselves, where that is what is stored. */
  halves(): Uint8Array | undefined;
  /** The codes, where the matrix is stored quantized. */
  quantized?(): QuantizedMatrix;
}

/** What surrounds the blocks. */
export interface EndLayerSource {
  /** [vocab, embedding]. */
  readonly embedding: StoredMatrix;
  /** [vocab, embedding]; absent: the embedding, in one copy. */
  readonly head?: StoredMatrix;
  /** [hidden, embedding] and back, where the embedding has a width of its own. */
  readonly projectIn?: StoredMatrix;
  readonly projectOut?: StoredMatrix;
  /** Learned positions, f32 [rows, hidden]: position p is row p + offset. */
  readonly positions?: {
    readonly rows: number;
    readonly offset: number;
    readonly data: ArrayLike<number>;
  };
  /** A second table, [rows, width], whose rows times `scale` stand behind the hidden states that enter the first block. */
  readonly side?: { readonly table: StoredMatrix; readonly scale: number };
  /** What multiplies logits is in it. */
  readonly finalNorm?: HostNorm & Pick<NormStep, "kind" | "epsilon">;
  /** Multiplies embeddings. */
  readonly embeddingScale?: number;
  /** Logits x become cap·tanh(x/cap). */
  readonly logitSoftcap?: number;
}

/** A model to be prepared for inference; its weights are read one block at a time. */
export interface InferenceSource {
  readonly shape: ModelShape;
  readonly programs: readonly BlockProgram[];
  readonly scheme: Scheme;
  readonly endLayers: EndLayerSource;
  block(layer: number): PackedBlock;
}

/** Consecutive tokens of one sequence, to be processed in one step. */
export interface Chunk {
  /** Token ids, at least one. */
  readonly tokens: Int32Array;
  /** Position of `tokens[0]`: how many tokens of this sequence are in the cache already. */
  readonly start: number;
  /** Pages of this sequence in order; together they hold at least `start + tokens.length` positions. */
  readonly pages: Int32Array;
  /** Which state the sequence has, where the model has recurrent layers; absent: 0, for a chunk that is alone in its step. */
  readonly state?: number;
  /** Rows of logits wanted: none, the last token's, or every token's; or instead what the head reads of every token. */
  readonly logits: "none" | "last" | "all" | "hidden";
}

/**
 * Per chunk what was asked for, row-major: logits [rows, vocabSize], or for "hidden" rows as wide as the embedding;
 * undefined for "none". The arrays are the caller's.
 */
export type StepLogits = readonly (Float32Array | undefined)[];

/** A model that is ready to run. */
export interface Executor extends Disposable {
  readonly shape: ModelShape;
  /** One line: device, instruction set, threads, and the arithmetic (e.g. "w4a4kv4, integer"). */
  readonly description: string;
  /** Positions that a page holds. */
  readonly pageTokens: number;
  /** Bytes of one page: keys and values of all layers, with their scales. */
  readonly bytesPerPage: number;
  /** Bytes of one sequence's state in recurrent layers; absent: there are none, and a sequence is its pages. */
  readonly bytesPerState?: number;
  /** Bytes of weights as they lie in memory. */
  readonly weightBytes: number;
  /** Rows depend in their last bits on cuts of a prompt elsewhere than between pages, so prompts should be cut there. */
  readonly cutAtPages?: boolean;
  /** Chunks may ask for what the head reads. */
  readonly givesHidden?: boolean;
  /** Bytes that the device has left for pages; absent: they lie in the machine's own memory. */
  freeBytes?(): number;
  /** Bytes that still fit, where less than the machine's memory can be addressed. */
  addressableBytes?(): number;
  /**
   * Makes room for this many pages, and states of as many sequences (default 1) where there are any; what earlier ones held
   * is lost. @throws PlanishError when memory is short.
   */
  reserve(pages: number, states?: number): void;
  /** Copies one page's contents over another's, so that a shared, half-filled page can be continued twice. */
  copyPage(from: number, to: number): void;
  /** Copies one sequence's state over another's, which then goes on from the same position. Needed with `bytesPerState`. */
  copyState?(from: number, to: number): void;
  /**
   * Processes the chunks and writes their keys and values into their pages. A step begins when the one before has ended.
   */
  step(chunks: readonly Chunk[]): Promise<StepLogits>;
}

/** @throws PlanishError unless `page` is one of the `reserved` pages (undefined: none are yet). */
export function checkPage(page: number, reserved: number | undefined): void {
  if (reserved === undefined)
    throw new PlanishError("no cache pages are reserved; call reserve first");
  if (!Number.isInteger(page) || page < 0 || page >= reserved)
    throw new PlanishError(
      `page ${page} does not exist; ${reserved} are reserved, numbered from 0`,
    );
}

/** @throws PlanishError for a chunk that its pages, the `reserved` pages or the model cannot take. */
export function checkChunk(
  { tokens, start, pages }: Chunk,
  shape: ModelShape,
  pageTokens: number,
  reserved: number | undefined,
): void {
  const end = start + tokens.length;
  if (tokens.length === 0) throw new PlanishError("a chunk holds no tokens; give at least one");
  if (!Number.isSafeInteger(start) || start < 0)
    throw new PlanishError(`a chunk starts at position ${start}`);
  if (pages.length * pageTokens < end)
    throw new PlanishError(
      `${pages.length} pages hold ${pages.length * pageTokens} positions; the chunk ends at ${end}`,
    );
  if (shape.learnedPositions && end > shape.maxPositions)
    throw new PlanishError(
      `position ${end} is past the model's ${shape.maxPositions} learned positions`,
    );
  for (const token of tokens)
    if (token < 0 || token >= shape.vocabSize)
      throw new PlanishError(`token id ${token} is outside the vocabulary of ${shape.vocabSize}`);
  for (const page of pages.subarray(0, Math.ceil(end / pageTokens))) checkPage(page, reserved);
}

/** @throws PlanishError for a number of pages, or of states, that cannot be reserved. */
export function checkReserve(pages: number, states = 1): void {
  for (const [count, what] of [
    [pages, "pages"],
    [states, "states"],
  ] as const)
    if (!Number.isSafeInteger(count) || count < 1)
      throw new PlanishError(`cannot reserve ${count} ${what}; give an integer of at least 1`);
}
