/**
 * The one contract every device fulfils: memory, and a typed table of coarse kernels.
 *
 * A backend sees buffers, sizes and launches; it knows no layers, recipes or gradients' wiring (that is
 * `tensor/`). The table is an interface, so a backend that lacks a kernel does not compile; a device that is
 * absent is still an implementation whose members throw under their own names.
 *
 * Conventions, for every kernel:
 * - Matrices are row-major and dense unless a stride says otherwise. Sizes count elements.
 * - "real" buffers are `f32`, or `f64` on the reference backend; one backend instance uses one of them.
 * - Outputs are overwritten, except where a parameter is named `accumulate` or a comment says "adds into".
 * - Optional gradient outputs are computed only when present.
 * - Kernels are deterministic for a given thread count: reductions run in a fixed order.
 */
import type { Buffer, DType, HostArray, RealType } from "./buffer.js";
import type { Kernels } from "./training-kernels.js";

export * from "./buffer.js";

/**
 * A stack of temporary memory. Everything allocated after `mark()` is given back by `rewind(mark)`;
 * disposing gives all of it back. Contents are undefined after `alloc`.
 */
export interface Arena extends Disposable {
  alloc(dtype: DType, length: number): Buffer;
  mark(): number;
  rewind(mark: number): void;
  /** Largest number of bytes ever in use, for memory reports. */
  readonly peakBytes: number;
}

/** Host arrays that travel into device memory while the device computes. Disposing waits for what still travels. */
export interface Uploads extends Disposable {
  /**
   * Starts copying `source`, a view of one of the arrays, to the front of `target` as soon as the work enqueued so far is
   * done. The array must not change until then, nor may work be enqueued that touches `target`, until `join`.
   */
  start(source: HostArray, target: Buffer): void;
  /** Work enqueued from now on waits for every copy that was started. */
  join(): void;
}

export type * from "./training-kernels.js";

/** A device: memory plus kernels. */
export interface Backend extends Disposable {
  /** Short name shown to users: "reference", "cpu", "cuda". */
  readonly name: string;
  /** One line: processor, instruction set, threads. */
  readonly description: string;
  /**
   * What decides in which order sums run, and with it their last bits: the instruction set or the GPU, and the number of
   * threads where that matters.
   */
  readonly arithmetic?: { readonly level: string; readonly threads?: number };
  /**
   * Where a row's last bits depend on how many rows there are: products of up to `thinRows` rows sum in an order of their
   * own, and attention treats `queries` together, counted from the first. Absent: every row is computed alike.
   */
  readonly rowBlocks?: { readonly thinRows: number; readonly queries: number };
  readonly realType: RealType;
  readonly kernels: Kernels;
  arena(): Arena;
  /** Long-lived memory, zero-filled; released with `free` or with the backend. */
  alloc(dtype: DType, length: number): Buffer;
  free(buffer: Buffer): void;
  /** Copies host data in; element types are converted as a typed array would convert them. */
  write(buffer: Buffer, data: HostArray, offset?: number): void;
  /** Copies a buffer (or a part) out into a fresh array of its own type. */
  read(buffer: Buffer, offset?: number, length?: number): HostArray;
  copy(
    source: Buffer,
    target: Buffer,
    length: number,
    sourceOffset?: number,
    targetOffset?: number,
  ): void;
  fill(buffer: Buffer, value: number): void;
  /** Free bytes of a memory of its own; absent where buffers live in the host's memory. */
  freeBytes?(): number;
  /**
   * Makes `arrays` ready to be sent while the device computes; their types are those of the buffers that they go to.
   * Absent where buffers live in the host's memory; undefined where the system does not let them be locked in memory.
   */
  uploads?(arrays: readonly HostArray[]): Uploads | undefined;
}
