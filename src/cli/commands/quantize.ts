/** `planish quantize`: a checkpoint in, a packed artifact out. */

import { isInterruption, PlanishError } from "../../common/errors.js";
import {
  giveVerdict,
  WORRYING_KL,
  type Verdict,
  type VerdictOptions,
} from "../../experiments/verdict.js";
import { InvalidArgumentError, Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { LIMITS } from "../../common/bounds.js";
import { formatBytes, formatDuration, formatTable } from "../../common/format.js";
import { outputPlace } from "../../common/place.js";
import {
  calibrateBlocks,
  DEFAULT_SCHEME,
  quantize,
  type QuantizeResult,
} from "../../quantize/run/pipeline.js";
import { movedGroups, type MovedGroup } from "../../quantize/schema/parameter-movement.js";
import { METHODS } from "../../quantize/methods/index.js";
import { LEGAL_BITS, parseScheme, SCHEME_FORM, type Bits } from "../../backend/contract/scheme.js";
import type { Budget } from "../../quantize/run/bits.js";
import type { BlockRange } from "../../quantize/run/workers.js";
import { perform } from "../action.js";
import { decimal, integer } from "../flags.js";
import { addExamples } from "../program.js";
import { workerProcesses } from "../worker-process.js";
import { keptKvBitsOption } from "./engine-flags.js";
import { gainOf, gainText } from "../../experiments/auto/gain.js";
import { autoOption, chosenBy, checkAutoFlags, timeOption } from "./auto-flags.js";
import { budgetOption } from "./budget-flag.js";
import { linearSections, ownGridSections } from "./linear-table.js";
import { addQueueFlags, remoteBlocks, type QueueFlags } from "./queue-flags.js";
import { readRecipe } from "./recipe-file.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface QuantizeFlags extends DeviceFlags, Omit<QueueFlags, "workers"> {
  readonly out: string;
  readonly method?: string;
  readonly auto?: boolean;
  readonly time?: number;
  readonly scheme?: string;
  readonly kvBits?: Bits;
  readonly budget?: Budget;
  readonly preset?: string;
  readonly recipe?: string;
  readonly calibration: string;
  readonly verdict: boolean;
  readonly samples?: number;
  readonly seqLen?: number;
  readonly epochs?: number;
  readonly batch?: number;
  readonly alpha?: number;
  readonly beta?: number;
  readonly gamma?: number;
  readonly maxExpansion?: number;
  readonly seed: number;
  readonly resume?: boolean;
  readonly keepParameters?: boolean;
  readonly workers: number;
  readonly blocks?: BlockRange;
}

const count = integer({ min: 1, max: LIMITS.samples });

