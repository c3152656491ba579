/**
 * Conversations with tools as chat templates want them: arguments as objects, names beside results, ids as the template
 * has them; and for templates that know nothing of tools, everything in plain messages.
 */
import { createHash } from "node:crypto";
import { oneLine } from "../../common/bounds.js";
import { EngineError, type ChatMessage, type Tool, type ToolCall } from "../request.js";
import type { CallSyntax, ToolForm } from "./syntax.js";

/** What a template is given. */
export interface Conversation {
  readonly messages: readonly ChatMessage[];
  readonly tools: readonly Tool[] | undefined;
}

/**
 * Messages as a template's own form has them.
 * @throws EngineError for arguments that are no JSON.
 */
export function nativeConversation(
  messages: readonly ChatMessage[],
  tools: readonly Tool[] | undefined,
  form: ToolForm | undefined,
): Conversation {
  const names = new Map<unknown, string>();
  const idOf = (id: string): string => (form?.shortIds ? shortId(id) : id);
  const written = messages.map((message, at) => {
    const { tool_calls: calls, tool_call_id: id } = message;
    if (calls) {
      for (const call of calls) names.set(call.id, call.function.name);
      return {
        ...message,
        tool_calls: calls.map((call, i) => ({
          ...call,
          id: idOf(call.id),
          function: { ...call.function, arguments: argumentsOf(call, at, i) },
        })),
      } as ChatMessage;
    }
    if (typeof id !== "string") return message;
    const name = message["name"] ?? names.get(id);
    return { ...message, ...(name === undefined ? {} : { name }), tool_call_id: idOf(id) };
  });
  return { messages: written, tools };
}

/** Whether messages have what only templates with tools know. */
export function hasCalls(messages: readonly ChatMessage[]): boolean {
  return messages.some(({ role, tool_calls: calls }) => role === "tool" || calls);
}

/**
 * The same in messages of system, user and assistant. `inSystem`: tools are told in the system message, otherwise in the
 * first of the user's, for templates that have no system.
 */
export function plainConversation(
  messages: readonly ChatMessage[],
  tools: readonly Tool[] | undefined,
  { syntax }: ToolForm,
  inSystem: boolean,
): Conversation {
  const written: { role: string; content: string; isResult?: boolean }[] = [];
  messages.forEach(({ role, content, tool_calls: calls }, at) => {
    const text = content ?? "";
    const last = written.at(-1);
    if (role === "tool") {
      const result = `<tool_response>\n${text}\n</tool_response>`;
      // Turns must alternate, so that results of one turn's calls are one message.
      if (last?.isResult) last.content += `\n${result}`;
      else written.push({ role: "user", content: result, isResult: true });
    } else if (calls && calls.length > 0) {
      const spoken = [...(text === "" ? [] : [text]), writeCalls(syntax, calls, at)];
      written.push({ role, content: spoken.join("\n") });
    } else if (role === "user" && last?.isResult) last.content += `\n${text}`;
    else written.push({ role, content: text });
  });
  if (tools !== undefined) tell(written, introduction(syntax, tools), inSystem);
  return {
    messages: written.map(({ role, content }) => ({ role, content })),
    tools: undefined,
  };
}

function tell(
  messages: { role: string; content: string }[],
  text: string,
  inSystem: boolean,
): void {
  const role = inSystem ? "system" : "user";
  const first = inSystem ? messages[0] : messages.find((message) => message.role === "user");
  if (first?.role === role)
    first.content = inSystem ? `${first.content}\n\n${text}` : `${text}\n\n${first.content}`;
  else messages.unshift({ role, content: text });
}

/** How calls are written, for a model that was not taught it. */
function introduction(syntax: CallSyntax, tools: readonly Tool[]): string {
  return (
    `You can call functions. Here they are, with JSON Schemas of their arguments:\n<tools>\n` +
    `${tools.map((tool) => JSON.stringify(tool)).join("\n")}\n</tools>\n` +
    `To call a function, end your answer with:\n${writeCall(syntax, "NAME", '{"ARGUMENT": VALUE}')}\n` +
    "Each result then comes between <tool_response> and </tool_response>."
  );
}

function writeCalls(syntax: CallSyntax, calls: readonly ToolCall[], at: number): string {
  return calls
    .map((call, i) =>
      writeCall(syntax, call.function.name, JSON.stringify(argumentsOf(call, at, i))),
    )
    .join(syntax.between ?? "\n");
}

function writeCall({ open, middle, close }: CallSyntax, name: string, json: string): string {
  return `${open}${name}${middle}${json}${close}`;
}

/** OpenAI's API has arguments as text, templates as what the text says. */
function argumentsOf({ function: own }: ToolCall, message: number, call: number): unknown {
  const { arguments: given } = own;
  if (typeof given !== "string") return given;
  // A function without parameters may have been called without arguments.
  if (given.trim() === "") return {};
  try {
    return JSON.parse(given) as unknown;
  } catch (cause) {
    throw new EngineError(
      `messages.${message}.tool_calls.${call}.function.arguments: they are no JSON (${oneLine((cause as Error).message, 100)})`,
      "invalid",
      { cause },
    );
  }
}

/** Nine letters or digits that stand for an id, always the same. */
function shortId(id: string): string {
  if (/^[A-Za-z0-9]{9}$/.test(id)) return id;
  return createHash("sha256").update(id).digest("hex").slice(0, 9);
}
