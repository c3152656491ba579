/** Conformance cases of short convolutions and recurrences, forward and backward. */
import type { Kernels } from "../../../src/backend/contract/training.js";
import type { RecurrenceShape } from "../../../src/backend/contract/recurrent.js";
import {
  output,
  Random,
  real,
  U,
  type Buffers,
  type BufferSpec,
  type CaseGroup,
  type ConformanceCase,
  type Values,
} from "../harness.js";

interface ConvOptions {
  readonly batch: number;
  readonly time: number;
  readonly channels: number;
  readonly taps: number;
  readonly bias?: boolean;
  readonly state?: boolean;
}

const titleOf = (options: object): string =>
  Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== false && typeof value !== "object")
    .map(([name, value]) => (value === true ? name : `${name} ${String(value)}`))
    .join(", ");

/** Of each output Σ of its terms' sizes at most: taps + 1 products of numbers that are at most `most` in size. */
function convBound(buffers: readonly Float64Array[], taps: number): number {
  const most = (values: Float64Array) => values.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  return (taps + 3) * U * (taps + 1) * buffers.reduce((product, b) => product * most(b), 1);
}

function convCase(options: ConvOptions): ConformanceCase {
  const { batch, time, channels, taps, bias, state } = options;
  const title = titleOf(options);
  const random = new Random(`causalConv ${title}`);
  const length = batch * time * channels;
  const before = batch * (taps - 1) * channels;
  const [x, weight] = [random.normals(length), random.normals(channels * taps)];
  const buffers: Record<string, BufferSpec> = {
    x: real(x),
    weight: real(weight),
    out: output(length),
  };
  if (bias) buffers.bias = real(random.normals(channels));
  if (state) buffers.state = real(random.normals(before));
  const bound = convBound([Float64Array.from([...x, 5]), weight], taps);
  return {
    kernel: "causalConv",
    title,
    buffers,
    outputs: state ? ["out", "state"] : ["out"],
    run: (kernels, b) =>
      kernels.causalConv({
        ...{ batch, time, channels, taps },
        ...{ x: b.x, weight: b.weight, bias: b.bias, state: b.state, out: b.out },
      }),
    bounds: () => ({
      out: new Float64Array(length).fill(bound),
      // Inputs, copied.
      ...(state && { state: new Float64Array(before) }),
    }),
  };
}

function convBackwardCase(options: ConvOptions): ConformanceCase {
  const { batch, time, channels, taps } = options;
  const title = titleOf(options);
  const random = new Random(`causalConvBackward ${title}`);
  const length = batch * time * channels;
  const [grad, weight] = [random.normals(length), random.normals(channels * taps)];
  return {
    kernel: "causalConvBackward",
    title,
    buffers: { grad: real(grad), weight: real(weight), gradX: output(length) },
    outputs: ["gradX"],
    run: (kernels, b) =>
      kernels.causalConvBackward({
        ...{ batch, time, channels, taps },
        ...{ weight: b.weight, grad: b.grad, gradX: b.gradX },
      }),
    bounds: () => ({ gradX: new Float64Array(length).fill(convBound([grad, weight], taps)) }),
  };
}

export interface RecurrenceOptions {
  readonly batch: number;
  readonly time: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly delta?: boolean;
  readonly normed?: boolean;
  readonly skip?: boolean;
  readonly limited?: boolean;
  readonly state?: boolean;
}

export function recurrenceInputs(options: RecurrenceOptions, name: string) {
  const { batch, time, heads, keyHeads, keyDim, valueDim, delta, normed, skip, limited } = options;
  const random = new Random(name);
  const keys = keyHeads * keyDim;
  const rows = batch * time;
  // Values first, and a gap, so that places are no matter of course.
  const at = { v: 0, k: heads * valueDim + 3, q: heads * valueDim + 3 + keys };
  const shape: RecurrenceShape & { batch: number; time: number } = {
    ...{ batch, time, heads, keyHeads, keyDim, valueDim, at },
    width: heads * valueDim + 3 + 2 * keys,
    scale: 1 / Math.sqrt(keyDim),
    epsilon: normed ? 1e-6 : undefined,
    limits: limited ? { least: 0.3, most: 1.2 } : undefined,
  };
  const buffers: Record<string, BufferSpec> = {
    x: real(random.normals(rows * shape.width, normed ? 1 : 1 / Math.sqrt(keyDim))),
    step: real(random.normals(rows * heads)),
    rate: real(random.normals(heads, 0.5, -0.5)),
    bias: real(random.normals(heads, 0.5)),
  };
  if (delta) buffers.beta = real(random.normals(rows * heads));
  if (skip) buffers.skip = real(random.normals(heads));
  return { random, shape, buffers, rows };
}

