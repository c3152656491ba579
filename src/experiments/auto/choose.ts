/** `planish quantize --auto`: looks at a model and a machine, and chooses method, scheme and recipe. */
import type { Backend } from "../../backend/contract/training.js";
import { isInterruption, PlanishError, UsageError } from "../../common/errors.js";
import { formatBytes, formatDuration, formatTable } from "../../common/format.js";
import type { ProgressSink } from "../../common/progress.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { decodeRates, type DecodeRates } from "../../measure/decode-rates.js";
import { parseSource } from "../../models/source.js";
import type { Budget } from "../../quantize/run/bits.js";
import { roundedDivergences } from "../../quantize/run/rounded.js";
import { costOf, judged, waysFor, type Candidate, type Judged } from "./candidates.js";

export interface ChooseOptions {
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly budget?: Budget;
  /** Most that quantizing may take, in seconds (default: 25 minutes). */
  readonly seconds?: number;
  readonly calibration?: string;
  readonly seed?: number;
  readonly threads?: number;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
}

export interface AutoChoice {
  readonly chosen: Judged;
  readonly candidates: readonly Judged[];
  /** What of the budget is left to the choice of single sites' bits. */
  readonly budget?: Budget;
  /** Why this one, in words. */
  readonly reason: string;
}

export const DEFAULT_SECONDS = 25 * 60;

/** Nats that a speed of e times as much is worth: 10% faster makes up for 0.05 nats a token. */
const NATS_PER_E_FOLD = 0.5;

/**
 * Weighs divergence against decoding speed: the lowest of KL + ½·ln(time of a token), among those within size, time and
 * divergence.
 * @throws UsageError when none is within size and time, with the nearest.
 */
export function choose(
  candidates: readonly Judged[],
  { budget = {}, seconds = DEFAULT_SECONDS }: Pick<ChooseOptions, "budget" | "seconds">,
): { readonly chosen: Judged; readonly reason: string } {
  const least = (key: "bytes" | "seconds" | "kl", of: readonly Judged[]): Judged =>
    of.reduce((best, each) => (each[key] < best[key] ? each : best));
  const small = candidates.filter(({ bytes }) => bytes <= (budget.size ?? Infinity));
  if (small.length === 0) {
    const { bytes } = least("bytes", candidates);
    throw new UsageError(
      `--budget size=${formatBytes(budget.size ?? 0)} is less than the smallest way takes, ${formatBytes(bytes)}; give at least that, or a method and scheme of your own`,
    );
  }
  const quick = small.filter((each) => each.seconds <= seconds);
  if (quick.length === 0) {
    const fastest = least("seconds", small);
    throw new UsageError(
      `--time ${formatDuration(seconds)} is less than the quickest way takes, about ${formatDuration(fastest.seconds)} (${nameOf(fastest)}); give more`,
    );
  }
  const { kl: wanted } = budget;
  const near = wanted === undefined ? quick : quick.filter(({ kl }) => kl <= wanted);
  if (near.length === 0) {
    const chosen = least("kl", quick);
    return {
      chosen,
      reason: `no way is expected within kl=${wanted}; this one is nearest`,
    };
  }
  const score = ({ kl, decodeSeconds }: Judged) => kl + NATS_PER_E_FOLD * Math.log(decodeSeconds);
  const chosen = near.reduce((best, each) => (score(each) < score(best) ? each : best));
  return { chosen, reason: "the best of divergence and decoding speed within the limits" };
}

/** `flatquant:fast w4g64a8g64kv8h8`. */
export function nameOf({ method, preset, scheme, recipe }: Candidate): string {
  if (method === "keep") return `keep, cache of ${recipe.kvBits} bits`;
  return `${method === "flatquant" ? `${method}:${preset}` : method} ${scheme ?? ""}`.trim();
}

/** @throws UsageError as `choose`; InterruptedError on the signal. */
export async function autoChoice(options: ChooseOptions): Promise<AutoChoice> {
  const { backend, source, budget, progress, seconds = DEFAULT_SECONDS } = options;
  const model = { source, ...parseSource(source) };
  const rates = ratesOf(options);
  const costs = waysFor(model, seconds, backend).flatMap((way) => {
    try {
      return [costOf(model, way, rates, backend)];
    } catch (error) {
      if (!(error instanceof PlanishError) || isInterruption(error)) throw error;
      progress.note(`${way.method} ${way.scheme ?? ""} is left out: ${error.message}`);
      return [];
    }
  });
  const rounded = await roundedDivergences(
    { ...options, ...model },
    costs.map((each) => each.rounded),
  );
  const candidates = costs.map((each, i) => judged(each, rounded[i]));
  const { chosen, reason } = choose(candidates, options);
  return {
    chosen,
    candidates,
    reason,
    // A kept grid has the bits that it has; with others, what room is left goes where it helps most.
    budget: chosen.method === "keep" ? undefined : budget,
  };
}

/** Without native kernels nothing is measured, and only the proportions of sizes count. */
function ratesOf({ backend, threads, progress }: ChooseOptions): DecodeRates {
  if (backend.name !== "cpu" && backend.name !== "cuda") return { int4: 1, int8: 1, bf16: 1 };
  try {
    return decodeRates(threads);
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    progress.note(`decoding rates are not known: ${error.message}`);
    return { int4: 1, int8: 1, bf16: 1 };
  }
}

/** The candidates as a table, the chosen one marked. */
export function choiceText({ candidates, chosen, reason }: AutoChoice): string {
  const best = Math.min(...candidates.map(({ decodeSeconds }) => decodeSeconds));
  const rows = candidates.map((each) => [
    each === chosen ? "→" : "",
    nameOf(each),
    each.kl.toPrecision(2),
    formatBytes(each.bytes),
    `${(best / each.decodeSeconds).toFixed(2)}×`,
    formatDuration(each.seconds),
  ]);
  return `${formatTable(["", "way", "KL expected", "size", "decoding", "time"], rows)}\n\n→ ${nameOf(chosen)}: ${reason}`;
}
