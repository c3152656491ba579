/**
 * Zero-shot tasks, scored as lm-evaluation-harness scores them with no examples before the question.
 * Source: docs/evaluate.md, Zero-shot tasks.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { Precision } from "../backend/contract/training.js";
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { Executor } from "../backend/contract/inference.js";
import type { ModelConfig } from "../models/config.js";
import type { LanguageModel } from "../models/language-model.js";
import { scoreWithExecutor } from "./engine-score.js";
import { pairEncoder, type EncodedPair } from "./encode-pair.js";
import { scoreContinuations, type ContinuationScore } from "./score.js";
import { meanWithError, type Measure } from "./statistics.js";
import type { MetricName, ReadItem, TaskData } from "./tasks/index.js";

export interface ZeroShotOptions {
  /** Puts what the tokenizer puts before a text before each context (default false, as the harness does). */
  readonly addBos?: boolean;
  /** Tokens run through the model at once (default 1024). */
  readonly tokensPerStep?: number;
  /** How large products are computed (default f32). */
  readonly precision?: Precision;
  /** An engine's executor of the same model, to score through instead. */
  readonly executor?: Executor;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
  readonly label?: string;
  /** Called with a task's items when the task is done, in the order of the file. */
  readonly onItems?: (items: readonly ItemResult[]) => void;
}

/** One item as it came out. */
export interface ItemResult {
  readonly task: string;
  /** Line (JSONL) or row (Parquet) of the file, from 1. */
  readonly line: number;
  readonly id?: string;
  /** Index of the right option, and of the likeliest; of a cloze item 0. */
  readonly gold: number;
  readonly prediction: number;
  /** Likeliest by log-likelihood per character. */
  readonly predictionNorm?: number;
  readonly correct: boolean;
  readonly correctNorm?: boolean;
  readonly options: readonly (ContinuationScore & {
    readonly tokens: number;
    readonly characters: number;
  })[];
}

export interface TaskResult {
  readonly task: string;
  readonly file: string;
  /** Items scored, and items in the file. */
  readonly items: number;
  readonly available: number;
  readonly metrics: Readonly<Partial<Record<MetricName, Measure>>>;
  /** Which of the metrics enters the average. */
  readonly customary: "acc" | "acc_norm";
  /** Items whose context lost its beginning to the model's number of positions. */
  readonly truncated: number;
  readonly seconds: number;
}

export interface ZeroShotResult {
  readonly tasks: readonly TaskResult[];
  /** Mean over tasks of the customary metric. */
  readonly average: Measure;
  readonly seconds: number;
}

/** Scores tasks one after the other. @throws InterruptedError when the signal is aborted between steps. */
export async function evaluateTasks(
  model: LanguageModel,
  tokenizer: Tokenizer,
  tasks: readonly TaskData[],
  options: ZeroShotOptions = {},
): Promise<ZeroShotResult> {
  if (tasks.length === 0) throw new PlanishError("no tasks were given");
  const results: TaskResult[] = [];
  for (const task of tasks) results.push(await evaluateTask(model, tokenizer, task, options));
  return {
    tasks: results,
    average: averageOfTasks(results),
    seconds: results.reduce((sum, { seconds }) => sum + seconds, 0),
  };
}

/** Mean of the customary metrics; tasks are independent, so their squared errors add. */
export function averageOfTasks(
  results: readonly Pick<TaskResult, "metrics" | "customary">[],
): Measure {
  const measures = results.map(({ metrics, customary }) => metrics[customary] ?? { value: NaN });
  const value = measures.reduce((sum, m) => sum + m.value, 0) / measures.length;
  if (measures.some(({ stderr }) => stderr === undefined)) return { value };
  const squares = measures.reduce((sum, { stderr = 0 }) => sum + stderr ** 2, 0);
  return { value, stderr: Math.sqrt(squares) / measures.length };
}

const TOKENS_PER_STEP = 1024;

interface EncodedItem {
  /** Index into the task's items. */
  readonly index: number;
  readonly pairs: readonly EncodedPair[];
  /** Tokens it takes at most: the first context, and all continuations. */
  readonly tokens: number;
}

