/** Channel split: the product stays what it was, no copy exceeds its threshold, and codes of copies share one rounding. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import {
  columnMaxima,
  columnsNeeded,
  copiesNeeded,
  copiesOf,
  splitChannels,
  splitRows,
} from "../../../src/quantize/transforms/split.js";
import { flatten } from "../../../src/quantize/methods/flattenquant/thresholds.js";
import { flattenRows } from "../../../src/tensor/ops/index.js";
import { Graph } from "../../../src/tensor/tensor.js";
import { Random } from "../../../src/common/random.js";

/** Rows with a few channels much larger than the rest. */
function outlierRows(random: Random, rows: number, cols: number, outliers: number): Float64Array {
  const size = Float64Array.from({ length: cols }, (_, j) =>
    j % Math.ceil(cols / (outliers + 1)) === 1 ? 1 + 20 * random.uniform() : 1,
  );
  return Float64Array.from({ length: rows * cols }, (_, i) => random.normal() * size[i % cols]);
}

function product(x: Float64Array, w: Float64Array, k: number): Float64Array {
  const [rows, out] = [x.length / k, w.length / k];
  return Float64Array.from({ length: rows * out }, (_, i) => {
    const [t, n] = [Math.floor(i / out), i % out];
    let sum = 0;
    for (let j = 0; j < k; j++) sum += x[t * k + j] * w[n * k + j];
    return sum;
  });
}

const shapes = fc.record({
  rows: fc.integer({ min: 1, max: 6 }),
  cols: fc.integer({ min: 1, max: 40 }),
  out: fc.integer({ min: 1, max: 7 }),
  outliers: fc.integer({ min: 0, max: 8 }),
  /** Thresholds as shares of the largest value: both sides split, one of them, or neither. */
  shareX: fc.double({ min: 0.05, max: 1, noNaN: true }),
  shareW: fc.double({ min: 0.05, max: 1, noNaN: true }),
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
});

describe("splitChannels", () => {
  it("leaves the product alone for any shapes, thresholds and splits of either side", () => {
    fc.assert(
      fc.property(shapes, ({ rows, cols, out, outliers, shareX, shareW, seed }) => {
        const random = new Random(seed);
        const x = outlierRows(random, rows, cols, outliers);
        const w = outlierRows(random, out, cols, outliers);
        const [maxX, maxW] = [columnMaxima(x, cols), columnMaxima(w, cols)];
        const [tx, tw] = [shareX * Math.max(...maxX), shareW * Math.max(...maxW)];
        const [mx, mw] = [copiesNeeded(maxX, tx), copiesNeeded(maxW, tw)];
        const { channel, part, weightPart } = splitChannels(mx, mw);
        const width = cols + channel.length;
        expect(width).toBe(columnsNeeded(mx, mw));
        expect(copiesOf(cols, channel, part)).toEqual(mx);
        expect(copiesOf(cols, channel, weightPart)).toEqual(mw);
        const flatX = splitRows(x, rows, cols, tx, channel, part);
        const flatW = splitRows(w, out, cols, tw, channel, weightPart);
        for (const value of flatX) expect(Math.abs(value)).toBeLessThanOrEqual(tx);
        for (const value of flatW) expect(Math.abs(value)).toBeLessThanOrEqual(tw);
        // Copies of a value are differences that add up to it within an ulp each; sums of at most `width` products of
        // magnitudes that add up to no more than Σ|x||w|.
        const bound = product(x.map(Math.abs), w.map(Math.abs), cols);
        const [expected, found] = [product(x, w, cols), product(flatX, flatW, width)];
        found.forEach((value, i) => {
          expect(Math.abs(value - expected[i])).toBeLessThanOrEqual(width * 2 ** -51 * bound[i]);
        });
      }),
      { numRuns: 200 },
    );
  });

  it("never expands beyond the cap, and says what the cap did", () => {
    fc.assert(
      fc.property(
        shapes,
        fc.double({ min: 1, max: 3, noNaN: true }),
        fc.double({ min: 0.3, max: 3, noNaN: true }),
        ({ rows, cols, out, outliers, seed }, maxExpansion, beta) => {
          const random = new Random(seed);
          const maxX = columnMaxima(outlierRows(random, rows, cols, outliers), cols);
          const maxW = columnMaxima(outlierRows(random, out, cols, outliers), cols);
          const free = flatten(maxX, maxW, { beta, maxExpansion: Infinity });
          const capped = flatten(maxX, maxW, { beta, maxExpansion });
          expect(capped.expansion).toBeLessThanOrEqual(maxExpansion);
          expect(capped.expansion).toBe(1 + capped.split.channel.length / cols);
          if (free.expansion <= maxExpansion) expect(capped).toEqual(free);
          else expect(capped.capFactor).toBeGreaterThan(1);
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe("flattenRows", () => {
  it("gives copies whose codes add up to the channel, rounded once and cut at its reach", () => {
    const backend = createReferenceBackend({ realType: "f64" });
    fc.assert(
      fc.property(
        shapes,
        fc.constantFrom(2, 3, 4, 8),
        ({ rows, cols, outliers, shareX, seed }, bits) => {
          const x = outlierRows(new Random(seed), rows, cols, outliers);
          const top = 2 ** (bits - 1) - 1;
          const step = (shareX * Math.max(...x.map(Math.abs))) / top;
          const copies = copiesNeeded(columnMaxima(x, cols), step * top);
          // One copy fewer than needed, so that some values lie beyond the reach.
          const fewer = copies.map((m) => Math.max(1, m - 1));
          const { channel, part } = splitChannels(fewer, new Int32Array(cols).fill(1));
          using g = new Graph(backend);
          let clipped = 0;
          const integers = (values: Int32Array) => g.indices(values);
          const flat = flattenRows(g, g.constant([rows, cols], x), {
            bits,
            step,
            channel: integers(channel),
            part: integers(part),
            count: { copies: integers(fewer), add: (n) => (clipped += n) },
          });
          const codes = backend.read(flat.codes?.codes ?? expect.fail());
          const width = cols + channel.length;
          let beyond = 0;
          for (let t = 0; t < rows; t++)
            for (let j = 0; j < cols; j++) {
              let sum = codes[t * width + j];
              channel.forEach((c, e) => (sum += c === j ? codes[t * width + cols + e] : 0));
              const rounded = Math.round(x[t * cols + j] / step);
              const reach = fewer[j] * top;
              expect(Math.abs(sum - Math.min(Math.max(rounded, -reach), reach))).toBeLessThan(0.5);
              if (Math.abs(rounded) > reach) beyond++;
            }
          expect(clipped).toBe(beyond);
          for (const code of codes) expect(Math.abs(code)).toBeLessThanOrEqual(top);
        },
      ),
      { numRuns: 100 },
    );
  });
});
