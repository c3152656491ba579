/** The integer engine's door: opens a model, quantized or not, as an executor on the CPU. */
import { loadHostLibrary, type HostDevice } from "../backend/cpu/host.js";
import { PlanishError } from "../common/errors.js";
import { IntegerExecutor } from "../backend/cpu/infer/executor.js";
import { openSource } from "./source.js";

export { IntegerExecutor, PAGE_TOKENS, type StepProfile } from "../backend/cpu/infer/executor.js";

export interface IntegerExecutorOptions {
  /** Threads of the library's pool (default: one per core). */
  readonly threads?: number;
  /** Native kernels, or the same ones in WebAssembly (default `cpu`). */
  readonly device?: HostDevice;
}

/**
 * Opens a local model for the engine: an artifact with its integer kernels, or an original with bf16 weights. Its schemes
 * are w2–w8 with a2–a8 (integer products) or a16 (f32 products), and w16a16, each with any cache width.
 * @throws PlanishError when there is no such model, when its scheme has no kernels, or when the native library is not built.
 */
export function openIntegerExecutor(
  path: string,
  options: IntegerExecutorOptions = {},
): IntegerExecutor {
  const { threads, device = "cpu" } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads > 0))
    throw new PlanishError(`threads is ${threads}; give an integer of at least 1`);
  const library = loadHostLibrary(device);
  const count = library.setThreads(threads ?? 0);
  using source = openSource(path);
  return new IntegerExecutor(library, count, source);
}
