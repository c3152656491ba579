/**
 * The CUDA driver API: one device's primary context, streams, events, memory, launches and graphs. Every status is
 * checked; a failure is a PlanishError with the driver's own text and what to do.
 *
 * Handles (streams, events, modules, functions, graphs) and device addresses are plain numbers: user-space addresses
 * stay below 2⁵³. A context belongs to the thread that opened it.
 */
import { createRequire } from "node:module";
import type * as Koffi from "koffi";
import { PlanishError } from "../../common/errors.js";
import { targetOf } from "./capability.js";
import { loadDriver, type DriverFunctions } from "./driver-functions.js";

/** Oldest architecture with bf16 matrix instructions and asynchronous copies to shared memory (Ampere). */
const OLDEST_CAPABILITY = 80;

/** CUresult values that get advice of their own. */
const OUT_OF_MEMORY = 2;
const INVALID_DEVICE = 101;
/** Of locking pages: a limit is reached, the pages are locked already, or the system cannot or may not. */
const REFUSED_REGISTRATIONS: ReadonlySet<number> = new Set([OUT_OF_MEMORY, 712, 800, 801]);

/** CUdevice_attribute values. */
const ATTRIBUTE = {
  multiprocessors: 16,
  capabilityMajor: 75,
  capabilityMinor: 76,
  l2Bytes: 38,
  sharedBytesPerBlock: 97,
  memoryPools: 115,
} as const;

const FUNC_MAX_DYNAMIC_SHARED = 8;
const STREAM_NON_BLOCKING = 1;
const EVENT_DISABLE_TIMING = 2;
const CAPTURE_THREAD_LOCAL = 1;
const POOL_RELEASE_THRESHOLD = 4;
const POOL_RESERVED_CURRENT = 5;
const POOL_RESERVED_HIGH = 6;
const POOL_USED_CURRENT = 7;
const POOL_USED_HIGH = 8;

export type DevicePointer = number;
export type Stream = number;
export type Event = number;
export type GraphExecutable = number;

export interface CudaDeviceInfo {
  readonly ordinal: number;
  readonly name: string;
  /** Compute capability times ten: 90 for Hopper's H100 and H200. Another GPU's where one is asked for (capability.ts). */
  readonly capability: number;
  /** What kernels are compiled for. */
  readonly architecture: string;
  readonly multiprocessors: number;
  readonly totalBytes: number;
  readonly l2Bytes: number;
  /** Shared memory a block may ask for. */
  readonly sharedBytesPerBlock: number;
  /** 1000·major + 10·minor of the newest CUDA that the driver serves. */
  readonly driverVersion: number;
}

/** How a kernel's arguments are passed: p device pointer, i 64-bit integer, d double. */
export type KernelSignature = string;

/** A loaded kernel with its argument types. */
export interface CudaKernel {
  readonly name: string;
  readonly handle: number;
  readonly signature: KernelSignature;
  /**
   * Dynamic shared memory that the driver was asked to allow so far; `launch` raises it. Unasked it allows 48 KiB less what
   * the kernel declares itself, which only the driver knows.
   */
  sharedLimit: number;
}

export type Grid = readonly [number, number?, number?];

const require = createRequire(import.meta.url);

/** Bytes of a launch's argument block. */
const ARGUMENT_BYTES = 4096;
const HEADER_BYTES = 64;
/** CUlaunchConfig, then one CUlaunchAttribute. */
const CONFIG_BYTES = 56;
const ATTRIBUTE_BYTES = 72;
const PROGRAMMATIC_STREAM_SERIALIZATION = 6;

/** Address range of `bytes` of pinned host memory, seen from both sides. */
export interface PinnedMemory {
  readonly address: number;
  readonly bytes: ArrayBuffer;
}

type Checked = (...args: unknown[]) => void;

/** Number of GPUs. Throws PlanishError when there is no driver. */
export function cudaDeviceCount(): number {
  const { functions } = loadDriver();
  const count = new Int32Array(1);
  return Number(functions.cuDeviceGetCount(count)) === 0 ? count[0] : 0;
}

function pointerOf(slot: BigUint64Array): number {
  return Number(slot[0]);
}

