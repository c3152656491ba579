/**
 * Which tensors an artifact has: name, shape, type and legal values, from the configuration, the scheme and what the
 * method decided for each block. The one description that writing, loading, `planish inspect` and size estimates use
 * (docs/formats.md has it as a table). Names follow the packed layout that FlatQuant publishes where it has one.
 */
import type { PackedBlock, PackedLinear } from "../../backend/contract/packed.js";
import type { Checkpoint, StoredTensor } from "../../checkpoint/checkpoint.js";
import { ELEMENT_BYTES, type ElementType } from "../../checkpoint/element-types.js";
import { PlanishError } from "../../common/errors.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import {
  cacheShape,
  siteOfLinear,
  sitesOf,
  type BlockProgram,
  type LinearSite,
  type SitePlace,
} from "../../backend/contract/program.js";
import { packedRowBytes, type CodePacking } from "./packed-codes.js";
import { schemeOfBlock, type MatrixGrid, type Scheme } from "../../backend/contract/scheme.js";

const TRANSFORM_MODULES: Readonly<Partial<Record<LinearSite, string>>> = {
  attn_in: "self_attn.ln_trans",
  attn_out: "self_attn.o_trans",
  mlp_in: "mlp.up_gate_trans",
  mlp_down: "mlp.down_trans",
};
export const KEY_MODULE = "self_attn.kcache_trans";
export const CACHE_QUANTIZERS = {
  k: "self_attn.k_cache_quantizer",
  v: "self_attn.v_cache_quantizer",
};

/** Module of a site's run-time transform; sites without a published name have their own. */
export function transformModule(site: LinearSite): string {
  return TRANSFORM_MODULES[site] ?? `${site}_trans`;
}

/** A site's sides of those that a block stores: a transform of one matrix is the left side at an attention's output. */
export function storedSides<T>(
  { site, attention }: SitePlace,
  stored: (name: string) => T | undefined,
): { readonly left?: T; readonly right?: T } {
  const module = transformModule(site);
  const single = stored(`${module}.matrix`);
  return {
    left: stored(`${module}.matrix_left`) ?? (attention ? single : undefined),
    right: stored(`${module}.matrix_right`) ?? (attention ? undefined : single),
  };
}

/** What a tensor's values must be: finite numbers, above zero, or integers of a range. */
export type ValueRule = "finite" | "positive" | { readonly from: number; readonly to: number };

export interface TensorDescription {
  readonly name: string;
  /** Types it may have; the first is what is written when the source does not say. */
  readonly types: readonly ElementType[];
  readonly shape: readonly number[];
  readonly values: ValueRule;
  /** How integer codes lie in its bytes, where they are narrower; `values` is then of the codes. */
  readonly packing?: CodePacking;
  /** Present in some models only, and nothing but the file says in which. */
  readonly optional?: boolean;
}

/** A static grid as far as it decides what is stored. */
export interface GridLayout {
  readonly weightBits: number;
  /** Columns beyond the channels' own. */
  readonly extras: number;
  readonly factor: boolean;
}

/** Sizes of a site's square matrices: a Kronecker pair, or one. */
export interface TransformLayout {
  readonly left?: number;
  readonly right?: number;
}

/** What the configuration and the scheme leave open about a block: a method's decisions, and the source's biases. */
export interface BlockLayout {
  /** Paths of modules with a bias: linears and norms. */
  readonly biases: ReadonlySet<string>;
  readonly transforms: Readonly<Partial<Record<LinearSite, TransformLayout>>>;
  readonly keyTransform: boolean;
  /** Whether keys are balanced before their matrix. */
  readonly keyBalance: boolean;
  /** Paths of linears whose input is clipped by learned logits, and "k" and "v". */
  readonly clips: ReadonlySet<string>;
  /** By the linear's path. */
  readonly grids: ReadonlyMap<string, GridLayout>;
}

/** Shapes of a block's parameters, as `quantization.json` lists them. */
export type ParameterShapes = Readonly<Record<string, readonly number[]>>;

const HALF = ["F16"] as const;
const SIXTEEN_BITS = ["F16", "BF16"] as const;
/** Where a source's own numbers are kept: in 32 bits if 16 do not hold them. */
const HALF_OR_SINGLE = ["F16", "F32"] as const;

