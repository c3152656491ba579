/**
 * The executor on the CPU's integer kernels: a model's packed weights in native memory, a paged cache, and one foreign
 * call per step (native/plan.cpp).
 *
 * Every kernel treats rows one by one in an order of its own, fixed by positions in the sequence; so a row's result does
 * not depend on chunks or on what shares the step (test/backend/cpu/infer/executor.test.ts checks it bit for bit).
 */
import { fuse } from "../../contract/fuse.js";
import { CONSTANTS, PLAN_OPERATIONS, type PlanOperation } from "../../contract/abi.js";
import type { PackedKind } from "../../contract/inference-kernels.js";
import type { NativeLibrary } from "../../contract/native-library.js";
import { nativeKernels, type NativeKernels } from "../native-kernels.js";
import { PlanishError } from "../../../common/errors.js";
import { cacheOf, type BlockProgram } from "../../contract/program.js";
import { stateLayout, type StateLayout } from "../../contract/recurrent.js";
import { SequenceStates } from "../../contract/sequence-states.js";
import { formatScheme, type Scheme } from "../../contract/scheme.js";
import {
  checkChunk,
  checkPage,
  checkReserve,
  type Chunk,
  type Executor,
  type InferenceSource,
  type ModelShape,
  type StepLogits,
} from "../../contract/inference.js";
import { planBlock, type PlanContext } from "./block-plan.js";
import {
  rotaryBuffers,
  STEP_ROWS,
  stepBuffers,
  type RotaryBuffers,
  type StepBuffers,
} from "./buffers.js";
import { EngineMemory, type Place, type Region } from "./memory.js";
import { placeEndLayers, type PlacedEndLayers } from "./end-layers.js";
import { placeBlock, type PlacedBlock } from "./placed-block.js";
import { MatrixPacker, type PackedMatrix } from "./packed-matrix.js";
import { Plan } from "./plan.js";
import { Slots, type Slot } from "../../contract/slots.js";
import { linearKind } from "./linear-kind.js";

export const PAGE_TOKENS = CONSTANTS.pageTokens;

/** Seconds spent per kind of kernel since the profile was asked for. */
export type StepProfile = Readonly<Record<PlanOperation | "logits", number>>;

/** A stretch of a chunk that goes through the blocks at once. */
interface Piece {
  readonly chunk: Chunk;
  readonly from: number;
  readonly rows: number;
  /** Which state its sequence has. */
  readonly slot: number;
}

export class IntegerExecutor implements Executor {
  readonly shape: ModelShape;
  readonly description: string;
  readonly pageTokens = PAGE_TOKENS;
  readonly givesHidden = true;
  readonly bytesPerPage: number;
  readonly bytesPerState?: number;
  readonly weightBytes: number;

  private readonly memory: EngineMemory;
  private readonly scheme: Scheme;
  private readonly kind: PackedKind;
  private readonly buffers: StepBuffers;
  private readonly programs: readonly BlockProgram[];
  private readonly blocks: readonly PlacedBlock[];
  private readonly endLayers: PlacedEndLayers;
  private readonly rotary: ReadonlyMap<string, RotaryBuffers>;
  /** Where values lie between kernels, by slot. */
  private readonly places: readonly Place<Float32Array>[];
  /** Where the last block's output lies. */
  private readonly output: Slot;
  /** Where each layer's part of a page begins. */
  private readonly layerOffsets: readonly number[];
  /** Where each layer's part of a sequence's state begins. */
  private readonly stateLayout: StateLayout;
  private readonly kernels: NativeKernels;

  private cache:
    | {
        readonly memory: EngineMemory;
        readonly place: Region;
        readonly pages: number;
        /** Of as many sequences as were asked for, in models with recurrent layers. */
        readonly states?: Region;
      }
    | undefined;
  private positions = new SequenceStates(0);
  private planned:
    { readonly memory: EngineMemory; readonly address: bigint; readonly calls: number } | undefined;
  private pageList: Place<Int32Array> | undefined;
  private seconds: Float64Array | null = null;
  private logitSeconds = 0;
  private disposed = false;

