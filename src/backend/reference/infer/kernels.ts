/**
 * What the engine's fused kernels compute, as compositions of the kernels that every backend has. On the reference
 * backend these are the plain definitions; on a fast backend they are the simulated model's own arithmetic.
 */
import type { Backend, Buffer, RealArray } from "../../contract/training.js";
import type { QuantizedMatrix } from "../../contract/packed.js";
import type {
  CacheWriteArgs,
  GroupProductArgs,
  PagedAttentionArgs,
  SiteArgs,
} from "../../contract/inference-kernels.js";

/** Buffers of one computation, freed together. */
class Workspace {
  private readonly buffers: Buffer[] = [];
  constructor(readonly backend: Backend) {}
  room(length: number): Buffer {
    const buffer = this.backend.alloc(this.backend.realType, length);
    this.buffers.push(buffer);
    return buffer;
  }
  codes(length: number): Buffer {
    const buffer = this.backend.alloc("i8", length);
    this.buffers.push(buffer);
    return buffer;
  }
  put(values: ArrayLike<number>): Buffer;
  put(values: ArrayLike<number> | undefined): Buffer | undefined;
  put(values: ArrayLike<number> | undefined): Buffer | undefined {
    if (!values) return undefined;
    const buffer = this.room(values.length);
    const array =
      this.backend.realType === "f64" ? Float64Array.from(values) : Float32Array.from(values);
    this.backend.write(buffer, array);
    return buffer;
  }
  read(buffer: Buffer): RealArray {
    return this.backend.read(buffer) as RealArray;
  }
  free(): void {
    for (const buffer of this.buffers) this.backend.free(buffer);
  }
}

/** Norm or MLP activation, Kronecker transform, then for each pair of clips codes and scales per row or group. */
export function defineSite(
  backend: Backend,
  args: Omit<SiteArgs, "codes" | "scale" | "offset" | "out">,
): { values: RealArray; codes: Int8Array[]; scales: RealArray[] } {
  const { rows, nLeft, nRight, input, bits } = args;
  const cols = nLeft * nRight;
  const length = rows * cols;
  const space = new Workspace(backend);
  const { kernels } = backend;
  let x = space.put(args.x);
  const next = space.room(length);
  if (input === "rms" || input === "layer") {
    const gain = space.put(args.gain ?? new Float32Array(cols).fill(1));
    kernels.norm({
      kind: input,
      x,
      rows,
      cols,
      gain,
      bias: space.put(args.bias),
      epsilon: args.epsilon ?? 0,
      out: next,
    });
    x = next;
  } else if (input === "gated" && args.activation === "silu") {
    kernels.siluMul({ gate: x, up: space.put(args.x2 ?? []), length, out: next });
    x = next;
  } else if (input !== "plain") {
    kernels.unary({ op: args.activation ?? "silu", x, length, out: next });
    x = next;
    if (input === "gated") {
      const out = space.room(length);
      kernels.binary({
        op: "mul",
        rows,
        cols,
        a: x,
        b: space.put(args.x2 ?? []),
        broadcast: "full",
        out,
      });
      x = out;
    }
  }
  if (args.left || args.right) {
    const out = space.room(length);
    kernels.kronecker({
      x,
      rows,
      nLeft,
      nRight,
      left: space.put(args.left),
      right: space.put(args.right),
      precision: "f32",
      out,
    });
    x = out;
  }
  const codes: Int8Array[] = [];
  const scales: RealArray[] = [];
  if (bits < 16)
    for (const [max, min] of args.clips) {
      const clipped = Number.isFinite(max);
      const target = space.codes(length);
      const { span = cols } = args;
      const scale = space.room(length / span);
      kernels.quantizeRows({
        x,
        rows: length / span,
        cols: span,
        bits,
        clipMax: clipped ? space.put([max]) : undefined,
        clipMin: clipped ? space.put([min]) : undefined,
        scaleFloor: 0,
        codes: target,
        scale,
      });
      codes.push(Int8Array.from(backend.read(target) as Int8Array));
      scales.push(space.read(scale).slice());
    }
  const values = space.read(x).slice();
  space.free();
  return { values, codes, scales };
}

/** The numbers that a matrix [rows, columns] of codes stands for, in float64. */
export function dequantized(matrix: QuantizedMatrix, columns: number): Float64Array {
  const { codes, scale, offset, group = columns } = matrix;
  return Float64Array.from(codes, (code, at) => {
    const of = Math.floor(at / group);
    // Codes beside offsets begin at 0 and may fill the byte.
    return offset ? scale[of] * (code & 0xff) + offset[of] : scale[of] * code;
  });
}

/** Codes with scales by weights with scales per group, each taken for the number it stands for: float64 [m, n]. */
export function defineGroupProduct(
  args: Pick<GroupProductArgs, "m" | "a" | "span" | "aScale" | "aOffset" | "bias">,
  weights: QuantizedMatrix,
  n: number,
): Float64Array {
  const { m, a, span, aScale, aOffset, bias } = args;
  const k = a.length / m;
  const w = dequantized(weights, k);
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = bias?.[j] ?? 0;
      for (let c = 0; c < k; c++) {
        const of = Math.floor((i * k + c) / span);
        sum += (aScale[of] * a[i * k + c] + (aOffset?.[of] ?? 0)) * w[j * k + c];
      }
      out[i * n + j] = sum;
    }
  return out;
}

