/** Reads a checkpoint's tensors into the roles of a block; block by block, never the whole model. */
import { PlanishError } from "../common/errors.js";
import type { Backend } from "../backend/contract/training.js";
import type { HostLinear, HostNorm, HostTensor } from "../backend/contract/packed.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { freeTensor, frozen, type Tensor } from "../tensor/tensor.js";
import { mapValues } from "../common/records.js";
import { blockProgram } from "./architectures/index.js";
import type { Architecture, ModelConfig } from "./config.js";
import type { BlockWeights } from "./interpret.js";
import type {
  KeptName,
  LinearName,
  LinearPlace,
  NormName,
  NormPlace,
} from "../backend/contract/program.js";

/** One block's weights in host memory, by the names that its program gives them. */
export interface HostBlock {
  readonly norms: Readonly<Record<NormName, HostNorm>>;
  readonly linears: Readonly<Record<LinearName, HostLinear>>;
  readonly kept: Readonly<Record<KeptName, HostTensor>>;
}

/** @throws PlanishError when a tensor is missing or its shape is not what the config promises. */
export function readTensor(
  checkpoint: Checkpoint,
  name: string,
  shape: readonly number[],
): HostTensor {
  const stored = checkpoint.tensors.get(name);
  if (!stored) throw new PlanishError(`${checkpoint.path}: tensor ${name} is missing`);
  if (stored.shape.length !== shape.length || stored.shape.some((n, i) => n !== shape[i]))
    throw new PlanishError(
      `${checkpoint.path}: tensor ${name} is [${stored.shape.join(", ")}], config.json implies [${shape.join(", ")}]`,
    );
  const data = checkpoint.read(name);
  const at = firstNonFinite(data);
  if (at >= 0)
    throw new PlanishError(
      `${checkpoint.path}: tensor ${name} holds ${data[at]} at [${indicesOf(at, shape).join(", ")}]; every weight must be a finite number: fetch the model again, or mend it where it was saved`,
    );
  return { shape, data };
}

/** Values summed at a time: one comparison for all of them. */
const SPAN = 4096;

/** Position of the first NaN or infinity, or −1. */
export function firstNonFinite(values: ArrayLike<number>): number {
  for (let start = 0; start < values.length; start += SPAN) {
    const end = Math.min(values.length, start + SPAN);
    // Zero times a finite number is zero, and NaN for all others.
    let sum = 0;
    for (let i = start; i < end; i++) sum += values[i] * 0;
    if (sum === 0) continue;
    for (let i = start; i < end; i++) if (!Number.isFinite(values[i])) return i;
  }
  return -1;
}

/** Indices of an element by its position in row order. */
function indicesOf(position: number, shape: readonly number[]): number[] {
  const indices: number[] = [];
  for (const extent of [...shape].reverse()) {
    indices.unshift(position % extent);
    position = Math.floor(position / extent);
  }
  return indices;
}

function readOptional(
  checkpoint: Checkpoint,
  name: string,
  shape: readonly number[],
): HostTensor | undefined {
  return checkpoint.tensors.has(name) ? readTensor(checkpoint, name, shape) : undefined;
}

/** The tensors that a linear or norm is made of, in order; `rows` are theirs. */
function partsOf(
  place: LinearPlace | NormPlace,
): readonly { readonly path: string; readonly rows: number }[] {
  return (
    place.stored?.parts ?? [
      { path: place.path, rows: "shape" in place ? place.shape[0] : place.width },
    ]
  );
}

/** Names that the tensors of a linear or norm have inside the block: of each part its weight and its bias. */
export function storedNames(
  place: LinearPlace | NormPlace,
): readonly { readonly weight: string; readonly bias: string }[] {
  return partsOf(place).map(({ path }) => ({ weight: `${path}.weight`, bias: `${path}.bias` }));
}

/** Whether a checkpoint of an original has a bias for a linear or norm. */
export function hasBias(
  checkpoint: Checkpoint,
  prefix: string,
  place: LinearPlace | NormPlace,
): boolean {
  return storedNames(place).some(({ bias }) => checkpoint.tensors.has(prefix + bias));
}

/** Paths of a block's linears and norms that have a bias in an original. */
export function biasedPaths(
  checkpoint: Checkpoint,
  { names }: Architecture,
  config: ModelConfig,
  layer: number,
): ReadonlySet<string> {
  const { linears, norms } = blockProgram(config, layer);
  const places = [...Object.values(linears), ...Object.values(norms)];
  return new Set(
    places
      .filter((place) => hasBias(checkpoint, names.blockPrefix(layer), place))
      .map(({ path }) => path),
  );
}