/** Scores one task. @throws InterruptedError when the signal is aborted between steps. */
export async function evaluateTask(
  model: LanguageModel,
  tokenizer: Tokenizer,
  data: TaskData,
  options: ZeroShotOptions = {},
): Promise<TaskResult> {
  const { task, items } = data;
  const started = performance.now();
  const encoded = encodeItems(tokenizer, data, options);
  const progress = (options.progress ?? silentProgress).task(
    options.label === undefined ? task.name : `${options.label}: ${task.name}`,
    items.length,
  );
  const results: ItemResult[] = [];
  using arena = model.backend.arena();
  try {
    for (const step of steps(encoded, options.tokensPerStep ?? TOKENS_PER_STEP)) {
      if (options.signal?.aborted)
        throw new InterruptedError(
          `stopped in ${task.name} after ${results.filter(Boolean).length} of ${items.length} items`,
        );
      const pairs = step.flatMap((item) => item.pairs);
      const greedy = task.kind === "cloze";
      const scores = options.executor
        ? await scoreWithExecutor(options.executor, pairs.map(fitting(model.config)), { greedy })
        : scoreContinuations(model, pairs, { arena, greedy, precision: options.precision });
      let first = 0;
      for (const item of step) {
        const own = scores.slice(first, first + item.pairs.length);
        results[item.index] = judge(data, items[item.index], item.pairs, own);
        first += own.length;
      }
      progress.advance(step.length);
      await nextTurn();
    }
  } finally {
    progress.done();
  }
  options.onItems?.(results);
  const { maxPositions } = model.config;
  return {
    task: task.name,
    file: data.path,
    items: items.length,
    available: data.available,
    metrics: metricsOf(data, results),
    customary: task.customary,
    truncated: encoded.filter(({ pairs }) =>
      pairs.some((pair) => lengthOf(pair) > maxPositions + 1),
    ).length,
    seconds: (performance.now() - started) / 1000,
  };
}

/** A pair whose context has lost what lies beyond the model's positions, as `scoreContinuations` cuts it. */
function fitting({ maxPositions }: ModelConfig): (pair: EncodedPair) => EncodedPair {
  return ({ context, continuation }) => ({
    context: context.slice(Math.max(0, context.length + continuation.length - maxPositions - 1)),
    continuation,
  });
}

function lengthOf({ context, continuation }: EncodedPair): number {
  return context.length + continuation.length;
}

function encodeItems(
  tokenizer: Tokenizer,
  { items, path }: TaskData,
  { addBos }: ZeroShotOptions,
): EncodedItem[] {
  const encode = pairEncoder(tokenizer, { addBos });
  return items.map(({ options, line }, index) => {
    let pairs: EncodedPair[];
    try {
      pairs = options.map(({ context, continuation }) => encode(context, continuation));
    } catch (cause) {
      if (!(cause instanceof PlanishError)) throw cause;
      throw new PlanishError(`${path} item ${line}: ${cause.message}`, { cause });
    }
    const tokens = pairs.reduce(
      (sum, { continuation }) => sum + continuation.length,
      pairs[0].context.length,
    );
    return { index, pairs, tokens };
  });
}

/** Items of like length together, since attention pads; the longest first, which shows at once whether memory suffices. */
function steps(items: readonly EncodedItem[], tokensPerStep: number): EncodedItem[][] {
  const longest = (item: EncodedItem): number => Math.max(...item.pairs.map(lengthOf));
  const order = [...items].sort((a, b) => longest(b) - longest(a) || a.index - b.index);
  const groups: EncodedItem[][] = [];
  let room = 0;
  for (const item of order) {
    if (groups.length === 0 || item.tokens > room) {
      groups.push([]);
      room = tokensPerStep;
    }
    groups[groups.length - 1].push(item);
    room -= item.tokens;
  }
  return groups;
}

function judge(
  { task }: TaskData,
  item: ReadItem,
  pairs: readonly EncodedPair[],
  scores: readonly ContinuationScore[],
): ItemResult {
  const { line, id, gold, lengths } = item;
  const sums = scores.map(({ logLikelihood }) => logLikelihood);
  const prediction = firstMaximum(sums);
  const normalized = task.metrics.includes("acc_norm");
  const predictionNorm = firstMaximum(sums.map((sum, i) => sum / lengths[i]));
  return {
    task: task.name,
    line,
    ...(id === undefined ? {} : { id }),
    gold,
    prediction,
    correct: task.kind === "cloze" ? scores[0].greedy === true : prediction === gold,
    ...(normalized ? { predictionNorm, correctNorm: predictionNorm === gold } : {}),
    options: scores.map((score, i) => ({
      ...score,
      tokens: pairs[i].continuation.length,
      characters: lengths[i],
    })),
  };
}

/** Index of the largest, the first among equals. */
function firstMaximum(values: readonly number[]): number {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

function metricsOf({ task }: TaskData, results: readonly ItemResult[]): TaskResult["metrics"] {
  const measures: Partial<Record<MetricName, Measure>> = {};
  for (const metric of task.metrics) {
    switch (metric) {
      case "acc":
        measures.acc = meanWithError(results.map(({ correct }) => Number(correct)));
        break;
      case "acc_norm":
        measures.acc_norm = meanWithError(results.map(({ correctNorm }) => Number(correctNorm)));
        break;
      case "perplexity":
        measures.perplexity = perplexityOf(results.map(({ options }) => options[0].logLikelihood));
    }
  }
  return measures;
}

/**
 * exp(−mean). Its error is the mean's times the perplexity, to first order (the harness bootstraps instead).
 */
function perplexityOf(logLikelihoods: readonly number[]): Measure {
  const { value, stderr } = meanWithError(logLikelihoods);
  const perplexity = Math.exp(-value);
  return { value: perplexity, stderr: stderr === undefined ? undefined : perplexity * stderr };
}
