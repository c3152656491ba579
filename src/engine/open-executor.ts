/** From a path to an executor: which arithmetic runs a model, and how much memory its cache gets. */
import { openBackend, type Device } from "../backend/open.js";
import { hostDevice, WASM_SERVES, type HostDevice } from "../backend/cpu/host.js";
import { openCheckpoint } from "../checkpoint/open.js";
import { loadTokenizer, type Tokenizer } from "../checkpoint/tokenizer.js";
import { PlanishError } from "../common/errors.js";
import { formatBytes } from "../common/format.js";
import { availableMemory } from "../common/memory.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { isArtifact, readQuantizationInfo } from "../quantize/artifact/artifact.js";
import { loadModel } from "../quantize/artifact/load.js";
import { NoKernel } from "../backend/contract/fuse.js";
import { formatScheme, parseScheme, type Bits } from "../backend/contract/scheme.js";
import { NoCudaKernel, openCudaExecutor, requireCuda } from "./gpu.js";
import type { Executor } from "../backend/contract/inference.js";
import { keepChoices, openInteger } from "./processor.js";
import { linearKind } from "../backend/cpu/infer/linear-kind.js";
import { modelSampling, type ModelSampling } from "./model-sampling.js";
import type { EngineInfo } from "./protocol.js";
import { SimulatedExecutor } from "./simulated-executor.js";

export interface OpenExecutorOptions {
  /**
   * What computes (default: the processor). `cuda` runs what its kernels take with integers, the rest simulated; `auto`
   * is `cuda` where a GPU works, else the processor; `reference` is always simulated.
   */
  readonly device?: Device;
  readonly threads?: number;
  /** Run the simulated arithmetic in float32 (the oracle) where there are low-bit kernels too. */
  readonly simulated?: boolean;
  /**
   * Weights that are codes in the file (GGUF) are run in 16 bits; default: as they are, by integer kernels, with activations
   * of 8 bits.
   */
  readonly dequantize?: boolean;
  /** Bits of the cache beside weights that are run as they are (default: 8). */
  readonly kvBits?: Bits;
  readonly progress?: ProgressSink;
}

export interface OpenedExecutor extends Disposable {
  readonly executor: Executor;
  readonly tokenizer: Tokenizer;
  readonly arithmetic: EngineInfo["arithmetic"];
  /** Absent for a model that is not quantized. */
  readonly scheme?: string;
  readonly sampling: ModelSampling;
}

/** @throws PlanishError when the path holds no model, or one that cannot run here. */
export function openExecutor(path: string, options: OpenExecutorOptions = {}): OpenedExecutor {
  const scheme = isArtifact(path) ? readQuantizationInfo(path).scheme : undefined;
  const device = chooseDevice(options);
  const chosen = { ...options, device };
  if (!options.simulated) {
    if (device === "cuda") {
      const executor = openOnGpu(path, chosen);
      if (executor) return opened(path, scheme, executor);
    } else {
      const host = kernelsFor(scheme, chosen);
      const own = host && openOnProcessor(path, host, chosen);
      if (own) return opened(path, own.scheme ?? scheme, own.executor);
    }
  }
  return openSimulated(path, scheme, chosen);
}

/** `auto`: the GPU where one works, else what `openBackend` takes without being asked; what was taken is told. */
function chooseDevice({ device, progress = silentProgress }: OpenExecutorOptions) {
  if (device !== "auto") return device;
  try {
    requireCuda();
    progress.note("device: cuda");
    return "cuda";
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    progress.note(`device: cpu; no GPU: ${error.message.replace(/^--device cuda:? ?/, "")}`);
  }
  return undefined;
}

/** The executor on the GPU's kernels, or undefined, with the reason told, for a model that they do not take. */
function openOnGpu(
  path: string,
  { progress = silentProgress }: OpenExecutorOptions,
): Executor | undefined {
  try {
    return openCudaExecutor(path);
  } catch (error) {
    if (!(error instanceof NoCudaKernel)) throw error;
    progress.warn(`${error.message}: it runs simulated in float32 on the GPU, slower`);
    return undefined;
  }
}

