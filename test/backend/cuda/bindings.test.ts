/**
 * The CUDA backend's bindings without a GPU: every conformance case is enqueued on a device that only looks. Each launch
 * must name a kernel of native/cuda and pass what that kernel's parameter list says, in number and type: on a GPU a
 * mistake there is a corrupted argument, not an error.
 */

import { beforeEach, describe, expect, it } from "vitest";
import type { Buffer, Kernels } from "../../../src/backend/contract/training.js";
import { assembleKernels } from "../../../src/backend/cuda/train/backend.js";
import type { CudaContext } from "../../../src/backend/cuda/context.js";
import type { GemmRequest } from "../../../src/backend/cuda/train/cublaslt.js";
import type { CudaKernel } from "../../../src/backend/cuda/driver.js";
import { REFUSED_KERNELS } from "../../../src/backend/cuda/train/kernels/recurrent.js";
import { CudaBuffer } from "../../../src/backend/cuda/memory.js";
import { kernelSignature } from "../../../src/backend/cuda/modules.js";
import { declaredKernels } from "../../../scripts/cuda-kernels.js";
import { caseGroups } from "../conformance-suite.js";

/** Signatures by "file kernel". */
const declared = new Map(
  Object.entries(declaredKernels())
    .filter(([file]) => !file.startsWith("engine/"))
    .flatMap(([file, kernels]) =>
      Object.entries(kernels).map(([name, signature]): [string, string] => [
        `${file} ${name}`,
        signature,
      ]),
    ),
);
const used = new Set<string>();
let gemms: GemmRequest[];
let address: number;

/** A context whose device checks launches and does nothing. */
function lookingContext(): CudaContext {
  const files = new Map<CudaKernel, string>();
  const context = {
    stream: 7,
    driver: {
      info: { multiprocessors: 132, sharedBytesPerBlock: 227 * 1024 },
      fillBytes: () => undefined,
      launch(
        kernel: CudaKernel,
        grid: readonly number[],
        block: readonly number[],
        shared: number,
        _stream: number,
        args: readonly number[],
      ) {
        const key = files.get(kernel) ?? "";
        expect(args.length, `${key}: arguments`).toBe(kernel.signature.length);
        args.forEach((value, i) => {
          const fits =
            kernel.signature[i] === "d" ? Number.isFinite(value) : Number.isSafeInteger(value);
          expect(fits, `${key}: argument ${i} is ${value}`).toBe(true);
        });
        for (const size of [...grid, ...block]) expect(size, `${key}: grid`).toBeGreaterThan(0);
        for (const size of grid.slice(1)) expect(size, `${key}: grid`).toBeLessThan(65536);
        expect(block[0]).toBeLessThanOrEqual(1024);
        expect(shared).toBeLessThanOrEqual(227 * 1024);
        used.add(key);
      },
    },
    modules: {
      get(file: string, name: string): CudaKernel {
        const signature = kernelSignature(file, name);
        const kernel = { name, handle: 1, signature, sharedLimit: 0 };
        files.set(kernel, `${file} ${name}`);
        return kernel;
      },
    },
    scratch: {
      take(bytes: number): number {
        address += Math.ceil(bytes / 256) * 256 + 256;
        return address;
      },
    },
    blas: { gemm: (request: GemmRequest) => gemms.push(request) },
    // Nothing wrong was found: what flag.ts reads.
    transfers: { read: (_source: number, target: Uint8Array) => target.fill(0x7f) },
  };
  return context as unknown as CudaContext;
}

function buffersOf(specs: Readonly<Record<string, { type: string; data: Float64Array }>>) {
  return Object.fromEntries(
    Object.entries(specs).map(([name, { type, data }]): [string, Buffer] => {
      address += data.length * 4 + 256;
      const dtype = type === "real" ? "f32" : (type as "i8" | "i32");
      return [name, new CudaBuffer(dtype, data.length, address, false)];
    }),
  );
}

beforeEach(() => {
  gemms = [];
  address = 2 ** 44;
});

describe("CUDA bindings", () => {
  const { kernels, solves } = assembleKernels(lookingContext());
  const byKernel = new Map<keyof Kernels, (typeof caseGroups)[number]["cases"][number][]>();
  const refused: readonly (keyof Kernels)[] = REFUSED_KERNELS;
  for (const item of caseGroups.flatMap(({ cases }) => cases))
    if (!refused.includes(item.kernel))
      byKernel.set(item.kernel, [...(byKernel.get(item.kernel) ?? []), item]);

  it.each([...byKernel.keys()])("%s passes what its kernels take", (name) => {
    for (const item of byKernel.get(name) ?? []) {
      const before = used.size + gemms.length;
      item.run(kernels, buffersOf(item.buffers));
      solves.flush();
      expect(used.size + gemms.length, `${name} ${item.title}`).toBeGreaterThanOrEqual(before);
    }
    for (const { m, n, k, a, b, c } of gemms) {
      // Rows must not overlap, and addresses must be whole elements.
      expect(a.stride).toBeGreaterThanOrEqual(a.transposed ? m : k);
      expect(b.stride).toBeGreaterThanOrEqual(b.transposed ? k : n);
      expect(c.stride).toBeGreaterThanOrEqual(n);
      for (const { pointer } of [a, b, c]) expect(Number.isSafeInteger(pointer)).toBe(true);
    }
  });

  it.each(REFUSED_KERNELS)("%s is refused by name", (name) => {
    expect(() => kernels[name]({} as never)).toThrow(`[${name}] `);
  });

  it("uses every kernel of the sources that it binds", () => {
    const files = new Set([...used].map((key) => key.split(" ")[0]));
    const unused = [...declared.keys()].filter(
      (key) => files.has(key.split(" ")[0]) && !used.has(key),
    );
    expect(unused).toEqual([]);
  });

  it("Cayley maps wait until something else is called, and go in one launch", () => {
    const launches: number[] = [];
    const context = lookingContext();
    const launch = context.driver.launch.bind(context.driver);
    context.driver.launch = (kernel, grid, ...rest) => {
      launches.push(grid[0]);
      launch(kernel, grid, ...rest);
    };
    const table = assembleKernels(context);
    const square = () => new CudaBuffer("f32", 64, (address += 512), false);
    for (let i = 0; i < 30; i++) table.kernels.cayley({ seed: square(), n: 8, out: square() });
    expect(launches).toEqual([]);
    expect(table.solves.pending).toBe(30);
    table.solves.flush();
    // 24 to a launch.
    expect(launches).toEqual([24, 6]);
    expect(table.solves.pending).toBe(0);
  });
});
