/**
 * Tensors and the autograd tape.
 *
 * A `Graph` is one evaluation on one backend: it owns an arena, records what it computes when asked to, and
 * gives the arena back when disposed. Ops (tensor/ops, one file each) are functions of a graph; there is no
 * global state. The tape is small on purpose: it exists to train a few matrices per block.
 */
import type { Arena, Backend, Buffer, HostArray, Precision } from "../backend/contract/training.js";
import { PlanishError } from "../common/errors.js";

/** Integer codes with one scale per row, or per group of a row's columns; values are `scale · code`. */
export interface RowCodes {
  readonly codes: Buffer;
  readonly scale: Buffer;
  readonly bits: number;
  /** Consecutive columns that share a scale; absent: the row. */
  readonly group?: number;
}

/**
 * A dense row-major array. Most tensors carry values; a fake-quantized one carries `codes` and gets values only
 * when an op asks for them (`Graph.values`), so that integer products never touch dequantized data.
 */
export class Tensor {
  /** Gradient of the loss with respect to this tensor, set by `Graph.backward`. */
  grad: Buffer | undefined;

  constructor(
    readonly shape: readonly number[],
    public buffer: Buffer | undefined,
    readonly requiresGrad: boolean,
    readonly codes?: RowCodes,
  ) {}

  get size(): number {
    return elements(this.shape);
  }

  /** Length of the last axis. */
  get cols(): number {
    return this.shape[this.shape.length - 1] ?? 1;
  }

  /** Product of all axes but the last. */
  get rows(): number {
    return this.shape.slice(0, -1).reduce((product, n) => product * n, 1);
  }
}

