/**
 * The kernels of native/cuda: each source is compiled for the device's architecture on its first use (with macros where
 * a kernel is specialized by shape) and loaded once.
 */
import { CUDA_KERNELS } from "./kernel-table.js";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { PlanishError } from "../../common/errors.js";
import type { CudaDriver, CudaKernel, KernelSignature } from "./driver.js";
import type { CompileRequest, KernelCompiler } from "./nvrtc.js";

/** Folder of the .cu sources, whether this file runs from src/ or dist/; PLANISH_CUDA_SOURCES names another. */
export function kernelSourceFolder(): string {
  if (process.env.PLANISH_CUDA_SOURCES) return process.env.PLANISH_CUDA_SOURCES;
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, "package.json")) && dirname(directory) !== directory) {
    directory = dirname(directory);
  }
  return join(directory, "native", "cuda");
}

function readSource(folder: string, file: string): string {
  try {
    return readFileSync(join(folder, file), "utf8");
  } catch (cause) {
    throw new PlanishError(
      `the CUDA kernel source ${file} is not in ${folder}; reinstall planish`,
      { cause },
    );
  }
}

/** What to hand to the compiler for native/cuda/`name`.cu. */
export function kernelSource(
  name: string,
  architecture: string,
  defines: readonly string[] = [],
): CompileRequest {
  const folder = kernelSourceFolder();
  const headers = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) =>
    file.endsWith(".cuh"),
  );
  return {
    name: `${name}.cu`,
    source: readSource(folder, `${name}.cu`),
    headers: Object.fromEntries(headers.map((file) => [file, readSource(folder, file)])),
    architecture,
    defines,
  };
}

/** How a kernel's arguments are passed. @throws Error for a kernel that the table lacks. */
export function kernelSignature(file: string, name: string): KernelSignature {
  const signature = CUDA_KERNELS[file]?.[name];
  if (signature === undefined)
    throw new Error(`native/cuda/${file}.cu declares no ${name}; run npm run generate:abi`);
  return signature;
}

export class KernelModules implements Disposable {
  private readonly modules = new Map<string, number>();
  private readonly kernels = new Map<string, CudaKernel>();
  private readonly architecture: string;

  constructor(
    private readonly driver: CudaDriver,
    private readonly compiler: KernelCompiler,
  ) {
    this.architecture = driver.info.architecture;
  }

  /** The `extern "C"` kernel `name` of native/cuda/`file`.cu compiled with `defines`. */
  get(file: string, name: string, defines: readonly string[] = []): CudaKernel {
    const moduleKey = defines.length === 0 ? file : `${file} ${defines.join(" ")}`;
    const key = `${moduleKey} ${name}`;
    let kernel = this.kernels.get(key);
    if (!kernel) {
      let module = this.modules.get(moduleKey);
      if (module === undefined) {
        const image = this.compiler.compile(kernelSource(file, this.architecture, defines));
        module = this.driver.loadModule(image);
        this.modules.set(moduleKey, module);
      }
      kernel = this.driver.kernel(module, name, kernelSignature(file, name));
      this.kernels.set(key, kernel);
    }
    return kernel;
  }

  /** Every kernel loaded so far. */
  loaded(): readonly CudaKernel[] {
    return [...this.kernels.values()];
  }

  [Symbol.dispose](): void {
    for (const module of this.modules.values()) this.driver.unloadModule(module);
    this.modules.clear();
    this.kernels.clear();
  }
}
