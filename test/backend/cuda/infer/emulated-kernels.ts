/**
 * What the engine's CUDA kernels compute, stated plainly in float64 on emulated memory. The order of the cache and of
 * packed weights is our own: only the executor is under test here.
 */
import { floatToHalfBits } from "../../../../src/common/half.js";
import {
  codeOffset,
  packedBytes,
  pageLayout,
  siteGeometry,
} from "../../../../src/backend/cuda/infer/layout.js";
import { EmulatedTables, multiplyGroups, type EmulatedWeights } from "./emulated-groups.js";
import { silu, type Launch } from "./emulated-launch.js";
import { centre, normalize, runRows } from "./emulated-rows.js";
import type { EmulatedMemory } from "./emulated-memory.js";

export class EmulatedKernels {
  private readonly weights = new Map<number, EmulatedWeights>();
  private readonly tables: EmulatedTables;

  constructor(private readonly memory: EmulatedMemory) {
    this.tables = new EmulatedTables(memory);
  }

  run(launch: Launch): void {
    this.readRows.clear();
    switch (launch.kernel.name) {
      case "embed":
        this.embed(launch);
        break;
      case "final_rows":
        this.finalRows(launch);
        break;
      case "head":
        this.head(launch);
        break;
      case "pack_weights":
        this.pack(launch);
        break;
      case "site":
      case "site_cluster":
        this.site(launch);
        break;
      case "gemm":
      case "gemm_narrow":
      case "gemm_prefill":
      case "gemm_mma":
        this.gemm(launch);
        break;
      case "gemm_group":
      case "gemm_group_narrow":
        multiplyGroups(this.memory, this.weights, launch);
        break;
      case "embed_codes":
        this.embedCodes(launch);
        break;
      case "head_codes":
        this.headCodes(launch);
        break;
      case "pack_table":
        this.tables.pack(launch);
        break;
      case "norm_rows":
      case "pair_rows":
      case "activate_rows":
      case "scale_rows":
      case "rotary_tables":
        runRows(this.memory, launch);
        break;
      case "queries_keys_values":
        this.queriesKeysValues(launch);
        break;
      case "attention_decode":
        this.attendDecode(launch);
        break;
      case "attention_prefill":
      case "attention_prefill_wgmma":
        this.attendPrefill(launch);
        break;
      default:
        throw new Error(`no statement of ${launch.kernel.name}`);
    }
  }

  private embed({ kernel, grid: [rows], args }: Launch): void {
    const [table, ids, positions, cols, factor, frequencies, half, x, cosine, sine] = args;
    const embedded = (id: number) =>
      this.memory.halves(table + id * cols * 2, cols, kernel.defines.BF16);
    const tables = { positions, frequencies, half, cosine, sine };
    this.embedRows(rows, ids, x, (id) => embedded(id).map((value) => value * factor), tables);
  }

  /** Rows of a table and of the rotary tables. */
  private embedRows(
    rows: number,
    ids: number,
    x: number,
    embedded: (id: number) => Float32Array,
    tables: Record<"positions" | "frequencies" | "half" | "cosine" | "sine", number>,
  ): void {
    const { positions, frequencies, half, cosine, sine } = tables;
    for (let row = 0; row < rows; row++) {
      const position = this.memory.rest(Int32Array, positions)[row];
      const from = embedded(this.memory.rest(Int32Array, ids)[row]);
      this.memory.view(Float32Array, x + 4 * row * from.length, from.length).set(from);
      for (let i = 0; i < half; i++) {
        const angle = position * this.memory.rest(Float64Array, frequencies)[i];
        this.memory.rest(Float32Array, cosine)[row * half + i] = Math.cos(angle);
        this.memory.rest(Float32Array, sine)[row * half + i] = Math.sin(angle);
      }
    }
  }

  /** Here a row's two parts are one f32, in the room of both. */
  private finalRows({ kernel, grid: [rows], args }: Launch): void {
    const [x, chosen, cols, gain, bias, epsilon, out] = args;
    for (let i = 0; i < rows; i++) {
      const row = this.memory.rest(Int32Array, chosen)[i];
      const values = Float64Array.from(this.memory.view(Float32Array, x + 4 * row * cols, cols));
      if (kernel.defines.NORM === 2) centre(values);
      if (kernel.defines.NORM)
        normalize(values, this.memory.view(Float32Array, gain, cols), epsilon);
      if (kernel.defines.NORM && bias)
        this.memory.view(Float32Array, bias, cols).forEach((add, c) => (values[c] += add));
      this.memory.view(Float32Array, out + 4 * i * cols, cols).set(values);
    }
  }

