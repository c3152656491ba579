/**
 * Several quantization methods on one model: each makes its artifact, which is then scored beside the model as it is.
 * Full-precision states, of the calibration set and of the text, are computed once for all. Every finished stage is kept:
 * an interrupted comparison goes on where it stopped, and a finished one takes further methods.
 */
import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { cpus, totalmem } from "node:os";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { loadTokenizer, type Tokenizer } from "../../checkpoint/tokenizer.js";
import {
  asResumable,
  InterruptedError,
  isInterruption,
  PlanishError,
  UsageError,
} from "../../common/errors.js";
import { availableMemory } from "../../common/memory.js";
import { packageVersion } from "../../common/package.js";
import { describedWriteError, isWriteError, lockedPlace } from "../../common/place.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import { evaluateDivergence } from "../../evaluate/divergence.js";
import { captureReference, type ReferenceStates } from "../../evaluate/reference.js";
import { generate } from "../../engine/generate.js";
import { ANSWER_TOKENS, PROMPT } from "../verdict.js";
import type { Executor } from "../../backend/contract/inference.js";
import { openIntegerExecutor } from "../../engine/processor.js";
import type { TaskData } from "../../evaluate/tasks/index.js";
import { averageOfTasks, evaluateTask } from "../../evaluate/zero-shot.js";
import { blockPrograms } from "../../models/architectures/index.js";
import { refuseLongWindows } from "../../models/config.js";
import { parseSource } from "../../models/source.js";
import { textWindows } from "../../evaluate/perplexity.js";
import { LanguageModel } from "../../models/language-model.js";
import { isArtifact } from "../../quantize/artifact/artifact.js";
import { StateStore } from "../../quantize/calibration/prefix.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { quantize, resolveRecipe } from "../../quantize/run/pipeline.js";
import { Journal } from "../../quantize/run/journal.js";
import type { RemoteBlocks } from "../../quantize/run/remote.js";
import { loadModel } from "../../quantize/artifact/load.js";
import { formatScheme, parseScheme, type Scheme } from "../../backend/contract/scheme.js";
import { ComparisonDirectory } from "./directory.js";
import type { Comparison, MethodResult } from "./result.js";
import { measureSpeed } from "./speed.js";
import { comparisonMarkdown } from "./table.js";
import { parseWays, type Way } from "./ways.js";

