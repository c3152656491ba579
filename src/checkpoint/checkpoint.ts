/**
 * What a source of weights looks like to the rest of the house, whatever file format it came from.
 * Tensors are read one at a time, by position in the file: nothing loads a whole checkpoint.
 */

import type { ElementType } from "./element-types.js";

/** Element types found in checkpoint files. GGUF block types keep their GGUF names. */
export type StoredType =
  ElementType | "Q8_0" | "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q4_K" | "Q5_K" | "Q6_K" | "MXFP4";

export interface StoredTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: StoredType;
  /** Size in the file; of a tensor that is stored as codes and scales, its size as a dense one. */
  readonly bytes: number;
  /** File that holds it, for error messages. */
  readonly file: string;
}

export interface Checkpoint extends Disposable {
  /** Directory or file it was opened from. */
  readonly path: string;
  readonly format: "safetensors" | "gguf";
  /** `config.json` as parsed, or its equivalent rebuilt from GGUF metadata, in Hugging Face's spelling. */
  readonly config: Readonly<Record<string, unknown>>;
  /** `generation_config.json` when there is one. */
  readonly generationConfig?: Readonly<Record<string, unknown>>;
  /** What a safetensors file says of itself in words (`__metadata__`). */
  readonly metadata?: Readonly<Record<string, string>>;
  /** By Hugging Face tensor name (GGUF names are translated, permutations undone). */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** How weights are stored that are quantized in the source; `tensors` and `read` have them dense. */
  readonly quantized?: QuantizedForm;
  /** Reads and dequantizes one tensor to float32. Throws PlanishError when it is absent or damaged. */
  read(name: string): Float32Array;
  /** Raw bytes of one tensor as stored, for packed artifacts. */
  readBytes(name: string): Uint8Array;
  /** The grid of a tensor that is stored as codes, from headers alone; undefined for others. */
  grid?(name: string): StoredGrid | undefined;
  /** The codes of a tensor that has a grid. Throws PlanishError when it is damaged. */
  codes?(name: string): StoredCodes | undefined;
  /** `tokenizer.json` and `tokenizer_config.json` contents; throws PlanishError when the source has none. */
  tokenizerFiles(): TokenizerFiles;
  /** SHA-256 over names, shapes, types and data of all tensors; reads everything once, streaming. */
  hash(): Promise<string>;
}

/** How a tensor is stored whose entries are codes with a scale, and perhaps an offset, per group of columns. */
export interface StoredGrid {
  readonly bits: number;
  /** Consecutive columns that share a scale. */
  readonly group: number;
  readonly offset: boolean;
}

/** Codes of a matrix: an entry is scale·code, or scale·code + offset, and nothing is rounded. */
export interface StoredCodes {
  /** Row-major; from 0 on where there are offsets, else around 0. */
  readonly codes: Int8Array;
  /** Row-major [rows, columns / group]. */
  readonly scale: Float32Array;
  readonly offset?: Float32Array;
  readonly group: number;
  readonly bits: number;
}

/** What is known of a source whose weights are codes and scales. */
export interface QuantizedForm {
  /** `quant_method` of its configuration. */
  readonly method: string;
  /** The grids of its weights in a few words. */
  readonly grid: string;
  /** Names of the dense tensors that are stored so. */
  readonly tensors: readonly string[];
  /** Bytes that they take in the file. */
  readonly bytes: number;
  /** What the source says of activations and the cache, which readers of its weights do not follow. */
  readonly notes: readonly string[];
}

export interface TokenizerFiles {
  /** Parsed tokenizer.json. */
  readonly tokenizer: Record<string, unknown>;
  /** Parsed tokenizer_config.json (may be empty); holds chat_template when known. */
  readonly config: Record<string, unknown>;
}
