/**
 * What a source of weights looks like to the rest of the house, whatever file format it came from.
 * Tensors are read one at a time, by position in the file: nothing loads a whole checkpoint.
 */

/** Element types found in checkpoint files. GGUF block types keep their GGUF names. */
export type StoredType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "I64"
  | "I32"
  | "I8"
  | "U8"
  | "BOOL"
  | "Q8_0"
  | "Q4_0"
  | "Q4_1"
  | "Q5_0"
  | "Q5_1"
  | "Q4_K"
  | "Q5_K"
  | "Q6_K";

export interface StoredTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: StoredType;
  /** Size in the file. */
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
  /** By Hugging Face tensor name (GGUF names are translated, permutations undone). */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Reads and dequantizes one tensor to float32. Throws PlanishError when it is absent or damaged. */
  read(name: string): Float32Array;
  /** Raw bytes of one tensor as stored, for packed artifacts. */
  readBytes(name: string): Uint8Array;
  /** `tokenizer.json` and `tokenizer_config.json` contents; throws PlanishError when the source has none. */
  tokenizerFiles(): TokenizerFiles;
  /** SHA-256 over names, shapes, types and data of all tensors; reads everything once, streaming. */
  hash(): Promise<string>;
}

export interface TokenizerFiles {
  /** Parsed tokenizer.json. */
  readonly tokenizer: Record<string, unknown>;
  /** Parsed tokenizer_config.json (may be empty); holds chat_template when known. */
  readonly config: Record<string, unknown>;
}
