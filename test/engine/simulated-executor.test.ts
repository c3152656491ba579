/** The paged, batched executor against the model run plainly on whole sequences. */
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import type { Backend } from "../../src/backend/contract/training.js";
import { openBackend } from "../../src/backend/open.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { packageRoot } from "../../src/common/package.js";
import { SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import { loadModel, loadRounded, type LoadedModel } from "../../src/quantize/artifact/load.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { Graph } from "../../src/tensor/tensor.js";

const backend = openBackend({});
const open: Disposable[] = [];
afterAll(() => {
  for (const each of open.reverse()) each[Symbol.dispose]();
  backend[Symbol.dispose]();
});

function executorOf(loaded: LoadedModel, pages: number): SimulatedExecutor {
  const executor = new SimulatedExecutor(loaded.model, "test");
  executor.reserve(pages);
  open.push(loaded, executor);
  return executor;
}

const path = (name: string): string => join(packageRoot, "models", name);
const models = {
  "tiny-llama": () => loadModel(backend, path("tiny-llama")),
  "tiny-opt": () => loadModel(backend, path("tiny-opt")),
  "tiny-llama w4a4kv4": () => loadRounded(backend, path("tiny-llama"), parseScheme("w4a4kv4")),
};

/** Logits of every position by one plain forward pass. */
function plainLogits(on: Backend, { model }: LoadedModel, ids: Int32Array): Float32Array {
  using g = new Graph(on);
  return Float32Array.from(g.read(model.logits(g, model.hidden(g, ids))));
}

/** Runs a sequence in chunks that end at `cuts`, beside another one in each step where asked. */
async function inChunks(
  executor: SimulatedExecutor,
  ids: Int32Array,
  cuts: readonly number[],
  firstPage: number,
  beside: boolean,
): Promise<Float32Array> {
  const count = Math.ceil(ids.length / executor.pageTokens);
  // Backwards, so that nothing relies on pages being neighbours.
  const pages = Int32Array.from({ length: count }, (_, i) => firstPage + count - 1 - i);
  const otherPages = pages.map((page) => page + count);
  const out = new Float32Array(ids.length * executor.shape.vocabSize);
  let start = 0;
  for (const end of [...new Set([...cuts, ids.length])].sort((a, b) => a - b)) {
    const chunk = { tokens: ids.slice(start, end), start, pages, logits: "all" } as const;
    const other = {
      ...chunk,
      tokens: chunk.tokens.slice(0, 1),
      pages: otherPages,
      logits: "last",
    } as const;
    const results = await executor.step(beside ? [other, chunk] : [chunk]);
    out.set(results[results.length - 1] ?? [], start * executor.shape.vocabSize);
    start = end;
  }
  return out;
}

const sameBits = (a: Float32Array, b: Float32Array): boolean =>
  Buffer.from(a.buffer).equals(Buffer.from(b.buffer));

describe.each(Object.entries(models))("the simulated executor on %s", async (_name, load) => {
  const loaded = load();
  const executor = executorOf(loaded, 40);
  const ids = Int32Array.from({ length: 100 }, (_, i) => ((i * 7919) % 4000) + 5);
  const whole = await inChunks(executor, ids, [], 0, false);

  it("gives a row the same bits however the sequence is cut, alone or beside another", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.integer({ min: 1, max: 99 }), { maxLength: 5 }),
        fc.boolean(),
        async (cuts, beside) => {
          expect(sameBits(await inChunks(executor, ids, cuts, 20, beside), whole)).toBe(true);
        },
      ),
      { numRuns: 8 },
    );
  });
});

describe("the simulated executor", () => {
  it.each(["tiny-llama", "tiny-opt"])("computes what %s computes", async (name) => {
    const loaded = loadModel(backend, path(name));
    const ids = Int32Array.from({ length: 100 }, (_, i) => ((i * 7919) % 4000) + 5);
    const plain = plainLogits(backend, loaded, ids);
    const paged = await inChunks(executorOf(loaded, 16), ids, [30, 31], 0, true);
    let worst = 0;
    let largest = 0;
    plain.forEach((value, i) => {
      worst = Math.max(worst, Math.abs(value - paged[i]));
      largest = Math.max(largest, Math.abs(value));
    });
    // Both are float32 with sums in another order: 2⁻²⁴ relative a sum, times about the square root of the hundreds of
    // terms and of the 56 products in a row; 10⁻⁵ is ten times that.
    expect(worst).toBeLessThan(1e-5 * largest);
  });

  it("computes the very same in plain loops, with 4-bit weights, activations and cache", async () => {
    const reference = createReferenceBackend({ realType: "f32" });
    const loaded = loadRounded(reference, path("tiny-llama"), parseScheme("w4a4kv4"));
    open.unshift(reference);
    const ids = Int32Array.of(464, 12, 900, 33, 4000, 7, 7, 7, 100, 2000);
    const paged = await inChunks(executorOf(loaded, 2), ids, [3, 4], 0, true);
    expect(sameBits(paged, plainLogits(reference, loaded, ids))).toBe(true);
  });
});
