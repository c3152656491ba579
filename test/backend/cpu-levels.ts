/**
 * Conformance of the cpu backend at one instruction-set level. What this machine must be able to run is read from the
 * processor's own flags, not from the library under test: a level that the build lost, or a missing build, fails.
 * Only PLANISH_NO_NATIVE=1 (a machine without a compiler) and levels that the processor lacks are skipped, by name.
 */

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { describeConformance } from "./conformance-suite.js";

export type Level = "portable" | "avx2" | "avx512" | "amx";

/** Flags in /proc/cpuinfo that a level needs (native/dispatch.cpp). */
const FLAGS: Readonly<Record<Level, readonly string[]>> = {
  portable: [],
  avx2: ["avx2", "fma", "f16c"],
  avx512: ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"],
  amx: ["avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"],
};

function missingFlags(level: Level): string[] {
  let info = "";
  try {
    info = readFileSync("/proc/cpuinfo", "utf8");
  } catch {
    // Not Linux: only the portable level can be demanded.
  }
  const flags = new Set(/^flags\s*:(.*)$/m.exec(info)?.[1].trim().split(/\s+/));
  return FLAGS[level].filter((flag) => !flags.has(flag));
}

/** Registers the suite for `level`. Call it once per test file: the library's level is fixed for the process. */
export function describeCpuLevel(level: Level): void {
  const missing = missingFlags(level);
  if (process.env.PLANISH_NO_NATIVE === "1") {
    describe.skip(`cpu ${level}: PLANISH_NO_NATIVE=1`, () => test("conformance"));
    return;
  }
  if (missing.length > 0) {
    describe.skip(`cpu ${level}: this processor lacks ${missing.join(", ")}`, () =>
      test("conformance"));
    return;
  }
  process.env.PLANISH_ISA = level;
  test(`the library runs at level ${level}`, () => {
    expect(loadNativeLibrary().level()).toBe(level);
  });
  describeConformance(`cpu ${level}`, () => createCpuBackend());
}
