/** AWQ: the search against plain arithmetic on a case with one salient channel, and the whole pipeline. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { openBackend } from "../../../src/backend/open.js";
import { Random } from "../../../src/common/random.js";
import { quantize, type QuantizeOptions } from "../../../src/quantize/run/pipeline.js";
import {
  channelScales,
  clipLogit,
  searchClips,
  searchScales,
} from "../../../src/quantize/methods/awq/search.js";
import { temporaryDirectory } from "../../checkpoint/files.js";
import { digest, FEW, smallCalibration, tinyLlama } from "./support.js";

const directory = temporaryDirectory();
const calibration = smallCalibration(directory);
const backend = openBackend({ device: "cpu" });
const source = tinyLlama();

afterAll(() => {
  source[Symbol.dispose]();
  backend[Symbol.dispose]();
});

function run(name: string, options: Partial<QuantizeOptions> = {}) {
  return quantize({
    backend,
    source,
    out: join(directory, name),
    method: "awq",
    scheme: "w4a16kv16",
    recipe: { ...FEW, gridSteps: 5 },
    calibration,
    ...options,
  });
}

describe("the search", () => {
  const [rows, cols, tokens, bits, steps] = [6, 8, 40, 3, 4];
  const random = new Random(7);
  const x = Float64Array.from(
    { length: tokens * cols },
    (_, i) => random.normal() * (i % cols === 2 ? 30 : 1),
  );
  const w = Float32Array.from({ length: rows * cols }, () => random.normal());
  const mean = new Float64Array(cols);
  const moment = new Float64Array(cols * cols);
  for (let t = 0; t < tokens; t++)
    for (let i = 0; i < cols; i++) {
      mean[i] += Math.abs(x[t * cols + i]) / tokens;
      for (let j = 0; j < cols; j++) moment[i * cols + j] += x[t * cols + i] * x[t * cols + j];
    }
  const result = searchScales({
    backend: createReferenceBackend({ realType: "f64" }),
    weights: [{ shape: [rows, cols], data: w }],
    mean,
    moment,
    grid: { bits },
    steps,
  });

  /** Outputs of rounded weights compared token by token. */
  function plainError(exponent: number): number {
    const s = channelScales(mean, exponent);
    let sum = 0;
    for (let r = 0; r < rows; r++) {
      const scaled = Array.from({ length: cols }, (_, j) => w[r * cols + j] * s[j]);
      const step = Math.max(...scaled.map(Math.abs)) / (2 ** (bits - 1) - 1);
      const rounded = scaled.map((v, j) => (Math.round(v / step) * step) / s[j]);
      for (let t = 0; t < tokens; t++) {
        let error = 0;
        for (let j = 0; j < cols; j++) error += x[t * cols + j] * (rounded[j] - w[r * cols + j]);
        sum += error ** 2;
      }
    }
    return sum;
  }

  it("finds the error of every exponent, and the exponent with the least", () => {
    const expected = Array.from({ length: steps + 1 }, (_, i) => plainError(i / steps));
    expect(result.errors).toHaveLength(steps + 1);
    for (const [i, error] of result.errors.entries()) expect(error / expected[i]).toBeCloseTo(1, 9);
    expect(result.exponent).toBe(expected.indexOf(Math.min(...expected)) / steps);
    // A channel thirty times as loud as the others is worth protecting.
    expect(result.exponent).toBeGreaterThan(0);
  });
});

describe("the search for clipping", () => {
  it("clips each row where its outputs come closest, as found by trying", () => {
    const [rows, cols, tokens, bits] = [5, 24, 60, 3];
    const random = new Random(3);
    // One weight of each row stands far out, in a channel that is hardly used.
    const w = Float32Array.from({ length: rows * cols }, (_, i) =>
      i % cols === 4 ? 6 : random.normal(),
    );
    const x = Float64Array.from(
      { length: tokens * cols },
      (_, i) => random.normal() * (i % cols === 4 ? 0.05 : 1),
    );
    const moment = new Float64Array(cols * cols);
    for (let t = 0; t < tokens; t++)
      for (let i = 0; i < cols; i++)
        for (let j = 0; j < cols; j++) moment[i * cols + j] += x[t * cols + i] * x[t * cols + j];
    const found = searchClips({
      backend: createReferenceBackend({ realType: "f64" }),
      weight: { shape: [rows, cols], data: w },
      scales: new Float64Array(cols).fill(1),
      moment,
      grid: { bits },
    });
    const errorAt = (row: number, ratio: number): number => {
      const own = Array.from(w.subarray(row * cols, (row + 1) * cols));
      const [hi, lo] = [ratio * Math.max(...own), ratio * Math.min(...own)];
      const clipped = own.map((v) => Math.min(Math.max(v, lo), hi));
      const step = Math.max(hi, -lo) / (2 ** (bits - 1) - 1);
      const errors = clipped.map((v, j) => Math.round(v / step) * step - own[j]);
      let sum = 0;
      for (let t = 0; t < tokens; t++)
        sum += errors.reduce((dot, e, j) => dot + e * x[t * cols + j], 0) ** 2;
      return sum;
    };
    const ratios = Array.from({ length: 11 }, (_, i) => 1 - i / 20);
    for (const [row, ratio] of found.entries()) {
      const errors = ratios.map((r) => errorAt(row, r));
      expect(ratio).toBe(ratios[errors.indexOf(Math.min(...errors))]);
      expect(ratio).toBeLessThan(1);
      expect(1 / (1 + Math.exp(-clipLogit(ratio)))).toBeCloseTo(ratio, 12);
    }
    expect(Math.fround(1 / (1 + Math.exp(-clipLogit(1))))).toBe(1);
  });
});

describe("the pipeline", () => {
  it("brings blocks closer than plain rounding; same seed, same bytes", async () => {
    const { layers } = await run("a");
    const total = (key: "errorRounded" | "errorFinal") =>
      layers.reduce((sum, layer) => sum + layer[key], 0);
    expect(total("errorFinal")).toBeLessThan(total("errorRounded"));
    await run("b");
    expect(digest(join(directory, "b"))).toBe(digest(join(directory, "a")));
  });

  it.each([
    ["w4a4kv4", /rounds them/],
    ["w16a16kv4", /keeps them at 16 bits/],
  ])("refuses %s, with the reason", async (scheme, message) => {
    await expect(run("never", { scheme })).rejects.toThrow(message);
  });
});
