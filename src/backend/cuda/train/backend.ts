/**
 * The CUDA backend: f32 in device memory, kernels from native/cuda compiled at run time, large products by cuBLASLt.
 *
 * Everything is enqueued on one stream and runs while JavaScript goes on; only `read`, kernels whose contract makes them
 * throw on what they find (gatherRows, nll, inverse), and `synchronize` wait for the device.
 */
import {
  BYTES_PER_ELEMENT,
  type Backend,
  type Buffer,
  type DType,
  type HostArray,
  type Kernels,
} from "../../contract/training.js";
import { PlanishError } from "../../../common/errors.js";
import type { KernelTime } from "../../contract/profile.js";
import { architectureOf } from "../capability.js";
import type { CudaContext } from "../context.js";
import { CublasLt } from "./cublaslt.js";
import { cudaDeviceCount, CudaDriver, type Event } from "../driver.js";
import { newHostArray } from "../../contract/host-memory.js";
import { attentionKernels } from "./kernels/attention.js";
import { elementwiseKernels } from "./kernels/elementwise.js";
import { flattenKernels } from "./kernels/flatten.js";
import { kroneckerKernels } from "./kernels/kronecker.js";
import { linalgKernels, type PendingSolves } from "./kernels/linalg.js";
import { lossKernels } from "./kernels/losses.js";
import { matmulKernels } from "./kernels/matmul.js";
import { normKernels } from "./kernels/norm.js";
import { quantizeKernels } from "./kernels/quantize.js";
import { recurrentKernels } from "./kernels/recurrent.js";
import {
  asHostArray,
  checkLength,
  CudaArena,
  cudaBuffer,
  CudaBuffer,
  CudaUploads,
  Scratch,
  Transfers,
} from "../memory.js";
import { KernelModules } from "../modules.js";
import { KernelCompiler } from "../nvrtc.js";

export interface CudaBackendOptions {
  /** Which of the visible GPUs (default: the first, or this worker's). */
  readonly ordinal?: number;
  /** Folder of compiled kernels. */
  readonly cacheFolder?: string;
}

/** What the CUDA backend offers beyond the contract. */
export interface CudaBackend extends Backend {
  readonly context: CudaContext;
  readonly compiler: KernelCompiler;
  /** Waits for all work; errors of earlier kernels surface here. */
  synchronize(): void;
  /** Device memory: free now, in use, and the largest amount in use since `resetMemoryPeak`, in bytes. */
  memory(): { free: number; total: number; used: number; peak: number };
  resetMemoryPeak(): void;
  /** Times every kernel of the table on the device while `run` is active; largest first. */
  profile(run: () => void): KernelTime[];
}

/** The table over a context, and the Cayley maps that wait in it. */
export function assembleKernels(context: CudaContext): { kernels: Kernels; solves: PendingSolves } {
  const { solves, ...linalg } = linalgKernels(context);
  return {
    solves,
    kernels: {
      ...matmulKernels(context),
      ...quantizeKernels(context),
      ...flattenKernels(context),
      ...kroneckerKernels(context),
      ...normKernels(context),
      ...attentionKernels(context),
      ...elementwiseKernels(context),
      ...lossKernels(context),
      ...recurrentKernels(),
      ...linalg,
    },
  };
}

interface Interval {
  readonly kernel: string;
  readonly start: Event;
  readonly end: Event;
}

type Table = Record<string, (args: never) => void>;

/** Events around every kernel call while recording. */
class KernelProfiler {
  private intervals: Interval[] | undefined;

  constructor(private readonly context: CudaContext) {}

  get active(): boolean {
    return this.intervals !== undefined;
  }

  around(kernel: string, call: () => void): void {
    if (!this.intervals) {
      call();
      return;
    }
    const { driver, stream } = this.context;
    const [start, end] = [driver.createEvent(), driver.createEvent()];
    driver.record(start, stream);
    call();
    driver.record(end, stream);
    this.intervals.push({ kernel, start, end });
  }

