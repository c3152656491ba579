/**
 * What a CUDA executor must do, on a GPU (test/cuda/main.ts) and on the emulated device (executor.test.ts).
 *
 * Bounds. The oracle is the simulated model of the same rounded blocks, in float64. Decoding's arithmetic is as good as
 * f32 at every place (sites' rows and attention's queries and weights are sums of two halves, sums are f32, integer
 * products exact), so a row is off by some 1e-6 until a value falls within that of a rounding tie and its code moves by a
 * step: of the 3000 codes of a token in two blocks, each within 1e-5 of a step of its tie, one in some thirty tokens. So
 * of 16 short sequences most must be equal to 2e-5, and the median is bounded. Where halves are kept or used (a cache of
 * 16 bits, prefill's queries and weights: 2⁻¹¹) codes move in every row; a moved code is noise of the grid's own size, so
 * a row stays nearer to the oracle than the oracle is to the original, whose distance is the noise of all codes together.
 */
import { afterAll, describe, expect, it } from "vitest";
import type { Backend } from "../../../../src/backend/contract/training.js";
import { cudaExecutorOf, type CudaExecutor } from "../../../../src/engine/gpu.js";
import type { CudaExecutorOptions } from "../../../../src/backend/cuda/infer/executor.js";
import type { MemoryDevice } from "../../../../src/backend/cuda/infer/memory-device.js";
import type { Chunk } from "../../../../src/backend/contract/inference.js";
import { LanguageModel } from "../../../../src/models/language-model.js";
import {
  differentBits,
  joined,
  mean,
  median,
  modelLogits,
  roundedModel,
  rowDistances,
  type Extras,
  type RoundedModel,
} from "../../../engine/rounded.js";

export interface ExecutorCase extends Extras {
  readonly name: string;
  /** A local original. */
  readonly path: () => string;
  readonly scheme: string;
  /** Token ids of a text, at least 320. */
  readonly text: () => Int32Array;
  /** Halves are kept in the cache, so that codes move in every row. */
  readonly rough?: boolean;
  /** So many blocks that a code moves somewhere in most sequences, and moves others on its way. */
  readonly deep?: boolean;
}

export interface ExecutorSuite {
  readonly device: () => MemoryDevice & Disposable;
  readonly backend: () => Backend;
  readonly cases: readonly ExecutorCase[];
  /** Whether the device rounds sums beside what a page holds after a row; where it does not, cuts change nothing at all. */
  readonly rounds: boolean;
  /** Tokens of the long comparison. */
  readonly tokens: number;
  /** Only the comparisons with the simulated model: what cuts, batches and graphs do is the same for all kinds of blocks. */
  readonly brief?: boolean;
  readonly print?: (line: string) => void;
}

const chunk = (
  tokens: Int32Array,
  start: number,
  end: number,
  pages: Int32Array,
  logits: Chunk["logits"] = "all",
): Chunk => ({ tokens: tokens.subarray(start, end), start, pages, logits });

/** Logits of all tokens, in chunks of the given lengths. */
async function inChunks(
  engine: CudaExecutor,
  tokens: Int32Array,
  lengths: readonly number[],
  pages: Int32Array,
): Promise<Float32Array> {
  let start = 0;
  const parts: (Float32Array | undefined)[] = [];
  for (const length of lengths) {
    start += length;
    parts.push(...(await engine.step([chunk(tokens, start - length, start, pages)])));
  }
  return joined(...parts);
}

const ones = (count: number) => Array<number>(count).fill(1);
/** Pages that are neither first nor in order. */
const pagesOf = (count: number, first = 1) =>
  Int32Array.from({ length: count }, (_, i) => first + count - 1 - i);

/** Index of the largest logit. */
function argmax(logits: Float32Array): number {
  return logits.reduce((best, value, i) => (value > logits[best] ? i : best), 0);
}

