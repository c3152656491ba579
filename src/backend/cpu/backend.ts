/**
 * The CPU backend: f32 in host memory, kernels from native/ at the best instruction-set level of the machine.
 *
 * Kernel bindings live in matmul.ts and kernels/*.ts; each module exports a function from the library to a part of the
 * kernel table, named in PARTS below.
 */
import type { Backend, Buffer, DType, HostArray, Kernels } from "../backend.js";
import { PlanishError } from "../../common/errors.js";
import { newHostArray } from "../host-memory.js";
import { loadNativeLibrary, type NativeLibrary } from "./library.js";
import { attentionKernels } from "./kernels/attention.js";
import { elementwiseKernels } from "./kernels/elementwise.js";
import { flattenKernels } from "./kernels/flatten.js";
import { kroneckerKernels } from "./kernels/kronecker.js";
import { linalgKernels } from "./kernels/linalg.js";
import { normKernels } from "./kernels/norm.js";
import { quantizeKernels } from "./kernels/quantize.js";
import { copyArrays } from "./mapping.js";
import { matmulKernels } from "./matmul.js";
import { NativeArena, NativeMemory, nativeBuffer } from "./memory.js";

/** Each part binds some of the kernels; together they must bind all. */
const PARTS: readonly ((library: NativeLibrary) => Partial<Kernels>)[] = [
  matmulKernels,
  quantizeKernels,
  flattenKernels,
  kroneckerKernels,
  normKernels,
  attentionKernels,
  elementwiseKernels,
  linalgKernels,
];

const KERNEL_NAMES = [
  "matmul",
  "intMatmul",
  "quantizeRows",
  "quantizeRowsBackward",
  "dequantizeRows",
  "flattenRows",
  "fakeQuantizeAsym",
  "fakeQuantizeAsymBackward",
  "clipRows",
  "clipRowsBackward",
  "kronecker",
  "kroneckerBackward",
  "norm",
  "normBackward",
  "rope",
  "attention",
  "attentionBackward",
  "unary",
  "unaryBackward",
  "binary",
  "reduce",
  "columnMaxima",
  "scale",
  "siluMul",
  "siluMulBackward",
  "mse",
  "nll",
  "softmaxKl",
  "gatherRows",
  "adamW",
  "cayley",
  "cayleyBackward",
  "inverse",
] as const satisfies readonly (keyof Kernels)[];

/** A kernel missing from KERNEL_NAMES makes this type, and so assembleKernels, fail to compile. */
type EveryKernelIsNamed =
  Exclude<keyof Kernels, (typeof KERNEL_NAMES)[number]> extends never ? Kernels : never;

export interface CpuBackendOptions {
  /** Threads of the process-wide pool; default one per hardware core. */
  readonly threads?: number;
}

function assembleKernels(library: NativeLibrary): EveryKernelIsNamed {
  const bound: Partial<Record<keyof Kernels, unknown>> = {};
  for (const part of PARTS) Object.assign(bound, part(library));
  for (const name of KERNEL_NAMES) {
    bound[name] ??= () => {
      throw new PlanishError(`cpu backend: kernel ${name} is not built yet`);
    };
  }
  return bound as EveryKernelIsNamed;
}

function checkRange(buffer: Buffer, offset: number, length: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= buffer.length)) {
    throw new PlanishError(
      `elements ${offset} to ${offset + length} lie outside a buffer of ${buffer.length} elements`,
    );
  }
}

/**
 * Opens the CPU backend. Throws PlanishError when the native library is not built, when PLANISH_ISA names a level that
 * the machine lacks, or when `threads` is not a positive integer.
 */
export function createCpuBackend(options: CpuBackendOptions = {}): Backend {
  const { threads } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads > 0)) {
    throw new PlanishError(`threads is ${threads}; give an integer of at least 1`);
  }
  const library = loadNativeLibrary();
  const count = library.setThreads(threads ?? 0);
  const memory = new NativeMemory(library);
  return {
    name: "cpu",
    description: `${library.description()}, ${count} ${count === 1 ? "thread" : "threads"}`,
    arithmetic: { level: library.level(), threads: count },
    realType: "f32",
    kernels: assembleKernels(library),
    arena: () => new NativeArena(memory),
    alloc: (dtype: DType, length: number) => memory.alloc(dtype, length),
    free(buffer: Buffer) {
      memory.free(nativeBuffer(buffer));
    },
    write(buffer: Buffer, data: HostArray, offset = 0) {
      checkRange(buffer, offset, data.length);
      copyArrays([data], nativeBuffer(buffer).arrays(offset, data.length));
    },
    read(buffer: Buffer, offset = 0, length = buffer.length - offset) {
      checkRange(buffer, offset, length);
      const own = nativeBuffer(buffer);
      const data = newHostArray(own.dtype, length);
      copyArrays(own.arrays(offset, length), [data]);
      return data;
    },
    copy(source: Buffer, target: Buffer, length: number, sourceOffset = 0, targetOffset = 0) {
      checkRange(source, sourceOffset, length);
      checkRange(target, targetOffset, length);
      copyArrays(
        nativeBuffer(source).arrays(sourceOffset, length),
        nativeBuffer(target).arrays(targetOffset, length),
      );
    },
    fill(buffer: Buffer, value: number) {
      for (const array of nativeBuffer(buffer).arrays()) array.fill(value);
    },
    [Symbol.dispose]() {
      memory.dispose();
    },
  };
}
