/** Opens a device by the name that `--device` takes. */

import { PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { Backend } from "./contract/training.js";
import { createCpuBackend } from "./cpu/train/backend.js";
import { nativeLibraryExists } from "./cpu/library.js";
import { createCudaBackend } from "./cuda/train/backend.js";
import { createReferenceBackend } from "./reference/train/backend.js";

export const DEVICES = ["auto", "cuda", "cpu", "reference"] as const;
export type Device = (typeof DEVICES)[number];

export interface OpenBackendOptions {
  /**
   * `auto`: the GPU where one works, else `cpu`, else `reference`; what was picked is logged.
   * Absent: `cpu`, or `reference` with a warning when the native kernels were not built.
   */
  readonly device?: Device;
  /** Threads of the native kernels (default: one per core); the reference backend has one. */
  readonly threads?: number;
  readonly progress?: ProgressSink;
}

function openHost(threads: number | undefined, progress: ProgressSink): Backend {
  if (nativeLibraryExists()) return createCpuBackend({ threads });
  progress.warn(
    "the CPU kernels are not built (npm run build:native needs a C++17 compiler): " +
      "plain TypeScript serves instead, hundreds of times slower",
  );
  return createReferenceBackend({ realType: "f32" });
}

/** The GPU when it opens, else the processor, with the reason. */
function openBest(threads: number | undefined, progress: ProgressSink): Backend {
  try {
    const backend = createCudaBackend();
    progress.note(`device: cuda (${backend.description})`);
    return backend;
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    const backend = openHost(threads, progress);
    progress.note(
      `device: ${backend.name} (${backend.description}); no GPU: ${error.message.replace(/^--device cuda:? ?/, "")}`,
    );
    return backend;
  }
}

/**
 * The backend, in float32; the caller disposes it. Throws PlanishError when the named device is not available on this
 * machine, or its name is not one of `DEVICES`.
 */
export function openBackend(options: OpenBackendOptions = {}): Backend {
  const { device, threads, progress = silentProgress } = options;
  switch (device) {
    case undefined:
      return openHost(threads, progress);
    case "auto":
      return openBest(threads, progress);
    case "cuda":
      return createCudaBackend();
    case "cpu":
      return createCpuBackend({ threads });
    case "reference":
      return createReferenceBackend({ realType: "f32" });
    default:
      throw new PlanishError(
        `device "${String(device)}" is unknown; the devices are ${DEVICES.join(", ")}`,
      );
  }
}
