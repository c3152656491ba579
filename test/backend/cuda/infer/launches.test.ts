/**
 * The engine's launchers without a GPU: requests are enqueued on a device that only looks. Each launch must pass what the
 * kernel's parameter list says, in number and type, and must fit the GPU.
 */
import { expect, it } from "vitest";
import { kernelSignature } from "../../../../src/backend/cuda/modules.js";
import { EngineKernels, type EngineDevice } from "../../../../src/backend/cuda/infer/kernels.js";
import type { PlainProduct } from "../../../../src/backend/cuda/infer/requests.js";

/** Bytes of shared memory that a block may have, by compute capability. */
const SHARED_PER_BLOCK: Readonly<Record<number, number>> = {
  75: 64 * 1024,
  80: 163 * 1024,
  86: 99 * 1024,
  89: 99 * 1024,
  90: 227 * 1024,
  100: 227 * 1024,
  120: 99 * 1024,
};

interface Launch {
  readonly name: string;
  readonly defines: readonly string[];
  readonly grid: readonly number[];
  readonly threads: number;
  readonly shared: number;
}

function lookingDevice(capability: number): { kernels: EngineKernels; launches: Launch[] } {
  const launches: Launch[] = [];
  const modules = {
    get: (file: string, name: string, defines: readonly string[]) => ({
      name,
      signature: kernelSignature(file, name),
      defines,
    }),
  };
  const sharedBytesPerBlock = SHARED_PER_BLOCK[capability];
  const info = { capability, multiprocessors: 132, sharedBytesPerBlock };
  const driver = {
    info,
    fillBytes: () => undefined,
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
      // What is not asked for here is less than 4 KB on Hopper, some words elsewhere.
      expect(shared, name).toBeLessThan(sharedBytesPerBlock - (capability === 90 ? 4096 : 256));
      expect(threads, name).toBeLessThanOrEqual(1024);
      launches.push({ name, defines, grid, threads, shared });
    },
  };
  const allocate = () => 1;
  const device = { driver, stream: 0, modules, allocate } as unknown as EngineDevice;
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
  // Up to sixteen tokens: 32 features each, or several times that; then a block for every multiprocessor.
  const grids = (of: string) =>
    new Set(launches.flatMap(({ name, grid }) => (name === of ? grid : [])));
  expect(grids("gemm_narrow")).toEqual(new Set([128]));
  expect(grids("gemm")).toEqual(new Set([16, 128, 132]));
});

it("blocks that share a tile fit the GPU together, have room for their sums, and count in 32 bits", () => {
  const { kernels, launches } = lookingDevice(90);
  const run = (tokens: number, rows: number, split?: number, columns = 4096) => {
    const order = { rows, gated: false };
    kernels.gemm({ ...product, order, columns, bits: 4, tokens, capacity: 2048, split });
    return launches.at(-1)!.grid[0];
  };
  // Four blocks of columns at least, 32 in all.
  expect(run(64, 512)).toBe(16);
  expect(run(64, 512, 4)).toBe(8);
  expect(run(64, 512, 64)).toBe(64);
  expect(run(64, 64 * 256, 8)).toBe(132);
  expect(() => run(64, 2 ** 26, undefined, 2 ** 14)).toThrow(/larger than the CUDA kernel counts/);
});

/** Macros of a launch. */
const macros = ({ defines }: Launch) =>
  Object.fromEntries(
    defines.map((define): [string, number] => [define.split("=")[0], Number(define.split("=")[1])]),
  );

it("products of other architectures fit them, and take what these have", () => {
  for (const capability of [75, 80, 86, 89, 100, 120]) {
    const { kernels, launches } = lookingDevice(capability);
    for (const bits of [4, 8] as const)
      for (const activationBits of [4, 8])
        for (const tokens of [1, 8, 9, 30, 64, 65, 2048])
          for (const columns of [128, 4096, 11008])
            for (const rows of [300, 4096, 22016])
              for (const gated of [false, true]) {
                const order = { rows, gated };
                const request = { ...product, bits, activationBits, columns, order };
                kernels.gemm({ ...request, tokens, capacity: 2048 });
                const launch = launches.at(-1)!;
                const { TOKENS, ACROSS, SPLIT, STAGES, NIBBLES, DP4A, WBITS } = macros(launch);
                const tile = TOKENS * ACROSS;
                expect(launch).toMatchObject({
                  name: "gemm_mma",
                  threads: 256,
                  grid: [Math.ceil(tokens / tile) * SPLIT, Math.ceil(rows / 256)],
                  shared: (STAGES ?? 1) * (128 * 32 * WBITS + tile * 128),
                });
                expect(DP4A ?? 0).toBe(capability < 80 ? 1 : 0);
                const four = bits === 4 && activationBits === 4;
                expect(NIBBLES ?? 0).toBe(four && capability >= 80 && capability < 90 ? 1 : 0);
                expect(TOKENS).toBeLessThanOrEqual(64);
                if (ACROSS > 1) expect(SPLIT).toBe(1);
              }
  }
});

