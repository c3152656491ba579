/**
 * Conformance cases of the grids. Rounding and clamping are discontinuous, so nothing is widened for them: a code may
 * differ from the truth only by one and only where its argument lies beside a rounding tie, and backward
 * cases keep their inputs away from the points where "in range" flips.
 */

import { expect } from "vitest";
import {
  codes,
  output,
  Random,
  real,
  U,
  type CaseGroup,
  type ConformanceCase,
} from "../harness.js";

/**
 * Distance from a tie within which a float32 backend may round x/s to the other side: s carries up to 8 roundings,
 * the division and the offset's addition one each; doubled for a division done as multiplication by 1/s.
 */
const tieDistance = (ratio: number, offset: number) =>
  20 * U * (Math.abs(ratio) + Math.abs(offset));
/** Backward inputs stay this far (in steps of the grid) from flipping points; far above tieDistance at 8 bits. */
export const MARGIN = 1e-3;

export const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
export const distanceToTie = (x: number) => Math.abs(x - Math.floor(x) - 0.5);

export interface GridShape {
  readonly rows: number;
  readonly cols: number;
  readonly bits: number;
}

interface RowGrid {
  readonly max: number;
  readonly min: number;
  readonly hi: number;
  readonly lo: number;
}

function rowGrid(
  x: Float64Array,
  row: number,
  cols: number,
  clips?: readonly [number, number],
): RowGrid {
  const part = x.subarray(row * cols, (row + 1) * cols);
  const max = Math.max(0, ...part);
  const min = Math.min(0, ...part);
  return {
    max,
    min,
    hi: max * (clips ? sigmoid(clips[0]) : 1),
    lo: min * (clips ? sigmoid(clips[1]) : 1),
  };
}

/** Rows of every kind: plain, with outliers, one-sided, constant, exactly symmetric, zero. */
export function awkwardRows(random: Random, rows: number, cols: number): Float64Array {
  const x = random.normals(rows * cols);
  for (let r = 0; r < rows; r++) {
    const row = x.subarray(r * cols, (r + 1) * cols);
    const kind = r % 7;
    if (kind === 1) row[random.integer(0, cols - 1)] *= 50;
    if (kind === 2) row.forEach((v, c) => (row[c] = Math.abs(v)));
    if (kind === 3) row.forEach((v, c) => (row[c] = -Math.abs(v)));
    if (kind === 4) row.fill(row[0]);
    if (kind === 5) row.fill(0);
    if (kind === 6 && cols > 1) row[1] = -(row[0] = Math.fround(5 + random.uniform()));
  }
  return x;
}

const symmetricTop = (bits: number) => 2 ** (bits - 1) - 1;

function symmetricScale({ hi, lo }: RowGrid, bits: number, floor: number): number {
  return Math.max(floor, Math.max(hi, -lo) / symmetricTop(bits)) || 1;
}

interface SymmetricOptions extends GridShape {
  readonly clips?: readonly [number, number];
  readonly scaleFloor?: number;
  readonly offset?: boolean;
  /** Multiplies all data (tiny rows meet the floor). */
  readonly size?: number;
}

export const titleOf = (o: object) =>
  Object.entries(o)
    .map(([name, value]) => (value === true ? name : `${name} ${String(value)}`))
    .join(", ");

function symmetricInputs(options: SymmetricOptions, title: string) {
  const { rows, cols, clips, size = 1 } = options;
  const random = new Random(title);
  const x = awkwardRows(random, rows, cols).map((v) => Math.fround(v * size));
  const offset = options.offset ? random.uniforms(rows * cols, -0.5, 0.5) : undefined;
  return {
    random,
    x,
    offset,
    specs: {
      x: real(x),
      ...(clips
        ? { clipMax: real(Float64Array.of(clips[0])), clipMin: real(Float64Array.of(clips[1])) }
        : {}),
      ...(offset ? { offset: real(offset) } : {}),
    },
  };
}

