/**
 * cuBLASLt: dense matrix products of 32-bit, 16-bit and 8-bit operands. A product's descriptors and its algorithm are
 * found once per shape and reused.
 *
 * cuBLASLt counts in columns: a row-major m×n matrix is its column-major n×m. So C = A·B (row-major) is asked for as
 * Cᵀ = Bᵀ·Aᵀ, with the operands exchanged and no data moved.
 */
import { PlanishError } from "../../../common/errors.js";
import type { CudaDriver, DevicePointer, Stream } from "../driver.js";
import { openCudaLibrary, type ForeignFunction } from "../libraries.js";

/** cudaDataType_t. */
const DATA_TYPE = { f32: 0, f16: 2, bf16: 14, i8: 3, i32: 10 } as const;
/** cublasComputeType_t: f32 without TF32, TF32 where allowed, exact integers. */
const COMPUTE = { f32: 68, tf32: 77, i32: 72 } as const;
/** Attributes of the descriptors. */
const DESC = { transposeA: 3, transposeB: 4 } as const;
const LAYOUT = { batchCount: 5, batchOffset: 6 } as const;
const PREFERENCE = { workspace: 1, alignment: [5, 6, 7, 8] } as const;
const HEURISTIC_BYTES = 96;
const ALGORITHM_BYTES = 64;
/** What cuBLAS recommends for Hopper. */
export const WORKSPACE_BYTES = 64 * 2 ** 20;

export type GemmType = keyof typeof DATA_TYPE;

/** One operand: the stored row-major matrix is rows×cols, or cols×rows when transposed. */
export interface GemmOperand {
  readonly pointer: DevicePointer;
  /** Elements between stored rows. */
  readonly stride: number;
  readonly transposed: boolean;
  /** Elements between the matrices of a batch; 0 shares one. */
  readonly batchStride: number;
}

/** C[m,n] = alpha·A[m,k]·B[k,n] + beta·C. */
export interface GemmRequest {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly batch: number;
  /** Type of A and B: f32, f16 and bf16 give f32 (or 16 bits, as `outType` says), i8 gives i32. */
  readonly type: "f32" | "f16" | "bf16" | "i8";
  readonly outType: GemmType;
  /** f32 operands rounded to TF32 (10 bits) for the matrix units; off by default. */
  readonly tf32?: boolean;
  readonly a: GemmOperand;
  readonly b: GemmOperand;
  readonly c: Omit<GemmOperand, "transposed">;
  readonly alpha: number;
  readonly beta: number;
}

interface Plan {
  readonly desc: number;
  readonly layouts: readonly [number, number, number];
  readonly algorithm: Uint8Array;
}

/** Largest power of two up to 256 that divides an address or a stride in bytes. */
function alignment(...bytes: number[]): number {
  let aligned = 256;
  for (const value of bytes) while (value % aligned !== 0) aligned /= 2;
  return aligned;
}

const ELEMENT_BYTES: Readonly<Record<GemmType, number>> = {
  f32: 4,
  f16: 2,
  bf16: 2,
  i8: 1,
  i32: 4,
};

export class CublasLt implements Disposable {
  readonly path: string;
  private readonly call: Readonly<Record<string, ForeignFunction>>;
  private readonly handle: number;
  private readonly plans = new Map<string, Plan>();
  private readonly workspace: DevicePointer;
  private readonly slot = new BigUint64Array(1);
  private readonly alpha = { real: new Float32Array(1), integer: new Int32Array(1) };
  private readonly beta = { real: new Float32Array(1), integer: new Int32Array(1) };

