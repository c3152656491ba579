/** The engine's events as `/v1/responses` writes them: a whole response, and the named events of a streamed one. */
import { randomUUID } from "node:crypto";
import type { Choice } from "../../engine/engine.js";
import type { FinishReason, Usage } from "../../engine/request.js";
import {
  chatLogprob,
  type AnswerHead,
  type AnswerStream,
  type AnswerStyle,
  type Chunk,
  type TokenEvent,
} from "../answers.js";
import { inputOf, type KnownItem, type OutputItem, type OutputText } from "./items.js";
import type { Asked } from "./request.js";

/** What is made of a finished response, such as keeping it. */
type OnDone = (id: string, body: unknown, output: readonly KnownItem[]) => void;

/** A style for the answer to one request. */
export function responseStyle(asked: Asked, onDone: OnDone): AnswerStyle {
  return {
    prefix: "resp_",
    whole: (head, [choice], usage) => {
      const output = new Output();
      for (const token of choice.tokens) output.take(token, head.logprobs);
      output.close(choice.finishReason);
      const body = bodyOf(head, asked, output.items, { reason: choice.finishReason, usage });
      onDone(head.id, body, inputOf(output.items));
      return body;
    },
    stream: (head) => responseStream(head, asked, onDone),
  };
}

interface Ended {
  readonly reason: Choice["finishReason"];
  readonly usage: Usage;
}

function bodyOf(
  { id, created, model }: AnswerHead,
  asked: Asked,
  output: readonly OutputItem[],
  ended: Ended | undefined,
) {
  const isWhole = ended?.reason === "stop";
  return {
    id,
    object: "response",
    created_at: created,
    status: ended ? (isWhole ? "completed" : "incomplete") : "in_progress",
    background: false,
    error: null,
    incomplete_details: ended && !isWhole ? { reason: "max_output_tokens" } : null,
    instructions: asked.instructions ?? null,
    max_output_tokens: asked.max_output_tokens ?? null,
    metadata: asked.metadata ?? {},
    model,
    output,
    parallel_tool_calls: asked.parallel_tool_calls ?? true,
    previous_response_id: asked.previous_response_id ?? null,
    reasoning: { effort: null, summary: null },
    store: asked.store ?? true,
    temperature: asked.temperature ?? null,
    text: asked.text ?? { format: { type: "text" } },
    tool_choice: asked.tool_choice ?? "auto",
    tools: asked.tools ?? [],
    top_p: asked.top_p ?? null,
    truncation: "disabled",
    usage: ended ? usageOf(ended.usage) : null,
  };
}

function usageOf({ promptTokens, cachedTokens, generatedTokens }: Usage) {
  return {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: generatedTokens,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: promptTokens + generatedTokens,
  };
}

const itemId = (kind: string): string => `${kind}_${randomUUID().replaceAll("-", "")}`;

type MessageItem = Extract<OutputItem, { type: "message" }>;
type CallItem = Extract<OutputItem, { type: "function_call" }>;

const outputText = (text: string, logprobs: readonly unknown[]): OutputText => ({
  type: "output_text",
  text,
  annotations: [],
  logprobs,
});

/** The items of a response, as they grow; says what there is to say of each change. */
class Output {
  readonly items: OutputItem[] = [];
  /** Whether the last item is still being written. */
  private isOpen = false;

  /** @param logprobs whether they are to be told */
  take(event: TokenEvent, logprobs: boolean): Chunk["data"][] {
    const said: object[] = [];
    const probabilities =
      logprobs && event.logprobs
        ? [
            {
              ...chatLogprob(event.logprobs),
              top_logprobs: event.logprobs.top.map(chatLogprob),
            },
          ]
        : [];
    if (event.text !== "") said.push(...this.text(event.text, probabilities));
    for (const { id, name, arguments: json } of event.calls ?? []) {
      if (id !== undefined) said.push(...this.call(id, name ?? ""));
      if (json !== "") said.push(this.arguments(json));
    }
    return said;
  }

