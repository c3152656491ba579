/** Every op case of every ops*.safetensors against the float64 reference kernels, forward and gradients. */

import { describe, expect, test } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { runOpCase } from "./op-kernels.js";
import {
  expectClose,
  GOLDEN_RELATIVE,
  goldenCases,
  goldenFiles,
  readGolden,
  type GoldenCase,
} from "./support.js";

const backend = createReferenceBackend({ realType: "f64" });

/** Asserts that the kernels give the case's output and every gradient that it holds. */
function checkCase(golden: GoldenCase): void {
  const result = runOpCase(backend, golden);
  const gradients = [...golden.tensors.keys()].filter((name) => name.startsWith("grad."));
  expectClose(result.out, golden.tensors.get("out")!.data, `${golden.name}/out`);
  expect(gradients.length, `${golden.name}: gradients in the file`).toBeGreaterThan(0);
  for (const name of gradients) {
    const computed = result.grads[name.slice("grad.".length)];
    if (!computed) expect.fail(`${golden.name}/${name}: the kernels give no such gradient`);
    expectClose(computed, golden.tensors.get(name)!.data, `${golden.name}/${name}`);
  }
}

for (const file of goldenFiles("ops")) {
  const cases = goldenCases(readGolden(file.path));
  describe(`${file.name}: kernels of reference-f64, ${GOLDEN_RELATIVE} relative`, () => {
    test("has cases", () => expect(cases.length).toBeGreaterThan(0));
    test.each(cases.map((golden) => [golden.name, golden] as const))("%s", (_name, golden) =>
      checkCase(golden),
    );
  });
}

describe("the checks themselves", () => {
  const [first] = goldenCases(readGolden(goldenFiles("ops")[0].path));

  test("an unknown family fails under its own name", () => {
    expect(() => checkCase({ name: "mystery_op4", tensors: first.tensors })).toThrow(
      /mystery_op4: unknown family/,
    );
  });

  test("a tensor that nothing reads fails", () => {
    const tensors = new Map(first.tensors).set("in.extra", {
      shape: [1],
      data: new Float64Array(1),
    });
    expect(() => checkCase({ name: first.name, tensors })).toThrow(/nothing reads in\.extra/);
  });

  test("an output off by twice the bound fails", () => {
    const out = first.tensors.get("out")!;
    const data = Float64Array.from(out.data, (value) => value * (1 + 2 * GOLDEN_RELATIVE) + 1e-9);
    const tensors = new Map(first.tensors).set("out", { shape: out.shape, data });
    expect(() => checkCase({ name: first.name, tensors })).toThrow(/times the bound/);
  });
});
