/**
 * Messages between the engine's two halves, the caller's thread and the one that computes; and between the latter and the
 * processes that write prompts down for it.
 */
import type { ModelSampling } from "./model-sampling.js";
import type { Prompt } from "./prompt.js";
import type { EngineErrorCode, EngineRequest, GenerateEvent, Reply } from "./request.js";
import type { SchedulerStats } from "./scheduler.js";
import type { ToolForm } from "./tools/syntax.js";

export type ToHost =
  | { readonly type: "submit"; readonly id: number; readonly request: EngineRequest }
  | { readonly type: "cancel"; readonly id: number }
  /** The request's reader has taken so many more events. */
  | { readonly type: "taken"; readonly id: number; readonly count: number }
  | { readonly type: "close" };

export interface SentError {
  readonly message: string;
  readonly code: EngineErrorCode;
}

export type FromHost =
  | { readonly type: "ready"; readonly info: EngineInfo; readonly stats: EngineStats }
  | { readonly type: "note" | "warn"; readonly text: string }
  /** Of Node.js (`process.emitWarning`). */
  | { readonly type: "warning"; readonly name: string; readonly message: string }
  /** Loading failed; nothing follows. */
  | { readonly type: "unloadable"; readonly message: string; readonly exitCode: 1 | 2 }
  | {
      readonly type: "progress";
      readonly events: readonly { readonly id: number; readonly event: GenerateEvent | Reply }[];
      readonly stats: EngineStats;
    }
  | { readonly type: "failed"; readonly id: number; readonly error: SentError };

/** What was loaded, and how it runs. */
export interface EngineInfo {
  /** Device, instruction set, threads, arithmetic. */
  readonly description: string;
  /**
   * `integer`: low-bit kernels; `16-bit`: bf16 kernels, for a model that is not quantized; `simulated`: any model in
   * float32, quantized ones on their grids, slower.
   */
  readonly arithmetic: "integer" | "16-bit" | "simulated";
  /** As written, such as w4a4kv4; absent for a model that is not quantized. */
  readonly scheme?: string;
  /** Positions that one sequence may have: the model's, or what the cache holds if that is less. */
  readonly contextTokens: number;
  readonly modelPositions: number;
  readonly vocabSize: number;
  readonly pageTokens: number;
  readonly pages: number;
  /** Bytes of the KV cache, all pages. */
  readonly cacheBytes: number;
  readonly weightBytes: number;
  readonly maxRunning: number;
  readonly maxWaiting: number;
  readonly hasChatTemplate: boolean;
  /**
   * How the model writes calls of functions down: as its chat template teaches, or `generic` where that knows nothing of
   * tools; absent: it is not asked to.
   */
  readonly toolForm?: ToolForm["name"];
  /** Whether texts can be made vectors of. */
  readonly embeds: boolean;
  /** Whether the tokenizer has tokens for filling in between a prompt and a suffix. */
  readonly fillsIn: boolean;
  /** How the model's authors would have its texts drawn; requests that want that must say it. */
  readonly sampling: ModelSampling;
}

/** Counters since loading, and the present state. */
export interface EngineStats extends SchedulerStats {
  readonly promptTokens: number;
  /** Prompt tokens that the prefix cache had. */
  readonly cachedTokens: number;
  readonly generatedTokens: number;
}

/** Events that a request may be ahead of its reader before it rests. */
export const MOST_UNREAD = 64;
/** The reader reports so many events at a time. */
export const TAKEN_AT_ONCE = 16;

export type ToPromptProcess =
  /** Comes first, once. */
  | { readonly type: "load"; readonly path: string; readonly chatTemplate: string | undefined }
  | {
      readonly type: "write";
      readonly prompt: Prompt;
      readonly contextTokens: number;
      /** Time for this prompt; the process ends itself when it is over. */
      readonly milliseconds: number;
    };

export type FromPromptProcess =
  | { readonly type: "ready" }
  /** Nothing follows. */
  | { readonly type: "unloadable"; readonly message: string }
  | { readonly type: "written"; readonly tokens: Uint32Array }
  | { readonly type: "refused"; readonly error: SentError };

/** The exit code that says that a prompt took too long. */
export const OVER_TIME = 75;
