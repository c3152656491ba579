/**
 * A packed block as named tensors and back: the artifact's names. They follow the packed layout that FlatQuant
 * publishes where it has a name (docs/formats.md), so that those checkpoints can be read and ours elsewhere.
 */
import type { TensorEntry } from "../checkpoint/safetensors.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { floatsToHalfBytes } from "../checkpoint/half.js";
import { PlanishError } from "../common/errors.js";
import type { Architecture, LinearRole, LinearSite, ModelConfig } from "../models/config.js";
import { linearShape, readTensor, type HostNorm } from "../models/weights.js";
import { packNibbles, packedRowBytes, unpackNibbles } from "./pack.js";
import type {
  ClipLogits,
  PackedBlock,
  PackedGrid,
  PackedLinear,
  PackedTransform,
} from "./packed-block.js";
import type { Scheme } from "./scheme.js";
import { invertMatrix } from "./transforms/matrix.js";

/** Module of each site's run-time transform. */
const TRANSFORM_MODULES: Readonly<Record<LinearSite, string>> = {
  attn_in: "self_attn.ln_trans",
  attn_out: "self_attn.o_trans",
  mlp_in: "mlp.up_gate_trans",
  mlp_down: "mlp.down_trans",
};
const KEY_MODULE = "self_attn.kcache_trans";
const CACHE_QUANTIZERS = { k: "self_attn.k_cache_quantizer", v: "self_attn.v_cache_quantizer" };

/** Tensors of one block, named with the block's prefix. Transforms, norms, biases and clips are 16-bit, scales 32-bit. */
export function packedEntries(prefix: string, block: PackedBlock, scheme: Scheme): TensorEntry[] {
  const entries: TensorEntry[] = [];
  const half = (name: string, shape: readonly number[], data: ArrayLike<number>) =>
    entries.push({
      name: prefix + name,
      type: "F16",
      shape,
      data: () => floatsToHalfBytes(data, prefix + name),
    });
  const norm = (n: HostNorm | undefined) => {
    if (!n) return;
    half(`${n.path}.weight`, n.gain.shape, n.gain.data);
    if (n.bias) half(`${n.path}.bias`, n.bias.shape, n.bias.data);
  };
  const clip = (module: string, logits: ClipLogits | undefined) => {
    if (!logits) return;
    half(`${module}.clip_factor_a_max`, [1], [logits.max]);
    half(`${module}.clip_factor_a_min`, [1], [logits.min]);
  };
  const square = (name: string, data: Float32Array | undefined) => {
    if (data) half(name, [Math.sqrt(data.length), Math.sqrt(data.length)], data);
  };
  norm(block.inputNorm);
  norm(block.postNorm);
  norm(block.qNorm);
  norm(block.kNorm);
  for (const l of Object.values(block.linears)) {
    linearEntries(entries, prefix, l, scheme);
    if (l.bias) half(`${l.path}.bias`, [l.shape[0]], l.bias);
    clip(`${l.path}.act_quantizer`, l.activationClip);
    if (l.grid) gridEntries(entries, prefix, l.path, l.grid);
  }
  for (const [site, t] of Object.entries(block.transforms) as [LinearSite, PackedTransform][]) {
    const module = TRANSFORM_MODULES[site];
    if (t.left && t.right) {
      square(`${module}.matrix_left`, t.left);
      square(`${module}.matrix_right`, t.right);
    } else square(`${module}.matrix`, t.left ?? t.right);
  }
  square(`${KEY_MODULE}.matrix`, block.keyTransform?.matrix);
  clip(CACHE_QUANTIZERS.k, block.keyClip);
  clip(CACHE_QUANTIZERS.v, block.valueClip);
  return entries;
}

function gridEntries(
  entries: TensorEntry[],
  prefix: string,
  path: string,
  { activationBits, weightBits, step, channel, part, factor }: PackedGrid,
): void {
  const module = `${prefix}${path}.act_quantizer`;
  const put = (name: string, type: "F32" | "I32", data: Float32Array | Int32Array): void => {
    entries.push({
      name: `${module}.${name}`,
      type,
      shape: [data.length],
      data: () => data,
    });
  };
  put("scale", "F32", Float32Array.of(step));
  put("bits", "I32", Int32Array.of(weightBits, activationBits));
  if (factor) put("factor", "F32", factor);
  if (channel.length === 0) return;
  put("channel", "I32", channel);
  put("part", "I32", part);
}

function linearEntries(
  entries: TensorEntry[],
  prefix: string,
  l: PackedLinear,
  scheme: Scheme,
): void {
  const [rows] = l.shape;
  const name = `${prefix}${l.path}`;
  if (!l.quantized) {
    const weight = l.weight ?? new Float32Array();
    entries.push({
      name: `${name}.weight`,
      type: "F16",
      shape: l.shape,
      data: () => floatsToHalfBytes(weight, name),
    });
    return;
  }
  const { codes, scale } = l.quantized;
  // With a grid there are more columns than channels.
  const columns = codes.length / rows;
  if ((l.grid?.weightBits ?? scheme.weightBits) <= 4)
    entries.push({
      name: `${name}.linear.weight`,
      type: "U8",
      shape: [rows, packedRowBytes(columns)],
      data: () => packNibbles(codes, rows, columns),
    });
  else
    entries.push({
      name: `${name}.linear.weight`,
      type: "I8",
      shape: [rows, columns],
      data: () => codes,
    });
  entries.push({
    name: `quantizer.${name}.linear.scale`,
    type: "F32",
    shape: [rows, 1],
    data: () => scale,
  });
}

