/**
 * A decoder that can be run: embeddings, a list of blocks with their hooks, final norm and head.
 * The original model, a simulated quantized one and a loaded artifact are all this, with different hooks.
 */
import { PlanishError } from "../common/errors.js";
import type { Backend, Buffer } from "../backend/contract/training.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import {
  add,
  gatherRows,
  linear,
  norm,
  scale,
  softcap,
  spliceColumns,
  takeColumns,
} from "../tensor/ops/index.js";
import { freeTensor, frozen, type Graph, Tensor } from "../tensor/tensor.js";
import { blockPrograms } from "./architectures/index.js";
import { parseSource } from "./source.js";
import { stateWidth, type Architecture, type ModelConfig } from "./config.js";
import {
  plainHooks,
  runBlock,
  type BlockContext,
  type BlockHooks,
  type BlockWeights,
  type SequenceCache,
  type NormWeights,
} from "./interpret.js";
import type { HostTensor } from "../backend/contract/packed.js";
import { cacheWidth, type BlockProgram } from "../backend/contract/program.js";
import { isCarry, stateSize, type CarryStep } from "../backend/contract/recurrent.js";
import { rotaryTables, rotaryTablesAt } from "./rope.js";
import { attentionRows, type SequenceTree } from "./sequence-tree.js";
import { freeBlock, readBlock, readFinalNorm, readTensor, uploadBlock } from "./weights.js";

/** What surrounds the blocks. */
export interface EndLayerWeights {
  readonly embedding: Tensor;
  readonly positions?: Tensor;
  /** Absent in models whose last block's states are normed already. */
  readonly finalNorm?: NormWeights;
  /** The embedding itself when tied. */
  readonly lmHead: Tensor;
  /** A second table of embeddings, [rows, width]. */
  readonly side?: Tensor;
  /** [hidden, embedding] and [embedding, hidden], where the embedding has a width of its own. */
  readonly projectIn?: Tensor;
  readonly projectOut?: Tensor;
}

/** Every tensor of the end layers once. */
export function endLayerTensors(endLayers: EndLayerWeights): Tensor[] {
  const { embedding, positions, side, finalNorm: n, lmHead, projectIn, projectOut } = endLayers;
  const all = [embedding, positions, side, n?.gain, n?.bias, lmHead, projectIn, projectOut];
  return [...new Set(all)].filter((t) => t !== undefined);
}

export interface Layer {
  readonly weights: BlockWeights;
  readonly hooks: BlockHooks;
}

export function loadEndLayers(
  backend: Backend,
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  /** Reads embedding and head, where they are not stored as other tensors are. */
  readTable: (name: string, shape: readonly number[]) => HostTensor = (name, shape) =>
    readTensor(checkpoint, name, shape),
): EndLayerWeights {
  const { names } = architecture;
  const load = (name: string, shape: readonly number[]): Tensor =>
    frozen(backend, shape, readTensor(checkpoint, name, shape).data);
  const put = ({ shape, data }: HostTensor): Tensor => frozen(backend, shape, data);
  const { hiddenSize, embeddingSize } = config;
  const table = [config.vocabSize, embeddingSize ?? hiddenSize];
  const projection = (name: string | undefined, shape: readonly number[]) =>
    embeddingSize === undefined || name === undefined ? undefined : load(name, shape);
  const loadTable = (name: string): Tensor => put(readTable(name, table));
  const embedding = loadTable(names.embedding);
  const final = readFinalNorm(checkpoint, architecture, config);
  return {
    embedding,
    positions:
      config.positions.kind === "learned" && names.positions !== undefined
        ? load(names.positions, [config.maxPositions + config.positions.offset, config.hiddenSize])
        : undefined,
    side:
      config.side && names.side !== undefined
        ? load(names.side, [config.side.rows, config.side.width])
        : undefined,
    finalNorm: final && { gain: put(final.gain), bias: final.bias && put(final.bias) },
    projectIn: projection(names.projectIn, [hiddenSize, embeddingSize ?? hiddenSize]),
    projectOut: projection(names.projectOut, [embeddingSize ?? hiddenSize, hiddenSize]),
    lmHead:
      config.tiedEmbeddings || !checkpoint.tensors.has(names.lmHead)
        ? embedding
        : loadTable(names.lmHead),
  };
}

/** What enters the first block: token embeddings plus learned positions, [batch·time, state]. `start` is the position of the first token. */
export function embed(
  g: Graph,
  config: ModelConfig,
  endLayers: EndLayerWeights,
  ids: Int32Array,
  batch: number,
  start = 0,
): Tensor {
  const time = ids.length / batch;
  return embedAt(
    g,
    config,
    endLayers,
    ids,
    Int32Array.from(ids, (_, i) => start + (i % time)),
  );
}

