/**
 * A source whose weights are codes already, taken as it is: the file's own grids for the engine's integer kernels, with
 * activations and cache quantized beside them. No weight is rounded.
 */
import type { PackedBlock, PackedLinear, QuantizedMatrix } from "../backend/contract/packed.js";
import type { LinearPlace } from "../backend/contract/program.js";
import {
  LEGAL_GROUPS,
  LEGAL_TABLE_BITS,
  type Bits,
  type GroupSize,
  type MatrixGrid,
  type OwnGrids,
  type Scheme,
} from "../backend/contract/scheme.js";
import type { Checkpoint, StoredGrid } from "../checkpoint/checkpoint.js";
import { mapValues } from "../common/records.js";
import { blockProgram, blockPrograms } from "./architectures/index.js";
import type { Architecture, ModelConfig } from "./config.js";
import { checkStored, partsOf, readBesideWeights } from "./weights.js";

/** What may be chosen beside the weights. */
export interface KeptChoices {
  /** Of the cache; default 8. */
  readonly kvBits?: Bits;
}

/** How a source can be kept, or why not. */
export type Kept =
  { readonly scheme: Scheme; readonly types: readonly string[] } | { readonly obstacle: string };

/**
 * The scheme that stands for a source's own grids: the one that most weights have (a matrix with another knows its own).
 * Only headers are read.
 */
export function keptScheme(
  checkpoint: Checkpoint,
  { names }: Architecture,
  config: ModelConfig,
  { kvBits = 8 }: KeptChoices = {},
): Kept {
  if (!checkpoint.grid) return { obstacle: `${checkpoint.path} stores no codes` };
  const grid = (name: string) => checkpoint.grid?.(name);
  const typeOf = (name: string) => checkpoint.tensors.get(name)?.type ?? "nothing";
  const shares = new Map<string, { grid: StoredGrid; weights: number }>();
  const blocks: OwnGrids[] = [];
  for (const [layer, program] of blockPrograms(config).entries()) {
    const weightGrids: Record<string, MatrixGrid> = {};
    blocks.push({ weights: weightGrids });
    for (const place of Object.values(program.linears)) {
      if (place.scaledBy ?? partsOf(place).some(({ transposed, stack }) => transposed ?? stack))
        return { obstacle: `${place.path} is one of several in a tensor, or stored by columns` };
      if (place.rowFactors) return { obstacle: `${place.path} is multiplied row by row` };
      const tensors = weightsOf(place).map((path) => names.blockPrefix(layer) + path);
      const grids = tensors.map(grid);
      const [first] = grids;
      const missing = tensors.find((_, part) => !grids[part]);
      if (!first || missing !== undefined)
        return { obstacle: `tensor ${missing} is stored as ${typeOf(missing ?? "")}` };
      const key = JSON.stringify(first);
      if (grids.some((each) => JSON.stringify(each) !== key))
        return { obstacle: `${tensors.join(" and ")} are one linear, stored on different grids` };
      const weights = (shares.get(key)?.weights ?? 0) + place.shape[0] * place.shape[1];
      shares.set(key, { grid: first, weights });
      weightGrids[place.path] = ownGrid(first);
    }
  }
  const [most] = [...shares.values()].sort((a, b) => b.weights - a.weights);
  if (!most) return { obstacle: "the model has no linears" };
  const tables = Object.fromEntries(
    [names.embedding, ...(config.tiedEmbeddings ? [] : [names.lmHead])].flatMap((name) => {
      const own = grid(name);
      return own ? [[name, ownGrid(own)] as const] : [];
    }),
  );
  const table = grid(names.embedding);
  const tableBits = LEGAL_TABLE_BITS.find((bits) => table && bits >= table.bits);
  const widths = blockPrograms(config).flatMap((program) =>
    Object.values(program.linears).map(({ shape }) => shape[1]),
  );
  return {
    scheme: {
      weightBits: legalBits(most.grid.bits),
      weightGroup: legalGroup(most.grid.group),
      ...(most.grid.offset && { weightOffset: true }),
      activationBits: 8,
      // One scale for a whole token costs 3% of perplexity (SmolLM2), one for 64 channels 0.6%.
      activationGroup: widths.every((width) => width % 64 === 0) ? 64 : 32,
      kvBits,
      ...(table && tableBits && { tableBits, tableGroup: legalGroup(table.group) }),
      blocks,
      tables,
    },
    types: [
      ...new Set(
        [...checkpoint.tensors.values()]
          .filter(({ name }) => grid(name) !== undefined)
          .map(({ type }) => type),
      ),
    ],
  };
}

