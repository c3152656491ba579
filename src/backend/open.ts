/** Opens a device by the name that `--device` takes. */

import { PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { Backend } from "./contract/training.js";
import { createCpuBackend } from "./cpu/train/backend.js";
import { hostDevice, WASM_SERVES } from "./cpu/host.js";
import { nativeAdvice } from "./cpu/library-path.js";
import { createCudaBackend } from "./cuda/train/backend.js";
import { createReferenceBackend } from "./reference/train/backend.js";

export const DEVICES = ["auto", "cuda", "cpu", "wasm", "reference"] as const;
export type Device = (typeof DEVICES)[number];

export interface OpenBackendOptions {
  /**
   * `auto`: the GPU where one works, else as when absent; what was picked is logged.
   * Absent: `cpu`, or with a warning `wasm` when there are no native kernels, and `reference` when there are none at all.
   */
  readonly device?: Device;
  /** Threads of the native kernels (default: one per core); the reference backend has one. */
  readonly threads?: number;
  readonly progress?: ProgressSink;
}

function openHost(threads: number | undefined, progress: ProgressSink): Backend {
  const device = hostDevice();
  if (device) {
    if (device === "wasm") progress.warn(WASM_SERVES);
    return createCpuBackend({ threads, device });
  }
  progress.warn(
    `there are no CPU kernels here: plain TypeScript serves instead, hundreds of times slower; ${nativeAdvice()}`,
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
    case "wasm":
      return createCpuBackend({ threads, device });
    case "reference":
      return createReferenceBackend({ realType: "f32" });
    default:
      throw new PlanishError(
        `device "${String(device)}" is unknown; the devices are ${DEVICES.join(", ")}`,
      );
  }
}