/** The same, [rows, state], for tokens at given positions. */
function embedAt(
  g: Graph,
  config: ModelConfig,
  endLayers: EndLayerWeights,
  ids: Int32Array,
  positions: Int32Array,
): Tensor {
  checkIds(config, ids);
  const embedded = gatherRows(g, endLayers.embedding, g.indices(ids));
  const { embeddingScale } = config;
  const scaled = embeddingScale === undefined ? embedded : scale(g, embedded, embeddingScale);
  const tokens = endLayers.projectIn ? linear(g, scaled, endLayers.projectIn) : scaled;
  if (config.stateWidth !== undefined) return stateOf(g, config, endLayers, tokens, ids);
  if (config.positions.kind !== "learned" || !endLayers.positions) return tokens;
  const { offset } = config.positions;
  const last = positions.reduce((a, b) => Math.max(a, b), 0);
  if (last >= config.maxPositions)
    throw new PlanishError(
      `position ${last + 1} is past the model's ${config.maxPositions} learned positions`,
    );
  const rows = positions.map((position) => offset + position);
  return add(g, tokens, gatherRows(g, endLayers.positions, g.indices(rows)));
}

/** Hidden states with what goes along with them: rows of the second table, and zeros where blocks put something. */
function stateOf(
  g: Graph,
  config: ModelConfig,
  { side: table }: EndLayerWeights,
  tokens: Tensor,
  ids: Int32Array,
): Tensor {
  const { side, hiddenSize } = config;
  const width = stateWidth(config);
  const rows = ids.length;
  const empty = g.constant([rows, width], new Float64Array(rows * width));
  const parts = [{ x: tokens, at: 0 }];
  if (side && table)
    parts.push({ x: scale(g, gatherRows(g, table, g.indices(ids)), side.scale), at: hiddenSize });
  return spliceColumns(g, empty, parts);
}

function checkIds(config: ModelConfig, ids: Int32Array): void {
  for (const id of ids)
    if (id < 0 || id >= config.vocabSize)
      throw new PlanishError(`token id ${id} is outside the vocabulary of ${config.vocabSize}`);
}

/** What the head reads of the last block's states [rows, state]: hidden states, normed and projected where the model does so, [rows, embedding]. */
export function finalNorm(
  g: Graph,
  config: ModelConfig,
  endLayers: EndLayerWeights,
  states: Tensor,
): Tensor {
  const { finalNorm: n, projectOut } = endLayers;
  const hidden =
    config.stateWidth === undefined ? states : takeColumns(g, states, 0, config.hiddenSize);
  const normed = n ? norm(g, hidden, { ...config.norm, ...n }) : hidden;
  return projectOut ? linear(g, normed, projectOut) : normed;
}

/** Logits of what the head reads, [rows, vocab]. */
export function headLogits(
  g: Graph,
  { logitSoftcap }: ModelConfig,
  endLayers: EndLayerWeights,
  normed: Tensor,
): Tensor {
  const logits = linear(g, normed, endLayers.lmHead);
  return logitSoftcap === undefined ? logits : softcap(g, logits, logitSoftcap);
}

export interface SequenceOptions {
  /** Sequences of equal length that the ids hold one after the other (default 1). */
  readonly batch?: number;
  readonly cache?: SequenceCache;
}

export class LanguageModel implements Disposable {
  readonly programs: readonly BlockProgram[];

  constructor(
    readonly backend: Backend,
    readonly architecture: Architecture,
    readonly config: ModelConfig,
    readonly endLayers: EndLayerWeights,
    readonly layers: readonly Layer[],
  ) {
    this.programs = blockPrograms(config).slice(0, layers.length);
  }

  /** Loads every block of a full-precision checkpoint. */
  static load(backend: Backend, checkpoint: Checkpoint): LanguageModel {
    const { architecture, config } = parseSource(checkpoint);
    const endLayers = loadEndLayers(backend, checkpoint, architecture, config);
    const layers = Array.from({ length: config.numLayers }, (_, layer) => {
      const weights = uploadBlock(backend, readBlock(checkpoint, architecture, config, layer));
      return { weights, hooks: plainHooks(weights) };
    });
    return new LanguageModel(backend, architecture, config, endLayers, layers);
  }

  /**
   * What the head reads: hidden states after the final norm (and projection), [batch·time, embedding]. With a cache (batch 1) the tokens continue it.
   */
  hidden(g: Graph, ids: Int32Array, options: SequenceOptions = {}): Tensor {
    return this.normed(g, this.blockStates(g, ids, options));
  }

  /** The same of every row of a tree of sequences, [rows, embedding]. */
  hiddenOfTree(g: Graph, tree: SequenceTree): Tensor {
    const x = embedAt(g, this.config, this.endLayers, tree.ids, tree.positions);
    const rotary = rotaryTablesAt(g, this.programs, tree.positions);
    return this.normed(g, this.through(g, x, { batch: 1, rotary, shared: attentionRows(g, tree) }));
  }

  /**
   * What the head reads of rows at given positions, [rows, embedding], where `attend` says which keys and values each
   * of them sees, and `carry` what goes on from which state. `lengths`: of each row's sequence so far, which some rotary scalings depend on.
   */
  hiddenOfRows(
    g: Graph,
    ids: Int32Array,
    positions: Int32Array,
    { attend, carry }: Pick<BlockContext, "attend" | "carry">,
    lengths?: Int32Array,
  ): Tensor {
    const x = embedAt(g, this.config, this.endLayers, ids, positions);
    const rotary = rotaryTablesAt(g, this.programs, positions, lengths);
    return this.normed(g, this.through(g, x, { batch: 1, rotary, attend, carry }));
  }

