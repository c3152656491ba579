/**
 * An executor over `LanguageModel`: whatever a backend can run, with the simulated arithmetic of its hooks. Keys and
 * values lie in float32 pages (after their grid, for quantized models). Correct and slow: it is the oracle of the
 * integer executor, and serves schemes that have no integer kernels.
 */
import type { Backend, Buffer } from "../backend/contract/training.js";
import { PlanishError } from "../common/errors.js";
import { endLayerTensors, type LanguageModel } from "../models/language-model.js";
import { cacheWidth, type AttentionStep } from "../backend/contract/program.js";
import { carriedWidth, isCarry, stateSize, type CarryStep } from "../backend/contract/recurrent.js";
import { SequenceStates } from "../backend/contract/sequence-states.js";
import type { RunCarried } from "../models/carry.js";
import { blockTensors } from "../models/weights.js";
import { attention, gatherRows } from "../tensor/ops/index.js";
import { Graph, Tensor } from "../tensor/tensor.js";
import {
  checkChunk,
  checkPage,
  checkReserve,
  type Chunk,
  type Executor,
  type ModelShape,
  type StepLogits,
} from "../backend/contract/inference.js";
import { modelShape } from "./source.js";

export const SIMULATED_PAGE_TOKENS = 16;

/** Where each layer's pages lie: [pages, pageTokens, kvHeads·headDim] per layer, keys and values apart. */
interface PageMemory {
  readonly keys: readonly Buffer[];
  readonly values: readonly Buffer[];
}

export class SimulatedExecutor implements Executor {
  readonly shape: ModelShape;
  readonly pageTokens = SIMULATED_PAGE_TOKENS;
  readonly givesHidden = true;
  readonly bytesPerPage: number;
  readonly bytesPerState?: number;
  readonly weightBytes: number;
  readonly description: string;
  /** Channels of keys in each layer. */
  private readonly widths: readonly number[];
  /** A step is padded to so many rows, so that a row never depends on how many there are. */
  private readonly fewestRows: number;
  /** Queries are padded to whole blocks from the sequence's beginning, so that a row never depends on its chunk's ends. */
  private readonly queryBlock: number;
  private memory: PageMemory = { keys: [], values: [] };
  /** Steps that carry a state, and the states of every sequence by step. */
  private readonly carrying: readonly CarryStep[];
  private states = new Map<CarryStep, readonly Buffer[]>();
  private positions = new SequenceStates(0);
  private pages?: number;
  private disposed = false;
  private readonly arena;

  /** `arithmetic`: a few words for the description, such as "w4a4kv4, simulated". The model stays the caller's. */
  constructor(
    private readonly model: LanguageModel,
    arithmetic: string,
  ) {
    const { backend, config } = model;
    this.shape = modelShape(config);
    this.widths = model.programs.map(cacheWidth);
    const total = this.widths.reduce((sum, width) => sum + width, 0);
    this.bytesPerPage = 2 * this.pageTokens * total * realBytes(backend);
    this.carrying = model.programs.flatMap(({ steps }) => steps.filter(isCarry));
    const numbers = this.carrying.reduce((sum, step) => sum + stateSize(step), 0);
    if (numbers > 0) this.bytesPerState = numbers * realBytes(backend);
    this.weightBytes = weightBytes(model);
    this.description = `${backend.description}; ${arithmetic}`;
    const { thinRows, queries } = backend.rowBlocks ?? { thinRows: 0, queries: 1 };
    this.fewestRows = thinRows + 1;
    this.queryBlock = queries;
    this.arena = backend.arena();
  }

  reserve(pages: number, states = 1): void {
    checkReserve(pages, states);
    const { backend } = this.model;
    this.release();
    this.pages = pages;
    if (this.carrying.length > 0) this.positions = new SequenceStates(states);
    for (const step of this.carrying)
      this.states.set(
        step,
        Array.from({ length: states }, () => backend.alloc(backend.realType, stateSize(step))),
      );
    const make = () =>
      this.widths.map((width) => backend.alloc(backend.realType, pages * this.pageTokens * width));
    this.memory = { keys: make(), values: make() };
  }

  copyPage(from: number, to: number): void {
    for (const page of [from, to]) checkPage(page, this.pages);
    for (const buffers of [this.memory.keys, this.memory.values])
      buffers.forEach((buffer, layer) => {
        const length = this.pageTokens * this.widths[layer];
        this.model.backend.copy(buffer, buffer, length, from * length, to * length);
      });
  }

