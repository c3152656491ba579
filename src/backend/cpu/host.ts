/** Which of its forms the kernels of native/ have here: a native library, or WebAssembly where that is missing. */
import { loadNativeLibrary, nativeLibraryExists } from "./library.js";
import type { NativeLibrary } from "../contract/native-library.js";
import { loadWasmLibrary } from "../wasm/library.js";
import { chooseWasmModule, wasmLevels } from "../wasm/module.js";
import { PlanishError } from "../../common/errors.js";

/** `cpu`: native kernels. `wasm`: the same in WebAssembly. */
export type HostDevice = "cpu" | "wasm";

/** The form to take without being asked: native where it is built, else WebAssembly, else none. */
export function hostDevice(): HostDevice | undefined {
  if (nativeLibraryExists()) return "cpu";
  return wasmLevels().length > 0 ? "wasm" : undefined;
}

/** What to say where WebAssembly serves because there is no native library. */
export const WASM_SERVES =
  "no native kernels fit here: the same kernels in WebAssembly serve instead, a few times slower, in at most 4 GiB of memory; " +
  "`planish doctor` says how to get native ones";

/**
 * The library, at the instruction-set level that the environment variable PLANISH_ISA names, else the best.
 * @throws PlanishError when it is not built, or lacks the level here.
 */
export function loadHostLibrary(device: HostDevice): NativeLibrary {
  if (device === "cpu") return loadNativeLibrary();
  try {
    return loadWasmLibrary(chooseWasmModule(process.env.PLANISH_ISA || undefined));
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    throw new PlanishError(`--device wasm: ${error.message}`, { cause: error });
  }
}
