/** `planish chat`: a conversation in the terminal, or with lines from a pipe. */

import { createInterface, type Interface } from "node:readline";
import type { Command } from "commander";
import { resolveModel } from "../../checkpoint/hub.js";
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { formatDuration } from "../../common/format.js";
import { NO_TEMPLATE } from "../../engine/chat-template.js";
import { Engine } from "../../engine/engine.js";
import { EngineError } from "../../engine/request.js";
import { perform, type CommandContext } from "../action.js";
import { ChatSession, type Answer } from "../chat-session.js";
import { decimal, integer } from "../flags.js";
import type { Reporter } from "../output.js";
import { addExamples } from "../program.js";
import {
  chatTemplateOption,
  dequantizeOption,
  engineOptions,
  kvBitsOption,
  kvMemoryOption,
  lookUpOption,
  simulatedOption,
  type EngineFlags,
} from "./engine-flags.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";

interface ChatFlags extends DeviceFlags, EngineFlags {
  readonly system?: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly seed?: number;
}

const HELP = `  /reset   forget the conversation
  /help    this help
  /exit    leave (also Ctrl-D)
  Ctrl-C stops an answer; twice leaves. A line that ends in \\ goes on in the next.`;

export function register(program: Command): void {
  const command = program
    .command("chat")
    .summary("talk to a model in the terminal")
    .description(
      "Talks to a model: each line is a message, and the answer is printed as it comes. In a conversation: " +
        "/reset, /help, /exit; Ctrl-C stops an answer, twice leaves. Lines may come from a pipe.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .option("--system <text>", "system message")
    .option(
      "--max-tokens <n>",
      "tokens of an answer at most",
      integer({ min: 1, max: LIMITS.tokens }),
      1024,
    )
    .option(
      "--temperature <t>",
      "0 always takes the most likely token",
      decimal({ min: 0, max: 100 }),
      0.7,
    )
    .option(
      "--top-p <p>",
      "sample from the likeliest tokens that share this probability",
      decimal({ min: 1e-6, max: 1 }),
      0.95,
    )
    .option(
      "--top-k <n>",
      "sample from so many likeliest tokens",
      integer({ min: 1, max: LIMITS.samples }),
    )
    .option(
      "--min-p <p>",
      "leave out tokens less likely than this share of the likeliest",
      decimal({ min: 0, max: 1 }),
    )
    .option(
      "--repetition-penalty <r>",
      "above 1 makes repetitions less likely",
      decimal({ min: 0.01, max: 100 }),
    )
    .option(
      "--seed <n>",
      "the same seed gives the same answers to the same messages (default: a new one each time)",
      integer({ min: 0, max: 2 ** 32 - 1 }),
    )
    .addOption(simulatedOption())
    .addOption(dequantizeOption())
    .addOption(kvBitsOption())
    .addOption(kvMemoryOption())
    .addOption(chatTemplateOption())
    .addOption(lookUpOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<ChatFlags, [string]>(async (context, flags, name) => {
        const { reporter, signal } = context;
        const path = await resolveModel(name, { progress: reporter, signal });
        // One conversation: nobody else is to be served beside it.
        const options = { ...engineOptions(flags, reporter), maxRunning: 1 };
        await using engine = await Engine.load(path, options);
        if (!engine.info.hasChatTemplate) throw new PlanishError(`${name}: ${NO_TEMPLATE}`);
        const { maxTokens, temperature, topP, topK, minP, repetitionPenalty, seed } = flags;
        const settings = { maxTokens, temperature, topP, topK, minP, repetitionPenalty, seed };
        const session = new ChatSession(engine, settings, flags.system);
        reporter.info(`${name}: ${engine.info.description}`);
        await new Conversation(session, context).run();
        reporter.result({ model: name, messages: session.messages }, () => "");
      }),
    );
  addExamples(command, [
    "planish chat smollm2-w4a4kv4",
    'planish chat smollm2-135m-instruct --system "Answer in one sentence." --temperature 0.2',
  ]);
}

/** Reads lines and prints answers. */
class Conversation {
  private readonly reporter: Reporter;
  private readonly terminal: boolean;
  private readonly lines: Interface;
  /** Ends the answer under way. */
  private answer: AbortController | undefined;
  /** Whether the next Ctrl-C leaves. */
  private armed = false;

  constructor(
    private readonly session: ChatSession,
    private readonly context: CommandContext,
  ) {
    this.reporter = context.reporter;
    this.terminal = process.stdin.isTTY && process.stdout.isTTY && !context.reporter.json;
    this.lines = createInterface({
      input: process.stdin,
      output: this.terminal ? process.stdout : undefined,
      terminal: this.terminal,
      prompt: "> ",
    });
  }

  async run(): Promise<void> {
    const { lines, terminal } = this;
    // At a terminal readline takes Ctrl-C; elsewhere it comes as a signal.
    lines.on("SIGINT", () => this.interrupt());
    const stop = (): void => {
      this.answer?.abort();
      lines.close();
    };
    this.context.signal.addEventListener("abort", stop, { once: true });
    if (terminal) this.reporter.info("/help says what there is");
    let message = "";
    try {
      if (terminal) lines.prompt();
      for await (const line of lines) {
        this.armed = false;
        if (line.endsWith("\\")) message += `${line.slice(0, -1)}\n`;
        else {
          message += line;
          if (!(await this.take(message.trim()))) return;
          message = "";
        }
        if (this.context.signal.aborted) return;
        if (terminal) lines.prompt();
      }
    } finally {
      this.context.signal.removeEventListener("abort", stop);
      lines.close();
    }
  }

  /** Does what a message says; false: the conversation is over. */
  private async take(message: string): Promise<boolean> {
    switch (message) {
      case "":
        return true;
      case "/exit":
        return false;
      case "/help":
        this.reporter.info(HELP);
        return true;
      case "/reset":
        this.session.reset();
        this.reporter.info("the conversation starts anew");
        return true;
    }
    if (/^\/\w+$/.test(message)) {
      this.reporter.info(`there is no ${message}; /help says what there is`);
      return true;
    }
    this.answer = new AbortController();
    try {
      const answer = await this.session.ask(
        message,
        (piece) => this.reporter.stream(piece),
        this.answer.signal,
      );
      this.reporter.stream("\n");
      this.reporter.info(rates(answer));
    } catch (error) {
      // A refused message (too long, say) does not end the conversation; an engine that has failed does.
      const refused = error instanceof EngineError && ["invalid", "context"].includes(error.code);
      if (!refused) throw error;
      this.reporter.warn(`${error.message}; /reset starts anew`);
    } finally {
      this.answer = undefined;
    }
    return true;
  }

  private interrupt(): void {
    if (this.answer) {
      this.answer.abort();
      this.armed = true;
    } else if (this.armed) {
      this.lines.close();
    } else {
      this.armed = true;
      this.reporter.info("\npress Ctrl-C again to leave");
      this.lines.prompt();
    }
  }
}

function rates(answer: Answer): string {
  const { promptTokens, cachedTokens, tokens, firstSeconds, restSeconds, finishReason } = answer;
  const rate = tokens > 1 ? `, ${((tokens - 1) / restSeconds).toFixed(1)} tokens/s` : "";
  const known = cachedTokens > 0 ? ` (${cachedTokens} known)` : "";
  const why = finishReason === "stop" ? "" : `, ${REASONS[finishReason]}`;
  return `[${tokens} tokens${rate}; ${promptTokens} tokens before${known} in ${formatDuration(firstSeconds)}${why}]`;
}

const REASONS = {
  length: "cut off at --max-tokens",
  context: "cut off: the context is full, /reset starts anew",
  stopped: "stopped",
};
