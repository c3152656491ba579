/**
 * Bindings of the engine's kernels one by one, on typed arrays: for tests, benches and whoever multiplies packed weights
 * outside the engine, which itself runs them by lists of calls (src/backend/cpu/infer/plan.ts).
 */
import { PlanishError } from "../../../common/errors.js";
import type { CacheChunk, EngineKernels } from "../../contract/inference-kernels.js";
import { loadNativeLibrary } from "../library.js";
import { nativeKernels } from "../native-kernels.js";
import { groupForm, groupKind } from "./group-form.js";

/** @throws PlanishError when the native library is not built. */
export function engineKernels(): EngineKernels {
  const native = nativeKernels(loadNativeLibrary());
  return {
    packWeights(kind, n, k, values) {
      const size = new BigInt64Array(1);
      native.packedBytes({ kind, n, k, bytes: size });
      const bytes = new Uint8Array(Number(size[0]));
      native.packWeights({ kind, n, k, source: values, packed: bytes });
      return { kind, n, k, bytes };
    },
    packedProduct({ weights, accumulate = false, ...args }) {
      const { kind, n, k, bytes } = weights;
      const codes = kind === "int4" || kind === "int8";
      if (
        codes !== args.a instanceof Int8Array ||
        codes !== (args.aScale !== undefined) ||
        (codes && !args.bScale)
      )
        throw new PlanishError(
          `packed product: ${kind} takes ${codes ? "int8 codes with scales" : "f32 without aScale"}`,
        );
      native.packedMatmul({ ...args, kind, n, k, packed: bytes, accumulate });
    },
    packGroups(n, k, bits, weights) {
      const { codes, scale, offset, group = k } = weights;
      const kind = groupKind(bits);
      const form = groupForm(weights, bits);
      const size = new BigInt64Array(1);
      native.groupBytes({ kind, n, k, group, form, bytes: size });
      const bytes = new Uint8Array(Number(size[0]));
      native.packGroups({ kind, n, k, group, form, codes, scale, offset, packed: bytes });
      return { kind, n, k, group, form, bytes };
    },
    groupRows({ bytes: packed, ...weights }, ids, out) {
      native.groupRows({ ...weights, packed, ids, rows: ids.length, out });
    },
    groupProduct({ weights: { bytes: packed, ...weights }, accumulate = false, ...args }) {
      native.groupMatmul({ ...args, ...weights, packed, accumulate });
    },
    site({ activation = "sigmoid", epsilon = 0, clips, span, ...args }) {
      const { bits, codes, scale, out, rows } = args;
      if (bits < 16 ? !codes || !scale : !out)
        throw new PlanishError(
          `site: rows of ${bits} bits need ${bits < 16 ? "codes and scale" : "out"}`,
        );
      native.site({
        ...args,
        span: span ?? args.nLeft * args.nRight,
        op: activation,
        epsilon,
        alpha: 0,
        limit: 0,
        sets: clips.length,
        capacity: rows,
        clips: Float32Array.from(clips.flat()),
      });
    },
    layerCache(headDim, kvHeads, bits, pages) {
      const size = new BigInt64Array(1);
      native.cacheHeadBytes({ headDim, bits, bytes: size });
      const pageBytes = Number(size[0]) * kvHeads;
      return { bits, pageBytes, bytes: new Uint8Array(pageBytes * pages) };
    },
    cacheWrite({ chunks, cache, clips, epsilon = 0, ...args }) {
      native.cacheWrite({
        ...args,
        ...chunkTable(chunks),
        epsilon,
        bits: cache.bits,
        clips: Float32Array.from(clips),
        cache: cache.bytes,
        pageBytes: cache.pageBytes,
      });
    },
    pagedAttention({ chunks, window = 0, chunk = 0, softcap = 0, cache, ...args }) {
      native.pagedAttention({
        ...args,
        ...chunkTable(chunks),
        window,
        chunk,
        softcap,
        scale: 1 / Math.sqrt(args.headDim),
        bits: cache.bits,
        cache: cache.bytes,
        pageBytes: cache.pageBytes,
      });
    },
  };
}

/** Chunks as the kernels read them: records, and one list of pages. */
function chunkTable(chunks: readonly CacheChunk[]): {
  readonly chunks: number;
  readonly table: Int32Array;
  readonly pages: Int32Array;
} {
  let at = 0;
  const records = chunks.map(({ row, rows, start, pages }) => {
    const record = [row, rows, start, at];
    at += pages.length;
    return record;
  });
  return {
    chunks: chunks.length,
    table: Int32Array.from(records.flat()),
    pages: Int32Array.from(chunks.flatMap(({ pages }) => pages)),
  };
}
