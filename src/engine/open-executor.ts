/** From a path to an executor: which arithmetic runs a model, and how much memory its cache gets. */
import { freemem } from "node:os";
import { openBackend, type Device } from "../backend/open.js";
import { nativeLibraryExists } from "../backend/cpu/library.js";
import { openCheckpoint } from "../checkpoint/open.js";
import { loadTokenizer, type Tokenizer } from "../checkpoint/tokenizer.js";
import { PlanishError } from "../common/errors.js";
import { formatBytes } from "../common/format.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { isArtifact, readQuantizationInfo } from "../quantize/artifact.js";
import { loadModel } from "../quantize/load.js";
import { parseScheme } from "../quantize/scheme.js";
import type { Executor } from "./executor.js";
import { openIntegerExecutor } from "./integer/index.js";
import { linearKind } from "./integer/source.js";
import type { EngineInfo } from "./protocol.js";
import { SimulatedExecutor } from "./simulated-executor.js";

export interface OpenExecutorOptions {
  /** What computes; another device than the processor runs the simulated arithmetic. */
  readonly device?: Device;
  readonly threads?: number;
  /** Run the simulated arithmetic in float32 (the oracle) where there are low-bit kernels too. */
  readonly simulated?: boolean;
  readonly progress?: ProgressSink;
}

export interface OpenedExecutor extends Disposable {
  readonly executor: Executor;
  readonly tokenizer: Tokenizer;
  readonly arithmetic: EngineInfo["arithmetic"];
  /** Absent for a model that is not quantized. */
  readonly scheme?: string;
}

/** @throws PlanishError when the path holds no model, or one that cannot run here. */
export function openExecutor(path: string, options: OpenExecutorOptions = {}): OpenedExecutor {
  const scheme = isArtifact(path) ? readQuantizationInfo(path).scheme : undefined;
  return runsOnKernels(scheme, options)
    ? openNative(path, scheme, options)
    : openSimulated(path, scheme, options);
}

/** Whether the processor's own kernels run a model; why not, where that is not what was asked for. */
function runsOnKernels(
  scheme: string | undefined,
  { device = "cpu", simulated = false, progress = silentProgress }: OpenExecutorOptions,
): boolean {
  if (simulated || device !== "cpu" || !nativeLibraryExists()) return false;
  if (scheme === undefined) return true;
  try {
    linearKind(parseScheme(scheme));
    return true;
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    progress.warn(`scheme ${scheme} has no integer kernels: it runs simulated in float32, slower`);
    return false;
  }
}

function openNative(
  path: string,
  scheme: string | undefined,
  { threads }: OpenExecutorOptions,
): OpenedExecutor {
  const executor = openIntegerExecutor(path, { threads });
  try {
    using checkpoint = openCheckpoint(path);
    return {
      executor,
      tokenizer: loadTokenizer(checkpoint),
      arithmetic: scheme === undefined ? "16-bit" : "integer",
      scheme,
      [Symbol.dispose]: () => executor[Symbol.dispose](),
    };
  } catch (error) {
    executor[Symbol.dispose]();
    throw error;
  }
}

function openSimulated(
  path: string,
  scheme: string | undefined,
  options: OpenExecutorOptions,
): OpenedExecutor {
  const backend = openBackend(options);
  try {
    const loaded = loadModel(backend, path);
    const what = scheme === undefined ? "not quantized, float32" : `${scheme}, simulated`;
    const executor = new SimulatedExecutor(loaded.model, what);
    return {
      executor,
      tokenizer: loadTokenizer(loaded.checkpoint),
      arithmetic: "simulated",
      scheme,
      [Symbol.dispose]: () => {
        executor[Symbol.dispose]();
        loaded[Symbol.dispose]();
        backend[Symbol.dispose]();
      },
    };
  } catch (error) {
    backend[Symbol.dispose]();
    throw error;
  }
}

/** Share of the free memory that the cache takes by default. */
const DEFAULT_SHARE = 1 / 4;

export interface CacheOptions {
  /** Bytes for the KV cache; default: a quarter of the free memory, or what all sequences can use if that is less. */
  readonly kvMemory?: number;
  readonly maxRunning: number;
}

/** Pages that fit the budget. @throws PlanishError when none does, or the budget exceeds the free memory. */
export function pagesFor(executor: Executor, { kvMemory, maxRunning }: CacheOptions): number {
  const { config, pageTokens, bytesPerPage } = executor;
  const free = freemem();
  if (kvMemory !== undefined && kvMemory > free)
    throw new PlanishError(
      `the KV cache is to take ${formatBytes(kvMemory)}, and ${formatBytes(free)} of memory are free; give less (--kv-memory)`,
    );
  const useful = maxRunning * Math.ceil(config.maxPositions / pageTokens);
  const pages = Math.min(useful, Math.floor((kvMemory ?? free * DEFAULT_SHARE) / bytesPerPage));
  if (pages < 1)
    throw new PlanishError(
      `a KV cache of ${formatBytes(kvMemory ?? free * DEFAULT_SHARE)} holds no page of ${pageTokens} tokens (${formatBytes(bytesPerPage)}); give more (--kv-memory)`,
    );
  return pages;
}
