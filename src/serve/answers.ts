/** The engine's events as OpenAI's API writes them: whole answers, and the chunks of streamed ones. */
import type { Choice, Completion } from "../engine/engine.js";
import type { FinishReason, GenerateEvent, TokenText, Usage } from "../engine/request.js";

export type TokenEvent = Extract<GenerateEvent, { type: "token" }>;
export type FinishEvent = Extract<GenerateEvent, { type: "finish" }>;

/** What all parts of one answer have in common. */
export interface AnswerHead {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  /** Whether log-probabilities were asked for. */
  readonly logprobs: boolean;
  /** Whether a streamed answer ends with its usage, where the API leaves that open. */
  readonly includeUsage: boolean;
}

/** One server-sent event. */
export interface Chunk {
  /** Its name, in APIs whose events have names. */
  readonly event?: string;
  readonly data: unknown;
}

/** How one endpoint writes its answers. Choices are counted over all prompts of the request. */
export interface AnswerStyle {
  readonly prefix: string;
  whole(head: AnswerHead, choices: readonly Choice[], usage: Usage): unknown;
  /** A streamed answer of so many choices. */
  stream(head: AnswerHead, choices: number): AnswerStream;
}

/** A streamed answer in the making: what is sent when the engine has said something. */
export interface AnswerStream {
  /** Before the first token; of one prompt only where there are several. */
  begin(promptTokens: number): readonly Chunk[];
  token(index: number, event: TokenEvent): readonly Chunk[];
  finish(index: number, event: FinishEvent): readonly Chunk[];
  end(usage: Usage): readonly Chunk[];
}

/** An API whose events are chunks of OpenAI's older kind: each stands for itself, and `[DONE]` comes last. */
interface ChunkWriter {
  /** Sent before a choice's first token; nothing where undefined. */
  begin(head: AnswerHead, index: number): unknown;
  /** `offset`: characters of the choice before this token. */
  token(head: AnswerHead, index: number, event: TokenEvent, offset: number): unknown;
  /** `called`: the choice has called functions. */
  finish(head: AnswerHead, index: number, reason: FinishReason, called: boolean): unknown;
  usage(head: AnswerHead, usage: Usage): unknown;
}

const DONE: Chunk = { data: "[DONE]" };

function chunkStream(writer: ChunkWriter, head: AnswerHead, choices: number): AnswerStream {
  const offsets = new Array<number>(choices).fill(0);
  const called = new Set<number>();
  const chunk = (data: unknown): readonly Chunk[] => (data === undefined ? [] : [{ data }]);
  return {
    begin: () => offsets.flatMap((_, index) => chunk(writer.begin(head, index))),
    token: (index, event) => {
      const offset = offsets[index];
      offsets[index] += event.text.length;
      if (event.calls) called.add(index);
      const isHeard = event.text !== "" || event.calls !== undefined || head.logprobs;
      return isHeard ? chunk(writer.token(head, index, event, offset)) : [];
    },
    finish: (index, { reason }) => chunk(writer.finish(head, index, reason, called.has(index))),
    end: (usage) => (head.includeUsage ? [...chunk(writer.usage(head, usage)), DONE] : [DONE]),
  };
}

