import { describe, expect, it } from "vitest";
import { planish } from "./run-program.js";

interface Report {
  readonly threads: number;
  readonly ceilings: Record<string, number>;
  readonly cells: { type: string; m: number; gops: number; fraction: number }[];
  readonly peer: { missing: string };
}

describe("planish bench", () => {
  it("sets every product beside the ceiling of its type", async () => {
    const args = ["bench", "kernels", "--rounds", "1", "--threads", "1", "--no-peer", "--json"];
    const { code, stdout } = await planish(args);
    expect(code).toBe(0);
    const report = JSON.parse(stdout) as Report;
    expect(report.threads).toBe(1);
    expect(report.peer).toEqual({ missing: "left out" });
    // Four numbers of rows, two sizes for K and for N, three types.
    expect(report.cells).toHaveLength(4 * 2 * 2 * 3);
    for (const { type, gops, fraction } of report.cells) {
      expect(gops).toBeGreaterThan(0);
      expect(fraction).toBeCloseTo(gops / report.ceilings[type], 9);
    }
  });

  it("names what it can measure", async () => {
    const { code, stderr } = await planish(["bench", "everything"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^planish: .*'everything' is invalid .*Allowed choices are kernels; see/,
    );
  });
});
