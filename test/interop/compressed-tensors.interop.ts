/**
 * Exports to compressed-tensors, loaded by the Python package with transformers, against our own arithmetic on the same
 * packed blocks: logits of both in float64.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { sitesOf } from "../../src/backend/contract/program.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import {
  asCompressedTensors,
  exportCompressedTensors,
} from "../../src/formats/compressed-tensors/export.js";
import { siteMatrix } from "../../src/formats/compressed-tensors/transforms.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { LanguageModel, loadEndLayers } from "../../src/models/language-model.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { packedLayer } from "../../src/quantize/block/packed-block.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { interopPython, runPython } from "./python.js";

const root = temporaryDirectory();
const source = join(root, "source");
const TOKENS = [1, 300, 17, 900, 2201, 44, 3999, 1024, 77, 5, 2048, 612, 9, 1300, 31, 256];

const METHODS = ["rtn", "quarot"];
const SCHEMES = [
  ...["w4a16kv16", "w3a16kv16", "w8a16kv16", "w8a8kv16", "w4a8kv16", "w4a4kv4"],
  ...["w4g64a16kv16", "w4g32a8kv16"],
];
const cases = [
  ...METHODS.flatMap((method) => SCHEMES.map((scheme) => [method, scheme] as const)),
  // One matrix for each run of channels.
  ...["w4a4kv16", "w4g64a8kv16"].map((scheme) => ["flatquant", scheme] as const),
];
const LEARNED = {
  preset: "vllm",
  calibration: join(packageRoot, "LICENSE"),
  recipe: { samples: 4, seqLen: 128, epochs: 1 },
};
const place = (method: string, scheme: string, ending = ""): string =>
  join(root, `${method}-${scheme}${ending}`);

beforeAll(async () => {
  interopPython();
  await writeFirstBlocks(join(packageRoot, "models/tiny-llama"), source, 2);
  // transformers does not know that these frequencies were rounded.
  const config = join(source, "config.json");
  const { rope_parameters: rope, ...rest } = readConfig(config);
  const { frequency_dtype: _, ...plain } = rope as Record<string, unknown>;
  writeFileSync(config, JSON.stringify({ ...rest, rope_parameters: plain }));
  for (const [method, scheme] of cases) {
    using backend = openBackend();
    using checkpoint = openCheckpoint(source);
    const out = place(method, scheme);
    const learned = method === "flatquant" ? LEARNED : {};
    await quantize({ backend, source: checkpoint, out, method, scheme, ...learned });
    await exportCompressedTensors(out, { out: place(method, scheme, "-ct"), drop: ["cache"] });
  }
  const places = cases.flatMap((c) => [place(...c, "-ct"), place(...c, ".safetensors")]);
  runPython("logits.py", [TOKENS.join(","), ...places]);
});

function readConfig(path: string): Record<string, unknown> {
  return JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
}

/** Logits of an artifact's packed blocks as the exported layout computes them. */
function ourLogits(path: string): Float64Array {
  const backend = createReferenceBackend({ realType: "f64" });
  using artifact = openArtifact(path);
  const { architecture, config, checkpoint, scheme } = artifact;
  const layers = Array.from({ length: config.numLayers }, (_, layer) =>
    packedLayer(
      backend,
      blockProgram(config, layer),
      { ...scheme, kvBits: 16 },
      asCompressedTensors(artifact.block(layer), scheme.activationBits),
    ),
  );
  const ends = loadEndLayers(backend, checkpoint, architecture, config);
  using model = new LanguageModel(backend, architecture, config, ends, layers);
  using g = new Graph(backend);
  return Float64Array.from(g.read(model.logits(g, model.hidden(g, Int32Array.from(TOKENS)))));
}

/** The largest difference over the largest logit. */
function distance(a: Float64Array, b: Float64Array): number {
  expect(a.length).toBe(b.length);
  let [worst, largest] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    worst = Math.max(worst, Math.abs(a[i] - b[i]));
    largest = Math.max(largest, Math.abs(a[i]));
  }
  return worst / largest;
}

type Values = ReadonlyMap<string, Float64Array>;

/** What Python wrote about a case. */
function theirs(method: string, scheme: string): Values {
  const { store } = openSafetensors(place(method, scheme, ".safetensors"));
  const values = new Map(
    [...store.tensors.keys()].map((name) => [
      name,
      new Float64Array(new Uint8Array(store.readBytes(name)).buffer),
    ]),
  );
  store[Symbol.dispose]();
  return values;
}

/** Nearest integer, ties to even. */
function nearest(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/**
 * A row on the package's dynamic grid: the largest magnitude over half of the codes' range, codes clamped, then rounded.
 */
function onGrid(row: Float64Array, bits: number): Float64Array {
  const reach = (2 ** bits - 1) / 2;
  const scale = row.reduce((most, x) => Math.max(most, Math.abs(x)), 0) / reach;
  const [low, high] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
  return row.map((x) => scale * nearest(Math.min(high, Math.max(low, x / scale))));
}

describe("compressed-tensors loaded by transformers", () => {
  it.each(cases.filter(([, scheme]) => scheme.includes("a16")))(
    "has our logits: %s, %s",
    (method, scheme) => {
      const logits = theirs(method, scheme).get("logits")!;
      // transformers takes rotary angles in float32, whatever the model's type.
      expect(distance(ourLogits(place(method, scheme)), logits)).toBeLessThan(1e-5);
    },
  );

  // A token's largest magnitude stands at half a step of this grid. Where it is negative its code hangs on the last bit
  // of a division, so whole models agree up to such ties only, and here each linear is asked about the same input.
  it.each(cases)("computes each linear as we say: %s, %s", (method, scheme) => {
    const seen = theirs(method, scheme);
    using artifact = openArtifact(place(method, scheme));
    const { architecture, config } = artifact;
    const bits = artifact.scheme.activationBits;
    let compared = 0;
    for (let layer = 0; layer < config.numLayers; layer++) {
      const program = blockProgram(config, layer);
      const block = artifact.block(layer);
      for (const site of sitesOf(program))
        for (const role of site.linears) {
          const { path, shape, quantized } = block.linears[role];
          const name = architecture.names.blockPrefix(layer) + path;
          const transform = block.transforms[site.site];
          const matrix = transform && siteMatrix(site, transform);
          const [rows, columns] = shape;
          const [x, y] = [seen.get(`${name}.in`)!, seen.get(`${name}.out`)!];
          for (let token = 0; token < TOKENS.length; token++) {
            let row: Float64Array = x.slice(token * columns, (token + 1) * columns);
            if (matrix) row = times(row, matrix);
            if (bits < 16) {
              if (Math.max(...row) < -Math.min(...row)) continue;
              row = onGrid(row, bits);
            }
            compared++;
            const expected = new Float64Array(rows);
            const { codes, scale, group = columns } = quantized!;
            for (let i = 0; i < codes.length; i++)
              expected[Math.floor(i / columns)] +=
                scale[Math.floor(i / group)] * codes[i] * row[i % columns];
            expect(
              distance(expected, y.slice(token * rows, (token + 1) * rows)),
              name,
            ).toBeLessThan(1e-6);
          }
        }
    }
    expect(compared).toBeGreaterThan(50);
  });
});

/** A row times the block-diagonal matrix whose blocks are `matrix`. */
function times(row: Float64Array, matrix: Float32Array): Float64Array {
  const size = Math.sqrt(matrix.length);
  return row.map((_, at) => {
    const start = at - (at % size);
    let sum = 0;
    for (let i = 0; i < size; i++) sum += row[start + i] * matrix[i * size + (at % size)];
    return sum;
  });
}
