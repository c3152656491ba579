/**
 * Every kernel of the CUDA engine against a plain definition in float64, on small shapes, odd ones among them. Needs a
 * GPU: `npm run test:cuda` runs them with the rest of the lane, run.ts alone. Outputs are poisoned first, so that a value nobody wrote is found.
 */
import { floatToHalfBits } from "../../../src/checkpoint/half.js";
import type { CudaEngineDevice } from "../../../src/engine/cuda/device.js";
import {
  codeBytes,
  codeOffset,
  orderFeatures,
  packWeights,
  PAGE_TOKENS,
  paddedHalves,
  pageLayout,
  roundUp,
  siteGeometry,
  type SiteShape,
} from "../../../src/engine/cuda/layout.js";

export interface Check {
  readonly name: string;
  /** Largest error as a multiple of what is allowed; infinity for NaN. */
  readonly run: (device: CudaEngineDevice) => number;
}

function words(...parts: readonly (string | false | undefined)[]): string {
  return parts.filter(Boolean).join(" ");
}

/** Deterministic uniform numbers in [−1, 1). */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const mixed = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) >>> 0;
    return ((mixed ^ (mixed >>> 13)) >>> 0) / 2 ** 31 - 1;
  };
}

function floats(length: number, next: () => number, size = 1): Float32Array {
  return Float32Array.from({ length }, () => next() * size);
}

function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
}

const roundHalf = (x: number) => fromHalf(floatToHalfBits(x));
const halves = (values: ArrayLike<number>) => Uint16Array.from(values, floatToHalfBits);
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const silu = (x: number) => x * sigmoid(x);

/** Largest of |got − want| / allowed; NaN counts as infinite. */
function worstOf(count: number, error: (i: number) => number): number {
  let worst = 0;
  for (let i = 0; i < count; i++) {
    const e = error(i);
    worst = Number.isNaN(e) ? Infinity : Math.max(worst, e);
  }
  return worst;
}

function poisoned(device: CudaEngineDevice, bytes: number): number {
  const pointer = device.allocate(bytes);
  device.driver.fillBytes(pointer, 0xff, bytes, device.stream);
  return pointer;
}

interface GemmCase {
  readonly tokens: number;
  readonly rows: number;
  readonly columns: number;
  readonly bits?: 4 | 8;
  readonly gated?: boolean;
  readonly halves?: boolean;
  readonly accumulate?: boolean;
  readonly bias?: boolean;
  readonly plain?: boolean;
  readonly split?: number;
  /** Tiles at which the second and third set of codes begin. */
  readonly sets?: readonly [number, number];
}