  private head({ kernel, args }: Launch): void {
    const [x, table, rows, vocab, cols, cap, out] = args;
    const weights = this.memory.halves(table, vocab * cols, kernel.defines.BF16);
    this.logits({ x, rows, vocab, cols, cap, out }, weights);
  }

  private logits(
    given: Record<"x" | "rows" | "vocab" | "cols" | "cap" | "out", number>,
    weights: ArrayLike<number>,
  ): void {
    const { x, rows, vocab, cols, cap, out } = given;
    for (let row = 0; row < rows; row++) {
      const from = this.memory.view(Float32Array, x + 4 * row * cols, cols);
      const to = this.memory.view(Float32Array, out + 4 * row * vocab, vocab);
      for (let v = 0; v < vocab; v++) {
        let sum = 0;
        for (let k = 0; k < cols; k++) sum += from[k] * weights[v * cols + k];
        to[v] = cap > 0 ? cap * Math.tanh(sum / cap) : sum;
      }
    }
  }

  private pack({ kernel, args }: Launch): void {
    const [codes, rows, columns, blocks, words, shift, packed] = args;
    const gated = kernel.defines.GATED === 1;
    const bytes = packedBytes({ rows, gated }, columns, kernel.defines.WBITS as 4 | 8);
    if (4 * words !== bytes || blocks !== Math.ceil(columns / 128))
      throw new Error(`${words} words of ${rows}×${columns}`);
    this.memory.view(Uint8Array, packed, bytes);
    this.weights.set(packed, {
      codes: this.memory.view(Int8Array, codes, rows * columns).map((code) => code + shift),
      rows,
      columns,
      gated,
    });
  }

  private site({ kernel, args }: Launch): void {
    const [x, x2, tokens, stride, gain, epsilon, leftAt, rightAt, clips, sets, capacity] = args;
    const [codesAt, scalesAt, splits, sumsAt] = args.slice(11);
    const {
      LEFT,
      RIGHT,
      HAS_LEFT,
      HAS_RIGHT,
      INPUT,
      QMAX,
      SPAN = 0,
      ZERO,
      SUMS = 0,
    } = kernel.defines;
    const width = LEFT * RIGHT;
    const padded = siteGeometry({ left: LEFT, right: RIGHT, hasLeft: true, hasRight: true });
    const left = HAS_LEFT ? this.square(leftAt, LEFT, padded.rows) : undefined;
    const right = HAS_RIGHT ? this.square(rightAt, RIGHT, padded.columns) : undefined;
    const factors = this.memory.view(Float32Array, clips, 2 * sets);
    const blocks = Math.ceil(width / 128);
    const codes = this.memory.view(Int8Array, codesAt, sets * blocks * capacity * 128);
    const spans = SPAN ? (blocks * 128) / SPAN : 1;
    const span = (blocks * 128) / spans;
    const sumCount = SUMS ? (blocks * 128) / SUMS : 0;
    const scales = this.memory.view(Float32Array, scalesAt, sets * spans * capacity);
    const sums = this.memory.view(Float32Array, sumsAt || scalesAt, sets * sumCount * capacity);
    for (let token = 0; token < tokens; token++) {
      let row: Float64Array;
      if (INPUT === 3) row = this.joined(x, token, LEFT, RIGHT, splits);
      else {
        row = Float64Array.from(this.memory.view(Float32Array, x + 4 * token * stride, width));
        if (INPUT === 1) normalize(row, this.memory.view(Float32Array, gain, width), epsilon);
        if (INPUT === 2) {
          const up = this.memory.view(Float32Array, x2 + 4 * token * stride, width);
          row.forEach((value, i) => (row[i] = silu(value) * up[i]));
        }
      }
      row = kronecker(row, LEFT, RIGHT, left, right);
      for (let set = 0; set < sets; set++) {
        const own = new Int8Array(blocks * 128);
        for (let g = 0; g < spans; g++) {
          const group = row.subarray(g * span, (g + 1) * span);
          const hi = group.reduce((most, value) => Math.max(most, value), 0) * factors[2 * set];
          const lo = group.reduce((most, v) => Math.max(most, -v), 0) * factors[2 * set + 1];
          const [scale, zero, least, most] = ZERO
            ? unsignedGrid(hi, lo, 2 * QMAX + 1)
            : [Math.fround(Math.max(hi, lo) / QMAX) || 1, 0, -QMAX - 1, QMAX];
          scales[(set * spans + g) * capacity + token] = scale;
          group.forEach((value, i) => {
            const code = roundEven(value / scale);
            own[g * span + i] = Math.min(Math.max(code, least - zero), most - zero);
          });
          for (let part = g * span; SUMS && part < (g + 1) * span; part += SUMS)
            sums[(set * sumCount + part / SUMS) * capacity + token] =
              own.subarray(part, part + SUMS).reduce((sum, code) => sum + code, 0) *
              (SPAN ? scale : 1);
        }
        own.forEach((code, i) => {
          codes[set * blocks * capacity * 128 + codeOffset(capacity, token, i)] = code;
        });
      }
    }
  }

