/** GPTQ's meeting with a block: which activations its second moments are of, and where its codes go. */
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { Random } from "../../../src/common/random.js";
import type { ModelConfig } from "../../../src/models/config.js";
import { uploadBlock, type HostBlock } from "../../../src/models/weights.js";
import type { LinearName } from "../../../src/backend/contract/program.js";
import { foldBlock } from "../../../src/quantize/block/fold.js";
import type { ParameterValues } from "../../../src/quantize/schema/parameters.js";
import { initialParameters } from "../../../src/quantize/methods/flatquant/parameters.js";
import { flatQuantPresets } from "../../../src/quantize/methods/flatquant/recipe.js";
import { settleParameters } from "../../../src/quantize/transforms/stored-precision.js";
import { collectMoments, type SecondMoment } from "../../../src/quantize/block/input-moments.js";
import { gptqRounder } from "../../../src/quantize/rounding/rounder.js";
import type { WeightRounder } from "../../../src/quantize/schema/weight-rounder.js";
import { parseScheme, type Scheme } from "../../../src/backend/contract/scheme.js";
import { blockProgram } from "../../../src/models/architectures/index.js";
import { mapValues } from "../../../src/common/records.js";

const backend = createReferenceBackend({ realType: "f64" });
const config: ModelConfig = {
  architecture: "llama",
  hiddenSize: 12,
  intermediateSize: 20,
  numLayers: 1,
  numHeads: 3,
  numKvHeads: 3,
  headDim: 4,
  vocabSize: 1,
  maxPositions: 64,
  norm: { kind: "rms", epsilon: 1e-6 },
  positions: { kind: "rope", theta: 1e4, scaling: { type: "default" } },
  mlp: { gated: true, activation: "silu" },
  qkNorm: false,
  tiedEmbeddings: true,
};
const random = new Random(11);
const normal = (length: number, scale = 1) =>
  Float64Array.from({ length }, () => scale * random.normal());
const program = blockProgram(config, 0);
const block: HostBlock = {
  norms: mapValues(program.norms, ({ path, width }) => ({
    path,
    gain: { shape: [width], data: normal(width).map((x) => 1 + 0.2 * x) },
  })),
  linears: mapValues(program.linears, ({ path, shape }) => ({
    path,
    weight: { shape, data: normal(shape[0] * shape[1], 0.4) },
  })),
  kept: {},
};
const inputs = { data: Float32Array.from(normal(3 * 8 * 12)), samples: 3, time: 8, hidden: 12 };

/** Every parameter FlatQuant has, moved off its start so that nothing is orthogonal or one. */
function flatParameters(scheme: Scheme): ParameterValues {
  const ones = (n: number) => new Float64Array(n).fill(1);
  const maxima = { attn_in: ones(12), attn_out: ones(12), mlp_in: ones(12), mlp_down: ones(20) };
  const recipe = { ...flatQuantPresets.paper, clipInit: 1 };
  const values = initialParameters(block, program, scheme, recipe, maxima, random);
  for (const [name, { data }] of values)
    for (let i = 0; i < data.length; i++)
      data[i] = /\.(s|diag)/.test(name)
        ? 0.7 + 0.6 * random.uniform()
        : data[i] + 0.1 * random.normal();
  return values;
}

function moments(
  scheme: Scheme,
  parameters: ParameterValues,
  equalTokens = false,
): Promise<SecondMoment[]> {
  const weights = uploadBlock(backend, block);
  return collectMoments({
    backend,
    block: { program, scheme },
    weights,
    parameters,
    inputs,
    layer: 0,
    equalTokens,
  });
}

function find(all: readonly SecondMoment[], role: LinearName): Float64Array {
  const found = all.find(({ roles }) => roles.includes(role));
  if (!found) throw new Error(`no moment for ${role}`);
  return found.sum;
}

/** Token t of the inputs after the block's first norm. */
function normedInput(t: number): number[] {
  const row = inputs.data.subarray(t * 12, (t + 1) * 12);
  const mean = row.reduce((sum, x) => sum + x * x, 0) / 12;
  return Array.from(row, (v, j) => (v * block.norms.input.gain.data[j]) / Math.sqrt(mean + 1e-6));
}

