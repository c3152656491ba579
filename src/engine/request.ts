/** What can be asked of the engine, and what comes back. */
import { z } from "zod";
import { PlanishError } from "../common/errors.js";
import { firstIssue } from "../common/issues.js";
import { constraintSchema } from "./constraint/contract.js";
import type { CallPiece } from "./tools/reader.js";

/**
 * Why a request was not served: `invalid`: it makes no sense; `context`: it is too long; `busy`: too many wait already;
 * `closed`: the engine is closing or has stopped; `failed`: the work failed.
 */
export type EngineErrorCode = "invalid" | "context" | "busy" | "closed" | "failed";

export class EngineError extends PlanishError {
  override readonly name = "EngineError";
  constructor(
    message: string,
    readonly code: EngineErrorCode,
    options: { cause?: unknown } = {},
  ) {
    super(message, options);
  }
}

/** Most that a request may ask for, so that none can take the house for itself. */
export const REQUEST_LIMITS = {
  choices: 16,
  stopStrings: 16,
  stopCharacters: 512,
  topLogprobs: 20,
  biases: 1024,
  tools: 128,
  /** Lists and objects within one another. */
  depth: 100,
  /** Factors that still leave a difference between logits in float32. */
  leastRepetitionPenalty: 0.01,
  mostRepetitionPenalty: 100,
} as const;

const stops = z.array(z.string().min(1).max(REQUEST_LIMITS.stopCharacters));

/** Settings of a generation that completions and chats share. */
const settings = {
  /** New tokens at most (default: as many as the context holds). */
  maxTokens: z.int().min(1).optional(),
  /** Independent continuations (default 1). */
  n: z.int().min(1).max(REQUEST_LIMITS.choices).optional(),
  /** See `SamplingOptions`; default 0, the likeliest token always. */
  temperature: z.number().min(0).max(100).optional(),
  topK: z.int().min(0).optional(),
  topP: z.number().gt(0).max(1).optional(),
  minP: z.number().min(0).max(1).optional(),
  repetitionPenalty: z
    .number()
    .min(REQUEST_LIMITS.leastRepetitionPenalty)
    .max(REQUEST_LIMITS.mostRepetitionPenalty)
    .optional(),
  presencePenalty: z.number().min(-100).max(100).optional(),
  frequencyPenalty: z.number().min(-100).max(100).optional(),
  logitBias: z
    .record(z.string().regex(/^\d{1,9}$/, "give token ids as keys"), z.number().min(-100).max(100))
    .refine((biases) => Object.keys(biases).length <= REQUEST_LIMITS.biases, {
      error: `give biases for at most ${REQUEST_LIMITS.biases} tokens`,
    })
    .optional(),
  /** The same seed and prompt give the same text on the same machine (default: a new one each time). */
  seed: z.int().optional(),
  /** The text ends before the first of these. */
  stop: stops.max(REQUEST_LIMITS.stopStrings).optional(),
  /** Report log-probabilities: the chosen token's, and those of so many of the likeliest. */
  logprobs: z.int().min(0).max(REQUEST_LIMITS.topLogprobs).optional(),
  /** The form that the text is held to (default: none). */
  constraint: constraintSchema.optional(),
  /** Go on past the tokens that end a text (default false). */
  ignoreEnd: z.boolean().optional(),
  /**
   * Cached beginnings of prompts are shared among requests of the same salt only (default: all share). Otherwise
   * `cachedTokens` tells what others have asked.
   */
  cacheSalt: z.string().min(1).max(REQUEST_LIMITS.stopCharacters).optional(),
  /** Who asks (default: all are one): no client can keep the others' prompts from being prepared. */
  client: z.string().max(REQUEST_LIMITS.stopCharacters).optional(),
};

export const generateRequestSchema = z.strictObject({
  /** Text, or token ids. */
  prompt: z.union([z.string(), z.array(z.int().min(0))]),
  /** What comes behind the text that is wanted, for models that were taught to fill in. */
  suffix: z.string().optional(),
  ...settings,
});

const client = settings.client;

