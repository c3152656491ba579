/** `planish compare`: several methods on one model, one table. */
import { LIMITS } from "../../common/bounds.js";
import type { Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { outputPlace } from "../../common/place.js";
import { parseTasks, readTask, type TaskData } from "../../evaluate/tasks/index.js";
import { parseScheme, SCHEME_FORM } from "../../backend/contract/scheme.js";
import { compare } from "../../experiments/compare/compare.js";
import { comparisonText } from "../../experiments/compare/table.js";
import { parseWays, wayNames } from "../../experiments/compare/ways.js";
import { perform } from "../action.js";
import { integer, nameList } from "../flags.js";
import { addExamples } from "../program.js";
import { addQueueFlags, remoteBlocks, type QueueFlags } from "./queue-flags.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface CompareFlags extends DeviceFlags, QueueFlags {
  readonly methods: string[];
  readonly scheme: string;
  readonly out: string;
  readonly preset?: string;
  readonly calibration?: string;
  readonly samples?: number;
  readonly seqLen?: number;
  readonly epochs?: number;
  readonly seed: number;
  readonly ppl?: string;
  readonly windows?: number;
  readonly windowTokens?: number;
  readonly tasks?: string;
  readonly limit?: number;
  readonly speed?: boolean;
  readonly resume?: boolean;
}

const DEFAULT_METHODS = [
  "fp16",
  "rtn",
  "smoothquant",
  "gptq",
  "quarot",
  "spinquant",
  "flatquant",
  "flattenquant",
];
const count = integer({ min: 1, max: LIMITS.samples });

export function register(program: Command): void {
  const command = program
    .command("compare")
    .summary("quantize a model in several ways and score them side by side")
    .description(
      "Quantizes a model by several methods and prints one table: perplexity, divergence from the full-precision model, " +
        "zero-shot tasks where asked for, size and time. Finished work is kept in --out: --resume goes on with it, and may " +
        "name further methods.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .requiredOption("--out <dir>", "directory for artifacts and results")
    .option(
      "--methods <list>",
      `some of ${wayNames().join(", ")}; name:preset picks a preset, name+gptq rounds weights by GPTQ`,
      nameList,
      DEFAULT_METHODS,
    )
    .option("--scheme <scheme>", SCHEME_FORM, "w4a4kv4")
    .option("--preset <name>", "for the methods that have one of this name; others take their own")
    .option("--calibration <text>", "wikipedia (embedded) or a text file", "wikipedia")
    .option("--samples <n>", "windows of calibration text, for all methods alike", count)
    .option(
      "--seq-len <n>",
      "tokens per calibration window",
      integer({ min: 2, max: LIMITS.tokens }),
    )
    .option("--epochs <n>", "passes over them, for methods that learn", count)
    .addOption(seedOption())
    .option("--ppl <text>", "where perplexity is measured: wikitext2 (embedded) or a file")
    .option("--windows <n>", "score only the first n windows of it", count)
    .option("--window-tokens <n>", "tokens per window", integer({ min: 2, max: LIMITS.tokens }))
    .option("--tasks <list>", "zero-shot tasks as in `planish eval --tasks`, or all")
    .option("--limit <n>", "score only the first n items of each task", count)
    .addOption(deviceOption())
    .addOption(threadsOption())
    .option("--speed", "also measure prefill and decode in the engine, beside the model as it is")
    .option("--resume", "go on with an interrupted comparison, or add methods to one")
    .action(
      perform<CompareFlags, [string]>(async ({ reporter, signal }, flags, name) => {
        // Refused before anything is read: names and schemes that do not exist.
        parseWays(flags.methods, flags.preset);
        parseScheme(flags.scheme);
        const tasks: TaskData[] = [];
        for (const source of flags.tasks === undefined ? [] : parseTasks(flags.tasks))
          tasks.push(await readTask(source, { limit: flags.limit }));
        const remote = remoteBlocks(flags);
        // Before a model is fetched.
        outputPlace(flags.out, { kind: "directory" });
        await remote?.ready();
        const model = await resolveModel(name, { progress: reporter, signal });
        using backend = openBackend({ ...flags, progress: reporter });
        reporter.debug(backend.description);
        const comparison = await compare({
          ...flags,
          backend,
          model,
          remote,
          modelName: modelTitle(name),
          text: flags.ppl,
          tasks,
          progress: reporter,
          signal,
        });
        reporter.result(comparison, () => comparisonText(comparison));
      }),
    );
  addQueueFlags(command);
  addExamples(command, [
    "planish compare models/tiny-llama --out tiny-comparison",
    "planish compare models/tiny-llama --methods fp16,rtn,flatquant:fast,flatquant:paper --out tiny-flatquant",
    "planish compare smollm2-135m-instruct --methods fp16,rtn,flatquant --tasks all --limit 100 --windows 10 --out smollm2",
    "planish compare smollm2-135m-instruct --methods fp16,rtn,flatquant,quarot --tasks all --limit 100 --windows 10 --out smollm2 --resume",
  ]);
}

/** A path's last part, or the short name as it is. */
function modelTitle(name: string): string {
  return name.replace(/\/+$/, "").replace(/^.*\//, "");
}
