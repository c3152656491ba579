/** `planish eval`: perplexity and zero-shot tasks of an original or an artifact, alone or beside another. */

import { closeSync, openSync, writeSync } from "node:fs";
import type { Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { describeFsError } from "../../checkpoint/file-reader.js";
import { LIMITS } from "../../common/bounds.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { outputPlace } from "../../common/place.js";
import { evaluateDivergence } from "../../evaluate/divergence.js";
import { evaluateEnginePerplexity } from "../../evaluate/engine-perplexity.js";
import { openCudaExecutor } from "../../engine/gpu.js";
import type { Bits } from "../../backend/contract/scheme.js";
import type { Executor } from "../../backend/contract/inference.js";
import { keepChoices, openInteger } from "../../engine/processor.js";
import { evaluatePerplexity, type PerplexityResult } from "../../evaluate/perplexity.js";
import { parseTasks, readTask, type TaskData } from "../../evaluate/tasks/index.js";
import { evaluateTasks, type ItemResult, type ZeroShotResult } from "../../evaluate/zero-shot.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { perform, type CommandContext } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import {
  checkSimulationFlags,
  openModels,
  type Candidate,
  type SimulationFlags,
} from "./eval-models.js";
import { dequantizeOption, kvBitsOption } from "./engine-flags.js";
import { renderEvaluation } from "./eval-tables.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";
import type { EvalDocument, ModelScore } from "./eval-document.js";

interface EvalFlags extends DeviceFlags, SimulationFlags {
  readonly ppl?: string;
  readonly tasks?: string;
  readonly seqLen?: number;
  readonly limit?: number;
  readonly items?: string;
  readonly addBos?: boolean;
  readonly engine?: boolean;
  readonly dequantize?: boolean;
  readonly kvBits?: Bits;
}

export function register(program: Command): void {
  const command = program
    .command("eval")
    .summary("measure perplexity and zero-shot tasks")
    .description(
      "Measures perplexity over consecutive, non-overlapping windows of a text, and zero-shot tasks as " +
        "lm-evaluation-harness scores them. With --against, also how far the model's next-token distributions are " +
        "from those of the other.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .option(
      "--ppl <text>",
      "wikitext2 (embedded test split) or a text file; default: wikitext2 where no --tasks are given",
    )
    .option(
      "--tasks <list>",
      "all, or some of piqa, lambada_openai, openbookqa, arc_easy, arc_challenge, winogrande, hellaswag; " +
        "name=FILE reads another export of the data set (JSON lines or Parquet) than the embedded half",
    )
    .option(
      "--seq-len <n>",
      "tokens per window (default: 2048, or half of what shorter models were made for)",
      integer({ min: 2, max: LIMITS.tokens }),
    )
    .option(
      "--limit <n>",
      "score only the first n windows, and n items a task",
      integer({ min: 1, max: LIMITS.samples }),
    )
    .option("--items <file>", "write every item's scores as JSON lines")
    .option("--add-bos", "begin the contexts of tasks with the tokenizer's BOS (default: without)")
    .option(
      "--engine",
      "score tasks through the engine, which is what `planish serve` runs, and the text through it as well",
    )
    .addOption(dequantizeOption())
    .addOption(kvBitsOption())
    .option("--against <model>", "score this model as well, and compare")
    .option(
      "--simulated",
      "of an artifact, score also the model it was packed from (needs --source, and a run with --keep-parameters); " +
        "of another model, score rounding to nearest in its place (needs --scheme)",
    )
    .option("--source <model>", "the original that an artifact was made from, for --simulated")
    .option("--scheme <scheme>", "what to round to, for --simulated")
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(perform<EvalFlags, [string]>(evaluate));
  addExamples(command, [
    "planish eval models/tiny-llama",
    "planish eval tiny-w4a4kv4 --against models/tiny-llama",
    "planish eval tiny-w4a4kv4 --simulated --source models/tiny-llama",
    "planish eval models/tiny-llama --simulated --scheme w4a4kv4",
    "planish eval tiny-w4a4kv4 --engine",
    "planish eval smollm2-135m-instruct --tasks all --limit 100",
    "planish eval smollm2-135m-instruct --tasks piqa,arc_easy=exports/test.parquet --items scores.jsonl",
    "planish eval smollm2-135m-instruct --ppl notes.txt --limit 10 --json",
  ]);
}

async function evaluate(context: CommandContext, flags: EvalFlags, name: string): Promise<void> {
  if (flags.items !== undefined && flags.tasks === undefined)
    throw new UsageError("--items writes the items of tasks; give --tasks as well");
  if (flags.engine && (flags.simulated || flags.device === "reference"))
    throw new UsageError(
      "--engine scores with the engine's own kernels; give neither --simulated nor --device reference",
    );
  if (!flags.engine && (flags.dequantize || flags.kvBits !== undefined))
    throw new UsageError(
      "--dequantize and --kv-bits say how the engine runs a GGUF file; give --engine as well",
    );
  checkSimulationFlags(flags);
  // Read first: a misspelled name should not cost the loading of a model.
  const text = flags.ppl ?? (flags.tasks === undefined ? "wikitext2" : undefined);
  const documents = text === undefined ? undefined : readDocuments(text);
  const tasks: TaskData[] = [];
  for (const source of flags.tasks === undefined ? [] : parseTasks(flags.tasks))
    tasks.push(await readTask(source, { limit: flags.limit }));
  using items = flags.items === undefined ? undefined : new ItemFile(flags.items);
  using backend = openBackend({ ...flags, progress: context.reporter });
  context.reporter.debug(backend.description);

  using models = await openModels(context, backend, name, flags);
  const pair = models.all;
  const texts = documents && pair.map(({ tokenizer }) => tokenizeCorpus(tokenizer, documents));
  // First, since it refuses windows that the other would take its time for.
  const engine =
    flags.engine && texts ? await scoreInEngine(context, flags, texts[0], pair[0]) : undefined;
  const perplexities = texts && (await scoreText(context, flags, texts, pair));
  const scores: ModelScore[] = [];
  for (const [i, each] of pair.entries())
    scores.push({
      model: each.name,
      scheme: each.scheme,
      method: each.method,
      ...perplexities?.results[i],
      zeroShot: await scoreTasks(context, flags, tasks, each, items),
    });
  const clipping = pair[0].loaded.clipping?.summary();
  const document: EvalDocument = {
    text,
    ...scores[0],
    ...(models.simulated ? simulatedPart(scores) : { against: scores[1] }),
    engine: engine && {
      ...engine,
      ratio: engine.perplexity / (perplexities?.results[0].perplexity ?? NaN),
    },
    divergence: perplexities?.divergence,
    clipping: clipping && clipping.values > 0 ? clipping : undefined,
    limit: flags.limit,
  };
  context.reporter.result(document, () => renderEvaluation(document));
}

