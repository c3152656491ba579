/** `planish generate`: continues a prompt, printing the text as it comes. */

import type { Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { formatDuration } from "../../common/format.js";
import { generate, type GenerateResult } from "../../engine/generate.js";
import { loadModel } from "../../quantize/load.js";
import { perform } from "../action.js";
import { decimal, integer } from "../flags.js";
import { addExamples } from "../program.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface GenerateFlags extends DeviceFlags {
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
    .description(
      "Continues a prompt, printing the text as it comes. An artifact runs with simulated arithmetic.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .requiredOption("--prompt <text>", "what to continue")
    .option("--max-tokens <n>", "new tokens at most", integer({ min: 1 }), 128)
    .option(
      "--temperature <t>",
      "0 takes the likeliest token always",
      decimal({ min: 0, max: 100 }),
      0,
    )
    .option(
      "--top-p <p>",
      "sample from the likeliest tokens that share this probability",
      decimal({ min: 1e-6, max: 1 }),
      1,
    )
    .addOption(seedOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<GenerateFlags, [string]>(async ({ reporter, signal }, flags, name) => {
        const path = await resolveModel(name, { progress: reporter, signal });
        using backend = openBackend({ ...flags, progress: reporter });
        using loaded = loadModel(backend, path);
        reporter.stream(flags.prompt);
        const result = await generate(loaded.model, loadTokenizer(loaded.checkpoint), {
          ...flags,
          onText: (piece) => reporter.stream(piece),
          signal,
        });
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

function rates(result: GenerateResult): string {
  const { promptTokens, tokens, prefillSeconds, decodeSeconds, finishReason } = result;
  const decoded = Math.max(0, tokens.length - 1);
  const rate = decoded > 0 ? `, ${(decoded / decodeSeconds).toFixed(1)} tokens/s after` : "";
  const prefill = `${promptTokens} prompt tokens in ${formatDuration(prefillSeconds)}`;
  return `${prefill}, ${tokens.length} new tokens (${finishReason})${rate}`;
}