/** Head norm, rotary embedding and matrix of [rows, heads·headDim]. */
function preparedHeads(
  space: Workspace,
  values: Float32Array,
  heads: number,
  args: CacheWriteArgs,
  gain: Float32Array | undefined,
  matrix: Float32Array | undefined,
  balance: { readonly shift?: Float32Array; readonly factor?: RealArray },
): Buffer {
  const { headDim, kvHeads } = args;
  const { kernels } = space.backend;
  const lines = values.length / headDim;
  let x = space.put(values);
  const step = (run: (from: Buffer, to: Buffer) => void) => {
    const out = space.room(values.length);
    run(x, out);
    x = out;
  };
  if (gain)
    step((from, out) =>
      kernels.norm({
        kind: "rms",
        x: from,
        rows: lines,
        cols: headDim,
        gain: space.put(gain),
        epsilon: args.epsilon ?? 0,
        out,
      }),
    );
  if (args.cosine && args.sine) {
    const [cos, sin] = [space.put(args.cosine), space.put(args.sine)];
    const rows = lines / heads;
    step((from, out) =>
      kernels.rope({ x: from, rows, heads, headDim, period: rows, cos, sin, inverse: false, out }),
    );
  }
  // One value per column of a row's heads, from those of the KV heads.
  const byColumn = (op: "sub" | "mul", values: RealArray) => {
    const cols = heads * headDim;
    const each = Float64Array.from(
      { length: cols },
      (_, i) =>
        values[Math.floor((Math.floor(i / headDim) * kvHeads) / heads) * headDim + (i % headDim)],
    );
    step((from, out) =>
      kernels.binary({
        op,
        rows: lines / heads,
        cols,
        a: from,
        b: space.put(each),
        broadcast: "row",
        out,
      }),
    );
  };
  if (balance.shift) byColumn("sub", balance.shift);
  if (balance.factor) byColumn("mul", balance.factor);
  if (matrix)
    step((from, out) =>
      kernels.kronecker({
        x: from,
        rows: lines,
        nLeft: 1,
        nRight: headDim,
        right: space.put(matrix),
        precision: "f32",
        out,
      }),
    );
  return x;
}

/** 1/x as the backend has it. */
function reciprocals(space: Workspace, values: Float32Array): RealArray {
  const out = space.room(values.length);
  const x = space.put(values);
  space.backend.kernels.unary({ op: "reciprocal", x, length: values.length, out });
  return space.read(out).slice();
}

/** Queries as attention reads them, keys and values as a cache returns them (halves are not rounded here). */
export function defineCacheWrite(
  backend: Backend,
  args: CacheWriteArgs,
): { q: RealArray; k: RealArray; v: RealArray } {
  const { heads, kvHeads, headDim, queryBits, clips, cache } = args;
  const space = new Workspace(backend);
  const { kernels } = backend;
  const inverse = args.kDiag && reciprocals(space, args.kDiag);
  let q = preparedHeads(space, args.q, heads, args, args.qGain, args.qMatrix, { factor: inverse });
  if (queryBits < 16) {
    const rows = args.q.length / headDim;
    const [codes, scale, out] = [
      space.codes(args.q.length),
      space.room(rows),
      space.room(args.q.length),
    ];
    kernels.quantizeRows({
      x: q,
      rows,
      cols: headDim,
      bits: queryBits,
      scaleFloor: 0,
      codes,
      scale,
    });
    kernels.dequantizeRows({ codes, scale, rows, cols: headDim, out });
    q = out;
  }
  const cached = (x: Buffer, length: number, [max, min]: readonly [number, number]): Buffer => {
    if (cache.bits >= 16) return x;
    const out = space.room(length);
    const clipped = Number.isFinite(max);
    kernels.fakeQuantizeAsym({
      x,
      rows: length / headDim,
      cols: headDim,
      bits: cache.bits,
      clipMax: clipped ? space.put([max]) : undefined,
      clipMin: clipped ? space.put([min]) : undefined,
      out,
    });
    return out;
  };
  const keys = preparedHeads(space, args.k, kvHeads, args, args.kGain, args.kMatrix, {
    shift: args.kShift,
    factor: args.kDiag,
  });
  const result = {
    q: space.read(q).slice(),
    k: space.read(cached(keys, args.k.length, [clips[0], clips[1]])).slice(),
    v: space.read(cached(space.put(args.v), args.v.length, [clips[2], clips[3]])).slice(),
  };
  space.free();
  return result;
}

/** Attention of `time` rows of one sequence over all its keys, which end with the rows' own. */
export function defineAttention(
  backend: Backend,
  {
    heads,
    kvHeads,
    headDim,
    window,
  }: Pick<PagedAttentionArgs, "heads" | "kvHeads" | "headDim" | "window">,
  q: RealArray,
  k: RealArray,
  v: RealArray,
): RealArray {
  const space = new Workspace(backend);
  const width = heads * headDim;
  const kvWidth = kvHeads * headDim;
  const out = space.room(q.length);
  const layout = (columns: number, length: number) => ({
    batchStride: length,
    timeStride: columns,
    headStride: headDim,
  });
  backend.kernels.attention({
    batch: 1,
    heads,
    kvHeads,
    headDim,
    queryLength: q.length / width,
    keyLength: k.length / kvWidth,
    causal: true,
    window,
    scale: 1 / Math.sqrt(headDim),
    q: space.put(q),
    qLayout: layout(width, q.length),
    k: space.put(k),
    v: space.put(v),
    kvLayout: layout(kvWidth, k.length),
    out,
    outLayout: layout(width, q.length),
    precision: "f32",
  });
  const result = space.read(out).slice();
  space.free();
  return result;
}