/** An artifact's score is that of its simulated model, up to the rounding of what it keeps in 16 bits. */
function simulatedPart([artifact, simulated]: readonly ModelScore[]): Partial<EvalDocument> {
  const ratio =
    artifact.perplexity !== undefined && simulated.perplexity !== undefined
      ? artifact.perplexity / simulated.perplexity
      : undefined;
  return { simulated, simulatedRatio: ratio };
}

/** Perplexities of one or two models; of two that read the text alike, also how far the first is from the second. */
async function scoreText(
  { reporter, signal }: CommandContext,
  { seqLen, limit }: EvalFlags,
  texts: readonly Int32Array[],
  models: readonly Candidate[],
): Promise<{ results: PerplexityResult[]; divergence?: EvalDocument["divergence"] }> {
  const options = { seqLen, limit, progress: reporter, signal };
  const [model, other] = models;
  if (other) {
    const differ = incomparable(model, other, texts);
    if (differ === undefined) {
      const label = `${model.name} against ${other.name}`;
      const d = await evaluateDivergence(model.loaded.model, other.loaded.model, texts[0], {
        ...options,
        label,
      });
      const { kl, topAgreement, blockErrors } = d;
      return { results: [d.model, d.reference], divergence: { kl, topAgreement, blockErrors } };
    }
    reporter.warn(`${differ}: distributions are not compared, and perplexities only with care`);
  }
  const results: PerplexityResult[] = [];
  for (const [i, { loaded, name }] of models.entries())
    results.push(await evaluatePerplexity(loaded.model, texts[i], { ...options, label: name }));
  return { results };
}

/** Perplexity of the first model on the engine's kernels. */
async function scoreInEngine(
  { reporter, signal }: CommandContext,
  flags: EvalFlags,
  tokens: Int32Array,
  model: Candidate,
): Promise<PerplexityResult> {
  using executor = openExecutorOf(model, flags);
  reporter.note(executor.description);
  const { seqLen, limit } = flags;
  const label = `${model.name} through the engine`;
  return await evaluateEnginePerplexity(executor, model.loaded.model.backend, tokens, {
    ...{ seqLen, limit, signal, label },
    progress: reporter,
  });
}

function openExecutorOf({ path, loaded }: Candidate, flags: EvalFlags): Executor {
  if (loaded.model.backend.name === "cuda") return openCudaExecutor(path);
  return openInteger(path, { threads: flags.threads, keep: keepChoices(path, flags) }).executor;
}

/** Why distributions of two models cannot be compared token by token, if they cannot. */
function incomparable(
  model: Candidate,
  other: Candidate,
  [tokens, otherTokens]: readonly Int32Array[],
): string | undefined {
  const [a, b] = [model, other].map(({ loaded }) => loaded.model.config.vocabSize);
  if (a !== b) return `the models' vocabularies have ${a} and ${b} tokens`;
  const same =
    tokens.length === otherTokens.length && tokens.every((id, i) => id === otherTokens[i]);
  return same ? undefined : "the models' tokenizers cut the text differently";
}

async function scoreTasks(
  { reporter, signal }: CommandContext,
  flags: EvalFlags,
  tasks: readonly TaskData[],
  candidate: Candidate,
  items: ItemFile | undefined,
): Promise<ZeroShotResult | undefined> {
  if (tasks.length === 0) return undefined;
  const { addBos, against, simulated } = flags;
  const { name, loaded, tokenizer } = candidate;
  using executor = flags.engine ? openExecutorOf(candidate, flags) : undefined;
  const result = await evaluateTasks(loaded.model, tokenizer, tasks, {
    addBos,
    executor,
    progress: reporter,
    signal,
    label: against === undefined && !simulated ? undefined : name,
    onItems: (scored) => items?.write(name, scored),
  });
  for (const { task, truncated } of result.tasks)
    if (truncated > 0)
      reporter.warn(
        `${task}: ${truncated} items are longer than the ${loaded.model.config.maxPositions} positions of ${name}; ` +
          "they lost their beginning",
      );
  return result;
}

/** `--items`: one JSON object a line, task by task. */
class ItemFile implements Disposable {
  private readonly file: number;

  constructor(path: string) {
    const place = outputPlace(path, { flag: "--items", kind: "file" });
    try {
      this.file = openSync(place, "w");
    } catch (cause) {
      throw new PlanishError(`cannot write items to ${path}: ${describeFsError(cause)}`, { cause });
    }
  }

  write(model: string, items: readonly ItemResult[]): void {
    for (const item of items) writeSync(this.file, `${JSON.stringify({ model, ...item })}\n`);
  }

  [Symbol.dispose](): void {
    closeSync(this.file);
  }
}