function quantizeRowsCase(options: SymmetricOptions): ConformanceCase {
  const { rows, cols, bits, scaleFloor = 0 } = options;
  const title = titleOf(options);
  const { x, offset, specs } = symmetricInputs(options, `quantizeRows ${title}`);
  return {
    kernel: "quantizeRows",
    title,
    buffers: { ...specs, codes: output(rows * cols, "i8"), scale: output(rows) },
    outputs: ["codes", "scale"],
    run: (kernels, b) =>
      kernels.quantizeRows({
        ...{ rows, cols, bits, scaleFloor, x: b.x, offset: b.offset },
        ...{ clipMax: b.clipMax, clipMin: b.clipMin, codes: b.codes, scale: b.scale },
      }),
    bounds: ({ scale }) => ({ scale: scale.map((s) => (s === 1 ? 0 : 8 * U * s)) }),
    verify: (result, truth) => {
      for (let i = 0; i < rows * cols; i++) {
        const difference = Math.abs(result.codes[i] - truth.codes[i]);
        if (difference === 0) continue;
        const ratio = x[i] / truth.scale[Math.floor(i / cols)];
        const argument = ratio + (offset ? offset[i] : 0);
        const near = distanceToTie(argument) <= tieDistance(ratio, offset ? offset[i] : 0);
        if (difference !== 1 || !near) {
          expect.fail(
            `codes[${i}] is ${result.codes[i]}, expected ${truth.codes[i]} = round(${argument})`,
          );
        }
      }
    },
  };
}

/** Arguments that lie exactly on ties, in numbers that float32 computes without rounding. */
function exactTiesCase(bits: number, withOffset: boolean): ConformanceCase {
  const top = symmetricTop(bits);
  const step = 0.125;
  const ties: number[] = [];
  for (let level = -top; level < top; level++) ties.push(withOffset ? level : level + 0.5);
  // 2-bit grids have few ties; repeat them past one vector register.
  while (ties.length < 40) ties.push(...ties.slice(0, 40 - ties.length));
  const row = Float64Array.of(top, ...ties, -top).map((v) => v * step);
  const cols = row.length;
  const offset = row.map((_, i) => (i % 2 === 0 ? 0.5 : -0.5));
  return {
    kernel: "quantizeRows",
    title: `bits ${bits}, exact ties${withOffset ? " through the offset" : ""}`,
    buffers: {
      x: real(row),
      ...(withOffset ? { offset: real(offset) } : {}),
      codes: output(cols, "i8"),
      scale: output(1),
    },
    outputs: ["codes", "scale"],
    run: (kernels, b) =>
      kernels.quantizeRows({
        ...{
          rows: 1,
          cols,
          bits,
          scaleFloor: 0,
          x: b.x,
          offset: b.offset,
          codes: b.codes,
          scale: b.scale,
        },
      }),
    bounds: () => ({ codes: new Float64Array(cols), scale: new Float64Array(1) }),
  };
}

