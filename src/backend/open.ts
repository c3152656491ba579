/** Opens a device by the name that `--device` takes. */

import { PlanishError } from "../common/errors.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import type { Backend } from "./backend.js";
import { createCpuBackend } from "./cpu/backend.js";
import { nativeLibraryExists } from "./cpu/library.js";
import { createReferenceBackend } from "./reference/index.js";

export const DEVICES = ["cpu", "reference"] as const;
export type Device = (typeof DEVICES)[number];

export interface OpenBackendOptions {
  /** Absent: `cpu`, or `reference` with a warning when the native kernels were not built. */
  readonly device?: Device;
  /** Threads of the native kernels (default: one per core); the reference backend has one. */
  readonly threads?: number;
  readonly progress?: ProgressSink;
}

/**
 * The backend, in float32; the caller disposes it. Throws PlanishError when the named device is not available on this
 * machine, or its name is not one of `DEVICES`.
 */
export function openBackend(options: OpenBackendOptions = {}): Backend {
  const { device, threads, progress = silentProgress } = options;
  switch (device) {
    case undefined:
      if (nativeLibraryExists()) return createCpuBackend({ threads });
      progress.warn(
        "the CPU kernels are not built (npm run build:native needs a C++17 compiler): " +
          "plain TypeScript serves instead, hundreds of times slower",
      );
      return createReferenceBackend({ realType: "f32" });
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
