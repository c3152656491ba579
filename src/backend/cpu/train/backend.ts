/**
 * The CPU backend: f32 in host memory, kernels from native/ at the best instruction-set level of the machine.
 */
import type { Backend, Buffer, DType, HostArray } from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import { newHostArray } from "../../contract/host-memory.js";
import { CONSTANTS } from "../../contract/abi.js";
import { loadHostLibrary, type HostDevice } from "../host.js";
import { cpuKernels } from "./kernels.js";
import { copyArrays } from "../mapping.js";
import { NativeArena, NativeMemory, nativeBuffer } from "../memory.js";

export interface CpuBackendOptions {
  /** Threads of the library's pool; default one per hardware core. */
  readonly threads?: number;
  /** What computes: the native kernels, or the same ones in WebAssembly (default `cpu`). */
  readonly device?: HostDevice;
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
  const { threads, device = "cpu" } = options;
  if (threads !== undefined && !(Number.isInteger(threads) && threads > 0)) {
    throw new PlanishError(`threads is ${threads}; give an integer of at least 1`);
  }
  const library = loadHostLibrary(device);
  const count = library.setThreads(threads ?? 0);
  const memory = new NativeMemory(library);
  return {
    name: device,
    description: `${library.description()}, ${count} ${count === 1 ? "thread" : "threads"}`,
    arithmetic: { level: library.level(), threads: count },
    rowBlocks: { thinRows: CONSTANTS.thinRowsLong, queries: CONSTANTS.queryBlock },
    realType: "f32",
    kernels: cpuKernels(library),
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
    ...(library.freeBytes && { freeBytes: library.freeBytes }),
    [Symbol.dispose]() {
      memory.dispose();
    },
  };
}
