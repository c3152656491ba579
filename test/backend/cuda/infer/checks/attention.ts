/** Heads, cache and attention against their definition. */
import {
  PAGE_TOKENS,
  paddedHalves,
  pageLayout,
} from "../../../../../src/backend/cuda/infer/layout.js";
import {
  floats,
  fromHalf,
  generator,
  halves,
  poisoned,
  roundHalf,
  words,
  type Check,
} from "./support.js";

interface Sequence {
  readonly start: number;
  readonly rows: number;
}

interface AttentionCase {
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly kept: 4 | 16;
  readonly sequences: readonly Sequence[];
  readonly matrix?: boolean;
  readonly norm?: boolean;
  readonly window?: number;
  readonly splits?: number;
  /** Decoding: pages of a warp in shared memory, and what else is chosen when absent. */
  readonly ring?: number;
  readonly warps?: number;
  readonly shares?: number;
  /** q, k and v come as halves, which makes the products with matrices products of single halves. */
  readonly halves?: boolean;
  /** Largest query: large ones have scores far apart, so that sums are scaled again and again. */
  readonly size?: number;
}

/** A position of one head in the cache: what it stands for, and the grids' steps and zero points. */
interface Cached {
  readonly key: Float64Array;
  readonly value: Float64Array;
  readonly steps: readonly [number, number];
  readonly zeros: readonly [number, number];
}

/** Reads a head's cached keys and values of one position. */
function cached(bytes: Uint8Array, headDim: number, kept: 4 | 16, slot: number): Cached {
  const layout = pageLayout(headDim, kept);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const key = new Float64Array(headDim);
  const value = new Float64Array(headDim);
  const j = slot >> 3;
  const t = (slot % 8) >> 1;
  const e = slot % 2;
  for (let c = 0; c < headDim; c++) {
    if (kept === 16) {
      key[c] = fromHalf(view.getUint16((slot * headDim + c) * 2, true));
      const word = (((c >> 3) * 2 + (j >> 2)) * 32 + (c % 8) * 4 + t) * 4 + (j % 4);
      value[c] = fromHalf(view.getUint16(layout.values + word * 4 + e * 2, true));
    } else {
      const within = c % 8;
      const word = view.getUint32(((slot * headDim + c) >> 3) * 4, true);
      key[c] = (word >>> (4 * ((within >> 1) + 4 * (within % 2)))) & 15;
      const group = ((c >> 4) * 8 + (c % 8)) * 4 + t;
      const at = layout.values + group * 16 + ((c >> 3) % 2) * 8 + (j >> 2) * 4;
      value[c] = (view.getUint32(at, true) >>> (4 * ((j % 4) + 4 * e))) & 15;
    }
  }
  if (kept === 16) return { key, value, steps: [0, 0], zeros: [0, 0] };
  const keyScale = view.getFloat32(layout.keyScale + slot * 4, true);
  const valueScale = view.getFloat32(layout.valueScale + slot * 4, true);
  const keyZero = fromHalf(view.getUint16(layout.keyZero + slot * 2, true));
  const valueZero = fromHalf(view.getUint16(layout.valueZero + slot * 2, true));
  return {
    key: key.map((code) => keyScale * (code - keyZero)),
    value: value.map((code) => valueScale * (code - valueZero)),
    steps: [keyScale, valueScale],
    zeros: [keyZero, valueZero],
  };
}