/** Reads one block of an artifact. @throws PlanishError naming a tensor that is missing or has the wrong shape. */
export function readPackedBlock(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  layer: number,
): PackedBlock {
  const { names } = architecture;
  const prefix = names.blockPrefix(layer);
  const optional = (name: string): Float32Array | undefined =>
    checkpoint.tensors.has(prefix + name) ? checkpoint.read(prefix + name) : undefined;
  const norm = (path: string, size: number): HostNorm => {
    const bias = optional(`${path}.bias`);
    return {
      path,
      gain: readTensor(checkpoint, `${prefix}${path}.weight`, [size]),
      bias: bias && { shape: [size], data: bias },
    };
  };
  const clip = (module: string): ClipLogits | undefined => {
    const max = optional(`${module}.clip_factor_a_max`);
    const min = optional(`${module}.clip_factor_a_min`);
    return max && min ? { max: max[0], min: min[0] } : undefined;
  };
  const linears: Partial<Record<LinearRole, PackedLinear>> = {};
  for (const [role, path] of Object.entries(names.linears) as [LinearRole, string][]) {
    const shape = linearShape(config, role);
    const grid = readGrid(checkpoint, `${prefix}${path}`, shape);
    linears[role] = {
      path,
      shape,
      grid,
      ...readWeight(checkpoint, `${prefix}${path}`, shape, scheme, grid),
      bias: optional(`${path}.bias`),
      activationClip: clip(`${path}.act_quantizer`),
    };
  }
  const transforms: Partial<Record<LinearSite, PackedTransform>> = {};
  for (const [site, module] of Object.entries(TRANSFORM_MODULES) as [LinearSite, string][]) {
    const single = optional(`${module}.matrix`);
    const left = optional(`${module}.matrix_left`) ?? (site === "attn_out" ? single : undefined);
    const right = optional(`${module}.matrix_right`) ?? (site === "attn_out" ? undefined : single);
    if (left || right) transforms[site] = { left, right };
  }
  const key = optional(`${KEY_MODULE}.matrix`);
  return {
    inputNorm: norm(names.norms.input, config.hiddenSize),
    postNorm: norm(names.norms.post, config.hiddenSize),
    qNorm: names.norms.q === undefined ? undefined : norm(names.norms.q, config.headDim),
    kNorm: names.norms.k === undefined ? undefined : norm(names.norms.k, config.headDim),
    linears,
    transforms,
    keyTransform: key && {
      matrix: key,
      inverseT: Float32Array.from(invertMatrix(key, { transpose: true })),
    },
    keyClip: clip(CACHE_QUANTIZERS.k),
    valueClip: clip(CACHE_QUANTIZERS.v),
  };
}

/** @throws PlanishError naming a part of the grid that cannot be. */
function readGrid(
  checkpoint: Checkpoint,
  name: string,
  [, channels]: readonly [number, number],
): PackedGrid | undefined {
  const module = `${name}.act_quantizer`;
  const floats = (part: string): Float32Array | undefined =>
    checkpoint.tensors.has(`${module}.${part}`)
      ? Float32Array.from(checkpoint.read(`${module}.${part}`))
      : undefined;
  const integers = (part: string): Int32Array => Int32Array.from(floats(part) ?? []);
  const step = floats("scale")?.[0];
  if (step === undefined) return undefined;
  const [weightBits, activationBits] = integers("bits");
  const grid = { channel: integers("channel"), part: integers("part"), factor: floats("factor") };
  const unfit = (what: string): PlanishError =>
    new PlanishError(`${checkpoint.path}: ${module}: ${what}`);
  if (!(step > 0)) throw unfit(`its scale is ${step}; a step is positive`);
  for (const bits of [weightBits, activationBits])
    if (!(bits >= 2 && bits <= 8)) throw unfit(`${bits} bits; codes have 2 to 8`);
  if (grid.channel.length !== grid.part.length)
    throw unfit(`${grid.channel.length} channels and ${grid.part.length} parts; they go together`);
  if (grid.channel.some((j) => j < 0 || j >= channels) || grid.part.some((p) => p < 0))
    throw unfit(`a column copies a channel that is not among the ${channels}`);
  if (grid.factor && grid.factor.length !== channels)
    throw unfit(`${grid.factor.length} factors for ${channels} channels`);
  return { step, weightBits, activationBits, ...grid };
}

function readWeight(
  checkpoint: Checkpoint,
  name: string,
  [rows, channels]: readonly [number, number],
  scheme: Scheme,
  grid: PackedGrid | undefined,
): Pick<PackedLinear, "quantized" | "weight"> {
  if (scheme.weightBits >= 16)
    return {
      weight: Float32Array.from(readTensor(checkpoint, `${name}.weight`, [rows, channels]).data),
    };
  const bits = grid?.weightBits ?? scheme.weightBits;
  const cols = channels + (grid?.channel.length ?? 0);
  const stored = checkpoint.tensors.get(`${name}.linear.weight`);
  if (!stored)
    throw new PlanishError(`${checkpoint.path}: tensor ${name}.linear.weight is missing`);
  const nibbles = bits <= 4;
  const width = nibbles ? packedRowBytes(cols) : cols;
  if (
    stored.type !== (nibbles ? "U8" : "I8") ||
    stored.shape[0] !== rows ||
    stored.shape[1] !== width
  )
    throw new PlanishError(
      `${checkpoint.path}: ${stored.name} is ${stored.type} [${stored.shape.join(", ")}]; ${bits}-bit weights are ${nibbles ? "U8" : "I8"} [${rows}, ${width}]`,
    );
  const bytes = checkpoint.readBytes(stored.name);
  const codes = nibbles ? unpackNibbles(bytes, rows, cols) : new Int8Array(bytes.slice().buffer);
  const scale = Float32Array.from(
    readTensor(checkpoint, `quantizer.${name}.linear.scale`, [rows, 1]).data,
  );
  return { quantized: { codes, scale } };
}
