/** `planish doctor`: what runs on this machine and why, and what to install for more speed. */

import { cpus, freemem, totalmem } from "node:os";
import type { Command } from "commander";
import { openCudaLibrary, type CudaLibrary } from "../../backend/cuda/libraries.js";
import { createCudaBackend } from "../../backend/cuda/train/backend.js";
import { hostDevice, loadHostLibrary } from "../../backend/cpu/host.js";
import {
  nativeAdvice,
  nativeCandidates,
  nativeLibrary,
  platformName,
} from "../../backend/cpu/library-path.js";
import { companionFolder } from "../../common/companions.js";
import { PlanishError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { availableMemory } from "../../common/memory.js";
import { packageVersion } from "../../common/package.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";

/** What was found, by subject. */
export interface Diagnosis {
  readonly planish: string;
  readonly node: string;
  /** As the native packages are named. */
  readonly platform: string;
  readonly processor: string;
  readonly memory: { readonly total: number; readonly free: number; readonly available: number };
  readonly kernels: {
    /** What runs without --device: native kernels, the same in WebAssembly, plain TypeScript; or an error. */
    readonly serves: "cpu" | "wasm" | "reference" | "none";
    readonly level?: string;
    readonly levels?: readonly string[];
    readonly description?: string;
    /** Why the kernels do not serve. */
    readonly problem?: string;
    /** Every place that is looked at, in order; the first that exists is taken. */
    readonly places: readonly {
      readonly title: string;
      readonly path: string;
      readonly exists: boolean;
    }[];
  };
  readonly gpu: {
    readonly device?: string;
    readonly problem?: string;
    readonly libraries: Readonly<Record<CudaLibrary, string>>;
  };
  readonly companions: { readonly demo: string | null; readonly data: string | null };
  /** What would make it faster or more complete, one sentence each. */
  readonly advice: readonly string[];
}

export function register(program: Command): void {
  const command = program
    .command("doctor")
    .summary("show what runs on this machine and why, and what to install for more speed")
    .description(
      "Shows the platform, the kernels that serve and where they come from, the instruction-set level, GPU libraries and " +
        "memory, and what to install for more speed.",
    )
    .action(
      perform<Record<string, never>, []>(({ reporter }) => {
        const diagnosis = diagnose();
        reporter.result(diagnosis, () => render(diagnosis));
      }),
    );
  addExamples(command, ["planish doctor", "planish doctor --json"]);
}

function message(error: unknown): string {
  if (!(error instanceof PlanishError)) throw error;
  return error.message.replace(/^--device cuda:? ?/, "");
}

function kernels(): Diagnosis["kernels"] {
  const places = nativeCandidates().map(({ title, path, exists }) => ({ title, path, exists }));
  const device = hostDevice();
  if (!device)
    return { serves: "reference", problem: "neither native ones nor WebAssembly's", places };
  try {
    const library = loadHostLibrary(device);
    return {
      serves: device,
      level: library.level(),
      levels: library.levels(),
      description: library.description(),
      places,
    };
  } catch (error) {
    return { serves: "none", problem: message(error), places };
  }
}

function gpu(): Diagnosis["gpu"] {
  const found = (library: CudaLibrary): string => {
    try {
      return openCudaLibrary(library).path;
    } catch (error) {
      return message(error);
    }
  };
  const libraries = { driver: found("driver"), nvrtc: found("nvrtc"), cublasLt: found("cublasLt") };
  try {
    using backend = createCudaBackend();
    return { device: backend.description, libraries };
  } catch (error) {
    return { problem: message(error), libraries };
  }
}

function diagnose(): Diagnosis {
  const found = kernels();
  const device = gpu();
  const available = availableMemory();
  const advice: string[] = [];
  if (found.serves === "reference")
    advice.push(
      `${found.problem ?? ""}: plain TypeScript serves, hundreds of times slower; ${nativeAdvice()}`,
    );
  if (found.serves === "none") {
    const problem = found.problem ?? "";
    // The kernels' own message may say what to do already.
    advice.push(problem.includes(nativeAdvice()) ? problem : `${problem}; or ${nativeAdvice()}`);
  }
  if (found.serves === "wasm")
    advice.push(`WebAssembly serves, a few times slower than native kernels; ${nativeAdvice()}`);
  const better = found.levels?.at(-1);
  if (better !== undefined && better !== found.level)
    advice.push(`PLANISH_ISA chooses ${String(found.level)}; without it ${better} would serve`);
  if (found.level === "portable")
    advice.push(
      "the portable level serves, several times slower than this processor can be: " +
        (process.arch === "x64"
          ? "it has no AVX2, or the library was built by a compiler that does not know it"
          : "there are no kernels for its vector units in this build"),
    );
  if (device.device === undefined && isPresent(device.libraries.driver))
    advice.push(`the GPU does not serve: ${device.problem ?? ""}`);
  if (available < 2 ** 30)
    advice.push(`${formatBytes(available)} of memory are free: quantizing needs more`);
  return {
    planish: packageVersion(),
    node: process.version,
    platform: platformName(),
    processor: cpus()[0]?.model.trim() || "unknown processor",
    memory: { total: totalmem(), free: freemem(), available },
    kernels: found,
    gpu: device,
    companions: { demo: companionFolder("demo") ?? null, data: companionFolder("data") ?? null },
    advice,
  };
}

/** Paths and the loader's bare names have no spaces before a dot; reasons are sentences. */
function isPresent(library: string): boolean {
  return !/was not found|needs Linux/.test(library);
}

function render(diagnosis: Diagnosis): string {
  const { kernels: found, gpu: device, memory, companions } = diagnosis;
  const taken = nativeLibrary();
  const lines = [
    `planish ${diagnosis.planish}, Node.js ${diagnosis.node}, ${diagnosis.platform}`,
    `processor: ${diagnosis.processor}`,
    `memory: ${formatBytes(memory.available)} available of ${formatBytes(memory.total)}`,
    found.description !== undefined
      ? `kernels: ${found.description}, from ${found.serves === "wasm" ? "WebAssembly" : (taken?.title ?? "")} (levels here: ${found.levels?.join(", ") ?? ""})`
      : `kernels: none (${found.problem ?? ""})`,
    ...found.places.map(
      ({ title, path, exists }) => `  ${exists ? "found  " : "missing"} ${title}: ${path}`,
    ),
    `GPU: ${device.device ?? `none (${device.problem ?? ""})`}`,
    ...Object.entries(device.libraries).map(([name, where]) => `  ${name}: ${where}`),
    `demo models: ${companions.demo ?? "fetched when a command needs them (@planish/demo)"}`,
    `texts and tasks: ${companions.data ?? "fetched when a command needs them (@planish/data)"}`,
    ...(diagnosis.advice.length > 0 ? ["", "For more:"] : []),
    ...diagnosis.advice.map((advice) => `  - ${advice}`),
  ];
  return lines.join("\n");
}
