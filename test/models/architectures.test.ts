/**
 * Checkpoints of every architecture with the logits that an independent implementation gives, in both spellings of their
 * configuration: as they are on `reference` and `cpu` in float32, and quantized to 8 bits with the engine. Folders come from
 * PLANISH_ARCHITECTURES, where it is set: `config.json` (and `config-hub.json`), `model.safetensors`, and
 * `logits.safetensors` with `ids` and `logits`.
 */
import { copyFileSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Backend } from "../../src/backend/contract/training.js";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { openIntegerExecutor } from "../../src/engine/processor.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { loadModel } from "../../src/quantize/artifact/load.js";
import { blockPrograms, parseModelConfig } from "../../src/models/architectures/index.js";
import type { ModelConfig } from "../../src/models/config.js";
import {
  attentionsOf,
  flowOf,
  inputsOf,
  rotariesOf,
  type BlockProgram,
} from "../../src/backend/contract/program.js";
import { packageRoot } from "../../src/common/package.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";

type Json = Readonly<Record<string, unknown>>;

const FIXTURES = join(import.meta.dirname, "../fixtures");
/** Transformers' checkpoints, and others from plain statements in NumPy, whose settings those leave at their defaults. */
const ROOTS = process.env.PLANISH_ARCHITECTURES
  ? [process.env.PLANISH_ARCHITECTURES]
  : [join(FIXTURES, "architectures"), join(FIXTURES, "architecture-variants")];

/** Folders whose architecture is not supported, with the reason. A folder that is not here must pass. */
const UNSUPPORTED: Readonly<Record<string, string>> = {
  gemma3n: "AltUp streams, embeddings of layers, shared keys and values",
};

/** Of the largest logit, for float32: README of the fixtures; 2e-5 is reachable. */
const TOLERANCE = 1e-4;

const folders = ROOTS.flatMap((root) => readdirSync(root, { withFileTypes: true }))
  .filter((entry) => entry.isDirectory() && !(entry.name in UNSUPPORTED))
  .map(({ name }) => name);

function placeOf(folder: string): string {
  return join(ROOTS.find((root) => existsSync(join(root, folder))) ?? ROOTS[0], folder);
}

/** A folder as a model with one of its configurations, and a tokenizer, since artifacts have one: it plays no part here. */
function withConfig(folder: string, config: string): string {
  const target = temporaryDirectory();
  copyFileSync(join(placeOf(folder), config), join(target, "config.json"));
  copyFileSync(join(placeOf(folder), "model.safetensors"), join(target, "model.safetensors"));
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(packageRoot, "models/tiny-llama", file), join(target, file));
  return target;
}

const cases = folders.flatMap((folder) =>
  ["config.json", "config-hub.json"]
    .filter((config) => existsSync(join(placeOf(folder), config)))
    .map((config) => [folder, config] as const),
);

function expected(folder: string): { ids: Int32Array; logits: Float32Array } {
  using file = openSafetensors(join(placeOf(folder), "logits.safetensors")).store;
  const bytes = file.readBytes("ids").slice();
  return { ids: new Int32Array(bytes.buffer), logits: Float32Array.from(file.read("logits")) };
}

/** Largest |a − b| over the largest |b|. */
function distance(a: ArrayLike<number>, b: Float32Array): number {
  const difference = b.reduce((most, x, i) => Math.max(most, Math.abs(a[i] - x)), 0);
  return difference / b.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
}

/**
 * Root mean square of a − b over that of b. Of models with experts the median row's: where two experts are nearly as good, a
 * row may go to the other one once it is rounded, and is then another function's value; few rows do.
 */
function spread(a: Float32Array, b: Float32Array, { experts }: ModelConfig, rows: number): number {
  const square = (values: Float32Array) => values.reduce((sum, x) => sum + x * x, 0);
  const of = (from: number, to: number) => {
    const own = b.subarray(from, to);
    return Math.sqrt(square(own.map((x, i) => a[from + i] - x)) / square(own));
  };
  if (!experts) return of(0, b.length);
  const width = b.length / rows;
  const all = Array.from({ length: rows }, (_, row) => of(row * width, (row + 1) * width));
  return all.sort((x, y) => x - y)[Math.floor(rows / 2)];
}

/** Linears and sites whose roundings reach a value; of a mixture's experts one counts for those that a row goes to. */
function roundingsOf(program: BlockProgram, value: string, seen = new Set<string>()): Set<string> {
  const step = flowOf(program).producer(value);
  if (!step) return seen;
  if (step.op === "product") seen.add(step.linear);
  if (step.op === "site") seen.add(step.site);
  const read = step.op === "combine" ? step.parts.slice(0, 1) : inputsOf(step);
  for (const each of read) roundingsOf(program, each, seen);
  return seen;
}

/**
 * A rounding to 8 bits is off by a uniform error of one step, max/127, so by max/(127·√12); with a largest value of at most
 * four times the root mean square that is 0.9% of the tensor. A layer of the usual form rounds seven weights, four
 * activations, keys and values; independent errors add by squares, and a residual stream carries them on without growth.
 * Four of them (the weights of q and k, what they read, keys) are errors of scores, and move softmax's weights by so many
 * times more as scores are large: these random models have scores of up to four.
 *
 * A recurrence has no scores, but what it reads of its state is a product of queries, keys and values over all tokens before:
 * an error of what it is made from counts three times, and each time four times as much, since it is one of SiLU's small
 * values twice over and then of a row that the norm of heads divides by its own small length.
 */
