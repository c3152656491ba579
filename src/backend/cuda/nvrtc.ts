/**
 * NVRTC: compiles CUDA sources to machine code (cubin) for one architecture at run time, and keeps the result on disk
 * by source, options, architecture and compiler version. Needs no GPU.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { PlanishError } from "../../common/errors.js";
import { writeAtomically } from "../../common/temporary.js";
import { openCudaLibrary, type ForeignFunction } from "./libraries.js";

export interface CompileRequest {
  /** File name shown in messages. */
  readonly name: string;
  readonly source: string;
  /** Headers by the name that `#include` uses. */
  readonly headers?: Readonly<Record<string, string>>;
  /** E.g. "sm_90" or "sm_90a" for machine code; "compute_80" for PTX, which a driver translates for its GPU. */
  readonly architecture: string;
  /** Macros, in the form NAME=VALUE. */
  readonly defines?: readonly string[];
  /** Further compiler options. */
  readonly options?: readonly string[];
  /** Only reads the source, of which comes no image: a check of seconds for all kernels. Assembly is not looked at. */
  readonly syntaxOnly?: boolean;
}

/** Where compiled kernels are kept: PLANISH_CUDA_CACHE, else `planish/cuda` in the user's cache folder. */
export function kernelCacheFolder(): string {
  return (
    process.env.PLANISH_CUDA_CACHE ??
    join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "planish", "cuda")
  );
}

export class Nvrtc {
  /** Major and minor version of the compiler. */
  readonly version: readonly [number, number];
  readonly path: string;
  private readonly call: Readonly<Record<string, ForeignFunction>>;

  /** Throws PlanishError when NVRTC is not installed. */
  constructor() {
    const library = openCudaLibrary("nvrtc");
    this.path = library.path;
    this.call = {
      version: library.bind("int nvrtcVersion(void* major, void* minor)"),
      error: library.bind("const char* nvrtcGetErrorString(int status)"),
      create: library.bind(
        "int nvrtcCreateProgram(void* program, const char* source, const char* name, int headers, " +
          "const char** contents, const char** names)",
      ),
      compile: library.bind(
        "int nvrtcCompileProgram(uint64_t program, int count, const char** options)",
      ),
      logSize: library.bind("int nvrtcGetProgramLogSize(uint64_t program, void* bytes)"),
      log: library.bind("int nvrtcGetProgramLog(uint64_t program, void* text)"),
      ptxSize: library.bind("int nvrtcGetPTXSize(uint64_t program, void* bytes)"),
      ptx: library.bind("int nvrtcGetPTX(uint64_t program, void* text)"),
      cubinSize: library.bind("int nvrtcGetCUBINSize(uint64_t program, void* bytes)"),
      cubin: library.bind("int nvrtcGetCUBIN(uint64_t program, void* image)"),
      destroy: library.bind("int nvrtcDestroyProgram(void* program)"),
    };
    const [major, minor] = [new Int32Array(1), new Int32Array(1)];
    this.check("nvrtcVersion", this.call.version(major, minor));
    this.version = [major[0], minor[0]];
  }

  private check(name: string, status: unknown): void {
    if (Number(status) !== 0) {
      throw new PlanishError(
        `CUDA's run-time compiler failed in ${name} (${String(this.call.error(Number(status)))}); ` +
          `it was loaded from ${this.path}, which must be complete (libnvrtc-builtins beside it)`,
      );
    }
  }

  /**
   * Machine code of a source, and the compiler's log (warnings).
   * Throws PlanishError with the log when the source does not compile or the compiler does not know the architecture.
   */
  compile(request: CompileRequest): { image: Uint8Array; log: string } {
    const headers = Object.entries(request.headers ?? {});
    const slot = new BigUint64Array(1);
    this.check(
      "nvrtcCreateProgram",
      this.call.create(
        slot,
        request.source,
        request.name,
        headers.length,
        headers.map(([, text]) => text),
        headers.map(([name]) => name),
      ),
    );
    const program = Number(slot[0]);
    try {
      const options = compilerOptions(request);
      const status = Number(this.call.compile(program, options.length, options));
      const bytes = new BigUint64Array(1);
      this.check("nvrtcGetProgramLogSize", this.call.logSize(program, bytes));
      const text = new Uint8Array(Number(bytes[0]));
      this.check("nvrtcGetProgramLog", this.call.log(program, text));
      const log = new TextDecoder().decode(text).replace(/\0+$/, "").trim();
      if (status !== 0) {
        throw new PlanishError(
          `${request.name} does not compile for ${request.architecture} with NVRTC ${this.version.join(".")} ` +
            `(${String(this.call.error(status))}): ${log}`,
        );
      }
      if (request.syntaxOnly) return { image: new Uint8Array(), log };
      const form = request.architecture.startsWith("compute_") ? "ptx" : "cubin";
      const name = `nvrtcGet${form.toUpperCase()}`;
      this.check(`${name}Size`, this.call[`${form}Size`](program, bytes));
      const image = new Uint8Array(Number(bytes[0]));
      this.check(name, this.call[form](program, image));
      return { image, log };
    } finally {
      this.call.destroy(slot);
    }
  }
}

function compilerOptions(request: CompileRequest): string[] {
  const { architecture, defines = [], options = [], syntaxOnly = false } = request;
  return [
    `--gpu-architecture=${architecture}`,
    "--std=c++17",
    "--device-as-default-execution-space",
    ...defines.map((define) => `--define-macro=${define}`),
    ...options,
    ...(syntaxOnly ? ["--fdevice-syntax-only"] : []),
  ];
}

/** Name of a compiled source in the cache: everything that the machine code depends on. */
export function cacheKey(request: CompileRequest, version: readonly [number, number]): string {
  const hash = createHash("sha256");
  hash.update(
    JSON.stringify([request.source, request.headers ?? {}, compilerOptions(request), version]),
  );
  return `${request.name.replace(/\W+/g, "_")}-${request.architecture}-${hash.digest("hex").slice(0, 32)}`;
}

/** Compiles through the cache; a compiler is loaded on the first use only. */
export class KernelCompiler {
  /** Sources compiled, and found compiled, by this object. */
  readonly counts = { compiled: 0, cached: 0 };

  /** @param nvrtc What compiles, when it is not to be NVRTC as installed. */
  constructor(
    private readonly folder: string = kernelCacheFolder(),
    private nvrtc?: Pick<Nvrtc, "version" | "compile">,
  ) {}

  /** The compiler itself, loaded on first use. Throws PlanishError when it is not installed. */
  get compiler(): Pick<Nvrtc, "version" | "compile"> {
    return (this.nvrtc ??= new Nvrtc());
  }

  /** The machine code of `request`, from the cache when it is there. A cache that cannot be written is done without. */
  compile(request: CompileRequest): Uint8Array {
    const path = join(this.folder, `${cacheKey(request, this.compiler.version)}.cubin`);
    try {
      const image = new Uint8Array(readFileSync(path));
      this.counts.cached++;
      return image;
    } catch {
      // Not compiled yet.
    }
    const { image } = this.compiler.compile(request);
    this.counts.compiled++;
    try {
      mkdirSync(this.folder, { recursive: true });
      writeAtomically(path, image);
    } catch {
      // A read-only home only costs the compilation next time.
    }
    return image;
  }
}
