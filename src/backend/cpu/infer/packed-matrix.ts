/** Weights in the order of the native kernels (native/packed_weights.h): packed once, when a model is opened. */
import type { NativeLibrary } from "../library.js";
import type { PackedKind } from "../../contract/inference-kernels.js";
import { nativeKernels, type NativeKernels } from "../native-kernels.js";
import type { EngineMemory } from "./memory.js";

export interface PackedMatrix {
  readonly kind: PackedKind;
  /** [n, k]. */
  readonly shape: readonly [number, number];
  readonly bytes: number;
  readonly address: bigint;
  /** Scales per output row, f32; 0n where there are none. */
  readonly scale: bigint;
  readonly bias: bigint;
}

export interface MatrixSource {
  /** Codes for the kinds with codes, else values, [n, k]. */
  readonly values: Int8Array | Float32Array;
  readonly scale?: ArrayLike<number>;
  readonly bias?: ArrayLike<number>;
}

/** Packs matrices into an engine's memory. */
export class MatrixPacker {
  private readonly kernels: NativeKernels;

  constructor(
    library: NativeLibrary,
    private readonly memory: EngineMemory,
  ) {
    this.kernels = nativeKernels(library);
  }

  packed(kind: PackedKind, shape: readonly [number, number], source: MatrixSource): PackedMatrix {
    const [n, k] = shape;
    const size = new BigInt64Array(1);
    this.kernels.packedBytes({ kind, n, k, bytes: size });
    const bytes = Number(size[0]);
    const { address } = this.memory.reserve(bytes);
    this.kernels.packWeights({ kind, n, k, source: source.values, packed: address });
    return {
      kind,
      shape,
      bytes,
      address,
      scale: source.scale ? this.memory.floats(source.scale).address : 0n,
      bias: source.bias ? this.memory.floats(source.bias).address : 0n,
    };
  }
}
