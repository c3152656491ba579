/** A conversation with an engine: the turns so far, and the next answer. No terminal in it. */

import type { Engine } from "../engine/engine.js";
import type { ChatMessage, ChatRequest, FinishReason } from "../engine/request.js";

export type ChatSettings = Omit<ChatRequest, "messages" | "signal">;

export interface Answer {
  readonly text: string;
  readonly promptTokens: number;
  /** Of them, found in the prefix cache: what did not change since the last turn. */
  readonly cachedTokens: number;
  readonly tokens: number;
  readonly finishReason: FinishReason | "stopped";
  /** Seconds until the first token, and from there to the last. */
  readonly firstSeconds: number;
  readonly restSeconds: number;
}

export class ChatSession {
  private turns: ChatMessage[] = [];

  constructor(
    private readonly engine: Engine,
    private readonly settings: ChatSettings,
    private readonly system: string | undefined,
  ) {}

  /** The system message, if there is one, and all turns. */
  get messages(): readonly ChatMessage[] {
    const { system } = this;
    return system === undefined ? this.turns : [{ role: "system", content: system }, ...this.turns];
  }

  reset(): void {
    this.turns = [];
  }

  /**
   * Answers a message, giving out the text as it comes. When the signal stops the answer, what there is of it stays in
   * the conversation.
   * @throws EngineError when the request is refused; the conversation is then as before.
   */
  async ask(
    content: string,
    onText: (piece: string) => void,
    signal: AbortSignal,
  ): Promise<Answer> {
    const messages = [...this.messages, { role: "user", content }];
    let text = "";
    let tokens = 0;
    let promptTokens = 0;
    let cachedTokens = 0;
    let finishReason: Answer["finishReason"] = "stopped";
    const started = performance.now();
    let firstAt = started;
    try {
      for await (const event of this.engine.chat({ ...this.settings, messages, signal })) {
        if (event.type === "accepted") promptTokens = event.promptTokens;
        else if (event.type === "finish") finishReason = event.reason;
        else if (event.type === "end") cachedTokens = event.usage.cachedTokens;
        else {
          if (tokens === 0) firstAt = performance.now();
          tokens += 1;
          text += event.text;
          onText(event.text);
        }
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    if (text !== "" || finishReason !== "stopped")
      this.turns.push({ role: "user", content }, { role: "assistant", content: text });
    return {
      text,
      promptTokens,
      cachedTokens,
      tokens,
      finishReason,
      firstSeconds: (firstAt - started) / 1000,
      restSeconds: (performance.now() - firstAt) / 1000,
    };
  }
}
