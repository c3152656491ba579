/**
 * The inference contract (src/backend/contract/inference.ts) as tests that every executor takes: the reference's and the
 * native simulated one, the CPU's, the CUDA one on the emulated device (inference.test.ts) and on a GPU (the lane of
 * test/cuda). What only one of them promises has its own file.
 *
 * Bounds. The oracle is the simulated model of the same rounded blocks. Decoding's arithmetic is as good as f32 at every
 * place, so that of 16 short sequences most have no code near a rounding tie, and the median is within 2e-5.
 */
import { afterAll, describe, expect, it } from "vitest";
import type { Chunk, Executor } from "../../src/backend/contract/inference.js";
import type { Backend } from "../../src/backend/contract/training.js";
import {
  differentBits,
  joined,
  median,
  modelLogits,
  rowDistances,
  type RoundedModel,
} from "../engine/rounded.js";

export interface InferenceSubject {
  readonly name: string;
  /** A model of rounded blocks; each call opens it anew. */
  readonly model: () => RoundedModel;
  /** An executor of it, which becomes the suite's. */
  readonly open: (model: RoundedModel) => Executor;
  /** What the oracle computes on. */
  readonly oracle: () => Backend;
  /** Token ids of a text, at least 150. */
  readonly text: () => Int32Array;
}

const LENGTH = 100;

/** Registers the contract's tests; they share one executor, opened by the first. */
export function describeInference({ name, model, open, oracle, text }: InferenceSubject): void {
  describe(`the inference contract, ${name}`, () => {
    let made: { model: RoundedModel; executor: Executor } | undefined;
    const get = (pages = 40) => {
      if (!made) {
        const rounded = model();
        made = { model: rounded, executor: open(rounded) };
      }
      made.executor.reserve(pages);
      return made;
    };
    afterAll(() => {
      made?.executor[Symbol.dispose]();
      made?.model[Symbol.dispose]();
    });
    /** Pages for `length` positions, neither first nor in order. */
    const pagesFor = (executor: Executor, length: number, first = 1) => {
      const count = Math.ceil(length / executor.pageTokens);
      return Int32Array.from({ length: count }, (_, i) => first + count - 1 - i);
    };
    const chunk = (
      ids: Int32Array,
      start: number,
      end: number,
      pages: Int32Array,
      logits: Chunk["logits"] = "all",
    ): Chunk => ({ tokens: ids.slice(start, end), start, pages, logits });

    it("says what it is", () => {
      const { executor } = get();
      expect(executor.description).not.toBe("");
      for (const size of [executor.pageTokens, executor.bytesPerPage, executor.weightBytes])
        expect(Number.isSafeInteger(size) && size > 0, String(size)).toBe(true);
    });

    it("short sequences, decoded together, are the simulated model's", async () => {
      const { model: rounded, executor } = get();
      const { vocabSize } = executor.shape;
      const sequences = Array.from({ length: 16 }, (_, i) => text().slice(7 * i, 7 * i + 4));
      let last: readonly (Float32Array | undefined)[] = [];
      for (let t = 0; t < 4; t++)
        last = await executor.step(
          sequences.map((ids, i) => chunk(ids, t, t + 1, Int32Array.of(39 - i))),
        );
      using backend = oracle();
      const simulated = rounded.simulated(backend);
      const distances = sequences.map((ids, i) => {
        const all = modelLogits(simulated, ids);
        return rowDistances(joined(last[i]), all.subarray(3 * vocabSize), vocabSize)[0];
      });
      expect(median(distances)).toBeLessThanOrEqual(2e-5);
    });

    it("a prompt cut at pages, and beside others at other places, gives the same bits", async () => {
      const { executor } = get(60);
      const ids = text();
      const pages = pagesFor(executor, LENGTH);
      const whole = joined((await executor.step([chunk(ids, 0, LENGTH, pages)]))[0]);
      const { pageTokens } = executor;
      const parts: (Float32Array | undefined)[] = [];
      for (let start = 0; start < LENGTH; start += pageTokens) {
        const end = Math.min(LENGTH, start + pageTokens);
        parts.push(...(await executor.step([chunk(ids, start, end, pages)])));
      }
      expect(differentBits(joined(...parts), whole)).toBe(0);
      const there = pagesFor(executor, LENGTH, 20);
      const other = ids.slice(50, 150);
      const elsewhere = pagesFor(executor, LENGTH, 40);
      const first = await executor.step([
        chunk(other, 0, 70, elsewhere),
        chunk(ids, 0, pageTokens, there),
      ]);
      const then = await executor.step([
        chunk(ids, pageTokens, LENGTH, there),
        chunk(other, 70, 71, elsewhere),
      ]);
      expect(differentBits(joined(first[1], then[0]), whole)).toBe(0);
    });

    it("a copied page continues as the original does", async () => {
      const { executor } = get();
      const half = Math.floor(executor.pageTokens / 2);
      const ids = text();
      await executor.step([chunk(ids, 0, half, Int32Array.of(2), "none")]);
      executor.copyPage(2, 0);
      const next = async (page: number) =>
        joined((await executor.step([chunk(ids, half, half + 5, Int32Array.of(page))]))[0]);
      const copy = await next(0);
      expect(copy.length).toBe(5 * executor.shape.vocabSize);
      expect(differentBits(await next(2), copy)).toBe(0);
    });

    it("none, the last or all rows of logits", async () => {
      const { executor } = get();
      const { vocabSize } = executor.shape;
      const ids = text();
      const [none, last, all, one] = await executor.step([
        chunk(ids, 0, 12, Int32Array.of(3), "none"),
        chunk(ids, 0, 12, Int32Array.of(4), "last"),
        chunk(ids, 0, 12, Int32Array.of(5), "all"),
        chunk(ids, 0, 1, Int32Array.of(6), "none"),
      ]);
      expect(none === undefined && one === undefined).toBe(true);
      expect(all?.length).toBe(12 * vocabSize);
      expect(differentBits(joined(last), joined(all).subarray(11 * vocabSize))).toBe(0);
    });

    it("refuses what does not fit, and says why", async () => {
      const rounded = model();
      const executor = open(rounded);
      const { pageTokens, shape } = executor;
      const good = chunk(text(), 0, 2, Int32Array.of(0), "last");
      const refused = (bad: Partial<Chunk>) => expect(executor.step([{ ...good, ...bad }])).rejects;
      await refused({}).toThrow(/no cache pages are reserved/);
      for (const pages of [0, -1, 1.5])
        expect(() => executor.reserve(pages)).toThrow(/cannot reserve .* pages/);
      executor.reserve(2);
      await refused({ start: pageTokens - 1 }).toThrow(
        `1 pages hold ${pageTokens} positions; the chunk ends at ${pageTokens + 1}`,
      );
      await refused({ pages: Int32Array.of(2) }).toThrow(
        "page 2 does not exist; 2 are reserved, numbered from 0",
      );
      await refused({ tokens: Int32Array.of(1, shape.vocabSize) }).toThrow(
        `token id ${shape.vocabSize} is outside the vocabulary of ${shape.vocabSize}`,
      );
      await refused({ tokens: new Int32Array() }).toThrow(/holds no tokens/);
      await refused({ start: -1 }).toThrow(/starts at position -1/);
      expect(() => executor.copyPage(0, 5)).toThrow(/page 5 does not exist/);
      expect((await executor.step([good]))[0]).toHaveLength(shape.vocabSize);
      executor[Symbol.dispose]();
      executor[Symbol.dispose]();
      await refused({}).toThrow(/was disposed/);
      rounded[Symbol.dispose]();
    });
  });
}