  private square(pointer: number, size: number, padded: number): Float64Array {
    const all = this.memory.halves(pointer, padded * (padded + 8), 0);
    return Float64Array.from(
      { length: size * size },
      (_, i) => all[Math.floor(i / size) * (padded + 8) + (i % size)],
    );
  }

  private joined(x: number, token: number, heads: number, dim: number, splits: number) {
    const row = new Float64Array(heads * dim);
    for (let head = 0; head < heads; head++) {
      const parts = Array.from({ length: splits }, (_, split) =>
        this.memory.view(
          Float32Array,
          x + 4 * ((token * heads + head) * splits + split) * (dim + 2),
          dim + 2,
        ),
      );
      const most = Math.max(...parts.map((part) => part[dim]));
      let total = 0;
      for (const part of parts) {
        const weight = part[dim] === -Infinity ? 0 : 2 ** (part[dim] - most);
        total += weight * part[dim + 1];
        for (let c = 0; c < dim; c++) row[head * dim + c] += weight * part[c];
      }
      for (let c = 0; c < dim; c++)
        row[head * dim + c] = total === 0 ? 0 : row[head * dim + c] / total;
    }
    return row;
  }

  private gemm({ kernel, args }: Launch): void {
    const [weightsAt, codesAt, tokenScale, featureScale, bias, out, tokens, capacity] = args;
    const [blocks, features, outStride, set1, set2] = args.slice(8);
    const { EPILOGUE, NIBBLES } = kernel.defines;
    const weights = this.weights.get(weightsAt);
    if (!weights) throw new Error("gemm: these weights were never packed");
    const { codes, rows, columns, gated } = weights;
    if (blocks !== Math.ceil(columns / 128) || (EPILOGUE === 2) !== gated)
      throw new Error("gemm: another shape than the weights'");
    if (features !== (gated ? rows / 2 : rows)) throw new Error(`gemm: ${features} features`);
    const activations = this.memory.rest(Int8Array, codesAt);
    const scales = this.memory.rest(Float32Array, featureScale);
    const tokenScales = this.memory.rest(Float32Array, tokenScale);
    // A kernel's block reads whole tiles of tokens.
    const setOf = (row: number) => {
      const tile = Math.floor(row / 256);
      return gated ? 0 : tile >= set2 ? 2 : tile >= set1 ? 1 : 0;
    };
    const orderOf = (row: number) => {
      if (!gated) return row;
      const feature = row % features;
      return Math.floor(feature / 128) * 256 + (feature % 128) + (row >= features ? 128 : 0);
    };
    const sets = 1 + Math.max(...Array.from({ length: rows }, (_, row) => setOf(row)));
    const places = Array.from({ length: columns }, (_, c) => codeOffset(capacity, 0, c));
    const given = Array.from({ length: sets }, () => new Int8Array(columns));
    const value = (token: number, row: number) => {
      const set = setOf(row);
      let sum = 0;
      for (let c = 0; c < columns; c++) sum += codes[row * columns + c] * given[set][c];
      const at = orderOf(row);
      return (
        sum * scales[at] * tokenScales[set * capacity + token] +
        (bias === 0 ? 0 : this.memory.rest(Float32Array, bias)[at])
      );
    };
    for (let token = 0; token < tokens; token++) {
      const to = this.memory.view(Float32Array, out + 4 * token * outStride, features);
      given.forEach((row, set) => {
        const start = set * blocks * capacity * 128;
        // Rows differ by 128 bytes and by which sixteens are exchanged.
        for (let c = 0; c < columns; c++)
          row[c] = activations[start + ((places[c] + token * 128) ^ ((token % 8) << 4))];
        if (NIBBLES && row.some((code) => code < -8 || code > 7))
          throw new Error("gemm_mma: a code has more than 4 bits");
      });
      for (let f = 0; f < features; f++) {
        const result = gated ? silu(value(token, f)) * value(token, features + f) : value(token, f);
        to[f] = EPILOGUE === 1 ? to[f] + result : result;
      }
    }
  }