export interface CompareOptions {
  readonly backend: Backend;
  /** Path of a full-precision checkpoint (`resolveModel` gives it). */
  readonly model: string;
  /** Name shown in tables (default: the path's last part). */
  readonly modelName?: string;
  /** Methods to compare, such as `fp16`, `rtn`, `flatquant:paper`, `quarot+gptq`. */
  readonly methods: readonly string[];
  /** Directory of the comparison. */
  readonly out: string;
  readonly scheme?: string | Scheme;
  /** For the methods that have a preset of this name; the others take their own default. */
  readonly preset?: string;
  /** "wikipedia" (embedded) or a path to a text file. */
  readonly calibration?: string;
  /** Windows of calibration text, and tokens in each, for all methods alike (default: each preset's own). */
  readonly samples?: number;
  readonly seqLen?: number;
  readonly epochs?: number;
  readonly seed?: number;
  /** Where perplexity and divergence are measured: "wikitext2" (embedded) or a path. */
  readonly text?: string;
  /** Only the first windows of it, of this many tokens. */
  readonly windows?: number;
  readonly windowTokens?: number;
  /** Zero-shot tasks, read (and cut by a limit) already. */
  readonly tasks?: readonly TaskData[];
  /** The limit that cut the tasks, to say so. */
  readonly limit?: number;
  /** Also measure prefill and decode in the engine, each method beside the original. */
  readonly speed?: boolean;
  /** Threads of the engine (default: one per core). */
  readonly threads?: number;
  /** Go on with an interrupted comparison of the same settings, or add methods to it. */
  readonly resume?: boolean;
  /** Memory for states that are shared between methods, bytes (default: a quarter of what is free, at most 2 GB). */
  readonly sharedBytes?: number;
  /** Calibrates the methods' blocks elsewhere. */
  readonly remote?: RemoteBlocks;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

/**
 * Compares methods; results are also in `out` as `comparison.json` and `comparison.md`. A method that cannot serve the
 * model or scheme gets a row that says why.
 * @throws UsageError for unknown methods, presets and tasks; PlanishError for unfit models, texts and directories;
 * InterruptedError on the signal, with finished stages kept.
 */
export async function compare(options: CompareOptions): Promise<Comparison> {
  const { seed = 0, text = "wikitext2", calibration = "wikipedia" } = options;
  const ways = parseWays(options.methods, options.preset);
  const scheme =
    typeof options.scheme === "object" ? options.scheme : parseScheme(options.scheme ?? "w4a4kv4");
  if (isArtifact(options.model))
    throw new UsageError(
      `${options.model} is quantized already; give the full-precision model it was made from`,
    );
  const { path: out, lock } = lockedPlace(options.out, {
    kind: "directory",
    source: options.model,
  });
  using _lock = lock;
  using source = openCheckpoint(options.model);
  const tokenizer = loadTokenizer(source);
  const tokens = tokenizeCorpus(tokenizer, readDocuments(text));
  // A calibration text that cannot be read is told before anything is kept.
  readDocuments(calibration);
  const { config } = parseSource(source);
  if (options.seqLen !== undefined) refuseLongWindows(options.seqLen, config);
  const cut = { seqLen: options.windowTokens, limit: options.windows };
  const { seqLen, windows } = textWindows(config, tokens, cut);
  const document: Omit<Comparison, "methods" | "remarks"> = {
    formatVersion: 1,
    planishVersion: packageVersion(),
    model: {
      name: options.modelName ?? basename(options.model),
      path: resolve(options.model),
      hash: await source.hash(),
      bytes: [...source.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0),
    },
    scheme: formatScheme(scheme),
    seed,
    calibration: { text: basename(calibration), samples: options.samples, seqLen: options.seqLen },
    text: { name: basename(text), windows, seqLen },
    limit: options.limit,
    machine: machine(options.backend),
  };
  const { model, machine: _machine, planishVersion, ...same } = document;
  const tasks = options.tasks?.map(({ task, path, items }) => ({
    task: task.name,
    file: basename(path),
    items: items.length,
  }));
  const settings = { planishVersion, hash: model.hash, ...same, epochs: options.epochs, tasks };
  const directory = ComparisonDirectory.open(out, settings, options.resume ?? false);
  using run = new Run(options, scheme, source, tokenizer, tokens, directory);
  const results = ways.map((way) => run.known(way));
  const finish = (): Comparison => {
    const remarks = options.speed ? [] : [SPEED_REMARK];
    const comparison = { ...document, remarks, methods: results };
    directory.keepDocument(comparison, comparisonMarkdown(comparison));
    return comparison;
  };
  // Stage by stage, so that what a stage shares between methods (calibration states, the reference) is there at once.
  try {
    for (const stage of STAGES)
      for (const [i, way] of ways.entries()) {
        results[i] = await run.perform(stage, way, results[i]);
        finish();
      }
    return finish();
  } catch (error) {
    if (!isInterruption(error) && !isWriteError(error)) throw error;
    throw asResumable(describedWriteError(error, out), "finished stages are kept");
  }
}

const SPEED_REMARK = "speed was not measured (--speed does)";

function machine({ description }: Backend): Comparison["machine"] {
  const processors = cpus();
  return {
    processor: processors[0]?.model ?? "unknown",
    cores: processors.length,
    memoryBytes: totalmem(),
    platform: `${process.platform} ${process.arch}`,
    node: process.version,
    backend: description,
  };
}

const STAGES = ["quantize", "text", "tasks", "speed"] as const;
type Stage = (typeof STAGES)[number];

const SHARED_BYTES = 2e9;

/** What the methods of one comparison share. */
class Run implements Disposable {
  private readonly progress: ProgressSink;
  private readonly states: StateStore;
  private reference: ReferenceStates | undefined;

  constructor(
    private readonly options: CompareOptions,
    private readonly scheme: Scheme,
    private readonly source: Checkpoint,
    private readonly tokenizer: Tokenizer,
    private readonly tokens: Int32Array,
    private readonly directory: ComparisonDirectory,
  ) {
    this.progress = options.progress ?? silentProgress;
    this.states = new StateStore(
      options.sharedBytes ?? Math.min(SHARED_BYTES, availableMemory() / 4),
    );
  }

