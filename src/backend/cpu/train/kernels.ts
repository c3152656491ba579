/**
 * The CPU backend's kernels: those of the ABI's table as they are, with what the table cannot say of them. The matrix
 * products stand in matmul.ts.
 */
import type { AttentionArgs, Buffer, HeadLayout, Kernels } from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { checkFlattenRows } from "../../contract/flatten-check.js";
import { recurrenceWords } from "../../contract/recurrent.js";
import type { NativeLibrary } from "../../contract/native-library.js";
import { copyArrays } from "../mapping.js";
import { matmulKernels } from "./matmul.js";
import { nativeBuffer } from "../memory.js";
import { nativeKernels } from "../native-kernels.js";

/** Symmetric codes are stored in 8 bits; the asymmetric grid is only simulated, but its zero point must stay exact. */
function checkBits(bits: number, what: string): void {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8)) {
    throw new PlanishError(`${what}: bits is ${bits}; give 2 … 8`);
  }
}

interface ScalarGrid {
  readonly bits: number;
  readonly clipMax?: Buffer;
  readonly clipMin?: Buffer;
}

/** A grid's bits, and its scalar clipping logits: both or neither. */
function checkGrid({ bits, clipMax, clipMin }: ScalarGrid, what: string): void {
  checkBits(bits, what);
  if ((clipMax === undefined) !== (clipMin === undefined))
    throw new PlanishError(`${what}: clipMax and clipMin go together`);
}

function checkLength(buffer: Buffer, length: number, what: string): void {
  if (!(length >= 0 && length <= buffer.length))
    throw new PlanishError(`${what} has ${buffer.length} elements; it needs ${length}`);
}

type Strides<P extends string> = Readonly<Record<`${P}${"Batch" | "Time" | "Head"}`, number>>;

function strides<P extends string>(
  name: P,
  { batchStride, timeStride, headStride }: HeadLayout,
): Strides<P> {
  return {
    [`${name}Batch`]: batchStride,
    [`${name}Time`]: timeStride,
    [`${name}Head`]: headStride,
  } as Strides<P>;
}

/** What attention and its gradient say in words of the ABI. */
function attentionWords(args: AttentionArgs) {
  return {
    window: args.window ?? 0,
    chunk: args.chunk ?? 0,
    softcap: args.softcap ?? 0,
    ...strides("q", args.qLayout),
    ...strides("kv", args.kvLayout),
    ...strides("out", args.outLayout),
    half: args.precision === "bf16",
  };
}

interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
}

function checkHeads({ heads, kvHeads }: Heads, what: string): void {
  if (kvHeads < 1 || kvHeads > heads)
    throw new PlanishError(
      `${what}: ${heads} heads cannot share ${kvHeads} KV heads; give 1 … ${heads}`,
    );
}

export function cpuKernels(library: NativeLibrary): Kernels {
  const native = nativeKernels(library);
  return {
    ...matmulKernels(native),
    quantizeRows(args) {
      checkGrid(args, "quantizeRows");
      native.quantizeRows(args);
    },
    quantizeRowsBackward(args) {
      checkGrid(args, "quantizeRowsBackward");
      native.quantizeRowsBackward(args);
    },
    dequantizeRows: native.dequantizeRows,
    flattenRows(args) {
      checkFlattenRows(args);
      native.flattenRows(args);
    },
    fakeQuantizeAsym(args) {
      checkGrid(args, "fakeQuantizeAsym");
      native.fakeQuantizeAsym(args);
    },
    fakeQuantizeAsymBackward(args) {
      checkGrid(args, "fakeQuantizeAsymBackward");
      native.fakeQuantizeAsymBackward(args);
    },
    fakeQuantizeOffset(args) {
      checkGrid(args, "fakeQuantizeOffset");
      native.fakeQuantizeOffset(args);
    },
    fakeQuantizeOffsetBackward(args) {
      checkGrid(args, "fakeQuantizeOffsetBackward");
      native.fakeQuantizeOffsetBackward(args);
    },
    clipRows: native.clipRows,
    clipRowsBackward: native.clipRowsBackward,
    // `precision` is not passed on: the products are too small for 16 bits to save time, they are always done in f32.
    kronecker: native.kronecker,
    kroneckerBackward: native.kroneckerBackward,
    norm: (args) => native.norm({ ...args, groups: 1 }),
    normBackward: native.normBackward,
    rope(args) {
      if (args.headDim % 2 !== 0)
        throw new PlanishError(`rope: headDim is ${args.headDim}; it must be even`);
      native.rope(args);
    },
    attention(args) {
      checkHeads(args, "attention");
      native.attention({ ...args, ...attentionWords(args) });
    },
    attentionBackward(args) {
      checkHeads(args, "attentionBackward");
      native.attentionBackward({ ...args, ...attentionWords(args) });
    },
    causalConv(args) {
      const { batch, taps, channels, state } = args;
      if (state) checkLength(state, batch * (taps - 1) * channels, "causalConv state");
      native.causalConv(args);
    },
    causalConvBackward: native.causalConvBackward,
    recurrence(args) {
      native.recurrence({ ...args, ...recurrenceWords(args) });
    },
    recurrenceBackward(args) {
      native.recurrenceBackward({ ...args, ...recurrenceWords(args) });
    },
    unary: native.unary,
    unaryBackward: native.unaryBackward,
    binary(args) {
      const { rows, cols, broadcast } = args;
      const lengths = { full: rows * cols, row: cols, column: rows, scalar: 1 };
      checkLength(args.b, lengths[broadcast], "binary b");
      native.binary(args);
    },
    reduce(args) {
      const { rows, cols, keep } = args;
      checkLength(args.out, { row: cols, column: rows, scalar: 1 }[keep], "reduce out");
      native.reduce(args);
    },
    columnMaxima({ rows, cols, x, out }) {
      // One pass over memory, a few times in a calibration: not worth a native kernel.
      checkLength(x, rows * cols, "columnMaxima x");
      checkLength(out, cols, "columnMaxima out");
      const [from, to] = [nativeBuffer(x), nativeBuffer(out)];
      const maxima = new Float32Array(cols);
      copyArrays(to.arrays(0, cols), [maxima]);
      let c = 0;
      for (const values of from.arrays(0, rows * cols))
        for (let i = 0; i < values.length; i++) {
          maxima[c] = Math.max(maxima[c], Math.abs(values[i]));
          if (++c === cols) c = 0;
        }
      copyArrays([maxima], to.arrays(0, cols));
    },
    scale: native.scale,
    siluMul: native.siluMul,
    siluMulBackward: native.siluMulBackward,
    mse: native.mse,
    nll: native.nll,
    softmaxKl: native.softmaxKl,
    gatherRows(args) {
      native.gatherRows({ ...args, tableRows: Math.floor(args.table.length / args.cols) });
    },
    adamW(args) {
      native.adamW({ ...args, bound: args.bound ?? -1 });
    },
    inverse: native.inverse,
    cayley: native.cayley,
    cayleyBackward: native.cayleyBackward,
  };
}
