/** The ABI's table: what is made from it is what is committed, calls are typed and checked by it, and plans run by it. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { KERNEL_TABLE, kernelTable } from "../../scripts/cuda-kernels.js";
import { ABI_FOLDER, HEADERS } from "../../scripts/generate-abi.js";
import {
  FUNCTIONS,
  KERNELS,
  PLAN_OPERATIONS,
  type Arguments,
} from "../../src/backend/contract/abi.js";
import { cName, lengthOf, parametersOf } from "../../src/backend/contract/abi-types.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { nativeKernels } from "../../src/backend/cpu/native-kernels.js";
import { EngineMemory } from "../../src/backend/cpu/infer/memory.js";
import { Plan } from "../../src/backend/cpu/infer/plan.js";

describe("what is made from the table", () => {
  test("native/abi holds the headers that `npm run generate:abi` writes, and no others", () => {
    expect(readdirSync(ABI_FOLDER).sort()).toEqual(Object.keys(HEADERS).sort());
    for (const [name, text] of Object.entries(HEADERS))
      expect(readFileSync(join(ABI_FOLDER, name), "utf8"), name).toBe(text());
  });

  test("the table of CUDA launches is what the kernels declare", () => {
    expect(readFileSync(KERNEL_TABLE, "utf8")).toBe(kernelTable());
  });

  test("every name is one of C's own", () => {
    const names = [...Object.keys(KERNELS), ...Object.keys(FUNCTIONS)].map(cName);
    expect(new Set(names).size).toBe(names.length);
    for (const name of names) expect(name).toMatch(/^[a-z][a-z0-9_]*$/);
  });

  test("every length is made of parameters", () => {
    for (const types of Object.values(KERNELS)) {
      const parameters = parametersOf(types);
      for (const parameter of parameters)
        if (parameter.kind === "memory")
          lengthOf(
            parameter.length,
            parameters.map(({ name }) => name),
          );
    }
    expect(() => lengthOf("rows*width", ["rows"])).toThrow('no parameter "width"');
    expect(() => parametersOf({ x: "f16" as "f32" })).toThrow('x has the type "f16"');
  });

  test("lengths of strided views", () => {
    const names = ["rows", "stride", "cols"];
    const reach = lengthOf("reach(rows:stride,cols:1)", names)!;
    expect(reach([3, 10, 4])).toBe(24);
    expect(reach([0, 10, 4])).toBe(0);
    expect(lengthOf("rows*cols/2", names)!([3, 10, 4])).toBe(6);
    expect(lengthOf("*", names)).toBeUndefined();
  });

  test("a call with a missing, misnamed or mistaken argument does not compile", () => {
    type Scale = Arguments<(typeof KERNELS)["scale"]>;
    const x = new Float32Array(1);
    const whole: Scale = { x, length: 1, alpha: 2, accumulate: false, out: x };
    // @ts-expect-error: out is missing.
    const missing: Scale = { x, length: 1, alpha: 2, accumulate: false };
    // @ts-expect-error: nothing is called y.
    const misnamed: Scale = { x, length: 1, alpha: 2, accumulate: false, out: x, y: x };
    // @ts-expect-error: x is f32.
    const mistaken: Scale = { ...whole, x: new Int32Array(1) };
    // @ts-expect-error: no such word.
    const word: Arguments<(typeof KERNELS)["unary"]> = { op: "cube", x, length: 1, out: x };
    expect([missing, misnamed, mistaken, word]).toHaveLength(4);
  });
});

const WITHOUT = process.env.PLANISH_NO_NATIVE === "1";

describe.runIf(WITHOUT)("PLANISH_NO_NATIVE=1: a machine without a compiler", () => {
  test.skip("native calls", () => {});
});

describe.skipIf(WITHOUT)("native calls", () => {
  const kernels = () => nativeKernels(loadNativeLibrary());

  test("what does not fit is refused by name before the native side sees it", () => {
    const x = new Float32Array(6);
    const scale = (change: object) => () =>
      kernels().scale({ x, length: 6, alpha: 2, accumulate: false, out: x, ...change });
    expect(scale({ length: 7 })).toThrow("scale x has 6 elements; it needs 7");
    expect(scale({ length: NaN })).toThrow("scale x has 6 elements; it needs NaN");
    expect(scale({ out: new Int8Array(6) })).toThrow(
      "scale out: takes Float32Array, got Int8Array",
    );
    expect(scale({ out: undefined })).toThrow("scale out: is missing");
    expect(scale({ out: {} })).toThrow("scale out: this buffer belongs to another backend");
    expect(() => kernels().unary({ op: "cube" as "silu", x, length: 6, out: x })).toThrow(
      "unary op: got cube; accepted: sigmoid, silu",
    );
    expect([...x]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  test("plans run the table's operations on a step's rows as calls one by one do", () => {
    const library = loadNativeLibrary();
    const native = nativeKernels(library);
    using memory = new EngineMemory(library);
    const [rows, heads, headDim] = [3, 2, 4];
    const cols = heads * headDim;
    const floats = (length: number) => memory.alloc<Float32Array>("f32", length);
    const [x, y, cos, sin] = [
      floats(rows * cols),
      floats(rows * cols),
      floats((rows * headDim) / 2),
      floats((rows * headDim) / 2),
    ];
    for (const { data } of [x, y, cos, sin]) data.forEach((_, i) => (data[i] = Math.sin(i + 1)));
    const want = x.data.slice();
    native.binary({ op: "mul", rows, cols, a: want, b: y.data, broadcast: "full", out: want });
    native.scale({ x: want, length: rows * cols, alpha: -1.5, accumulate: true, out: want });
    native.unary({ op: "geluTanh", x: want, length: rows * cols, out: want });
    const turn = { heads, headDim, period: rows, inverse: false };
    native.rope({ x: want, rows, cos: cos.data, sin: sin.data, out: want, ...turn });

    const plan = new Plan(memory);
    const at = x.address;
    plan.add("binary", { op: "mul", cols, a: at, b: y.address, broadcast: "full", out: at });
    plan.add("scale", { x: at, length: cols, alpha: -1.5, accumulate: true, out: at });
    plan.add("unary", { op: "geluTanh", x: at, length: cols, out: at });
    plan.add("rope", { x: at, cos: cos.address, sin: sin.address, out: at, ...turn });
    const seconds = new Float64Array(PLAN_OPERATIONS.length);
    library.runPlan(plan.finish(), plan.length, rows, 1, seconds);
    expect(x.data).toEqual(want);
    const timed = PLAN_OPERATIONS.filter((_, i) => seconds[i] > 0);
    expect(timed).toEqual(["binary", "scale", "unary", "rope"]);
  });

  test("a plan holds addresses only", () => {
    using memory = new EngineMemory(loadNativeLibrary());
    const plan = new Plan(memory);
    const x = new Float32Array(4);
    plan.add("unary", { op: "relu", x, length: 4, out: x });
    expect(() => plan.finish()).toThrow("plan: x is no address");
  });
});
