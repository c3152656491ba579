/**
 * The engine's launchers without a GPU: requests are enqueued on a device that only looks. Each launch must pass what the
 * kernel's parameter list says, in number and type, and must fit a Hopper GPU.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { kernelSourceFolder } from "../../../src/backend/cuda/modules.js";
import { EngineKernels, type EngineDevice } from "../../../src/engine/cuda/kernels.js";

const SHARED_PER_BLOCK = 227 * 1024;

interface Launch {
  readonly name: string;
  readonly defines: readonly string[];
  readonly grid: readonly number[];
  readonly threads: number;
  readonly shared: number;
}

/** The parameter list of a kernel as a signature; integer products name theirs by a macro. */
function declared(file: string, name: string): string {
  const folder = kernelSourceFolder();
  const read = (path: string) => readFileSync(join(folder, path), "utf8");
  const list = /#define PARAMETERS\s+([\s\S]*?)\n#define/.exec(read("engine/gemm.cuh"))![1];
  const source = read(`${file}.cu`)
    .replace(/\/\/.*$/gm, "")
    .replaceAll("PARAMETERS", list.replaceAll("\\\n", " "));
  const found = new RegExp(`\\b${name}\\(([^(){}]*)\\)\\s*\\{`).exec(source);
  if (!found) throw new Error(`no kernel ${name} in ${file}.cu`);
  // Pointers are `type *a, *b` in the macro: each is a parameter with a star of its own.
  return found[1]
    .split(",")
    .map((text) => (text.includes("*") ? "p" : text.includes("double") ? "d" : "i"))
    .join("");
}

function lookingDevice(capability: number): { kernels: EngineKernels; launches: Launch[] } {
  const launches: Launch[] = [];
  const modules = {
    get: (file: string, name: string, signature: string, defines: readonly string[]) => {
      expect(`${name} ${signature}`).toBe(`${name} ${declared(file, name)}`);
      return { name, signature, defines };
    },
  };
  const info = { capability, multiprocessors: 132, sharedBytesPerBlock: SHARED_PER_BLOCK };
  const driver = {
    info,
    launch: (
      { name, signature, defines }: { name: string; signature: string; defines: string[] },
      grid: readonly number[],
      [threads]: readonly number[],
      shared: number,
      _stream: number,
      args: readonly number[],
    ) => {
      expect(args, name).toHaveLength(signature.length);
      expect(args.every(Number.isFinite), `${name}: ${args.join(" ")}`).toBe(true);
      expect(shared, name).toBeLessThan(SHARED_PER_BLOCK - 4096);
      expect(threads, name).toBeLessThanOrEqual(1024);
      launches.push({ name, defines, grid, threads, shared });
    },
  };
  const device = { driver, stream: 0, modules } as unknown as EngineDevice;
  return { kernels: new EngineKernels(device), launches };
}

const product = {
  weights: 1,
  codes: 2,
  tokenScale: 3,
  featureScale: 4,
  out: 5,
  outStride: 4096,
  columns: 4096,
  order: { rows: 4096, gated: false },
} as const;

it("products fit a Hopper GPU at every number of tokens and width of weights", () => {
  const { kernels, launches } = lookingDevice(90);
  for (const bits of [4, 8] as const)
    for (const tokens of [1, 8, 9, 30, 64, 65, 2048])
      for (const columns of [128, 4096, 11008])
        kernels.gemm({ ...product, bits, tokens, columns, capacity: 2048 });
  // A block has several tiles when there are more than multiprocessors, and one at most when there are fewer.
  const prefill = launches.filter(({ name }) => name === "gemm_prefill");
  expect(new Set(prefill.map(({ grid }) => grid[0]))).toEqual(new Set([16, 132]));
  // Two blocks of up to eight tokens share a multiprocessor.
  for (const { defines, shared } of launches)
    if (defines.includes("TOKENS=8")) expect(2 * (shared + 2048)).toBeLessThan(SHARED_PER_BLOCK);
});

it("products before Hopper multiply plainly, 64 tokens at a time", () => {
  const { kernels, launches } = lookingDevice(80);
  kernels.gemm({ ...product, bits: 4, tokens: 2048, capacity: 2048 });
  expect(launches[0]).toMatchObject({ name: "gemm", threads: 256, shared: 0, grid: [32, 16] });
});

it("what adds to its output is in f32, and codes must have room", () => {
  const { kernels } = lookingDevice(90);
  const request = { ...product, bits: 4, tokens: 100, capacity: 128 } as const;
  expect(() => kernels.gemm({ ...request, accumulate: true, halves: true })).toThrow(/in f32/);
  expect(() => kernels.gemm({ ...request, capacity: 64 })).toThrow(/a multiple of 128/);
});

