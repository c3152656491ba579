/** `planish sweep`: killed and resumed it redoes no finished point, and ends in a table and curves. */
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../src/common/package.js";
import { gridPoints, parseGridField } from "../../src/experiments/sweep/grid.js";
import type { Sweep } from "../../src/experiments/sweep/result.js";
import { readDocuments } from "../../src/quantize/calibration/text.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { planish } from "./run-program.js";

const directory = temporaryDirectory();

describe("the grid", () => {
  it("combines fields, nests dotted ones, and tells numbers from words", () => {
    const points = gridPoints(
      ["alpha=0.4,0.5", "gptq.damping=1e-2", "rounding=rtn"].map(parseGridField),
    );
    expect(points.map(({ name }) => name)).toEqual([
      "alpha=0.4 gptq.damping=0.01 rounding=rtn",
      "alpha=0.5 gptq.damping=0.01 rounding=rtn",
    ]);
    expect(points[0].recipe).toEqual({ alpha: 0.4, gptq: { damping: 0.01 }, rounding: "rtn" });
  });

  it.each(["alpha", "alpha=", "alpha=1,1", "alpha=1,,2", "=3"])("refuses %s", (text) => {
    expect(() => parseGridField(text)).toThrow(/grid/);
  });
});

describe("planish sweep", () => {
  it("resumes after kill -9 without redoing finished points", async () => {
    const text = join(directory, "text.txt");
    writeFileSync(text, readDocuments("wikipedia").join("\n").slice(0, 40_000));
    const model = join(directory, "three-blocks");
    await writeFirstBlocks(join(packageRoot, "models", "tiny-opt"), model, 3);
    const out = join(directory, "sweep");
    const args = [
      ...["sweep", model, "--out", out],
      ...["--grid", "gamma=0,0.03,100", "--preset", "excess", "--samples", "4", "--seq-len", "64"],
      ...["--calibration", text, "--ppl", text, "--windows", "2", "--json"],
    ];
    const points = join(out, "points");
    const done = () => readdirSync(points).filter((file) => file.endsWith(".json"));
    // A point is announced when the one before it is in place.
    const killed = await planish(args, {
      onStderr: (child, stderr) => {
        if (stderr.includes("point 2 of 3")) child.kill("SIGKILL");
      },
    });
    expect(killed.code).toBeNull();
    const finished = done().map((file) => [file, statSync(join(points, file)).mtimeMs] as const);
    expect(finished).toHaveLength(1);

    const { stdout, code } = await planish([...args, "--resume"]);
    expect(code).toBe(0);
    for (const [file, time] of finished) expect(statSync(join(points, file)).mtimeMs).toBe(time);
    const { points: results } = JSON.parse(stdout) as Sweep;
    const shares = results.map(({ fourBitShare }) => fourBitShare ?? NaN);
    expect([shares[0], shares[2]]).toEqual([0, 1]);
    expect(shares[1]).toBeGreaterThan(0);
    expect(shares[1]).toBeLessThan(1);
    for (const point of results) expect(point.tokensPerSecond).toBeGreaterThan(0);
    // The more linears at 4 bits, the further from full precision.
    const divergences = results.map(({ kl }) => kl);
    expect(divergences[0]).toBeGreaterThan(0);
    expect(divergences[2]).toBeGreaterThan(divergences[0]);
    expect(readFileSync(join(out, "sweep.md"), "utf8")).toContain("| gamma");
    const page = readFileSync(join(out, "sweep.html"), "utf8");
    expect(page).not.toMatch(/(src|href)="http/);
    expect(readdirSync(join(out, "artifacts"))).toEqual([]);
  });
});
