/** Which compiled library is taken: in their order, and only where one is. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  builtLibraryFolder,
  libraryFileName,
  nativeAdvice,
  nativeCandidates,
  nativeLibrary,
  platformName,
} from "../../../src/backend/cpu/library-path.js";
import { loadNativeLibrary, nativeLibraryExists } from "../../../src/backend/cpu/library.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "planish-library-path-"));
  vi.stubEnv("XDG_CACHE_HOME", folder);
  vi.stubEnv("PLANISH_NATIVE_LIBRARY", undefined);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

describe("where the library is looked for", () => {
  it("the environment, the clone, the user's build, the platform's package, in this order", () => {
    vi.stubEnv("PLANISH_NATIVE_LIBRARY", "/somewhere/else.so");
    const candidates = nativeCandidates();
    expect(candidates.map(({ origin }) => origin)).toEqual([
      "environment",
      "clone",
      "built",
      "package",
    ]);
    expect(candidates.at(-1)?.title).toBe(`@planish/native-${platformName()}`);
  });

  it("what `planish build` made counts once it is there", () => {
    const built = () => nativeCandidates().find(({ origin }) => origin === "built");
    expect(built()?.exists).toBe(false);
    mkdirSync(builtLibraryFolder(), { recursive: true });
    writeFileSync(join(builtLibraryFolder(), libraryFileName()), "");
    expect(built()).toMatchObject({ exists: true });
    expect(built()?.path.startsWith(folder)).toBe(true);
  });

  it("a name in the environment is never passed over", () => {
    const missing = join(folder, "missing.so");
    vi.stubEnv("PLANISH_NATIVE_LIBRARY", missing);
    expect(nativeLibrary()).toMatchObject({ origin: "environment", path: missing, exists: false });
    expect(nativeLibraryExists()).toBe(false);
    expect(() => loadNativeLibrary()).toThrow(
      `PLANISH_NATIVE_LIBRARY names ${missing}, where no file is; correct it or unset it`,
    );
  });

  it("a file that is no library is told with where it came from and what to do", () => {
    const text = join(folder, "text.so");
    writeFileSync(text, "no library");
    vi.stubEnv("PLANISH_NATIVE_LIBRARY", text);
    expect(() => loadNativeLibrary()).toThrow(
      /^the CPU kernels of PLANISH_NATIVE_LIBRARY do not load \(.*\); /,
    );
  });

  it("advises what can be done here", () => {
    expect(nativeAdvice()).toContain("npm run build:native");
  });
});