function quantizerName(table: string): string {
  return `quantizer.${table.replace(/\.weight$/, "")}`;
}

/** The tensors that hold the steps of a table's codes, and their offsets. */
export function tableScaleName(table: string): string {
  return `${quantizerName(table)}.scale`;
}

export function tableOffsetName(table: string): string {
  return `${quantizerName(table)}.offset`;
}

/** The grid of embedding or head; undefined: 16 bits. */
export function gridOfTable(
  { tableBits, tableGroup, tables }: Pick<Scheme, "tableBits" | "tableGroup" | "tables">,
  name: string,
): (MatrixGrid & { readonly group: number }) | undefined {
  const own = tables && Object.hasOwn(tables, name) ? tables[name] : undefined;
  if (tables) return own?.group === undefined ? undefined : { ...own, group: own.group };
  return tableBits && tableGroup ? { bits: tableBits, group: tableGroup } : undefined;
}

/**
 * Embeddings, their projections, positions, final norm and head: 16-bit, but for embedding and head where the scheme has
 * fewer bits for tables.
 */
export function endLayerTensors(
  { names }: Architecture,
  config: ModelConfig,
  scheme: Pick<Scheme, "tableBits" | "tableGroup" | "tables"> = {},
): TensorDescription[] {
  const { hiddenSize, embeddingSize, vocabSize, positions } = config;
  const width = embeddingSize ?? hiddenSize;
  const tensor = (name: string, shape: readonly number[], optional = false): TensorDescription => ({
    name,
    types: scheme.tables ? [...SIXTEEN_BITS, "F32"] : SIXTEEN_BITS,
    shape,
    values: "finite",
    optional,
  });
  const table = (name: string, optional = false): TensorDescription[] => {
    const grid = gridOfTable(scheme, name);
    if (!grid) return [tensor(name, [vocabSize, width], optional)];
    const steps = scheme.tables
      ? ownSteps(quantizerName(name), vocabSize, width, grid)
      : [stepTensor(tableScaleName(name), vocabSize, width, grid.group)];
    return [codeTensor(name, vocabSize, width, grid), ...steps].map((t) => ({ ...t, optional }));
  };
  const normed = config.finalNorm !== false;
  const list = [
    ...table(names.embedding),
    tensor(names.finalNorm, [hiddenSize], !normed),
    tensor(names.finalNorm.replace(/\.weight$/, ".bias"), [hiddenSize], true),
    // Models without a head of their own use their embedding.
    ...table(names.lmHead, true),
  ];
  if (names.positions !== undefined && positions.kind === "learned")
    list.push(tensor(names.positions, [config.maxPositions + positions.offset, hiddenSize]));
  if (names.side !== undefined && config.side)
    list.push(tensor(names.side, [config.side.rows, config.side.width]));
  const projected = embeddingSize !== undefined;
  if (names.projectIn !== undefined)
    list.push(tensor(names.projectIn, [hiddenSize, width], !projected));
  if (names.projectOut !== undefined)
    list.push(tensor(names.projectOut, [width, hiddenSize], !projected));
  return list;
}

/**
 * Every tensor of one block, named with the block's prefix.
 * @throws PlanishError when the layout contradicts the configuration: matrices that do not span their site.
 */
