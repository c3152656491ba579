/** Conformance cases of the grid with a real offset; see `quantize.ts` for what rounding allows. */
import { expect } from "vitest";
import { output, Random, real, U, type CaseGroup, type ConformanceCase } from "../harness.js";
import {
  awkwardRows,
  BITS,
  clipBound,
  CLIPS,
  distanceToTie,
  MARGIN,
  roundings,
  sigmoid,
  SIZES,
  titleOf,
  type GridShape,
} from "./quantize.js";

interface OffsetOptions extends GridShape {
  readonly clips?: readonly [number, number];
  readonly shift?: boolean;
}

function gridOf(x: Float64Array, row: number, { cols, bits, clips }: OffsetOptions) {
  const part = x.subarray(row * cols, (row + 1) * cols);
  const [max, min] = [Math.max(...part), Math.min(...part)];
  const half = (max - min) / 2;
  const hi = max - half * (clips ? 1 - sigmoid(clips[0]) : 0);
  const lo = min + half * (clips ? 1 - sigmoid(clips[1]) : 0);
  const levels = 2 ** bits - 1;
  const scale = (hi - lo) / levels;
  return { max, min, half, lo, levels, scale: scale > 0 ? scale : 1, constant: !(scale > 0) };
}

type RowOffsetGrid = ReturnType<typeof gridOf>;

/** lo, the difference and the scale carry up to 8 roundings of what they are made of, the quotient one more. */
function tieDistance(x: number, { lo, half, scale }: RowOffsetGrid): number {
  const ratio = (x - lo) / scale;
  return 20 * U * ((Math.abs(x) + Math.abs(lo) + half) / scale + Math.abs(ratio));
}

function inputs(options: OffsetOptions, title: string, avoidTies: boolean) {
  const { rows, cols, clips } = options;
  const random = new Random(title);
  const x = awkwardRows(random, rows, cols);
  const shift = options.shift ? random.uniforms(rows * cols, -0.4, 0.4) : undefined;
  const argument = (i: number): number => {
    const { lo, scale } = gridOf(x, Math.floor(i / cols), options);
    return (x[i] - lo) / scale + (shift ? shift[i] : 0);
  };
  if (avoidTies)
    for (let r = 0; r < rows; r++)
      for (let attempt = 0; ; attempt++) {
        if (attempt > 1000) throw new Error(`${title}: found no row away from ties`);
        const { max, min, lo, scale } = gridOf(x, r, options);
        let near = false;
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          const at = (x[i] - lo) / scale + (shift ? shift[i] : 0);
          if (distanceToTie(at) > MARGIN) continue;
          near = true;
          // The extremes stay, so that the grid does.
          if (x[i] === max || x[i] === min) {
            if (shift) shift[i] = Math.fround(shift[i] / 2 + 0.01);
            else x[i] *= 1.01;
          } else x[i] = Math.fround(min + (max - min) * random.uniform());
        }
        if (!near) break;
      }
  return {
    random,
    x,
    shift,
    argument,
    specs: {
      x: real(x),
      ...(clips
        ? { clipMax: real(Float64Array.of(clips[0])), clipMin: real(Float64Array.of(clips[1])) }
        : {}),
      ...(shift ? { shift: real(shift) } : {}),
    },
  };
}

function forwardCase(options: OffsetOptions): ConformanceCase {
  const { rows, cols, bits } = options;
  const title = titleOf(options);
  const { x, specs, argument } = inputs(options, `fakeQuantizeOffset ${title}`, false);
  return {
    kernel: "fakeQuantizeOffset",
    title,
    buffers: { ...specs, out: output(rows * cols) },
    outputs: ["out"],
    run: (kernels, b) => kernels.fakeQuantizeOffset({ rows, cols, bits, ...b } as never),
    bounds: () => ({}),
    verify: ({ out }) => {
      const grids = Array.from({ length: rows }, (_, r) => gridOf(x, r, options));
      for (let i = 0; i < rows * cols; i++) {
        const grid = grids[Math.floor(i / cols)];
        const allowed = roundings(argument(i), tieDistance(x[i], grid)).map((level) => {
          const code = Math.min(grid.levels, Math.max(0, level));
          return { value: grid.lo + grid.scale * code, size: Math.abs(grid.lo) + 3 * grid.half };
        });
        if (!allowed.some(({ value, size }) => Math.abs(out[i] - value) <= 10 * U * size))
          expect.fail(
            `out[${i}] is ${out[i]}, expected one of ${allowed.map(({ value }) => value).join(" ")}`,
          );
      }
    },
  };
}

