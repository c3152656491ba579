/** Weights in the order of the native kernels (native/packed_weights.h): packed once, when a model is opened. */
import type { NativeLibrary } from "../../backend/cpu/library.js";
import type { EngineMemory } from "./memory.js";

/** What a matrix holds and what it is multiplied with; the numbers are those of PackedKind. */
export const PACKED_KIND = {
  /** 4-bit codes by int8 codes. */
  int4: 0,
  /** 8-bit codes by int8 codes. */
  int8: 1,
  /** 4-bit codes by f32 activations. */
  int4F32: 2,
  int8F32: 3,
  /** bf16 weights by activations rounded to bf16. */
  bf16Bf16: 4,
  /** IEEE half weights by f32 activations. */
  halfF32: 5,
  /** bf16 weights by f32 activations. */
  bf16F32: 6,
} as const;
export type PackedKind = keyof typeof PACKED_KIND;

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
  private readonly sizeOf: (...args: unknown[]) => void;
  private readonly pack: (...args: unknown[]) => void;

  constructor(
    library: NativeLibrary,
    private readonly memory: EngineMemory,
  ) {
    this.sizeOf = library.kernel(
      "int pl_packed_bytes(int32_t kind, int64_t n, int64_t k, void* bytes)",
    );
    this.pack = library.kernel(
      "int pl_pack_weights(int32_t kind, int64_t n, int64_t k, const void* source, int64_t packed)",
    );
  }

  packed(kind: PackedKind, shape: readonly [number, number], source: MatrixSource): PackedMatrix {
    const [n, k] = shape;
    const size = new BigInt64Array(1);
    this.sizeOf(PACKED_KIND[kind], n, k, size);
    const bytes = Number(size[0]);
    const { address } = this.memory.alloc("u8", bytes);
    this.pack(PACKED_KIND[kind], n, k, source.values, address);
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