  profile(run: () => void, finish: () => void): KernelTime[] {
    const { driver, stream } = this.context;
    const intervals: Interval[] = [];
    this.intervals = intervals;
    try {
      run();
      finish();
    } finally {
      this.intervals = undefined;
    }
    driver.synchronize(stream);
    const totals = new Map<string, { calls: number; seconds: number }>();
    for (const { kernel, start, end } of intervals) {
      const total = totals.get(kernel) ?? { calls: 0, seconds: 0 };
      total.calls++;
      total.seconds += driver.elapsed(start, end) / 1000;
      totals.set(kernel, total);
      driver.destroyEvent(start);
      driver.destroyEvent(end);
    }
    return [...totals]
      .map(([kernel, total]) => ({ kernel, ...total }))
      .sort((a, b) => b.seconds - a.seconds);
  }
}

function checkRange(buffer: Buffer, offset: number, length: number): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= buffer.length)) {
    throw new PlanishError(
      `elements ${offset} to ${offset + length} lie outside a buffer of ${buffer.length} elements`,
    );
  }
}

/**
 * The GPU of this process: worker processes of one run (PLANISH_WORKER, counted from 0) take the visible GPUs in turn,
 * every other process takes the first.
 */
export function gpuOfWorker(worker: string | undefined, count: number): number {
  const index = Number(worker ?? 0);
  return count > 0 && Number.isSafeInteger(index) && index > 0 ? index % count : 0;
}

/**
 * Opens a GPU. Throws PlanishError naming the missing piece: driver, GPU, NVRTC or cuBLASLt, or a GPU that is too old.
 */
