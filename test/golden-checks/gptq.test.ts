/**
 * GPTQ against float64 vectors: every gptq*.safetensors in the golden directory, code for code. The vectors were made
 * with the usual settings (damping of 1% of the mean diagonal, columns in their own order), which are our defaults.
 */
import { describe, expect, it } from "vitest";
import { addMoment, gptqRound, plainGptq } from "../../src/quantize/rounding/gptq.js";
import { nativeGptq } from "../../src/quantize/rounding/native.js";
import { goldenFiles, readGolden, type GoldenTensor } from "./support.js";

describe.each(goldenFiles("gptq"))("$name", (file) => {
  const golden = readGolden(file.path);
  const tensor = (name: string): GoldenTensor => {
    const found = golden.get(name);
    if (!found) throw new Error(`${file.name} lacks ${name}`);
    return found;
  };
  const { shape, data: weight } = tensor("weight");
  const [rows, cols] = shape;
  const scale = tensor("scale").data;
  const scaleOf = (i: number) => scale[scale.length === 1 ? 0 : Math.floor(i / cols)];
  const codesOf = (name: string) =>
    Array.from(tensor(name).data, (value, i) => {
      const code = value / scaleOf(i);
      expect(Math.abs(code - Math.round(code)), `${name}[${i}] on the grid`).toBeLessThan(1e-9);
      return Math.round(code) + 0;
    });
  // Scales are max|w| / (2^(b−1) − 1): plain rounding of some weight reaches the grid's end.
  const bits = Math.log2(Math.max(...codesOf("rtn").map(Math.abs)) + 1) + 1;
  const moment = new Float64Array(cols * cols);
  addMoment(moment, tensor("inputs").data, cols);
  const problem = { weight, rows, cols, scale, bits, moment };

  it("the grid is a whole number of bits", () => expect(bits).toBe(Math.round(bits)));

  const solvers = [
    ["plain loops", plainGptq],
    ["native", nativeGptq()],
  ] as const;

  it.each(solvers)("codes are identical, %s", (_, solver) => {
    const { codes, damping } = gptqRound(problem, solver);
    expect(Array.from(codes)).toEqual(codesOf("gptq"));
    expect(damping).toBe(0.01);
  });

  it.each(solvers)("a moment without correlations gives plain rounding, %s", (_, solver) => {
    const identity = Float64Array.from(moment, (_value, i) => (i % (cols + 1) === 0 ? 1 : 0));
    const { codes } = gptqRound({ ...problem, moment: identity }, solver);
    expect(Array.from(codes)).toEqual(codesOf("rtn"));
  });

  it("other settings give other codes: the vectors tell them apart", () => {
    const expected = codesOf("gptq");
    expect(Array.from(gptqRound({ ...problem, damping: 0.1 }).codes)).not.toEqual(expected);
    expect(Array.from(gptqRound({ ...problem, actOrder: true }).codes)).not.toEqual(expected);
  });
});
