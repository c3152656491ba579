/** What `/v1/responses` speaks in: items that go in and come out, and the messages that they stand for. */
import { z } from "zod";
import type { ChatMessage, ToolCall } from "../../engine/request.js";
import { ApiError } from "../errors.js";

const textPart = z.looseObject({
  type: z.enum(["input_text", "output_text", "text"]),
  text: z.string(),
});
const content = z.union([z.string(), z.array(textPart)]);

const messageItem = z.looseObject({
  type: z.literal("message").optional(),
  role: z.enum(["system", "developer", "user", "assistant"]),
  content,
});

const callItem = z.looseObject({
  type: z.literal("function_call"),
  call_id: z.string(),
  name: z.string(),
  arguments: z.string(),
});

const resultItem = z.looseObject({
  type: z.literal("function_call_output"),
  call_id: z.string(),
  output: content,
});

/** What a model thought, which templates leave out of what comes next. */
const thoughtItem = z.looseObject({ type: z.literal("reasoning") });

/** An item of an answer that is kept here. */
const referenceItem = z.looseObject({ type: z.literal("item_reference"), id: z.string() });

export const inputItem = z.union([messageItem, callItem, resultItem, thoughtItem, referenceItem]);

export type InputItem = z.infer<typeof inputItem>;
export type KnownItem = Exclude<InputItem, { type: "item_reference" }>;

export interface OutputText {
  readonly type: "output_text";
  readonly text: string;
  readonly annotations: readonly never[];
  readonly logprobs: readonly unknown[];
}

export type OutputItem =
  | {
      readonly id: string;
      readonly type: "message";
      readonly status: Status;
      readonly role: "assistant";
      readonly content: readonly OutputText[];
    }
  | {
      readonly id: string;
      readonly type: "function_call";
      readonly status: Status;
      readonly call_id: string;
      readonly name: string;
      readonly arguments: string;
    };

type Status = "in_progress" | "completed" | "incomplete";

/** Items that came out as items that go in. */
export function inputOf(items: readonly OutputItem[]): KnownItem[] {
  return items.map((item) => inputItem.parse(item) as KnownItem);
}

/** Items with those that they refer to. @throws ApiError (404) for one that is not known. */
export function resolved(
  items: readonly InputItem[],
  find: (id: string) => KnownItem | undefined,
): KnownItem[] {
  return items.map((item) => {
    if (item.type !== "item_reference") return item;
    const found = find(item.id);
    if (!found)
      throw new ApiError(404, `input: there is no item ${item.id.slice(0, 100)} here (any more)`, {
        param: "input",
      });
    return found;
  });
}

/** A conversation's items as messages: calls belong to the assistant's message before them. */
export function messagesOf(
  items: readonly KnownItem[],
  instructions: string | null | undefined,
): ChatMessage[] {
  const messages: ChatMessage[] = [];
  if (instructions) messages.push({ role: "system", content: instructions });
  for (const item of items) {
    if (item.type === "function_call") {
      const call: ToolCall = {
        id: item.call_id,
        type: "function",
        function: { name: item.name, arguments: item.arguments },
      };
      const last = messages.at(-1);
      if (last?.role === "assistant") last.tool_calls = [...(last.tool_calls ?? []), call];
      else messages.push({ role: "assistant", content: null, tool_calls: [call] });
    } else if (item.type === "function_call_output")
      messages.push({ role: "tool", tool_call_id: item.call_id, content: textOf(item.output) });
    else if (item.type !== "reasoning") {
      const role = item.role === "developer" ? "system" : item.role;
      messages.push({ role, content: textOf(item.content) });
    }
  }
  return messages;
}

function textOf(given: z.infer<typeof content>): string {
  return typeof given === "string" ? given : given.map(({ text }) => text).join("");
}
