/** Reads a checkpoint's tensors into the roles of a block; block by block, never the whole model. */
import { PlanishError } from "../common/errors.js";
import type { Backend } from "../backend/contract/training.js";
import type { HostLinear, HostNorm, HostTensor } from "../backend/contract/packed.js";
import type { Checkpoint, StoredTensor } from "../checkpoint/checkpoint.js";
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
  StoredPart,
} from "../backend/contract/program.js";

/** One block's weights in host memory, by the names that its program gives them. */
export interface HostBlock {
  readonly norms: Readonly<Record<NormName, HostNorm>>;
  readonly linears: Readonly<Record<LinearName, HostLinear>>;
  readonly kept: Readonly<Record<KeptName, HostTensor>>;
}

/** @throws PlanishError when a tensor is missing or its shape is not what the config promises. */
export function checkStored(
  checkpoint: Checkpoint,
  name: string,
  shape: readonly number[],
): StoredTensor {
  const stored = checkpoint.tensors.get(name);
  if (!stored) throw new PlanishError(`${checkpoint.path}: tensor ${name} is missing`);
  if (stored.shape.length !== shape.length || stored.shape.some((n, i) => n !== shape[i]))
    throw new PlanishError(
      `${checkpoint.path}: tensor ${name} is [${stored.shape.join(", ")}], config.json implies [${shape.join(", ")}]`,
    );
  return stored;
}

/** @throws PlanishError when a tensor is missing, not finite, or its shape is not what the config promises. */
export function readTensor(
  checkpoint: Checkpoint,
  name: string,
  shape: readonly number[],
): HostTensor {
  checkStored(checkpoint, name, shape);
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

/** The tensors that a linear or norm is made of, in order. */
export function partsOf(place: LinearPlace | NormPlace): readonly StoredPart[] {
  if ("unit" in place && place.unit) return [];
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
  return partsOf(place).map(
    ({ path, name, stack }) => stack ?? { weight: name ?? `${path}.weight`, bias: `${path}.bias` },
  );
}

/** A tensor's whole name: `name` inside a block, unless it begins with a slash. */
export function wholeName(prefix: string, name: string): string {
  return name.startsWith("/") ? name.slice(1) : prefix + name;
}

/** Whether a checkpoint of an original has a bias for a linear or norm. */
export function hasBias(
  checkpoint: Checkpoint,
  prefix: string,
  place: LinearPlace | NormPlace,
): boolean {
  return storedNames(place).some(({ bias }) => checkpoint.tensors.has(wholeName(prefix, bias)));
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

/** Reads tensors of a block; a stack of matrices is read once for all that are taken out of it. */
class BlockReader {
  private readonly stacks = new Map<string, HostTensor>();

  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly prefix: string,
  ) {}

  /** Weights [rows, cols] or biases [rows] of a place in the program's order, times its factors; of norms `cols` is absent. */
  rows(place: LinearPlace | NormPlace, kind: "weight" | "bias", cols?: number): HostTensor {
    const names = storedNames(place);
    const read = partsOf(place).map((part, i) => this.part(part, names[i][kind], cols));
    const width = cols ?? 1;
    const order = place.stored?.order;
    const factor = "shape" in place ? this.factor(place) : 1;
    const rowFactors = "shape" in place ? place.rowFactors : undefined;
    if (read.length === 1 && !order && factor === 1 && !rowFactors) return read[0];
    const all = read.length === 1 ? read[0].data : concatenated(read);
    const count = order?.length ?? all.length / width;
    const data = new Float32Array(count * width);
    for (let row = 0; row < count; row++) {
      const from = (order?.[row] ?? row) * width;
      const times = factor * (rowFactors?.[row] ?? 1);
      for (let i = 0; i < width; i++) data[row * width + i] = times * all[from + i];
    }
    return { shape: cols === undefined ? [count] : [count, cols], data };
  }

  private factor({ factor = 1, scaledBy }: LinearPlace): number {
    if (!scaledBy) return factor;
    return factor * this.tensor(scaledBy.name, [scaledBy.length]).data[scaledBy.index];
  }

  tensor(name: string, shape: readonly number[]): HostTensor {
    return readTensor(this.checkpoint, wholeName(this.prefix, name), shape);
  }

  private part(
    { rows, transposed = false, stack }: StoredPart,
    name: string,
    cols: number | undefined,
  ): HostTensor {
    const turned = transposed && cols !== undefined;
    const shape = cols === undefined ? [rows] : turned ? [cols, rows] : [rows, cols];
    const stored = stack
      ? this.entry(name, stack.count, stack.index, shape)
      : this.tensor(name, shape);
    if (!turned) return stored;
    const data = new Float32Array(rows * cols);
    for (let row = 0; row < rows; row++)
      for (let i = 0; i < cols; i++) data[row * cols + i] = stored.data[i * rows + row];
    return { shape: [rows, cols], data };
  }

  private entry(name: string, count: number, index: number, shape: readonly number[]): HostTensor {
    let all = this.stacks.get(name);
    if (!all) this.stacks.set(name, (all = this.tensor(name, [count, ...shape])));
    const size = all.data.length / count;
    return { shape, data: all.data.subarray(index * size, (index + 1) * size) };
  }
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

/** What a block has beside its linears' weights. */
export interface BesideWeights extends Pick<HostBlock, "norms" | "kept"> {
  /** Biases of linears. */
  readonly biases: Readonly<Record<LinearName, HostTensor | undefined>>;
}

/** @throws PlanishError when a tensor is missing or its shape is not what the config promises. */
export function readBesideWeights(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
): BesideWeights {
  const prefix = architecture.names.blockPrefix(layer);
  return besideWeights(new BlockReader(checkpoint, prefix), checkpoint, prefix, config, layer);
}

function besideWeights(
  reader: BlockReader,
  checkpoint: Checkpoint,
  prefix: string,
  config: ModelConfig,
  layer: number,
): BesideWeights {
  const program = blockProgram(config, layer);
  const bias = (place: LinearPlace | NormPlace): HostTensor | undefined =>
    hasBias(checkpoint, prefix, place) ? reader.rows(place, "bias") : undefined;
  return {
    norms: mapValues(program.norms, (place) => ({
      path: place.path,
      gain: place.unit
        ? { shape: [place.width], data: new Float32Array(place.width).fill(1) }
        : gainOf(reader.rows(place, "weight"), place.offset, place.factor),
      bias: bias(place),
    })),
    biases: mapValues(program.linears, bias),
    kept: mapValues(program.kept, ({ path, shape }) => reader.tensor(path, shape)),
  };
}

/** @throws PlanishError when a tensor of the block is missing or its shape is not what the config promises. */
export function readBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
): HostBlock {
  const prefix = architecture.names.blockPrefix(layer);
  const reader = new BlockReader(checkpoint, prefix);
  const { norms, biases, kept } = besideWeights(reader, checkpoint, prefix, config, layer);
  return {
    norms,
    linears: mapValues(blockProgram(config, layer).linears, (place, name) => ({
      path: place.path,
      weight: reader.rows(place, "weight", place.shape[1]),
      bias: biases[name],
    })),
    kept,
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