it("blocks share the columns of few tokens, as far as the room for their sums goes", () => {
  const { kernels, launches } = lookingDevice(80);
  const split = (tokens: number, rows: number, asked?: number) => {
    const order = { rows, gated: false };
    kernels.gemm({ ...product, order, bits: 4, tokens, capacity: 2048, split: asked });
    return macros(launches.at(-1)!).SPLIT;
  };
  expect([1, 16, 32, 64, 2048].map((tokens) => split(tokens, 4096))).toEqual([8, 8, 4, 2, 1]);
  expect([1, 16, 32, 64].map((tokens) => split(tokens, 12288))).toEqual([4, 4, 4, 2]);
  expect(split(1, 34000)).toBe(1);
  // 64 tiles and 64 KB of sums of each block, in 16 MB.
  expect(split(64, 64 * 256, 8)).toBe(4);
  // Tiles of 128 tokens are not shared, even when asked.
  expect(split(2048, 34000, 4)).toBe(1);
});

it("a product is computed in another way when asked, if it can be", () => {
  const { kernels, launches } = lookingDevice(90);
  const request = { ...product, bits: 4, activationBits: 4, tokens: 20, capacity: 64 } as const;
  const asked = (plain: PlainProduct) => {
    kernels.gemm({ ...request, plain });
    const { name } = launches.at(-1)!;
    const { NIBBLES, DP4A } = macros(launches.at(-1)!);
    return [name, NIBBLES, DP4A];
  };
  expect(asked("mma-s4")).toEqual(["gemm_mma", 1, undefined]);
  expect(asked("mma-s8")).toEqual(["gemm_mma", 0, undefined]);
  expect(asked("dp4a")).toEqual(["gemm_mma", undefined, 1]);
  for (const wide of [{ bits: 8 }, { activationBits: 5 }, { activationBits: undefined }] as const)
    expect(() => kernels.gemm({ ...request, ...wide, plain: "mma-s4" })).toThrow(/4-bit codes/);
  expect(() => kernels.gemm({ ...request, capacity: 128, tile: 128, plain: "dp4a" })).toThrow(
    /at most 64/,
  );
});

