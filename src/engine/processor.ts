/** The integer engine's door: opens a model, quantized or not, as an executor on the CPU. */
import { loadHostLibrary, type HostDevice } from "../backend/cpu/host.js";
import { PlanishError } from "../common/errors.js";
import { IntegerExecutor } from "../backend/cpu/infer/executor.js";
import type { Kept, KeptChoices } from "../models/kept.js";
import { isArtifact } from "../quantize/artifact/artifact.js";
import type { Bits, Scheme } from "../backend/contract/scheme.js";
import { openSource } from "./source.js";

export { IntegerExecutor, PAGE_TOKENS, type StepProfile } from "../backend/cpu/infer/executor.js";

export interface IntegerExecutorOptions {
  /** Threads of the library's pool (default: one per core). */
  readonly threads?: number;
  /** Native kernels, or the same ones in WebAssembly (default `cpu`). */
  readonly device?: HostDevice;
  /** An original whose weights are codes runs on its own grids (default: in 16 bits). */
  readonly keep?: KeptChoices;
}

/** What was opened, and what of it is to be told. */
export interface OpenedInteger {
  readonly executor: IntegerExecutor;
  readonly scheme: Scheme;
  readonly kept?: Kept;
}

/**
 * Opens a local model for the engine: an artifact with its integer kernels, or an original with bf16 weights. Its schemes
 * are w2–w8 with a2–a8 (integer products), with groups or without, or a16 (f32 products), and w16a16, each with any cache
 * width.
 * @throws PlanishError when there is no such model, when its scheme has no kernels, or when the native library is not built.
 */
export function openIntegerExecutor(
  path: string,
  options: IntegerExecutorOptions = {},
): IntegerExecutor {
  return openInteger(path, options).executor;
}

/**
 * How a model is opened whose weights may be codes in the file: as they are unless `dequantize`.
 * @throws PlanishError when bits of the cache are given where nothing reads them.
 */
export function keepChoices(
  path: string,
  { dequantize, kvBits }: { readonly dequantize?: boolean; readonly kvBits?: Bits },
): KeptChoices | undefined {
  if (kvBits !== undefined && (dequantize || isArtifact(path)))
    throw new PlanishError(
      `--kv-bits chooses the cache beside weights that stay as a GGUF file has them; ${dequantize ? "--dequantize runs them in 16 bits: leave out one of the two" : `the scheme of the artifact ${path} says what its cache has: leave it out`}`,
    );
  return dequantize ? undefined : { kvBits };
}

/** As `openIntegerExecutor`, with the scheme that runs. */
export function openInteger(path: string, options: IntegerExecutorOptions = {}): OpenedInteger {
  const { threads, device = "cpu", keep } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads > 0))
    throw new PlanishError(`threads is ${threads}; give an integer of at least 1`);
  const library = loadHostLibrary(device);
  const count = library.setThreads(threads ?? 0);
  using source = openSource(path, keep);
  const { scheme, kept } = source;
  if (keep?.kvBits !== undefined && kept && "obstacle" in kept)
    throw new PlanishError(
      `--kv-bits chooses the cache beside weights that stay as the file has them, and these cannot: ${kept.obstacle}; leave it out`,
    );
  return { executor: new IntegerExecutor(library, count, source), scheme, kept };
}