  constructor(
    private readonly library: NativeLibrary,
    threads: number,
    source: InferenceSource,
  ) {
    const { shape, programs, scheme } = source;
    this.shape = shape;
    this.scheme = scheme;
    this.kind = linearKind(scheme);
    this.programs = programs;
    // What cannot be planned is refused before weights are read.
    for (const program of programs) fuse(program);
    this.memory = new EngineMemory(library);
    this.kernels = nativeKernels(library);
    const packer = new MatrixPacker(library, this.memory);
    const grids = { kind: this.kind, scheme };
    try {
      this.blocks = programs.map((program, layer) =>
        placeBlock(this.memory, packer, program, grids, source.block(layer)),
      );
      this.endLayers = placeEndLayers(this.memory, packer, source.endLayers, scheme.tableBits);
      this.buffers = stepBuffers(
        this.memory,
        shape,
        this.endLayers.embedding.shape[1],
        programs,
        scheme,
        this.endLayers.head.groups?.size,
      );
      this.rotary = rotaryBuffers(this.memory, programs);
      const pages = this.layOutPages();
      this.layerOffsets = pages.offsets;
      this.bytesPerPage = pages.bytes;
      this.stateLayout = stateLayout(programs);
      if (this.stateLayout.size > 0) this.bytesPerState = 4 * this.stateLayout.size;
      const { widths, output } = this.layOutValues();
      this.places = widths.map((width) =>
        this.memory.alloc<Float32Array>("f32", STEP_ROWS * width),
      );
      this.output = output;
    } catch (error) {
      this.memory[Symbol.dispose]();
      throw error;
    }
    this.weightBytes = [...matricesOf(this.blocks, this.endLayers)].reduce(
      (sum, { bytes }) => sum + bytes,
      0,
    );
    const arithmetic =
      scheme.activationBits < 16
        ? "integer"
        : scheme.weightBits < 16
          ? "integer weights, f32 activations"
          : "bf16";
    this.description = `${library.description()}, ${threads} ${threads === 1 ? "thread" : "threads"}, ${formatScheme(scheme)}, ${arithmetic}`;
  }

  addressableBytes(): number {
    return this.library.freeBytes?.() ?? Infinity;
  }

  reserve(pages: number, states = 1): void {
    this.checkLive();
    checkReserve(pages, states);
    this.cache?.memory[Symbol.dispose]();
    this.cache = undefined;
    this.dropPlan();
    const memory = new EngineMemory(this.library);
    this.cache = {
      memory,
      place: memory.reserve(pages * this.bytesPerPage),
      pages,
      states:
        this.bytesPerState === undefined ? undefined : memory.reserve(states * this.bytesPerState),
    };
    if (this.bytesPerState !== undefined) this.positions = new SequenceStates(states);
  }

  copyPage(from: number, to: number): void {
    this.checkLive();
    const { place, pages } = this.requireCache();
    checkPage(from, pages);
    checkPage(to, pages);
    const size = this.bytesPerPage;
    if (from !== to) place.copy(from * size, to * size, size);
  }

  copyState(from: number, to: number): void {
    this.checkLive();
    const { states } = this.requireCache();
    const size = this.bytesPerState;
    if (!states || size === undefined)
      throw new PlanishError("a model without recurrent layers has no states to copy");
    this.positions.copy(from, to);
    if (from !== to) states.copy(from * size, to * size, size);
  }

  // The kernels run on threads of their own and this one waits for them; what refuses a step rejects.
  async step(chunks: readonly Chunk[]): Promise<StepLogits> {
    return Promise.resolve(this.compute(chunks));
  }

  private compute(chunks: readonly Chunk[]): StepLogits {
    this.checkLive();
    for (const chunk of chunks) checkChunk(chunk, this.shape, PAGE_TOKENS, this.cache?.pages);
    const { vocabSize } = this.shape;
    const wanted = chunks.map(({ logits, tokens }) =>
      logits === "all" ? tokens.length : logits === "last" ? 1 : 0,
    );
    const total = wanted.reduce((sum, rows) => sum + rows, 0);
    const all = new Float32Array(total * vocabSize);
    const width = this.endLayers.embedding.shape[1];
    const hidden = chunks.map(({ logits, tokens }) =>
      logits === "hidden" ? new Float32Array(tokens.length * width) : undefined,
    );
    let filled = 0;
    const slots = this.positions.of(chunks);
    this.positions.begin(slots);
    for (const pieces of cut(chunks, slots)) {
      const rows = this.forward(pieces);
      filled += this.logits(pieces, rows, all.subarray(filled * vocabSize));
      this.hidden(pieces, rows, (chunk) => hidden[chunks.indexOf(chunk)]);
    }
    this.positions.end(slots, chunks);
    let at = 0;
    return wanted.map((rows, i) => {
      if (rows === 0) return hidden[i];
      const part = total === rows ? all : all.slice(at * vocabSize, (at + rows) * vocabSize);
      at += rows;
      return part;
    });
  }

  /** Starts (or restarts) timing kernels; `profile` reads what was spent since. */
  startProfile(): void {
    this.seconds = new Float64Array(PLAN_OPERATIONS.length);
    this.logitSeconds = 0;
  }