export const embedRequestSchema = z.strictObject({
  prompt: generateRequestSchema.shape.prompt,
  /** The mean over what the head reads of all tokens (default), or the last one's. */
  pooling: z.enum(["mean", "last"]).optional(),
  client,
});

/** What stands in a call's syntax as it is, without escapes. */
const functionName = z
  .string()
  .regex(/^[\w.:/-]{1,128}$/, "give a name of letters, digits and _ . : / -, at most 128");

const toolCallSchema = z.looseObject({
  id: z.string(),
  type: z.literal("function"),
  /** Arguments as JSON, as OpenAI has them, or as the object itself. */
  function: z.looseObject({
    name: z.string(),
    arguments: z.union([z.string(), z.record(z.string(), z.unknown())]),
  }),
});

const messageSchema = z.looseObject({
  role: z.string().min(1),
  content: z.string().nullish(),
  /** What an assistant called. */
  tool_calls: z.array(toolCallSchema).nullish(),
  /** Of a `tool` message: the call whose result it is. */
  tool_call_id: z.string().nullish(),
});

const toolSchema = z.looseObject({
  type: z.literal("function"),
  function: z.looseObject({
    name: functionName,
    description: z.string().nullish(),
    /** JSON Schema of the arguments (default: there are none). */
    parameters: z.union([z.boolean(), z.record(z.string(), z.unknown())]).nullish(),
  }),
});

export const chatRequestSchema = z.strictObject({
  /** Turns so far, oldest first. Further keys of a message are passed to the model's template. */
  messages: z.array(messageSchema).min(1),
  /** Functions that the model may call; what it calls comes as `calls` of the token events. */
  tools: z.array(toolSchema).max(REQUEST_LIMITS.tools).optional(),
  /** Whether it calls: as it likes (default), not at all, at least once, or this function. */
  toolChoice: z
    .union([z.enum(["auto", "none", "required"]), z.strictObject({ name: z.string() })])
    .optional(),
  /** One answer may hold several calls (default true), where the model's form has that. */
  parallelToolCalls: z.boolean().optional(),
  /** The last message is the assistant's, and is continued (default false: a new answer begins). */
  continueFinal: z.boolean().optional(),
  ...settings,
});

/** What the prompt of a request is made of, to be told as tokens. */
export const tokenizeRequestSchema = z.strictObject({
  prompt: z.union([
    z.strictObject({
      kind: z.literal("generate"),
      ...generateRequestSchema.pick({ prompt: true, suffix: true }).shape,
      /** With what the tokenizer puts around a text (default true). */
      addSpecialTokens: z.boolean().optional(),
    }),
    z.strictObject({
      kind: z.literal("chat"),
      ...chatRequestSchema.pick({
        messages: true,
        tools: true,
        toolChoice: true,
        continueFinal: true,
      }).shape,
    }),
  ]),
  client,
});

export const detokenizeRequestSchema = z.strictObject({ tokens: z.array(z.int().min(0)) });

/** What only this side of the engine knows of a request. */
export interface RequestExtras<T = unknown> {
  /** Ends the generation and frees what it holds; the iterator throws the signal's reason. */
  readonly signal?: AbortSignal;
  /** A zod schema: the text is JSON of its input, and `collect` gives what it makes of it. */
  readonly schema?: z.core.$ZodType<T>;
}

export type GenerateRequest<T = unknown> = z.infer<typeof generateRequestSchema> & RequestExtras<T>;
export type ChatRequest<T = unknown> = z.infer<typeof chatRequestSchema> & RequestExtras<T>;
export type ChatMessage = z.infer<typeof messageSchema>;
export type Tool = z.infer<typeof toolSchema>;
export type ToolCall = z.infer<typeof toolCallSchema>;

export type EmbedRequest = z.infer<typeof embedRequestSchema> & Pick<RequestExtras, "signal">;
export type TokenizeRequest = z.infer<typeof tokenizeRequestSchema> & Pick<RequestExtras, "signal">;