function quantizeRowsBackwardCase(options: SymmetricOptions): ConformanceCase {
  const { rows, cols, bits, clips, scaleFloor = 0 } = options;
  const title = titleOf(options);
  const { random, x, offset, specs } = symmetricInputs(options, `quantizeRowsBackward ${title}`);
  const top = symmetricTop(bits);
  const grids = Array.from({ length: rows }, (_, r) => rowGrid(x, r, cols, clips));
  const scale = Float64Array.from(grids, (grid) =>
    Math.fround(symmetricScale(grid, bits, scaleFloor)),
  );
  const argument = (i: number) => x[i] / scale[Math.floor(i / cols)] + (offset ? offset[i] : 0);
  const nearEdge = (i: number) =>
    Math.min(Math.abs(argument(i) - top - 0.5), Math.abs(argument(i) + top + 1.5)) < MARGIN;
  const level = Float64Array.from(x, (v, i) => {
    if (offset && nearEdge(i)) offset[i] = specs.offset!.data[i] = 0;
    const { max, min } = grids[Math.floor(i / cols)];
    if (nearEdge(i) && v !== max && v !== min) x[i] = specs.x.data[i] = 0;
    if (nearEdge(i)) throw new Error(`${title}: extreme ${i} lies on a flipping point`);
    return Math.max(-top - 1, Math.min(top, Math.round(argument(i))));
  });
  const grad = random.normals(rows * cols);
  return {
    kernel: "quantizeRowsBackward",
    title,
    buffers: {
      ...specs,
      codes: codes(level),
      scale: real(scale),
      grad: real(grad),
      gradX: output(rows * cols),
      ...(clips ? { gradClipMax: output(1), gradClipMin: output(1) } : {}),
      ...(offset ? { gradOffset: output(rows * cols) } : {}),
    },
    outputs: ["gradX", "gradClipMax", "gradClipMin", "gradOffset"],
    run: (kernels, b) =>
      kernels.quantizeRowsBackward({ rows, cols, bits, scaleFloor, ...b } as never),
    bounds: () => {
      const gradX = new Float64Array(rows * cols);
      let clipMaxTerms = 0;
      let clipMinTerms = 0;
      for (let r = 0; r < rows; r++) {
        let terms = 0;
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          terms += (Math.abs(grad[i]) * (Math.abs(level[i]) + Math.abs(x[i] / scale[r]))) / top;
        }
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          const extreme = x[i] === grids[r].max || x[i] === grids[r].min;
          // Other elements take their own gradient, unchanged.
          if (extreme) gradX[i] = (cols + 24) * U * (terms + Math.abs(grad[i]));
        }
        clipMaxTerms += terms * grids[r].max;
        clipMinTerms += terms * -grids[r].min;
      }
      return {
        gradX,
        gradClipMax: Float64Array.of(clipBound(clipMaxTerms, rows + cols, clips?.[0])),
        gradClipMin: Float64Array.of(clipBound(clipMinTerms, rows + cols, clips?.[1])),
        gradOffset: Float64Array.from(
          grad,
          (g, i) => 2 * U * Math.abs(g) * scale[Math.floor(i / cols)],
        ),
      };
    },
  };
}

/** Error of Σ·σ(c)·(1−σ(c)) for a sum of n terms; 1−σ loses up to 4u to cancellation, whatever its size. */
export function clipBound(terms: number, n: number, logit = 0): number {
  const s = sigmoid(logit);
  return terms * s * ((n + 24) * U * (1 - s) + 4 * U);
}

interface AsymOptions extends GridShape {
  readonly clips?: readonly [number, number];
}

function asymGrid(grid: RowGrid, bits: number) {
  const empty = grid.max === 0 && grid.min === 0;
  const levels = 2 ** bits - 1;
  const hi = empty ? 1 : grid.hi;
  const lo = empty ? -1 : grid.lo;
  const scale = (hi - lo) / levels;
  return { empty, levels, scale, origin: -lo / scale };
}

/** Both integers that a number beside a tie may round to, or the one it rounds to. */
export function roundings(x: number, slack: number): number[] {
  return [...new Set([Math.ceil(x - slack - 0.5), Math.floor(x + slack + 0.5)])];
}

function asymInputs(options: AsymOptions, title: string, avoidTies: boolean) {
  const { rows, cols, bits, clips } = options;
  const random = new Random(title);
  const x = awkwardRows(random, rows, cols);
  const farFromTies = (r: number) => {
    const { scale, origin } = asymGrid(rowGrid(x, r, cols, clips), bits);
    const row = x.subarray(r * cols, (r + 1) * cols);
    return distanceToTie(origin) > MARGIN && row.every((v) => distanceToTie(v / scale) > MARGIN);
  };
  if (avoidTies) {
    for (let r = 0; r < rows; r++) {
      for (let attempt = 0; !farFromTies(r); attempt++) {
        if (attempt > 10000) throw new Error(`${title}: found no row away from ties`);
        const { scale, origin } = asymGrid(rowGrid(x, r, cols, clips), bits);
        if (distanceToTie(origin) <= MARGIN) x.set(random.normals(cols), r * cols);
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          if (distanceToTie(x[i] / scale) <= MARGIN)
            x[i] = Math.fround(x[i] * (0.9 + 0.1 * random.uniform()));
        }
      }
    }
  }
  return {
    random,
    x,
    specs: {
      x: real(x),
      ...(clips
        ? { clipMax: real(Float64Array.of(clips[0])), clipMin: real(Float64Array.of(clips[1])) }
        : {}),
    },
  };
}

