/** SmoothQuant: its factors against the paper's formula, what they leave alone, and the whole pipeline. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../../src/backend/open.js";
import { Random } from "../../../src/common/random.js";
import { quantize, type QuantizeOptions } from "../../../src/quantize/run/pipeline.js";
import { smoothingDiags } from "../../../src/quantize/methods/smoothquant/diags.js";
import { blockProgram, parseModelConfig } from "../../../src/models/architectures/index.js";
import { readBlock } from "../../../src/models/weights.js";
import type { SiteMaxima } from "../../../src/quantize/calibration/maxima.js";
import { temporaryDirectory } from "../../checkpoint/files.js";
import { digest, FEW, fewBlocks, identityErrors, smallCalibration, tinyLlama } from "./support.js";

const directory = temporaryDirectory();
const calibration = smallCalibration(directory);
const backend = openBackend({ device: "cpu" });
const source = tinyLlama();

afterAll(() => {
  source[Symbol.dispose]();
  backend[Symbol.dispose]();
});

/** Maxima over three orders of magnitude, as activations with outliers have. */
function someMaxima(seed: number): SiteMaxima {
  const random = new Random(seed);
  const draw = (n: number) =>
    Float64Array.from({ length: n }, () => 10 ** (3 * random.uniform() - 1));
  return { attn_in: draw(256), attn_out: draw(256), mlp_in: draw(256), mlp_down: draw(704) };
}

function run(name: string, options: Partial<QuantizeOptions> = {}) {
  const out = join(directory, name);
  return quantize({
    backend,
    source,
    out,
    method: "smoothquant",
    recipe: FEW,
    calibration,
    ...options,
  });
}

describe("factors", () => {
  it("are the inverses of the paper's s, over all weights that read the activation", () => {
    const { architecture, config } = parseModelConfig(source.config);
    const block = readBlock(source, architecture, config, 2);
    const maxima = someMaxima(1);
    const alpha = 0.7;
    const diags = smoothingDiags(block, blockProgram(config, 2), maxima, alpha);
    expect([...diags.keys()]).toEqual(["attn_in.diag", "mlp_in.diag", "mlp_down.diag"]);
    const readers = {
      attn_in: ["q", "k", "v"],
      mlp_in: ["gate", "up"],
      mlp_down: ["down"],
    } as const;
    for (const site of ["attn_in", "mlp_in", "mlp_down"] as const) {
      const diag = diags.get(`${site}.diag`)?.data ?? [];
      expect(diag).toHaveLength(maxima[site].length);
      for (let j = 0; j < diag.length; j += 17) {
        const column = readers[site].flatMap((role) => {
          const weight = block.linears[role]?.weight;
          if (!weight) throw new Error(role);
          const [rows, cols] = weight.shape;
          return Array.from({ length: rows }, (_, n) => Math.abs(weight.data[n * cols + j]));
        });
        const s = maxima[site][j] ** alpha / Math.max(...column) ** (1 - alpha);
        expect(diag[j] * s).toBeCloseTo(1, 12);
      }
    }
  });

  it("leave the logits alone where nothing is rounded", () => {
    const { simulated, folded } = identityErrors((block, program, layer) =>
      smoothingDiags(block, program, someMaxima(layer), 0.5),
    );
    // Float64: 8 blocks of sums over at most 704 products, 1e-16 each.
    expect(simulated).toBeLessThan(1e-11);
    // Folding returns float32: 6e-8 relative per weight, gain and block, carried through 8 blocks.
    expect(folded).toBeLessThan(1e-5);
  });
});

describe("the pipeline", () => {
  it("gives the same bytes for the same seed", async () => {
    using few = await fewBlocks(directory);
    const options = { source: few, seed: 3, scheme: "w8a8kv16" };
    const { layers, info } = await run("a", options);
    await run("b", options);
    expect(digest(join(directory, "b"))).toBe(digest(join(directory, "a")));
    expect(layers).toHaveLength(3);
    expect(info.recipe).toMatchObject({ alpha: 0.5, rounding: "rtn" });
  });

  it("brings blocks closer than plain rounding at 4-bit activations, where outliers cost most", async () => {
    const { layers } = await run("c", { scheme: "w8a4kv16" });
    const total = (key: "errorRounded" | "errorFinal") =>
      layers.reduce((sum, layer) => sum + layer[key], 0);
    expect(total("errorFinal")).toBeLessThan(total("errorRounded"));
  });

  it("rounds by gptq on the smoothed activations", async () => {
    const { info, layers } = await run("d", { scheme: "w4a8kv16", preset: "gptq" });
    const packed = info.layers.reduce((sum, { errorPacked }) => sum + (errorPacked ?? NaN), 0);
    expect(packed).toBeLessThan(layers.reduce((sum, { errorFinal }) => sum + errorFinal, 0));
  });

  it.each(["w4a16kv16", "w16a16kv4"])("refuses %s, with the reason", async (scheme) => {
    await expect(run("never", { scheme })).rejects.toThrow(/activations at 16 bits/);
  });
});