  copyState(from: number, to: number): void {
    this.positions.copy(from, to);
    for (const [step, buffers] of this.states)
      this.model.backend.copy(buffers[from], buffers[to], stateSize(step));
  }

  async step(chunks: readonly Chunk[]): Promise<StepLogits> {
    if (this.disposed) throw new PlanishError("this engine was disposed; open the model again");
    return Promise.resolve(this.compute(chunks));
  }

  private compute(chunks: readonly Chunk[]): StepLogits {
    for (const chunk of chunks) checkChunk(chunk, this.shape, this.pageTokens, this.pages);
    const { ids, positions, lengths } = this.rows(chunks);
    const slots = this.positions.of(chunks);
    this.positions.begin(slots);
    using g = new Graph(this.model.backend, { arena: this.arena });
    const hidden = this.model.hiddenOfRows(
      g,
      ids,
      positions,
      {
        attend: (inner, layer, step, q, k, v, sinks) =>
          this.attend(inner, layer, { ...step, sinks }, chunks, q, k, v),
        carry: (inner, _layer, step, inputs, run) =>
          this.carry(inner, step, chunks, slots, inputs, run),
      },
      lengths,
    );
    this.positions.end(slots, chunks);
    return this.logits(g, chunks, hidden);
  }

  /** Each chunk goes on from its sequence's state, on its own rows. */
  private carry(
    g: Graph,
    step: CarryStep,
    chunks: readonly Chunk[],
    slots: Int32Array,
    inputs: readonly Tensor[],
    run: RunCarried,
  ): Tensor {
    const { backend } = this.model;
    const width = carriedWidth(step);
    const shape = [inputs[0].rows, width];
    const out = g.real(shape[0] * width);
    // Padding carries nothing, and what comes after must be numbers.
    backend.fill(out, 0);
    let row = 0;
    chunks.forEach(({ tokens, start }, i) => {
      const count = tokens.length;
      const state = this.states.get(step)?.[slots[i]];
      if (state && start === 0) backend.fill(state, 0);
      using inner = g.nested();
      const own = inputs.map((input) => {
        const rows = inner.real(count * input.cols);
        backend.copy(g.values(input), rows, count * input.cols, row * input.cols);
        return new Tensor([count, input.cols], rows, false);
      });
      const given = run(inner, own, { batch: 1, state });
      backend.copy(inner.values(given), out, count * width, 0, row * width);
      row += count;
    });
    return new Tensor(shape, out, false);
  }

  /** Tokens, positions and sequences' lengths of all chunks in order, then padding. */
  private rows(chunks: readonly Chunk[]): {
    ids: Int32Array;
    positions: Int32Array;
    lengths: Int32Array;
  } {
    const count = chunks.reduce((sum, { tokens }) => sum + tokens.length, 0);
    const ids = new Int32Array(Math.max(count, this.fewestRows));
    const positions = new Int32Array(ids.length);
    const lengths = new Int32Array(ids.length);
    let row = 0;
    for (const { tokens, start } of chunks)
      for (let t = 0; t < tokens.length; t++, row++) {
        ids[row] = tokens[t];
        positions[row] = start + t;
        lengths[row] = start + tokens.length;
      }
    return { ids, positions, lengths };
  }

  /** Writes each chunk's keys and values into its pages, and lets its queries see all of its sequence's. */
  private attend(
    g: Graph,
    layer: number,
    step: Omit<AttentionStep, "sinks"> & { readonly sinks?: Tensor },
    chunks: readonly Chunk[],
    q: Tensor,
    k: Tensor,
    v: Tensor,
  ): Tensor {
    const { backend } = this.model;
    const width = step.kvHeads * step.headDim;
    const out = g.real(q.size);
    // Padding sees nothing, and what comes after must be numbers.
    backend.fill(out, 0);
    let row = 0;
    for (const chunk of chunks) {
      const count = chunk.tokens.length;
      this.store(this.memory.keys[layer], width, chunk, g.values(k), row);
      this.store(this.memory.values[layer], width, chunk, g.values(v), row);
      const from = Math.floor(chunk.start / this.queryBlock) * this.queryBlock;
      const to = Math.ceil((chunk.start + count) / this.queryBlock) * this.queryBlock;
      using inner = g.nested();
      const queries = zeros(inner, [to - from, q.cols]);
      const offset = (chunk.start - from) * q.cols;
      backend.copy(g.values(q), inner.values(queries), count * q.cols, row * q.cols, offset);
      const mixed = attention(
        inner,
        queries,
        this.gather(inner, this.memory.keys[layer], width, chunk, to),
        this.gather(inner, this.memory.values[layer], width, chunk, to),
        { ...step, batch: 1 },
      );
      backend.copy(inner.values(mixed), out, count * q.cols, offset, row * q.cols);
      row += count;
    }
    return new Tensor(q.shape, out, false);
  }

