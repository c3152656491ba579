/** Reference of short convolutions and of recurrences of matrices, token by token, with their gradients. */
import type {
  CausalConvArgs,
  CausalConvBackwardArgs,
  RecurrenceArgs,
  RecurrenceBackwardArgs,
} from "../../contract/recurrent-kernels.js";
import type { RealArray } from "../../contract/training.js";
import { sigmoid } from "./quantize.js";
import { optionalReals, reals } from "./views.js";

/** out[t,c] = Σ_j weight[c,j]·x[t − (taps − 1) + j, c] + bias[c], with the state's rows before the first. */
export function causalConv(args: CausalConvArgs): void {
  const { batch, time, channels, taps } = args;
  const length = batch * time * channels;
  const before = taps - 1;
  const x = reals(args.x, length, "causalConv x");
  const weight = reals(args.weight, channels * taps, "causalConv weight");
  const bias = optionalReals(args.bias, channels, "causalConv bias");
  const state = optionalReals(args.state, batch * before * channels, "causalConv state");
  const out = reals(args.out, length, "causalConv out");
  for (let b = 0; b < batch; b++)
    for (let c = 0; c < channels; c++) {
      const at = (t: number): number =>
        t >= 0
          ? x[(b * time + t) * channels + c]
          : (state?.[(b * before + before + t) * channels + c] ?? 0);
      const line = Float64Array.from({ length: before + time }, (_, i) => at(i - before));
      for (let t = 0; t < time; t++) {
        let sum = bias?.[c] ?? 0;
        for (let j = 0; j < taps; j++) sum += weight[c * taps + j] * line[t + j];
        out[(b * time + t) * channels + c] = sum;
      }
      for (let i = 0; state && i < before; i++)
        state[(b * before + i) * channels + c] = line[time + i];
    }
}

/** gradX[t,c] = Σ_j weight[c,j]·grad[t + (taps − 1) − j, c]. */
export function causalConvBackward(args: CausalConvBackwardArgs): void {
  const { batch, time, channels, taps } = args;
  const length = batch * time * channels;
  const weight = reals(args.weight, channels * taps, "causalConvBackward weight");
  const grad = reals(args.grad, length, "causalConvBackward grad");
  const gradX = reals(args.gradX, length, "causalConvBackward gradX");
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < time; t++)
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let j = 0; j < taps; j++) {
          const later = t + taps - 1 - j;
          if (later < time) sum += weight[c * taps + j] * grad[(b * time + later) * channels + c];
        }
        gradX[(b * time + t) * channels + c] = sum;
      }
}

const softplus = (x: number): number => (x > 30 ? x : Math.log1p(Math.exp(x)));

interface Views {
  readonly x: RealArray;
  readonly step: RealArray;
  readonly beta?: RealArray;
  readonly rate: RealArray;
  readonly bias: RealArray;
  readonly skip?: RealArray;
}

type Inputs = Omit<RecurrenceArgs, "state" | "out">;

function views(args: Inputs, name: string): Views {
  const { batch, time, heads, width } = args;
  const rows = batch * time;
  return {
    x: reals(args.x, rows * width, `${name} x`),
    step: reals(args.step, rows * heads, `${name} step`),
    beta: optionalReals(args.beta, rows * heads, `${name} beta`),
    rate: reals(args.rate, heads, `${name} rate`),
    bias: reals(args.bias, heads, `${name} bias`),
    skip: optionalReals(args.skip, heads, `${name} skip`),
  };
}

/** Of a row and head: time step and decay, queries and keys as the state meets them, and the factors that made them so. */
function gates(args: Inputs, v: Views, row: number, h: number) {
  const { heads, keyHeads, keyDim, valueDim, width, at, scale, epsilon, limits } = args;
  const raw = v.step[row * heads + h] + v.bias[h];
  const free = softplus(raw);
  const step = limits ? Math.min(Math.max(free, limits.least), limits.most) : free;
  const decay = Math.exp(v.rate[h]);
  const keyHead = Math.floor((h * keyHeads) / heads);
  const from = (first: number) => row * width + first + keyHead * keyDim;
  const part = (first: number) => Float64Array.from(v.x.subarray(first, first + keyDim));
  const inverse = (x: Float64Array) =>
    epsilon === undefined ? 1 : 1 / Math.sqrt(x.reduce((sum, c) => sum + c * c, epsilon));
  const [qAt, kAt] = [from(at.q), from(at.k)];
  const [q, k] = [part(qAt), part(kAt)];
  const [qFactor, kFactor] = [inverse(q) * scale, inverse(k)];
  const vAt = row * width + at.v + h * valueDim;
  return {
    step,
    /** Of the time step by `step` + bias, 0 at a limit. */
    slope: step === free ? sigmoid(raw) : 0,
    rate: decay,
    gamma: Math.exp(-decay * step),
    beta: v.beta && sigmoid(v.beta[row * heads + h]),
    q: q.map((c) => c * qFactor),
    k: k.map((c) => c * kFactor),
    v: Float64Array.from(v.x.subarray(vAt, vAt + valueDim)),
    ...{ qAt, kAt, vAt, qFactor, kFactor },
  };
}

type Gates = ReturnType<typeof gates>;

/** What a row writes, u, into a decayed state. */
function written(s: Float64Array, { k, v, beta, step }: Gates): Float64Array {
  const n = v.length;
  if (beta === undefined) return v.map((x) => step * x);
  return v.map((x, j) => {
    let read = 0;
    for (let i = 0; i < k.length; i++) read += s[i * n + j] * k[i];
    return beta * (x - read);
  });
}