it("products with scales of groups fit every GPU, at every width of groups", () => {
  for (const capability of [80, 86, 90, 120]) {
    const { kernels, launches } = lookingDevice(capability);
    for (const bits of [4, 8] as const)
      for (const group of [16, 32, 64, 128] as const)
        for (const tokens of [1, 9, 30, 64, 65, 2048])
          for (const [rows, gated] of [
            [300, false],
            [4096, false],
            [22016, true],
          ] as const)
            for (const offset of [undefined, 7])
              for (const wide of [false, true]) {
                const sums = offset === undefined ? undefined : { columns: group, at: 8 };
                const groups = {
                  ...{ weights: group, activations: 64 as const, halves: true, offset, sums },
                };
                const order = { rows, gated };
                kernels.gemm({ ...product, order, bits, tokens, capacity: 2048, groups, wide });
                const launch = launches.at(-1)!;
                const { TOKENS, SLABS, ACROSS, STAGES } = macros(launch);
                if (wide) expect(launch.name).toBe("gemm_group");
                expect(STAGES).toBeGreaterThanOrEqual(2);
                if (launch.name === "gemm_group_narrow") continue;
                expect(launch.threads).toBe(32 * SLABS * ACROSS);
                expect(launch.grid).toEqual([
                  Math.ceil(tokens / (TOKENS * ACROSS)),
                  Math.ceil(rows / 256) * (8 / SLABS),
                ]);
              }
    // Few tokens have the kernel of few tokens on Hopper.
    if (capability === 90)
      expect(launches.some(({ name }) => name === "gemm_group_narrow")).toBe(true);
  }
  const { kernels } = lookingDevice(75);
  const groups = { weights: 64 } as const;
  expect(() => kernels.gemm({ ...product, bits: 4, tokens: 1, capacity: 64, groups })).toThrow(
    /capability 8/,
  );
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
      kernels.queriesKeysValues({
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
      const common = {
        ...shape,
        q: 1,
        pages: 2,
        window: 0,
        scale: 0.125,
        cache: 3,
        pageBytes: 4096,
      };
      kernels.attendDecode({ ...common, sequences: 4, count: 3, splits: 5, partial: 6 });
      kernels.joinSplits({ ...shape, partial: 1, rows: 3, splits: 5, out: 2, halves: false });
      const request = { ...common, blocks: 4, blockCount: 7, out: 5, outHalves: true };
      kernels.attendPrefill(request);
      expect(launches.at(-1)?.name).toBe("attention_prefill_wgmma");
      kernels.attendPrefill({ ...request, plain: true });
      expect(launches.at(-1)?.name).toBe("attention_prefill");
    }
  // wgmma is Hopper's alone.
  const later = lookingDevice(100);
  const shape = { headDim: 128, heads: 32, kvHeads: 8, kept: 4, window: 0, scale: 0.125 } as const;
  later.kernels.attendPrefill({
    ...{ ...shape, q: 1, pages: 2, cache: 3, pageBytes: 4096 },
    ...{ blocks: 4, blockCount: 7, out: 5, outHalves: true },
  });
  expect(later.launches.at(-1)?.name).toBe("attention_prefill");
  // 48 heads in 32 tasks are more than three blocks per multiprocessor; four share a block.
  expect(launches[0]).toMatchObject({ name: "queries_keys_values", grid: [32, 12] });
});

it("splits of a sequence fill the last round of blocks", () => {
  const { kernels } = lookingDevice(90);
  const shape = { heads: 32, kvHeads: 32, kept: 4 } as const;
  expect(kernels.splitsFor(shape, 1, 1)).toBe(1);
  expect(kernels.splitsFor(shape, 1, 33)).toBe(9);
  expect(kernels.splitsFor(shape, 1, 1000)).toBeGreaterThanOrEqual(9);
  // 512 blocks on 396 places would take two rounds; three times as many take four of a third each.
  expect(kernels.splitsFor({ ...shape, ring: 0 }, 16, 33)).toBe(3);
  // With rings, what is left of a round takes less than a round.
  expect(kernels.splitsFor(shape, 16, 33)).toBe(2);
  expect(kernels.splitsFor(shape, 64, 33)).toBe(2);
});

it("decoding of many rows has rings of pages, three blocks of them per multiprocessor", () => {
  const { kernels, launches } = lookingDevice(90);
  const common = {
    heads: 32,
    kvHeads: 32,
    q: 1,
    pages: 2,
    window: 0,
    scale: 0.125,
    cache: 3,
    pageBytes: 4096,
  };
  const decode = (headDim: number, count: number, more: object = {}) => {
    const tables = { sequences: 4, count, splits: 8, partial: 5 };
    kernels.attendDecode({ ...common, kept: 4, headDim, ...tables, ...more });
    return launches.at(-1)!;
  };
  for (const headDim of [32, 64, 96, 128]) {
    const { defines, shared, threads, grid } = decode(headDim, 64);
    expect(defines).toContain(`RING=${{ 32: 6, 64: 3, 96: 2, 128: 2 }[headDim]}`);
    expect(threads).toBe(128);
    expect(3 * (shared + 1536)).toBeLessThanOrEqual(228 * 1024);
    expect(shared).toBeGreaterThan(48 * 1024);
    // A block has several pieces; a few rows have a block for each.
    expect(grid[0]).toBeLessThan(8);
  }
  expect(decode(128, 8)).toMatchObject({ shared: 0, grid: [8, 32, 8] });
  expect(decode(128, 8).defines).toContain("RING=0");
  expect(decode(128, 64, { kept: 16 })).toMatchObject({ shared: 0, grid: [8, 32, 64] });
  expect(decode(128, 1, { ring: 3, warps: 2, shares: 2 })).toMatchObject({
    shared: 3 * 2 * 8960,
    threads: 64,
    grid: [2, 32, 1],
  });
  // Four query heads of a group share a block, or eight.
  expect(decode(128, 64, { kvHeads: 8 }).defines).toContain("TILES=1");
  expect(decode(128, 64, { kvHeads: 2 })).toMatchObject({ grid: [expect.any(Number), 4, 64] });
  expect(() => decode(128, 64, { kept: 16, ring: 2 })).toThrow(/cache of 4 bits/);
  const before = lookingDevice(80);
  expect(() =>
    before.kernels.attendDecode({
      ...{ ...common, kept: 4, headDim: 128, ring: 2 },
      ...{ sequences: 4, count: 64, splits: 8, partial: 5 },
    }),
  ).toThrow(/Hopper/);
});