  private text(delta: string, logprobs: readonly unknown[]): object[] {
    const said: object[] = [];
    if (!this.isOpen || this.items.at(-1)?.type !== "message") {
      said.push(...this.close("stop"));
      const item: MessageItem = {
        id: itemId("msg"),
        type: "message",
        status: "in_progress",
        role: "assistant",
        content: [],
      };
      said.push(this.open(item), {
        type: "response.content_part.added",
        ...this.place(item),
        content_index: 0,
        part: outputText("", []),
      });
      this.replace({ ...item, content: [outputText("", [])] });
    }
    const item = this.items[this.items.length - 1] as MessageItem;
    const [part] = item.content;
    this.replace({
      ...item,
      content: [outputText(part.text + delta, [...part.logprobs, ...logprobs])],
    });
    said.push({
      type: "response.output_text.delta",
      ...this.place(item),
      content_index: 0,
      delta,
      logprobs,
    });
    return said;
  }

  private call(id: string, name: string): object[] {
    const closed = this.close("stop");
    const item: CallItem = {
      id: itemId("fc"),
      type: "function_call",
      status: "in_progress",
      call_id: id,
      name,
      arguments: "",
    };
    return [...closed, this.open(item)];
  }

  private arguments(delta: string): object {
    const item = this.items[this.items.length - 1] as CallItem;
    this.replace({ ...item, arguments: item.arguments + delta });
    return { type: "response.function_call_arguments.delta", ...this.place(item), delta };
  }

  /** Ends the item that is being written, if one is. */
  close(reason: FinishReason): object[] {
    if (!this.isOpen) return [];
    this.isOpen = false;
    const status = reason === "stop" ? "completed" : "incomplete";
    const last = { ...this.items[this.items.length - 1], status } as OutputItem;
    this.replace(last);
    const place = this.place(last);
    const done = {
      type: "response.output_item.done",
      output_index: place.output_index,
      item: last,
    };
    if (last.type === "function_call") {
      const { name, arguments: json } = last;
      const end = {
        type: "response.function_call_arguments.done",
        ...place,
        name,
        arguments: json,
      };
      return [end, done];
    }
    const [part] = last.content;
    const at = { ...place, content_index: 0 };
    return [
      { type: "response.output_text.done", ...at, text: part.text, logprobs: part.logprobs },
      { type: "response.content_part.done", ...at, part },
      done,
    ];
  }

  private open(item: OutputItem): object {
    this.items.push(item);
    this.isOpen = true;
    return {
      type: "response.output_item.added",
      output_index: this.items.length - 1,
      item,
    };
  }

  private replace(item: OutputItem): void {
    this.items[this.items.length - 1] = item;
  }

  private place({ id }: OutputItem) {
    return { item_id: id, output_index: this.items.length - 1 };
  }
}

function responseStream(head: AnswerHead, asked: Asked, onDone: OnDone): AnswerStream {
  const output = new Output();
  let sequence = 0;
  let reason: FinishReason = "stop";
  const chunks = (events: readonly unknown[]): Chunk[] =>
    (events as readonly { readonly type: string }[]).map((event) => ({
      event: event.type,
      data: { ...event, sequence_number: sequence++ },
    }));
  return {
    begin: () => {
      const response = bodyOf(head, asked, [], undefined);
      return chunks([
        { type: "response.created", response },
        { type: "response.in_progress", response },
      ]);
    },
    token: (_index, event) => chunks(output.take(event, head.logprobs)),
    finish: (_index, event) => {
      ({ reason } = event);
      return chunks(output.close(reason));
    },
    end: (usage) => {
      const response = bodyOf(head, asked, output.items, { reason, usage });
      onDone(head.id, response, inputOf(output.items));
      const type = reason === "stop" ? "response.completed" : "response.incomplete";
      return chunks([{ type, response }]);
    },
  };
}