/** One row on a state, in place. Returns u; `decayed` receives the state before u was added. */
function advance(s: Float64Array, row: Gates, decayed?: Float64Array): Float64Array {
  for (let i = 0; i < s.length; i++) s[i] *= row.gamma;
  decayed?.set(s);
  const u = written(s, row);
  for (let i = 0; i < row.k.length; i++)
    for (let j = 0; j < u.length; j++) s[i * u.length + j] += row.k[i] * u[j];
  return u;
}

export function recurrence(args: RecurrenceArgs): void {
  const { batch, time, heads, keyDim, valueDim } = args;
  const v = views(args, "recurrence");
  const size = keyDim * valueDim;
  const state = optionalReals(args.state, batch * heads * size, "recurrence state");
  const out = reals(args.out, batch * time * heads * valueDim, "recurrence out");
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++) {
      const first = (b * heads + h) * size;
      const s = new Float64Array(size);
      if (state) s.set(state.subarray(first, first + size));
      for (let t = 0; t < time; t++) {
        const row = b * time + t;
        const each = gates(args, v, row, h);
        advance(s, each);
        for (let j = 0; j < valueDim; j++) {
          let sum = v.skip ? v.skip[h] * each.v[j] : 0;
          for (let i = 0; i < keyDim; i++) sum += s[i * valueDim + j] * each.q[i];
          out[(row * heads + h) * valueDim + j] = sum;
        }
      }
      state?.set(s, first);
    }
}

/** Gradient of x/√(Σx² + ε)·scale, from that of its value: factor = scale/√(Σx² + ε), value = x·factor. */
function throughNorm(
  grad: Float64Array,
  value: Float64Array,
  factor: number,
  scale: number,
  normed: boolean,
): Float64Array {
  if (!normed) return grad.map((g) => g * factor);
  const along = grad.reduce((sum, g, i) => sum + g * value[i], 0) / (scale * scale);
  return grad.map((g, i) => factor * (g - value[i] * along));
}

export function recurrenceBackward(args: RecurrenceBackwardArgs): void {
  const { batch, time, heads, keyDim, valueDim, width, scale, epsilon } = args;
  const v = views(args, "recurrenceBackward");
  const rows = batch * time;
  const size = keyDim * valueDim;
  const grad = reals(args.grad, rows * heads * valueDim, "recurrenceBackward grad");
  const gradX = reals(args.gradX, rows * width, "recurrenceBackward gradX");
  const gradStep = reals(args.gradStep, rows * heads, "recurrenceBackward gradStep");
  const gradBeta = optionalReals(args.gradBeta, rows * heads, "recurrenceBackward gradBeta");
  const sums = new Float64Array(rows * width);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++) {
      const s = new Float64Array(size);
      const past = Array.from({ length: time }, (_, t) => {
        const each = gates(args, v, b * time + t, h);
        const decayed = new Float64Array(size);
        const u = advance(s, each, decayed);
        return { each, decayed, after: s.slice(), u };
      });
      const d = new Float64Array(size);
      for (let t = time - 1; t >= 0; t--) {
        const { each, decayed, after, u } = past[t];
        const { q, k, beta, step, gamma, rate, slope } = each;
        const row = b * time + t;
        const g = grad.subarray((row * heads + h) * valueDim, (row * heads + h + 1) * valueDim);
        const [dq, dk] = [new Float64Array(keyDim), new Float64Array(keyDim)];
        const e = new Float64Array(valueDim);
        for (let i = 0; i < keyDim; i++)
          for (let j = 0; j < valueDim; j++) {
            const at = i * valueDim + j;
            d[at] += q[i] * g[j];
            dq[i] += after[at] * g[j];
            dk[i] += d[at] * u[j];
            e[j] += d[at] * k[i];
          }
        const dv = e.map((x, j) => (beta ?? step) * x + (v.skip ? v.skip[h] * g[j] : 0));
        let dStep = 0;
        if (beta === undefined) dStep = e.reduce((sum, x, j) => sum + x * each.v[j], 0);
        else {
          // u = β·(v − read), so v − read = u/β: written without the division.
          let dBeta = 0;
          for (let j = 0; j < valueDim; j++) {
            let read = 0;
            for (let i = 0; i < keyDim; i++) read += decayed[i * valueDim + j] * k[i];
            dBeta += e[j] * (each.v[j] - read);
          }
          if (gradBeta) gradBeta[row * heads + h] = dBeta * beta * (1 - beta);
          for (let i = 0; i < keyDim; i++)
            for (let j = 0; j < valueDim; j++) {
              const at = i * valueDim + j;
              dk[i] -= beta * decayed[at] * e[j];
              d[at] -= beta * k[i] * e[j];
            }
        }
        let dLog = 0;
        for (let at = 0; at < size; at++) {
          dLog += d[at] * decayed[at];
          d[at] *= gamma;
        }
        gradStep[row * heads + h] = (dStep - rate * dLog) * slope;
        const normed = epsilon !== undefined;
        throughNorm(dq, q, each.qFactor, scale, normed).forEach(
          (x, i) => (sums[each.qAt + i] += x),
        );
        throughNorm(dk, k, each.kFactor, 1, normed).forEach((x, i) => (sums[each.kAt + i] += x));
        dv.forEach((x, j) => (sums[each.vAt + j] += x));
      }
    }
  gradX.set(sums);
}
