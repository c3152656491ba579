/** Binding of the matrix products (native/matmul*.h). */
import type { Kernels } from "../backend.js";
import type { NativeLibrary } from "./library.js";

export function matmulKernels(_library: NativeLibrary): Pick<Kernels, never> {
  return {};
}