/** heads, then both attention kernels, on a cache whose earlier positions were written by an earlier call. */
export const attention = (given: AttentionCase): Check => ({
  name: words(
    `attention ${given.heads}/${given.kvHeads}×${given.headDim} kv${given.kept}`,
    `[${given.sequences.map(({ start, rows }) => `${start}+${rows}`).join(" ")}]`,
    given.matrix && "matrix",
    given.norm && "norm",
    given.halves && "halves",
    given.size !== undefined && `queries to ${given.size}`,
    given.window !== undefined && `window ${given.window}`,
    given.splits !== undefined && `${given.splits} splits`,
    given.ring !== undefined && `ring of ${given.ring}`,
    given.warps !== undefined && `${given.warps} warps`,
    given.shares !== undefined && `${given.shares} blocks`,
  ),
  run: (device) => {
    const { headDim, heads, kvHeads, kept, sequences, window = 0 } = given;
    const next = generator(headDim * heads + kvHeads + sequences.length);
    const layout = pageLayout(headDim, kept);
    const pageBytes = kvHeads * layout.bytes;
    const pagesOf = sequences.map(({ start, rows }) => Math.ceil((start + rows) / PAGE_TOKENS));
    const pageTotal = pagesOf.reduce((a, b) => a + b, 0);
    // Pages in reverse, so that order is not taken for granted.
    const pageLists: number[][] = [];
    let free = pageTotal;
    for (const count of pagesOf) pageLists.push(Array.from({ length: count }, () => --free));
    const cache = poisoned(device, pageTotal * pageBytes);
    const half = headDim / 2;
    const square = () =>
      Array.from({ length: headDim * headDim }, () => roundHalf(next() / Math.sqrt(headDim)));
    const qMatrix = square();
    const kMatrix = square();
    const qGain = floats(headDim, () => 1 + next() / 2);
    const kGain = floats(headDim, () => 1 + next() / 2);
    const factors = Float32Array.of(0.98, 0.97, 0.99, 0.96);
    const levels = 15;
    // Rows of single halves: 2⁻¹¹·Σ|x·P|, with |x| ≤ 4 and Σ|P| ≤ √headDim.
    const single = Boolean(given.halves && given.matrix);
    const matrices = given.matrix
      ? {
          qMatrix: device.put(paddedHalves(qMatrix, headDim, headDim)),
          kMatrix: device.put(paddedHalves(kMatrix, headDim, headDim)),
        }
      : {};
    const gains = given.norm ? { qGain: device.put(qGain), kGain: device.put(kGain) } : {};
    const frequencies = Float64Array.from({ length: half }, (_, i) => 10000 ** (-i / half));
    const turns = new Map<number, { readonly cosine: Float64Array; readonly sine: Float64Array }>();
    const turnOf = (position: number) => {
      let turn = turns.get(position);
      if (!turn) {
        const angles = frequencies.map((frequency) => position * frequency);
        turn = { cosine: angles.map(Math.cos), sine: angles.map(Math.sin) };
        turns.set(position, turn);
      }
      return turn;
    };
    let worst = 0;
    const note = (error: number) =>
      (worst = Number.isNaN(error) ? Infinity : Math.max(worst, error));

    interface Rows {
      readonly sequence: number;
      readonly position: number;
    }
    const prepared = (
      x: Float64Array,
      position: number,
      gain: Float32Array,
      matrix: number[],
    ): Float64Array => {
      let v = x;
      if (given.norm) {
        const inverse = 1 / Math.sqrt(v.reduce((sum, a) => sum + a * a, 0) / headDim + 1e-5);
        v = v.map((a, i) => a * inverse * gain[i]);
      }
      const turned = new Float64Array(headDim);
      const { cosine, sine } = turnOf(position);
      for (let i = 0; i < half; i++) {
        turned[i] = v[i] * cosine[i] - v[half + i] * sine[i];
        turned[half + i] = v[half + i] * cosine[i] + v[i] * sine[i];
      }
      if (!given.matrix) return turned;
      const out = new Float64Array(headDim);
      for (let k = 0; k < headDim; k++)
        for (let j = 0; j < headDim; j++) out[j] += turned[k] * matrix[k * headDim + j];
      return out;
    };
    const run = (rows: readonly Rows[], outHalves: boolean) => {
      const count = rows.length;
      const q = floats(count * heads * headDim, next, given.size ?? 2);
      const k = floats(count * kvHeads * headDim, next, 2);
      const v = floats(count * kvHeads * headDim, next, 0.02);
      if (given.halves)
        for (const x of [q, k, v]) x.forEach((value, i) => (x[i] = roundHalf(value)));
      const upload = (x: Float32Array) => device.put(given.halves ? halves(x) : x);
      // Tasks: up to 64 rows, never a part of a page's.
      const tasks: number[] = [];
      const stretchEnd = (from: number) => {
        let end = from + 1;
        const page = (r: Rows) => pageLists[r.sequence][r.position >> 6];
        while (end < count && page(rows[end]) === page(rows[from])) end++;
        return end;
      };
      for (let row = 0; row < count;) {
        let end = stretchEnd(row);
        while (end < count && stretchEnd(end) - row <= 64) end = stretchEnd(end);
        tasks.push(row, end - row);
        row = end;
      }
      const out = poisoned(device, count * heads * headDim * (outHalves ? 2 : 4));
      device.kernels.queriesKeysValues({
        headDim,
        heads,
        kvHeads,
        kept,
        tasks: device.put(Int32Array.from(tasks)),
        taskCount: tasks.length / 2,
        pageOf: device.put(Int32Array.from(rows, (r) => pageLists[r.sequence][r.position >> 6])),
        slotOf: device.put(Int32Array.from(rows, (r) => r.position & 63)),
        q: upload(q),
        qStride: heads * headDim,
        k: upload(k),
        v: upload(v),
        kvStride: kvHeads * headDim,
        halves: given.halves ?? false,
        ...gains,
        epsilon: 1e-5,
        cosine: device.put(
          Float32Array.from(
            { length: count * half },
            (_, i) => turnOf(rows[Math.floor(i / half)].position).cosine[i % half],
          ),
        ),
        sine: device.put(
          Float32Array.from(
            { length: count * half },
            (_, i) => turnOf(rows[Math.floor(i / half)].position).sine[i % half],
          ),
        ),
        ...matrices,
        factors: device.put(factors),
        levels,
        out,
        outHalves,
        cache,
        pageBytes,
        // Short tasks have a kernel of their own.
        taskRows: Math.max(...tasks.filter((_, i) => i % 2 === 1)),
      });
      const queries = outHalves
        ? Float64Array.from(device.read(out, new Uint16Array(count * heads * headDim)), fromHalf)
        : Float64Array.from(device.read(out, new Float32Array(count * heads * headDim)));
      const pages = device.read(cache, new Uint8Array(pageTotal * pageBytes));
      rows.forEach(({ sequence, position }, r) => {
        for (let h = 0; h < heads; h++) {
          const at = (r * heads + h) * headDim;
          const want = prepared(
            Float64Array.from(q.subarray(at, at + headDim)),
            position,
            qGain,
            qMatrix,
          );
          want.forEach((w, i) =>
            note(
              Math.abs(queries[at + i] - w) /
                ((outHalves ? 2 ** -10 * Math.abs(w) : 0) +
                  (single ? 8e-3 : 2e-5) * Math.max(1, (given.size ?? 2) / 2)),
            ),
          );
        }
        for (let h = 0; h < kvHeads; h++) {
          const page = pageLists[sequence][position >> 6];
          const got = cached(
            pages.subarray(
              page * pageBytes + h * layout.bytes,
              page * pageBytes + (h + 1) * layout.bytes,
            ),
            headDim,
            kept,
            position & 63,
          );
          const at = (r * kvHeads + h) * headDim;
          const key = prepared(
            Float64Array.from(k.subarray(at, at + headDim)),
            position,
            kGain,
            kMatrix,
          );
          const value = Float64Array.from(v.subarray(at, at + headDim));
          [key, value].forEach((want, part) => {
            const codes = part === 0 ? got.key : got.value;
            if (kept === 16) {
              want.forEach((w, i) =>
                note(Math.abs(codes[i] - w) / (2 ** -10 * Math.abs(w) + 1e-5)),
              );
              return;
            }
            const hi = Math.max(0, ...want) * factors[2 * part];
            const lo = Math.min(0, ...want) * factors[2 * part + 1];
            const step = (hi - lo) / levels;
            note(Math.abs(got.steps[part] - step) / ((single ? 1e-2 : 1e-4) * step));
            // How far the unrounded values lie from the definition's, in codes. A code is the nearest unless the value
            // lies that near to a tie, where its neighbour is as good. So is the neighbour of a zero point, which is
            // −lo / step rounded: all codes of the row then count from the zero point that was stored.
            const uncertain = single && part === 0 ? 5e-2 : 2e-3;
            const zero = got.zeros[part];
            note((Math.abs(zero + lo / step) - 0.5) / uncertain);
            if (!Number.isInteger(zero)) note(Infinity);
            want.forEach((w, i) => {
              const place = Math.min(Math.max(w / step + zero, 0), levels) - zero;
              note((Math.abs(codes[i] / got.steps[part] - place) - 0.5) / uncertain);
            });
          });
        }
      });
      return { queries, pages, out };
    };

    // What is in the cache already, then the rows of this step.
    const history = sequences.flatMap(({ start }, sequence) =>
      Array.from({ length: start }, (_, position) => ({ sequence, position })),
    );
    if (history.length > 0) run(history, false);
    const rows = sequences.flatMap(({ start, rows: count }, sequence) =>
      Array.from({ length: count }, (_, i) => ({ sequence, position: start + i })),
    );
    const decoding = sequences.every((s) => s.rows === 1);
    const { queries, pages, out } = run(rows, !decoding);
    const offsets: number[] = [];
    pagesOf.reduce((sum, count) => (offsets.push(sum), sum + count), 0);
    const pageList = device.put(Int32Array.from(pageLists.flat()));
    const common = {
      headDim,
      heads,
      kvHeads,
      kept,
      q: out,
      pages: pageList,
      window,
      scale: 1 / Math.sqrt(headDim),
      cache,
      pageBytes,
    };
    const count = rows.length * heads * headDim;
    const outputs: Float32Array[] = [];
    if (decoding) {
      const got = poisoned(device, count * 4);
      const splits = given.splits ?? 1;
      const bytes = rows.length * heads * splits * (headDim + 2) * 4;
      const table = device.put(
        Int32Array.from(sequences.flatMap(({ start }, s) => [s, start + 1, offsets[s]])),
      );
      const attend = (ways: Pick<AttentionCase, "ring" | "warps" | "shares">) => {
        const partial = poisoned(device, bytes);
        const count = sequences.length;
        device.kernels.attendDecode({
          ...common,
          ...ways,
          sequences: table,
          count,
          splits,
          partial,
        });
        return partial;
      };
      const { warps, shares } = given;
      // Without bulk copies (a GPU before Hopper) the same rows go through registers both times.
      const ring = device.driver.info.capability >= 90 ? given.ring : given.ring && 0;
      const partial = attend({ ring, warps, shares });
      if (ring !== undefined || shares !== undefined) {
        // The way that pages come changes no bit, nor does the number of a block's pieces.
        const plain = attend({ ring: 0, warps, shares: splits });
        const [a, b] = [partial, plain].map((at) => device.read(at, new Uint8Array(bytes)));
        if (a.some((byte, i) => byte !== b[i])) note(Infinity);
      }
      device.kernels.joinSplits({
        partial,
        rows: rows.length,
        heads,
        headDim,
        splits,
        out: got,
        halves: false,
      });
      outputs.push(device.read(got, new Float32Array(count)));
    } else {
      const blocks: number[] = [];
      let row = 0;
      sequences.forEach(({ start, rows: count }, s) => {
        for (let from = 0; from < count; from += 128)
          blocks.push(row + from, Math.min(128, count - from), start + from, offsets[s]);
        row += count;
      });
      // The kernel that the GPU has for it, and the one for all.
      for (const plain of [false, true]) {
        const got = poisoned(device, count * 4);
        device.kernels.attendPrefill({
          ...common,
          blocks: device.put(Int32Array.from(blocks)),
          blockCount: blocks.length / 4,
          out: got,
          outHalves: false,
          plain,
        });
        outputs.push(device.read(got, new Float32Array(count)));
      }
    }
    // Read once each: every later row, and every head of a group, sees it again.
    const known = new Map<number, Cached>();
    const positionOf = (sequence: number, position: number, kv: number): Cached => {
      const page = pageLists[sequence][position >> 6];
      const slot = position & 63;
      const key = (page * PAGE_TOKENS + slot) * kvHeads + kv;
      let found = known.get(key);
      if (!found) {
        const from = page * pageBytes + kv * layout.bytes;
        found = cached(pages.subarray(from, from + layout.bytes), headDim, kept, slot);
        known.set(key, found);
      }
      return found;
    };
    rows.forEach(({ sequence, position }, r) => {
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads));
        const first = window > 0 ? Math.max(0, position - window + 1) : 0;
        const seen = Array.from({ length: position - first + 1 }, (_, i) =>
          positionOf(sequence, first + i, kv),
        );
        const query = queries.subarray((r * heads + h) * headDim, (r * heads + h + 1) * headDim);
        const scores = seen.map(
          ({ key }) => key.reduce((sum, a, i) => sum + a * query[i], 0) / Math.sqrt(headDim),
        );
        const top = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - top));
        const total = weights.reduce((a, b) => a + b, 0);
        const wants = new Float64Array(headDim);
        const sizes = new Float64Array(headDim);
        seen.forEach(({ value }, s) => {
          for (let i = 0; i < headDim; i++) {
            wants[i] += weights[s] * value[i];
            sizes[i] += weights[s] * Math.abs(value[i]);
          }
        });
        for (let i = 0; i < headDim; i++) {
          const want = wants[i] / total;
          const size = sizes[i] / total;
          // Decoding is as good as f32; prefill rounds weights (and its queries, which the definition reads) to halves.
          for (const output of outputs)
            note(
              Math.abs(output[(r * heads + h) * headDim + i] - want) /
                ((decoding ? 3e-5 : 2e-3) * size + 1e-7),
            );
        }
      }
    });
    return worst;
  },
});