  profile(): StepProfile | undefined {
    const { seconds } = this;
    if (!seconds) return undefined;
    const entries = PLAN_OPERATIONS.map((name, index) => [name, seconds[index]]);
    return {
      ...(Object.fromEntries(entries) as Record<PlanOperation, number>),
      logits: this.logitSeconds,
    };
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.dropPlan();
    this.cache?.memory[Symbol.dispose]();
    this.memory[Symbol.dispose]();
  }

  /** Runs the blocks over the pieces' rows; returns their number. */
  private forward(pieces: readonly Piece[]): number {
    const { buffers, rotary, endLayers } = this;
    const offset = endLayers.positions?.offset ?? 0;
    const listed = pieces.reduce((sum, piece) => sum + pagesOf(piece), 0);
    const { address, calls, pages } = this.plan(listed);
    let row = 0;
    let page = 0;
    pieces.forEach((piece, index) => {
      const { chunk, from, rows, slot } = piece;
      const start = chunk.start + from;
      const length = chunk.start + chunk.tokens.length;
      buffers.chunks.data.set([row, rows, start, page], index * 4);
      buffers.slots.data[index] = slot;
      const count = pagesOf(piece);
      pages.data.set(chunk.pages.subarray(0, count), page);
      page += count;
      buffers.ids.data.set(chunk.tokens.subarray(from, from + rows), row);
      for (let t = 0; t < rows; t++, row++) {
        buffers.positions.data[row] = start + t + offset;
        for (const { rows: table, cosine, sine, growth } of rotary.values())
          if (growth) growth.data[row] = table.growth(start + t);
          else
            table.write(start + t, length, { cos: cosine.data, sin: sine.data }, row * table.pairs);
      }
    });
    this.library.runPlan(address, calls, row, pieces.length, this.seconds);
    return row;
  }

  /** Logits of the rows that the pieces ask for, into `out`; returns their number. */
  private logits(pieces: readonly Piece[], rows: number, out: Float32Array): number {
    const { buffers, shape, endLayers } = this;
    const started = this.seconds ? performance.now() : 0;
    let count = 0;
    let row = 0;
    for (const { chunk, from, rows: length } of pieces) {
      const last = from + length === chunk.tokens.length;
      for (let t = 0; t < length; t++, row++)
        if (chunk.logits === "all" || (chunk.logits === "last" && last && t === length - 1))
          buffers.chosen.data[count++] = row;
    }
    if (count === 0) return 0;
    const { address } = this.headInput(rows, count);
    const logits = out.subarray(0, count * shape.vocabSize);
    if (endLayers.head.groups) this.headProduct(endLayers.head, address, count, logits);
    else this.multiply(endLayers.head, count, address, logits);
    if (endLayers.logitSoftcap !== undefined) this.cap(logits, endLayers.logitSoftcap);
    if (this.seconds) this.logitSeconds += (performance.now() - started) / 1000;
    return count;
  }

  /** Copies what the head reads of the pieces' rows to where `sink` says their chunk's lie, if it asks for them. */
  private hidden(
    pieces: readonly Piece[],
    rows: number,
    sink: (chunk: Chunk) => Float32Array | undefined,
  ): void {
    const { chosen } = this.buffers;
    const width = this.endLayers.embedding.shape[1];
    let row = 0;
    for (const { chunk, from, rows: length } of pieces) {
      const to = sink(chunk);
      if (to) {
        for (let t = 0; t < length; t++) chosen.data[t] = row + t;
        const { data } = this.headInput(rows, length);
        to.set(data.subarray(0, length * width), from * width);
      }
      row += length;
    }
  }

  /** What the head reads of the first `count` rows listed as chosen, of `rows` in all: normed, in the embedding's width. */
  private headInput(rows: number, count: number): Place<Float32Array> {
    const { buffers, shape, endLayers, kernels } = this;
    const { hiddenSize, stateWidth } = shape;
    kernels.gatherRows({
      table: this.places[this.output].address,
      tableRows: rows,
      cols: stateWidth ?? hiddenSize,
      ids: buffers.chosen.address,
      rows: count,
      out: buffers.last.address,
    });
    let place = buffers.last;
    if (stateWidth !== undefined) {
      const narrow = { cols: hiddenSize, xStride: stateWidth, outStride: hiddenSize };
      kernels.columns({ x: place.address, rows: count, ...narrow, out: buffers.normed.address });
      place = buffers.normed;
    }
    if (endLayers.finalNorm) {
      const { kind, epsilon, gain, bias } = endLayers.finalNorm;
      kernels.norm({
        kind,
        x: place.address,
        rows: count,
        groups: 1,
        cols: hiddenSize,
        gain,
        bias,
        epsilon,
        out: buffers.normed.address,
      });
      place = buffers.normed;
    }
    if (endLayers.projectOut) {
      this.multiply(endLayers.projectOut, count, place.address, buffers.embedded.data);
      place = buffers.embedded;
    }
    return place;
  }