const gemm = (given: GemmCase): Check => ({
  name: words(
    `gemm w${given.bits ?? 4} ${given.tokens}×${given.rows}×${given.columns}`,
    given.gated && "gated",
    given.halves && "halves",
    given.accumulate && "add",
    given.bias && "bias",
    given.sets && "sets",
    given.split !== undefined && `split ${given.split}`,
    given.plain && "plain",
  ),
  run: (device) => {
    const { tokens, rows, columns, bits = 4, gated = false } = given;
    const next = generator(rows * 31 + columns * 7 + tokens);
    const limit = bits === 4 ? 8 : 128;
    const integer = () => Math.floor(next() * limit);
    const order = { rows, gated };
    const weights = Int8Array.from({ length: rows * columns }, integer);
    const capacity = tokens <= 64 ? 64 : roundUp(tokens, 128);
    const setCount = given.sets ? 3 : 1;
    const codes = Array.from({ length: setCount }, () =>
      Int8Array.from({ length: tokens * columns }, integer),
    );
    const packedCodes = new Int8Array(setCount * codeBytes(capacity, columns)).fill(3);
    const tokenScale = new Float32Array(setCount * capacity);
    codes.forEach((set, s) => {
      // Columns beyond the row are zero, rows beyond the tokens are anything.
      for (let t = 0; t < tokens; t++) {
        for (let c = 0; c < roundUp(columns, 128); c++)
          packedCodes[s * codeBytes(capacity, columns) + codeOffset(capacity, t, c)] =
            c < columns ? set[t * columns + c] : 0;
        tokenScale[s * capacity + t] = 0.01 + 0.02 * Math.abs(next());
      }
    });
    const featureScale = floats(rows, () => 0.001 + Math.abs(next()) * 0.01);
    const bias = given.bias ? floats(rows, next) : undefined;
    const features = gated ? rows / 2 : rows;
    const before = floats(tokens * features, next);
    const width = given.halves ? 2 : 4;
    const out = given.accumulate ? device.put(before) : poisoned(device, tokens * features * width);
    device.kernels.gemm({
      weights: device.put(packWeights(weights, columns, order, bits)),
      bits,
      order,
      columns,
      codes: device.put(packedCodes),
      tokenScale: device.put(tokenScale),
      featureScale: device.put(orderFeatures(featureScale, order, 1)),
      bias: bias && device.put(orderFeatures(bias, order, 0)),
      out,
      outStride: features,
      halves: given.halves,
      accumulate: given.accumulate,
      tokens,
      capacity,
      setTiles: given.sets,
      split: given.split,
      plain: given.plain,
    });
    const got = given.halves
      ? Float64Array.from(device.read(out, new Uint16Array(tokens * features)), fromHalf)
      : device.read(out, new Float32Array(tokens * features));
    const linear = (t: number, r: number): number => {
      const tile = Math.floor(r / 256);
      const s =
        given.sets && !gated ? (tile >= given.sets[1] ? 2 : tile >= given.sets[0] ? 1 : 0) : 0;
      let sum = 0;
      for (let c = 0; c < columns; c++) sum += codes[s][t * columns + c] * weights[r * columns + c];
      return sum * tokenScale[s * capacity + t] * featureScale[r] + (bias ? bias[r] : 0);
    };
    const worst = worstOf(tokens * features, (i) => {
      const t = Math.floor(i / features);
      const f = i % features;
      let want = linear(t, f);
      let size = Math.abs(want);
      if (gated) {
        const up = linear(t, features + f);
        size = Math.abs(want * up) + Math.abs(up);
        want = silu(want) * up;
      }
      if (given.accumulate) {
        size += Math.abs(before[i]);
        want += before[i];
      }
      // The integer sum is exact; what follows is some roundings in f32 (__expf's for SiLU) and one to a half.
      return Math.abs(got[i] - want) / ((given.halves ? 2 ** -10 : 2 ** -20) * size + 1e-6);
    });
    return worst;
  },
});

interface SiteCase {
  readonly shape: SiteShape;
  readonly tokens: number;
  readonly input: "plain" | "rms" | "gated" | "splits";
  readonly halves?: boolean;
  readonly bits?: 4 | 8;
  readonly precise?: boolean;
  readonly sets?: number;
  readonly splits?: number;
  /** Size of the values. */
  readonly size?: number;
}

