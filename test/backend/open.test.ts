import { afterEach, describe, expect, it, vi } from "vitest";
import * as cuda from "../../src/backend/cuda/train/backend.js";
import { PlanishError } from "../../src/common/errors.js";
import * as modules from "../../src/backend/wasm/module.js";
import * as library from "../../src/backend/cpu/library.js";
import { openBackend, type Device } from "../../src/backend/open.js";
import { silentProgress } from "../../src/common/progress.js";

vi.mock(import("../../src/backend/cpu/library.js"), async (original) => {
  const actual = await original();
  return { ...actual, nativeLibraryExists: vi.fn(actual.nativeLibraryExists) };
});

vi.mock(import("../../src/backend/wasm/module.js"), async (original) => {
  const actual = await original();
  return { ...actual, wasmLevels: vi.fn(actual.wasmLevels) };
});

vi.mock(import("../../src/backend/cuda/train/backend.js"), async (original) => {
  const actual = await original();
  return { ...actual, createCudaBackend: vi.fn(actual.createCudaBackend) };
});

afterEach(() => {
  vi.mocked(cuda.createCudaBackend).mockReset();
  vi.mocked(library.nativeLibraryExists).mockReset();
  vi.mocked(modules.wasmLevels).mockReset();
});

describe("openBackend", () => {
  it("opens the reference backend by name, in float32", () => {
    using backend = openBackend({ device: "reference" });
    expect([backend.name, backend.realType]).toEqual(["reference", "f32"]);
  });

  it.skipIf(!modules.wasmModuleExists())(
    "takes WebAssembly without native kernels, and says so",
    () => {
      vi.mocked(library.nativeLibraryExists).mockReturnValue(false);
      const warnings: string[] = [];
      const progress = { ...silentProgress, warn: (message: string) => warnings.push(message) };
      using backend = openBackend({ progress });
      expect(backend.name).toBe("wasm");
      expect(warnings).toEqual([
        expect.stringMatching(/WebAssembly.*slower.*4 GiB.*planish doctor/),
      ]);
    },
  );

  it("falls back to plain TypeScript without any kernels, and says so", () => {
    vi.mocked(library.nativeLibraryExists).mockReturnValue(false);
    vi.mocked(modules.wasmLevels).mockReturnValue([]);
    const warnings: string[] = [];
    const progress = { ...silentProgress, warn: (message: string) => warnings.push(message) };
    using backend = openBackend({ progress });
    expect(backend.name).toBe("reference");
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("npm run build:native");
  });

  it("auto takes the processor where no GPU works, and says what is missing", () => {
    vi.mocked(cuda.createCudaBackend).mockImplementation(() => {
      throw new PlanishError("--device cuda: no NVIDIA GPU is visible here");
    });
    vi.mocked(library.nativeLibraryExists).mockReturnValue(false);
    vi.mocked(modules.wasmLevels).mockReturnValue([]);
    const notes: string[] = [];
    const progress = { ...silentProgress, note: (message: string) => notes.push(message) };
    using backend = openBackend({ device: "auto", progress });
    expect(backend.name).toBe("reference");
    expect(notes).toEqual([
      expect.stringMatching(/^device: reference .*; no GPU: no NVIDIA GPU is visible here$/),
    ]);
  });

  it("auto takes the GPU where there is one; other failures are not hidden", () => {
    const gpu = { name: "cuda", description: "a GPU" } as cuda.CudaBackend;
    vi.mocked(cuda.createCudaBackend).mockReturnValueOnce(gpu);
    const notes: string[] = [];
    const progress = { ...silentProgress, note: (message: string) => notes.push(message) };
    expect(openBackend({ device: "auto", progress })).toBe(gpu);
    expect(notes).toEqual(["device: cuda (a GPU)"]);
    vi.mocked(cuda.createCudaBackend).mockImplementation(() => {
      throw new TypeError("a bug");
    });
    expect(() => openBackend({ device: "auto" })).toThrow(TypeError);
  });

  it("cuda by name throws what is missing", () => {
    vi.mocked(cuda.createCudaBackend).mockImplementation(() => {
      throw new PlanishError("--device cuda needs NVIDIA's driver library");
    });
    expect(() => openBackend({ device: "cuda" })).toThrow(/driver library/);
  });

  it("refuses unknown devices, naming the known ones", () => {
    expect(() => openBackend({ device: "tpu" as Device })).toThrow(/"tpu".*cpu, wasm, reference/);
  });
});

describe("the GPU of a worker process", () => {
  it("goes round the visible GPUs; a process that is no worker takes the first", () => {
    const chosen = [undefined, "0", "1", "2", "3"].map((worker) => cuda.gpuOfWorker(worker, 2));
    expect(chosen).toEqual([0, 0, 1, 0, 1]);
    expect(cuda.gpuOfWorker("3", 1)).toBe(0);
    expect(cuda.gpuOfWorker("x", 4)).toBe(0);
    // Without a GPU the driver's own error follows.
    expect(cuda.gpuOfWorker("1", 0)).toBe(0);
  });
});