  private embedCodes(launch: Launch): void {
    const [codes, scale, offset, ids, positions, cols, factor, frequencies, half] = launch.args;
    const [x, cosine, sine] = launch.args.slice(9);
    const row = this.tables.rows(launch, [codes, scale, offset], cols);
    const tables = { positions, frequencies, half, cosine, sine };
    const embedded = (id: number) => row(id).map((value) => value * factor);
    this.embedRows(launch.grid[0], ids, x, embedded, tables);
  }

  private headCodes(launch: Launch): void {
    const [x, codes, scale, offset, rows, vocab, cols, cap, out] = launch.args;
    const row = this.tables.rows(launch, [codes, scale, offset], cols);
    const weights = new Float32Array(vocab * cols);
    for (let v = 0; v < vocab; v++) weights.set(row(v), v * cols);
    this.logits({ x, rows, vocab, cols, cap, out }, weights);
  }

  /** A cached row: where it is kept here, in an order of our own. */
  private cached(page: number, part: 0 | 1, slot: number, dim: number, bits: 4 | 16) {
    const layout = pageLayout(dim, bits);
    const start = page + part * layout.values;
    const grids = part === 0 ? layout.keyScale : layout.valueScale;
    const zeros = part === 0 ? layout.keyZero : layout.valueZero;
    return {
      codes: () => this.memory.view(Uint8Array, start + (slot * dim) / 2, dim / 2),
      halves: () => this.memory.view(Uint16Array, start + slot * dim * 2, dim),
      scale: () => this.memory.view(Float32Array, page + grids + 4 * slot, 1),
      zero: () => this.memory.view(Uint16Array, page + zeros + 2 * slot, 1),
      read: (): Float64Array => {
        if (bits === 16)
          return Float64Array.from(this.memory.halves(start + slot * dim * 2, dim, 0));
        const codes = this.memory.view(Uint8Array, start + (slot * dim) / 2, dim / 2);
        const [scale] = this.memory.view(Float32Array, page + grids + 4 * slot, 1);
        const [zero] = this.memory.view(Uint16Array, page + zeros + 2 * slot, 1);
        return Float64Array.from(
          { length: dim },
          (_, c) => scale * (((codes[c >> 1] >> (4 * (c % 2))) & 15) - zero),
        );
      },
    };
  }

  /** Rotary embedding of a head, by the tables of its row. */
  private turn(x: Float64Array, cosine: number, sine: number, row: number): Float64Array {
    const half = x.length / 2;
    const c = this.memory.view(Float32Array, cosine + 4 * row * half, half);
    const s = this.memory.view(Float32Array, sine + 4 * row * half, half);
    return x.map((value, i) =>
      i < half
        ? value * c[i] - x[half + i] * s[i]
        : value * c[i - half] + x[i - half] * s[i - half],
    );
  }

