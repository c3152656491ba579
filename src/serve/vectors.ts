/** `/v1/embeddings`, `/tokenize` and `/detokenize`: texts as vectors, and as token ids and back. */
import { z } from "zod";
import type { Embedding } from "../engine/engine.js";
import type { EmbedRequest, TokenizeRequest } from "../engine/request.js";
import {
  check,
  dropped,
  only,
  promptsOf,
  promptsSchema,
  type TranslateOptions,
} from "./requests.js";

/** Texts that one request may hold (as OpenAI's). */
const MOST_TEXTS = 2048;
/** Of them, those that are computed at the same time. */
const AT_ONCE = 8;

const embeddingsSchema = z.strictObject({
  model: z.string().optional(),
  input: promptsSchema(MOST_TEXTS),
  encoding_format: z.enum(["float", "base64"]).nullish(),
  /** Beyond OpenAI's: what of a text's tokens its vector is. */
  pooling: z.enum(["mean", "last"]).nullish(),
  dimensions: only(z.undefined("the vectors have the model's own width")),
  user: dropped,
});

export interface TranslatedEmbeddings {
  readonly model: string | undefined;
  readonly requests: readonly EmbedRequest[];
  readonly base64: boolean;
  readonly ignored: readonly string[];
}

/** @throws ApiError (400) naming the field. */
export function translateEmbeddings(
  body: unknown,
  options: TranslateOptions,
): TranslatedEmbeddings {
  const { request, ignored } = check(embeddingsSchema, body, options);
  const { input, pooling, encoding_format: format, model } = request;
  return {
    model,
    requests: promptsOf(input).map((prompt) => ({ prompt, pooling: pooling ?? undefined })),
    base64: format === "base64",
    ignored,
  };
}

/** All texts' vectors, a few at a time, so that one request does not fill the line. */
export async function embedAll(
  requests: readonly EmbedRequest[],
  embed: (request: EmbedRequest) => Promise<Embedding>,
): Promise<Embedding[]> {
  const found: Embedding[] = [];
  for (let at = 0; at < requests.length; at += AT_ONCE)
    found.push(...(await Promise.all(requests.slice(at, at + AT_ONCE).map(embed))));
  return found;
}

/** @param vectors of unit length, with the tokens of their texts */
export function embeddingsBody(model: string, vectors: readonly Embedding[], base64: boolean) {
  const tokens = vectors.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
  return {
    object: "list",
    data: vectors.map(({ vector }, index) => ({
      object: "embedding",
      index,
      embedding: base64 ? littleEndian(vector) : Array.from(vector),
    })),
    model,
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  };
}

/** float32, the least byte first, in base64. */
function littleEndian(vector: Float32Array): string {
  const bytes = Buffer.alloc(4 * vector.length);
  vector.forEach((value, i) => bytes.writeFloatLE(value, 4 * i));
  return bytes.toString("base64");
}

const tokenizeSchema = z.strictObject({
  model: z.string().optional(),
  prompt: z.string().nullish(),
  /** As llama.cpp's server calls it. */
  content: z.string().nullish(),
  add_special_tokens: z.boolean().nullish(),
  messages: z.array(z.record(z.string(), z.unknown())).min(1).max(10_000).nullish(),
  tools: z.array(z.record(z.string(), z.unknown())).nullish(),
});

export interface TranslatedTokenize {
  readonly model: string | undefined;
  readonly request: TokenizeRequest;
  readonly ignored: readonly string[];
}

/** @throws ApiError (400) naming the field. */
export function translateTokenize(body: unknown, options: TranslateOptions): TranslatedTokenize {
  const { request, ignored } = check(tokenizeSchema, body, options);
  const { model, messages, tools, prompt, content, add_special_tokens: special } = request;
  // The engine looks closer at messages and tools.
  const chat = messages && { kind: "chat", messages, tools: tools ?? undefined };
  const text = {
    kind: "generate",
    prompt: prompt ?? content ?? "",
    addSpecialTokens: special ?? undefined,
  };
  return { model, request: { prompt: chat ?? text } as TokenizeRequest, ignored };
}

const detokenizeSchema = z.strictObject({
  model: z.string().optional(),
  tokens: z.array(z.int().min(0)),
});

/** @throws ApiError (400) naming the field. */
export function translateDetokenize(body: unknown, options: TranslateOptions) {
  const { request, ignored } = check(detokenizeSchema, body, options);
  return { model: request.model, tokens: request.tokens, ignored };
}