export function blockTensors(
  { names }: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  layer: number,
  layout: BlockLayout,
): TensorDescription[] {
  const program = blockProgram(config, layer);
  const prefix = names.blockPrefix(layer);
  const { own } = schemeOfBlock(scheme, layer);
  const list: TensorDescription[] = [];
  const half = (name: string, ...shape: number[]): void => {
    list.push({ name: prefix + name, types: HALF, shape, values: "finite" });
  };
  /** Of the model itself, not of a method. */
  const given = (name: string, size: number): void => {
    const types = own ? HALF_OR_SINGLE : HALF;
    list.push({ name: prefix + name, types, shape: [size], values: "finite" });
  };
  const norm = (path: string, size: number): void => {
    given(`${path}.weight`, size);
    if (layout.biases.has(path)) given(`${path}.bias`, size);
  };
  const clip = (module: string, of: string): void => {
    if (!layout.clips.has(of)) return;
    half(`${module}.clip_factor_a_max`, 1);
    half(`${module}.clip_factor_a_min`, 1);
  };
  for (const { path, width } of Object.values(program.norms)) norm(path, width);
  for (const { path, shape } of Object.values(program.kept))
    list.push({ name: prefix + path, types: ["F32"], shape, values: "finite" });
  for (const { path, shape } of Object.values(program.linears)) {
    const grid = layout.grids.get(path);
    const weights = grid ? undefined : own?.weights?.[path];
    list.push(
      ...(weights
        ? ownWeightTensors(prefix + path, shape, weights)
        : weightTensors(prefix + path, shape, scheme, grid)),
    );
    if (layout.biases.has(path)) given(`${path}.bias`, shape[0]);
    clip(`${path}.act_quantizer`, path);
    if (grid) list.push(...gridTensors(`${prefix}${path}.act_quantizer`, shape[1], grid));
  }
  for (const place of sitesOf(program)) {
    const module = transformModule(place.site);
    const transform = layout.transforms[place.site];
    if (!transform) continue;
    checkTransform(prefix + module, place, transform);
    const { left, right } = transform;
    if (left !== undefined && right !== undefined) {
      half(`${module}.matrix_left`, left, left);
      half(`${module}.matrix_right`, right, right);
    } else {
      const size = left ?? right ?? 0;
      half(`${module}.matrix`, size, size);
    }
  }
  if (layout.keyTransform) {
    const { headDim, heads } = cacheShape(program);
    half(`${KEY_MODULE}.matrix`, headDim, headDim);
    if (layout.keyBalance)
      for (const part of ["diag", "shift"]) half(`${KEY_MODULE}.${part}`, heads * headDim);
  }
  clip(CACHE_QUANTIZERS.k, "k");
  clip(CACHE_QUANTIZERS.v, "v");
  return list;
}

function weightTensors(
  name: string,
  [rows, channels]: readonly [number, number],
  scheme: Scheme,
  grid: GridLayout | undefined,
): TensorDescription[] {
  if (scheme.weightBits >= 16)
    return [{ name: `${name}.weight`, types: HALF, shape: [rows, channels], values: "finite" }];
  const { weightGroup, weightOffset } = scheme;
  const steps = `quantizer.${name}.linear`;
  if (!grid && weightGroup) {
    const own = { bits: scheme.weightBits, group: weightGroup, offset: weightOffset };
    const list = [
      codeTensor(`${name}.linear.weight`, rows, channels, own),
      stepTensor(`${steps}.scale`, rows, channels, weightGroup),
    ];
    if (weightOffset)
      list.push({
        ...stepTensor(`${steps}.offset`, rows, channels, weightGroup),
        values: "finite",
      });
    return list;
  }
  const bits = grid?.weightBits ?? scheme.weightBits;
  return [
    codeTensor(`${name}.linear.weight`, rows, channels + (grid?.extras ?? 0), { bits }),
    { name: `${steps}.scale`, types: ["F32"], shape: [rows, 1], values: "positive" },
  ];
}

/** A weight on a grid that is not the scheme's. */
export function ownWeightTensors(
  name: string,
  [rows, channels]: readonly [number, number],
  grid: MatrixGrid,
): TensorDescription[] {
  if (grid.bits >= 16)
    return [{ name: `${name}.weight`, types: HALF, shape: [rows, channels], values: "finite" }];
  return [
    codeTensor(`${name}.linear.weight`, rows, channels, grid),
    ...ownSteps(`quantizer.${name}.linear`, rows, channels, grid),
  ];
}

/** Scales, and offsets, as a source has them: of either sign, in 16 or 32 bits. Those of whole rows have 32. */
function ownSteps(
  module: string,
  rows: number,
  channels: number,
  { group, offset }: MatrixGrid,
): TensorDescription[] {
  if (group === undefined)
    return [{ name: `${module}.scale`, types: ["F32"], shape: [rows, 1], values: "positive" }];
  const steps = (part: string): TensorDescription => ({
    ...stepTensor(`${module}.${part}`, rows, channels, group),
    types: HALF_OR_SINGLE,
    values: "finite",
  });
  return offset ? [steps("scale"), steps("offset")] : [steps("scale")];
}

