/** Steps on rows (rows.cu) against their definitions. */
import { RowKernels } from "../../../../../src/backend/cuda/infer/row-kernels.js";
import type { Activation } from "../../../../../src/backend/contract/program.js";
import { floats, generator, poisoned, sigmoid, silu, worstOf, type Check } from "./support.js";

const ACTIVATIONS: Readonly<Partial<Record<Activation, (x: number) => number>>> = {
  silu,
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  geluTanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  sigmoid,
};

/** In f32: some roundings of numbers of some ones. */
const BOUND = 2 ** -20;

const norm = (kind: "rms" | "layer", groups: number, gains: number, inPlace: boolean): Check => ({
  name: `rows: ${kind} norm, ${groups} groups, ${gains} gains${inPlace ? ", in place" : ""}`,
  run: (device) => {
    const [rows, width, stride, epsilon] = [5, 200, groups * 200 + 24, 1e-5];
    const next = generator(groups + gains);
    const x = floats(rows * stride, () => 1 + 3 * next());
    const [gain, bias] = [floats(gains * width, next), floats(gains * width, next)];
    const layer = kind === "layer";
    const from = device.put(x);
    const out = inPlace ? from : poisoned(device, x.byteLength);
    new RowKernels(device).norm({
      ...{
        kind,
        x: { at: from, stride },
        out: { at: out, stride },
        rows,
        groups,
        width,
        gains,
        epsilon,
      },
      gain: device.put(gain),
      bias: layer ? device.put(bias) : undefined,
    });
    const got = device.read(out, new Float32Array(x.length));
    return worstOf(rows * groups * width, (i) => {
      const [row, group, c] = [
        Math.floor(i / (groups * width)),
        Math.floor(i / width) % groups,
        i % width,
      ];
      const at = row * stride + group * width;
      const own = Float64Array.from(x.subarray(at, at + width));
      const mean = layer ? own.reduce((sum, v) => sum + v, 0) / width : 0;
      const square = own.reduce((sum, v) => sum + (v - mean) ** 2, 0) / width;
      const place = gains > 1 ? group * width + c : c;
      const want =
        ((own[c] - mean) / Math.sqrt(square + epsilon)) * gain[place] + (layer ? bias[place] : 0);
      return Math.abs(got[at + c] - want) / (8 * BOUND);
    });
  },
});

const activation = (name: Activation, gated: boolean, clamped = false): Check => ({
  name: `rows: ${clamped ? "clamped " : ""}${name}${gated ? " gate" : ""}`,
  run: (device) => {
    const [rows, width, stride] = [7, 130, 300];
    const next = generator(width);
    const x = floats(rows * stride, () => 4 * next());
    const at = device.put(x);
    const out = poisoned(device, rows * width * 4);
    const clamp = clamped ? { alpha: 1.7, limit: 2 } : undefined;
    new RowKernels(device).activate({
      ...{
        activation: name,
        clamp,
        x: { at, stride },
        out: { at: out, stride: width },
        rows,
        width,
      },
      gate: gated ? { at: at + 4 * width, stride } : undefined,
    });
    const got = device.read(out, new Float32Array(rows * width));
    const f = ACTIVATIONS[name] ?? (() => NaN);
    return worstOf(rows * width, (i) => {
      const from = Math.floor(i / width) * stride + (i % width);
      const [value, gate] = [x[from], x[from + width]];
      const g = Math.min(gate, 2);
      const want = clamped
        ? (Math.min(Math.max(value, -2), 2) + 1) * g * sigmoid(1.7 * g)
        : gated
          ? f(gate) * value
          : f(value);
      return Math.abs(got[i] - want) / (BOUND * (Math.abs(want) + 4));
    });
  },
});

const pairs: Check = {
  name: "rows: sum, product and scaling in place",
  run: (device) => {
    const [rows, width, stride] = [9, 75, 80];
    const next = generator(rows);
    const [a, b] = [floats(rows * stride, next), floats(rows * stride, next)];
    const kernels = new RowKernels(device);
    const [x, y] = [
      { at: device.put(a), stride },
      { at: device.put(b), stride },
    ];
    const size = { rows, width };
    kernels.pair("add", x, y, x, size);
    kernels.pair("multiply", x, y, x, size);
    kernels.scale(x, 3, x, size);
    kernels.scale(x, { at: device.put(Float32Array.of(-2)) }, x, size);
    const got = device.read(x.at, new Float32Array(a.length));
    return worstOf(a.length, (i) => {
      const want = i % stride < width ? (a[i] + b[i]) * b[i] * -6 : a[i];
      return Math.abs(got[i] - want) / BOUND;
    });
  },
};

const rotary: Check = {
  name: "rows: rotary tables, pairs that stand still, a factor",
  run: (device) => {
    const [rows, half, turning, factor] = [6, 24, 16, 1.25];
    const positions = Int32Array.from({ length: rows }, (_, i) => i ** 5);
    const frequencies = Float64Array.from({ length: half }, (_, i) =>
      i < turning ? 500 ** (-i / turning) : 0,
    );
    const [cosine, sine] = [poisoned(device, 4 * rows * half), poisoned(device, 4 * rows * half)];
    new RowKernels(device).rotary({
      ...{ positions: device.put(positions), rows, frequencies: device.put(frequencies), half },
      ...{ turning, factor, cosine, sine },
    });
    const [c, s] = [cosine, sine].map((at) => device.read(at, new Float32Array(rows * half)));
    return worstOf(rows * half, (i) => {
      const angle = positions[Math.floor(i / half)] * frequencies[i % half];
      const size = i % half < turning ? factor : 1;
      return (
        Math.max(Math.abs(c[i] - size * Math.cos(angle)), Math.abs(s[i] - size * Math.sin(angle))) /
        2 ** -22
      );
    });
  },
};

export const ROW_CHECKS: readonly Check[] = [
  norm("rms", 1, 1, false),
  norm("rms", 3, 3, true),
  norm("layer", 1, 1, true),
  norm("layer", 3, 1, false),
  activation("silu", true),
  activation("relu", false),
  activation("relu2", false),
  activation("geluTanh", true),
  activation("geluTanh", false),
  activation("sigmoid", true),
  activation("silu", true, true),
  pairs,
  rotary,
];
