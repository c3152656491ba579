/** FlattenQuant's criterion "model": what it measures is what the model loses, and it decides by that alone. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { openBackend } from "../../../src/backend/open.js";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { packageRoot } from "../../../src/common/package.js";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { LanguageModel } from "../../../src/models/language-model.js";
import { readBlock } from "../../../src/models/weights.js";
import type { LinearName } from "../../../src/backend/contract/program.js";
import { readQuantizationInfo } from "../../../src/quantize/artifact/artifact.js";
import { embedAll, forwardAll } from "../../../src/quantize/calibration/forward.js";
import { StateStore } from "../../../src/quantize/calibration/prefix.js";
import { readDocuments, tokenizeCorpus } from "../../../src/quantize/calibration/text.js";
import { randomWindows } from "../../../src/quantize/schema/windows.js";
import { foldBlock } from "../../../src/quantize/block/fold.js";
import type { ParameterValues } from "../../../src/quantize/schema/parameters.js";
import { quantize } from "../../../src/quantize/run/pipeline.js";
import { decide, withAlternative } from "../../../src/quantize/methods/flattenquant/choose.js";
import { flattenquant } from "../../../src/quantize/methods/flattenquant/index.js";
import { modelEffect } from "../../../src/quantize/methods/flattenquant/model-effect.js";
import { flattenQuantPresets } from "../../../src/quantize/methods/flattenquant/recipe.js";
import { packedLayer } from "../../../src/quantize/block/packed-block.js";
import { parseScheme } from "../../../src/backend/contract/scheme.js";
import { Graph } from "../../../src/tensor/tensor.js";
import { temporaryDirectory } from "../../checkpoint/files.js";
import { smallCalibration } from "./support.js";
import { blockProgram } from "../../../src/models/architectures/index.js";

/** Two windows of 64 tokens. */
const FEW = { samples: 2, seqLen: 64 };
const directory = temporaryDirectory();
const calibration = smallCalibration(directory);
const backend = openBackend({ device: "cpu" });
const source = openCheckpoint(join(packageRoot, "models", "tiny-opt"));
const states = new StateStore(1e9);

afterAll(() => {
  source[Symbol.dispose]();
  backend[Symbol.dispose]();
});

async function run(name: string, gamma: number) {
  const out = join(directory, name);
  await quantize({
    ...{ backend, source, out, calibration, states, method: "flattenquant" },
    recipe: { ...FEW, rounding: "rtn", gamma },
    scheme: "w4a4kv8",
  });
  return out;
}

/** The rule of every linear as numbers: what it would cost, and its bits. */
function rules(out: string): { name: string; rate: number; bits: number }[] {
  return readQuantizationInfo(out).layers.flatMap(({ layer, linears = {} }) =>
    Object.entries(linears).map(([path, { rule, bits }]) => ({
      name: `${layer} ${path}`,
      rate: Number(/^model (\S+)/.exec(String(rule))?.[1]),
      bits: Number(bits),
    })),
  );
}

