/**
 * The executor on the engine's CUDA kernels. A step is cut into passes: one for the sequences that decode (a token each),
 * which is captured as a CUDA graph on its second use and replayed from then on, and one for every PASS_ROWS rows of
 * prompts. Tables of rows and pages travel to fixed addresses through pinned memory, one copy per pass.
 *
 * Every kernel treats rows one by one in an order fixed by positions in the sequence, and decoding cuts a cache into the
 * same number of pieces in every step, so a row's bits do not depend on what shares its pass. They depend on cuts of a
 * prompt in two ways. A cut within a page: the matrix units round a sum of prefill's attention beside factors of zero,
 * which stand for what the page holds after the row. And a cut that leaves a single token: it takes decoding's attention,
 * whose queries and weights have 22 bits, and prompts that of prefill, which has 11. docs/cuda.md says how far apart.
 */
import { rotaryFrequencies } from "../../contract/rotary.js";
import type { DevicePointer, Event, GraphExecutable, PinnedMemory } from "../driver.js";
import { PlanishError } from "../../../common/errors.js";
import { formatBytes } from "../../../common/format.js";
import { attentionsOf, rotariesOf } from "../../contract/program.js";
import { formatScheme } from "../../contract/scheme.js";
import {
  checkChunk,
  checkPage,
  checkReserve,
  type Chunk,
  type Executor,
  type ModelShape,
  type StepLogits,
} from "../../contract/inference.js";
import { PAGE_TOKENS } from "./layout.js";
import { EndLayerKernels } from "./end-layer-kernels.js";
import {
  DECODE_ROWS,
  passBytes,
  planPass,
  PASS_ROWS,
  PassRunner,
  type Pass,
  type PassBuffers,
  type PassPlan,
} from "./pass.js";
import {
  decodeTaskRows,
  decodeTables,
  prefillTables,
  TASK_ROWS,
  type Piece,
  type TableLayout,
  type Tables,
} from "./tables.js";
import { RowKernels } from "./row-kernels.js";
import type { MemoryDevice } from "./memory-device.js";
import type { CudaModel } from "./weights.js";

/** Rows of logits that are computed and fetched at once. */
const LOGIT_ROWS = DECODE_ROWS;
/**
 * Most pieces that decoding cuts a sequence's cache into. More would keep the device busier with one long sequence, and
 * cost many sequences more joining; it may not depend on how many there are.
 */
const MOST_SPLITS = 8;
/** Words that tables have room for at first. */
const FIRST_WORDS = 1 << 16;

/** A graph of one number of decoding rows, and how it is used. */
interface Captured {
  uses: number;
  graph?: GraphExecutable;
}

export interface CudaExecutorOptions {
  /** Replay decoding steps as graphs (default); launches kernel by kernel when false, for comparison. */
  readonly graphs?: boolean;
  /** Pieces that decoding cuts a cache into, instead of the number that suits the model. */
  readonly splits?: number;
  /**
   * Prompts take decoding's attention too: as good as f32, however a prompt is cut, and several times slower (passes of
   * DECODE_ROWS rows).
   */
  readonly exact?: boolean;
}

export class CudaExecutor implements Executor {
  readonly shape: ModelShape;
  readonly description: string;
  readonly pageTokens = PAGE_TOKENS;
  readonly cutAtPages: boolean;
  readonly bytesPerPage: number;
  readonly weightBytes: number;

  private readonly endLayers: EndLayerKernels;
  private readonly runner: PassRunner;
  private readonly plan: PassPlan;
  private readonly buffers: PassBuffers;
  private readonly rowKernels: RowKernels;
  /** Kinds of rotary positions, in the order of their tables. */
  private readonly rotaries: readonly {
    readonly frequencies: DevicePointer;
    readonly half: number;
    readonly turning: number;
    readonly factor: number;
  }[];
  private readonly parts: DevicePointer;
  private readonly logitBuffer: DevicePointer;
  private readonly splits: number;
  private readonly graphs: Map<number, Captured> | undefined;
  private readonly sent: Event;
  private readonly exact: boolean;
  private tables: {
    readonly device: DevicePointer;
    readonly host: PinnedMemory;
    readonly words: number;
  };
  private cache: { readonly pointer: DevicePointer; readonly pages: number } | undefined;
  private disposed = false;

