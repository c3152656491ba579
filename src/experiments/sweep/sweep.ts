/**
 * A grid of runs of one method on one model: each point makes an artifact and is scored. Runs share the full-precision
 * states of the calibration set and the statistics taken of them. A finished point is a file of its own, written in one
 * step, so that a sweep killed at any moment goes on at the first unfinished point; that point's own journal is used too.
 */
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import type { z } from "zod";
import type { Backend } from "../../backend/contract/training.js";
import { readJsonObject } from "../../checkpoint/file-reader.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { sealedText, unsealed } from "../../checkpoint/sealed-json.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import {
  asResumable,
  InterruptedError,
  isInterruption,
  PlanishError,
  UsageError,
} from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { availableMemory } from "../../common/memory.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import {
  describedWriteError,
  holdsNothing,
  isWriteError,
  lockedPlace,
} from "../../common/place.js";
import { writeAtomically } from "../../common/temporary.js";
import { openIntegerExecutor } from "../../engine/processor.js";
import { evaluateDivergence } from "../../evaluate/divergence.js";
import { captureReference, type ReferenceStates } from "../../evaluate/reference.js";
import { LanguageModel } from "../../models/language-model.js";
import { parseSource } from "../../models/source.js";
import { readQuantizationInfo, isArtifact } from "../../quantize/artifact/artifact.js";
import { StateStore } from "../../quantize/calibration/prefix.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { limitedNeed, quantize, resolveRecipe } from "../../quantize/run/pipeline.js";
import { Journal } from "../../quantize/run/journal.js";
import type { RemoteBlocks } from "../../quantize/run/remote.js";
import { summarizeBits } from "../../quantize/schema/linear-reports.js";
import { loadModel } from "../../quantize/artifact/load.js";
import { findMethod } from "../../quantize/methods/index.js";
import { formatScheme, parseScheme } from "../../backend/contract/scheme.js";
import { gridPoints, type GridField, type GridPoint } from "./grid.js";
import { sweepMarkdown, sweepPage } from "./output.js";
import { fullSchema, pointSchema, type Sweep, type SweepPoint } from "./result.js";

