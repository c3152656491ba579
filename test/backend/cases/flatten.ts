/**
 * Conformance cases of the static per-tensor grid with split channels. Codes may differ from the truth only where the
 * argument of a channel's one rounding lies beside a tie, and then by one in all of its copies together.
 */
import { expect } from "vitest";
import { ids, output, Random, real, U, type CaseGroup, type ConformanceCase } from "../harness.js";

interface FlattenOptions {
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
  /** Channels with more than one copy, and copies of each. */
  readonly split: number;
  readonly copies: number;
  readonly factor?: boolean;
  readonly padding?: number;
}

function flattenCase(options: FlattenOptions): ConformanceCase {
  const { rows, cols, bits, split, copies, padding = 0 } = options;
  const title = Object.entries(options)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
  const random = new Random(`flattenRows ${title}`);
  const top = 2 ** (bits - 1) - 1;
  const step = Math.fround(1.7 / top);
  const x = random.normals(rows * cols);
  const factor = random.uniforms(cols, 0.5, 2);
  // Every third channel is split; its values reach into, and now and then past, its last copy.
  const channel: number[] = [];
  const part: number[] = [];
  const count = new Float64Array(cols).fill(1);
  for (let s = 0; s < split; s++) {
    const j = (3 * s) % cols;
    for (let p = 1; p < copies; p++) {
      channel.push(j);
      part.push(p);
    }
    count[j] = copies;
    for (let t = 0; t < rows; t++) x[t * cols + j] = Math.fround(x[t * cols + j] * copies);
  }
  const extras = channel.length;
  const stride = cols + extras + padding;
  const argument = (t: number, j: number) =>
    (x[t * cols + j] * (options.factor ? factor[j] : 1)) / step;
  return {
    kernel: "flattenRows",
    title,
    buffers: {
      x: real(x),
      ...(options.factor ? { factor: real(factor) } : {}),
      channel: ids(Float64Array.from(channel)),
      part: ids(Float64Array.from(part)),
      copies: ids(count),
      codes: output(rows * stride, "i8"),
      scale: output(rows),
      clipped: output(rows, "i32"),
    },
    outputs: ["codes", "scale", "clipped"],
    run: (kernels, b) =>
      kernels.flattenRows({
        ...{ rows, cols, bits, step, extras, stride },
        ...{ x: b.x, factor: b.factor, channel: b.channel, part: b.part },
        ...{ copies: b.copies, codes: b.codes, scale: b.scale, clipped: b.clipped },
      }),
    bounds: () => ({ scale: new Float64Array(rows) }),
    verify: (result, truth) => {
      for (let t = 0; t < rows; t++) {
        const sums = { found: new Float64Array(cols), expected: new Float64Array(cols) };
        let beside = 0;
        for (let c = 0; c < stride; c++) {
          const [found, expected] = [result.codes[t * stride + c], truth.codes[t * stride + c]];
          expect(Math.abs(found)).toBeLessThanOrEqual(top);
          const j = c < cols ? c : channel[c - cols];
          if (j === undefined) expect(found, `padding of row ${t}`).toBe(0);
          else {
            sums.found[j] += found;
            sums.expected[j] += expected;
          }
          if (found === expected) continue;
          // One rounding each of the factor's product and of the division, and one of doubt in the reference's input.
          const u = argument(t, j);
          const near = Math.abs(u - Math.floor(u) - 0.5) <= 4 * U * Math.abs(u);
          if (Math.abs(found - expected) !== 1 || !near)
            expect.fail(`codes[${t}, ${c}] is ${found}, expected ${expected} of ${u} steps`);
          beside++;
        }
        for (let j = 0; j < cols; j++)
          expect(Math.abs(sums.found[j] - sums.expected[j])).toBeLessThanOrEqual(1);
        // A value beside a tie at the very end of its reach may count as clipped or not.
        expect(Math.abs(result.clipped[t] - truth.clipped[t])).toBeLessThanOrEqual(beside);
      }
    },
  };
}

export const flattenGroups: readonly CaseGroup[] = [
  {
    bound: "flattenRows: codes equal but for arguments within 4u of a tie; padding is zero",
    cases: [
      { rows: 1, cols: 1, bits: 4, split: 1, copies: 3 },
      { rows: 3, cols: 17, bits: 4, split: 4, copies: 2, padding: 5 },
      { rows: 5, cols: 64, bits: 8, split: 9, copies: 4, factor: true },
      { rows: 40, cols: 256, bits: 4, split: 20, copies: 3, factor: true, padding: 24 },
      { rows: 70, cols: 100, bits: 8, split: 0, copies: 1 },
      { rows: 9, cols: 48, bits: 2, split: 3, copies: 46 },
    ].map(flattenCase),
  },
];
