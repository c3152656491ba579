/**
 * From what a request says to the prompt's token ids. Rendering a chat template and cutting text into tokens is work
 * that a client chooses the size of, so the engine's thread does it for short texts only (see prompt-pool.ts).
 */
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { ChatTemplate, NO_TEMPLATE } from "./chat-template.js";
import { fillInTokens, type FillInTokens } from "./fill-in.js";
import { EngineError, type ChatRequest, type TokenizeRequest } from "./request.js";
import { hasCalls, nativeConversation, plainConversation } from "./tools/conversation.js";
import { GENERIC_FORM, toolFormOf, type ToolForm } from "./tools/syntax.js";

/** The part of a request that its prompt is made of. */
export type Prompt = TokenizeRequest["prompt"];

type PromptSource =
  | ({ readonly kind: "generate" } & Pick<Prompt & { kind: "generate" }, "prompt" | "suffix">)
  | ({ readonly kind: "chat" } & Pick<
      ChatRequest,
      "messages" | "tools" | "toolChoice" | "continueFinal"
    >);

/** What of a request goes to whoever writes its prompt down. */
export function promptOf(request: PromptSource): Prompt {
  if (request.kind === "generate")
    return { kind: "generate", prompt: request.prompt, suffix: request.suffix };
  const { messages, tools, toolChoice, continueFinal } = request;
  return { kind: "chat", messages, tools, toolChoice, continueFinal };
}

/** Characters of text that are turned into tokens in about a millisecond. */
const QUICK_CHARACTERS = 1000;

interface Templates {
  readonly plain: ChatTemplate;
  /** For conversations with tools. */
  readonly withTools: ChatTemplate;
  readonly form: ToolForm;
}

export class PromptWriter {
  private readonly templates: Templates | undefined;
  private readonly longestToken: number;
  private readonly fillIn: FillInTokens | undefined;

  /**
   * @param chatTemplate Jinja source that takes the place of the model's own
   * @throws EngineError when the chat template is none
   */
  constructor(
    private readonly tokenizer: Tokenizer,
    chatTemplate: string | undefined,
  ) {
    const source = chatTemplate ?? tokenizer.chatTemplate;
    if (source !== undefined) {
      const plain = new ChatTemplate(source, tokenizer.specialTokens);
      const own = chatTemplate === undefined ? tokenizer.toolTemplate : undefined;
      this.templates = {
        plain,
        withTools: own === undefined ? plain : new ChatTemplate(own, tokenizer.specialTokens),
        form: toolFormOf(own ?? source) ?? GENERIC_FORM,
      };
    }
    this.longestToken = longestSpelling(tokenizer);
    this.fillIn = fillInTokens(tokenizer);
  }

  /** Whether a prompt may have a suffix. */
  get fillsIn(): boolean {
    return this.fillIn !== undefined;
  }

  get hasTemplate(): boolean {
    return this.templates !== undefined;
  }

  /** How the model writes calls of functions down; undefined without a chat template. */
  get toolForm(): ToolForm | undefined {
    return this.templates?.form;
  }

  /** Whether a prompt takes no time worth speaking of. A template may loop, however short the messages are. */
  isQuick(prompt: Prompt): boolean {
    if (prompt.kind === "chat") return !this.hasTemplate;
    const { prompt: text, suffix = "" } = prompt;
    return (typeof text === "string" ? text.length : 0) + suffix.length <= QUICK_CHARACTERS;
  }

  /** @throws EngineError when the template refuses the messages, or the text is too long for so many tokens. */
  write(prompt: Prompt, contextTokens: number): readonly number[] {
    const isChat = prompt.kind === "chat";
    const text = isChat ? this.render(prompt) : prompt.prompt;
    const suffix = isChat ? undefined : prompt.suffix;
    const length = text.length + (suffix?.length ?? 0);
    // Spares the tokenizer what cannot fit however it is cut.
    if (length > contextTokens * this.longestToken)
      throw new EngineError(
        `the prompt has ${length} ${typeof text === "string" ? "characters" : "tokens"}, too many for the context of ${contextTokens} tokens; shorten it`,
        "context",
      );
    if (suffix !== undefined) return this.fill(text, suffix);
    if (typeof text !== "string") return text;
    const addSpecialTokens = isChat ? false : (prompt.addSpecialTokens ?? true);
    return this.tokenizer.encode(text, { addSpecialTokens });
  }

  private fill(prefix: string | readonly number[], suffix: string): readonly number[] {
    if (!this.fillIn)
      throw new EngineError(
        "suffix: the model's tokenizer has no tokens for filling in; leave it out, or take a model that was taught it",
        "invalid",
      );
    const plain = { addSpecialTokens: false };
    const before = typeof prefix === "string" ? this.tokenizer.encode(prefix, plain) : prefix;
    return this.fillIn(before, this.tokenizer.encode(suffix, plain));
  }

  private render(prompt: Prompt & { kind: "chat" }): string {
    if (!this.templates) throw new EngineError(NO_TEMPLATE, "invalid");
    const { messages, toolChoice, continueFinal } = prompt;
    const last = messages[messages.length - 1];
    if (continueFinal && (last.role !== "assistant" || last.tool_calls))
      throw new EngineError(
        "continueFinal: the last message is not a text of the assistant's",
        "invalid",
      );
    // A model that is not to call is not told that it could.
    const given = toolChoice === "none" || prompt.tools?.length === 0 ? undefined : prompt.tools;
    const { plain, withTools, form } = this.templates;
    if (given === undefined && !hasCalls(messages))
      return plain.render(messages, { continueFinal });
    if (form.isNative) {
      const { messages: written, tools } = nativeConversation(messages, given, form);
      return withTools.render(written, { tools, continueFinal });
    }
    const render = (inSystem: boolean): string => {
      const conversation = plainConversation(messages, given, form, inSystem);
      return plain.render(conversation.messages, { continueFinal });
    };
    // Some templates refuse or leave out what the system says.
    try {
      const text = render(true);
      if (given === undefined || text.includes(given[0].function.name)) return text;
    } catch (error) {
      if (!(error instanceof EngineError) || given === undefined) throw error;
    }
    return render(false);
  }
}

/** Characters of the longest token: no text of n tokens is longer than n times this. */
function longestSpelling(tokenizer: Tokenizer): number {
  let longest = 1;
  for (let id = 0; id < tokenizer.vocabSize; id++)
    longest = Math.max(longest, tokenizer.idToToken(id)?.length ?? 0);
  return longest;
}