const site = (given: SiteCase): Check => ({
  name: words(
    `site ${given.input} ${given.shape.left}×${given.shape.right}`,
    given.shape.hasLeft && "left",
    given.shape.hasRight && "right",
    `a${given.bits ?? 4} ×${given.tokens}`,
    given.halves && "halves",
    given.precise === false && "fast",
    given.sets !== undefined && `${given.sets} sets`,
  ),
  run: (device) => {
    const {
      shape,
      tokens,
      input,
      bits = 4,
      precise = true,
      sets = 1,
      splits = 1,
      size = 1,
    } = given;
    const { left, right, hasLeft, hasRight } = shape;
    const width = left * right;
    const next = generator(width + tokens);
    const capacity = roundUp(tokens, 8);
    const qmax = 2 ** (bits - 1) - 1;
    const square = (n: number) =>
      Array.from({ length: n * n }, () => roundHalf(next() / Math.sqrt(n)));
    const L = square(left);
    const R = square(right);
    const { rows: padLeft, columns: padRight } = siteGeometry(shape);
    // A few outliers, as activations have them.
    const draw = () => next() * size * (next() > 0.98 ? 30 : 1);
    let x = Float32Array.from({ length: tokens * width }, draw);
    let x2 = Float32Array.from({ length: tokens * width }, draw);
    if (given.halves) [x, x2] = [x.map(roundHalf), x2.map(roundHalf)];
    const upload = (data: Float32Array) => device.put(given.halves ? halves(data) : data);
    const gain = floats(width, () => 1 + next() / 2);
    let source = x;
    if (input === "splits") {
      // [token][head][split][right + 2]
      source = new Float32Array(tokens * left * splits * (right + 2));
      for (let i = 0; i < tokens * left * splits; i++) {
        for (let c = 0; c < right; c++) source[i * (right + 2) + c] = next();
        source[i * (right + 2) + right] = next() * 5;
        source[i * (right + 2) + right + 1] = 1 + Math.abs(next());
      }
      if (splits > 1) {
        // A split that saw nothing.
        source.fill(0, 0, right + 2);
        source[right] = -Infinity;
      }
    }
    const entering = (t: number): Float64Array => {
      const row = new Float64Array(width);
      for (let i = 0; i < width; i++) {
        if (input === "splits") {
          const base = (t * left + Math.floor(i / right)) * splits * (right + 2);
          let total = 0;
          for (let s = 0; s < splits; s++) {
            const part = source.subarray(base + s * (right + 2), base + (s + 1) * (right + 2));
            const weight = 2 ** part[right];
            total += weight * part[right + 1];
            row[i] += weight * part[i % right];
          }
          row[i] /= total;
        } else
          row[i] =
            input === "gated" ? silu(x[t * width + i]) * x2[t * width + i] : x[t * width + i];
      }
      if (input === "rms") {
        const square = row.reduce((sum, v) => sum + v * v, 0) / width;
        row.forEach((v, i) => (row[i] = (v / Math.sqrt(square + 1e-5)) * gain[i]));
      }
      return row;
    };
    const transform = (row: Float64Array, absolute: boolean): Float64Array => {
      const of = (v: number) => (absolute ? Math.abs(v) : v);
      let now = row.map(of);
      if (hasLeft) {
        const to = new Float64Array(width);
        for (let k = 0; k < left; k++)
          for (let i = 0; i < left; i++)
            for (let j = 0; j < right; j++)
              to[i * right + j] += of(L[k * left + i]) * now[k * right + j];
        now = to;
      }
      if (hasRight) {
        const to = new Float64Array(width);
        for (let i = 0; i < left; i++)
          for (let k = 0; k < right; k++)
            for (let j = 0; j < right; j++)
              to[i * right + j] += now[i * right + k] * of(R[k * right + j]);
        now = to;
      }
      return now;
    };
    const clips = Float32Array.from({ length: 2 * sets }, (_, i) => 1 - 0.05 * i);
    const codes = poisoned(device, sets * codeBytes(capacity, width));
    const scales = poisoned(device, sets * capacity * 4);
    device.kernels.site({
      shape,
      input,
      x: upload(source),
      x2: input === "gated" ? upload(x2) : undefined,
      halves: given.halves,
      tokens,
      stride: width,
      gain: input === "rms" ? device.put(gain) : undefined,
      epsilon: 1e-5,
      left: hasLeft ? device.put(paddedHalves(L, left, padLeft)) : undefined,
      right: hasRight ? device.put(paddedHalves(R, right, padRight)) : undefined,
      clips: device.put(clips),
      sets,
      capacity,
      codes,
      scales,
      splits,
      bits,
      precise,
    });
    const gotCodes = device.read(codes, new Int8Array(sets * codeBytes(capacity, width)));
    const gotScales = device.read(scales, new Float32Array(sets * capacity));
    let worst = 0;
    for (let t = 0; t < tokens; t++) {
      const row = entering(t);
      const want = transform(row, false);
      // Each product rounds its operands: 2⁻¹¹ of Σ|terms| with single halves, about 2⁻²¹ with two; f32 elsewhere.
      const reach = transform(row, true);
      const unit = precise ? 2 ** -19 : 2 ** -9.5;
      const hi = Math.max(
        0,
        want.reduce((a, b) => Math.max(a, b)),
      );
      const lo = Math.min(
        0,
        want.reduce((a, b) => Math.min(a, b)),
      );
      const slack = unit * Math.max(...reach) + 1e-30;
      for (let s = 0; s < sets; s++) {
        const top = Math.max(hi * clips[2 * s], -lo * clips[2 * s + 1]);
        const scale = gotScales[s * capacity + t];
        worst = Math.max(worst, Math.abs(scale * qmax - top) / slack);
        if (Number.isNaN(scale)) worst = Infinity;
        for (let i = 0; i < roundUp(width, 128); i++) {
          const code = gotCodes[s * codeBytes(capacity, width) + codeOffset(capacity, t, i)];
          if (i >= width) {
            if (code !== 0) worst = Infinity;
            continue;
          }
          const ideal = Math.min(Math.max(want[i] / scale, -qmax - 1), qmax);
          const over = Math.abs(code - ideal) - 0.5;
          worst = Math.max(worst, over / ((unit * reach[i]) / scale + 1e-5));
        }
      }
    }
    return worst;
  },
});

