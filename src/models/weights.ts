/** Reads a checkpoint's tensors into the roles of a block; block by block, never the whole model. */
import { PlanishError } from "../common/errors.js";
import type { Backend } from "../backend/backend.js";
import type { HostLinear, HostNorm, HostTensor } from "../backend/contract/packed.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { freeTensor, frozen, type Tensor } from "../tensor/tensor.js";
import { mapValues } from "../common/records.js";
import { blockProgram } from "./architectures/index.js";
import type { Architecture, ModelConfig } from "./config.js";
import type { BlockWeights } from "./interpret.js";
import type { LinearName, NormName } from "../backend/contract/program.js";

/** One block's weights in host memory, by the names that its program gives them. */
export interface HostBlock {
  readonly norms: Readonly<Record<NormName, HostNorm>>;
  readonly linears: Readonly<Record<LinearName, HostLinear>>;
}

/** @throws PlanishError when a tensor is missing or its shape is not what the config promises. */
export function readTensor(checkpoint: Checkpoint, name: string, shape: readonly number[]): HostTensor {
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

function readOptional(checkpoint: Checkpoint, name: string, shape: readonly number[]): HostTensor | undefined {
  return checkpoint.tensors.has(name) ? readTensor(checkpoint, name, shape) : undefined;
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
  const read = (path: string, shape: readonly number[]) => readTensor(checkpoint, `${prefix}${path}.weight`, shape);
  const bias = (path: string, size: number) => readOptional(checkpoint, `${prefix}${path}.bias`, [size]);
  return {
    norms: mapValues(program.norms, ({ path, width }) => ({ path, gain: read(path, [width]), bias: bias(path, width) })),
    linears: mapValues(program.linears, ({ path, shape }) => ({
      path,
      weight: read(path, shape),
      bias: bias(path, shape[0]),
    })),
  };
}

/** Puts a block on a device as frozen tensors. */
export function uploadBlock(backend: Backend, block: HostBlock): BlockWeights {
  const put = (t: HostTensor): Tensor => frozen(backend, t.shape, t.data);
  return {
    norms: mapValues(block.norms, (n) => ({ gain: put(n.gain), bias: n.bias && put(n.bias) })),
    linears: mapValues(block.linears, (l) => ({ weight: put(l.weight), bias: l.bias && put(l.bias) })),
  };
}

/** Every tensor of a block on a device. */
export function blockTensors({ norms, linears }: BlockWeights): Tensor[] {
  return [
    ...Object.values(norms).flatMap((n) => [n.gain, n.bias]),
    ...Object.values(linears).flatMap((l) => [l.weight, l.bias]),
  ].filter((t) => t !== undefined);
}

export function freeBlock(backend: Backend, block: BlockWeights): void {
  for (const t of blockTensors(block)) freeTensor(backend, t);
}