export interface SweepOptions {
  readonly backend: Backend;
  /** Path of a full-precision checkpoint. */
  readonly model: string;
  readonly modelName?: string;
  readonly out: string;
  readonly grid: readonly GridField[];
  readonly method?: string;
  readonly scheme?: string;
  readonly preset?: string;
  /** Fields that all points share. */
  readonly recipe?: Readonly<Record<string, unknown>>;
  readonly calibration?: string;
  readonly seed?: number;
  /** Where perplexity is measured: "wikitext2" (embedded) or a path; only the first `windows` of it. */
  readonly text?: string;
  readonly windows?: number;
  readonly keepArtifacts?: boolean;
  readonly resume?: boolean;
  /** Memory for shared states, bytes (default: a quarter of what is free, at most 2 GB). */
  readonly sharedBytes?: number;
  /** Calibrates the points' blocks elsewhere. */
  readonly remote?: RemoteBlocks;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

/** Tokens of the prompt whose speed is measured, and how often; the median counts. */
const SPEED = { tokens: 512, rounds: 5 };

/**
 * @throws UsageError for fields and values that the method's recipe refuses, before any work; PlanishError for unfit
 * models, texts and directories; InterruptedError on the signal, with finished points kept.
 */
export async function sweep(options: SweepOptions): Promise<Sweep> {
  const { backend, model, seed = 0, calibration = "wikipedia", text = "wikitext2" } = options;
  const progress = options.progress ?? silentProgress;
  const method = findMethod(options.method ?? "flattenquant");
  const scheme = formatScheme(parseScheme(options.scheme ?? "w4a4kv8"));
  const { preset, recipe } = resolveRecipe(method, options.preset, options.recipe);
  const points = gridPoints(options.grid);
  for (const point of points)
    resolveRecipe(method, options.preset, { ...options.recipe, ...point.recipe });
  if (isArtifact(model))
    throw new UsageError(`${model} is quantized already; sweep the original model`);
  const { path: out, lock } = lockedPlace(options.out, { kind: "directory", source: model });
  using _lock = lock;
  using source = openCheckpoint(model);
  const { config } = parseSource(source);
  for (const { recipe: point } of points) {
    const asked = { ...options.recipe, ...point };
    const { recipe } = resolveRecipe(method, options.preset, asked);
    limitedNeed(method.calibration(recipe), config, recipe, asked);
  }
  const tokens = tokenizeCorpus(loadTokenizer(source), readDocuments(text));
  // A calibration text that cannot be read is told before anything is kept.
  readDocuments(calibration);
  const settings = {
    ...{ method: method.name, preset, scheme, recipe, seed, calibration: basename(calibration) },
    ...{ source: await source.hash(), text: basename(text), windows: options.windows ?? "all" },
  };
  openDirectory(out, settings, options.resume ?? false);
  let reference: ReferenceStates | undefined;
  /** The full-precision model on the text; run when it is first asked for. */
  const referenceStates = async (): Promise<ReferenceStates> =>
    (reference ??= await captureReference(LanguageModel.load(backend, source), tokens, {
      // Errors by block are not shown.
      ...{ limit: options.windows, progress, signal: options.signal, budgetBytes: 0 },
      label: "full precision",
    }));
  using _ = { [Symbol.dispose]: () => reference?.[Symbol.dispose]() };

  const shared = options.sharedBytes ?? Math.min(availableMemory() / 4, 2e9);
  const states = new StateStore(shared);
  try {
    return await carryOut();
  } catch (error) {
    if (!isInterruption(error) && !isWriteError(error)) throw error;
    throw asResumable(describedWriteError(error, out), "finished points are kept");
  }

  async function carryOut(): Promise<Sweep> {
    const full = await kept(join(out, "full-precision.json"), fullSchema, async () => {
      const { perplexity, windows, seqLen } = (await referenceStates()).perplexity;
      const tokensPerSecond = await engineSpeed(model, tokens);
      return { perplexity, windows, seqLen, tokensPerSecond, bytes: tensorBytes(model) };
    });
    const results: SweepPoint[] = [];
    for (const [index, point] of points.entries()) {
      if (options.signal?.aborted) throw new InterruptedError("stopped between two points");
      const file = join(out, "points", `${fileName(point)}.json`);
      if (!existsSync(file)) progress.note(`point ${index + 1} of ${points.length}: ${point.name}`);
      results.push(await kept(file, pointSchema, () => runPoint(point)));
    }
    const document: Sweep = {
      ...{
        model: options.modelName ?? basename(model),
        method: method.name,
        preset,
        scheme,
        recipe,
      },
      ...{ seed, calibration: basename(calibration) },
      text: { name: basename(text), windows: full.windows, seqLen: full.seqLen },
      fullPrecision: {
        perplexity: full.perplexity,
        bytes: full.bytes,
        tokensPerSecond: full.tokensPerSecond,
      },
      points: results,
    };
    writeAtomically(join(out, "sweep.json"), `${JSON.stringify(document, undefined, 2)}\n`);
    writeAtomically(join(out, "sweep.md"), sweepMarkdown(document));
    writeAtomically(join(out, "sweep.html"), sweepPage(document));
    return document;
  }

  async function runPoint(point: GridPoint): Promise<SweepPoint> {
    const artifact = join(out, "artifacts", fileName(point));
    const started = performance.now();
    // Killed while it was scored: the artifact is there already.
    if (!existsSync(artifact))
      await quantize({
        ...{ backend, source, out: artifact, method: method.name, scheme, preset },
        ...{ recipe: { ...options.recipe, ...point.recipe }, calibration, seed, states, progress },
        signal: options.signal,
        remote: options.remote,
        resume: existsSync(Journal.pathFor(artifact)),
      });
    const quantizeSeconds = (performance.now() - started) / 1000;
    using loaded = loadModel(backend, artifact);
    const { kl, model: scored } = await evaluateDivergence(
      loaded.model,
      await referenceStates(),
      tokens,
      { progress, signal: options.signal, label: point.name },
    );
    const clipping = loaded.clipping?.summary();
    const result: SweepPoint = {
      name: point.name,
      values: point.values,
      perplexity: scored.perplexity,
      kl: kl.value,
      bytes: tensorBytes(artifact),
      ...summarizeBits(readQuantizationInfo(artifact).layers),
      clippedShare:
        clipping && clipping.values > 0 ? clipping.clipped / clipping.values : undefined,
      tokensPerSecond: await engineSpeed(artifact, tokens),
      quantizeSeconds,
    };
    if (!options.keepArtifacts) rmSync(artifact, { recursive: true, force: true });
    return result;
  }
}

/** A result that is computed once: read where it is there, else made and written in one step. */
async function kept<T extends object>(
  file: string,
  schema: z.ZodType<T>,
  make: () => Promise<T>,
): Promise<T> {
  if (!existsSync(file)) writeAtomically(file, sealedText(await make()));
  const result = schema.safeParse(unsealed(readJsonObject(file), file));
  if (result.success) return result.data;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(`${file}: ${field || "document"}: ${reason}; remove it to run it again`);
}

function openDirectory(
  path: string,
  settings: Readonly<Record<string, unknown>>,
  resume: boolean,
): void {
  const file = join(path, "settings.json");
  if (existsSync(file)) {
    if (!resume)
      throw new PlanishError(
        `${path} holds a sweep; add --resume to go on with it or to add points, or choose another --out`,
      );
    const found = unsealed(readJsonObject(file), file);
    if (JSON.stringify(found) !== JSON.stringify(settings))
      throw new PlanishError(
        `${path} was begun with other settings (settings.json); sweep with those, or choose another --out`,
      );
  } else if (!holdsNothing(path))
    throw new PlanishError(`${path} is not empty and holds no sweep; choose another --out`);
  for (const part of ["points", "artifacts"]) mkdirSync(join(path, part), { recursive: true });
  if (!existsSync(file)) writeAtomically(file, sealedText(settings));
}

function fileName({ name }: GridPoint): string {
  return name.replace(/[^\w.=-]+/g, "_") || "only";
}

function tensorBytes(path: string): number {
  using checkpoint = openCheckpoint(path);
  return [...checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
}

/** Prompt tokens per second of the integer engine, median of a few rounds; undefined without kernels for the scheme. */
async function engineSpeed(path: string, tokens: Int32Array): Promise<number | undefined> {
  try {
    using engine = openIntegerExecutor(path);
    const count = Math.min(SPEED.tokens, engine.shape.maxPositions, tokens.length);
    const prompt = tokens.slice(0, count);
    const pages = Int32Array.from(
      { length: Math.ceil(count / engine.pageTokens) },
      (_, page) => page,
    );
    engine.reserve(pages.length);
    const seconds: number[] = [];
    for (let round = 0; round <= SPEED.rounds; round++) {
      const started = performance.now();
      await engine.step([{ tokens: prompt, start: 0, pages, logits: "last" }]);
      // The first round warms up.
      if (round > 0) seconds.push((performance.now() - started) / 1000);
    }
    return count / seconds.sort((a, b) => a - b)[Math.floor(seconds.length / 2)];
  } catch (error) {
    if (error instanceof PlanishError) return undefined;
    throw error;
  }
}