export function usageOf({ promptTokens, generatedTokens, cachedTokens }: Usage) {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: generatedTokens,
    total_tokens: promptTokens + generatedTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** The sum over several prompts. */
export function addUsage(parts: readonly Completion[]): Usage {
  const sum = (key: keyof Usage): number =>
    parts.reduce((total, part) => total + part.usage[key], 0);
  return {
    promptTokens: sum("promptTokens"),
    cachedTokens: sum("cachedTokens"),
    generatedTokens: sum("generatedTokens"),
  };
}

/** The API knows no third reason: a full context is a length. */
export function finishReason(
  reason: FinishReason,
  called = false,
): "stop" | "length" | "tool_calls" {
  if (reason !== "stop") return "length";
  return called ? "tool_calls" : "stop";
}

/**
 * A token's name where it stands for itself: its text, or, where its bytes make no whole characters, the bytes as
 * OpenAI writes them (`bytes:\\xf0\\x9f`), since every such token reads alike.
 */
function nameOf({ text, bytes, token }: TokenText): string {
  if (text === "" && bytes === undefined) return `token_id:${token}`;
  return text.includes("\ufffd") ? bytesName({ bytes, token }) : text;
}

function bytesName({ bytes, token }: Pick<TokenText, "bytes" | "token">): string {
  if (bytes === undefined) return `token_id:${token}`;
  return `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
}

/** The likeliest tokens by name. `chosen` has its own name, whoever else reads like it. */
function byName(chosen: TokenText, top: readonly TokenText[]): Record<string, number> {
  const named = new Map<string, number>();
  for (const each of top) {
    const names = [nameOf(each), bytesName(each), `token_id:${each.token}`];
    const isFree = (name: string): boolean =>
      !named.has(name) && (each.token === chosen.token || name !== nameOf(chosen));
    let name = names.find(isFree) ?? names[2];
    // A vocabulary may hold even these names as texts.
    while (!isFree(name)) name += "'";
    named.set(name, each.logprob);
  }
  return Object.fromEntries(named);
}

export const chatLogprob = (token: TokenText) => ({
  token: nameOf(token),
  logprob: token.logprob,
  bytes: token.bytes ?? null,
});

function chatLogprobs(head: AnswerHead, tokens: readonly TokenEvent[]) {
  if (!head.logprobs) return null;
  return {
    content: tokens.flatMap(({ logprobs }) =>
      logprobs ? [{ ...chatLogprob(logprobs), top_logprobs: logprobs.top.map(chatLogprob) }] : [],
    ),
    refusal: null,
  };
}

function completionLogprobs(head: AnswerHead, tokens: readonly TokenEvent[], offset = 0) {
  if (!head.logprobs) return null;
  const offsets: number[] = [];
  let at = offset;
  for (const { text } of tokens) {
    offsets.push(at);
    at += text.length;
  }
  return {
    tokens: tokens.map(({ logprobs }) => (logprobs ? nameOf(logprobs) : "")),
    token_logprobs: tokens.map(({ logprobs }) => logprobs?.logprob ?? null),
    top_logprobs: tokens.map(({ logprobs }) => (logprobs ? byName(logprobs, logprobs.top) : {})),
    text_offset: offsets,
  };
}

const head = (object: string, { id, created, model }: AnswerHead) => ({
  id,
  object,
  created,
  model,
});

const chatChunk = (
  answer: AnswerHead,
  index: number,
  delta: object,
  reason: string | null,
  logprobs: unknown = null,
) => ({
  ...head("chat.completion.chunk", answer),
  choices: [{ index, delta, logprobs, finish_reason: reason }],
});

function chatDelta({ text, calls = [] }: TokenEvent): object {
  if (calls.length === 0) return { content: text };
  return {
    ...(text === "" ? {} : { content: text }),
    tool_calls: calls.map(({ index, id, name, arguments: json }) => ({
      index,
      ...(id === undefined ? {} : { id, type: "function" }),
      function: { ...(name === undefined ? {} : { name }), arguments: json },
    })),
  };
}

const chatChunks: ChunkWriter = {
  begin: (answer, index) => chatChunk(answer, index, { role: "assistant", content: "" }, null),
  token: (answer, index, event) =>
    chatChunk(answer, index, chatDelta(event), null, chatLogprobs(answer, [event])),
  finish: (answer, index, reason, called) =>
    chatChunk(answer, index, {}, finishReason(reason, called)),
  usage: (answer, usage) => ({
    ...head("chat.completion.chunk", answer),
    choices: [],
    usage: usageOf(usage),
  }),
};

export const chatStyle: AnswerStyle = {
  prefix: "chatcmpl-",
  whole: (answer, choices, usage) => ({
    ...head("chat.completion", answer),
    choices: choices.map((choice, index) => ({
      index,
      message: {
        role: "assistant",
        content: choice.toolCalls && choice.text === "" ? null : choice.text,
        refusal: null,
        ...(choice.toolCalls ? { tool_calls: choice.toolCalls } : {}),
      },
      logprobs: chatLogprobs(answer, choice.tokens),
      finish_reason: finishReason(choice.finishReason, choice.toolCalls !== undefined),
    })),
    usage: usageOf(usage),
  }),
  stream: (answer, choices) => chunkStream(chatChunks, answer, choices),
};

const completionChunk = (
  answer: AnswerHead,
  index: number,
  text: string,
  reason: string | null,
  logprobs: unknown = null,
) => ({
  ...head("text_completion", answer),
  choices: [{ index, text, logprobs, finish_reason: reason }],
});

const completionChunks: ChunkWriter = {
  begin: () => undefined,
  token: (answer, index, event, offset) =>
    completionChunk(answer, index, event.text, null, completionLogprobs(answer, [event], offset)),
  finish: (answer, index, reason) => completionChunk(answer, index, "", finishReason(reason)),
  usage: (answer, usage) => ({
    ...head("text_completion", answer),
    choices: [],
    usage: usageOf(usage),
  }),
};

export const completionStyle: AnswerStyle = {
  prefix: "cmpl-",
  whole: (answer, choices, usage) => ({
    ...head("text_completion", answer),
    choices: choices.map((choice, index) => ({
      index,
      text: choice.text,
      logprobs: completionLogprobs(answer, choice.tokens),
      finish_reason: finishReason(choice.finishReason),
    })),
    usage: usageOf(usage),
  }),
  stream: (answer, choices) => chunkStream(completionChunks, answer, choices),
};