export function elements(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

type Backward = (grad: Buffer) => void;

interface Node {
  readonly out: Tensor;
  readonly backward: Backward;
}

export interface GraphOptions {
  /** Record a tape (default false). */
  readonly train?: boolean;
  /** How large products are computed; small matrices always use f32 (DESIGN decision 7). */
  readonly precision?: Precision;
  /** Reuse an arena across graphs, so that steps do not go back to the operating system for memory. */
  readonly arena?: Arena;
}

export class Graph implements Disposable {
  readonly precision: Precision;
  private readonly arena: Arena;
  private readonly ownsArena: boolean;
  private readonly start: number;
  private readonly tape: Node[] | undefined;

  constructor(
    readonly backend: Backend,
    options: GraphOptions = {},
  ) {
    this.precision = options.precision ?? "f32";
    this.arena = options.arena ?? backend.arena();
    this.ownsArena = options.arena === undefined;
    this.start = this.arena.mark();
    this.tape = options.train ? [] : undefined;
  }

  get kernels() {
    return this.backend.kernels;
  }

  get recording(): boolean {
    return this.tape !== undefined;
  }

  /**
   * A graph on the same arena that records nothing and must be disposed before this one allocates again: what it
   * computes and nobody copies out costs memory only while it lives.
   */
  nested(): Graph {
    return new Graph(this.backend, { precision: this.precision, arena: this.arena });
  }

  /** Uninitialised real memory that lives as long as the graph. */
  real(length: number): Buffer {
    return this.arena.alloc(this.backend.realType, length);
  }

  bytes(length: number): Buffer {
    return this.arena.alloc("i8", length);
  }

  /** Copies host data to a tensor that lives as long as the graph. */
  constant(shape: readonly number[], data: HostArray): Tensor {
    const buffer = this.real(elements(shape));
    if (data.length !== buffer.length)
      throw new PlanishError(`tensor of shape [${shape.join(", ")}] given ${data.length} values`);
    this.backend.write(buffer, data);
    return new Tensor(shape, buffer, false);
  }

  indices(data: Int32Array): Buffer {
    const buffer = this.arena.alloc("i32", data.length);
    this.backend.write(buffer, data);
    return buffer;
  }

  /** Values of a tensor, dequantized on first use when it has only codes. */
  values(tensor: Tensor): Buffer {
    if (tensor.buffer !== undefined) return tensor.buffer;
    if (tensor.codes === undefined) throw new PlanishError("tensor has neither values nor codes");
    const out = this.real(tensor.size);
    const { codes, scale, group } = tensor.codes;
    const cols = group ?? tensor.cols;
    this.kernels.dequantizeRows({ codes, scale, rows: tensor.size / cols, cols, out });
    tensor.buffer = out;
    return out;
  }

  read(tensor: Tensor): Float64Array | Float32Array {
    return this.backend.read(this.values(tensor)) as Float64Array | Float32Array;
  }

  /** Reads a one-element tensor. */
  scalar(tensor: Tensor): number {
    return this.read(tensor)[0];
  }

  /**
   * Makes an op's result. `backward` is kept only when the graph records and some input needs a gradient;
   * it must call `accumulate` for each input that does.
   */
  result(
    shape: readonly number[],
    buffer: Buffer | undefined,
    inputs: readonly (Tensor | undefined)[],
    backward: Backward,
    codes?: RowCodes,
  ): Tensor {
    const tracked = this.tape !== undefined && inputs.some((input) => input?.requiresGrad);
    const out = new Tensor(shape, buffer, tracked, codes);
    if (tracked) this.tape?.push({ out, backward });
    return out;
  }

  /** Whether an op must produce this input's gradient. */
  needs(tensor: Tensor | undefined): tensor is Tensor {
    return tensor !== undefined && tensor.requiresGrad;
  }

  /** A fresh gradient buffer for `tensor`, or undefined when it needs none. Pass it to `accumulate` once filled. */
  gradientFor(tensor: Tensor | undefined): Buffer | undefined {
    return this.needs(tensor) ? this.real(tensor.size) : undefined;
  }

  /** Adds a filled buffer to the tensor's gradient; the first one is adopted, and sums go to fresh memory, so
   * that one buffer may serve several tensors; it must not be written again. */
  accumulate(tensor: Tensor | undefined, grad: Buffer | undefined): void {
    if (grad === undefined || !this.needs(tensor)) return;
    if (tensor.grad === undefined) {
      tensor.grad = grad;
      return;
    }
    const sum = this.real(tensor.size);
    this.kernels.binary({
      op: "add",
      rows: 1,
      cols: tensor.size,
      a: tensor.grad,
      b: grad,
      broadcast: "full",
      out: sum,
    });
    tensor.grad = sum;
  }

  /**
   * Runs the tape backward from `loss` (its gradient is `seed`, default ones). Gradients are left in `tensor.grad`
   * of every tracked tensor and die with the graph.
   */
  backward(loss: Tensor, seed?: HostArray | Buffer): void {
    if (this.tape === undefined) throw new PlanishError("backward on a graph that does not record");
    if (seed !== undefined && "dtype" in seed) {
      loss.grad = seed;
    } else {
      loss.grad = this.real(loss.size);
      if (seed === undefined) this.backend.fill(loss.grad, 1);
      else this.backend.write(loss.grad, seed);
    }
    for (let i = this.tape.length - 1; i >= 0; i--) {
      const node = this.tape[i];
      if (node.out.grad !== undefined) node.backward(node.out.grad);
    }
    this.tape.length = 0;
  }

  [Symbol.dispose](): void {
    if (this.ownsArena) this.arena[Symbol.dispose]();
    else this.arena.rewind(this.start);
  }
}

/** Long-lived trainable tensor. Its `grad` belongs to the last graph and must be read before that is disposed. */
export function parameter(backend: Backend, shape: readonly number[], data: HostArray): Tensor {
  const buffer = backend.alloc(backend.realType, elements(shape));
  backend.write(buffer, data);
  return new Tensor(shape, buffer, true);
}

/** Long-lived constant tensor (frozen weights). */
export function frozen(backend: Backend, shape: readonly number[], data: HostArray): Tensor {
  const buffer = backend.alloc(backend.realType, elements(shape));
  backend.write(buffer, data);
  return new Tensor(shape, buffer, false);
}

export function freeTensor(backend: Backend, tensor: Tensor): void {
  if (tensor.buffer !== undefined) backend.free(tensor.buffer);
  if (tensor.codes !== undefined) {
    backend.free(tensor.codes.codes);
    backend.free(tensor.codes.scale);
  }
  tensor.buffer = undefined;
}