/**
 * An element is a sum over all rows before, through a state that every row multiplies. Neither rule lets an error grow
 * (‖γ·(I − β·k·kᵀ)‖ ≤ 1 with normed keys and β < 1), so errors of the rows add up like a walk: some u·√(terms of a row) of
 * the whole in the Euclidean norm, over at most 100 rows, and of the largest element in each.
 */
const NORM = 64 * U;

function recurrenceBounds(names: readonly string[], factor: number) {
  return (truth: Values): Record<string, Float64Array> =>
    Object.fromEntries(
      names.map((name) => {
        const most = truth[name].reduce((m, x) => Math.max(m, Math.abs(x)), 0);
        return [name, new Float64Array(truth[name].length).fill(factor * most)];
      }),
    );
}

function recurrenceCase(options: RecurrenceOptions): ConformanceCase {
  const title = titleOf(options);
  const { shape, buffers, rows, random } = recurrenceInputs(options, `recurrence ${title}`);
  const { batch, heads, keyDim, valueDim } = shape;
  const all: Record<string, BufferSpec> = { ...buffers, out: output(rows * heads * valueDim) };
  if (options.state) all.state = real(random.normals(batch * heads * keyDim * valueDim));
  const outputs = options.state ? ["out", "state"] : ["out"];
  return {
    kernel: "recurrence",
    title,
    buffers: all,
    outputs,
    run: (kernels, { x, step, beta, rate, bias, skip, state, out }: Buffers) =>
      kernels.recurrence({ ...shape, x, step, beta, rate, bias, skip, state, out }),
    bounds: recurrenceBounds(outputs, NORM),
    norms: Object.fromEntries(outputs.map((name) => [name, NORM])),
  };
}

export function runRecurrenceBackward(
  kernels: Kernels,
  shape: RecurrenceShape & { batch: number; time: number },
  { x, step, beta, rate, bias, skip, grad, gradX, gradStep, gradBeta }: Buffers,
): void {
  const inputs = { x, step, beta, rate, bias, skip };
  kernels.recurrenceBackward({ ...shape, ...inputs, grad, gradX, gradStep, gradBeta });
}

function recurrenceBackwardCase(options: RecurrenceOptions): ConformanceCase {
  const title = titleOf(options);
  const { shape, buffers, rows, random } = recurrenceInputs(options, `recurrence− ${title}`);
  const { heads, valueDim, width } = shape;
  const all: Record<string, BufferSpec> = {
    ...buffers,
    grad: real(random.normals(rows * heads * valueDim)),
    gradX: output(rows * width),
    gradStep: output(rows * heads),
  };
  if (options.delta) all.gradBeta = output(rows * heads);
  const outputs = ["gradX", "gradStep", ...(options.delta ? ["gradBeta"] : [])];
  return {
    kernel: "recurrenceBackward",
    title,
    buffers: all,
    outputs,
    run: (kernels, b) => runRecurrenceBackward(kernels, shape, b),
    bounds: recurrenceBounds(outputs, 2 * NORM),
    norms: Object.fromEntries(outputs.map((name) => [name, 2 * NORM])),
  };
}

const CONVOLUTIONS: readonly ConvOptions[] = [
  { batch: 1, time: 1, channels: 1, taps: 1 },
  { batch: 2, time: 9, channels: 37, taps: 4, bias: true },
  { batch: 1, time: 2, channels: 300, taps: 4, state: true },
  { batch: 2, time: 50, channels: 80, taps: 3, bias: true, state: true },
];

const RECURRENCES: readonly RecurrenceOptions[] = [
  { batch: 1, time: 1, heads: 1, keyHeads: 1, keyDim: 1, valueDim: 1 },
  { batch: 2, time: 33, heads: 4, keyHeads: 2, keyDim: 8, valueDim: 12, delta: true, normed: true },
  {
    batch: 1,
    time: 70,
    heads: 2,
    keyHeads: 1,
    keyDim: 19,
    valueDim: 67,
    delta: true,
    normed: true,
  },
  { batch: 2, time: 40, heads: 6, keyHeads: 2, keyDim: 12, valueDim: 8, skip: true },
  {
    batch: 1,
    time: 65,
    heads: 3,
    keyHeads: 1,
    keyDim: 16,
    valueDim: 33,
    skip: true,
    limited: true,
  },
];

export const recurrentGroups: readonly CaseGroup[] = [
  {
    bound: "convolutions: taps + 3 roundings of the sum of their terms' sizes",
    cases: [...CONVOLUTIONS.map(convCase), ...CONVOLUTIONS.map(convBackwardCase)],
  },
  {
    bound: "recurrences: 64u of all rows together, twice that for gradients",
    cases: [
      ...RECURRENCES.map(recurrenceCase),
      ...RECURRENCES.slice(1).map((each) => recurrenceCase({ ...each, state: true })),
      ...RECURRENCES.map(recurrenceBackwardCase),
    ],
  },
];