/** The executor on the processor's kernels, or undefined, with the reason told, for blocks that they do not take. */
function openOnProcessor(
  path: string,
  host: HostDevice,
  { device, threads, dequantize, kvBits, progress = silentProgress }: OpenExecutorOptions,
): { readonly executor: Executor; readonly scheme?: string } | undefined {
  try {
    const keep = keepChoices(path, { dequantize, kvBits });
    const { executor, scheme, kept } = openInteger(path, { threads, device: host, keep });
    if (host === "wasm" && device !== "wasm") progress.warn(WASM_SERVES);
    if (!kept || !("scheme" in kept)) return { executor };
    const written = formatScheme(scheme);
    progress.note(
      `weights stay as the file has them (${kept.types.join(", ")}): ${written}; --dequantize runs them in 16 bits`,
    );
    return { executor, scheme: written };
  } catch (error) {
    if (!(error instanceof NoKernel)) throw error;
    progress.warn(`${error.message} in the engine: it runs simulated in float32, slower`);
    return undefined;
  }
}

/** The form in which the processor's kernels run a model; none, with the reason told, where they do not take its scheme. */
function kernelsFor(
  scheme: string | undefined,
  { device, progress = silentProgress }: OpenExecutorOptions,
): HostDevice | undefined {
  const host = device === "cpu" || device === "wasm" ? device : device ? undefined : hostDevice();
  if (!host || scheme === undefined) return host;
  try {
    linearKind(parseScheme(scheme));
    return host;
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    progress.warn(`scheme ${scheme} has no integer kernels: it runs simulated in float32, slower`);
    return undefined;
  }
}

function opened(path: string, scheme: string | undefined, executor: Executor): OpenedExecutor {
  try {
    using checkpoint = openCheckpoint(path);
    return {
      executor,
      tokenizer: loadTokenizer(checkpoint),
      sampling: modelSampling(checkpoint.generationConfig),
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
      sampling: modelSampling(loaded.checkpoint.generationConfig),
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

/** Share of the free memory that the cache takes by default: of the machine's own, and of a GPU's, which has no other use. */
const DEFAULT_SHARE = { machine: 1 / 4, device: 3 / 4 };

export interface CacheOptions {
  /**
   * Bytes for the KV cache; default: a quarter of the free memory (three quarters of a GPU's), or what all sequences can
   * use if that is less.
   */
  readonly kvMemory?: number;
  readonly maxRunning: number;
}

/**
 * Pages that fit the budget, beside a state for each running sequence where the model has recurrent layers.
 * @throws PlanishError when none does, or the budget exceeds the free memory.
 */
export function pagesFor(executor: Executor, { kvMemory, maxRunning }: CacheOptions): number {
  const { shape, pageTokens, bytesPerPage, bytesPerState = 0 } = executor;
  const onDevice = executor.freeBytes?.();
  const addressable = executor.addressableBytes?.() ?? Infinity;
  const free = Math.min(onDevice ?? availableMemory(), addressable);
  if (kvMemory !== undefined && kvMemory > free)
    throw new PlanishError(
      `the KV cache is to take ${formatBytes(kvMemory)}, and ${formatBytes(free)} of memory are free; give less (--kv-memory)`,
    );
  const share = onDevice === undefined ? DEFAULT_SHARE.machine : DEFAULT_SHARE.device;
  const budget = kvMemory ?? free * share;
  const useful = maxRunning * Math.ceil(shape.maxPositions / pageTokens);
  const states = maxRunning * bytesPerState;
  if (states > budget)
    throw new PlanishError(
      `${maxRunning} sequences at once need ${formatBytes(states)} for the states of recurrent layers, and the cache has ${formatBytes(budget)}; give more (--kv-memory) or run fewer at once (--concurrency)`,
    );
  // Blocks without attention leave nothing in pages.
  const pages = Math.min(useful, Math.floor((budget - states) / Math.max(1, bytesPerPage)));
  if (pages < 1)
    throw new PlanishError(
      `a KV cache of ${formatBytes(budget)} holds no page of ${pageTokens} tokens (${formatBytes(bytesPerPage)}); give more (--kv-memory)`,
    );
  return pages;
}
