/**
 * Models rounded to nearest on a scheme's grids, for engines and for the simulated arithmetic alike; with transforms and
 * clips at every place where an artifact can have them, where asked for. No test framework: GPU lanes use it too.
 */
import type { KeyBalance, PackedBlock, PackedLinear } from "../../src/backend/contract/packed.js";
import type { Backend } from "../../src/backend/contract/training.js";
import type { Checkpoint } from "../../src/checkpoint/checkpoint.js";
import { elementsToFloat32 } from "../../src/checkpoint/element-types.js";
import { floatsToHalfBytes } from "../../src/common/half.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { Random } from "../../src/common/random.js";
import type {
  EndLayerSource,
  InferenceSource,
  StoredMatrix,
} from "../../src/backend/contract/inference.js";
import { inferenceSource } from "../../src/engine/source.js";
import { blockProgram, parseModelConfig } from "../../src/models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../src/models/config.js";
import { LanguageModel, loadEndLayers } from "../../src/models/language-model.js";
import { readBlock } from "../../src/models/weights.js";
import type { LinearName, LinearSite } from "../../src/backend/contract/program.js";
import { foldBlock } from "../../src/quantize/block/fold.js";
import { packedLayer } from "../../src/quantize/block/packed-block.js";
import { parseScheme, type Scheme } from "../../src/backend/contract/scheme.js";
import { roundTable, tableReader } from "../../src/quantize/artifact/tables.js";
import { gridOfTable } from "../../src/quantize/artifact/tensors.js";
import { Graph } from "../../src/tensor/tensor.js";

function halved(values: ArrayLike<number>, name: string): Float32Array {
  const halves = new Float32Array(values.length);
  elementsToFloat32("F16", floatsToHalfBytes(values, name), halves, 0);
  return halves;
}

/** The checkpoint with embedding, head and projections rounded to halves, as the engine keeps what is not bf16. */
export function withHalves(checkpoint: Checkpoint, { names }: Architecture): Checkpoint {
  const rounded = new Set([names.embedding, names.lmHead, names.projectIn, names.projectOut]);
  return Object.create(checkpoint, {
    read: {
      value: (name: string): Float32Array => {
        const values = checkpoint.read(name);
        if (!rounded.has(name) || checkpoint.tensors.get(name)?.type === "BF16") return values;
        return halved(values, name);
      },
    },
  }) as Checkpoint;
}

export interface RoundedModel extends Disposable {
  readonly checkpoint: Checkpoint;
  readonly config: ModelConfig;
  readonly source: InferenceSource;
  /** The same blocks with simulated arithmetic; disposed with the rest. */
  simulated(backend: Backend): LanguageModel;
}

export interface Extras {
  /** Random transforms, clips of every linear, and clips of the cache. */
  readonly transforms?: boolean;
  /** Blocks to take (default: all). */
  readonly layers?: number;
}

/** @param path A local original. */
export function roundedModel(path: string, scheme: string, extras: Extras = {}): RoundedModel {
  const checkpoint = openCheckpoint(path);
  const { architecture, config: whole } = parseModelConfig(checkpoint.config);
  const config = { ...whole, numLayers: extras.layers ?? whole.numLayers };
  const parsed = parseScheme(scheme);
  const random = new Random(11);
  const blocks = Array.from({ length: config.numLayers }, (_, layer) => {
    const host = readBlock(checkpoint, architecture, config, layer);
    const block = foldBlock(
      host,
      { program: blockProgram(config, layer), scheme: parsed },
      new Map(),
    );
    return extras.transforms ? withTransforms(block, config, random) : block;
  });
  const models: LanguageModel[] = [];
  const source = inferenceSource({
    checkpoint,
    architecture,
    config,
    scheme: parsed,
    block: (layer) => blocks[layer],
  });
  return {
    checkpoint,
    config,
    source: { ...source, endLayers: roundedTables(source.endLayers, checkpoint, parsed) },
    simulated: (backend) => {
      const model = new LanguageModel(
        backend,
        architecture,
        config,
        loadEndLayers(
          backend,
          withHalves(checkpoint, architecture),
          architecture,
          config,
          tableReader(checkpoint, architecture, config, parsed),
        ),
        blocks.map((block, layer) =>
          packedLayer(backend, blockProgram(config, layer), parsed, block),
        ),
      );
      models.push(model);
      return model;
    },
    [Symbol.dispose]: () => {
      for (const model of models) model[Symbol.dispose]();
      checkpoint[Symbol.dispose]();
    },
  };
}

