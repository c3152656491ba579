/**
 * From what a request says to the prompt's token ids. Rendering a chat template and cutting text into tokens is work
 * that a client chooses the size of, so the engine's thread does it for short texts only (see prompt-pool.ts).
 */
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { ChatTemplate, NO_TEMPLATE } from "./chat-template.js";
import { EngineError, type ChatRequest, type GenerateRequest } from "./request.js";

/** The part of a request that its prompt is made of. */
export type Prompt =
  | ({ readonly kind: "generate" } & Pick<GenerateRequest, "prompt">)
  | ({ readonly kind: "chat" } & Pick<ChatRequest, "messages" | "tools">);

/** Characters of text that are turned into tokens in about a millisecond. */
const QUICK_CHARACTERS = 1000;

export class PromptWriter {
  private readonly template: ChatTemplate | undefined;
  private readonly longestToken: number;

  /**
   * @param chatTemplate Jinja source that takes the place of the model's own
   * @throws EngineError when the chat template is none
   */
  constructor(
    private readonly tokenizer: Tokenizer,
    chatTemplate: string | undefined,
  ) {
    const source = chatTemplate ?? tokenizer.chatTemplate;
    this.template =
      source === undefined ? undefined : new ChatTemplate(source, tokenizer.specialTokens);
    this.longestToken = longestSpelling(tokenizer);
  }

  get hasTemplate(): boolean {
    return this.template !== undefined;
  }

  /** Whether a prompt takes no time worth speaking of. A template may loop, however short the messages are. */
  isQuick(prompt: Prompt): boolean {
    if (prompt.kind === "chat") return !this.hasTemplate;
    return typeof prompt.prompt !== "string" || prompt.prompt.length <= QUICK_CHARACTERS;
  }

  /** @throws EngineError when the template refuses the messages, or the text is too long for so many tokens. */
  write(prompt: Prompt, contextTokens: number): readonly number[] {
    const isChat = prompt.kind === "chat";
    const text = isChat ? this.render(prompt) : prompt.prompt;
    // Spares the tokenizer what cannot fit however it is cut.
    if (text.length > contextTokens * this.longestToken)
      throw new EngineError(
        `the prompt has ${text.length} ${typeof text === "string" ? "characters" : "tokens"}, too many for the context of ${contextTokens} tokens; shorten it`,
        "context",
      );
    if (typeof text !== "string") return text;
    return this.tokenizer.encode(text, { addSpecialTokens: !isChat });
  }

  private render({ messages, tools }: Prompt & { kind: "chat" }): string {
    if (!this.template) throw new EngineError(NO_TEMPLATE, "invalid");
    return this.template.render(messages, { tools });
  }
}

/** Characters of the longest token: no text of n tokens is longer than n times this. */
function longestSpelling(tokenizer: Tokenizer): number {
  let longest = 1;
  for (let id = 0; id < tokenizer.vocabSize; id++)
    longest = Math.max(longest, tokenizer.idToToken(id)?.length ?? 0);
  return longest;
}
