/** The suite that every backend passes: all cases of all kernels against the float64 reference, and memory. */

import { totalmem } from "node:os";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend, Kernels } from "../../src/backend/contract/training.js";
import { PlanishError } from "../../src/common/errors.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { attentionGroups } from "./cases/attention.js";
import { elementwiseGroups } from "./cases/elementwise.js";
import { flattenGroups } from "./cases/flatten.js";
import { linearAlgebraGroups } from "./cases/linear-algebra.js";
import { matmulGroups } from "./cases/matmul.js";
import { quantizeGroups } from "./cases/quantize.js";
import { offsetGroups } from "./cases/quantize-offset.js";
import { recurrentGroups } from "./cases/recurrent.js";
import { rowGroups } from "./cases/rows.js";
import { checkCase, type CaseGroup } from "./harness.js";

export const caseGroups: readonly CaseGroup[] = [
  ...matmulGroups,
  ...quantizeGroups,
  ...offsetGroups,
  ...flattenGroups,
  ...rowGroups,
  ...attentionGroups,
  ...elementwiseGroups,
  ...recurrentGroups,
  ...linearAlgebraGroups,
];

const truth = createReferenceBackend({ realType: "f64" });

/**
 * Registers the suite for the backend that `create` makes; a `create` that throws fails every test. `refused`: kernels that
 * the backend has not, which must say so under their own names.
 */
export function describeConformance(
  title: string,
  create: () => Backend,
  refused: readonly (keyof Kernels)[] = [],
): void {
  describe(`${title} against reference-f64 (u = 2⁻²⁴)`, () => {
    let backend: Backend;
    beforeAll(() => {
      backend = create();
    });
    afterAll(() => backend?.[Symbol.dispose]());

    test.each(refused.map((name) => [name] as const))("%s is refused by name", (name) => {
      expect(() => backend.kernels[name]({} as never)).toThrow(`[${name}] `);
    });

    for (const group of caseGroups) {
      const cases = group.cases.filter(({ kernel }) => !refused.includes(kernel));
      if (cases.length === 0) continue;
      describe(group.bound, () => {
        test.each(cases.map((item) => [`${item.kernel}: ${item.title}`, item] as const))(
          "%s",
          (_title, item) => checkCase(backend, truth, item),
        );
      });
    }

    test("every kernel has a case", () => {
      const covered = new Set<string>(
        caseGroups.flatMap((group) => group.cases.map((item) => item.kernel)),
      );
      const missing = (Object.keys(truth.kernels) as (keyof Kernels)[]).filter(
        (name) => !covered.has(name),
      );
      expect(missing).toEqual([]);
      for (const name of covered)
        expect(typeof backend.kernels[name as keyof Kernels], name).toBe("function");
    });

    describeErrors(() => backend);
    describeMemory(() => backend);
  });
}

function describeErrors(backend: () => Backend): void {
  test("inverse of a singular matrix is refused", () => {
    const [x, out] = [
      backend().alloc(backend().realType, 9),
      backend().alloc(backend().realType, 9),
    ];
    backend().write(x, Float64Array.of(1, 2, 3, 2, 4, 6, 0, 0, 1));
    expect(() => backend().kernels.inverse({ x, n: 3, out })).toThrow(PlanishError);
  });

  test.each([5, -1])("gatherRows refuses id %i of a table of 5 rows", (id) => {
    const [table, out] = [
      backend().alloc(backend().realType, 10),
      backend().alloc(backend().realType, 2),
    ];
    const given = backend().alloc("i32", 1);
    backend().write(given, Int32Array.of(id));
    expect(() =>
      backend().kernels.gatherRows({ table, cols: 2, ids: given, rows: 1, out }),
    ).toThrow(PlanishError);
  });

  test.each([4, -2])("nll refuses target %i of rows of 4 logits", (target) => {
    const [logits, nll] = [
      backend().alloc(backend().realType, 4),
      backend().alloc(backend().realType, 1),
    ];
    const targets = backend().alloc("i32", 1);
    backend().write(targets, Int32Array.of(target));
    expect(() => backend().kernels.nll({ logits, rows: 1, cols: 4, targets, nll })).toThrow(
      PlanishError,
    );
  });
}

