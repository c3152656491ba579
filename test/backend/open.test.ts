import { afterEach, describe, expect, it, vi } from "vitest";
import * as library from "../../src/backend/cpu/library.js";
import { openBackend, type Device } from "../../src/backend/open.js";
import { silentProgress } from "../../src/common/progress.js";

vi.mock(import("../../src/backend/cpu/library.js"), async (original) => {
  const actual = await original();
  return { ...actual, nativeLibraryExists: vi.fn(actual.nativeLibraryExists) };
});

afterEach(() => {
  vi.mocked(library.nativeLibraryExists).mockReset();
});

describe("openBackend", () => {
  it("opens the reference backend by name, in float32", () => {
    using backend = openBackend({ device: "reference" });
    expect([backend.name, backend.realType]).toEqual(["reference", "f32"]);
  });

  it("falls back to plain TypeScript without native kernels, and says so", () => {
    vi.mocked(library.nativeLibraryExists).mockReturnValue(false);
    const warnings: string[] = [];
    const progress = { ...silentProgress, warn: (message: string) => warnings.push(message) };
    using backend = openBackend({ progress });
    expect(backend.name).toBe("reference");
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("npm run build:native");
  });

  it("refuses unknown devices, naming the known ones", () => {
    expect(() => openBackend({ device: "tpu" as Device })).toThrow(/"tpu".*cpu, reference/);
  });
});