  private multiply(
    { kind, shape: [n, k], address: packed }: PackedMatrix,
    m: number,
    a: bigint,
    out: Float32Array,
  ): void {
    this.kernels.packedMatmul({ kind, m, n, k, a, packed, out, accumulate: false });
  }

  /** Logits by a head of few bits: rows become 8-bit codes with as large groups as it has. */
  private headProduct(
    { kind, shape: [n, k], address: packed, groups }: PackedMatrix,
    x: bigint,
    m: number,
    out: Float32Array,
  ): void {
    const { headCodes, headScales } = this.buffers;
    if (!groups || !headCodes || !headScales) throw new RangeError("the head has no groups");
    const { size: group, form } = groups;
    this.kernels.site({
      input: "plain",
      op: "sigmoid",
      x,
      rows: m,
      nLeft: 1,
      nRight: k,
      epsilon: 0,
      bits: 8,
      span: group,
      sets: 1,
      capacity: m,
      clips: Float32Array.of(Infinity, Infinity),
      codes: headCodes.address,
      scale: headScales.address,
      alpha: 0,
      limit: 0,
    });
    const [a, aScale] = [headCodes.address, headScales.address];
    const shape = { kind, m, n, k, group, form, span: group };
    this.kernels.groupMatmul({ ...shape, a, aScale, packed, out, accumulate: false });
  }

  /** cap·tanh(x/cap), as cap·(2σ(2x/cap) − 1). */
  private cap(x: Float32Array, cap: number): void {
    const { kernels } = this;
    const { length } = x;
    kernels.scale({ x, length, alpha: 2 / cap, accumulate: false, out: x });
    kernels.unary({ op: "sigmoid", x, length, out: x });
    kernels.scale({ x, length, alpha: 2 * cap, accumulate: false, out: x });
    const b = Float32Array.of(cap);
    kernels.binary({ op: "sub", rows: 1, cols: length, a: x, b, broadcast: "scalar", out: x });
  }

  /** The plan for this cache, with room for `listed` page numbers. */
  private plan(listed: number): { address: bigint; calls: number; pages: Place<Int32Array> } {
    if (this.planned && this.pageList && this.pageList.data.length >= listed)
      return { ...this.planned, pages: this.pageList };
    const { place, states } = this.requireCache();
    this.dropPlan();
    const memory = new EngineMemory(this.library);
    const pages = memory.alloc<Int32Array>("i32", Math.max(2 * listed, 4096));
    const plan = new Plan(memory);
    this.planEmbedding(plan);
    this.planBlocks(
      {
        memory,
        plan,
        slots: new Slots(),
        address: (slot) => this.places[slot].address,
        pages: pages.address,
        states: states?.address ?? 0n,
      },
      place.address,
    );
    this.planned = { memory, address: plan.finish(), calls: plan.length };
    this.pageList = pages;
    return { ...this.planned, pages };
  }

  /** Plans every block after the other; returns where the last one's output lies. */
  private planBlocks(
    where: Pick<PlanContext, "memory" | "plan" | "slots" | "address" | "pages" | "states">,
    cache: bigint,
  ): Slot {
    const { scheme, kind, buffers, rotary, bytesPerPage: pageBytes } = this;
    const { size: stateStride } = this.stateLayout;
    const context: PlanContext = {
      ...where,
      ...{ scheme, kind, buffers, rotary, pageBytes, stateStride },
    };
    return this.blocks.reduce(
      (input, block, layer) =>
        planBlock(context, this.programs[layer], block, input, {
          cache: cache + BigInt(this.layerOffsets[layer]),
          states: this.stateLayout.offsets[layer],
        }),
      where.slots.take(this.shape.stateWidth ?? this.shape.hiddenSize),
    );
  }

  /** How wide each slot has to be, from planning once without memory for them. */
  private layOutValues(): { readonly widths: readonly number[]; readonly output: Slot } {
    using memory = new EngineMemory(this.library);
    const slots = new Slots();
    const plan = new Plan(memory);
    const nowhere = { address: () => 0n, pages: 0n, states: 0n };
    const output = this.planBlocks({ memory, plan, slots, ...nowhere }, 0n);
    return { widths: slots.widths, output };
  }