export function register(program: Command): void {
  const command = program
    .command("quantize")
    .summary("quantize a model into a packed artifact")
    .description(
      "Quantizes a model into a packed artifact. The run is kept in a journal beside it: after Ctrl-C or a crash, " +
        "--resume goes on at the first unfinished block.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .requiredOption("--out <dir>", "the artifact's directory; must not exist")
    .addOption(
      new Option(
        "--method <name>",
        `${METHODS.map((m) => `${m.name}: ${m.summary}`).join("; ")} (default: flatquant)`,
      ).choices(METHODS.map(({ name }) => name)),
    )
    .option(
      "--scheme <scheme>",
      `${SCHEME_FORM}, bits in ${LEGAL_BITS.join(", ")} (16: not quantized); default: ${DEFAULT_SCHEME}`,
    )
    .option("--preset <name>", `the method's settings: ${presetHelp()}`)
    .option("--recipe <file>", "JSON of settings that replace the preset's")
    .option("--calibration <text>", "wikipedia (embedded) or a text file", "wikipedia")
    .option("--samples <n>", "windows of calibration text", count)
    .option("--seq-len <n>", "tokens per window", integer({ min: 2, max: LIMITS.tokens }))
    .option("--epochs <n>", "passes over the windows", integer({ min: 0, max: LIMITS.samples }))
    .option("--batch <n>", "windows per training step", count)
    .option(
      "--alpha <x>",
      "smoothing exponent (flattenquant, smoothquant)",
      decimal({ min: 0, max: 1 }),
    )
    .option(
      "--beta <x>",
      "truncation threshold over the mean maximum (flattenquant)",
      decimal({ min: 0 }),
    )
    .option("--gamma <x>", "4 bits below this divergence (flattenquant)", decimal({ min: 0 }))
    .option("--max-expansion <x>", "largest K'/K (flattenquant)", decimal({ min: 1 }))
    .addOption(keptKvBitsOption())
    .addOption(autoOption())
    .addOption(timeOption())
    .addOption(budgetOption())
    .addOption(seedOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .option(
      "--keep-parameters",
      "keep the learned parameters beside the artifact, for `planish eval --simulated`",
    )
    .option("--no-verdict", "leave out the comparison with the original at the end")
    .option("--resume", "go on with an interrupted run of the same settings")
    .option(
      "--workers <n>",
      "processes that calibrate blocks side by side and share the threads; each needs memory for the calibration set",
      count,
      1,
    )
    .addOption(
      new Option("--blocks <range>", "calibrate these blocks of a prepared run, and stop")
        .argParser(blockRange)
        .hideHelp(),
    )
    .action(
      perform<QuantizeFlags, [string]>(async ({ reporter, signal }, flags, model) => {
        const scheme = flags.scheme === undefined ? undefined : parseScheme(flags.scheme);
        const recipe = { ...readRecipe(flags.recipe), ...recipeFlags(flags) };
        checkAutoFlags({ ...flags, given: recipeFlags(flags) });
        const remote = remoteBlocks(flags);
        // Before a model is fetched. (Workers write into the place of the run that started them.)
        if (!flags.blocks)
          outputPlace(flags.out, { kind: "new directory", mayExist: flags.resume });
        await remote?.ready();
        const path = await resolveModel(model, { progress: reporter, signal });
        using source = openCheckpoint(path);
        using backend = openBackend({ ...flags, progress: reporter });
        reporter.debug(backend.description);
        const options = {
          ...flags,
          backend,
          source,
          scheme,
          recipe,
          progress: reporter,
          signal,
          workers: flags.workers > 1 ? workerProcesses(flags.workers, flags.threads) : undefined,
          remote,
        };
        if (flags.blocks) {
          await calibrateBlocks(options, flags.blocks);
          return;
        }
        const result = await quantize(
          flags.auto
            ? { ...options, ...(await chosenBy(flags, { ...options, seconds: flags.time })) }
            : options,
        );
        const moved = result.layers.map((layer, index) =>
          movedGroups(layer.moved, result.info.layers[index].parameters),
        );
        const verdict = flags.verdict
          ? await verdictOn({ backend, source, artifact: result.out, progress: reporter, signal })
          : undefined;
        if (verdict?.warning) reporter.warn(warningOf(verdict, result));
        const gain = flags.auto
          ? await gainOf(result.out, source.path, result, flags.threads)
          : undefined;
        reporter.result({ ...result, moved, verdict, gain }, () =>
          [
            render(result, moved),
            ...(verdict ? [verdictText(verdict)] : []),
            ...(gain ? [gainText(gain)] : []),
          ].join("\n\n"),
        );
      }),
    );
  addQueueFlags(command);
  addExamples(command, [
    "planish quantize models/tiny-llama --out tiny-w4a4kv4",
    "planish quantize model.gguf --out model-auto --auto --budget size=90MB --time 15m",
    "planish quantize smollm2-135m-instruct --out smollm2-w4a4kv4 --preset paper --seed 1",
    "planish quantize models/tiny-llama --out tiny-rtn --method rtn --scheme w4a16kv16",
    "planish quantize models/tiny-opt --out tiny-flat --method flattenquant --scheme w4a4kv8",
    "planish quantize model.Q4_1.gguf --out model-kept --method keep --kv-bits 4",
    "planish quantize models/tiny-llama --out tiny-w4a4kv4 --resume",
    "planish quantize hf:org/name --out big --queue redis://head:6379 --store /shared/planish",
  ]);
}

/** "4-7": blocks 4 to 7. */
function blockRange(text: string): BlockRange {
  const match = /^(\d+)-(\d+)$/.exec(text);
  if (!match) throw new InvalidArgumentError(`"${text}" is no range of blocks; write one like 4-7`);
  return { from: Number(match[1]), to: Number(match[2]) + 1 };
}

function presetHelp(): string {
  return METHODS.map(
    ({ name, presets, defaultPreset }) =>
      `${Object.keys(presets).join(", ")} for ${name} (default ${defaultPreset})`,
  ).join("; ");
}

/** Flags that stand for a field of the recipe; what was not given is not replaced. */
function recipeFlags(flags: QuantizeFlags): Record<string, number> {
  const { samples, seqLen, epochs, batch, alpha, beta, gamma, maxExpansion, kvBits } = flags;
  const fields = { samples, seqLen, epochs, batch, alpha, beta, gamma, maxExpansion, kvBits };
  return Object.fromEntries(
    Object.entries(fields).flatMap(([key, value]) => (value === undefined ? [] : [[key, value]])),
  );
}

function render(result: QuantizeResult, moved: readonly (readonly MovedGroup[])[]): string {
  const { info, layers } = result;
  const sections: string[] = [];
  if (layers.length > 0) {
    sections.push(
      formatTable(
        ["block", "error rounded", "error at start", "error calibrated", "moved most"],
        layers.map((layer, index) => [
          index,
          layer.errorRounded.toPrecision(3),
          layer.errorInitial.toPrecision(3),
          layer.errorFinal.toPrecision(3),
          movedMost(moved[index]),
        ]),
      ),
    );
  }
  sections.push(...linearSections(info.layers), ...ownGridSections(info.layers));
  for (const fallback of info.fallbacks) sections.push(`fallback: ${fallback}`);
  if (result.trainingSeconds > 0) sections.push(trainingLine(result));
  const share = (100 * result.bytes) / result.sourceBytes;
  sections.push(
    `${result.out}: ${info.scheme} by ${info.method}, ${formatBytes(result.bytes)} ` +
      `(${share.toFixed(0)}% of ${formatBytes(result.sourceBytes)}), in ${formatDuration(result.seconds)}`,
  );
  return sections.join("\n\n");
}

/** The artifact is complete by now: what keeps it from being judged is told and no failure. */
async function verdictOn(options: VerdictOptions): Promise<Verdict | undefined> {
  try {
    return await giveVerdict(options);
  } catch (error) {
    if (!(error instanceof PlanishError) || isInterruption(error)) throw error;
    options.progress.warn(`no verdict on ${options.artifact}: ${error.message}`);
    return undefined;
  }
}

function verdictText(v: Verdict): string {
  const answer = (text: string): string => `"${v.prompt}${text.replace(/\s+/g, " ").trimEnd()}"`;
  return [
    `on ${v.windows} held-back windows of ${v.seqLen} tokens: KL to the original ${v.kl.toFixed(3)} nats a token, ` +
      `the same likeliest token for ${(100 * v.topAgreement).toFixed(1)}%, perplexity ${v.perplexity.toFixed(2)} (original ${v.originalPerplexity.toFixed(2)})`,
    `original:  ${answer(v.originalAnswer)}`,
    `quantized: ${answer(v.answer)}`,
  ].join("\n");
}

function warningOf({ kl, warning }: Verdict, { info }: QuantizeResult): string {
  const next = warning?.nextScheme;
  return (
    `${info.scheme} by ${info.method} is far from the original: KL ${kl.toFixed(2)} nats a token, and above ${WORRYING_KL} answers suffer; ` +
    (next ? `try --scheme ${next}, or a longer recipe` : "try a longer recipe")
  );
}

const SHOWN_GROUPS = 2;

/** The groups that moved most, relative to where they began, and the rounding offsets in steps of the grid. */
function movedMost(groups: readonly MovedGroup[]): string {
  const relative = groups.filter(({ group }) => group !== "round").slice(0, SHOWN_GROUPS);
  const texts = relative.map(({ group, change }) => `${group} ${(100 * change).toFixed(0)}%`);
  const round = groups.find(({ group }) => group === "round");
  if (round) texts.push(`round ${round.change.toFixed(2)} steps`);
  return texts.join(", ");
}

function trainingLine({ trainingSeconds, trainingRate, peakMemoryBytes }: QuantizeResult): string {
  const rate =
    trainingRate === undefined
      ? ""
      : ` at ${(trainingRate / 1e9).toFixed(0)} GFLOP/s (two operations per multiply-add)`;
  return `calibrated in ${formatDuration(trainingSeconds)}${rate}, peak memory ${formatBytes(peakMemoryBytes)}`;
}
