/** Flags that several commands take, declared once so that they read and behave alike. */

import { Option } from "commander";
import { DEVICES, type Device } from "../../backend/open.js";
import { integer } from "../flags.js";

export interface DeviceFlags {
  readonly device?: Device;
  readonly threads?: number;
}

export const deviceOption = (): Option =>
  new Option(
    "--device <name>",
    "what computes: an NVIDIA GPU (cuda), native kernels (cpu), the same in WebAssembly (wasm, a few times slower), plain TypeScript " +
      "(reference, very slow), or the best of these (auto); default: cpu where it is built, else wasm",
  ).choices(DEVICES);

export const threadsOption = (): Option =>
  new Option("--threads <n>", "threads of the native kernels (default: one per core)").argParser(
    integer({ min: 1, max: 1024 }),
  );

export const seedOption = (): Option =>
  new Option("--seed <n>", "the same seed gives the same result on the same machine and threads")
    .argParser(integer({ min: 0, max: 2 ** 32 - 1 }))
    .default(0);

export const MODEL_ARGUMENT =
  "directory in Hugging Face form, .gguf file, artifact of `planish quantize`, hf:org/name, or short name";
