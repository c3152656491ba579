/** What the CUDA kernels' bindings share: the device, its one stream, compiled code, scratch space, checked arguments. */
import type { Buffer, DType } from "../contract/training.js";
import { PlanishError } from "../../common/errors.js";
import type { CublasLt } from "./train/cublaslt.js";
import type { CudaDriver, CudaKernel, DevicePointer, Grid, Stream } from "./driver.js";
import type { KernelModules } from "./modules.js";
import { CudaBuffer, type Scratch, type Transfers } from "./memory.js";

export interface CudaContext {
  readonly driver: CudaDriver;
  readonly stream: Stream;
  readonly modules: KernelModules;
  readonly scratch: Scratch;
  readonly blas: CublasLt;
  readonly transfers: Transfers;
}

/** Enqueues a kernel on the context's stream. */
export function launch(
  { driver, stream }: CudaContext,
  kernel: CudaKernel,
  grid: Grid,
  block: number,
  args: readonly number[],
  sharedBytes = 0,
): void {
  // An empty grid is an error to the driver and nothing to do for us.
  if (grid.some((size) => size === 0)) return;
  driver.launch(kernel, grid, [block], sharedBytes, stream, args);
}

const ROW_THREADS = 256;
/** Rows up to this long are worked on by a warp each, longer ones by a block of their own. */
const LONGEST_WARP_ROW = 1024;

/** Launches one of the pair of kernels that ROW_KERNEL (native/cuda/common.cuh) makes. */
export function launchRows(
  ctx: CudaContext,
  file: string,
  name: string,
  rows: number,
  cols: number,
  args: readonly number[],
): void {
  const byWarp = cols <= LONGEST_WARP_ROW;
  const kernel = ctx.modules.get(file, `${name}_${byWarp ? "warp" : "block"}`);
  launch(ctx, kernel, [byWarp ? Math.ceil(rows / (ROW_THREADS / 32)) : rows], ROW_THREADS, args);
}

/** Blocks of `threads` that cover `items`, at most enough to fill the device several times (kernels stride). */
export function blocksFor({ driver }: CudaContext, items: number, threads: number): number {
  return Math.min(Math.ceil(items / threads), driver.info.multiprocessors * 16);
}

function pointerTo(buffer: Buffer, dtype: DType, length: number, what: string): DevicePointer {
  if (!(buffer instanceof CudaBuffer)) {
    throw new PlanishError(
      `${what}: this buffer belongs to another backend; copy it with read and write`,
    );
  }
  if (buffer.dtype !== dtype) {
    throw new PlanishError(
      `${what}: got a ${buffer.dtype} buffer, the cuda backend takes ${dtype}`,
    );
  }
  if (!(length >= 0 && length <= buffer.length)) {
    throw new PlanishError(`${what}: needs ${length} elements, the buffer has ${buffer.length}`);
  }
  return buffer.pointer;
}

/** Address of a real buffer with at least `length` elements. Throws PlanishError naming `what`. */
export function real(buffer: Buffer, length: number, what: string): DevicePointer {
  return pointerTo(buffer, "f32", length, what);
}

/** As `real`; 0 (a null pointer) when absent. */
export function optionalReal(
  buffer: Buffer | undefined,
  length: number,
  what: string,
): DevicePointer {
  return buffer === undefined ? 0 : pointerTo(buffer, "f32", length, what);
}

export function codes(buffer: Buffer, length: number, what: string): DevicePointer {
  return pointerTo(buffer, "i8", length, what);
}

export function indices(buffer: Buffer, length: number, what: string): DevicePointer {
  return pointerTo(buffer, "i32", length, what);
}

/** As `indices`; 0 when absent. */
export function optionalIndices(
  buffer: Buffer | undefined,
  length: number,
  what: string,
): DevicePointer {
  return buffer === undefined ? 0 : pointerTo(buffer, "i32", length, what);
}

/** The checked pair of scalar clipping logits: both or neither. */
export function scalarClips(
  clipMax: Buffer | undefined,
  clipMin: Buffer | undefined,
  what: string,
): readonly [DevicePointer, DevicePointer] {
  if ((clipMax === undefined) !== (clipMin === undefined)) {
    throw new PlanishError(`${what}: clipMax and clipMin go together`);
  }
  return [optionalReal(clipMax, 1, `${what} clipMax`), optionalReal(clipMin, 1, `${what} clipMin`)];
}