/** Registers the suite; tests of a case share its model and engine, made by the first. */
export function describeExecutor(suite: ExecutorSuite): void {
  const { tokens: length, print = () => undefined } = suite;
  for (const item of suite.cases)
    describe(`CUDA executor, ${item.name} ${item.scheme}`, () => {
      let made: { model: RoundedModel; engine: CudaExecutor } | undefined;
      const open = (options?: CudaExecutorOptions) => {
        const model = roundedModel(item.path(), item.scheme, item);
        return { model, engine: cudaExecutorOf(model.source, suite.device(), options) };
      };
      const get = () => {
        made ??= open();
        made.engine.reserve(40);
        return made;
      };
      const text = (start: number, count: number) => item.text().subarray(start, start + count);

      it("short sequences, decoded together, are the simulated model's", async () => {
        const { model, engine } = get();
        const { vocabSize } = engine.shape;
        const simulated = model.simulated(suite.backend());
        const sequences = Array.from({ length: 16 }, (_, i) => text(7 * i, 4));
        let last: readonly (Float32Array | undefined)[] = [];
        for (let t = 0; t < 4; t++)
          last = await engine.step(
            sequences.map((ids, i) => chunk(ids, t, t + 1, Int32Array.of(39 - i))),
          );
        const distances = sequences.map((ids, i) => {
          const all = modelLogits(simulated, ids);
          return rowDistances(joined(last[i]), all.subarray(3 * vocabSize), vocabSize)[0];
        });
        print(
          `     ${item.name} ${item.scheme}: short sequences, median ${median(distances).toExponential(1)}, ` +
            `largest ${Math.max(...distances).toExponential(1)}`,
        );
        const bound = item.rough ? 0.1 : item.deep ? 0.3 : 2e-5;
        expect(median(distances)).toBeLessThanOrEqual(bound);
      });

      it("a text in one chunk, and token by token, is nearer to the simulated model than that to the original", async () => {
        const { model, engine } = get();
        const { vocabSize } = engine.shape;
        const backend = suite.backend();
        const ids = text(0, length);
        const simulated = modelLogits(model.simulated(backend), ids);
        using whole = LanguageModel.load(backend, model.checkpoint);
        const original = new LanguageModel(
          backend,
          whole.architecture,
          model.config,
          whole.endLayers,
          whole.layers.slice(0, model.config.numLayers),
        );
        const noise = mean(rowDistances(simulated, modelLogits(original, ids), vocabSize));
        const pages = pagesOf(Math.ceil(length / 64));
        const prefilled = (await engine.step([chunk(ids, 0, length, pages)]))[0];
        const decoded = await inChunks(engine, ids, ones(length), pages);
        const distances = [joined(prefilled), decoded].map((logits) =>
          rowDistances(logits, simulated, vocabSize),
        );
        const [byPrefill, byDecoding] = distances.map(mean);
        const between = mean(rowDistances(joined(prefilled), decoded, vocabSize));
        print(
          `     ${item.name} ${item.scheme}: ${length} tokens, prefill ${byPrefill.toExponential(1)}, decoding ` +
            `${byDecoding.toExponential(1)}, between them ${between.toExponential(1)}, the scheme's own noise ${noise.toExponential(1)}`,
        );
        const share = item.deep ? 1 : 1 / 2;
        expect(byPrefill).toBeLessThanOrEqual(noise * share);
        expect(byDecoding).toBeLessThanOrEqual(noise * share);
      });

      if (!suite.brief) {
        it("cuts at pages, batches and graphs give the same bits, and other cuts nearly", async () => {
          const { engine } = get();
          const { vocabSize } = engine.shape;
          const ids = text(0, 150);
          const other = text(150, 150);
          const pages = pagesOf(3);
          /** Numbers that differ in a bit, by what was compared. */
          const found: Record<string, number> = {};
          const whole = joined((await engine.step([chunk(ids, 0, 150, pages)]))[0]);
          found["cuts at pages"] = differentBits(
            await inChunks(engine, ids, [64, 64, 22], pages),
            whole,
          );
          // Beside others, at other places.
          const there = pagesOf(3, 9);
          const first = await engine.step([
            chunk(other, 0, 70, pagesOf(3, 20)),
            chunk(ids, 0, 64, there),
            chunk(other, 0, 1, pagesOf(1, 30)),
          ]);
          const then = await engine.step([
            chunk(ids, 64, 150, there),
            chunk(other, 70, 71, pagesOf(3, 20)),
          ]);
          found["beside others"] = differentBits(joined(first[1], then[0]), whole);
          // The cache holds the same now, so decoding goes on alike, alone and beside eleven others.
          const continued = (at: Int32Array): Chunk => ({
            ...chunk(other, 40, 41, at),
            start: 150,
          });
          const [alone] = await engine.step([continued(pages)]);
          const [again] = await engine.step([continued(pages)]);
          const beside = await engine.step([
            ...Array.from({ length: 11 }, (_, i) => chunk(other, 0, 1, pagesOf(1, 25 + i))),
            continued(there),
          ]);
          found["a graph"] = differentBits(joined(again), joined(alone));
          found["decoding beside others"] = differentBits(joined(beside[11]), joined(alone));
          const none = Object.fromEntries(Object.keys(found).map((name) => [name, 0]));
          expect(found).toEqual(none);
          // Within a page, prefill's attention rounds sums beside what the page holds after the cut (executor.ts): last bits,
          // which move a code in one row of some hundred, and in a third of them after eight blocks.
          for (const lengths of [
            [100, 50],
            [2, 3, 13, 47, 5, 80],
          ]) {
            const cut = await inChunks(engine, ids, lengths, pages);
            const distance = mean(rowDistances(cut, whole, vocabSize));
            print(
              `     ${item.name} ${item.scheme}: cut ${lengths.join("+")}, ${differentBits(cut, whole)} of ${whole.length} ` +
                `numbers differ, rows by ${distance.toExponential(1)}`,
            );
            expect(distance).toBeLessThanOrEqual(!suite.rounds ? 0 : item.deep ? 0.4 : 0.02);
          }
        });

        it("exact: cuts of any kind, token by token too, are equal up to last bits", async () => {
          const { model, engine } = open({ exact: true });
          engine.reserve(4);
          const { vocabSize } = engine.shape;
          const ids = text(0, 140);
          const pages = pagesOf(3);
          const whole = joined((await engine.step([chunk(ids, 0, 140, pages)]))[0]);
          for (const lengths of [[100, 40], [2, 3, 13, 47, 5, 70], ones(140)]) {
            const cut = await inChunks(engine, ids, lengths, pages);
            const distance = mean(rowDistances(cut, whole, vocabSize));
            print(
              `     ${item.name} ${item.scheme}: exact, ${lengths.length} parts, ${differentBits(cut, whole)} of ${whole.length} ` +
                `numbers differ, rows by ${distance.toExponential(1)}`,
            );
            expect(distance).toBeLessThanOrEqual(!suite.rounds ? 0 : item.deep ? 0.4 : 0.02);
          }
          engine[Symbol.dispose]();
          model[Symbol.dispose]();
        });

        it("greedy texts are the same alone and in a batch, with graphs and without", async () => {
          const { engine } = get();
          const prompts = [0, 1, 2, 3, 4].map((i) => text(31 * i, 9 + 6 * i));
          const generate = async (
            by: CudaExecutor,
            which: readonly number[],
          ): Promise<number[][]> => {
            const texts = which.map((i) => [...prompts[i]]);
            let computed = which.map(() => 0);
            const added = which.map((): number[] => []);
            for (let step = 0; step < 12; step++) {
              const logits = await by.step(
                texts.map((ids, i) =>
                  chunk(Int32Array.from(ids), computed[i], ids.length, pagesOf(2, 2 * i), "last"),
                ),
              );
              computed = texts.map((ids) => ids.length);
              logits.forEach((row, i) => {
                const id = argmax(joined(row));
                texts[i].push(id);
                added[i].push(id);
              });
            }
            return added;
          };
          const together = await generate(engine, [0, 1, 2, 3, 4]);
          const alone: number[][] = [];
          for (const i of [0, 1, 2, 3, 4]) alone.push((await generate(engine, [i]))[0]);
          expect(alone).toEqual(together);
          const eager = open({ graphs: false });
          using plain = eager.engine;
          plain.reserve(40);
          expect(await generate(plain, [0, 1, 2, 3, 4])).toEqual(together);
          eager.model[Symbol.dispose]();
        });
      }

      afterAll(() => {
        made?.engine[Symbol.dispose]();
        made?.model[Symbol.dispose]();
        made = undefined;
      });
    });
}