/** Embedding and head on the grids that a scheme has for them. */
function roundedTables(
  endLayers: EndLayerSource,
  checkpoint: Checkpoint,
  scheme: Scheme,
): EndLayerSource {
  const { names } = parseModelConfig(checkpoint.config).architecture;
  const rounded = (matrix: StoredMatrix, name: string): StoredMatrix => {
    const grid = gridOfTable(scheme, name);
    if (!grid) return matrix;
    return { ...matrix, quantized: () => roundTable(checkpoint.read(name), matrix.shape[1], grid) };
  };
  const { embedding, head } = endLayers;
  return {
    ...endLayers,
    embedding: rounded(embedding, names.embedding),
    head: head && rounded(head, names.lmHead),
  };
}

/** A matrix that keeps lengths: the identity turned over at a random direction, in halves. Its own inverse. */
function reflection(size: number, random: Random): Float32Array {
  const v = Float64Array.from({ length: size }, () => random.normal());
  const square = v.reduce((sum, x) => sum + x * x, 0);
  const values = Float32Array.from({ length: size * size }, (_, i) => {
    const [row, column] = [Math.floor(i / size), i % size];
    return (row === column ? 1 : 0) - (2 * v[row] * v[column]) / square;
  });
  return halved(values, "reflection");
}

/** The two factors of a width nearest to each other. */
function factors(width: number): [number, number] {
  let left = Math.floor(Math.sqrt(width));
  while (width % left !== 0) left--;
  return [left, width / left];
}

/** Factors from ½ to 2 and shifts of about a key's size, in halves. */
function balanceOf({ numKvHeads, headDim }: ModelConfig, random: Random): KeyBalance {
  const each = (value: () => number) =>
    halved(Float32Array.from({ length: numKvHeads * headDim }, value), "balance");
  return {
    diag: each(() => 2 ** Math.max(-1, Math.min(1, random.normal()))),
    shift: each(() => random.normal()),
  };
}

function withTransforms(block: PackedBlock, config: ModelConfig, random: Random): PackedBlock {
  const pair = (width: number) => {
    const [left, right] = factors(width);
    return { left: reflection(left, random), right: reflection(right, random) };
  };
  const roles = Object.entries(block.linears);
  const clipped = roles.map(([role, linear], i): [LinearName, PackedLinear] => [
    role,
    { ...linear, activationClip: { max: 2.5 + 0.25 * i, min: 3.5 - 0.25 * i } },
  ]);
  const transforms: Partial<Record<LinearSite, { left?: Float32Array; right?: Float32Array }>> = {
    attn_in: pair(config.hiddenSize),
    attn_out: { left: reflection(config.numHeads, random) },
    mlp_in: pair(config.hiddenSize),
    mlp_down: pair(config.intermediateSize),
  };
  const key = reflection(config.headDim, random);
  return {
    ...block,
    linears: Object.fromEntries(clipped),
    transforms,
    keyTransform: { matrix: key, inverseT: key, balance: balanceOf(config, random) },
    keyClip: { max: 3, min: 4 },
    valueClip: { max: 4, min: 2.5 },
  };
}

/** Logits of every token, [tokens, vocab]. */
export function modelLogits(model: LanguageModel, ids: Int32Array): Float32Array {
  using g = new Graph(model.backend);
  return Float32Array.from(g.read(model.logits(g, model.hidden(g, ids))));
}

/** How many of two rows of numbers differ in any bit. */
export function differentBits(a: Float32Array, b: Float32Array): number {
  const [x, y] = [a, b].map((part) => new Int32Array(part.buffer, part.byteOffset, part.length));
  return x.reduce(
    (count, bits, i) => count + (bits === y[i] ? 0 : 1),
    Math.abs(x.length - y.length),
  );
}

export function joined(...parts: readonly (Float32Array | undefined)[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + (part?.length ?? 0), 0));
  parts.reduce((at, part) => {
    if (part) out.set(part, at);
    return at + (part?.length ?? 0);
  }, 0);
  return out;
}

/** Root mean square of a − b over that of b, row by row. */
export function rowDistances(a: Float32Array, b: Float32Array, cols: number): number[] {
  return Array.from({ length: a.length / cols }, (_, row) => {
    let difference = 0;
    let size = 0;
    for (let i = row * cols; i < (row + 1) * cols; i++) {
      difference += (a[i] - b[i]) ** 2;
      size += b[i] ** 2;
    }
    return Math.sqrt(difference / size);
  });
}

export const mean = (values: readonly number[]): number =>
  values.reduce((sum, x) => sum + x, 0) / values.length;

export function median(values: readonly number[]): number {
  return [...values].sort((x, y) => x - y)[Math.floor(values.length / 2)];
}
