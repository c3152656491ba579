/**
 * Bindings of the engine's kernels one by one, on typed arrays: for tests, benches and whoever multiplies packed weights
 * outside the engine, which itself runs them by lists of calls (src/engine/integer/plan.ts).
 */
import { PlanishError } from "../../common/errors.js";
import { loadNativeLibrary } from "./library.js";

/** What a packed matrix holds and what it is multiplied with; the numbers are those of PackedKind. */
export const PACKED_KIND = {
  /** 4-bit codes by int8 codes, exact. */
  int4: 0,
  /** 8-bit codes by int8 codes, exact. */
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

/** SiteInput in native/kernels/site.h. */
export const SITE_INPUT = { plain: 0, rms: 1, layer: 2, activation: 3, gated: 4 } as const;
/** UnaryCode in native/kernels/elementwise.h. */
export const SITE_ACTIVATION = { silu: 1, relu: 2, gelu: 3, geluTanh: 4 } as const;

/** Weights [n, k] in the order of the kernels; valid at the instruction-set level that packed them. */
export interface PackedArray {
  readonly kind: PackedKind;
  readonly n: number;
  readonly k: number;
  readonly bytes: Uint8Array;
}

export interface PackedProductArgs {
  readonly m: number;
  /** int8 codes for `int4` and `int8`, else f32; [m, k]. */
  readonly a: Int8Array | Float32Array;
  /** [m], with codes. */
  readonly aScale?: Float32Array;
  readonly weights: PackedArray;
  /** [n]. */
  readonly bScale?: Float32Array;
  readonly bias?: Float32Array;
  /** [m, n]. */
  readonly out: Float32Array;
  readonly accumulate?: boolean;
}

export interface SiteArgs {
  readonly input: keyof typeof SITE_INPUT;
  readonly activation?: keyof typeof SITE_ACTIVATION;
  /** [rows, nLeft·nRight]. */
  readonly x: Float32Array;
  /** The second factor of `gated`. */
  readonly x2?: Float32Array;
  readonly rows: number;
  readonly nLeft: number;
  readonly nRight: number;
  readonly gain?: Float32Array;
  readonly bias?: Float32Array;
  readonly epsilon?: number;
  readonly left?: Float32Array;
  readonly right?: Float32Array;
  /** 2 … 8, or 16 for transformed rows in `out`. */
  readonly bits: number;
  /** A pair of clipping logits (max, min) per set of codes; ∞ clips nothing. */
  readonly clips: readonly (readonly [number, number])[];
  /** [sets, rows, nLeft·nRight] */
  readonly codes?: Int8Array;
  /** [sets, rows] */
  readonly scale?: Float32Array;
  readonly out?: Float32Array;
}

/** Consecutive rows of one sequence in a step. */
export interface CacheChunk {
  readonly row: number;
  readonly rows: number;
  readonly start: number;
  readonly pages: readonly number[];
}

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** A cache of one layer. */
export interface LayerCache {
  readonly bits: number;
  readonly pageBytes: number;
  readonly bytes: Uint8Array;
}

export interface CacheWriteArgs extends HeadShape {
  readonly chunks: readonly CacheChunk[];
  /** Prepared in place. */
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly qGain?: Float32Array;
  readonly kGain?: Float32Array;
  readonly epsilon?: number;
  /** [rows, headDim/2] each. */
  readonly cosine?: Float32Array;
  readonly sine?: Float32Array;
  readonly qMatrix?: Float32Array;
  readonly kMatrix?: Float32Array;
  readonly queryBits: number;
  /** Keys' max and min, values' max and min. */
  readonly clips: readonly [number, number, number, number];
  readonly cache: LayerCache;
}

export interface PagedAttentionArgs extends HeadShape {
  readonly chunks: readonly CacheChunk[];
  readonly window?: number;
  readonly q: Float32Array;
  readonly cache: LayerCache;
  readonly out: Float32Array;
}

export interface EngineKernels {
  packWeights(
    kind: PackedKind,
    n: number,
    k: number,
    values: Int8Array | Float32Array,
  ): PackedArray;
  packedProduct(args: PackedProductArgs): void;
  site(args: SiteArgs): void;
  layerCache(headDim: number, kvHeads: number, bits: number, pages: number): LayerCache;
  cacheWrite(args: CacheWriteArgs): void;
  pagedAttention(args: PagedAttentionArgs): void;
}

/** @throws PlanishError when the native library is not built. */
export function engineKernels(): EngineKernels {
  const library = loadNativeLibrary();
  const packedBytes = library.kernel(
    "int pl_packed_bytes(int32_t kind, int64_t n, int64_t k, void* bytes)",
  );
  const pack = library.kernel(
    "int pl_pack_weights(int32_t kind, int64_t n, int64_t k, const void* source, void* packed)",
  );
  const product = library.kernel(
    "int pl_packed_matmul(int32_t kind, int64_t m, int64_t n, int64_t k, const void* a, const void* aScale, " +
      "const void* packed, const void* bScale, const void* bias, void* out, int32_t accumulate)",
  );
  const site = library.kernel(
    "int pl_site(int32_t input, int32_t op, const void* x, const void* x2, int64_t rows, int64_t nLeft, int64_t nRight, " +
      "const void* gain, const void* bias, float epsilon, const void* left, const void* right, int32_t bits, " +
      "int64_t sets, int64_t capacity, const void* clips, void* codes, void* scale, void* out)",
  );
  const headBytes = library.kernel(
    "int pl_cache_head_bytes(int64_t headDim, int32_t bits, void* bytes)",
  );
  const write = library.kernel(
    "int pl_cache_write(int64_t chunks, const void* table, const void* pages, int64_t heads, int64_t kvHeads, " +
      "int64_t headDim, void* q, void* k, void* v, const void* qGain, const void* kGain, float epsilon, " +
      "const void* cosine, const void* sine, const void* qMatrix, const void* kMatrix, int32_t queryBits, int32_t bits, " +
      "const void* clips, void* cache, int64_t pageBytes)",
  );
  const attention = library.kernel(
    "int pl_paged_attention(int64_t chunks, const void* table, const void* pages, int64_t heads, int64_t kvHeads, " +
      "int64_t headDim, int64_t window, float scale, const void* q, int32_t bits, const void* cache, int64_t pageBytes, " +
      "void* out)",
  );
  return {
    packWeights(kind, n, k, values) {
      const size = new BigInt64Array(1);
      packedBytes(PACKED_KIND[kind], n, k, size);
      const bytes = new Uint8Array(Number(size[0]));
      need(values, n * k, "weights");
      pack(PACKED_KIND[kind], n, k, values, bytes);
      return { kind, n, k, bytes };
    },
    packedProduct({ m, a, aScale, weights, bScale, bias, out, accumulate }) {
      const { kind, n, k, bytes } = weights;
      const codes = kind === "int4" || kind === "int8";
      if (
        codes !== a instanceof Int8Array ||
        codes !== (aScale !== undefined) ||
        (codes && !bScale)
      )
        throw new PlanishError(
          `packed product: ${kind} takes ${codes ? "int8 codes with scales" : "f32 without aScale"}`,
        );
      need(a, m * k, "a");
      need(aScale, m, "aScale");
      need(bScale, n, "bScale");
      need(bias, n, "bias");
      need(out, m * n, "out");
      product(
        PACKED_KIND[kind],
        m,
        n,
        k,
        a,
        aScale ?? null,
        bytes,
        bScale ?? null,
        bias ?? null,
        out,
        accumulate ? 1 : 0,
      );
    },
    site(args) {
      const {
        input,
        activation,
        x,
        x2,
        rows,
        nLeft,
        nRight,
        gain,
        bias,
        epsilon = 0,
        bits,
        clips,
      } = args;
      const length = rows * nLeft * nRight;
      need(x, length, "x");
      need(x2, length, "x2");
      if (bits < 16) {
        need(args.codes ?? new Int8Array(), clips.length * length, "codes");
        need(args.scale ?? new Float32Array(), clips.length * rows, "scale");
      } else need(args.out ?? new Float32Array(), length, "out");
      site(
        SITE_INPUT[input],
        activation ? SITE_ACTIVATION[activation] : 0,
        x,
        x2 ?? null,
        rows,
        nLeft,
        nRight,
        gain ?? null,
        bias ?? null,
        epsilon,
        args.left ?? null,
        args.right ?? null,
        bits,
        clips.length,
        rows,
        Float32Array.from(clips.flat()),
        args.codes ?? null,
        args.scale ?? null,
        args.out ?? null,
      );
    },
    layerCache(headDim, kvHeads, bits, pages) {
      const size = new BigInt64Array(1);
      headBytes(headDim, bits, size);
      const pageBytes = Number(size[0]) * kvHeads;
      return { bits, pageBytes, bytes: new Uint8Array(pageBytes * pages) };
    },
    cacheWrite(args) {
      const { heads, kvHeads, headDim, q, k, v, cache } = args;
      const { table, pages } = chunkTable(args.chunks);
      write(
        args.chunks.length,
        table,
        pages,
        heads,
        kvHeads,
        headDim,
        q,
        k,
        v,
        args.qGain ?? null,
        args.kGain ?? null,
        args.epsilon ?? 0,
        args.cosine ?? null,
        args.sine ?? null,
        args.qMatrix ?? null,
        args.kMatrix ?? null,
        args.queryBits,
        cache.bits,
        Float32Array.from(args.clips),
        cache.bytes,
        cache.pageBytes,
      );
    },
    pagedAttention({ heads, kvHeads, headDim, chunks, window = 0, q, cache, out }) {
      const { table, pages } = chunkTable(chunks);
      const { bits, bytes, pageBytes } = cache;
      const scale = 1 / Math.sqrt(headDim);
      attention(
        chunks.length,
        table,
        pages,
        heads,
        kvHeads,
        headDim,
        window,
        scale,
        q,
        bits,
        bytes,
        pageBytes,
        out,
      );
    },
  };
}

function need(array: { readonly length: number } | undefined, length: number, name: string): void {
  if (array && array.length < length)
    throw new PlanishError(`${name} has ${array.length} elements; the kernel reaches ${length}`);
}

/** Chunks as the kernels read them: records, and one list of pages. */
function chunkTable(chunks: readonly CacheChunk[]): { table: Int32Array; pages: Int32Array } {
  let at = 0;
  const records = chunks.map(({ row, rows, start, pages }) => {
    const record = [row, rows, start, at];
    at += pages.length;
    return record;
  });
  return {
    table: Int32Array.from(records.flat()),
    pages: Int32Array.from(chunks.flatMap(({ pages }) => pages)),
  };
}
