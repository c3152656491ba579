/** The cache of compiled kernels, with a compiler that only counts. */

import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { architectureOf, targetOf } from "../../../src/backend/cuda/capability.js";
import { kernelSource } from "../../../src/backend/cuda/modules.js";
import { cacheKey, KernelCompiler, type CompileRequest } from "../../../src/backend/cuda/nvrtc.js";
import { PlanishError } from "../../../src/common/errors.js";

const request: CompileRequest = {
  name: "norm.cu",
  source: 'extern "C" __global__ void f() {}',
  headers: { "common.cuh": "#pragma once" },
  architecture: "sm_90a",
  defines: ["LEFT=64"],
};

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "planish-kernels-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Compiles anything to the number of sources it has compiled. */
function counting(version: readonly [number, number] = [13, 0]) {
  let compiled = 0;
  return { version, compile: () => ({ image: Uint8Array.of(++compiled), log: "" }) };
}

describe("cacheKey", () => {
  it.each<[string, Partial<CompileRequest>]>([
    ["source", { source: "other" }],
    ["a header", { headers: { "common.cuh": "#pragma twice" } }],
    ["architecture", { architecture: "sm_80" }],
    ["macros", { defines: ["LEFT=112"] }],
    ["options", { options: ["--use_fast_math"] }],
  ])("tells apart requests that differ in %s", (_, change) => {
    expect(cacheKey({ ...request, ...change }, [13, 0])).not.toBe(cacheKey(request, [13, 0]));
  });

  it("tells compiler versions apart", () => {
    expect(cacheKey(request, [13, 1])).not.toBe(cacheKey(request, [13, 0]));
  });
});

describe("KernelCompiler", () => {
  it("compiles once, and another process finds the result", () => {
    const first = new KernelCompiler(folder, counting());
    expect([...first.compile(request), ...first.compile(request)]).toEqual([1, 1]);
    expect(first.counts).toEqual({ compiled: 1, cached: 1 });
    const later = new KernelCompiler(folder, counting());
    expect([...later.compile(request)]).toEqual([1]);
    expect(later.counts).toEqual({ compiled: 0, cached: 1 });
    expect(readdirSync(folder)).toEqual([`${cacheKey(request, [13, 0])}.cubin`]);
  });

  it("does without a cache that cannot be written", () => {
    const file = join(folder, "a file");
    writeFileSync(file, "");
    const compiler = new KernelCompiler(join(file, "below it"), counting());
    expect([...compiler.compile(request), ...compiler.compile(request)]).toEqual([1, 2]);
  });

  it("passes on what the compiler says", () => {
    const compile = () => {
      throw new PlanishError("norm.cu does not compile");
    };
    const compiler = new KernelCompiler(folder, { version: [13, 0], compile });
    expect(() => compiler.compile(request)).toThrow(/does not compile/);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("kernel sources", () => {
  it("are found with every header", () => {
    const { source, headers = {} } = kernelSource("kronecker", "sm_90a", ["LEFT=64"]);
    expect(source).toContain("kronecker_backward");
    for (const [, name] of source.matchAll(/#include "(.*)"/g))
      expect(headers).toHaveProperty([name]);
  });

  it("that are missing are named", () => {
    expect(() => kernelSource("nothing", "sm_90a")).toThrow(/nothing\.cu.*reinstall/);
  });

  it("are compiled for Hopper's own instructions from 9.0 on", () => {
    expect([80, 89, 90, 100].map(architectureOf)).toEqual(["sm_80", "sm_89", "sm_90a", "sm_100a"]);
  });
});

describe("the GPU that kernels are for", () => {
  const shared = 227 * 1024;
  it("is the one that is there", () => {
    const own = { capability: 90, architecture: "sm_90a", sharedBytesPerBlock: shared };
    for (const asked of [undefined, "", "90"]) expect(targetOf(90, shared, asked)).toEqual(own);
  });

  it("is an older one when asked, by PTX, with its shared memory", () => {
    expect(targetOf(90, shared, "80")).toEqual({
      capability: 80,
      architecture: "compute_80",
      sharedBytesPerBlock: 163 * 1024,
    });
    expect(targetOf(90, shared, "89").sharedBytesPerBlock).toBe(99 * 1024);
  });

  it("is a newer one when asked, as far as this one's instructions go", () => {
    expect(targetOf(90, shared, "120")).toEqual({
      capability: 120,
      architecture: "sm_90",
      sharedBytesPerBlock: 99 * 1024,
    });
    // No more than there is.
    expect(targetOf(89, 99 * 1024, "100").sharedBytesPerBlock).toBe(99 * 1024);
  });

  it.each(["75", "91", "8.0", "sm_80", "x".repeat(1000)])("is none called %s", (asked) => {
    expect(() => targetOf(90, shared, asked)).toThrow(/PLANISH_CUDA_CAPABILITY.*give one of 80/);
  });
});