interface Sequence {
  readonly start: number;
  readonly rows: number;
}

interface AttentionCase {
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly kept: 4 | 16;
  readonly sequences: readonly Sequence[];
  readonly matrix?: boolean;
  readonly norm?: boolean;
  readonly window?: number;
  readonly splits?: number;
  /** q, k and v come as halves, which makes the products with matrices products of single halves. */
  readonly halves?: boolean;
}

/** Reads a head's cached keys and values of one position. */
function cached(
  bytes: Uint8Array,
  headDim: number,
  kept: 4 | 16,
  slot: number,
): { key: Float64Array; value: Float64Array; steps: readonly [number, number] } {
  const layout = pageLayout(headDim, kept);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const key = new Float64Array(headDim);
  const value = new Float64Array(headDim);
  const j = slot >> 3;
  const t = (slot % 8) >> 1;
  const e = slot % 2;
  for (let c = 0; c < headDim; c++) {
    if (kept === 16) {
      key[c] = fromHalf(view.getUint16((slot * headDim + c) * 2, true));
      const word = (((c >> 3) * 2 + (j >> 2)) * 32 + (c % 8) * 4 + t) * 4 + (j % 4);
      value[c] = fromHalf(view.getUint16(layout.values + word * 4 + e * 2, true));
    } else {
      const within = c % 8;
      const word = view.getUint32(((slot * headDim + c) >> 3) * 4, true);
      key[c] = (word >>> (4 * ((within >> 1) + 4 * (within % 2)))) & 15;
      const group = ((c >> 4) * 8 + (c % 8)) * 4 + t;
      const at = layout.values + group * 16 + ((c >> 3) % 2) * 8 + (j >> 2) * 4;
      value[c] = (view.getUint32(at, true) >>> (4 * ((j % 4) + 4 * e))) & 15;
    }
  }
  if (kept === 16) return { key, value, steps: [0, 0] };
  const keyScale = view.getFloat32(layout.keyScale + slot * 4, true);
  const valueScale = view.getFloat32(layout.valueScale + slot * 4, true);
  const keyZero = fromHalf(view.getUint16(layout.keyZero + slot * 2, true));
  const valueZero = fromHalf(view.getUint16(layout.valueZero + slot * 2, true));
  return {
    key: key.map((code) => keyScale * (code - keyZero)),
    value: value.map((code) => valueScale * (code - valueZero)),
    steps: [keyScale, valueScale],
  };
}