/** A request for a text as it goes to the engine's thread. */
export type TextRequest =
  | ({ readonly kind: "generate" } & z.infer<typeof generateRequestSchema>)
  | ({ readonly kind: "chat" } & z.infer<typeof chatRequestSchema>);

/** Any request, likewise. */
export type EngineRequest =
  | TextRequest
  | ({ readonly kind: "embed" } & z.infer<typeof embedRequestSchema>)
  | ({ readonly kind: "tokenize" } & z.infer<typeof tokenizeRequestSchema>)
  | ({ readonly kind: "detokenize" } & z.infer<typeof detokenizeRequestSchema>);

/** What answers a request that is not for a text: one event, and no other. */
export type Reply =
  | { readonly type: "embedding"; readonly vector: Float32Array; readonly promptTokens: number }
  | { readonly type: "tokens"; readonly tokens: readonly number[] }
  | { readonly type: "text"; readonly text: string };

/** @throws EngineError (`invalid`) naming the field. */
export function parseRequest<T>(schema: z.ZodType<T>, request: unknown): T {
  const infinite = checkDepth(request);
  const result = schema.safeParse(request);
  if (result.success && infinite === undefined) return result.data;
  if (result.success)
    throw new EngineError(`request: a number is ${infinite}; all must be finite`, "invalid");
  const { field, reason } = firstIssue(result.error);
  throw new EngineError(`${field || "request"}: ${reason}`, "invalid");
}

/**
 * Walks through a request, and returns a number in it that is not finite, if there is one: schemas see no further than
 * the keys they know.
 * @throws EngineError (`invalid`) when lists and objects are nested deeper than may be.
 */
function checkDepth(request: unknown): number | undefined {
  let infinite: number | undefined;
  const isNested = (value: unknown): value is object => typeof value === "object" && value !== null;
  let level = [request].filter(isNested);
  // Each object once: one that is held in many places is not walked through as often.
  const seen = new Set<object>(level);
  for (let depth = 1; level.length > 0; depth++) {
    if (depth > REQUEST_LIMITS.depth)
      throw new EngineError(
        `request: lists and objects are nested more than ${REQUEST_LIMITS.depth} deep`,
        "invalid",
      );
    const next: object[] = [];
    for (const value of level)
      for (const each of Object.values(value) as unknown[]) {
        if (typeof each === "number" && !Number.isFinite(each)) infinite = each;
        if (isNested(each) && !seen.has(each)) {
          seen.add(each);
          next.push(each);
        }
      }
    level = next;
  }
  return infinite;
}

/** A token as people read it. */
export interface TokenText {
  readonly token: number;
  /** Its text alone; bytes that make no character show as U+FFFD. */
  readonly text: string;
  /** Its bytes in UTF-8, where they are known. */
  readonly bytes?: readonly number[];
  /** Natural logarithm of its probability. */
  readonly logprob: number;
}

/**
 * `stop`: the model ended its text, or a stop string came; `length`: the tokens asked for were generated; `context`: the
 * model's positions, or the cache's, are used up.
 */
export type FinishReason = "stop" | "length" | "context";

export interface Usage {
  readonly promptTokens: number;
  /** Of them, found in the prefix cache. */
  readonly cachedTokens: number;
  /** Over all choices. */
  readonly generatedTokens: number;
}

export type GenerateEvent =
  /** The request was accepted and stands in line. */
  | { readonly type: "accepted"; readonly promptTokens: number; readonly seed: number }
  | {
      readonly type: "token";
      readonly choice: number;
      readonly token: number;
      /** What the token adds to the choice's text. */
      readonly text: string;
      /** What it adds to calls of functions, which are no part of the text. */
      readonly calls?: readonly CallPiece[];
      /** With `logprobs`: the token itself, and the likeliest in its place. */
      readonly logprobs?: TokenText & { readonly top: readonly TokenText[] };
    }
  | {
      readonly type: "finish";
      readonly choice: number;
      readonly reason: FinishReason;
      /** The stop string that ended the text. */
      readonly stopString?: string;
    }
  /** Every choice has finished. */
  | { readonly type: "end"; readonly usage: Usage };
