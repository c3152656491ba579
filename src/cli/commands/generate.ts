/** `planish generate`: continues a prompt, printing the text as it comes. */

import type { Command } from "commander";
import { resolveModel } from "../../checkpoint/hub.js";
import { LIMITS } from "../../common/bounds.js";
import { formatDuration } from "../../common/format.js";
import { Engine } from "../../engine/engine.js";
import type { FinishReason } from "../../engine/request.js";
import { perform, type CommandContext } from "../action.js";
import { decimal, integer } from "../flags.js";
import { addExamples } from "../program.js";
import {
  dequantizeOption,
  engineOptions,
  kvBitsOption,
  simulatedOption,
  type EngineFlags,
} from "./engine-flags.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface GenerateFlags extends DeviceFlags, EngineFlags {
  readonly prompt: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly seed: number;
}

export function register(program: Command): void {
  const command = program
    .command("generate")
    .summary("continue a prompt")
    .description("Continues a prompt, printing the text as it comes.")
    .argument("<model>", MODEL_ARGUMENT)
    .requiredOption("--prompt <text>", "what to continue")
    .option("--max-tokens <n>", "new tokens at most", integer({ min: 1, max: LIMITS.tokens }), 128)
    .option(
      "--temperature <t>",
      "0 always takes the most likely token",
      decimal({ min: 0, max: 100 }),
      0,
    )
    .option(
      "--top-p <p>",
      "sample from the likeliest tokens that share this probability",
      decimal({ min: 1e-6, max: 1 }),
      1,
    )
    .addOption(simulatedOption())
    .addOption(dequantizeOption())
    .addOption(kvBitsOption())
    .addOption(seedOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<GenerateFlags, [string]>(async (context, flags, name) => {
        const { reporter, signal } = context;
        const path = await resolveModel(name, { progress: reporter, signal });
        await using engine = await Engine.load(path, engineOptions(flags, reporter));
        reporter.stream(flags.prompt);
        const result = await generate(context, engine, flags);
        // The text is out already; what is left to print is the end of its line.
        reporter.result({ model: name, prompt: flags.prompt, ...result }, () => "");
        reporter.info(rates(result));
      }),
    );
  addExamples(command, [
    'planish generate models/tiny-llama --prompt "The ship"',
    'planish generate smollm2-w4a4kv4 --prompt "Iron is" --temperature 0.8 --top-p 0.95 --seed 1',
  ]);
}

interface Result {
  /** The continuation, without the prompt. */
  readonly text: string;
  readonly tokens: readonly number[];
  readonly promptTokens: number;
  readonly finishReason: FinishReason | "interrupted";
  /** Seconds for the prompt, and for all tokens after the first. */
  readonly prefillSeconds: number;
  readonly decodeSeconds: number;
}

/** Prints the continuation as it comes; an interruption keeps what there is. */
async function generate(
  { reporter, signal }: CommandContext,
  engine: Engine,
  { prompt, maxTokens, temperature, topP, seed }: GenerateFlags,
): Promise<Result> {
  const tokens: number[] = [];
  let text = "";
  let promptTokens = 0;
  let finishReason: Result["finishReason"] = "interrupted";
  const started = performance.now();
  let firstAt = started;
  try {
    const request = { prompt, maxTokens, temperature, topP, seed, signal };
    for await (const event of engine.generate(request)) {
      if (event.type === "accepted") promptTokens = event.promptTokens;
      if (event.type === "finish") finishReason = event.reason;
      if (event.type !== "token") continue;
      if (tokens.length === 0) firstAt = performance.now();
      tokens.push(event.token);
      text += event.text;
      reporter.stream(event.text);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  return {
    text,
    tokens,
    promptTokens,
    finishReason,
    prefillSeconds: (firstAt - started) / 1000,
    decodeSeconds: (performance.now() - firstAt) / 1000,
  };
}

function rates(result: Result): string {
  const { promptTokens, tokens, prefillSeconds, decodeSeconds, finishReason } = result;
  const decoded = Math.max(0, tokens.length - 1);
  const rate = decoded > 0 ? `, ${(decoded / decodeSeconds).toFixed(1)} tokens/s after` : "";
  const prefill = `${promptTokens} prompt tokens in ${formatDuration(prefillSeconds)}`;
  return `${prefill}, ${tokens.length} new tokens (${finishReason})${rate}`;
}