/** heads, then both attention kernels, on a cache whose earlier positions were written by an earlier call. */
const attention = (given: AttentionCase): Check => ({
  name: words(
    `attention ${given.heads}/${given.kvHeads}×${given.headDim} kv${given.kept}`,
    `[${given.sequences.map(({ start, rows }) => `${start}+${rows}`).join(" ")}]`,
    given.matrix && "matrix",
    given.norm && "norm",
    given.halves && "halves",
    given.window !== undefined && `window ${given.window}`,
    given.splits !== undefined && `${given.splits} splits`,
  ),
  run: (device) => {
    const { headDim, heads, kvHeads, kept, sequences, window = 0 } = given;
    const next = generator(headDim * heads + kvHeads + sequences.length);
    const layout = pageLayout(headDim, kept);
    const pageBytes = kvHeads * layout.bytes;
    const pagesOf = sequences.map(({ start, rows }) => Math.ceil((start + rows) / PAGE_TOKENS));
    const pageTotal = pagesOf.reduce((a, b) => a + b, 0);
    // Pages in reverse, so that order is not taken for granted.
    const pageLists: number[][] = [];
    let free = pageTotal;
    for (const count of pagesOf) pageLists.push(Array.from({ length: count }, () => --free));
    const cache = poisoned(device, pageTotal * pageBytes);
    const half = headDim / 2;
    const square = () =>
      Array.from({ length: headDim * headDim }, () => roundHalf(next() / Math.sqrt(headDim)));
    const qMatrix = square();
    const kMatrix = square();
    const qGain = floats(headDim, () => 1 + next() / 2);
    const kGain = floats(headDim, () => 1 + next() / 2);
    const factors = Float32Array.of(0.98, 0.97, 0.99, 0.96);
    const levels = 15;
    // Rows of single halves: 2⁻¹¹·Σ|x·P|, with |x| ≤ 4 and Σ|P| ≤ √headDim.
    const single = Boolean(given.halves && given.matrix);
    const matrices = given.matrix
      ? {
          qMatrix: device.put(paddedHalves(qMatrix, headDim, headDim)),
          kMatrix: device.put(paddedHalves(kMatrix, headDim, headDim)),
        }
      : {};
    const gains = given.norm ? { qGain: device.put(qGain), kGain: device.put(kGain) } : {};
    const angle = (position: number, i: number) => position / 10000 ** (i / half);
    let worst = 0;
    const note = (error: number) =>
      (worst = Number.isNaN(error) ? Infinity : Math.max(worst, error));

    interface Rows {
      readonly sequence: number;
      readonly position: number;
    }
    const prepared = (
      x: Float64Array,
      position: number,
      gain: Float32Array,
      matrix: number[],
    ): Float64Array => {
      let v = x;
      if (given.norm) {
        const inverse = 1 / Math.sqrt(v.reduce((sum, a) => sum + a * a, 0) / headDim + 1e-5);
        v = v.map((a, i) => a * inverse * gain[i]);
      }
      const turned = new Float64Array(headDim);
      for (let i = 0; i < half; i++) {
        const [c, s] = [Math.cos(angle(position, i)), Math.sin(angle(position, i))];
        turned[i] = v[i] * c - v[half + i] * s;
        turned[half + i] = v[half + i] * c + v[i] * s;
      }
      if (!given.matrix) return turned;
      const out = new Float64Array(headDim);
      for (let k = 0; k < headDim; k++)
        for (let j = 0; j < headDim; j++) out[j] += turned[k] * matrix[k * headDim + j];
      return out;
    };
    const run = (rows: readonly Rows[], outHalves: boolean) => {
      const count = rows.length;
      const q = floats(count * heads * headDim, next, 2);
      const k = floats(count * kvHeads * headDim, next, 2);
      const v = floats(count * kvHeads * headDim, next, 0.02);
      if (given.halves)
        for (const x of [q, k, v]) x.forEach((value, i) => (x[i] = roundHalf(value)));
      const upload = (x: Float32Array) => device.put(given.halves ? halves(x) : x);
      // Tasks: up to 64 rows, never a part of a page's.
      const tasks: number[] = [];
      const stretchEnd = (from: number) => {
        let end = from + 1;
        const page = (r: Rows) => pageLists[r.sequence][r.position >> 6];
        while (end < count && page(rows[end]) === page(rows[from])) end++;
        return end;
      };
      for (let row = 0; row < count;) {
        let end = stretchEnd(row);
        while (end < count && stretchEnd(end) - row <= 64) end = stretchEnd(end);
        tasks.push(row, end - row);
        row = end;
      }
      const out = poisoned(device, count * heads * headDim * (outHalves ? 2 : 4));
      device.kernels.heads({
        headDim,
        heads,
        kvHeads,
        kept,
        tasks: device.put(Int32Array.from(tasks)),
        taskCount: tasks.length / 2,
        pageOf: device.put(Int32Array.from(rows, (r) => pageLists[r.sequence][r.position >> 6])),
        slotOf: device.put(Int32Array.from(rows, (r) => r.position & 63)),
        q: upload(q),
        qStride: heads * headDim,
        k: upload(k),
        v: upload(v),
        kvStride: kvHeads * headDim,
        halves: given.halves ?? false,
        ...gains,
        epsilon: 1e-5,
        cosine: device.put(
          Float32Array.from({ length: count * half }, (_, i) =>
            Math.cos(angle(rows[Math.floor(i / half)].position, i % half)),
          ),
        ),
        sine: device.put(
          Float32Array.from({ length: count * half }, (_, i) =>
            Math.sin(angle(rows[Math.floor(i / half)].position, i % half)),
          ),
        ),
        ...matrices,
        factors: device.put(factors),
        levels,
        out,
        outHalves,
        cache,
        pageBytes,
      });
      const queries = outHalves
        ? Float64Array.from(device.read(out, new Uint16Array(count * heads * headDim)), fromHalf)
        : Float64Array.from(device.read(out, new Float32Array(count * heads * headDim)));
      const pages = device.read(cache, new Uint8Array(pageTotal * pageBytes));
      rows.forEach(({ sequence, position }, r) => {
        for (let h = 0; h < heads; h++) {
          const at = (r * heads + h) * headDim;
          const want = prepared(
            Float64Array.from(q.subarray(at, at + headDim)),
            position,
            qGain,
            qMatrix,
          );
          want.forEach((w, i) =>
            note(
              Math.abs(queries[at + i] - w) /
                ((outHalves ? 2 ** -10 * Math.abs(w) : 0) + (single ? 8e-3 : 2e-5)),
            ),
          );
        }
        for (let h = 0; h < kvHeads; h++) {
          const page = pageLists[sequence][position >> 6];
          const got = cached(
            pages.subarray(
              page * pageBytes + h * layout.bytes,
              page * pageBytes + (h + 1) * layout.bytes,
            ),
            headDim,
            kept,
            position & 63,
          );
          const at = (r * kvHeads + h) * headDim;
          const key = prepared(
            Float64Array.from(k.subarray(at, at + headDim)),
            position,
            kGain,
            kMatrix,
          );
          const value = Float64Array.from(v.subarray(at, at + headDim));
          [key, value].forEach((want, part) => {
            const codes = part === 0 ? got.key : got.value;
            if (kept === 16) {
              want.forEach((w, i) =>
                note(Math.abs(codes[i] - w) / (2 ** -10 * Math.abs(w) + 1e-5)),
              );
              return;
            }
            const hi = Math.max(0, ...want) * factors[2 * part];
            const lo = Math.min(0, ...want) * factors[2 * part + 1];
            const step = (hi - lo) / levels;
            note(Math.abs(got.steps[part] - step) / ((single ? 1e-2 : 1e-4) * step));
            const zero = Math.round(-lo / step);
            want.forEach((w, i) => {
              // The code nearest to w among 0 … 15, up to the position of the value between two codes.
              const place = Math.min(Math.max(w / step + zero, 0), levels) - zero;
              note(
                (Math.abs(codes[i] / got.steps[part] - place) - 0.5) /
                  (single && part === 0 ? 5e-2 : 2e-3),
              );
            });
          });
        }
      });
      return { queries, pages, out };
    };

    // What is in the cache already, then the rows of this step.
    const history = sequences.flatMap(({ start }, sequence) =>
      Array.from({ length: start }, (_, position) => ({ sequence, position })),
    );
    if (history.length > 0) run(history, false);
    const rows = sequences.flatMap(({ start, rows: count }, sequence) =>
      Array.from({ length: count }, (_, i) => ({ sequence, position: start + i })),
    );
    const decoding = sequences.every((s) => s.rows === 1);
    const { queries, pages, out } = run(rows, !decoding);
    const offsets: number[] = [];
    pagesOf.reduce((sum, count) => (offsets.push(sum), sum + count), 0);
    const pageList = device.put(Int32Array.from(pageLists.flat()));
    const common = {
      headDim,
      heads,
      kvHeads,
      kept,
      q: out,
      pages: pageList,
      window,
      cache,
      pageBytes,
    };
    const got = poisoned(device, rows.length * heads * headDim * 4);
    if (decoding) {
      const splits = given.splits ?? 1;
      const partial = poisoned(device, rows.length * heads * splits * (headDim + 2) * 4);
      const table = sequences.flatMap(({ start }, s) => [s, start + 1, offsets[s]]);
      device.kernels.attendDecode({
        ...common,
        sequences: device.put(Int32Array.from(table)),
        count: sequences.length,
        splits,
        partial,
      });
      device.kernels.joinSplits({
        partial,
        rows: rows.length,
        heads,
        headDim,
        splits,
        out: got,
        halves: false,
      });
    } else {
      const blocks: number[] = [];
      let row = 0;
      sequences.forEach(({ start, rows: count }, s) => {
        for (let from = 0; from < count; from += 128)
          blocks.push(row + from, Math.min(128, count - from), start + from, offsets[s]);
        row += count;
      });
      device.kernels.attendPrefill({
        ...common,
        blocks: device.put(Int32Array.from(blocks)),
        blockCount: blocks.length / 4,
        out: got,
        outHalves: false,
      });
    }
    const mixed = device.read(got, new Float32Array(rows.length * heads * headDim));
    rows.forEach(({ sequence, position }, r) => {
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads));
        const first = window > 0 ? Math.max(0, position - window + 1) : 0;
        const seen = Array.from({ length: position - first + 1 }, (_, i) => {
          const page = pageLists[sequence][(first + i) >> 6];
          return cached(
            pages.subarray(
              page * pageBytes + kv * layout.bytes,
              page * pageBytes + (kv + 1) * layout.bytes,
            ),
            headDim,
            kept,
            (first + i) & 63,
          );
        });
        const query = queries.subarray((r * heads + h) * headDim, (r * heads + h + 1) * headDim);
        const scores = seen.map(
          ({ key }) => key.reduce((sum, a, i) => sum + a * query[i], 0) / Math.sqrt(headDim),
        );
        const top = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - top));
        const total = weights.reduce((a, b) => a + b, 0);
        for (let i = 0; i < headDim; i++) {
          const want = weights.reduce((sum, w, s) => sum + w * seen[s].value[i], 0) / total;
          const size =
            weights.reduce((sum, w, s) => sum + w * Math.abs(seen[s].value[i]), 0) / total;
          // Decoding is as good as f32; prefill rounds weights (and its queries, which the definition reads) to halves.
          note(
            Math.abs(mixed[(r * heads + h) * headDim + i] - want) /
              ((decoding ? 3e-5 : 2e-3) * size + 1e-7),
          );
        }
      }
    });
    return worst;
  },
});

