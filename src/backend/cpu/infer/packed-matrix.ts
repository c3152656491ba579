/**
 * Weights in the order of the native kernels (native/packed_weights.h, native/group_weights.h): packed once, when a model is
 * opened.
 */
import type { NativeLibrary } from "../../contract/native-library.js";
import type { PackedKind } from "../../contract/inference-kernels.js";
import { nativeKernels, type NativeKernels } from "../native-kernels.js";
import type { QuantizedMatrix } from "../../contract/packed.js";
import { PlanishError } from "../../../common/errors.js";
import { LEGAL_GROUPS } from "../../contract/scheme.js";
import { groupForm, groupKind, repeated } from "./group-form.js";
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
  /** Of weights with a scale per group of channels, which lie beside the codes. */
  readonly groups?: GroupLayout;
}

export interface GroupLayout {
  /** Channels per scale. */
  readonly size: number;
  /** As the kernels take it (native/group_weights.h). */
  readonly form: number;
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

  /**
   * A matrix with a scale per group. `bits`: of its codes; `span`: channels per scale of the activations that it
   * multiplies, where they have groups too: larger groups of weights are kept as several of that size.
   * @throws PlanishError when the groups do not divide the columns.
   */
  grouped(
    what: string,
    shape: readonly [number, number],
    matrix: QuantizedMatrix & { readonly bias?: ArrayLike<number> },
    bits: number,
    span?: number,
  ): PackedMatrix {
    const [n, k] = shape;
    const own = matrix.group ?? k;
    const size = Math.min(own, span ?? own);
    for (const group of [own, size, span ?? own]) checkGroup(what, k, group);
    const scale = repeated(matrix.scale, own / size);
    const offset = matrix.offset && repeated(matrix.offset, own / size);
    const kind = groupKind(bits);
    const form = groupForm({ ...matrix, scale, offset }, bits);
    const layout = { kind, n, k, group: size, form };
    const count = new BigInt64Array(1);
    this.kernels.groupBytes({ ...layout, bytes: count });
    const bytes = Number(count[0]);
    const { address } = this.memory.reserve(bytes);
    this.kernels.packGroups({ ...layout, codes: matrix.codes, scale, offset, packed: address });
    return {
      kind,
      shape,
      bytes,
      address,
      scale: 0n,
      bias: matrix.bias ? this.memory.floats(matrix.bias).address : 0n,
      groups: { size, form },
    };
  }
}

/** @throws PlanishError unless groups divide the columns, and the kernels' steps divide groups. */
function checkGroup(what: string, columns: number, group: number): void {
  if (columns % group === 0 && group % 16 === 0) return;
  const fitting = LEGAL_GROUPS.filter((size) => columns % size === 0);
  throw new PlanishError(
    `${what} has ${columns} input channels, which groups of ${group} do not divide; ` +
      (fitting.length > 0
        ? `groups of ${fitting.join(", ")} do`
        : "no group does: give a scheme without"),
  );
}