  /** Where each layer's keys and values lie in a page. */
  private layOutPages(): { readonly offsets: readonly number[]; readonly bytes: number } {
    const size = new BigInt64Array(1);
    let bytes = 0;
    const offsets = this.programs.map((program) => {
      const offset = bytes;
      const cache = cacheOf(program);
      if (!cache) return offset;
      const { heads, headDim } = cache;
      this.kernels.cacheHeadBytes({ headDim, bits: this.scheme.kvBits, bytes: size });
      bytes += heads * Number(size[0]);
      return offset;
    });
    return { offsets, bytes };
  }

  private planEmbedding(plan: Plan): void {
    const { buffers, shape, endLayers } = this;
    // The first block's input is the first slot.
    const x = this.places[0].address;
    const { hiddenSize, vocabSize, stateWidth } = shape;
    const { embedding, projectIn, positions, side, embeddingScale } = endLayers;
    const width = embedding.shape[1];
    const into = projectIn || stateWidth !== undefined ? buffers.embedded.address : x;
    const table = {
      kind: embedding.kind,
      n: vocabSize,
      k: width,
      packed: embedding.address,
      ids: buffers.ids.address,
      out: into,
    };
    const { groups } = embedding;
    if (groups) plan.add("groupRows", { ...table, group: groups.size, form: groups.form });
    else plan.add("packedRows", table);
    if (embeddingScale !== undefined)
      plan.add("scale", {
        x: into,
        length: width,
        alpha: embeddingScale,
        accumulate: false,
        out: into,
      });
    if (stateWidth !== undefined) {
      const state = { outStride: stateWidth };
      plan.add("columns", { x: into, cols: width, xStride: width, out: x, ...state });
      if (!side) return;
      const [n, cols] = side.table.shape;
      plan.add("packedRows", {
        kind: side.table.kind,
        n,
        k: cols,
        packed: side.table.address,
        ids: buffers.ids.address,
        out: into,
      });
      const scaled = { length: cols, alpha: side.scale, accumulate: false };
      plan.add("scale", { x: into, ...scaled, out: into });
      const behind = x + BigInt(4 * hiddenSize);
      plan.add("columns", { x: into, cols, xStride: cols, out: behind, ...state });
      return;
    }
    if (projectIn) {
      const part = {
        n: hiddenSize,
        a: into,
        aScale: 0n,
        packed: projectIn.address,
        bScale: 0n,
        bias: 0n,
        out: x,
        outStride: hiddenSize,
      };
      plan.add("packedMatmulParts", {
        kind: projectIn.kind,
        k: width,
        parts: 1,
        table: plan.parts([part]),
        accumulate: false,
      });
    }
    if (positions) {
      const learned = buffers.embedded.address;
      plan.add("gatherRows", {
        table: positions.address,
        tableRows: positions.rows,
        cols: hiddenSize,
        ids: buffers.positions.address,
        out: learned,
      });
      plan.add("binary", {
        op: "add",
        cols: hiddenSize,
        a: x,
        b: learned,
        broadcast: "full",
        out: x,
      });
    }
  }

  private dropPlan(): void {
    this.planned?.memory[Symbol.dispose]();
    this.planned = undefined;
    this.pageList = undefined;
  }

  private checkLive(): void {
    if (this.disposed) throw new PlanishError("this engine was disposed; open the model again");
  }

  private requireCache() {
    if (!this.cache) throw new PlanishError("no cache pages are reserved; call reserve first");
    return this.cache;
  }
}

/** Pages that a piece reads. */
function pagesOf({ chunk, from, rows }: Piece): number {
  return Math.ceil((chunk.start + from + rows) / PAGE_TOKENS);
}

/** Cuts a step into pieces of at most STEP_ROWS rows together; a chunk's pieces follow one another. */
function cut(chunks: readonly Chunk[], slots: Int32Array): Piece[][] {
  const steps: Piece[][] = [];
  let room = 0;
  for (const [i, chunk] of chunks.entries())
    for (let from = 0; from < chunk.tokens.length;) {
      if (room === 0) {
        steps.push([]);
        room = STEP_ROWS;
      }
      const rows = Math.min(room, chunk.tokens.length - from);
      steps[steps.length - 1].push({ chunk, from, rows, slot: slots[i] });
      from += rows;
      room -= rows;
    }
  return steps;
}

function* matricesOf(
  blocks: readonly PlacedBlock[],
  endLayers: PlacedEndLayers,
): Generator<PackedMatrix> {
  for (const { linears } of blocks) yield* Object.values(linears);
  const { embedding, head, projectIn, projectOut } = endLayers;
  yield* new Set([embedding, head, projectIn, projectOut].filter((matrix) => matrix !== undefined));
}