const both = { hasLeft: true, hasRight: true };

export const CHECKS: readonly Check[] = [
  ...[1, 8, 13, 37, 64].flatMap((tokens) => [
    gemm({ tokens, rows: 256, columns: 128 }),
    gemm({ tokens, rows: 300, columns: 1000, split: 2 }),
  ]),
  gemm({ tokens: 5, rows: 512, columns: 1024, split: 8, bias: true }),
  gemm({ tokens: 16, rows: 512, columns: 1376, split: 4, halves: true }),
  gemm({ tokens: 64, rows: 256, columns: 1376, split: 8, accumulate: true }),
  gemm({ tokens: 3, rows: 400, columns: 640, split: 4, gated: true, halves: true }),
  gemm({ tokens: 33, rows: 400, columns: 640, split: 2, gated: true }),
  gemm({ tokens: 9, rows: 768, columns: 256, sets: [1, 2] }),
  gemm({ tokens: 130, rows: 300, columns: 200 }),
  gemm({ tokens: 200, rows: 256, columns: 1152, halves: true, bias: true }),
  gemm({ tokens: 256, rows: 512, columns: 512, accumulate: true }),
  gemm({ tokens: 129, rows: 700, columns: 384, gated: true, halves: true }),
  gemm({ tokens: 129, rows: 512, columns: 384, gated: true }),
  gemm({ tokens: 140, rows: 768, columns: 256, sets: [1, 2], halves: true }),
  // More tiles than multiprocessors, so that a block has several.
  gemm({ tokens: 300, rows: 12800, columns: 256, halves: true, bias: true }),
  gemm({ tokens: 260, rows: 11600, columns: 1000, accumulate: true }),
  gemm({ tokens: 400, rows: 9216, columns: 128, gated: true, halves: true }),
  gemm({ tokens: 7, rows: 300, columns: 200, bits: 8, split: 1 }),
  gemm({ tokens: 64, rows: 256, columns: 1024, bits: 8, split: 2 }),
  gemm({ tokens: 150, rows: 300, columns: 640, bits: 8 }),
  gemm({ tokens: 70, rows: 300, columns: 200, plain: true }),
  gemm({ tokens: 5, rows: 512, columns: 384, plain: true, gated: true, halves: true }),
  gemm({ tokens: 20, rows: 256, columns: 384, plain: true, bits: 8, accumulate: true }),
  site({ shape: { left: 64, right: 64, ...both }, tokens: 5, input: "rms" }),
  site({ shape: { left: 64, right: 64, ...both }, tokens: 300, input: "rms", precise: false }),
  site({ shape: { left: 86, right: 128, ...both }, tokens: 3, input: "plain", halves: true }),
  site({ shape: { left: 86, right: 128, ...both }, tokens: 3, input: "gated", size: 3 }),
  // More rows than blocks.
  site({
    shape: { left: 86, right: 128, ...both },
    tokens: 270,
    input: "plain",
    halves: true,
    precise: false,
  }),
  site({ shape: { left: 64, right: 64, ...both }, tokens: 600, input: "rms", precise: false }),
  site({
    shape: { left: 22, right: 24, ...both },
    tokens: 5,
    input: "gated",
    halves: true,
    precise: false,
  }),
  site({
    shape: { left: 22, right: 24, ...both },
    tokens: 5,
    input: "plain",
    halves: true,
    precise: false,
    size: 1e-5,
    sets: 2,
  }),
  site({ shape: { left: 16, right: 16, ...both }, tokens: 9, input: "rms", bits: 8, sets: 3 }),
  site({ shape: { left: 22, right: 32, ...both }, tokens: 9, input: "gated", sets: 2 }),
  site({ shape: { left: 7, right: 11, ...both }, tokens: 4, input: "plain", size: 1e6 }),
  site({
    shape: { left: 1, right: 96, hasLeft: false, hasRight: false },
    tokens: 4,
    input: "plain",
  }),
  site({
    shape: { left: 8, right: 32, hasLeft: true, hasRight: false },
    tokens: 4,
    input: "splits",
    splits: 3,
  }),
  site({
    shape: { left: 32, right: 128, hasLeft: true, hasRight: false },
    tokens: 2,
    input: "splits",
    splits: 1,
  }),
  site({
    shape: { left: 32, right: 128, hasLeft: true, hasRight: false },
    tokens: 2,
    input: "plain",
    halves: true,
    precise: false,
  }),
  attention({ headDim: 32, heads: 8, kvHeads: 4, kept: 4, sequences: [{ start: 0, rows: 5 }] }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 37, rows: 100 },
      { start: 0, rows: 150 },
    ],
    matrix: true,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 70, rows: 3 },
      { start: 10, rows: 20 },
    ],
    matrix: true,
    norm: true,
    window: 40,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 16,
    sequences: [{ start: 20, rows: 140 }],
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [{ start: 0, rows: 200 }],
    matrix: true,
    halves: true,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 16,
    sequences: [{ start: 5, rows: 80 }],
    halves: true,
  }),
  attention({
    headDim: 96,
    heads: 4,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 3, rows: 70 },
      { start: 0, rows: 9 },
    ],
    matrix: true,
  }),
  attention({
    headDim: 128,
    heads: 2,
    kvHeads: 1,
    kept: 4,
    sequences: [
      { start: 100, rows: 130 },
      { start: 0, rows: 128 },
      { start: 200, rows: 150 },
    ],
    halves: true,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 1,
    kept: 16,
    sequences: [{ start: 30, rows: 250 }],
    halves: true,
    window: 100,
  }),
  attention({
    headDim: 64,
    heads: 2,
    kvHeads: 2,
    kept: 4,
    sequences: Array.from({ length: 20 }, (_, i) => ({ start: 3 * i + 40, rows: 1 })),
    matrix: true,
    norm: true,
    splits: 2,
  }),
  attention({
    headDim: 128,
    heads: 4,
    kvHeads: 4,
    kept: 4,
    sequences: [
      { start: 200, rows: 1 },
      { start: 63, rows: 1 },
      { start: 64, rows: 1 },
      { start: 0, rows: 1 },
    ],
    matrix: true,
    splits: 3,
  }),
  attention({
    headDim: 128,
    heads: 12,
    kvHeads: 1,
    kept: 4,
    sequences: [{ start: 300, rows: 1 }],
    splits: 2,
  }),
  attention({
    headDim: 64,
    heads: 8,
    kvHeads: 2,
    kept: 4,
    sequences: [
      { start: 150, rows: 1 },
      { start: 5, rows: 1 },
    ],
    window: 50,
  }),
  attention({
    headDim: 32,
    heads: 8,
    kvHeads: 4,
    kept: 16,
    sequences: [
      { start: 130, rows: 1 },
      { start: 1, rows: 1 },
    ],
    splits: 2,
  }),
  attention({
    headDim: 128,
    heads: 8,
    kvHeads: 8,
    kept: 16,
    sequences: [{ start: 500, rows: 1 }],
    splits: 4,
  }),
];