function bound(config: ModelConfig): number {
  const errors = blockPrograms(config).reduce((sum, program) => {
    const carried = program.steps
      .filter(({ op }) => op === "recurrence")
      .flatMap((step) => inputsOf(step))
      .reduce((seen, value) => roundingsOf(program, value, seen), new Set<string>()).size;
    const own = roundingsOf(program, program.out).size - carried + 3 * carried * 4 ** 2;
    const [attention] = attentionsOf(program);
    if (!attention) return sum + own;
    // Keys pass through the cache with values, which are no errors of scores.
    const cache = flowOf(program).producer(attention.k);
    const keys = cache?.op === "cache" ? cache.k : attention.k;
    const ofScores = roundingsOf(program, keys, roundingsOf(program, attention.q));
    const all = own + 2;
    const scores = ofScores.size + 1;
    return sum + all - scores + scores * 4 ** 2;
  }, 0);
  return (4 / (127 * Math.sqrt(12))) * Math.sqrt(errors);
}

/** Engine and simulated arithmetic round alike but for what lies within f32's noise of a tie: few codes of some thousand. */
const TIES = 0.02;

async function engineLogits(path: string, ids: Int32Array): Promise<Float32Array> {
  using executor = openIntegerExecutor(path);
  const pages = Int32Array.of(0, 1, 2, 3, 4, 5, 6, 7);
  executor.reserve(pages.length);
  const [logits] = await executor.step([{ tokens: ids, start: 0, pages, logits: "all" }]);
  return logits ?? new Float32Array();
}

/** The same token by token. */
async function decodedLogits(path: string, ids: Int32Array): Promise<Float32Array> {
  using executor = openIntegerExecutor(path);
  const pages = Int32Array.of(0, 1, 2, 3, 4, 5, 6, 7);
  executor.reserve(pages.length);
  const rows: number[][] = [];
  for (const [start, id] of ids.entries()) {
    const [row] = await executor.step([{ tokens: Int32Array.of(id), start, pages, logits: "all" }]);
    rows.push([...(row ?? [])]);
  }
  return Float32Array.from(rows.flat());
}

/** Whether angles of a position are others once the sequence is longer (docs/models.md, "Long contexts"). */
function dependsOnLength(config: ModelConfig): boolean {
  return rotariesOf(blockPrograms(config)).some(({ scaling }) =>
    ["dynamic", "longrope"].includes(scaling.type),
  );
}

function logitsOn(backend: Backend, path: string, ids: Int32Array): Float32Array {
  using checkpoint = openCheckpoint(path);
  using model = LanguageModel.load(backend, checkpoint);
  using g = new Graph(backend);
  return Float32Array.from(g.read(model.logits(g, model.hidden(g, ids))));
}

const refused = Object.keys(UNSUPPORTED).filter((folder) =>
  ROOTS.some((root) => existsSync(join(root, folder))),
);

it.runIf(refused.length > 0)("what is not supported is refused by name", () => {
  for (const folder of refused) {
    const config = JSON.parse(readFileSync(join(placeOf(folder), "config.json"), "utf8")) as Json;
    expect(() => parseModelConfig(config)).toThrow(/^architecture ".*" is not supported; /);
  }
});

describe.each(cases)("%s, %s", (folder, config) => {
  it.each([
    ["reference", () => createReferenceBackend({ realType: "f32" })],
    ["cpu", () => createCpuBackend()],
  ])(`${folder} on %s in float32: 1e-4 of the largest logit`, (_name, open) => {
    const { ids, logits } = expected(folder);
    using backend = open();
    expect(distance(logitsOn(backend, withConfig(folder, config), ids), logits)).toBeLessThan(
      TOLERANCE,
    );
  });

  it(`${folder} quantized to w8a8kv8, with the engine: what roundings to 8 bits add up to`, async () => {
    const { ids, logits } = expected(folder);
    const out = join(temporaryDirectory(), "quantized");
    using source = openCheckpoint(withConfig(folder, config));
    using backend = createCpuBackend();
    await quantize({ backend, source, out, method: "rtn", scheme: "w8a8kv8" });
    const { config: model } = parseModelConfig(source.config);
    const far = (a: Float32Array, b: Float32Array) => spread(a, b, model, ids.length);
    const own = await engineLogits(out, ids);
    if (!dependsOnLength(model)) expect(await decodedLogits(out, ids)).toEqual(own);
    expect(far(own, logits)).toBeLessThan(bound(model));
    using loaded = loadModel(backend, out);
    using g = new Graph(backend);
    const simulated = g.read(loaded.model.logits(g, loaded.model.hidden(g, ids)));
    expect(far(own, Float32Array.from(simulated))).toBeLessThan(TIES);
    // Roundings are there: what equals the original was not quantized.
    expect(far(own, logits)).toBeGreaterThan(1e-4);
  });
});