function utf8(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

/** Device `ordinal`'s context, current on this thread. Disposing releases it; what it allocated is then gone. */
export class CudaDriver implements Disposable {
  readonly info: CudaDeviceInfo;
  private readonly cu: Readonly<Record<keyof DriverFunctions, Checked>>;
  private readonly raw: DriverFunctions;
  private readonly device: number;
  private readonly pool: number;
  private readonly koffi: typeof Koffi;
  private readonly argumentAddress: number;
  private readonly argumentWords: Uint32Array;
  private readonly argumentReals: Float64Array;
  private readonly extraAddress: number;
  private readonly out = new BigUint64Array(1);
  private disposed = false;

  /** Throws PlanishError when there is no driver, no such GPU, or the GPU is older than Planish's kernels need. */
  constructor(ordinal = 0) {
    const { functions, errorText } = loadDriver();
    this.raw = functions;
    this.koffi = require("koffi") as typeof Koffi;
    this.cu = Object.fromEntries(
      Object.entries(functions).map(([name, call]) => [
        name,
        (...args: unknown[]) => {
          const status = Number(call(...args));
          if (status !== 0) this.fail(name, status, errorText(status));
        },
      ]),
    ) as unknown as Readonly<Record<keyof DriverFunctions, Checked>>;
    const count = cudaDeviceCount();
    if (!(Number.isInteger(ordinal) && ordinal >= 0 && ordinal < count)) {
      throw new PlanishError(
        count === 0
          ? "--device cuda: the driver reports no GPU (check nvidia-smi and CUDA_VISIBLE_DEVICES)"
          : `--device cuda: there is no GPU ${ordinal}; this machine has GPU 0 to ${count - 1}`,
      );
    }
    const device = new Int32Array(1);
    this.cu.cuDeviceGet(device, ordinal);
    this.device = device[0];
    this.info = this.describe(ordinal);
    const { name, capability } = this.info;
    if (capability < OLDEST_CAPABILITY) {
      throw new PlanishError(
        `--device cuda: ${name} has compute capability ${(capability / 10).toFixed(1)}; ` +
          `Planish's kernels need ${(OLDEST_CAPABILITY / 10).toFixed(1)} (Ampere) or newer: use --device cpu`,
      );
    }
    this.cu.cuDevicePrimaryCtxRetain(this.out, this.device);
    this.cu.cuCtxSetCurrent(pointerOf(this.out));
    this.cu.cuDeviceGetDefaultMemPool(this.out, this.device);
    this.pool = pointerOf(this.out);
    // Freed memory stays in the pool, so that a step does not go back to the operating system.
    this.cu.cuMemPoolSetAttribute(
      this.pool,
      POOL_RELEASE_THRESHOLD,
      BigUint64Array.of(0xffff_ffff_ffff_ffffn),
    );

    const block: unknown = this.koffi.alloc("uint64_t", (ARGUMENT_BYTES + HEADER_BYTES) / 8);
    const address = Number(this.koffi.address(block));
    const bytes = this.koffi.view(block, ARGUMENT_BYTES + HEADER_BYTES);
    // CU_LAUNCH_PARAM_BUFFER_POINTER (1), address, CU_LAUNCH_PARAM_BUFFER_SIZE (2), address of the size, end (0); size.
    this.extraAddress = address;
    this.argumentAddress = address + HEADER_BYTES;
    new BigUint64Array(bytes, 0, 6).set([
      1n,
      BigInt(this.argumentAddress),
      2n,
      BigInt(address + 40),
      0n,
      0n,
    ]);
    const config: unknown = this.koffi.alloc("uint64_t", (CONFIG_BYTES + ATTRIBUTE_BYTES) / 8);
    this.configAddress = Number(this.koffi.address(config));
    const configBytes = this.koffi.view(config, CONFIG_BYTES + ATTRIBUTE_BYTES);
    this.configSizes = new Uint32Array(configBytes, 0, 8);
    this.configStream = new BigUint64Array(configBytes, 32, 1);
    new BigUint64Array(configBytes, 40, 2).set([BigInt(this.configAddress + CONFIG_BYTES), 1n]);
    new Uint32Array(configBytes, CONFIG_BYTES, 4).set([PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1, 0]);
    this.sizeWord = new BigUint64Array(bytes, 40, 1);
    this.argumentWords = new Uint32Array(bytes, HEADER_BYTES, ARGUMENT_BYTES / 4);
    this.argumentReals = new Float64Array(bytes, HEADER_BYTES, ARGUMENT_BYTES / 8);
  }

  private readonly sizeWord: BigUint64Array;
  private readonly configAddress: number;
  private readonly configSizes: Uint32Array;
  private readonly configStream: BigUint64Array;

  private fail(name: string, status: number, text: string): never {
    if (status === OUT_OF_MEMORY) {
      throw new PlanishError(
        `out of GPU memory (${name}: ${text}); use a smaller batch, sequence length or model`,
      );
    }
    if (status === INVALID_DEVICE) throw new PlanishError(`--device cuda: no such GPU (${text})`);
    throw new PlanishError(
      `CUDA's ${name} failed (${text}); run with CUDA_LAUNCH_BLOCKING=1 to find the call that caused it`,
    );
  }

  private describe(ordinal: number): CudaDeviceInfo {
    const value = new Int32Array(1);
    const attribute = (which: number): number => {
      this.cu.cuDeviceGetAttribute(value, which, this.device);
      return value[0];
    };
    const name = new Uint8Array(256);
    this.cu.cuDeviceGetName(name, name.length, this.device);
    this.cu.cuDeviceTotalMem(this.out, this.device);
    const totalBytes = pointerOf(this.out);
    this.cu.cuDriverGetVersion(value);
    const driverVersion = value[0];
    const target = targetOf(
      10 * attribute(ATTRIBUTE.capabilityMajor) + attribute(ATTRIBUTE.capabilityMinor),
      attribute(ATTRIBUTE.sharedBytesPerBlock),
    );
    return {
      ordinal,
      name: utf8(name),
      ...target,
      multiprocessors: attribute(ATTRIBUTE.multiprocessors),
      totalBytes,
      l2Bytes: attribute(ATTRIBUTE.l2Bytes),
      driverVersion,
    };
  }

  /** Makes the context current on this thread again (another device's may have been used since). */
  private create(call: (out: BigUint64Array) => void): number {
    call(this.out);
    return pointerOf(this.out);
  }

  // Streams and events.

  createStream(): Stream {
    return this.create((out) => {
      this.cu.cuStreamCreate(out, STREAM_NON_BLOCKING);
    });
  }

  destroyStream(stream: Stream): void {
    this.cu.cuStreamDestroy(stream);
  }

  /** Waits on the host until everything enqueued so far is done; errors of earlier launches surface here. */
  synchronize(stream: Stream): void {
    this.cu.cuStreamSynchronize(stream);
  }

  /** @param timed False makes an event cheaper; `elapsed` needs timed ones. */
  createEvent(timed = true): Event {
    return this.create((out) => {
      this.cu.cuEventCreate(out, timed ? 0 : EVENT_DISABLE_TIMING);
    });
  }

  destroyEvent(event: Event): void {
    this.cu.cuEventDestroy(event);
  }

  record(event: Event, stream: Stream): void {
    this.cu.cuEventRecord(event, stream);
  }

  /** Later work on `stream` waits for the event. */
  waitFor(event: Event, stream: Stream): void {
    this.cu.cuStreamWaitEvent(stream, event, 0);
  }

  synchronizeEvent(event: Event): void {
    this.cu.cuEventSynchronize(event);
  }

  /** Milliseconds between two recorded, completed events. */
  elapsed(start: Event, end: Event): number {
    const milliseconds = new Float32Array(1);
    this.cu.cuEventElapsedTime(milliseconds, start, end);
    return milliseconds[0];
  }

  // Memory.

  /** Free and total bytes of the device. What the pool keeps for reuse counts as taken. */
  memory(): { free: number; total: number } {
    const total = new BigUint64Array(1);
    this.cu.cuMemGetInfo(this.out, total);
    return { free: pointerOf(this.out), total: pointerOf(total) };
  }

  /** Bytes that the pool has handed out and that it holds from the system: now, and at most. */
  poolUse(): { used: number; usedPeak: number; reserved: number; reservedPeak: number } {
    const read = (attribute: number) =>
      this.create((out) => {
        this.cu.cuMemPoolGetAttribute(this.pool, attribute, out);
      });
    return {
      used: read(POOL_USED_CURRENT),
      usedPeak: read(POOL_USED_HIGH),
      reserved: read(POOL_RESERVED_CURRENT),
      reservedPeak: read(POOL_RESERVED_HIGH),
    };
  }

  /** Starts the pool's peaks anew. */
  resetPoolPeaks(): void {
    this.cu.cuMemPoolSetAttribute(this.pool, POOL_USED_HIGH, BigUint64Array.of(0n));
    this.cu.cuMemPoolSetAttribute(this.pool, POOL_RESERVED_HIGH, BigUint64Array.of(0n));
  }

  /** Memory for work enqueued on `stream` from now on; 256-byte aligned, contents undefined. */
  allocate(bytes: number, stream: Stream): DevicePointer {
    const status = Number(this.raw.cuMemAllocAsync(this.out, Math.max(bytes, 1), stream));
    if (status === 0) return pointerOf(this.out);
    // What was freed on the stream but not yet reached counts as used; give it a chance.
    this.synchronize(stream);
    this.cu.cuMemPoolTrimTo(this.pool, 0);
    const retried = Number(this.raw.cuMemAllocAsync(this.out, Math.max(bytes, 1), stream));
    if (retried === 0) return pointerOf(this.out);
    if (retried === OUT_OF_MEMORY) {
      const { free, total } = this.memory();
      throw new PlanishError(
        `out of GPU memory: ${mebibytes(bytes)} more are needed, ${mebibytes(free)} of ${mebibytes(total)} are free on ` +
          `${this.info.name}; use a smaller batch, sequence length or model, or stop what else runs there`,
      );
    }
    this.cu.cuMemAllocAsync(this.out, Math.max(bytes, 1), stream);
    return pointerOf(this.out);
  }

  /** Gives memory back once the work enqueued so far on `stream` is done. */
  free(pointer: DevicePointer, stream: Stream): void {
    this.cu.cuMemFreeAsync(pointer, stream);
  }

  /** Page-locked host memory, which copies at full speed and while kernels run. */
  allocatePinned(bytes: number): PinnedMemory {
    const address = this.create((out) => {
      this.cu.cuMemHostAlloc(out, bytes, 0);
    });
    return { address, bytes: this.koffi.view(BigInt(address), bytes) };
  }

  /** The memory's ArrayBuffer must not be used afterwards. */
  freePinned(memory: PinnedMemory): void {
    this.cu.cuMemFreeHost(memory.address);
  }

  /** Locks an array's pages in memory, so that it can travel while kernels run; false where the system refuses that. */
  register(array: ArrayBufferView): boolean {
    const status = Number(this.raw.cuMemHostRegister(array, array.byteLength, 0));
    if (status === 0) return true;
    if (REFUSED_REGISTRATIONS.has(status)) return false;
    this.fail("cuMemHostRegister", status, loadDriver().errorText(status));
  }

  unregister(array: ArrayBufferView): void {
    this.cu.cuMemHostUnregister(array);
  }

  /** `source` is (part of) a registered array, unchanged until the stream has passed the copy. */
  copyArrayToDevice(target: DevicePointer, source: ArrayBufferView, stream: Stream): void {
    this.cu.cuMemcpyArrayAsync(target, source, source.byteLength, stream);
  }

  /** `source` is an address in pinned memory, unchanged until the stream has passed the copy. */
  copyToDevice(target: DevicePointer, source: number, bytes: number, stream: Stream): void {
    this.cu.cuMemcpyHtoDAsync(target, source, bytes, stream);
  }

  /** `target` is an address in pinned memory. */
  copyToHost(target: number, source: DevicePointer, bytes: number, stream: Stream): void {
    this.cu.cuMemcpyDtoHAsync(target, source, bytes, stream);
  }

  copyOnDevice(target: DevicePointer, source: DevicePointer, bytes: number, stream: Stream): void {
    this.cu.cuMemcpyDtoDAsync(target, source, bytes, stream);
  }

  fillBytes(target: DevicePointer, value: number, count: number, stream: Stream): void {
    this.cu.cuMemsetD8Async(target, value & 0xff, count, stream);
  }

  /** Sets `count` 32-bit words. */
  fillWords(target: DevicePointer, word: number, count: number, stream: Stream): void {
    this.cu.cuMemsetD32Async(target, word >>> 0, count, stream);
  }

  // Code.

  /** Loads a cubin (or PTX text ending in a zero byte). */
  loadModule(image: Uint8Array): number {
    return this.create((out) => {
      this.cu.cuModuleLoadData(out, image);
    });
  }

  unloadModule(module: number): void {
    this.cu.cuModuleUnload(module);
  }

  /** A kernel by its `extern "C"` name; its parameters must all be 8 bytes wide, as `signature` says. */
  kernel(module: number, name: string, signature: KernelSignature): CudaKernel {
    const handle = this.create((out) => {
      this.cu.cuModuleGetFunction(out, module, name);
    });
    return { name, handle, signature, sharedLimit: 0 };
  }

  /** Registers per thread and bytes of local memory (spills) of a kernel. */
  kernelResources(kernel: CudaKernel): { registers: number; localBytes: number } {
    const value = new Int32Array(1);
    const read = (attribute: number) => {
      this.cu.cuFuncGetAttribute(value, attribute, kernel.handle);
      return value[0];
    };
    return { registers: read(4), localBytes: read(3) };
  }

  /**
   * Enqueues a launch; arguments in the order and with the types of the kernel's signature.
   * @param overlap The kernel may begin before the one ahead of it on the stream is done; it then waits by itself
   * (griddepcontrol.wait) before it touches anything that earlier kernels write. Hopper and later only.
   */
  launch(
    kernel: CudaKernel,
    grid: Grid,
    block: Grid,
    sharedBytes: number,
    stream: Stream,
    args: readonly number[],
    overlap = false,
  ): void {
    const { signature } = kernel;
    if (args.length !== signature.length) {
      throw new PlanishError(
        `kernel ${kernel.name} takes ${signature.length} arguments, got ${args.length}`,
      );
    }
    const words = this.argumentWords;
    for (let i = 0; i < args.length; i++) {
      const value = args[i];
      if (signature[i] === "d") {
        this.argumentReals[i] = value;
      } else {
        words[2 * i] = value >>> 0;
        words[2 * i + 1] = Math.floor(value / 2 ** 32) >>> 0;
      }
    }
    this.sizeWord[0] = BigInt(8 * args.length);
    if (sharedBytes > kernel.sharedLimit) {
      this.cu.cuFuncSetAttribute(kernel.handle, FUNC_MAX_DYNAMIC_SHARED, sharedBytes);
      kernel.sharedLimit = sharedBytes;
    }
    const [gx, gy = 1, gz = 1] = grid;
    const [bx, by = 1, bz = 1] = block;
    let status: number;
    if (overlap) {
      this.configSizes.set([gx, gy, gz, bx, by, bz, sharedBytes]);
      this.configStream[0] = BigInt(stream);
      status = Number(
        this.raw.cuLaunchKernelEx(this.configAddress, kernel.handle, 0, this.extraAddress),
      );
    } else {
      status = Number(
        this.raw.cuLaunchKernel(
          ...[kernel.handle, gx, gy, gz, bx, by, bz, sharedBytes, stream, 0, this.extraAddress],
        ),
      );
    }
    if (status !== 0) {
      throw new PlanishError(
        `CUDA kernel ${kernel.name} was not launched (${loadDriver().errorText(status)}); grid ${grid.join("×")}, ` +
          `block ${block.join("×")}, ${sharedBytes} bytes of shared memory`,
      );
    }
  }

  // Graphs.

  /** Records what `enqueue` puts on `stream` instead of running it. Nothing in it may wait for the device. */
  capture(stream: Stream, enqueue: () => void): GraphExecutable {
    this.cu.cuStreamBeginCapture(stream, CAPTURE_THREAD_LOCAL);
    let graph = 0;
    try {
      enqueue();
    } finally {
      graph = this.create((out) => {
        this.cu.cuStreamEndCapture(stream, out);
      });
    }
    const executable = this.create((out) => {
      this.cu.cuGraphInstantiate(out, graph, 0);
    });
    this.cu.cuGraphDestroy(graph);
    return executable;
  }

  launchGraph(graph: GraphExecutable, stream: Stream): void {
    this.cu.cuGraphLaunch(graph, stream);
  }

  destroyGraph(graph: GraphExecutable): void {
    this.cu.cuGraphExecDestroy(graph);
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.cu.cuDevicePrimaryCtxRelease(this.device);
  }
}
