/**
 * What a reader of quantized weights is given and gives: stored tensors in, dense tensors out. A dense tensor is made
 * from its stored parts when it is read, and has exactly the values that the Python package of its format gives,
 * rounded to 16 bits where that package does so. Everything that can be checked without reading weights is checked
 * when the checkpoint is opened.
 */
import { quoted } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { StoredTensor, StoredType } from "../checkpoint.js";

/** Element types that dense tensors have: those of their scales, or of the model. */
export type DenseType = "F32" | "F16" | "BF16";

/** A dense tensor that is stored as codes and scales. */
export interface QuantizedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Every value is one of this type. */
  readonly type: DenseType;
  /** Names of the stored tensors that it is made of. */
  readonly parts: readonly string[];
  /** Its values, row-major. */
  read(): Float32Array;
}

/** What a format's reader made of a checkpoint. */
export interface QuantizedReading {
  readonly tensors: readonly QuantizedTensor[];
  /** Stored tensors that play no part in any weight, such as scales of activations. */
  readonly dropped: readonly string[];
  /** What the source says beside its weights and readers of them do not follow, in words. */
  readonly notes: readonly string[];
  /** The grid of the weights in a few words, such as "4 bits in groups of 128". */
  readonly grid: string;
}

/** A format's reader: checks settings and stored tensors, and says how weights are made of them. */
export type QuantizedReader = (source: StoredSource) => QuantizedReading;

/** The settings of a quantization, with the place that they come from, for errors. */
export interface Settings {
  readonly where: string;
  readonly value: Readonly<Record<string, unknown>>;
}

/** What tensors of a checkpoint are stored and how they are read. */
interface Stored {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  read(name: string): Float32Array;
  readBytes(name: string): Uint8Array;
}

/** Stored tensors with checks that name what is wrong. */
export class StoredSource {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly #stored: Stored;

  /** @param modelType element type that config.json gives the model, if it does. */
  constructor(
    readonly path: string,
    readonly settings: Settings,
    readonly modelType: DenseType | undefined,
    stored: Stored,
  ) {
    this.tensors = stored.tensors;
    this.#stored = stored;
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  /**
   * A stored tensor that must be there.
   * @param types accepted element types.
   * @param shapes accepted shapes; a negative extent stands for any. Absent: any shape.
   * @throws PlanishError naming the tensor, and what was expected.
   */
  need(
    name: string,
    types: readonly StoredType[],
    shapes?: readonly (readonly number[])[],
  ): StoredTensor {
    const tensor = this.tensors.get(name);
    if (!tensor) this.refuse(`tensor ${quoted(name, 120)} is missing`);
    if (!types.includes(tensor.type))
      this.refuse(`tensor ${quoted(name, 120)} is ${tensor.type}, not ${types.join(" or ")}`);
    const fits = ({ shape }: StoredTensor, wanted: readonly number[]): boolean =>
      shape.length === wanted.length && shape.every((n, i) => wanted[i] < 0 || n === wanted[i]);
    if (shapes && !shapes.some((wanted) => fits(tensor, wanted))) {
      const list = shapes.map((s) => `[${s.map((n) => (n < 0 ? "any" : n)).join(", ")}]`);
      this.refuse(
        `tensor ${quoted(name, 120)} is [${tensor.shape.join(", ")}], not ${list.join(" or ")}`,
      );
    }
    return tensor;
  }

  /** Values of a stored tensor as float32; integers beyond 2^24 are rounded. */
  floats(name: string): Float32Array {
    return this.#stored.read(name);
  }

  bytes(name: string): Uint8Array {
    return this.#stored.readBytes(name);
  }

  /** 32-bit words of a stored tensor of type I32. */
  words(name: string): Uint32Array {
    const bytes = this.#stored.readBytes(name);
    return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  }

  /** @throws PlanishError with the path and the settings' place. */
  refuse(problem: string): never {
    throw new PlanishError(
      `${this.path}: ${problem}, which ${this.settings.where} does not allow for; fetch the model again, or give the original full-precision one`,
    );
  }

  /** Stored names that end so, without the ending. */
  modules(ending: string): string[] {
    return [...this.tensors.keys()]
      .filter((name) => name.endsWith(ending))
      .map((name) => name.slice(0, -ending.length));
  }
}
