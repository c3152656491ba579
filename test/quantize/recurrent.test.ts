/** Blocks that carry a state, through the methods: what is learned before the state is learned through it. */
import { describe, expect, it } from "vitest";
import { isCarry } from "../../src/backend/contract/recurrent.js";
import { blockJob, CALIBRATED, quantizedBlock } from "./block-job.js";

const FIXTURES = [
  ["qwen3.5", 2],
  ["lfm2", 2],
  ["falcon-h1", 1],
  ["nemotron-h", 4],
] as const;

describe.each(FIXTURES)("%s, layer %i", (name, layer) => {
  const parts = blockJob(name, layer);

  it("has a state", () => {
    expect(parts.program.steps.some(isCarry)).toBe(true);
  });

  it.each(CALIBRATED)("%s calibrates, folds and runs", async (method) => {
    const { report, packed, y } = await quantizedBlock(method, parts);
    expect(y.every(Number.isFinite)).toBe(true);
    // Convolutions, rates and biases of steps reach the packed block as they are.
    for (const [kept, { data }] of Object.entries(parts.block.kept))
      expect(packed.kept[kept].data).toEqual(data);
    if (method === "flatquant" && report)
      expect(report.errorFinal).toBeLessThan(0.9 * report.errorRounded);
  });
});