describe('criterion "model"', () => {
  it("runs exactly those linears at 4 bits whose cost is below γ; shared statistics serve every γ", async () => {
    const some = await run("some", 0.3);
    const decided = rules(some);
    expect(decided).toHaveLength(36);
    for (const { name, rate, bits } of decided) expect(bits, name).toBe(rate < 0.3 ? 4 : 8);
    const four = decided.filter(({ bits }) => bits === 4);
    expect(four.length).toBeGreaterThan(3);
    expect(four.length).toBeLessThan(33);
    // The second run takes what linears cost from the first one's states.
    const more = rules(await run("more", 1.5));
    expect(more.map(({ rate }) => rate)).toEqual(decided.map(({ rate }) => rate));
    expect(more.filter(({ bits }) => bits === 4).length).toBeGreaterThan(four.length);
  });

  it("measures the divergence of the whole model's distributions", async () => {
    const scheme = parseScheme("w4a4kv8");
    const original = LanguageModel.load(backend, source);
    const { architecture, config, endLayers } = original;
    const tokens = tokenizeCorpus(loadTokenizer(source), readDocuments(calibration));
    const windows = randomWindows(tokens, FEW.samples, FEW.seqLen, 0);
    const hosts = original.layers.map((_, layer) => readBlock(source, architecture, config, layer));
    const progress = { advance: () => undefined, done: () => undefined };
    const recipe = { ...flattenQuantPresets.default, ...FEW };
    let states = embedAll(backend, config, endLayers, windows);
    const parameters: ParameterValues[] = [];
    for (const [layer, { weights }] of original.layers.entries()) {
      const targets = { ...states, data: new Float32Array(states.data.length) };
      const program = blockProgram(config, layer);
      await forwardAll(backend, program, weights, states, targets, layer, undefined);
      const outcome = await flattenquant.calibrateBlock?.({
        ...{
          backend,
          config,
          program,
          scheme,
          recipe,
          layer,
          seed: 0,
          block: hosts[layer],
          weights,
        },
        ...{ inputs: states, targets, progress },
      });
      if (outcome) parameters.push(outcome.parameters);
      states = targets;
    }
    const [at4, at8] = [4, 8].map((bits) =>
      parameters.map((both) => decide(both, () => bits === 4)),
    );
    const effect = await modelEffect(
      {
        ...{ backend, config, scheme, endLayers, windows, seed: 0, recipe: {}, teacher: states },
        ...{ parameters: [], reports: [], keep: () => Promise.resolve() },
        readBlock: (layer) => hosts[layer],
        progress,
      },
      (layer, bits) => (bits === 4 ? at4 : at8)[layer],
    );

    const logits = (model: LanguageModel): Float32Array => {
      using g = new Graph(backend);
      const hidden = model.hidden(g, windows.ids, { batch: windows.samples });
      return Float32Array.from(g.read(model.logits(g, hidden)));
    };
    const expected = logits(original);
    const folded = hosts.map((host, layer) => {
      const description = { program: blockProgram(config, 0), scheme };
      return [at4, at8].map((values) => foldBlock(host, description, values[layer]));
    });
    const divergence = (four?: { layer: number; role: LinearName }): number => {
      const layers = folded.map(([other, block], layer) => {
        const linears =
          four?.layer === layer
            ? { ...block.linears, [four.role]: other.linears[four.role] }
            : block.linears;
        return packedLayer(backend, blockProgram(config, layer), scheme, { ...block, linears });
      });
      const found = logits(new LanguageModel(backend, architecture, config, endLayers, layers));
      return meanDivergence(expected, found, config.vocabSize);
    };
    const all8 = divergence();
    // Sums of float32 in other orders; divergences themselves are of differences of logits near 1e-2.
    expect(effect.all8).toBeGreaterThan(0);
    expect(Math.abs(effect.all8 - all8)).toBeLessThan(1e-3 * all8);
    for (const four of [
      { layer: 1, role: "q" },
      { layer: 4, role: "down" },
    ] as const) {
      const added = divergence(four) - all8;
      expect(added).toBeGreaterThan(0);
      const measured = effect.added[four.layer][four.role] ?? NaN;
      expect(Math.abs(measured - added), four.role).toBeLessThan(1e-3 * (added + all8));
    }
  });

  it("keeps the grids of both widths apart until it decides", () => {
    const value = (x: number) => ({ shape: [1], data: Float64Array.of(x) });
    const at8 = new Map([
      ["attn_in.diag", value(1)],
      ["grid.self_attn.q_proj.bits", value(8)],
      ["grid.fc1.bits", value(8)],
      ["grid.fc1.weight_part", value(80)],
    ]);
    const at4 = new Map([
      ["attn_in.diag", value(1)],
      ["grid.self_attn.q_proj.bits", value(4)],
      ["grid.self_attn.q_proj.part", value(40)],
      ["grid.fc1.bits", value(4)],
    ]);
    const both = withAlternative(at8, at4);
    expect(decide(both, () => false)).toEqual(at8);
    expect(decide(both, () => true)).toEqual(at4);
    const mixed = decide(both, (path) => path === "fc1");
    expect([...mixed.keys()].sort()).toEqual([
      "attn_in.diag",
      "grid.fc1.bits",
      "grid.self_attn.q_proj.bits",
    ]);
    expect(mixed.get("grid.fc1.bits")).toEqual(value(4));
    expect(mixed.get("grid.self_attn.q_proj.bits")).toEqual(value(8));
  });
});

/** Mean over rows of KL(softmax(a) ‖ softmax(b)) in float64. */
function meanDivergence(a: Float32Array, b: Float32Array, cols: number): number {
  const logSum = (x: Float32Array, at: number): number => {
    let most = -Infinity;
    for (let j = 0; j < cols; j++) most = Math.max(most, x[at + j]);
    let sum = 0;
    for (let j = 0; j < cols; j++) sum += Math.exp(x[at + j] - most);
    return most + Math.log(sum);
  };
  let total = 0;
  for (let at = 0; at < a.length; at += cols) {
    const [za, zb] = [logSum(a, at), logSum(b, at)];
    for (let j = 0; j < cols; j++) {
      const p = a[at + j] - za;
      total += Math.exp(p) * (p - (b[at + j] - zb));
    }
  }
  return total / (a.length / cols);
}
