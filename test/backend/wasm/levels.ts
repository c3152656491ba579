/**
 * Conformance of the kernels in WebAssembly at one instruction-set level, as ../cpu-levels.ts does it for native ones. Without
 * zig there are no modules: then the tests are skipped, and say so.
 */

import { existsSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../../src/backend/cpu/library.js";
import { wasmLevels, wasmModulePath, type WasmLevel } from "../../../src/backend/wasm/module.js";
import { describeConformance } from "../conformance-suite.js";

/** Why the level's tests cannot run, or undefined. */
export function whyNoWasm(level: WasmLevel): string | undefined {
  const path = wasmModulePath(level);
  if (path === undefined || !existsSync(path)) return "not built (npm run build:wasm needs zig)";
  return wasmLevels().includes(level)
    ? undefined
    : "this JavaScript engine lacks its instructions (Node 22 has them)";
}

/** Makes the loader take the level's module in this process. Call it before anything loads a library. */
export function useWasm(level: WasmLevel): void {
  process.env.PLANISH_NATIVE_LIBRARY = wasmModulePath(level);
}

/** Registers the suite for `level`. Call it once per test file: the library is fixed for the process. */
export function describeWasmLevel(level: WasmLevel): void {
  const reason = whyNoWasm(level);
  if (reason) {
    describe.skip(`wasm ${level}: ${reason}`, () => test("conformance"));
    return;
  }
  useWasm(level);
  test(`the library is WebAssembly's ${level}`, () => {
    expect(loadNativeLibrary().level()).toBe(level);
  });
  describeConformance(`wasm ${level}`, () => createCpuBackend());
}