  /** A method's result so far; methods that cannot serve are found out before any work. */
  known(way: Way): MethodResult {
    const kept = this.directory.readResult(way.name);
    if (!way.quantize || kept.artifact !== undefined) return kept;
    const refused = this.refusal(way);
    if (refused === undefined) return { ...kept, refused };
    this.progress.warn(`${way.name} is left out: ${refused}`);
    return { ...kept, refused };
  }

  private refusal({ quantize: wanted }: Way): string | undefined {
    if (!wanted) return undefined;
    const { method, preset, recipe } = wanted;
    try {
      const resolved = resolveRecipe(method, preset, { ...recipe, ...this.overrides(wanted) });
      const { architecture, config } = parseSource(this.source);
      method.keep?.({ source: this.source, architecture, config }, resolved.recipe);
      method.check?.(blockPrograms(config), this.scheme, resolved.recipe);
      return undefined;
    } catch (error) {
      if (error instanceof PlanishError) return error.message;
      throw error;
    }
  }

  /** Settings for all methods, as far as a method has them. */
  private overrides({ method, preset }: NonNullable<Way["quantize"]>): Record<string, number> {
    const { samples, seqLen, epochs } = this.options;
    const fields = method.presets[preset ?? method.defaultPreset] as Record<string, unknown>;
    return Object.fromEntries(
      Object.entries({ samples, seqLen, epochs }).flatMap(([key, value]) =>
        value !== undefined && key in fields ? [[key, value]] : [],
      ),
    );
  }

  /** Does what is missing of a stage of a method. */
  async perform(stage: Stage, way: Way, known: MethodResult): Promise<MethodResult> {
    let result = known;
    const keep = (found: Partial<MethodResult>): void => {
      result = { ...result, ...found };
      this.directory.keepResult(result);
    };
    if (result.refused !== undefined) return result;
    switch (stage) {
      case "quantize":
        if (way.quantize && result.quantizeSeconds === undefined) {
          this.progress.note(`${way.name}:`);
          keep(await this.quantize(way));
        } else if (!way.quantize && result.bytes === undefined) {
          const tensors = [...this.source.tensors.values()];
          keep({ bytes: tensors.reduce((sum, { bytes }) => sum + bytes, 0) });
        }
        break;
      case "text":
        if (result.perplexity === undefined) keep(await this.scoreText(way));
        break;
      case "tasks":
        await this.scoreTasks(way, () => result, keep);
        break;
      case "speed":
        if (this.options.speed && result.speed === undefined) keep(await this.measureSpeed(way));
    }
    return result;
  }

  private async quantize(way: Way): Promise<Partial<MethodResult>> {
    const { backend, modelName, calibration, seed, signal } = this.options;
    if (!way.quantize) return {};
    const { method, preset, recipe } = way.quantize;
    const artifact = this.directory.artifact(way.name);
    const out = join(this.directory.path, artifact);
    // Finished, but stopped before its result was written down.
    if (isArtifact(out))
      throw new PlanishError(
        `${out} is an artifact without a result beside it; remove it, and --resume makes it again`,
      );
    const { info, bytes, seconds, peakMemoryBytes } = await quantize({
      backend,
      source: this.source,
      sourceName: modelName,
      out,
      method: method.name,
      // A source's own grids are what they are.
      scheme: method.keep ? undefined : this.scheme,
      preset,
      recipe: { ...recipe, ...this.overrides(way.quantize) },
      calibration,
      seed,
      resume: existsSync(Journal.pathFor(out)),
      states: this.states,
      remote: this.options.remote,
      progress: this.progress,
      signal,
    });
    return {
      method: method.name,
      preset: info.preset,
      rounding: typeof info.recipe.rounding === "string" ? info.recipe.rounding : undefined,
      scheme: info.scheme,
      recipe: info.recipe,
      fallbacks: info.fallbacks,
      artifact,
      bytes,
      quantizeSeconds: seconds,
      peakMemoryBytes,
    };
  }