  /** Throws PlanishError when cuBLASLt is not installed. */
  constructor(
    private readonly driver: CudaDriver,
    private readonly stream: Stream,
  ) {
    const library = openCudaLibrary("cublasLt");
    this.path = library.path;
    this.call = {
      status: library.bind("const char* cublasLtGetStatusString(int status)"),
      create: library.bind("int cublasLtCreate(void* handle)"),
      destroy: library.bind("int cublasLtDestroy(uint64_t handle)"),
      descCreate: library.bind("int cublasLtMatmulDescCreate(void* desc, int compute, int scale)"),
      descSet: library.bind(
        "int cublasLtMatmulDescSetAttribute(uint64_t desc, int attribute, const void* value, size_t bytes)",
      ),
      descDestroy: library.bind("int cublasLtMatmulDescDestroy(uint64_t desc)"),
      layoutCreate: library.bind(
        "int cublasLtMatrixLayoutCreate(void* layout, int type, uint64_t rows, uint64_t cols, int64_t stride)",
      ),
      layoutSet: library.bind(
        "int cublasLtMatrixLayoutSetAttribute(uint64_t layout, int attribute, const void* value, size_t bytes)",
      ),
      layoutDestroy: library.bind("int cublasLtMatrixLayoutDestroy(uint64_t layout)"),
      preferenceCreate: library.bind("int cublasLtMatmulPreferenceCreate(void* preference)"),
      preferenceSet: library.bind(
        "int cublasLtMatmulPreferenceSetAttribute(uint64_t preference, int attribute, const void* value, size_t bytes)",
      ),
      preferenceDestroy: library.bind("int cublasLtMatmulPreferenceDestroy(uint64_t preference)"),
      heuristic: library.bind(
        "int cublasLtMatmulAlgoGetHeuristic(uint64_t handle, uint64_t desc, uint64_t a, uint64_t b, uint64_t c, " +
          "uint64_t d, uint64_t preference, int requested, void* results, void* found)",
      ),
      matmul: library.bind(
        "int cublasLtMatmul(uint64_t handle, uint64_t desc, const void* alpha, uint64_t a, uint64_t aLayout, " +
          "uint64_t b, uint64_t bLayout, const void* beta, uint64_t c, uint64_t cLayout, uint64_t d, uint64_t dLayout, " +
          "const void* algorithm, uint64_t workspace, size_t workspaceBytes, uint64_t stream)",
      ),
    };
    this.check("cublasLtCreate", this.call.create(this.slot));
    this.handle = Number(this.slot[0]);
    this.workspace = driver.allocate(WORKSPACE_BYTES, stream);
  }

  private check(name: string, status: unknown, what = ""): void {
    if (Number(status) !== 0)
      throw new PlanishError(
        `cuBLASLt's ${name} failed (${String(this.call.status(Number(status)))})${what}; library ${this.path}`,
      );
  }

  private created(name: string, call: (slot: BigUint64Array) => unknown): number {
    this.check(name, call(this.slot));
    return Number(this.slot[0]);
  }

  /** Whether the 8-bit matrix units take these sizes: rows of 16 bytes, sizes in fours. */
  static takesInt8(m: number, n: number, k: number): boolean {
    return m % 4 === 0 && n % 4 === 0 && k % 16 === 0;
  }

  /** Enqueues the product. Throws PlanishError when cuBLASLt has no algorithm for it. */
  gemm(request: GemmRequest): void {
    const { m, n, k, type, outType, a, b, c } = request;
    if (m === 0 || n === 0 || request.batch === 0) return;
    const width = ELEMENT_BYTES[type];
    const outWidth = ELEMENT_BYTES[outType];
    const aligned = [
      alignment(b.pointer, b.stride * width, b.batchStride * width),
      alignment(a.pointer, a.stride * width, a.batchStride * width),
      alignment(c.pointer, c.stride * outWidth, c.batchStride * outWidth),
    ];
    const key = [
      ...[type, outType, request.tf32 ? 1 : 0, m, n, k, request.batch],
      ...[a.transposed ? 1 : 0, a.stride, a.batchStride],
      ...[b.transposed ? 1 : 0, b.stride, b.batchStride],
      ...[c.stride, c.batchStride, ...aligned],
    ].join(",");
    let plan = this.plans.get(key);
    if (!plan) {
      plan = this.plan(request, aligned);
      this.plans.set(key, plan);
    }
    const kind = type === "i8" ? "integer" : "real";
    this.alpha[kind][0] = request.alpha;
    this.beta[kind][0] = request.beta;
    const { desc, layouts, algorithm } = plan;
    this.check(
      "cublasLtMatmul",
      this.call.matmul(
        this.handle,
        desc,
        this.alpha[kind],
        b.pointer,
        layouts[0],
        a.pointer,
        layouts[1],
        this.beta[kind],
        c.pointer,
        layouts[2],
        c.pointer,
        layouts[2],
        algorithm,
        this.workspace,
        WORKSPACE_BYTES,
        this.stream,
      ),
      ` for ${describe(request)}`,
    );
  }

