/** QuaRot: rotations that leave the unquantized model alone and lower the error of the quantized one. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../../src/backend/open.js";
import { Random } from "../../../src/common/random.js";
import { quantize, type QuantizeOptions } from "../../../src/quantize/run/pipeline.js";
import { rotations } from "../../../src/quantize/transforms/rotations.js";
import { parseScheme } from "../../../src/backend/contract/scheme.js";
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

function run(name: string, options: Partial<QuantizeOptions> = {}) {
  const out = join(directory, name);
  return quantize({ backend, source, out, method: "quarot", recipe: FEW, calibration, ...options });
}

describe("rotations", () => {
  it("leave the logits alone where nothing is rounded", () => {
    const { simulated, folded } = identityErrors((_block, program, layer) =>
      rotations(program, parseScheme("w4a4kv4"), new Random(layer)),
    );
    // Float64: 8 blocks of sums over at most 704 products, 1e-16 each.
    expect(simulated).toBeLessThan(1e-11);
    // Folding returns float32, and matrices that are rounded to 16 bits before their inverse is taken, in float64.
    expect(folded).toBeLessThan(1e-5);
  });
});

describe("the pipeline", () => {
  it("every block ends closer than with plain rounding", async () => {
    const { layers, info } = await run("a", { seed: 3 });
    expect(layers).toHaveLength(8);
    for (const { errorFinal, errorRounded } of layers)
      expect(errorFinal).toBeLessThan(errorRounded);
    expect(info.layers[0].parameters).toMatchObject({
      "attn_in.p_left": [16, 16],
      "mlp_down.p_left": [22, 22],
      "mlp_down.p_right": [32, 32],
      "attn_out.p": [8, 8],
      "k_head.p": [32, 32],
    });
  });

  it("gives the same bytes for the same seed, other bytes for another", async () => {
    // Without activation bits a run is shorter, and has the same matrices.
    const scheme = "w4a16kv16";
    using few = await fewBlocks(directory);
    for (const [name, seed] of [
      ["b", 3],
      ["c", 3],
      ["d", 4],
    ] as const)
      await run(name, { source: few, seed, scheme, recipe: { samples: 1, seqLen: 64 } });
    expect(digest(join(directory, "c"))).toBe(digest(join(directory, "b")));
    expect(digest(join(directory, "d"))).not.toBe(digest(join(directory, "b")));
  });

  it("rounds by gptq on the rotated activations", async () => {
    const { info, layers } = await run("gptq", { preset: "gptq" });
    const packed = info.layers.reduce((sum, { errorPacked }) => sum + (errorPacked ?? NaN), 0);
    expect(packed).toBeLessThan(layers.reduce((sum, { errorFinal }) => sum + errorFinal, 0));
  });

  it("refuses a scheme that rounds nothing", async () => {
    await expect(run("never", { scheme: "w16a16kv16" })).rejects.toThrow(/rounds nothing/);
  });
});