function asymCase(options: AsymOptions): ConformanceCase {
  const { rows, cols, bits, clips } = options;
  const title = titleOf(options);
  const { x, specs } = asymInputs(options, `fakeQuantizeAsym ${title}`, false);
  return {
    kernel: "fakeQuantizeAsym",
    title,
    buffers: { ...specs, out: output(rows * cols) },
    outputs: ["out"],
    run: (kernels, b) =>
      kernels.fakeQuantizeAsym({
        rows,
        cols,
        bits,
        x: b.x,
        clipMax: b.clipMax,
        clipMin: b.clipMin,
        out: b.out,
      }),
    bounds: () => ({}),
    verify: ({ out }) => {
      const grids = Array.from({ length: rows }, (_, r) =>
        asymGrid(rowGrid(x, r, cols, clips), bits),
      );
      for (let i = 0; i < rows * cols; i++) {
        const { scale, origin, levels } = grids[Math.floor(i / cols)];
        const ratio = x[i] / scale;
        const allowed = roundings(origin, tieDistance(origin, 0)).flatMap((zero) =>
          roundings(ratio, tieDistance(ratio, 0)).map(
            (level) => scale * (Math.min(levels, Math.max(0, level + zero)) - zero),
          ),
        );
        if (!allowed.some((v) => Math.abs(out[i] - v) <= 10 * U * Math.abs(v))) {
          expect.fail(
            `out[${i}] is ${out[i]}, expected one of ${allowed.join(" ")} (x/scale = ${ratio})`,
          );
        }
      }
    },
  };
}

function asymBackwardCase(options: AsymOptions): ConformanceCase {
  const { rows, cols, bits, clips } = options;
  const title = titleOf(options);
  const { random, x, specs } = asymInputs(options, `fakeQuantizeAsymBackward ${title}`, true);
  const grad = random.normals(rows * cols);
  return {
    kernel: "fakeQuantizeAsymBackward",
    title,
    buffers: {
      ...specs,
      grad: real(grad),
      gradX: output(rows * cols),
      ...(clips ? { gradClipMax: output(1), gradClipMin: output(1) } : {}),
    },
    outputs: ["gradX", "gradClipMax", "gradClipMin"],
    run: (kernels, b) => kernels.fakeQuantizeAsymBackward({ rows, cols, bits, ...b } as never),
    bounds: () => {
      const gradX = new Float64Array(rows * cols);
      let clipMaxTerms = 0;
      let clipMinTerms = 0;
      for (let r = 0; r < rows; r++) {
        const grid = rowGrid(x, r, cols, clips);
        const { scale, levels } = asymGrid(grid, bits);
        let terms = 0;
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          terms += (Math.abs(grad[i]) * 2 * Math.abs(x[i] / scale) + Math.abs(grad[i])) / levels;
        }
        for (let i = r * cols; i < (r + 1) * cols; i++) {
          const extreme = x[i] === grid.max || x[i] === grid.min;
          // The ratio x/s carries the scale's 8 roundings.
          if (extreme) gradX[i] = (cols + 32) * U * (terms + Math.abs(grad[i]));
        }
        clipMaxTerms += terms * grid.max;
        clipMinTerms += terms * -grid.min;
      }
      return {
        gradX,
        gradClipMax: Float64Array.of(clipBound(clipMaxTerms, rows + cols, clips?.[0])),
        gradClipMin: Float64Array.of(clipBound(clipMinTerms, rows + cols, clips?.[1])),
      };
    },
  };
}

