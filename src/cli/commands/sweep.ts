/** `planish sweep`: a method over a grid of recipe fields, one table and trade-off curves. */
import { SCHEME_FORM } from "../../backend/contract/scheme.js";
import { LIMITS } from "../../common/bounds.js";
import { InvalidArgumentError, Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { outputPlace } from "../../common/place.js";
import { METHODS } from "../../quantize/methods/index.js";
import { parseGridField, type GridField } from "../../experiments/sweep/grid.js";
import { sweep } from "../../experiments/sweep/sweep.js";
import { sweepText } from "../../experiments/sweep/output.js";
import { perform } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import { addQueueFlags, remoteBlocks, type QueueFlags } from "./queue-flags.js";
import { readRecipe } from "./recipe-file.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface SweepFlags extends DeviceFlags, QueueFlags {
  readonly out: string;
  readonly grid: readonly GridField[];
  readonly method: string;
  readonly scheme: string;
  readonly preset?: string;
  readonly recipe?: string;
  readonly calibration: string;
  readonly samples?: number;
  readonly seqLen?: number;
  readonly seed: number;
  readonly ppl?: string;
  readonly windows?: number;
  readonly keepArtifacts?: boolean;
  readonly resume?: boolean;
}

const count = integer({ min: 1, max: LIMITS.samples });

export function register(program: Command): void {
  const command = program
    .command("sweep")
    .summary("try a grid of recipe settings and draw what they trade")
    .description(
      "Quantizes and scores a model at every point of a grid of recipe fields. Points share the full-precision states and " +
        "statistics; finished ones are kept in --out, and --resume goes on after them, also after a crash. Ends in a table " +
        "(sweep.json, sweep.md) and curves (sweep.html).",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .requiredOption("--out <dir>", "directory for results")
    .requiredOption(
      "--grid <field=values...>",
      "a recipe field and its values, such as alpha=0.4,0.5; may be given several times",
      gridFields,
    )
    .addOption(
      new Option("--method <name>", "whose recipe")
        .choices(METHODS.map(({ name }) => name))
        .default("flattenquant"),
    )
    .option("--scheme <scheme>", SCHEME_FORM, "w4a4kv8")
    .option("--preset <name>", "the method's settings where the grid has none")
    .option("--recipe <file>", "JSON of settings that replace the preset's at all points")
    .option("--calibration <text>", "wikipedia (embedded) or a text file", "wikipedia")
    .option("--samples <n>", "windows of calibration text", count)
    .option("--seq-len <n>", "tokens per window", integer({ min: 2, max: LIMITS.tokens }))
    .addOption(seedOption())
    .option("--ppl <text>", "where perplexity is measured: wikitext2 (embedded) or a file")
    .option("--windows <n>", "score only the first n windows of it", count)
    .option("--keep-artifacts", "keep every point's artifact")
    .addOption(deviceOption())
    .addOption(threadsOption())
    .option("--resume", "go on with an interrupted sweep, or add points to one")
    .action(
      perform<SweepFlags, [string]>(async ({ reporter, signal }, flags, name) => {
        const { samples, seqLen, ppl: text } = flags;
        const windows = Object.entries({ samples, seqLen }).filter(([, n]) => n !== undefined);
        const recipe = { ...readRecipe(flags.recipe), ...Object.fromEntries(windows) };
        const remote = remoteBlocks(flags);
        // Before a model is fetched.
        outputPlace(flags.out, { kind: "directory" });
        await remote?.ready();
        const model = await resolveModel(name, { progress: reporter, signal });
        using backend = openBackend({ ...flags, progress: reporter });
        reporter.debug(backend.description);
        const modelName = name.replace(/\/+$/, "").replace(/^.*\//, "");
        const options = { ...flags, backend, model, modelName, recipe, text, remote };
        const result = await sweep({ ...options, progress: reporter, signal });
        reporter.result(result, () => sweepText(result));
      }),
    );
  addQueueFlags(command);
  addExamples(command, [
    "planish sweep models/tiny-opt --out tiny-sweep --grid gamma=0.01,0.02,0.05",
    "planish sweep models/tiny-opt --out tiny-sweep2 --grid alpha=0.4,0.5,0.6 beta=1.2,1.3,1.4 --windows 40",
    "planish sweep models/tiny-llama --out smooth --method smoothquant --scheme w8a8kv16 --grid alpha=0.3,0.5,0.7",
  ]);
}

/** Collects the values of a variadic flag. */
function gridFields(text: string, before: readonly GridField[] = []): readonly GridField[] {
  try {
    return [...before, parseGridField(text)];
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}