it("sites use more warps per row when rows are few", () => {
  const { kernels, launches } = lookingDevice(90);
  const shape = { left: 86, right: 128, hasLeft: true, hasRight: true };
  const request = { shape, x: 1, stride: 11008, clips: 2, codes: 3, scales: 4, bits: 4 } as const;
  for (const tokens of [1, 2048])
    for (const precise of [true, false])
      for (const input of ["plain", "rms", "gated", "splits"] as const)
        kernels.site({ ...request, input, tokens, sets: 1, capacity: 2048, precise, splits: 9 });
  const alone = launches.filter(({ name }) => name === "site");
  expect(new Set(alone.map(({ threads }) => threads))).toEqual(new Set([384, 768]));
  // Without a norm's sum, precise rows of f32 go to clusters of four.
  const clusters = launches.filter(({ name }) => name === "site_cluster");
  expect(clusters.map(({ grid, threads }) => [grid[0], threads])).toEqual([
    [4, 256],
    [4, 256],
    [4, 256],
  ]);
});

it("rows go to clusters as long as multiprocessors suffice, and where they are cut evenly", () => {
  const { kernels, launches } = lookingDevice(90);
  const request = {
    input: "plain",
    x: 1,
    stride: 1,
    clips: 2,
    codes: 3,
    scales: 4,
    bits: 4,
  } as const;
  const run = (left: number, right: number, tokens: number, hasLeft = true, sets = 1) => {
    const shape = { left, right, hasLeft, hasRight: true };
    kernels.site({ ...request, shape, tokens, sets, capacity: 64, precise: true });
    return launches.at(-1)!.name;
  };
  expect(run(112, 128, 33)).toBe("site_cluster");
  expect(run(112, 128, 34)).toBe("site");
  expect(run(2, 64, 3)).toBe("site_cluster");
  expect(run(7, 11, 3)).toBe("site");
  expect(run(3, 64, 3)).toBe("site");
  expect(run(4, 32, 3)).toBe("site");
  expect(run(86, 128, 3, false)).toBe("site");
  expect(run(86, 128, 3, true, 9)).toBe("site");
  const before = lookingDevice(80);
  before.kernels.site({
    ...request,
    shape: { left: 86, right: 128, hasLeft: true, hasRight: true },
    tokens: 1,
    sets: 1,
    capacity: 64,
    precise: true,
  });
  expect(before.launches[0].name).toBe("site");
});

it("heads and attention pass what their kernels take", () => {
  const { kernels, launches } = lookingDevice(90);
  for (const headDim of [32, 64, 96, 128])
    for (const kept of [4, 16] as const) {
      const shape = { headDim, heads: 32, kvHeads: 8, kept };
      kernels.heads({
        ...shape,
        tasks: 1,
        taskCount: 32,
        pageOf: 2,
        slotOf: 3,
        q: 4,
        qStride: 6144,
        k: 5,
        v: 6,
        kvStride: 6144,
        halves: true,
        factors: 7,
        levels: 15,
        out: 8,
        outHalves: true,
        cache: 9,
        pageBytes: 4096,
        qMatrix: 10,
        kMatrix: 11,
      });
      const common = { ...shape, q: 1, pages: 2, window: 0, cache: 3, pageBytes: 4096 };
      kernels.attendDecode({ ...common, sequences: 4, count: 3, splits: 5, partial: 6 });
      kernels.joinSplits({ ...shape, partial: 1, rows: 3, splits: 5, out: 2, halves: false });
      kernels.attendPrefill({ ...common, blocks: 4, blockCount: 7, out: 5, outHalves: true });
    }
  // 48 heads in 32 tasks are more than three blocks per multiprocessor; four share a block.
  expect(launches[0]).toMatchObject({ name: "heads", grid: [32, 12] });
});

it("splits of a sequence fill the last round of blocks", () => {
  const { kernels } = lookingDevice(90);
  const shape = { heads: 32, kvHeads: 32, kept: 4 } as const;
  expect(kernels.splitsFor(shape, 1, 1)).toBe(1);
  expect(kernels.splitsFor(shape, 1, 33)).toBe(9);
  expect(kernels.splitsFor(shape, 1, 1000)).toBeGreaterThanOrEqual(9);
  // 512 blocks on 396 places would take two rounds; three times as many take four of a third each.
  expect(kernels.splitsFor(shape, 16, 33)).toBe(3);
});