  private queriesKeysValues({ kernel, grid: [taskCount, parts], args }: Launch): void {
    const [tasks, pageOf, slotOf, heads, kvHeads, q, qStride, k, v, kvStride] = args;
    const [qGain, kGain, epsilon, cosine, sine, qMatrix, kMatrix] = args.slice(10);
    const [kShift, kFactor, qFactor, factorsAt, levels, out, cache, pageBytes, each] =
      args.slice(17);
    const { DIM, MATRIX, BALANCE, BITS, OUT16 } = kernel.defines;
    if (parts !== Math.ceil(heads / each) + 2 * Math.ceil(kvHeads / each))
      throw new Error(`heads: ${parts} parts of ${each}`);
    const factors = this.memory.view(Float32Array, factorsAt, 4);
    const layout = pageLayout(DIM, BITS as 4 | 16);
    const matrices = MATRIX
      ? [this.square(qMatrix, DIM, DIM), this.square(kMatrix, DIM, DIM)]
      : [undefined, undefined];
    const turned = (
      from: number,
      row: number,
      gain: number,
      balance: { readonly shift: number; readonly factor: number; readonly head: number },
      matrix?: Float64Array,
    ): Float64Array => {
      const x = Float64Array.from(this.memory.view(Float32Array, from, DIM));
      if (gain !== 0) normalize(x, this.memory.view(Float32Array, gain, DIM), epsilon);
      const y = cosine === 0 ? x : this.turn(x, cosine, sine, row);
      if (BALANCE) {
        const at = 4 * balance.head * DIM;
        const factor = this.memory.view(Float32Array, balance.factor + at, DIM);
        const shift = balance.shift && this.memory.view(Float32Array, balance.shift + at, DIM);
        for (let i = 0; i < DIM; i++) y[i] = (y[i] - (shift ? shift[i] : 0)) * factor[i];
      }
      return kronecker(y, 1, DIM, undefined, matrix);
    };
    for (let task = 0; task < taskCount; task++) {
      const [first, count] = this.memory.view(Int32Array, tasks + 8 * task, 2);
      for (let row = first; row < first + count; row++) {
        const page = cache + this.memory.rest(Int32Array, pageOf)[row] * pageBytes;
        const slot = this.memory.rest(Int32Array, slotOf)[row];
        for (let head = 0; head < heads; head++) {
          const own = { shift: 0, factor: qFactor, head: Math.floor((head * kvHeads) / heads) };
          const query = turned(q + 4 * (row * qStride + head * DIM), row, qGain, own, matrices[0]);
          const at = (row * heads + head) * DIM;
          if (OUT16)
            this.memory
              .view(Uint16Array, out + 2 * at, DIM)
              .set(query.map((x) => floatToHalfBits(x)));
          else this.memory.view(Float32Array, out + 4 * at, DIM).set(query);
        }
        for (let head = 0; head < kvHeads; head++)
          for (const part of [0, 1] as const) {
            const from = (part === 0 ? k : v) + 4 * (row * kvStride + head * DIM);
            const x =
              part === 0
                ? turned(from, row, kGain, { shift: kShift, factor: kFactor, head }, matrices[1])
                : Float64Array.from(this.memory.view(Float32Array, from, DIM));
            const own = this.cached(page + head * layout.bytes, part, slot, DIM, BITS as 4 | 16);
            if (BITS === 16) {
              own.halves().set(x.map((value) => floatToHalfBits(value)));
              continue;
            }
            let hi = x.reduce((most, value) => Math.max(most, value), 0) * factors[2 * part];
            let lo = x.reduce((most, value) => Math.min(most, value), 0) * factors[2 * part + 1];
            if (hi === 0 && lo === 0) [hi, lo] = [1, -1];
            const scale = Math.fround((hi - lo) / levels);
            const zero = roundEven(-lo / scale);
            own.scale()[0] = scale;
            own.zero()[0] = zero;
            own.codes().fill(0);
            x.forEach((value, c) => {
              const code = Math.min(Math.max(roundEven(value / scale) + zero, 0), levels);
              own.codes()[c >> 1] |= code << (4 * (c % 2));
            });
          }
      }
    }
  }

  /** Rows of the cache as they were read in this launch. */
  private readonly readRows = new Map<number, Float64Array>();

  private row(page: number, part: 0 | 1, slot: number, dim: number, bits: 4 | 16): Float64Array {
    const key = page * 128 + part * 64 + slot;
    let row = this.readRows.get(key);
    if (!row) this.readRows.set(key, (row = this.cached(page, part, slot, dim, bits).read()));
    return row;
  }

  private attendDecode({ kernel, grid: [shares, , count], args }: Launch): void {
    const [q, sequences, pages, heads, kvHeads, window, scale, cache, pageBytes] = args;
    const [splits, partial] = args.slice(9);
    if (shares > splits) throw new Error(`attention: ${shares} blocks of ${splits} pieces`);
    const { DIM, BITS } = kernel.defines;
    for (let i = 0; i < count; i++) {
      const [row, length, offset] = this.memory.view(Int32Array, sequences + 12 * i, 3);
      const first = window > 0 && length > window ? length - window : 0;
      const firstPage = Math.floor(first / 64);
      const pageCount = Math.ceil(length / 64) - firstPage;
      for (let head = 0; head < heads; head++) {
        const query = this.memory.view(Float32Array, q + 4 * (row * heads + head) * DIM, DIM);
        for (let split = 0; split < splits; split++) {
          const to = this.memory.view(
            Float32Array,
            partial + 4 * ((row * heads + head) * splits + split) * (DIM + 2),
            DIM + 2,
          );
          const begin = (firstPage + Math.floor((pageCount * split) / splits)) * 64;
          const end = (firstPage + Math.floor((pageCount * (split + 1)) / splits)) * 64;
          const from = Math.max(begin, first);
          const until = Math.min(end, length);
          to.set([
            ...this.attended(
              { query, pages, offset, cache, pageBytes, DIM, BITS, scale },
              Math.floor(head / (heads / kvHeads)),
              from,
              until,
            ),
          ]);
        }
      }
    }
  }