  /** Takes over the device, which it disposes. @throws PlanishError when the device has too little memory. */
  constructor(
    private readonly device: MemoryDevice & Disposable,
    private readonly model: CudaModel,
    options: CudaExecutorOptions = {},
  ) {
    const { shape, scheme } = model;
    this.shape = shape;
    const { hiddenSize, vocabSize, maxPositions } = shape;
    const [attention] = model.programs.flatMap(attentionsOf);
    const pages = Math.ceil(maxPositions / PAGE_TOKENS);
    this.splits =
      options.splits ?? Math.min(MOST_SPLITS, device.kernels.splitsFor(attention, 1, pages));
    this.exact = options.exact ?? false;
    this.cutAtPages = !this.exact;
    this.graphs = options.graphs === false ? undefined : new Map();
    this.endLayers = new EndLayerKernels(device);
    this.plan = planPass(model.programs, model.blocks, hiddenSize);
    const { slots, q, codes, scales, sums, partial, cosine, sine } = passBytes(
      model,
      this.plan,
      this.splits,
    );
    const allocate = (bytes: number) => device.allocate(bytes);
    this.buffers = {
      slots: slots.map(allocate),
      q: allocate(q),
      codes: allocate(codes),
      scales: allocate(scales),
      sums: allocate(sums),
      partial: allocate(partial),
      cosine: cosine.map(allocate),
      sine: sine.map(allocate),
    };
    this.runner = new PassRunner(device, model, this.plan, this.buffers);
    this.parts = device.allocate(LOGIT_ROWS * hiddenSize * 4);
    this.logitBuffer = device.allocate(LOGIT_ROWS * vocabSize * 4);
    this.rowKernels = new RowKernels(device);
    this.rotaries = rotariesOf(model.programs).map((rotary) => ({
      frequencies: device.put(rotaryFrequencies(rotary, 1)),
      half: rotary.dims / 2,
      turning: (rotary.turning ?? rotary.dims) / 2,
      factor: "attentionFactor" in rotary.scaling ? rotary.scaling.attentionFactor : 1,
    }));
    this.sent = device.driver.createEvent(false);
    device.driver.record(this.sent, device.stream);
    this.tables = this.makeTables(FIRST_WORDS);
    this.bytesPerPage = this.runner.pageBytes;
    this.weightBytes = model.weightBytes;
    const { name, capability } = device.driver.info;
    this.description = `${name} (CUDA, sm_${capability}), ${formatScheme(scheme)}, integer`;
  }

  /** Bytes that the device has left for the cache. */
  freeBytes(): number {
    return this.device.driver.memory().free;
  }

  reserve(pages: number): void {
    this.checkLive();
    checkReserve(pages);
    const { device } = this;
    this.dropGraphs();
    if (this.cache) device.free(this.cache.pointer);
    this.cache = undefined;
    const bytes = pages * this.bytesPerPage;
    try {
      this.cache = { pointer: device.allocate(bytes), pages };
    } catch (cause) {
      if (!(cause instanceof PlanishError)) throw cause;
      throw new PlanishError(
        `a KV cache of ${formatBytes(bytes)} does not fit on ${device.driver.info.name}, where ` +
          `${formatBytes(this.freeBytes())} are free; give less (--kv-memory)`,
        { cause },
      );
    }
  }

  copyPage(from: number, to: number): void {
    this.checkLive();
    const { pointer, pages } = this.requireCache();
    checkPage(from, pages);
    checkPage(to, pages);
    const size = this.bytesPerPage;
    const { driver, stream } = this.device;
    driver.copyOnDevice(pointer + to * size, pointer + from * size, size, stream);
  }

  async step(chunks: readonly Chunk[]): Promise<StepLogits> {
    return Promise.resolve(this.compute(chunks));
  }

  private compute(chunks: readonly Chunk[]): StepLogits {
    this.checkLive();
    for (const chunk of chunks) checkChunk(chunk, this.shape, PAGE_TOKENS, this.cache?.pages);
    const { vocabSize } = this.shape;
    const results = chunks.map(({ logits, tokens }) =>
      logits === "none"
        ? undefined
        : new Float32Array((logits === "all" ? tokens.length : 1) * vocabSize),
    );
    const { decoding, prefill } = cut(chunks, this.exact ? DECODE_ROWS : PASS_ROWS);
    for (const pieces of decoding) this.decode(pieces, results);
    for (const pieces of prefill) this.prefill(pieces, results);
    return results;
  }