function backwardCase(options: OffsetOptions): ConformanceCase {
  const { rows, cols, bits, clips } = options;
  const title = titleOf(options);
  const { random, x, shift, specs } = inputs(options, `fakeQuantizeOffsetBackward ${title}`, true);
  const grad = random.normals(rows * cols);
  return {
    kernel: "fakeQuantizeOffsetBackward",
    title,
    buffers: {
      ...specs,
      grad: real(grad),
      gradX: output(rows * cols),
      ...(clips ? { gradClipMax: output(1), gradClipMin: output(1) } : {}),
      ...(shift ? { gradShift: output(rows * cols) } : {}),
    },
    outputs: ["gradX", "gradClipMax", "gradClipMin", "gradShift"],
    run: (kernels, b) => kernels.fakeQuantizeOffsetBackward({ rows, cols, bits, ...b } as never),
    bounds: () => {
      const gradX = new Float64Array(rows * cols);
      const grids = Array.from({ length: rows }, (_, r) => gridOf(x, r, options));
      let clipTerms = 0;
      for (const [r, grid] of grids.entries()) {
        // Of a constant row nothing flows to the extremes.
        if (grid.constant) continue;
        let terms = 0;
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          // (x − lo)/scale cancels: its error is that of its terms, and beyond the grid the gradient goes to lo.
          const ratio = (Math.abs(x[i]) + Math.abs(grid.lo) + grid.half) / grid.scale;
          terms += Math.abs(grad[i]) * ((2 * ratio + 1) / grid.levels + 1);
        }
        for (let i = r * cols; i < (r + 1) * cols; i++)
          if (x[i] === grid.max || x[i] === grid.min)
            gradX[i] = (cols + 32) * U * (terms + Math.abs(grad[i]));
        clipTerms += terms * grid.half;
      }
      return {
        gradX,
        gradClipMax: Float64Array.of(clipBound(clipTerms, rows + cols, clips?.[0])),
        gradClipMin: Float64Array.of(clipBound(clipTerms, rows + cols, clips?.[1])),
        gradShift: Float64Array.from(
          grad,
          (g, i) =>
            // The scale is a difference of the extremes.
            10 *
            U *
            Math.abs(g) *
            (grids[Math.floor(i / cols)].scale +
              Math.abs(grids[Math.floor(i / cols)].lo / grids[Math.floor(i / cols)].levels)),
        ),
      };
    },
  };
}

const cases: OffsetOptions[] = SIZES.flatMap(([rows, cols], i) => [
  { rows, cols, bits: BITS[i % 5], clips: CLIPS[(i + 1) % 4] },
  { rows, cols, bits: BITS[(i + 2) % 5], clips: CLIPS[(i + 2) % 4], shift: true },
  { rows, cols, bits: BITS[(i + 4) % 5] },
]);

export const offsetGroups: CaseGroup[] = [
  {
    bound:
      "fakeQuantizeOffset: within 10u of the terms of lo + scale·code, where the code may round either way only within 20u·(terms of (x−lo)/scale) of a tie",
    cases: cases.map(forwardCase),
  },
  {
    bound:
      "fakeQuantizeOffsetBackward (inputs 1e-3 steps away from ties): as quantizeRowsBackward, (n+32)·u of the terms",
    cases: cases.map(backwardCase),
  },
];
