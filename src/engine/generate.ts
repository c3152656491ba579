/**
 * Continuing a prompt, token by token, with the arithmetic of the model it is given (for an artifact: simulated
 * quantization). One sequence at a time; keys and values are kept in full precision after their grid.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { PlanishError } from "../common/errors.js";
import { Random } from "../common/random.js";
import type { LanguageModel } from "../models/language-model.js";
import { Graph } from "../tensor/tensor.js";
import { generateRequestSchema, parseRequest } from "./request.js";
import { Sampler, type SamplingOptions } from "./sampling.js";
import { maskTokens, unspelledTokens } from "./token-texts.js";

/** Forms are for the engine, which has what holds texts to them. */
const plainSchema = generateRequestSchema.omit({ constraint: true });

export interface GenerateOptions extends Partial<SamplingOptions> {
  readonly prompt: string;
  /** New tokens at most (default 128). */
  readonly maxTokens?: number;
  /** Seed of the sampling (default 0). */
  readonly seed?: number;
  /** Called with each piece of text as soon as it is certain. */
  readonly onText?: (piece: string) => void;
  /** Ends the generation; what was generated is returned. */
  readonly signal?: AbortSignal;
}

export interface GenerateResult {
  /** The continuation, without the prompt. */
  readonly text: string;
  readonly tokens: readonly number[];
  readonly promptTokens: number;
  /**
   * `stop`: the model ended its text; `length`: `maxTokens` were generated; `context`: the model's positions are used
   * up; `interrupted`: the signal came.
   */
  readonly finishReason: "stop" | "length" | "context" | "interrupted";
  /** Seconds for the prompt, and for all tokens after the first. */
  readonly prefillSeconds: number;
  readonly decodeSeconds: number;
}

/**
 * Continues a prompt. The same seed gives the same text on the same machine.
 * @throws PlanishError when the prompt has no tokens, or leaves no room in the model's context.
 */
export async function generate(
  model: LanguageModel,
  tokenizer: Tokenizer,
  options: GenerateOptions,
): Promise<GenerateResult> {
  const { onText, signal, ...request } = options;
  const parsed = parseRequest(plainSchema, { maxTokens: 128, seed: 0, ...request });
  const { maxTokens = 128, seed = 0 } = parsed;
  const { prompt } = options;
  const { config } = model;
  const promptIds = tokenizer.encode(prompt);
  if (promptIds.length === 0) throw new PlanishError("the prompt has no tokens; give some text");
  if (promptIds.length >= config.maxPositions) {
    throw new PlanishError(
      `the prompt has ${promptIds.length} tokens, and the model's context is ${config.maxPositions}; shorten it`,
    );
  }
  const capacity = Math.min(promptIds.length + maxTokens, config.maxPositions);
  // A vocabulary may be padded beyond the tokenizer's ids, which nothing could spell.
  const candidates = Math.min(config.vocabSize, tokenizer.vocabSize);
  const unspelled = unspelledTokens(tokenizer, candidates);
  const sampler = new Sampler(
    { ...parsed, temperature: parsed.temperature ?? 0 },
    Random.for(seed, "sampling"),
    candidates,
    promptIds,
  );
  const decoder = tokenizer.stream();
  const tokens: number[] = [];
  let text = "";
  const emit = (piece: string): void => {
    text += piece;
    if (piece !== "") onText?.(piece);
  };

  using cache = model.cache(capacity);
  using arena = model.backend.arena();
  const started = performance.now();
  let firstAt = started;
  let next = Int32Array.from(promptIds);
  let finishReason: GenerateResult["finishReason"] | undefined;
  while (finishReason === undefined) {
    if (signal?.aborted) finishReason = "interrupted";
    else if (tokens.length === maxTokens) finishReason = "length";
    else if (cache.length + next.length > capacity) finishReason = "context";
    else {
      using g = new Graph(model.backend, { arena });
      const hidden = model.lastRow(g, model.hidden(g, next, { cache }));
      const logits = g.read(model.logits(g, hidden));
      maskTokens(logits, unspelled);
      const token = sampler.next(logits);
      if (tokens.length === 0) firstAt = performance.now();
      if (tokenizer.eosTokenIds.includes(token)) finishReason = "stop";
      else {
        tokens.push(token);
        emit(decoder.push(token));
        next = Int32Array.of(token);
      }
      await nextTurn();
    }
  }
  emit(decoder.flush());
  return {
    text,
    tokens,
    promptTokens: promptIds.length,
    finishReason,
    prefillSeconds: (firstAt - started) / 1000,
    decodeSeconds: (performance.now() - firstAt) / 1000,
  };
}