  /** Gives back everything but the model's weights and the device: for executors that share them. */
  release(): void {
    if (this.disposed) return;
    this.disposed = true;
    const { device, buffers, cache, tables, parts, logitBuffer, rotaries } = this;
    device.synchronize();
    this.dropGraphs();
    device.driver.freePinned(tables.host);
    device.driver.destroyEvent(this.sent);
    for (const pointer of [
      ...(Object.values(buffers) as (DevicePointer | readonly DevicePointer[])[]).flat(),
      tables.device,
      parts,
      logitBuffer,
      ...rotaries.map(({ frequencies }) => frequencies),
    ])
      device.free(pointer);
    if (cache) device.free(cache.pointer);
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.release();
    this.device[Symbol.dispose]();
  }

  /** One token of each of some sequences. */
  private decode(pieces: readonly Piece[], results: readonly (Float32Array | undefined)[]): void {
    const { device, graphs } = this;
    const tables = decodeTables(pieces);
    this.clearPages(pieces);
    this.send(tables);
    const { layout } = tables;
    const pass = this.passOf(layout, true, decodeTaskRows(layout.rows));
    const enqueue = () => {
      this.forward(layout, pass);
      this.logits(layout, 0, layout.rows);
    };
    const captured = graphs?.get(layout.rows) ?? { uses: 0 };
    graphs?.set(layout.rows, captured);
    // The first use compiles and loads what it needs, which a capture must not.
    if (graphs && captured.uses === 1)
      captured.graph = device.driver.capture(device.stream, enqueue);
    captured.uses += 1;
    if (captured.graph === undefined) enqueue();
    else device.driver.launchGraph(captured.graph, device.stream);
    const wanted = pieces.filter(({ index }) => results[index] !== undefined);
    if (wanted.length === 0) return;
    const { vocabSize } = this.shape;
    const [first] = wanted;
    // Alone, the caller's array is filled as it is.
    if (pieces.length === 1 && results[first.index]) {
      device.read(this.logitBuffer, results[first.index]!);
      return;
    }
    const all = device.read(this.logitBuffer, new Float32Array(pieces.length * vocabSize));
    pieces.forEach(({ index }, row) =>
      results[index]?.set(all.subarray(row * vocabSize, (row + 1) * vocabSize)),
    );
  }

  /** Rows of prompts. */
  private prefill(pieces: readonly Piece[], results: readonly (Float32Array | undefined)[]): void {
    const chosen: number[] = [];
    const places: { readonly index: number; readonly row: number }[] = [];
    let row = 0;
    for (const { chunk, from, rows, index } of pieces) {
      const last = from + rows === chunk.tokens.length;
      for (let t = 0; t < rows; t++, row++) {
        if (chunk.logits === "all") places.push({ index, row: from + t });
        else if (chunk.logits === "last" && last && t === rows - 1) places.push({ index, row: 0 });
        else continue;
        chosen.push(row);
      }
    }
    const tables = prefillTables(pieces, chosen, this.exact);
    this.clearPages(pieces);
    this.send(tables);
    const { layout } = tables;
    this.forward(layout, this.passOf(layout, this.exact, TASK_ROWS));
    const { vocabSize } = this.shape;
    for (let at = 0; at < chosen.length; at += LOGIT_ROWS) {
      const count = Math.min(LOGIT_ROWS, chosen.length - at);
      this.logits(layout, at, count);
      const all = this.device.read(this.logitBuffer, new Float32Array(count * vocabSize));
      for (let i = 0; i < count; i++) {
        const place = places[at + i];
        results[place.index]?.set(
          all.subarray(i * vocabSize, (i + 1) * vocabSize),
          place.row * vocabSize,
        );
      }
    }
  }

  private passOf(layout: TableLayout, decoding: boolean, taskRows: number): Pass {
    const at = (offset: number) => this.tables.device + 4 * offset;
    return {
      rows: layout.rows,
      decoding,
      taskCount: layout.taskCount,
      taskRows,
      attentionCount: layout.attentionCount,
      tasks: at(layout.tasks),
      pageOf: at(layout.pageOf),
      slotOf: at(layout.slotOf),
      attention: at(layout.attention),
      pages: at(layout.pages),
      splits: this.splits,
    };
  }