/** Codes of a matrix: nibbles, or bytes; in groups also codes of 5 and 6 bits one after the other. */
function codeTensor(
  name: string,
  rows: number,
  columns: number,
  { bits, group, offset }: MatrixGrid,
): TensorDescription {
  const least = offset ? 0 : -(2 ** (bits - 1));
  // Of the codes, once unpacked.
  const values = { from: least, to: least + 2 ** bits - 1 };
  const width = bits <= 4 ? 4 : group && (bits === 5 || bits === 6) ? bits : undefined;
  if (width === undefined) return { name, types: ["I8"], shape: [rows, columns], values };
  const packing = { bits: width, signed: !offset } as const;
  return { name, types: ["U8"], shape: [rows, packedRowBytes(columns, width)], values, packing };
}

/** One 16-bit step for each group. */
function stepTensor(name: string, rows: number, columns: number, group: number): TensorDescription {
  if (columns % group !== 0)
    throw new PlanishError(`${name}: groups of ${group} do not divide ${columns} columns`);
  return { name, types: HALF, shape: [rows, columns / group], values: "positive" };
}

function gridTensors(
  module: string,
  channels: number,
  { extras, factor }: GridLayout,
): TensorDescription[] {
  const list: TensorDescription[] = [
    { name: `${module}.scale`, types: ["F32"], shape: [1], values: "positive" },
    { name: `${module}.bits`, types: ["I32"], shape: [2], values: { from: 2, to: 8 } },
  ];
  if (factor)
    list.push({
      name: `${module}.factor`,
      types: ["F32"],
      shape: [channels],
      values: "finite",
    });
  if (extras > 0) {
    const column = (part: string, to: number): TensorDescription => ({
      name: `${module}.${part}`,
      types: ["I32"],
      shape: [extras],
      values: { from: 0, to },
    });
    // A channel has at most one copy for each further column, beside its own.
    list.push(column("channel", channels - 1), column("part", extras));
  }
  return list;
}

function checkTransform(
  name: string,
  { site, width, attention }: SitePlace,
  { left, right }: TransformLayout,
): void {
  if (attention) {
    if (right === undefined && left === attention.heads) return;
    throw new PlanishError(
      `${name}: the transform after attention is ${sizes({ left, right })}; it acts over the ${attention.heads} heads alone`,
    );
  }
  const spans =
    left !== undefined && right !== undefined
      ? left * right === width
      : width % (left ?? right ?? 0) === 0;
  if (!spans)
    throw new PlanishError(
      `${name}: the transform is ${sizes({ left, right })}, which does not span the ${width} channels of ${site}`,
    );
}

function sizes({ left, right }: TransformLayout): string {
  return [left, right].filter((n) => n !== undefined).join("×") || "empty";
}

/** The layout of a block that is about to be written. */
export function layoutOfBlock(block: PackedBlock): BlockLayout {
  const linears = Object.values(block.linears);
  const norms = Object.values(block.norms);
  const side = (data: Float32Array | undefined) => data && Math.sqrt(data.length);
  const transforms = Object.entries(block.transforms).flatMap(([site, t]) =>
    t ? [[site, { left: side(t.left), right: side(t.right) }] as const] : [],
  );
  const clips = linears.filter((l) => l.activationClip).map(({ path }) => path);
  if (block.keyClip) clips.push("k");
  if (block.valueClip) clips.push("v");
  return {
    biases: new Set([
      ...linears.filter(({ bias }) => bias).map(({ path }) => path),
      ...norms.flatMap((n) => (n.bias ? [n.path] : [])),
    ]),
    transforms: Object.fromEntries(transforms),
    keyTransform: block.keyTransform !== undefined,
    keyBalance: block.keyTransform?.balance !== undefined,
    clips: new Set(clips),
    grids: new Map(linears.flatMap((l) => (l.grid ? [[l.path, layoutOfGrid(l)] as const] : []))),
  };
}

