/** Bits by budget: the choice itself, and an artifact whose sites have bits of their own in every arithmetic. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { openInteger } from "../../src/engine/processor.js";
import { parseBudget } from "../../src/cli/commands/budget-flag.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { loadModel, loadSimulated } from "../../src/quantize/artifact/load.js";
import { verifyArtifact } from "../../src/quantize/artifact/verify.js";
import { chooseLevels, type Sensitivities, type Unit } from "../../src/quantize/run/bits.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { engineLogits, mean, modelLogits, rowDistances } from "../backend/cpu/infer/support.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { FEW, smallCalibration } from "./methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-bits-"));
const model = join(directory, "model");
const cpu = openBackend({ device: "cpu" });
let calibration: string;

beforeAll(async () => {
  calibration = smallCalibration(directory);
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), model, 2);
});
afterAll(() => {
  cpu[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

const unit = (...levels: readonly (readonly [kl: number, bytes: number])[]): Unit => ({
  layer: 0,
  site: "mlp_in",
  of: "weights",
  levels: levels.map(([kl, bytes]) => ({ bits: 4, kl, bytes })),
});

describe("choosing levels", () => {
  it("takes what costs most without first, and passes over a level that buys little", () => {
    const units = [
      unit([0.3, 10], [0.29, 15], [0, 20]),
      unit([0.1, 10], [0.02, 15], [0, 20]),
      unit([0.05, 0], [0, 0]),
    ];
    const sensitivities: Sensitivities = { floor: 0.01, units };
    expect(chooseLevels(sensitivities, { room: 0 }).levels).toEqual([0, 0, 1]);
    expect(chooseLevels(sensitivities, { room: 10 }).levels).toEqual([2, 0, 1]);
    expect(chooseLevels(sensitivities, { room: 15 })).toMatchObject({ levels: [2, 1, 1] });
    const within = chooseLevels(sensitivities, { kl: 0.15 });
    expect(within.levels).toEqual([2, 0, 1]);
    expect(within.kl).toBeCloseTo(0.11, 12);
  });

  const levels = fc
    .array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(100)), {
      minLength: 2,
      maxLength: 4,
    })
    .map((steps) =>
      unit(
        ...steps
          .map(([kl]) => kl)
          .sort((a, b) => b - a)
          .map((kl, i) => [kl, i * 10 + steps[i][1] * Math.min(i, 1)] as const),
      ),
    );

  it("never exceeds the room, and its sums are those of what it chose", () => {
    fc.assert(
      fc.property(fc.array(levels, { maxLength: 8 }), fc.nat(400), (units, room) => {
        const { levels: at, kl, moreBytes } = chooseLevels({ floor: 0.5, units }, { room });
        const bytes = units.reduce((sum, { levels: l }, i) => sum + l[at[i]].bytes - l[0].bytes, 0);
        expect(moreBytes).toBe(bytes);
        expect(moreBytes).toBeLessThanOrEqual(room);
        expect(kl).toBeCloseTo(0.5 + units.reduce((sum, u, i) => sum + u.levels[at[i]].kl, 0), 9);
      }),
    );
  });
});

describe("an artifact made within a budget", () => {
  const run = async (out: string, more: Partial<Parameters<typeof quantize>[0]>) => {
    using source = openCheckpoint(model);
    return await quantize({
      backend: cpu,
      source,
      out: join(directory, out),
      calibration,
      ...more,
    });
  };

  it.each([
    ["rtn", "w4g64a4g64kv8", {}],
    ["rtn", "w4a4kv8", {}],
    ["flatquant", "w4g32oa4g32kv4", { ...FEW, epochs: 1, distillation: { steps: 1 } }],
  ])("%s, %s: simulated, packed and on integers alike", async (method, scheme, recipe) => {
    const name = `${method}-${scheme}`;
    const uniform = await run(`${name}-uniform`, { method, scheme, recipe });
    const size = Math.round(uniform.bytes * 1.15);
    const { bytes, info, out } = await run(name, {
      method,
      scheme,
      recipe,
      budget: { size },
      keepParameters: true,
    });
    expect(bytes).toBeLessThanOrEqual(size);
    // Nothing is left that would have fitted: a site's weights at 8 bits are less than a tenth of the model.
    expect(bytes).toBeGreaterThan(uniform.bytes);
    expect(info.scheme).toBe(parseScheme(scheme) && scheme);
    expect(info.budget?.predictedKl).toBeLessThan(info.budget?.uniformKl ?? 0);
    const widths = info.layers.flatMap(({ grids }) => Object.values(grids ?? {}));
    expect(widths.some((grid) => /^[68]/.test(grid))).toBe(true);
    verifyArtifact(out);
    using packed = loadModel(cpu, out);
    using simulated = await loadSimulated(cpu, out, model);
    const tokens = Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % 300);
    const expected = modelLogits(packed.model, tokens);
    // What the artifact keeps in 16 bits, as for uniform bits (test/quantize/groups.test.ts).
    expect(mean(rowDistances(modelLogits(simulated.model, tokens), expected, 4096))).toBeLessThan(
      0.02,
    );
    if (process.env.PLANISH_NO_NATIVE === "1") return;
    using executor = openInteger(out).executor;
    expect(mean(rowDistances(await engineLogits(executor, tokens), expected, 4096))).toBeLessThan(
      0.02,
    );
  });

  it("counts exactly, and refuses what not even the scheme's own bits fit", async () => {
    const refused = run("small", { method: "rtn", scheme: "w4a8kv8", budget: { size: 1e6 } });
    await expect(refused).rejects.toThrow(/--budget size=1.00 MB is less than the .* that w4a8kv8/);
    const workers = { count: 2, start: () => Promise.resolve(), threads: 1 };
    await expect(run("w", { budget: { kl: 1 }, workers: workers as never })).rejects.toThrow(
      /leave out --workers/,
    );
  });

  it("of a divergence raises nothing when nothing is asked", async () => {
    const { info, out } = await run("lax", {
      method: "rtn",
      scheme: "w4a8kv8",
      budget: { kl: 99 },
    });
    using artifact = openArtifact(out);
    expect(info.layers.every(({ grids }) => grids === undefined)).toBe(true);
    expect(artifact.scheme.blocks).toBeUndefined();
  });
});

it("--budget is read in one way only", () => {
  expect(parseBudget("size=95MB")).toEqual({ size: 95e6 });
  expect(parseBudget("kl=0.1,size=1GB")).toEqual({ kl: 0.1, size: 1e9 });
  for (const text of ["", "size", "kl=0", "kl=NaN", "size=95MB,size=96MB", "kl= ", "speed=3"])
    expect(() => parseBudget(text), text).toThrow(/Give/);
});