function clipInputs(rows: number, cols: number, title: string) {
  const random = new Random(title);
  const x = random.normals(rows * cols);
  const clipMax = random.normals(rows, 1.5, 1.5);
  const clipMin = random.normals(rows, 1.5, 1.5);
  const uppers = new Float64Array(rows);
  const lowers = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    const row = x.subarray(r * cols, (r + 1) * cols);
    const setBounds = (): void => {
      uppers[r] = Math.max(...row) * sigmoid(clipMax[r]);
      lowers[r] = Math.min(...row) * sigmoid(clipMin[r]);
    };
    setBounds();
    const extreme = [Math.max(...row), Math.min(...row)];
    row.forEach((v, c) => {
      const near = Math.min(Math.abs(v - uppers[r]), Math.abs(v - lowers[r]));
      if (near >= MARGIN || extreme.includes(v)) return;
      row[c] = 0;
      setBounds();
    });
  }
  const upper = (r: number) => uppers[r];
  const lower = (r: number) => lowers[r];
  return { random, x, clipMax, clipMin, upper, lower };
}

function clipRowsCase(rows: number, cols: number): ConformanceCase {
  const title = titleOf({ rows, cols });
  const { x, clipMax, clipMin } = clipInputs(rows, cols, `clipRows ${title}`);
  return {
    kernel: "clipRows",
    title,
    buffers: {
      x: real(x),
      clipMax: real(clipMax),
      clipMin: real(clipMin),
      out: output(rows * cols),
    },
    outputs: ["out"],
    run: (kernels, b) =>
      kernels.clipRows({ rows, cols, x: b.x, clipMax: b.clipMax, clipMin: b.clipMin, out: b.out }),
    bounds: ({ out }) => ({ out: out.map((v, i) => (v === x[i] ? 0 : 8 * U * Math.abs(v))) }),
  };
}

function clipRowsBackwardCase(rows: number, cols: number): ConformanceCase {
  const title = titleOf({ rows, cols });
  const { random, x, clipMax, clipMin, upper, lower } = clipInputs(
    rows,
    cols,
    `clipRowsBackward ${title}`,
  );
  const grad = random.normals(rows * cols);
  return {
    kernel: "clipRowsBackward",
    title,
    buffers: {
      ...{ x: real(x), clipMax: real(clipMax), clipMin: real(clipMin), grad: real(grad) },
      ...{ gradX: output(rows * cols), gradClipMax: output(rows), gradClipMin: output(rows) },
    },
    outputs: ["gradX", "gradClipMax", "gradClipMin"],
    run: (kernels, b) => kernels.clipRowsBackward({ rows, cols, ...b } as never),
    bounds: () => {
      const gradX = new Float64Array(rows * cols);
      const gradClipMax = new Float64Array(rows);
      const gradClipMin = new Float64Array(rows);
      for (let r = 0; r < rows; r++) {
        const row = x.subarray(r * cols, (r + 1) * cols);
        const [max, min] = [Math.max(...row), Math.min(...row)];
        let above = 0;
        let below = 0;
        row.forEach((v, c) => {
          if (Math.max(v, lower(r)) > upper(r)) above += Math.abs(grad[r * cols + c]);
          else if (v < lower(r)) below += Math.abs(grad[r * cols + c]);
        });
        row.forEach((v, c) => {
          if (v === max || v === min)
            gradX[r * cols + c] = (cols + 16) * U * (above + below + Math.abs(grad[r * cols + c]));
        });
        gradClipMax[r] = clipBound(above * Math.abs(max), cols, clipMax[r]);
        gradClipMin[r] = clipBound(below * Math.abs(min), cols, clipMin[r]);
      }
      return { gradX, gradClipMax, gradClipMin };
    },
  };
}