  /** The full-precision model on the text; run when it is first asked for. */
  private async referenceStates(): Promise<ReferenceStates> {
    const { backend, windows, windowTokens, signal } = this.options;
    this.reference ??= await captureReference(
      LanguageModel.load(backend, this.source),
      this.tokens,
      {
        seqLen: windowTokens,
        limit: windows,
        progress: this.progress,
        signal,
        label: "full precision on the text",
      },
    );
    return this.reference;
  }

  private async scoreText(way: Way): Promise<Partial<MethodResult>> {
    const reference = await this.referenceStates();
    if (!way.quantize) {
      const { perplexity, seconds } = reference.perplexity;
      using original = this.load(way);
      return {
        perplexity,
        evaluateSeconds: seconds,
        answer: await this.answerOf(original.model),
      };
    }
    using loaded = this.load(way);
    const found = await evaluateDivergence(loaded.model, reference, this.tokens, {
      progress: this.progress,
      signal: this.options.signal,
      label: `${way.name} on the text`,
    });
    const { kl, topAgreement, blockErrors, model } = found;
    return {
      perplexity: model.perplexity,
      kl,
      topAgreement,
      blockErrors: blockErrors && [...blockErrors],
      evaluateSeconds: model.seconds,
      answer: await this.answerOf(loaded.model),
    };
  }

  private async answerOf(model: LanguageModel): Promise<MethodResult["answer"]> {
    const { signal } = this.options;
    const request = { prompt: PROMPT, maxTokens: ANSWER_TOKENS, temperature: 0, signal };
    const { text, finishReason } = await generate(model, this.tokenizer, request);
    if (finishReason === "interrupted") throw new InterruptedError("stopped in a sample answer");
    return { prompt: PROMPT, text };
  }

  private load(way: Way) {
    return loadModel(this.options.backend, this.pathOf(way));
  }

  private pathOf(way: Way): string {
    return way.quantize
      ? join(this.directory.path, this.directory.artifact(way.name))
      : this.options.model;
  }

  /** The engine on a method's model; where it has no kernels, tasks are scored by the simulated model, and the result says so. */
  private engineOf(
    way: Way,
    keep: (found: Partial<MethodResult>) => void,
  ): (Disposable & { readonly executor: Executor }) | undefined {
    const { threads } = this.options;
    try {
      const executor = openIntegerExecutor(this.pathOf(way), { threads });
      keep({ tasksBy: `engine: ${executor.description}` });
      return { executor, [Symbol.dispose]: () => executor[Symbol.dispose]() };
    } catch (error) {
      if (!(error instanceof PlanishError)) throw error;
      keep({ tasksBy: `simulated arithmetic: ${error.message}` });
      return undefined;
    }
  }

  private async measureSpeed(way: Way): Promise<Partial<MethodResult>> {
    const { model, threads } = this.options;
    try {
      const speed = await measureSpeed(this.pathOf(way), model, this.tokens, { threads });
      return { speed, speedReason: undefined };
    } catch (error) {
      if (!(error instanceof PlanishError)) throw error;
      return { speedReason: error.message };
    }
  }

  private async scoreTasks(
    way: Way,
    known: () => MethodResult,
    keep: (found: Partial<MethodResult>) => void,
  ): Promise<void> {
    const { tasks = [], signal } = this.options;
    const missing = tasks.filter(
      ({ task }) => !known().tasks?.some((done) => done.task === task.name),
    );
    if (missing.length === 0) return;
    using loaded = this.load(way);
    using engine = this.engineOf(way, keep);
    for (const data of missing) {
      if (signal?.aborted) throw new InterruptedError(`stopped before ${data.task.name}`);
      const { task, items, available, metrics, customary, seconds } = await evaluateTask(
        loaded.model,
        this.tokenizer,
        data,
        { progress: this.progress, signal, label: way.name, executor: engine?.executor },
      );
      const done = { task, items, available, metrics, customary, seconds };
      keep({ tasks: [...(known().tasks ?? []), done] });
    }
    keep({ average: averageOfTasks(known().tasks ?? []) });
  }

  [Symbol.dispose](): void {
    this.reference?.[Symbol.dispose]();
  }
}
