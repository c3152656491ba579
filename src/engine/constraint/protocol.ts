/** Messages between the engine's thread and the threads that hold texts to their forms. */
import type { Form } from "./contract.js";
import type { Vocabulary } from "./vocabulary.js";
import type { WrittenGrammar } from "./write.js";

export interface GuideWorkerInput {
  /** Where the model's tokenizer is, or its tokens. */
  readonly tokens: { readonly path: string } | { readonly vocabulary: Vocabulary };
  /** See `Activity`. */
  readonly activity: SharedArrayBuffer;
  /** Bytes that the matching library may take. */
  readonly memory: number;
}

export type ToGuideWorker =
  /** Turns a form into a grammar. */
  | { readonly type: "read"; readonly job: number; readonly constraint: Form }
  /** Makes a grammar ready, under a name. */
  | {
      readonly type: "compile";
      readonly job: number;
      readonly form: number;
      readonly grammar: WrittenGrammar;
    }
  | { readonly type: "forget"; readonly form: number }
  /** A text of a form begins, or has come so far. */
  | {
      readonly type: "guide";
      readonly guide: number;
      readonly form: number;
      readonly state: SharedArrayBuffer;
      readonly tokens: readonly number[];
    }
  | { readonly type: "accept"; readonly guide: number; readonly token: number }
  | { readonly type: "drop"; readonly guide: number };

export type FromGuideWorker =
  | { readonly type: "grammar"; readonly job: number; readonly grammar: WrittenGrammar }
  /** `tokens`: how many the masks are about. */
  | { readonly type: "compiled"; readonly job: number; readonly tokens: number }
  | { readonly type: "refused"; readonly job: number; readonly message: string }
  /** A mask is there that was waited for. */
  | { readonly type: "mask"; readonly guide: number };

/** Places of the activity's 32-bit integers: what the thread is at, so that it can be seen from outside to be stuck. */
export const Activity = {
  /** Counts messages; changes when the next one is begun. */
  turn: 0,
  /** `Doing`. */
  doing: 1,
  /** The job or guide that is worked for. */
  subject: 2,
  length: 3,
} as const;

export const Doing = { nothing: 0, job: 1, guide: 2 } as const;

/** Places of a guide's 32-bit integers; the mask's follow. */
export const GuideState = {
  /** Tokens after which the mask and `complete` hold, plus one; 0 before there is one. */
  version: 0,
  complete: 1,
  /** 1 where the engine's thread wants to be told of the next mask. */
  awaited: 2,
  mask: 3,
} as const;

/** Integers of a mask. */
export const maskLength = (tokens: number): number => Math.ceil(tokens / 32);