/** Rows [rows, cols] of a place's tensors in the program's order, times its factor. `cols` is empty for vectors. */
function readRows(
  checkpoint: Checkpoint,
  name: (path: string) => string,
  place: LinearPlace | NormPlace,
  cols: readonly number[],
): HostTensor {
  const read = partsOf(place).map(({ path, rows }) =>
    readTensor(checkpoint, name(path), [rows, ...cols]),
  );
  const width = cols[0] ?? 1;
  const order = place.stored?.order;
  const factor = "factor" in place ? (place.factor ?? 1) : 1;
  if (read.length === 1 && !order && factor === 1) return read[0];
  const all = read.length === 1 ? read[0].data : concatenated(read);
  const count = order?.length ?? all.length / width;
  const data = new Float32Array(count * width);
  for (let row = 0; row < count; row++) {
    const from = (order?.[row] ?? row) * width;
    for (let i = 0; i < width; i++) data[row * width + i] = factor * all[from + i];
  }
  return { shape: [count, ...cols], data };
}

function concatenated(tensors: readonly HostTensor[]): Float32Array {
  const out = new Float32Array(tensors.reduce((sum, { data }) => sum + data.length, 0));
  let at = 0;
  for (const { data } of tensors) {
    out.set(data, at);
    at += data.length;
  }
  return out;
}

/** A gain with what its checkpoint leaves out added, times `factor`. */
function gainOf(stored: HostTensor, offset = 0, factor = 1): HostTensor {
  if (offset === 0 && factor === 1) return stored;
  return {
    shape: stored.shape,
    data: Float32Array.from(stored.data, (w) => (w + offset) * factor),
  };
}

/** @throws PlanishError when a tensor of the block is missing or its shape is not what the config promises. */
export function readBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
): HostBlock {
  const program = blockProgram(config, layer);
  const prefix = architecture.names.blockPrefix(layer);
  const weight = (path: string): string => `${prefix}${path}.weight`;
  const bias = (place: LinearPlace | NormPlace): HostTensor | undefined =>
    hasBias(checkpoint, prefix, place)
      ? readRows(checkpoint, (path) => `${prefix}${path}.bias`, place, [])
      : undefined;
  return {
    norms: mapValues(program.norms, (place) => ({
      path: place.path,
      gain: gainOf(readRows(checkpoint, weight, place, []), place.offset),
      bias: bias(place),
    })),
    linears: mapValues(program.linears, (place) => ({
      path: place.path,
      weight: readRows(checkpoint, weight, place, [place.shape[1]]),
      bias: bias(place),
    })),
    kept: mapValues(program.kept, ({ path, shape }) =>
      readTensor(checkpoint, prefix + path, shape),
    ),
  };
}

/**
 * The norm after the last block, undefined for models without one. What multiplies logits is in it: the head is linear.
 * @throws PlanishError when a tensor is missing or its shape is not what the config promises.
 */
export function readFinalNorm(
  checkpoint: Checkpoint,
  { names }: Architecture,
  { finalNorm, hiddenSize, gainOffset, logitScale = 1 }: ModelConfig,
): { readonly gain: HostTensor; readonly bias?: HostTensor } | undefined {
  if (finalNorm === false) return undefined;
  const bias = readOptional(checkpoint, names.finalNorm.replace(/\.weight$/, ".bias"), [
    hiddenSize,
  ]);
  return {
    gain: gainOf(readTensor(checkpoint, names.finalNorm, [hiddenSize]), gainOffset, logitScale),
    bias: bias && gainOf(bias, 0, logitScale),
  };
}

/** Puts a block on a device as frozen tensors. */
export function uploadBlock(backend: Backend, block: HostBlock): BlockWeights {
  const put = (t: HostTensor): Tensor => frozen(backend, t.shape, t.data);
  return {
    norms: mapValues(block.norms, (n) => ({ gain: put(n.gain), bias: n.bias && put(n.bias) })),
    linears: mapValues(block.linears, (l) => ({
      weight: put(l.weight),
      bias: l.bias && put(l.bias),
    })),
    kept: mapValues(block.kept, put),
  };
}

/** Every tensor of a block on a device. */
export function blockTensors({ norms, linears, kept }: BlockWeights): Tensor[] {
  return [
    ...Object.values(norms).flatMap((n) => [n.gain, n.bias]),
    ...Object.values(linears).flatMap((l) => [l.weight, l.bias]),
    ...Object.values(kept),
  ].filter((t) => t !== undefined);
}

export function freeBlock(backend: Backend, block: BlockWeights): void {
  for (const t of blockTensors(block)) freeTensor(backend, t);
}