/** MᵀHM. */
function congruence(h: Float64Array, m: Float64Array, n: number): Float64Array {
  const product = (a: (i: number, k: number) => number, b: (k: number, j: number) => number) => {
    const out = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) for (let k = 0; k < n; k++) out[i * n + j] += a(i, k) * b(k, j);
    return out;
  };
  const hm = product(
    (i, k) => h[i * n + k],
    (k, j) => m[k * n + j],
  );
  return product(
    (i, k) => m[k * n + i],
    (k, j) => hm[k * n + j],
  );
}

/** The whole site's matrix diag·(left ⊗ right). */
function dense(left: ArrayLike<number>, right: ArrayLike<number>, diag?: ArrayLike<number>) {
  const a = Math.sqrt(left.length);
  const b = Math.sqrt(right.length);
  const n = a * b;
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < n; j++)
      out[i * n + j] =
        (diag?.[i] ?? 1) *
        left[Math.floor(i / b) * a + Math.floor(j / b)] *
        right[(i % b) * b + (j % b)];
  return out;
}

function expectNear(actual: Float64Array, expected: Float64Array, relative: number): void {
  const largest = expected.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  for (const [i, x] of expected.entries())
    expect(Math.abs(actual[i] - x), `[${i}]`).toBeLessThan(relative * largest);
}

describe("second moments", () => {
  it("are of the normed input where q, k and v read it, shared while nothing tells them apart", async () => {
    const all = await moments(parseScheme("w4a16kv16"), new Map());
    expect(all.map(({ roles }) => roles.join(" "))).toEqual(["q k v", "o", "gate up", "down"]);
    const expected = new Float64Array(144);
    for (let t = 0; t < 24; t++) {
      const x = normedInput(t);
      for (let i = 0; i < 12; i++) for (let j = 0; j < 12; j++) expected[i * 12 + j] += x[i] * x[j];
    }
    expectNear(find(all, "k"), expected, 1e-12);
  });

  it("are of transformed activations: H' = MᵀHM with M the site's whole matrix, P_v included", async () => {
    const scheme = parseScheme("w4a16kv16");
    const values = settleParameters(program, block, flatParameters(scheme));
    const plain = await moments(scheme, new Map());
    const transformed = await moments(scheme, values);
    const data = (name: string) => values.get(name)!.data;
    for (const [role, site] of [
      ["q", "attn_in"],
      ["up", "mlp_in"],
      ["down", "mlp_down"],
    ] as const) {
      const m = dense(data(`${site}.p_left`), data(`${site}.p_right`), data(`${site}.diag`));
      const n = Math.sqrt(m.length);
      expectNear(find(transformed, role), congruence(find(plain, role), m, n), 1e-9);
    }
    const m = dense(data("attn_out.p"), data("v_head.p"));
    expectNear(find(transformed, "o"), congruence(find(plain, "o"), m, 12), 1e-9);
  });

  it("are of activations on their grid: one scale per token, from its largest value", async () => {
    const all = await moments(parseScheme("w4a4kv16"), new Map());
    const expected = new Float64Array(144);
    for (let t = 0; t < 24; t++) {
      const x = normedInput(t);
      const step = Math.max(...x.map(Math.abs)) / 7;
      const q = x.map((v) => Math.round(v / step) * step);
      for (let i = 0; i < 12; i++) for (let j = 0; j < 12; j++) expected[i * 12 + j] += q[i] * q[j];
    }
    expectNear(find(all, "q"), expected, 1e-12);
  });

  it("count every token alike where asked: of x over its root mean square, on its grid", async () => {
    const quantized = (t: number) => {
      const x = normedInput(t);
      const step = Math.max(...x.map(Math.abs)) / 7;
      return x.map((v) => Math.round(v / step) * step);
    };
    const expected = new Float64Array(144);
    for (let t = 0; t < 24; t++) {
      const q = quantized(t);
      const square = q.reduce((sum, v) => sum + v * v, 0) / 12;
      for (let i = 0; i < 12; i++)
        for (let j = 0; j < 12; j++) expected[i * 12 + j] += (q[i] * q[j]) / square;
    }
    expectNear(find(await moments(parseScheme("w4a4kv16"), new Map(), true), "q"), expected, 1e-12);
  });

  it("are collected linear by linear where each clips its activation its own way", async () => {
    const scheme = parseScheme("w4a4kv16");
    const all = await moments(scheme, settleParameters(program, block, flatParameters(scheme)));
    expect(all.map(({ roles }) => roles.join())).toEqual([...Object.keys(program.linears)]);
    expect(find(all, "q")).not.toEqual(find(all, "k"));
  });
});

