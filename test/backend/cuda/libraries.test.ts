/** Where NVIDIA's libraries are looked for, and what is said when they are not there. Runs without any of them. */

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  libraryCandidates,
  openCudaLibrary,
  type SearchEnvironment,
} from "../../../src/backend/cuda/libraries.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "planish-cuda-"));
});
afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

function place(...path: string[]): string {
  const file = join(root, ...path);
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(file, "no library");
  return file;
}

const environment = (env: Record<string, string> = {}): SearchEnvironment => ({
  env,
  home: join(root, "home"),
  pythonRoots: [],
  platform: "linux",
});

it.each(["win32", "darwin"] as const)("CUDA on %s is refused without a search", (platform) => {
  for (const library of ["driver", "nvrtc", "cublasLt"] as const)
    expect(() => openCudaLibrary(library, { ...environment(), platform })).toThrow(
      `--device cuda needs Linux, and this is ${platform}`,
    );
});

describe("libraryCandidates", () => {
  it("asks CUDA_HOME first, then the loader, then pip's packages", () => {
    const toolkit = place("toolkit", "lib64", "libnvrtc.so.13");
    place("venv", "bin", "python3");
    const pip = place("venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
    const found = libraryCandidates(
      "nvrtc",
      environment({ CUDA_HOME: join(root, "toolkit"), PATH: join(root, "venv", "bin") }),
    );
    expect(found.indexOf(toolkit)).toBe(0);
    expect(found.indexOf("libnvrtc.so.13")).toBe(1);
    expect(found.indexOf(pip)).toBeGreaterThan(found.indexOf("libnvrtc.so"));
  });

  it("prefers the newer file of a folder and finds CUDA 12's pip layout", () => {
    place("venv", "bin", "python3");
    const folder = "venv/lib/python3.11/site-packages/nvidia/cublas/lib";
    const newer = place(folder, "libcublasLt.so.13");
    const older = place(folder, "libcublasLt.so.12");
    const found = libraryCandidates("cublasLt", environment({ VIRTUAL_ENV: join(root, "venv") }));
    expect(found.indexOf(newer)).toBeLessThan(found.indexOf(older));
    expect(found).toContain(newer);
  });

  it("follows a python3 that is a link to both installations", () => {
    const python = place("base", "bin", "python3.12");
    mkdirSync(join(root, "env", "bin"), { recursive: true });
    symlinkSync(python, join(root, "env", "bin", "python3"));
    const ofBase = place("base/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
    const ofLink = place("env/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
    const found = libraryCandidates("nvrtc", environment({ PATH: join(root, "env", "bin") }));
    expect(found).toEqual(expect.arrayContaining([ofBase, ofLink]));
  });

  it("never takes the driver from a toolkit, whose copy is a stub", () => {
    place("toolkit", "lib64", "libcuda.so.1");
    const found = libraryCandidates("driver", environment({ CUDA_HOME: join(root, "toolkit") }));
    expect(found).toEqual(["libcuda.so.1", "libcuda.so"]);
  });
});

describe("openCudaLibrary", () => {
  it("says which library does not load, why, and how to get it", () => {
    place("toolkit", "lib64", "libnvrtc.so.13");
    const open = () =>
      openCudaLibrary("nvrtc", environment({ CUDA_HOME: join(root, "toolkit"), PATH: "" }));
    // Where a real NVRTC is installed the loader's path may provide it; the broken file is then passed over.
    try {
      expect(open().path).not.toContain(root);
    } catch (error) {
      expect(String(error)).toMatch(
        /--device cuda needs CUDA's run-time compiler.*toolkit.*pip install nvidia-cuda-nvrtc/,
      );
    }
  });
});