function describeMemory(backend: () => Backend): void {
  test.each(["real", "i32", "i8", "u8"] as const)(
    "alloc is zero-filled; write, read, copy, fill of %s",
    (type) => {
      const device = backend();
      const dtype = type === "real" ? device.realType : type;
      const buffer = device.alloc(dtype, 100);
      expect(buffer).toMatchObject({ dtype, length: 100 });
      expect([...device.read(buffer)]).toEqual(new Array(100).fill(0));
      device.write(buffer, Float32Array.of(1, 2, 3), 40);
      expect([...device.read(buffer, 39, 5)]).toEqual([0, 1, 2, 3, 0]);
      const other = device.alloc(dtype, 10);
      device.fill(other, 7);
      device.copy(buffer, other, 2, 41, 5);
      expect([...device.read(other)]).toEqual([7, 7, 7, 7, 7, 2, 3, 7, 7, 7]);
      device.free(buffer);
      device.free(other);
    },
  );

  test("read is a copy", () => {
    const buffer = backend().alloc("i32", 4);
    const copy = backend().read(buffer);
    backend().fill(buffer, 3);
    expect([...copy]).toEqual([0, 0, 0, 0]);
  });

  test("ranges outside a buffer are refused", () => {
    const device = backend();
    const buffer = device.alloc("i32", 4);
    expect(() => device.write(buffer, Int32Array.of(1, 2), 3)).toThrow(/outside|of 4/);
    expect(() => device.read(buffer, 2, 3)).toThrow(/outside|of 4/);
    expect(() => device.copy(buffer, device.alloc("i32", 2), 3)).toThrow(/outside|of 2/);
  });

  // Memory that nobody touches costs nothing on the host; a device must have it.
  test("a buffer beyond the largest ArrayBuffer of Node 20 is read, written and computed with on both sides of it", (ctx) => {
    const device = backend();
    const width = device.realType === "f64" ? 8 : 4;
    const boundary = 2 ** 32 / width;
    const length = boundary + 4096;
    const free = device.freeBytes?.() ?? totalmem();
    if (free < 2 * width * length) ctx.skip(`needs ${2 * width * length} bytes, ${free} are there`);
    const buffer = device.alloc(device.realType, length);
    try {
      device.write(buffer, Float32Array.of(1, 2, 3, 4), boundary - 2);
      expect([...device.read(buffer, boundary - 3, 6)]).toEqual([0, 1, 2, 3, 4, 0]);
      device.copy(buffer, buffer, 4, boundary - 2, 100);
      device.copy(buffer, buffer, 4, 101, length - 4);
      expect([...device.read(buffer, 99, 6)]).toEqual([0, 1, 2, 3, 4, 0]);
      expect([...device.read(buffer, length - 5)]).toEqual([0, 2, 3, 4, 0]);

      const across = { buffer, offset: boundary - 2 };
      const out = { buffer, offset: boundary + 1000 };
      device.kernels.matmul({ m: 1, n: 1, k: 4, a: across, b: across, out, precision: "f32" });
      expect([...device.read(buffer, boundary + 999, 3)]).toEqual([0, 30, 0]);

      const ids = device.alloc("i32", 2);
      const rows = device.alloc(device.realType, 2048);
      device.write(ids, Int32Array.of(boundary / 1024, 0));
      device.kernels.gatherRows({ table: buffer, cols: 1024, ids, rows: 2, out: rows });
      expect([...device.read(rows, 0, 3)]).toEqual([3, 4, 0]);
      expect([...device.read(rows, 1024 + 100, 4)]).toEqual([1, 2, 3, 4]);
      device.free(ids);
      device.free(rows);
    } finally {
      device.free(buffer);
    }
  });

  test("arena: marks nest, buffers do not overlap, the peak is kept", () => {
    const device = backend();
    using arena = device.arena();
    const first = arena.alloc(device.realType, 1000);
    device.fill(first, 1);
    const mark = arena.mark();
    const second = arena.alloc(device.realType, 5000);
    const third = arena.alloc("i8", 33);
    device.fill(second, 2);
    device.fill(third, 3);
    expect(device.read(first).every((v) => v === 1)).toBe(true);
    expect(device.read(second).every((v) => v === 2)).toBe(true);
    const peak = arena.peakBytes;
    expect(peak).toBeGreaterThanOrEqual(6000 * 4 + 33);
    arena.rewind(mark);
    device.fill(arena.alloc(device.realType, 5000), 4);
    expect(device.read(first).every((v) => v === 1)).toBe(true);
    expect(arena.peakBytes).toBe(peak);
  });
}
