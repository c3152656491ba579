/** What the head reads, asked of executors: made into logits by the model, it gives the logits that they give. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Executor } from "../../src/backend/contract/inference.js";
import { packageRoot } from "../../src/common/package.js";
import { EmbeddingSequence } from "../../src/engine/embedding.js";
import { SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import { Graph, Tensor } from "../../src/tensor/tensor.js";
import { roundedPair } from "../backend/cpu/infer/support.js";

const ids = Int32Array.from({ length: 90 }, (_, i) => ((i * 7919) % 4000) + 5);

describe("what the head reads", () => {
  it("is that of each token, wherever the text is cut and whatever else runs", async () => {
    using pair = roundedPair(join(packageRoot, "models/tiny-llama"), "w16a16kv16");
    const model = pair.original;
    using simulated = new SimulatedExecutor(model, "test");
    for (const executor of [pair.engine, simulated] as Executor[]) {
      executor.reserve(30);
      const count = Math.ceil(ids.length / executor.pageTokens);
      const pages = Int32Array.from({ length: count }, (_, i) => i);
      const others = pages.map((page) => page + count);
      const [logits] = await executor.step([{ tokens: ids, start: 0, pages, logits: "all" }]);
      const rows: number[] = [];
      for (const [start, end] of [
        [0, 33],
        [33, 90],
      ]) {
        const tokens = ids.subarray(start, end);
        const [beside, own] = await executor.step([
          { tokens, start, pages: others, logits: "last" },
          { tokens, start, pages, logits: "hidden" },
        ]);
        expect(beside).toHaveLength(executor.shape.vocabSize);
        rows.push(...own!);
      }
      using g = new Graph(model.backend);
      const hidden = g.real(rows.length);
      model.backend.write(hidden, Float32Array.from(rows));
      const tensor = new Tensor([ids.length, rows.length / ids.length], hidden, false);
      const expected = g.read(model.logits(g, tensor));
      let worst = 0;
      let largest = 0;
      logits!.forEach((value, i) => {
        worst = Math.max(worst, Math.abs(value - expected[i]));
        largest = Math.max(largest, Math.abs(value));
      });
      // The head's product rounds what it reads to bf16, by 2⁻⁹ at most; sums of hundreds of such errors grow less than
      // their largest term.
      expect(worst).toBeLessThan(2 ** -7 * largest);
      expect(worst).toBeGreaterThanOrEqual(0);
    }
  });
});

describe("a text's vector", () => {
  const sequence = (pooling: "mean" | "last") => {
    const found: Float32Array[] = [];
    const sink = {
      done: (vector: Float32Array) => void found.push(vector),
      fail: (error: Error) => {
        throw error;
      },
    };
    return {
      sequence: new EmbeddingSequence({ request: 1, prompt: [1, 2, 3] }, pooling, sink),
      found,
    };
  };

  it.each([
    ["mean", [0.6, 0.8]],
    ["last", [0, 1]],
  ] as const)(
    "is the %s of its tokens', however it was cut, also after it was set back",
    (pooling, wanted) => {
      const { sequence: own, found } = sequence(pooling);
      // Set back after two tokens: what they gave is given again.
      own.take(Float32Array.of(9, 9, 9, 9), 2);
      own.computed = 0;
      own.take(Float32Array.of(3, 0, 3, 1), 2);
      own.computed = 2;
      own.take(Float32Array.of(0, 7), 1);
      own.advance();
      wanted.forEach((value, i) => expect(found[0][i]).toBeCloseTo(value, 6));
    },
  );
});