  private attendPrefill({ kernel, grid: [heads, count], args }: Launch): void {
    const [q, blocks, pages, , kvHeads, window, scale, cache, pageBytes, out] = args;
    const { DIM, BITS } = kernel.defines;
    for (let i = 0; i < count; i++) {
      const [first, rows, position0, offset] = this.memory.view(Int32Array, blocks + 16 * i, 4);
      if (rows > 128) throw new Error(`prefill: a block of ${rows} queries`);
      for (let r = 0; r < rows; r++)
        for (let head = 0; head < heads; head++) {
          const at = ((first + r) * heads + head) * DIM;
          const query = this.memory.halves(q + 2 * at, DIM, 0);
          const length = position0 + r + 1;
          const result = this.attended(
            { query, pages, offset, cache, pageBytes, DIM, BITS, scale },
            Math.floor(head / (heads / kvHeads)),
            window > 0 && length > window ? length - window : 0,
            length,
          );
          const to = this.memory.view(Float32Array, out + 4 * at, DIM);
          for (let c = 0; c < DIM; c++) to[c] = result[c] / result[DIM + 1];
        }
    }
  }

  /** Sums of values from one position to another, their largest weight (a power of two) and total. */
  private attended(
    given: {
      query: Float32Array;
      pages: number;
      offset: number;
      cache: number;
      pageBytes: number;
      DIM: number;
      BITS: number;
      scale: number;
    },
    kvHead: number,
    from: number,
    until: number,
  ): Float64Array {
    const { query, pages, offset, cache, pageBytes, DIM, scale } = given;
    const bits = given.BITS as 4 | 16;
    const out = new Float64Array(DIM + 2);
    out[DIM] = -Infinity;
    const seen: { score: number; value: Float64Array }[] = [];
    for (let position = from; position < until; position++) {
      const number = this.memory.rest(Int32Array, pages)[offset + Math.floor(position / 64)];
      const page = cache + number * pageBytes + kvHead * pageLayout(DIM, bits).bytes;
      const key = this.row(page, 0, position % 64, DIM, bits);
      const value = this.row(page, 1, position % 64, DIM, bits);
      const score = key.reduce((sum, x, c) => sum + x * query[c], 0) * scale * Math.LOG2E;
      seen.push({ score, value });
    }
    for (const { score } of seen) out[DIM] = Math.max(out[DIM], score);
    for (const { score, value } of seen) {
      const weight = 2 ** (score - out[DIM]);
      out[DIM + 1] += weight;
      for (let c = 0; c < DIM; c++) out[c] += weight * value[c];
    }
    return out;
  }
}

/** Scale, zero point, lowest and highest code of an unsigned grid over −lo … hi. */
function unsignedGrid(hi: number, lo: number, levels: number): [number, number, number, number] {
  const [top, low] = hi === 0 && lo === 0 ? [1, 1] : [hi, lo];
  const scale = Math.fround((top + low) / levels);
  return [scale, roundEven(low / scale), 0, levels];
}

/** leftᵀ · X · right of a row as X [left, right]. */
function kronecker(
  row: Float64Array,
  nLeft: number,
  nRight: number,
  left: Float64Array | undefined,
  right: Float64Array | undefined,
): Float64Array {
  let now = row;
  if (left) {
    const to = new Float64Array(row.length);
    for (let k = 0; k < nLeft; k++)
      for (let i = 0; i < nLeft; i++)
        for (let j = 0; j < nRight; j++)
          to[i * nRight + j] += left[k * nLeft + i] * now[k * nRight + j];
    now = to;
  }
  if (right) {
    const to = new Float64Array(row.length);
    for (let i = 0; i < nLeft; i++)
      for (let k = 0; k < nRight; k++)
        for (let j = 0; j < nRight; j++)
          to[i * nRight + j] += now[i * nRight + k] * right[k * nRight + j];
    now = to;
  }
  return now;
}

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}
