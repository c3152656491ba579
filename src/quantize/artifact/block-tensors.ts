/**
 * A packed block as named tensors and back; which tensors those are is `artifact-tensors.ts`'s to say.
 */
import type {
  ClipLogits,
  HostNorm,
  PackedBlock,
  PackedGrid,
  PackedLinear,
  PackedTransform,
} from "../../backend/contract/packed.js";
import type { TensorEntry } from "../../checkpoint/safetensors.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { areHalves, floatsToHalfBytes } from "../../common/half.js";
import { PlanishError } from "../../common/errors.js";
import { mapValues } from "../../common/records.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { sitesOf, type LinearName, type LinearSite } from "../../backend/contract/program.js";
import {
  blockTensors,
  CACHE_QUANTIZERS,
  KEY_MODULE,
  layoutOfBlock,
  layoutOfStored,
  readDescribed,
  requireHeader,
  storedSides,
  transformModule,
  valueProblem,
  type ParameterShapes,
  type TensorDescription,
} from "./tensors.js";
import { packCodes, unpackCodes } from "./packed-codes.js";
import { schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import { invertMatrix } from "../transforms/matrix.js";

/**
 * Tensors of one block, named with the block's prefix. Transforms, norms, biases and clips are 16-bit, scales 32-bit.
 * @throws PlanishError when a value cannot be kept, or the block is not what the configuration says.
 */
export function packedEntries(
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  layer: number,
  block: PackedBlock,
  /** Numbers that 16 bits do not hold are written in 32, where the description allows both. */
  exact = false,
): TensorEntry[] {
  const prefix = architecture.names.blockPrefix(layer);
  const contents = blockContents(prefix, block);
  for (const [name, { path }] of Object.entries(blockProgram(config, layer).kept))
    contents.set(prefix + path, block.kept[name].data);
  return blockTensors(architecture, config, scheme, layer, layoutOfBlock(block)).map((tensor) => {
    const { name, types, shape } = tensor;
    const data = contents.get(name);
    if (!data) throw new PlanishError(`block ${layer} has no ${name} to write`);
    const problem = valueProblem(name, tensor.values, data);
    if (problem !== undefined)
      throw new PlanishError(`block ${layer} cannot be packed: ${problem}`);
    const wide = exact && types.includes("F32") && !areHalves(Float32Array.from(data));
    const type = wide ? "F32" : types[0];
    return { name, type, shape, data: () => toBytes({ ...tensor, types: [type] }, data) };
  });
}

/** A block's numbers by tensor name; integer codes one by one. */
function blockContents(prefix: string, block: PackedBlock): Map<string, ArrayLike<number>> {
  const contents = new Map<string, ArrayLike<number>>();
  const put = (name: string, data: ArrayLike<number> | undefined): void => {
    if (data) contents.set(prefix + name, data);
  };
  const clip = (module: string, logits: ClipLogits | undefined): void => {
    put(`${module}.clip_factor_a_max`, logits && [logits.max]);
    put(`${module}.clip_factor_a_min`, logits && [logits.min]);
  };
  for (const norm of Object.values(block.norms)) {
    put(`${norm.path}.weight`, norm.gain.data);
    put(`${norm.path}.bias`, norm.bias?.data);
  }
  for (const l of Object.values(block.linears)) {
    put(`${l.path}.weight`, l.weight);
    put(`${l.path}.linear.weight`, l.quantized?.codes);
    const { scale, offset } = l.quantized ?? {};
    if (scale) contents.set(`quantizer.${prefix}${l.path}.linear.scale`, scale);
    if (offset) contents.set(`quantizer.${prefix}${l.path}.linear.offset`, offset);
    put(`${l.path}.bias`, l.bias);
    const module = `${l.path}.act_quantizer`;
    clip(module, l.activationClip);
    if (!l.grid) continue;
    put(`${module}.scale`, [l.grid.step]);
    put(`${module}.bits`, [l.grid.weightBits, l.grid.activationBits]);
    put(`${module}.factor`, l.grid.factor);
    put(`${module}.channel`, l.grid.channel);
    put(`${module}.part`, l.grid.part);
  }
  for (const [site, t] of Object.entries(block.transforms) as [LinearSite, PackedTransform][]) {
    const module = transformModule(site);
    put(`${module}.matrix_left`, t.left);
    put(`${module}.matrix_right`, t.right);
    put(`${module}.matrix`, t.left ?? t.right);
  }
  put(`${KEY_MODULE}.matrix`, block.keyTransform?.matrix);
  put(`${KEY_MODULE}.diag`, block.keyTransform?.balance?.diag);
  put(`${KEY_MODULE}.shift`, block.keyTransform?.balance?.shift);
  clip(CACHE_QUANTIZERS.k, block.keyClip);
  clip(CACHE_QUANTIZERS.v, block.valueClip);
  return contents;
}

/** A tensor's bytes, of its numbers or its codes. */
export function toBytes(
  { name, types, shape, packing }: TensorDescription,
  data: ArrayLike<number>,
): Uint8Array {
  if (packing) return packCodes(Int8Array.from(data), shape[0], data.length / shape[0], packing);
  switch (types[0]) {
    case "F16":
      return floatsToHalfBytes(data, name);
    case "F32":
      return new Uint8Array(Float32Array.from(data).buffer);
    case "I32":
      return new Uint8Array(Int32Array.from(data).buffer);
    default:
      return new Uint8Array(Int8Array.from(data).buffer);
  }
}

/**
 * Reads one block of an artifact; `parameters` are the block's, as `quantization.json` lists them.
 * @throws PlanishError naming a tensor that is missing, has another shape or type, or holds values that cannot be.
 */
export function readPackedBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  layer: number,
  parameters?: ParameterShapes,
): PackedBlock {
  const program = blockProgram(config, layer);
  const prefix = architecture.names.blockPrefix(layer);
  const layout = layoutOfStored(checkpoint, architecture, config, layer, parameters);
  const { own } = schemeOfBlock(scheme, layer);
  const described = new Map(
    blockTensors(architecture, config, scheme, layer, layout).map((t) => [t.name, t]),
  );
  for (const tensor of described.values()) requireHeader(checkpoint, tensor);
  const optional = (name: string): Float32Array | undefined => {
    const tensor = described.get(prefix + name);
    return tensor && readDescribed(checkpoint, tensor);
  };
  const required = (name: string): Float32Array => {
    const tensor = described.get(name);
    if (!tensor) throw new PlanishError(`${checkpoint.path}: tensor ${name} is missing`);
    return readDescribed(checkpoint, tensor);
  };
  const norm = (path: string, size: number): HostNorm => {
    const bias = optional(`${path}.bias`);
    return {
      path,
      gain: { shape: [size], data: required(`${prefix}${path}.weight`) },
      bias: bias && { shape: [size], data: bias },
    };
  };
  const clip = (module: string): ClipLogits | undefined => {
    const max = optional(`${module}.clip_factor_a_max`);
    const min = optional(`${module}.clip_factor_a_min`);
    return max && min ? { max: max[0], min: min[0] } : undefined;
  };
  const grid = (path: string): PackedGrid | undefined => {
    if (!layout.grids.has(path)) return undefined;
    const module = `${path}.act_quantizer`;
    const [weightBits, activationBits] = required(`${prefix}${module}.bits`);
    return {
      step: required(`${prefix}${module}.scale`)[0],
      weightBits,
      activationBits,
      channel: Int32Array.from(optional(`${module}.channel`) ?? []),
      part: Int32Array.from(optional(`${module}.part`) ?? []),
      factor: optional(`${module}.factor`),
    };
  };
  const quantized = (path: string, [rows, channels]: readonly [number, number]) => {
    const tensor = described.get(`${prefix}${path}.linear.weight`);
    if (!tensor) return undefined;
    const { extras } = layout.grids.get(path) ?? { extras: 0 };
    const steps = `quantizer.${prefix}${path}.linear`;
    const scale = required(`${steps}.scale`);
    const bits = layout.grids.has(path) ? undefined : own?.weights?.[path]?.bits;
    return {
      ...(bits && { bits }),
      codes: readCodes(checkpoint, tensor, rows, channels + extras),
      scale,
      ...(scale.length > rows && { group: (rows * channels) / scale.length }),
      ...(described.has(`${steps}.offset`) && { offset: required(`${steps}.offset`) }),
    };
  };
  const linears: Record<LinearName, PackedLinear> = {};
  for (const [role, { path, shape }] of Object.entries(program.linears)) {
    linears[role] = {
      path,
      shape,
      grid: grid(path),
      quantized: quantized(path, shape),
      weight: optional(`${path}.weight`),
      bias: optional(`${path}.bias`),
      activationClip: clip(`${path}.act_quantizer`),
    };
  }
  const transforms: Partial<Record<LinearSite, PackedTransform>> = {};
  for (const place of sitesOf(program)) {
    const sides = storedSides(place, optional);
    if (sides.left || sides.right) transforms[place.site] = sides;
  }
  const key = optional(`${KEY_MODULE}.matrix`);
  const [diag, shift] = [optional(`${KEY_MODULE}.diag`), optional(`${KEY_MODULE}.shift`)];
  return {
    norms: mapValues(program.norms, ({ path, width }) => norm(path, width)),
    linears,
    activationBits: own?.activationBits,
    kept: mapValues(program.kept, ({ path, shape }) => ({ shape, data: required(prefix + path) })),
    transforms,
    keyTransform: key && {
      matrix: key,
      inverseT: inverse(`${prefix}${KEY_MODULE}.matrix`, key),
      balance: diag && shift && { diag, shift },
    },
    keyClip: clip(CACHE_QUANTIZERS.k),
    valueClip: clip(CACHE_QUANTIZERS.v),
  };
}

/** Codes [rows, columns] of a described tensor, whose header is right. @throws PlanishError when one is none of its width. */
export function readCodes(
  checkpoint: Checkpoint,
  { name, packing, values }: TensorDescription,
  rows: number,
  columns: number,
): Int8Array {
  const bytes = checkpoint.readBytes(name);
  const codes = packing
    ? unpackCodes(bytes, rows, columns, packing)
    : new Int8Array(bytes.slice().buffer);
  // Every pattern of as many bits as there are is a legal code.
  const all =
    packing && typeof values === "object" && values.to - values.from + 1 === 2 ** packing.bits;
  const problem = all ? undefined : valueProblem(name, values, codes);
  if (problem !== undefined) throw new PlanishError(`${checkpoint.path}: ${problem}`);
  return codes;
}

function inverse(name: string, matrix: Float32Array): Float32Array {
  try {
    const inverted = Float32Array.from(invertMatrix(matrix, { transpose: true }));
    if (inverted.every(Number.isFinite)) return inverted;
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
  }
  throw new PlanishError(`tensor ${name} is singular: a transform has an inverse`);
}