function layoutOfGrid({ grid }: PackedLinear): GridLayout {
  return {
    weightBits: grid?.weightBits ?? 0,
    extras: grid?.channel.length ?? 0,
    factor: grid?.factor !== undefined,
  };
}

/** The layout that the parameters of a run imply; only the biases and the grids' bits are not among them. */
export function layoutOfParameters(
  program: BlockProgram,
  parameters: ParameterShapes,
  bits: (path: string) => number,
  biases: ReadonlySet<string>,
): BlockLayout {
  const size = (site: string, side: string): number | undefined =>
    ["p", "u", "q"]
      .map((part) => parameters[`${site}.${part}${side}`]?.[0] as number | undefined)
      .find((n) => n !== undefined);
  const transforms: Partial<Record<LinearSite, TransformLayout>> = {};
  for (const { site, attention } of sitesOf(program)) {
    const left = size(site, "_left");
    const right = size(site, "_right") ?? size(site, "");
    if (left === undefined && right === undefined) continue;
    // The matrix over heads is the left factor.
    transforms[site] = attention ? { left: left ?? right } : { left, right };
  }
  const grids = new Map<string, GridLayout>();
  const clips = new Set<string>(["k", "v"].filter((of) => `clip.${of}.a_max` in parameters));
  for (const [role, { path }] of Object.entries(program.linears)) {
    if (`clip.${path}.a_max` in parameters) clips.add(path);
    if (!(`grid.${path}.bits` in parameters)) continue;
    grids.set(path, {
      weightBits: bits(path),
      extras: parameters[`grid.${path}.channel`]?.[0] ?? 0,
      factor: `${siteOfLinear(program, role).site}.factor` in parameters,
    });
  }
  return {
    biases,
    transforms,
    keyTransform: size("k_head", "") !== undefined,
    keyBalance: "k_head.diag" in parameters,
    clips,
    grids,
  };
}

/**
 * The layout of a stored block: from the parameters where `quantization.json` has them, so that a tensor that is gone
 * is missed, else from the tensors that are there.
 * @throws PlanishError when the bits of a static grid cannot be.
 */
export function layoutOfStored(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  layer: number,
  parameters?: ParameterShapes,
): BlockLayout {
  const program = blockProgram(config, layer);
  const prefix = architecture.names.blockPrefix(layer);
  const has = (name: string): boolean => checkpoint.tensors.has(prefix + name);
  const extent = (name: string): number | undefined =>
    checkpoint.tensors.get(prefix + name)?.shape[0];
  const linears = Object.values(program.linears).map(({ path }) => path);
  const norms = Object.values(program.norms).map(({ path }) => path);
  const biases = new Set([...linears, ...norms].filter((path) => has(`${path}.bias`)));
  const bits = (path: string): number => storedBits(checkpoint, `${prefix}${path}.act_quantizer`);
  if (parameters) return layoutOfParameters(program, parameters, bits, biases);
  const transforms: Partial<Record<LinearSite, TransformLayout>> = {};
  for (const place of sitesOf(program)) {
    const sides = storedSides(place, extent);
    if (sides.left !== undefined || sides.right !== undefined) transforms[place.site] = sides;
  }
  const clipped = (module: string): boolean => has(`${module}.clip_factor_a_max`);
  const clips = linears.filter((path) => clipped(`${path}.act_quantizer`));
  for (const [of, module] of Object.entries(CACHE_QUANTIZERS)) if (clipped(module)) clips.push(of);
  const gridded = linears.filter((path) => has(`${path}.act_quantizer.scale`));
  return {
    biases,
    transforms,
    keyTransform: has(`${KEY_MODULE}.matrix`),
    keyBalance: has(`${KEY_MODULE}.diag`),
    clips: new Set(clips),
    grids: new Map(
      gridded.map((path) => [
        path,
        {
          weightBits: bits(path),
          extras: extent(`${path}.act_quantizer.channel`) ?? 0,
          factor: has(`${path}.act_quantizer.factor`),
        },
      ]),
    ),
  };
}

/** The width of a gridded linear's codes: the first of its two `bits`. */
function storedBits(checkpoint: Checkpoint, module: string): number {
  const [, described] = gridTensors(module, 0, { weightBits: 0, extras: 0, factor: false });
  return readDescribed(checkpoint, described)[0];
}