  private layout(
    type: GemmType,
    rows: number,
    cols: number,
    stride: number,
    batch: number,
    batchStride: number,
  ): number {
    // Row-major rows×cols is column-major cols×rows.
    const layout = this.created("cublasLtMatrixLayoutCreate", (slot) =>
      this.call.layoutCreate(slot, DATA_TYPE[type], cols, rows, stride),
    );
    if (batch > 1) {
      this.check(
        "cublasLtMatrixLayoutSetAttribute",
        this.call.layoutSet(layout, LAYOUT.batchCount, Int32Array.of(batch), 4),
      );
      this.check(
        "cublasLtMatrixLayoutSetAttribute",
        this.call.layoutSet(layout, LAYOUT.batchOffset, BigInt64Array.of(BigInt(batchStride)), 8),
      );
    }
    return layout;
  }

  private plan(request: GemmRequest, aligned: readonly number[]): Plan {
    const { m, n, k, batch, type, outType, a, b, c } = request;
    const compute = type === "i8" ? COMPUTE.i32 : request.tf32 ? COMPUTE.tf32 : COMPUTE.f32;
    const scaleType = type === "i8" ? DATA_TYPE.i32 : DATA_TYPE.f32;
    const desc = this.created("cublasLtMatmulDescCreate", (slot) =>
      this.call.descCreate(slot, compute, scaleType),
    );
    // The first operand is Bᵀ: column-major n×k when B is stored k×n.
    for (const [attribute, operand] of [
      [DESC.transposeA, b],
      [DESC.transposeB, a],
    ] as const) {
      this.check(
        "cublasLtMatmulDescSetAttribute",
        this.call.descSet(desc, attribute, Int32Array.of(operand.transposed ? 1 : 0), 4),
      );
    }
    const stored = (operand: GemmOperand, rows: number, cols: number) =>
      operand.transposed
        ? this.layout(type, cols, rows, operand.stride, batch, operand.batchStride)
        : this.layout(type, rows, cols, operand.stride, batch, operand.batchStride);
    const layouts = [
      stored(b, k, n),
      stored(a, m, k),
      this.layout(outType, m, n, c.stride, batch, c.batchStride),
    ] as const;
    const preference = this.created("cublasLtMatmulPreferenceCreate", (slot) =>
      this.call.preferenceCreate(slot),
    );
    const prefer = (attribute: number, value: BigUint64Array | Uint32Array) => {
      this.check(
        "cublasLtMatmulPreferenceSetAttribute",
        this.call.preferenceSet(preference, attribute, value, value.byteLength),
      );
    };
    prefer(PREFERENCE.workspace, BigUint64Array.of(BigInt(WORKSPACE_BYTES)));
    [aligned[0], aligned[1], aligned[2], aligned[2]].forEach((bytes, i) => {
      prefer(PREFERENCE.alignment[i], Uint32Array.of(bytes));
    });
    const results = new Uint8Array(HEURISTIC_BYTES);
    const found = new Int32Array(1);
    const status = this.call.heuristic(
      this.handle,
      desc,
      layouts[0],
      layouts[1],
      layouts[2],
      layouts[2],
      preference,
      1,
      results,
      found,
    );
    this.call.preferenceDestroy(preference);
    this.check("cublasLtMatmulAlgoGetHeuristic", status, ` for ${describe(request)}`);
    if (found[0] === 0)
      throw new PlanishError(
        `cuBLASLt has no algorithm for ${describe(request)}; library ${this.path}`,
      );
    return { desc, layouts, algorithm: results.slice(0, ALGORITHM_BYTES) };
  }

  [Symbol.dispose](): void {
    for (const { desc, layouts } of this.plans.values()) {
      this.call.descDestroy(desc);
      for (const layout of layouts) this.call.layoutDestroy(layout);
    }
    this.plans.clear();
    this.call.destroy(this.handle);
    this.driver.free(this.workspace, this.stream);
  }
}

function describe({ m, n, k, batch, type, outType, a, b }: GemmRequest): string {
  const side = (operand: GemmOperand) =>
    `${operand.transposed ? "transposed " : ""}stride ${operand.stride}`;
  return `a ${m}×${n}×${k} product of ${type} to ${outType} (batch ${batch}, A ${side(a)}, B ${side(b)})`;
}