  /** Enqueues embedding and blocks. */
  private forward(layout: TableLayout, pass: Pass): void {
    const { buffers, shape, rotaries, model, endLayers, tables } = this;
    const { rows } = layout;
    const positions = tables.device + 4 * layout.positions;
    // The embedding's kernel fills the first kind's tables, where these are sines and cosines as they are.
    const [first] = rotaries;
    const plain = first.factor === 1;
    endLayers.embed({
      table: model.endLayers.embedding,
      factor: model.endLayers.embeddingScale,
      ids: tables.device + 4 * layout.ids,
      positions,
      rows,
      cols: shape.hiddenSize,
      frequencies: first.frequencies,
      half: plain ? first.half : 0,
      x: buffers.slots[0],
      cosine: buffers.cosine[0],
      sine: buffers.sine[0],
    });
    for (const [kind, rotary] of rotaries.entries())
      if (kind > 0 || !plain)
        this.rowKernels.rotary({
          ...{ ...rotary, positions, rows },
          cosine: buffers.cosine[kind],
          sine: buffers.sine[kind],
        });
    this.runner.run(pass, this.requireCache().pointer);
  }

  /** Enqueues the logits of `count` of the rows listed as chosen, from the `first` on. */
  private logits(layout: TableLayout, first: number, count: number): void {
    const { buffers, shape, model, endLayers, tables } = this;
    endLayers.logits({
      x: buffers.slots[this.plan.output.slot],
      chosen: tables.device + 4 * (layout.chosen + first),
      rows: count,
      cols: shape.hiddenSize,
      epsilon: 0,
      ...model.endLayers.finalNorm,
      table: model.endLayers.head,
      cap: model.endLayers.logitSoftcap,
      vocab: shape.vocabSize,
      parts: this.parts,
      out: this.logitBuffer,
    });
  }

  /**
   * Clears pages that the pieces begin. Attention multiplies what a page holds after a row by zero, beside which the matrix
   * units may round the last bit: what an earlier sequence left there must not be what decides it.
   */
  private clearPages(pieces: readonly Piece[]): void {
    const { driver, stream } = this.device;
    const { pointer } = this.requireCache();
    const { bytesPerPage } = this;
    for (const { chunk, from, rows } of pieces) {
      const end = chunk.start + from + rows;
      for (
        let page = Math.ceil((chunk.start + from) / PAGE_TOKENS);
        page * PAGE_TOKENS < end;
        page++
      )
        driver.fillBytes(pointer + chunk.pages[page] * bytesPerPage, 0, bytesPerPage, stream);
    }
  }

  /** Sends a pass's tables to their place. */
  private send({ words }: Tables): void {
    const { driver, stream } = this.device;
    // The pinned words are free again once the copy before has left them.
    driver.synchronizeEvent(this.sent);
    if (words.length > this.tables.words) {
      this.dropGraphs();
      this.device.free(this.tables.device);
      driver.freePinned(this.tables.host);
      this.tables = this.makeTables(2 * words.length);
    }
    new Int32Array(this.tables.host.bytes, 0, words.length).set(words);
    driver.copyToDevice(this.tables.device, this.tables.host.address, 4 * words.length, stream);
    driver.record(this.sent, stream);
  }

  private makeTables(words: number) {
    const { device } = this;
    return {
      device: device.allocate(4 * words),
      host: device.driver.allocatePinned(4 * words),
      words,
    };
  }

  private dropGraphs(): void {
    if (!this.graphs) return;
    this.device.synchronize();
    for (const { graph } of this.graphs.values())
      if (graph !== undefined) this.device.driver.destroyGraph(graph);
    this.graphs.clear();
  }

  private checkLive(): void {
    if (this.disposed) throw new PlanishError("this engine was disposed; open the model again");
  }

  private requireCache() {
    if (!this.cache) throw new PlanishError("no cache pages are reserved; call reserve first");
    return this.cache;
  }
}

/** A step as passes: single tokens decode, up to DECODE_ROWS together; the rest goes `rows` at a time. */
export function cut(
  chunks: readonly Chunk[],
  passRows = PASS_ROWS,
): {
  readonly decoding: readonly (readonly Piece[])[];
  readonly prefill: readonly (readonly Piece[])[];
} {
  const decoding: Piece[][] = [];
  const prefill: Piece[][] = [];
  let room = 0;
  chunks.forEach((chunk, index) => {
    if (chunk.tokens.length === 1) {
      let last = decoding.at(-1);
      if (!last || last.length === DECODE_ROWS) decoding.push((last = []));
      last.push({ index, chunk, from: 0, rows: 1 });
      return;
    }
    for (let from = 0; from < chunk.tokens.length;) {
      if (room === 0) {
        prefill.push([]);
        room = passRows;
      }
      const rows = Math.min(room, chunk.tokens.length - from);
      prefill[prefill.length - 1].push({ index, chunk, from, rows });
      from += rows;
      room -= rows;
    }
  });
  return { decoding, prefill };
}
