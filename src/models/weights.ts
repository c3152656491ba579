/** Reads a checkpoint's tensors into the roles of a block; block by block, never the whole model. */
import { PlanishError } from "../common/errors.js";
import type { Backend, RealArray } from "../backend/backend.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { freeTensor, frozen, type Tensor } from "../tensor/tensor.js";
import type { BlockWeights, LinearWeights, NormWeights } from "./block.js";
import type { Architecture, LinearRole, ModelConfig } from "./config.js";

/** A weight before it is put on a device. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly data: RealArray;
}

export interface HostLinear {
  /** Path inside the block, e.g. "self_attn.q_proj". */
  readonly path: string;
  readonly weight: HostTensor;
  readonly bias?: HostTensor;
}

export interface HostNorm {
  readonly path: string;
  readonly gain: HostTensor;
  readonly bias?: HostTensor;
}

/** One block's weights in host memory. */
export interface HostBlock {
  readonly inputNorm: HostNorm;
  readonly postNorm: HostNorm;
  readonly qNorm?: HostNorm;
  readonly kNorm?: HostNorm;
  readonly linears: Readonly<Partial<Record<LinearRole, HostLinear>>>;
}

/** Expected [out, in] of every role. */
export function linearShape(config: ModelConfig, role: LinearRole): readonly [number, number] {
  const attention = config.numHeads * config.headDim;
  const kv = config.numKvHeads * config.headDim;
  switch (role) {
    case "q":
      return [attention, config.hiddenSize];
    case "k":
    case "v":
      return [kv, config.hiddenSize];
    case "o":
      return [config.hiddenSize, attention];
    case "gate":
    case "up":
      return [config.intermediateSize, config.hiddenSize];
    case "down":
      return [config.hiddenSize, config.intermediateSize];
  }
}

/** @throws PlanishError when a tensor is missing or its shape is not what the config promises. */
export function readTensor(checkpoint: Checkpoint, name: string, shape: readonly number[]): HostTensor {
  const stored = checkpoint.tensors.get(name);
  if (!stored) throw new PlanishError(`${checkpoint.path}: tensor ${name} is missing`);
  if (stored.shape.length !== shape.length || stored.shape.some((n, i) => n !== shape[i]))
    throw new PlanishError(
      `${checkpoint.path}: tensor ${name} is [${stored.shape.join(", ")}], config.json implies [${shape.join(", ")}]`,
    );
  return { shape, data: checkpoint.read(name) };
}

function readOptional(checkpoint: Checkpoint, name: string, shape: readonly number[]): HostTensor | undefined {
  return checkpoint.tensors.has(name) ? readTensor(checkpoint, name, shape) : undefined;
}

export function readBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
): HostBlock {
  const { names } = architecture;
  const prefix = names.blockPrefix(layer);
  const readNorm = (path: string, size: number): HostNorm => ({
    path,
    gain: readTensor(checkpoint, `${prefix}${path}.weight`, [size]),
    bias: readOptional(checkpoint, `${prefix}${path}.bias`, [size]),
  });
  const linears: Partial<Record<LinearRole, HostLinear>> = {};
  for (const [role, path] of Object.entries(names.linears) as [LinearRole, string][]) {
    const shape = linearShape(config, role);
    linears[role] = {
      path,
      weight: readTensor(checkpoint, `${prefix}${path}.weight`, shape),
      bias: readOptional(checkpoint, `${prefix}${path}.bias`, [shape[0]]),
    };
  }
  return {
    inputNorm: readNorm(names.norms.input, config.hiddenSize),
    postNorm: readNorm(names.norms.post, config.hiddenSize),
    qNorm: names.norms.q === undefined ? undefined : readNorm(names.norms.q, config.headDim),
    kNorm: names.norms.k === undefined ? undefined : readNorm(names.norms.k, config.headDim),
    linears,
  };
}

/** Puts a block on a device as frozen tensors. */
export function uploadBlock(backend: Backend, block: HostBlock): BlockWeights {
  const put = (t: HostTensor): Tensor => frozen(backend, t.shape, t.data);
  const putNorm = (n: HostNorm): NormWeights => ({ gain: put(n.gain), bias: n.bias && put(n.bias) });
  const linears: Partial<Record<LinearRole, LinearWeights>> = {};
  for (const [role, l] of Object.entries(block.linears) as [LinearRole, HostLinear][])
    linears[role] = { weight: put(l.weight), bias: l.bias && put(l.bias) };
  return {
    inputNorm: putNorm(block.inputNorm),
    postNorm: putNorm(block.postNorm),
    qNorm: block.qNorm && putNorm(block.qNorm),
    kNorm: block.kNorm && putNorm(block.kNorm),
    linears,
  };
}

export function freeBlock(backend: Backend, block: BlockWeights): void {
  const tensors = [block.inputNorm, block.postNorm, block.qNorm, block.kNorm]
    .flatMap((n) => (n ? [n.gain, n.bias] : []))
    .concat(Object.values(block.linears).flatMap((l) => [l.weight, l.bias]));
  for (const t of tensors) if (t) freeTensor(backend, t);
}
