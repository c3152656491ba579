/**
 * Finds and loads NVIDIA's libraries: the driver (libcuda, installed with the kernel module) and, from a CUDA
 * toolkit or from pip, the run-time compiler (NVRTC) and the matrix products (cuBLASLt).
 *
 * Limits: Linux on x86-64 and arm64.
 */
import { existsSync, readdirSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import type * as Koffi from "koffi";
import { PlanishError } from "../../common/errors.js";

export type CudaLibrary = "driver" | "nvrtc" | "cublasLt";

/** A bound foreign function. Handles and device addresses are numbers (below 2⁵³), memory is a typed array. */
export type ForeignFunction = (...args: unknown[]) => unknown;

/** An open shared library. */
export interface OpenLibrary {
  /** What it was loaded as: a path, or a bare name that the loader resolved. */
  readonly path: string;
  /** Binds a C function. Throws PlanishError when the library lacks it. */
  bind(prototype: string): ForeignFunction;
}

interface LibraryFacts {
  readonly title: string;
  /** Newest first. */
  readonly files: readonly string[];
  /** Folders below a `site-packages/nvidia` where pip's packages put it. */
  readonly pipFolders: readonly string[];
  readonly install: string;
}

const FACTS: Readonly<Record<CudaLibrary, LibraryFacts>> = {
  driver: {
    title: "NVIDIA's driver library (libcuda.so.1)",
    files: ["libcuda.so.1", "libcuda.so"],
    pipFolders: [],
    install: "install the NVIDIA driver of this machine (for CUDA 12 or 13)",
  },
  nvrtc: {
    title: "CUDA's run-time compiler (libnvrtc.so)",
    files: ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    pipFolders: ["cu13/lib", "cuda_nvrtc/lib"],
    install:
      "install the CUDA toolkit and set CUDA_HOME, or run `pip install nvidia-cuda-nvrtc` (CUDA 12: nvidia-cuda-nvrtc-cu12)",
  },
  cublasLt: {
    title: "cuBLASLt (libcublasLt.so)",
    files: ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    pipFolders: ["cu13/lib", "cublas/lib"],
    install:
      "install the CUDA toolkit and set CUDA_HOME, or run `pip install nvidia-cublas` (CUDA 12: nvidia-cublas-cu12)",
  },
};

/** What the search depends on; tests bring their own. */
export interface SearchEnvironment {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly home: string;
  /** Folders that Python installations may have beside those derived from the environment. */
  readonly pythonRoots: readonly string[];
  /** Default: this process's. */
  readonly platform?: NodeJS.Platform;
}

const processEnvironment = (): SearchEnvironment => ({
  env: process.env,
  home: homedir(),
  pythonRoots: ["/usr/local", "/usr"],
});

function subfolders(folder: string, pattern: RegExp): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => pattern.test(name))
      .map((name) => join(folder, name));
  } catch {
    // A folder that does not exist holds nothing.
    return [];
  }
}

/** Folders `site-packages` of the Pythons that PATH, VIRTUAL_ENV and CONDA_PREFIX name, and of the system's. */
function sitePackages({ env, home, pythonRoots }: SearchEnvironment): string[] {
  const roots = [env.VIRTUAL_ENV, env.CONDA_PREFIX, join(home, ".local")];
  for (const folder of (env.PATH ?? "").split(delimiter)) {
    const python = join(folder, "python3");
    if (folder === "" || !existsSync(python)) continue;
    // An environment's python3 is a link to the one it was made from; its packages lie beside the link.
    roots.push(dirname(folder), dirname(dirname(realpathSync(python))));
  }
  return [...roots, ...pythonRoots].flatMap((root) =>
    root
      ? subfolders(join(root, "lib"), /^python3/).flatMap((lib) => [
          join(lib, "site-packages"),
          join(lib, "dist-packages"),
        ])
      : [],
  );
}

/**
 * What to hand to the loader, in order: CUDA_HOME and CUDA_PATH, the loader's own path (a bare name), pip's packages,
 * /usr/local/cuda. Paths are listed only when they exist; bare names always.
 */
export function libraryCandidates(
  library: CudaLibrary,
  environment: SearchEnvironment = processEnvironment(),
): string[] {
  const { files, pipFolders } = FACTS[library];
  const { env } = environment;
  const existing = (folders: readonly string[]) =>
    folders.flatMap((folder) => files.map((file) => join(folder, file))).filter(existsSync);
  const toolkit = (root: string) => [
    join(root, "lib64"),
    join(root, "lib"),
    join(root, "targets/x86_64-linux/lib"),
  ];
  const named = [env.CUDA_HOME, env.CUDA_PATH].flatMap((root) => (root ? toolkit(root) : []));
  const pip =
    pipFolders.length === 0
      ? []
      : sitePackages(environment).flatMap((site) =>
          pipFolders.map((folder) => join(site, "nvidia", folder)),
        );
  return [
    ...new Set([
      ...(library === "driver" ? [] : existing(named)),
      ...files,
      ...existing(pip),
      ...(library === "driver" ? [] : existing(toolkit("/usr/local/cuda"))),
    ]),
  ];
}

const require = createRequire(import.meta.url);

/** Loads a library from the first place that has it. Throws PlanishError naming the library and how to get it. */
export function openCudaLibrary(
  library: CudaLibrary,
  environment: SearchEnvironment = processEnvironment(),
): OpenLibrary {
  const { title, install } = FACTS[library];
  const { platform = process.platform } = environment;
  if (platform !== "linux")
    throw new PlanishError(
      `--device cuda needs Linux, and this is ${platform}; leave --device out, and the processor computes`,
    );
  const koffi = require("koffi") as typeof Koffi;
  const candidates = libraryCandidates(library, environment);
  let handle: Koffi.LibraryHandle | undefined;
  let path = "";
  let reason = "";
  for (const candidate of candidates) {
    try {
      handle = koffi.load(candidate);
      path = candidate;
      break;
    } catch (cause) {
      // A file that exists and does not load explains more than a name that the loader does not know.
      if (reason === "" || candidate.includes("/")) reason = (cause as Error).message;
    }
  }
  if (!handle) {
    throw new PlanishError(
      `--device cuda needs ${title}, which was not found or does not load (${reason.split("\n")[0]}); ${install}`,
    );
  }
  const opened = handle;
  return {
    path,
    bind(prototype) {
      try {
        return opened.func(prototype) as ForeignFunction;
      } catch (cause) {
        const name = /(\w+)\s*\(/.exec(prototype)?.[1] ?? prototype;
        throw new PlanishError(
          `${title} at ${path} lacks ${name}; Planish needs CUDA 12 or newer: ${install}`,
          { cause },
        );
      }
    },
  };
}