function dequantizeCase(rows: number, cols: number): ConformanceCase {
  const title = titleOf({ rows, cols });
  const random = new Random(`dequantizeRows ${title}`);
  return {
    kernel: "dequantizeRows",
    title,
    buffers: {
      codes: codes(random.integers(rows * cols, -128, 127)),
      scale: real(random.uniforms(rows, 0.01, 1)),
      out: output(rows * cols),
    },
    outputs: ["out"],
    run: (kernels, { codes: given, scale, out }) =>
      kernels.dequantizeRows({ codes: given, scale, rows, cols, out }),
    bounds: ({ out }) => ({ out: out.map((v) => 1.01 * U * Math.abs(v)) }),
  };
}

export const SIZES = [
  [1, 1],
  [7, 1],
  [7, 5],
  [14, 16],
  [9, 33],
  [21, 64],
  [8, 257],
  [70, 100],
  [400, 96],
  // Rows that a GPU's block of threads works on together, with and without 16-byte accesses.
  [7, 1029],
  [8, 2052],
] as const;
export const BITS = [4, 8, 3, 2, 6] as const;
export const CLIPS = [undefined, [4, 4], [1.2, 0.7], [-0.5, 2]] as const;

const symmetric: SymmetricOptions[] = SIZES.flatMap(([rows, cols], i) => [
  { rows, cols, bits: BITS[i % 5], clips: CLIPS[i % 4] },
  { rows, cols, bits: BITS[(i + 1) % 5], offset: true, scaleFloor: 1e-5 },
  {
    rows,
    cols,
    bits: BITS[(i + 2) % 5],
    clips: CLIPS[(i + 1) % 4],
    scaleFloor: 1e-5,
    offset: i % 2 === 0,
  },
  { rows, cols, bits: BITS[(i + 3) % 5], scaleFloor: 1e-5, size: 1e-6 },
]);
const asymmetric: AsymOptions[] = SIZES.flatMap(([rows, cols], i) => [
  { rows, cols, bits: BITS[i % 5], clips: CLIPS[(i + 1) % 4] },
  { rows, cols, bits: BITS[(i + 2) % 5], clips: CLIPS[(i + 2) % 4] },
  { rows, cols, bits: BITS[(i + 4) % 5] },
]);

export const quantizeGroups: CaseGroup[] = [
  {
    bound:
      "quantizeRows: scale within 8 roundings; a code differs by 1 at most, and only where x/s + offset lies within 20u·(|x/s| + |offset|) of a tie; exact ties exactly",
    cases: [
      ...symmetric.map(quantizeRowsCase),
      ...BITS.flatMap((bits) => [exactTiesCase(bits, false), exactTiesCase(bits, true)]),
    ],
  },
  {
    bound:
      "quantizeRowsBackward: elements that are no extreme take their gradient exactly; extremes and clips within (n+24)·u of their sum's absolute terms, 1−σ within 4u",
    cases: symmetric.map(quantizeRowsBackwardCase),
  },
  {
    bound: "dequantizeRows: one rounding",
    cases: SIZES.map(([rows, cols]) => dequantizeCase(rows, cols)),
  },
  {
    bound:
      "fakeQuantizeAsym: within 10u of scale·(code − zero), where code and zero may round either way only within 20u·|x/s| of a tie",
    cases: asymmetric.map(asymCase),
  },
  {
    bound:
      "fakeQuantizeAsymBackward (inputs 1e-3 steps away from ties): as quantizeRowsBackward, (n+32)·u",
    cases: asymmetric.map(asymBackwardCase),
  },
  {
    bound: "clipRows: untouched elements exactly, bounds within 8 roundings",
    cases: SIZES.map(([rows, cols]) => clipRowsCase(rows, cols)),
  },
  {
    bound:
      "clipRowsBackward (inputs 1e-3 away from the bounds): inner elements exactly; extremes within (cols+16)·u of the absolute sum, clips (cols+24)·u and 4u for 1−σ",
    cases: SIZES.map(([rows, cols]) => clipRowsBackwardCase(rows, cols)),
  },
];