export function createCudaBackend(options: CudaBackendOptions = {}): CudaBackend {
  const gpu = options.ordinal ?? gpuOfWorker(process.env.PLANISH_WORKER, cudaDeviceCount());
  const driver = new CudaDriver(gpu);
  const compiler = new KernelCompiler(options.cacheFolder);
  // Loaded now, so that a missing compiler is reported before hours of work.
  const nvrtc = compiler.compiler;
  const stream = driver.createStream();
  const context: CudaContext = {
    driver,
    stream,
    modules: new KernelModules(driver, compiler),
    scratch: new Scratch(driver, stream),
    blas: new CublasLt(driver, stream),
    transfers: new Transfers(driver, stream),
  };
  const { kernels: table, solves } = assembleKernels(context);
  const profiler = new KernelProfiler(context);
  const flush = () => {
    if (solves.pending === 0) return;
    context.scratch.begin();
    profiler.around(solves.kind, () => {
      solves.flush();
    });
  };
  const kernels = Object.fromEntries(
    Object.entries(table as unknown as Table).map(([name, kernel]) => [
      name,
      name === "cayley" || name === "cayleyBackward"
        ? (args: never) => {
            // Solves of one kind wait for each other and go in one launch.
            if (solves.pending > 0 && solves.kind !== name) flush();
            kernel(args);
          }
        : (args: never) => {
            flush();
            context.scratch.begin();
            profiler.around(name, () => {
              kernel(args);
            });
          },
    ]),
  ) as unknown as Kernels;
  let disposed = false;
  const live = new Set<CudaBuffer>();
  const { info } = driver;
  const cudaVersion = `${Math.floor(info.driverVersion / 1000)}.${Math.floor((info.driverVersion % 1000) / 10)}`;
  return {
    name: "cuda",
    description:
      `${info.name}, compute capability ${(info.capability / 10).toFixed(1)}` +
      `${info.architecture === architectureOf(info.capability) ? "" : ` (asked for; kernels for ${info.architecture})`}, ` +
      `${(info.totalBytes / 2 ** 30).toFixed(0)} GiB, driver for CUDA ${cudaVersion}, NVRTC ${nvrtc.version.join(".")}`,
    arithmetic: { level: info.name },
    rowBlocks: { thinRows: 48, queries: 48 },
    realType: "f32",
    context,
    compiler,
    kernels,
    arena: () => new CudaArena(driver, stream, flush),
    alloc(dtype: DType, length: number) {
      checkLength(length);
      const bytes = length * BYTES_PER_ELEMENT[dtype];
      const buffer = new CudaBuffer(dtype, length, driver.allocate(bytes, stream), true);
      driver.fillBytes(buffer.pointer, 0, Math.max(bytes, 1), stream);
      live.add(buffer);
      return buffer;
    },
    free(buffer: Buffer) {
      const own = cudaBuffer(buffer);
      if (!own.owned || !live.delete(own))
        throw new PlanishError(
          "only live buffers from `alloc` are freed; an arena's go back with the arena",
        );
      flush();
      driver.free(own.pointer, stream);
    },
    write(buffer: Buffer, data: HostArray, offset = 0) {
      checkRange(buffer, offset, data.length);
      const own = cudaBuffer(buffer);
      flush();
      context.transfers.write(
        own.pointer + offset * BYTES_PER_ELEMENT[own.dtype],
        asHostArray(own.dtype, data),
      );
    },
    read(buffer: Buffer, offset = 0, length = buffer.length - offset) {
      checkRange(buffer, offset, length);
      const own = cudaBuffer(buffer);
      flush();
      const data = newHostArray(own.dtype, length);
      context.transfers.read(own.pointer + offset * BYTES_PER_ELEMENT[own.dtype], data);
      return data;
    },
    copy(source: Buffer, target: Buffer, length: number, sourceOffset = 0, targetOffset = 0) {
      checkRange(source, sourceOffset, length);
      checkRange(target, targetOffset, length);
      const [from, to] = [cudaBuffer(source), cudaBuffer(target)];
      if (from.dtype !== to.dtype)
        throw new PlanishError(`copy from ${from.dtype} to ${to.dtype}: the types must agree`);
      flush();
      const width = BYTES_PER_ELEMENT[from.dtype];
      if (length > 0)
        driver.copyOnDevice(
          to.pointer + targetOffset * width,
          from.pointer + sourceOffset * width,
          length * width,
          stream,
        );
    },
    fill(buffer: Buffer, value: number) {
      const own = cudaBuffer(buffer);
      flush();
      if (own.length === 0) return;
      const single = newHostArray(own.dtype, 1);
      single[0] = value;
      const bytes = new Uint8Array(single.buffer);
      if (bytes.length === 1) driver.fillBytes(own.pointer, bytes[0], own.length, stream);
      else if (bytes.length === 4)
        driver.fillWords(
          own.pointer,
          new DataView(bytes.buffer).getUint32(0, true),
          own.length,
          stream,
        );
      else throw new PlanishError(`cuda backend: fill of a ${own.dtype} buffer is not supported`);
    },
    freeBytes() {
      // What the pool keeps for reuse is as good as free.
      const { used, reserved } = driver.poolUse();
      return driver.memory().free + Math.max(0, reserved - used);
    },
    uploads: (arrays) => CudaUploads.open(driver, stream, arrays, flush),
    synchronize() {
      flush();
      driver.synchronize(stream);
    },
    memory: () => {
      const { used, usedPeak } = driver.poolUse();
      return { ...driver.memory(), used, peak: usedPeak };
    },
    resetMemoryPeak() {
      driver.resetPoolPeaks();
    },
    profile: (run) => profiler.profile(run, flush),
    [Symbol.dispose]() {
      if (disposed) return;
      disposed = true;
      driver.synchronize(stream);
      context.transfers[Symbol.dispose]();
      context.scratch[Symbol.dispose]();
      context.blas[Symbol.dispose]();
      for (const buffer of live) driver.free(buffer.pointer, stream);
      live.clear();
      context.modules[Symbol.dispose]();
      driver.synchronize(stream);
      driver.destroyStream(stream);
      driver[Symbol.dispose]();
    },
  };
}