  private store(
    target: Buffer,
    width: number,
    { tokens, start, pages }: Chunk,
    source: Buffer,
    row: number,
  ): void {
    for (const [at, page, slot, count] of this.runs(start, start + tokens.length, pages))
      this.model.backend.copy(
        source,
        target,
        count * width,
        (row + at - start) * width,
        (page * this.pageTokens + slot) * width,
      );
  }

  /** Keys or values of a sequence up to the chunk's end, contiguous, then zeros, [length, width]. */
  private gather(
    g: Graph,
    source: Buffer,
    width: number,
    { tokens, start, pages }: Chunk,
    length: number,
  ): Tensor {
    const out = zeros(g, [length, width]);
    for (const [at, page, slot, count] of this.runs(0, start + tokens.length, pages))
      this.model.backend.copy(
        source,
        g.values(out),
        count * width,
        (page * this.pageTokens + slot) * width,
        at * width,
      );
    return out;
  }

  /** Positions from..to by page: [position, page, slot in the page, how many]. */
  private *runs(
    from: number,
    to: number,
    pages: Int32Array,
  ): Generator<readonly [number, number, number, number]> {
    for (let at = from; at < to;) {
      const slot = at % this.pageTokens;
      const count = Math.min(this.pageTokens - slot, to - at);
      yield [at, pages[Math.floor(at / this.pageTokens)], slot, count];
      at += count;
    }
  }

  /** What each chunk asks for, from what the head reads of every row. */
  private logits(
    g: Graph,
    chunks: readonly Chunk[],
    hidden: Tensor,
  ): readonly (Float32Array | undefined)[] {
    const wanted: number[] = [];
    const counts: number[] = [];
    const inputs: (Float32Array | undefined)[] = [];
    const rows = chunks.some(({ logits }) => logits === "hidden") ? g.read(hidden) : undefined;
    let row = 0;
    for (const { tokens, logits } of chunks) {
      const count = logits === "last" ? 1 : logits === "all" ? tokens.length : 0;
      for (let r = tokens.length - count; r < tokens.length; r++) wanted.push(row + r);
      counts.push(count);
      const [from, to] = [row * hidden.cols, (row + tokens.length) * hidden.cols];
      inputs.push(
        logits === "hidden" ? Float32Array.from(rows?.subarray(from, to) ?? []) : undefined,
      );
      row += tokens.length;
    }
    if (wanted.length === 0) return inputs;
    const padded = new Int32Array(Math.max(wanted.length, this.fewestRows));
    padded.set(wanted);
    const all = g.read(this.model.logits(g, gatherRows(g, hidden, g.indices(padded))));
    let at = 0;
    return counts.map((count, i) => {
      if (count === 0) return inputs[i];
      const size = count * this.shape.vocabSize;
      at += size;
      return Float32Array.from(all.subarray(at - size, at));
    });
  }

  private release(): void {
    const states = [...this.states.values()].flat();
    for (const buffer of [...this.memory.keys, ...this.memory.values, ...states])
      this.model.backend.free(buffer);
    this.memory = { keys: [], values: [] };
    this.states = new Map();
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.release();
    this.arena[Symbol.dispose]();
  }
}

function zeros(g: Graph, shape: readonly [number, number]): Tensor {
  const out = g.real(shape[0] * shape[1]);
  g.backend.fill(out, 0);
  return new Tensor(shape, out, false);
}

function realBytes(backend: Backend): number {
  return backend.realType === "f64" ? 8 : 4;
}

function weightBytes({ backend, endLayers, layers }: LanguageModel): number {
  const size = (t: Tensor | undefined): number => {
    if (t === undefined) return 0;
    const codes = t.codes ? t.codes.codes.length + realBytes(backend) * t.codes.scale.length : 0;
    return codes + (t.buffer ? t.size * realBytes(backend) : 0);
  };
  let bytes = endLayerTensors(endLayers).reduce((sum, t) => sum + size(t), 0);
  for (const { weights } of layers)
    bytes += blockTensors(weights).reduce((sum, t) => sum + size(t), 0);
  return bytes;
}