  /**
   * Hidden states as they leave each block in turn, [batch·time, hidden]; one is valid until the second after it
   * is asked for. Every block runs in memory of its own that the next one reuses.
   */
  blockStates(g: Graph, ids: Int32Array, options: SequenceOptions = {}): Generator<Tensor, void> {
    const batch = options.batch ?? 1;
    const { cache } = options;
    const start = cache?.length ?? 0;
    const time = ids.length / batch;
    if (!Number.isInteger(time) || time === 0)
      throw new PlanishError(`${ids.length} token ids do not make ${batch} equal sequences`);
    const rotary = rotaryTables(g, this.programs, start, time);
    const x = embed(g, this.config, this.endLayers, ids, batch, start);
    return this.through(g, x, { batch, rotary, cache });
  }

  private *through(
    g: Graph,
    x: Tensor,
    context: Omit<BlockContext, "layer">,
  ): Generator<Tensor, void> {
    const kept = [g.real(x.size), g.real(x.size)];
    for (const [layer, { weights, hooks }] of this.layers.entries()) {
      const out = kept[layer % 2];
      {
        using inner = g.nested();
        const y = runBlock(inner, this.programs[layer], weights, hooks, x, { ...context, layer });
        this.backend.copy(inner.values(y), out, y.size);
      }
      x = new Tensor(x.shape, out, false);
      if (layer === this.layers.length - 1) context.cache?.advance(x.rows);
      yield x;
    }
  }

  private normed(g: Graph, states: Iterable<Tensor>): Tensor {
    let last: Tensor | undefined;
    for (const state of states) last = state;
    if (!last) throw new PlanishError("model has no blocks");
    return this.finalNorm(g, last);
  }

  /** What the head reads of the last block's states. */
  finalNorm(g: Graph, hidden: Tensor): Tensor {
    return finalNorm(g, this.config, this.endLayers, hidden);
  }

  /** Logits of hidden states, [rows, vocab]. */
  logits(g: Graph, hidden: Tensor): Tensor {
    return headLogits(g, this.config, this.endLayers, hidden);
  }

  /** The last row of what the head reads, [1, embedding]: all that generation needs logits of. */
  lastRow(g: Graph, hidden: Tensor): Tensor {
    const { cols } = hidden;
    const out = g.real(cols);
    this.backend.copy(g.values(hidden), out, cols, hidden.size - cols);
    return new Tensor([1, cols], out, false);
  }

  /** A cache for one sequence of at most `capacity` tokens. */
  cache(capacity: number): GrowingCache {
    return new GrowingCache(this.backend, this.programs, capacity);
  }

  [Symbol.dispose](): void {
    for (const { weights } of this.layers) freeBlock(this.backend, weights);
    for (const t of endLayerTensors(this.endLayers)) freeTensor(this.backend, t);
  }
}

/** Keys, values and states of one sequence in full precision, at a fixed capacity. */
export class GrowingCache implements SequenceCache, Disposable {
  private filled = 0;
  private readonly keys: readonly Buffer[];
  private readonly values: readonly Buffer[];
  private readonly widths: readonly number[];
  private readonly states = new Map<CarryStep, Buffer>();

  /** `programs`: of the model's blocks. */
  constructor(
    private readonly backend: Backend,
    programs: readonly BlockProgram[],
    readonly capacity: number,
  ) {
    this.widths = programs.map(cacheWidth);
    const room = (length: number) => backend.alloc(backend.realType, length);
    const make = () => this.widths.map((width) => room(capacity * width));
    this.keys = make();
    this.values = make();
    for (const step of programs.flatMap(({ steps }) => steps.filter(isCarry)))
      this.states.set(step, room(stateSize(step)));
  }

  get length(): number {
    return this.filled;
  }

  extend(g: Graph, layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor } {
    const width = this.widths[layer];
    const time = k.size / width;
    const total = this.filled + time;
    this.checkRoom(total);
    this.backend.copy(g.values(k), this.keys[layer], k.size, 0, this.filled * width);
    this.backend.copy(g.values(v), this.values[layer], v.size, 0, this.filled * width);
    return {
      k: new Tensor([total, width], this.keys[layer], false),
      v: new Tensor([total, width], this.values[layer], false),
    };
  }

  state(layer: number, step: CarryStep): Buffer {
    const found = this.states.get(step);
    if (!found) throw new PlanishError(`block ${layer} has a step that the cache was not made for`);
    return found;
  }

  advance(tokens: number): void {
    this.checkRoom(this.filled + tokens);
    this.filled += tokens;
  }

  private checkRoom(total: number): void {
    if (total > this.capacity)
      throw new PlanishError(
        `sequence of ${total} tokens exceeds the cache's capacity of ${this.capacity}`,
      );
  }

  [Symbol.dispose](): void {
    for (const buffer of [...this.keys, ...this.values, ...this.states.values()])
      this.backend.free(buffer);
  }
}