function ownGrid({ bits, group, offset }: StoredGrid): MatrixGrid {
  return { bits, group, ...(offset && { offset }) };
}

/** 5 bits take the place of 6. */
function legalBits(bits: number): Bits {
  return bits <= 4 ? 4 : bits <= 6 ? 6 : 8;
}

function legalGroup(group: number): GroupSize | undefined {
  return LEGAL_GROUPS.find((size) => size === group);
}

/** Tensors of a linear, inside the block. */
function weightsOf(place: LinearPlace): string[] {
  return partsOf(place).map(({ path }) => `${path}.weight`);
}

/**
 * A block as the source has it. `checkpoint` and `config`: of a source that `keptScheme` can keep.
 * @throws PlanishError when a tensor is missing or damaged.
 */
export function readKeptBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
): PackedBlock {
  const program = blockProgram(config, layer);
  const prefix = architecture.names.blockPrefix(layer);
  const { norms, biases, kept } = readBesideWeights(checkpoint, architecture, config, layer);
  return {
    norms,
    kept,
    linears: mapValues(program.linears, (place, name): PackedLinear => {
      const bias = biases[name];
      return {
        path: place.path,
        shape: place.shape,
        quantized: linearCodes(checkpoint, prefix, place),
        bias: bias && Float32Array.from(bias.data),
      };
    }),
    transforms: {},
  };
}

/** Codes of a linear in the program's order of rows. */
function linearCodes(checkpoint: Checkpoint, prefix: string, place: LinearPlace): QuantizedMatrix {
  const parts = partsOf(place).map(({ path, rows }) =>
    storedMatrix(checkpoint, `${prefix}${path}.weight`, [rows, place.shape[1]]),
  );
  const [first] = parts;
  const joined: QuantizedMatrix = {
    ...first,
    codes: joinedBytes(parts.map(({ codes }) => codes)),
    scale: joinedFloats(parts.map(({ scale }) => scale)),
    offset: first.offset && joinedFloats(parts.map(({ offset }) => offset ?? new Float32Array())),
  };
  const ordered = place.stored?.order ? rowsOf(joined, place.stored.order, place.shape[1]) : joined;
  return place.factor === undefined ? ordered : times(ordered, place.factor);
}

/**
 * Codes of one tensor as it is stored.
 * @throws PlanishError when it is missing or damaged, or its shape is not what the config promises.
 */
export function storedMatrix(
  checkpoint: Checkpoint,
  name: string,
  shape: readonly [number, number],
): QuantizedMatrix {
  checkStored(checkpoint, name, shape);
  const codes = checkpoint.codes?.(name);
  if (!codes) throw new RangeError(`${checkpoint.path}: tensor ${name} holds no codes`);
  return codes;
}

/** The rows of a matrix of `columns` columns that `order` names, in this order. */
function rowsOf(
  matrix: QuantizedMatrix,
  order: readonly number[],
  columns: number,
): QuantizedMatrix {
  const groups = columns / (matrix.group ?? columns);
  const pick = <T extends Int8Array | Float32Array>(from: T, to: T, width: number): T => {
    order.forEach((row, i) => to.set(from.subarray(row * width, (row + 1) * width), i * width));
    return to;
  };
  const { codes, scale, offset } = matrix;
  const numbers = () => new Float32Array(order.length * groups);
  return {
    ...matrix,
    codes: pick(codes, new Int8Array(order.length * columns), columns),
    scale: pick(scale, numbers(), groups),
    offset: offset && pick(offset, numbers(), groups),
  };
}

function times(matrix: QuantizedMatrix, factor: number): QuantizedMatrix {
  const { scale, offset } = matrix;
  return {
    ...matrix,
    scale: scale.map((x) => x * factor),
    offset: offset?.map((x) => x * factor),
  };
}

function joinedBytes(parts: readonly Int8Array[]): Int8Array {
  if (parts.length === 1) return parts[0];
  const out = new Int8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function joinedFloats(parts: readonly Float32Array[]): Float32Array {
  return parts.length === 1 ? parts[0] : Float32Array.from(parts.flatMap((part) => [...part]));
}