/** What is wrong with a tensor's header; undefined: nothing. */
export function headerProblem(
  { name, types, shape, optional }: TensorDescription,
  stored: StoredTensor | undefined,
): string | undefined {
  if (!stored) return optional ? undefined : `tensor ${name} is missing`;
  const fits = stored.shape.length === shape.length && stored.shape.every((n, i) => n === shape[i]);
  if (fits && (types as readonly string[]).includes(stored.type)) return undefined;
  return `tensor ${name} is ${stored.type} [${stored.shape.join(", ")}], where config.json and quantization.json imply ${types.join(" or ")} [${shape.join(", ")}]`;
}

/** What is wrong with a tensor's values; undefined: nothing. */
export function valueProblem(
  name: string,
  values: ValueRule,
  data: ArrayLike<number>,
): string | undefined {
  const at = firstUnfit(values, data);
  if (at < 0) return undefined;
  const legal =
    values === "finite"
      ? "finite numbers"
      : values === "positive"
        ? "finite numbers above zero"
        : `integers from ${values.from} to ${values.to}`;
  return `tensor ${name} holds ${data[at]} at position ${at}; its values are ${legal}`;
}

function firstUnfit(values: ValueRule, data: ArrayLike<number>): number {
  // Weights are many, and whatever is stored in 8 bits fits the widest codes.
  if (data instanceof Int8Array && typeof values === "object") {
    const { from, to } = values;
    return from <= -128 && to >= 127 ? -1 : data.findIndex((code) => code < from || code > to);
  }
  for (let i = 0; i < data.length; i++) {
    const x = data[i];
    if (!Number.isFinite(x)) return i;
    if (values === "finite") continue;
    if (values === "positive" ? x <= 0 : x < values.from || x > values.to || !Number.isInteger(x))
      return i;
  }
  return -1;
}

/** Reads a described tensor, checked. @throws PlanishError when it is missing, of another form, or holds illegal values. */
export function readDescribed(checkpoint: Checkpoint, described: TensorDescription): Float32Array {
  requireHeader(checkpoint, described);
  const data = Float32Array.from(checkpoint.read(described.name));
  const problem = valueProblem(described.name, described.values, data);
  if (problem !== undefined) throw damaged(checkpoint.path, problem);
  return data;
}

/** @throws PlanishError when a tensor's header is not what is described. */
export function requireHeader(checkpoint: Checkpoint, described: TensorDescription): void {
  const problem = headerProblem(described, checkpoint.tensors.get(described.name));
  if (problem !== undefined) throw damaged(checkpoint.path, problem);
}

/** The error of an artifact that is not what was written. */
export function damaged(path: string, problem: string): PlanishError {
  return new PlanishError(`${path}: ${problem}; the artifact is damaged: make it or copy it again`);
}

/**
 * Holds every tensor's header against the description: none missing, none of another form, none too many.
 * @param parameters of every block, as `quantization.json` lists them
 * @throws PlanishError naming the first that does not fit.
 */
export function checkTensors(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  parameters: readonly ParameterShapes[],
): void {
  if (parameters.length !== config.numLayers)
    throw damaged(
      checkpoint.path,
      `quantization.json describes ${parameters.length} blocks, and config.json ${config.numLayers}`,
    );
  const described = endLayerTensors(architecture, config, scheme);
  parameters.forEach((shapes, layer) => {
    const layout = layoutOfStored(checkpoint, architecture, config, layer, shapes);
    described.push(...blockTensors(architecture, config, scheme, layer, layout));
  });
  for (const tensor of described) requireHeader(checkpoint, tensor);
  const known = new Set(described.map(({ name }) => name));
  for (const name of checkpoint.tensors.keys())
    if (!known.has(name))
      throw damaged(checkpoint.path, `tensor ${name} is none that this model and scheme have`);
}

/** Bytes of a described tensor. */
export function describedBytes({ types, shape }: TensorDescription): number {
  return ELEMENT_BYTES[types[0]] * shape.reduce((product, n) => product * n, 1);
}
