/**
 * Chat templates: how a model wants turns written down, as Jinja source that comes with its tokenizer. Rendered with
 * the variables that Hugging Face transformers gives (`messages`, `tools`, `documents`, `add_generation_prompt`, special
 * tokens), and held to its texts by vectors (test/engine/chat-template-conformance.test.ts).
 */
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { oneLine } from "../common/bounds.js";
import { EngineError, type ChatMessage } from "./request.js";
import { JinjaTemplate } from "./template/interpreter.js";

export interface RenderOptions {
  readonly tools?: readonly Readonly<Record<string, unknown>>[];
  /** The last message is one that is being written: the text ends with it, not with the beginning of another. */
  readonly continueFinal?: boolean;
}

/** Stands for the content of a message that is continued, since templates may change what they write behind it. */
const CONTINUED = "\ue000continued\ue000";

export class ChatTemplate {
  private readonly template: JinjaTemplate;

  /** @throws EngineError when the source is no template that can be read. */
  constructor(
    source: string,
    private readonly specialTokens: Tokenizer["specialTokens"],
  ) {
    try {
      this.template = new JinjaTemplate(source);
    } catch (cause) {
      throw new EngineError(
        `the chat template cannot be read: ${messageOf(cause)}; give another with chatTemplate (--chat-template FILE)`,
        "invalid",
        { cause },
      );
    }
  }

  /**
   * The text that the model continues with its answer. Templates write special tokens themselves.
   * @throws EngineError when the template refuses the messages (roles in an order that it does not know, say).
   */
  render(messages: readonly ChatMessage[], { tools, continueFinal }: RenderOptions = {}): string {
    if (!continueFinal) return this.write(messages, tools, true);
    const last = messages[messages.length - 1];
    const content = last.content ?? "";
    const marked = [...messages.slice(0, -1), { ...last, content: CONTINUED }];
    const text = this.write(marked, tools, false);
    const end = text.lastIndexOf(CONTINUED);
    if (end < 0)
      throw new EngineError(
        "continueFinal: the model's chat template does not write the last message down as it is",
        "invalid",
      );
    return text.slice(0, end) + content;
  }

  private write(
    messages: readonly ChatMessage[],
    tools: RenderOptions["tools"],
    generates: boolean,
  ): string {
    try {
      return this.template.render({
        messages: messages.map((message) => ({ ...message, content: message.content ?? "" })),
        tools: tools ?? null,
        documents: null,
        add_generation_prompt: generates,
        ...this.specialTokens,
      });
    } catch (cause) {
      throw new EngineError(
        `the model's chat template refuses these messages: ${messageOf(cause)}`,
        "invalid",
        { cause },
      );
    }
  }
}

export const NO_TEMPLATE =
  "the model has no chat template (it is a base model, or its tokenizer_config.json is not the original one); " +
  "give one with chatTemplate (--chat-template FILE), or use plain completions";

/** Characters of a template's own message that are passed on: it may repeat what a client wrote. */
const LONGEST_MESSAGE = 300;

function messageOf(error: unknown): string {
  return oneLine(error instanceof Error ? error.message : String(error), LONGEST_MESSAGE);
}