describe("folding with a rounder", () => {
  const scheme = parseScheme("w4a4kv4");
  const description = { program, scheme };
  const values = flatParameters(scheme);
  const nearest: WeightRounder = (_role, weight, [, cols], { scale, bits }) =>
    Int8Array.from(weight, (x, i) => {
      const code = Math.round(x / scale[Math.floor(i / cols)]);
      return Math.min(Math.max(code, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1);
    });

  it("one that rounds to nearest changes nothing: it is given the folded, clipped weight and its scale", () => {
    expect(foldBlock(block, description, values, nearest)).toEqual(
      foldBlock(block, description, values),
    );
  });

  it("gptq keeps scales and everything else, and lowers each linear's own objective", async () => {
    const plain = foldBlock(block, description, values);
    const all = await moments(scheme, settleParameters(program, block, values));
    const notes: string[] = [];
    const folded = new Map<LinearName, Float64Array>();
    const gptq = gptqRounder(all, { damping: 0.01, actOrder: false }, "block 0", notes);
    const packed = foldBlock(block, description, values, (role, weight, ...rest) => {
      folded.set(role, Float64Array.from(weight));
      return gptq(role, weight, ...rest);
    });
    expect(notes).toEqual([]);
    let [before, after] = [0, 0];
    for (const role of Object.keys(program.linears)) {
      const [a, b] = [plain.linears[role], packed.linears[role]];
      expect(b.quantized!.scale).toEqual(a.quantized!.scale);
      expect({ ...b, quantized: undefined }).toEqual({ ...a, quantized: undefined });
      const [rows, cols] = a.shape;
      const h = find(all, role);
      // The upstream diag is in up's stored scale but not in the weight that was rounded.
      const upstream = role === "up" ? values.get("mlp_down.diag")!.data : undefined;
      const error = (codes: Int8Array) => {
        let sum = 0;
        for (let r = 0; r < rows; r++) {
          const step = a.quantized!.scale[r] / (upstream?.[r] ?? 1);
          const e = Array.from(
            { length: cols },
            (_, j) => folded.get(role)![r * cols + j] - codes[r * cols + j] * step,
          );
          for (let i = 0; i < cols; i++)
            for (let j = 0; j < cols; j++) sum += e[i] * h[i * cols + j] * e[j];
        }
        return sum;
      };
      before += error(a.quantized!.codes);
      after += error(b.quantized!.codes);
    }
    expect(after).toBeLessThan(0.8 * before);
  });

  it("a second moment that cannot be factored as asked is damped more, and a note says so", () => {
    // Two channels always equal: singular without damping.
    const moment = { roles: ["o"] as const, cols: 2, sum: Float64Array.of(1, 1, 1, 1) };
    const notes: string[] = [];
    const rounder = gptqRounder([moment], { damping: 0, actOrder: false }, "block 7", notes);
    rounder("o", Float64Array.of(0.3, 1), [1, 2], { scale: Float32Array.of(0.5), bits: 4 });
    rounder("o", Float64Array.of(0.3, 1), [1, 2], { scale: Float32Array.of(0.5), bits: 4 });
    expect(notes).toHaveLength(1);
    expect(notes[0]).toMatch(
      /^block 7: gptq damped the second moment of o by 0.01 .* instead of 0;/,
    );
  });
});
