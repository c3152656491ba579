/** Turns a packed block into kernel calls: which activations, which transforms, which matrices, in which order. */
import {
  PACKED_KIND,
  SITE_ACTIVATION,
  SITE_INPUT,
  type PackedKind,
} from "../../backend/cpu/engine-kernels.js";
import type { LinearRole, LinearSite, ModelConfig } from "../../models/config.js";
import { LINEAR_SITES } from "../../models/config.js";
import type { HostNorm } from "../../models/weights.js";
import { PlanishError } from "../../common/errors.js";
import type {
  ClipLogits,
  PackedBlock,
  PackedGrid,
  PackedLinear,
  PackedTransform,
} from "../../quantize/packed-block.js";
import type { Scheme } from "../../quantize/scheme.js";
import { MOST_SETS, STEP_ROWS, widestSite, type StepBuffers } from "./buffers.js";
import type { EngineMemory } from "./memory.js";
import type { MatrixPacker, PackedMatrix } from "./packed-matrix.js";
import type { Plan } from "./plan.js";
import { Real, type ProductPart } from "./plan.js";

interface PlacedNorm {
  readonly gain: bigint;
  readonly bias: bigint;
}

interface PlacedTransform {
  readonly nLeft: number;
  readonly nRight: number;
  readonly left: bigint;
  readonly right: bigint;
}

/** A static grid of one linear's whole activation, with the columns that its split channels add. */
interface PlacedGrid {
  readonly bits: number;
  readonly step: number;
  readonly extras: number;
  readonly channel: bigint;
  readonly part: bigint;
  readonly factor: bigint;
  /** Equal for linears that can share their codes. */
  readonly key: string;
}

/** A block's weights in the engine's memory. */
export interface PlacedBlock {
  readonly linears: Readonly<Partial<Record<LinearRole, PackedMatrix>>>;
  readonly grids: Readonly<Partial<Record<LinearRole, PlacedGrid>>>;
  readonly clips: Readonly<Partial<Record<LinearRole, ClipLogits>>>;
  readonly inputNorm: PlacedNorm;
  readonly postNorm: PlacedNorm;
  readonly qNorm?: PlacedNorm;
  readonly kNorm?: PlacedNorm;
  readonly transforms: Readonly<Record<LinearSite, PlacedTransform | undefined>>;
  /** P_k⁻ᵀ for queries and P_k for keys; 0n for none. */
  readonly queryMatrix: bigint;
  readonly keyMatrix: bigint;
  /** Clipping logits of keys and values, [4]. */
  readonly cacheClips: bigint;
}

export function placeBlock(
  memory: EngineMemory,
  packer: MatrixPacker,
  config: ModelConfig,
  kind: PackedKind,
  block: PackedBlock,
): PlacedBlock {
  const norm = ({ gain, bias }: HostNorm): PlacedNorm => ({
    gain: memory.floats(gain.data).address,
    bias: bias ? memory.floats(bias.data).address : 0n,
  });
  const linears: Partial<Record<LinearRole, PackedMatrix>> = {};
  const clips: Partial<Record<LinearRole, ClipLogits>> = {};
  const grids: Partial<Record<LinearRole, PlacedGrid>> = {};
  for (const role of Object.keys(block.linears) as LinearRole[]) {
    const linear = block.linears[role];
    if (!linear) continue;
    const values = linear.quantized?.codes ?? linear.weight;
    if (!values) throw new PlanishError(`${linear.path} holds neither codes nor weights`);
    const { grid } = linear;
    if (grid) grids[role] = placeGrid(memory, config, grid, linear);
    const own: PackedKind = grid ? (grid.weightBits <= 4 ? "int4" : "int8") : kind;
    linears[role] = packer.packed(own, [linear.shape[0], values.length / linear.shape[0]], {
      values,
      scale: linear.quantized?.scale,
      bias: linear.bias,
    });
    if (linear.activationClip) clips[role] = linear.activationClip;
  }
  const transform = (site: LinearSite): PlacedTransform | undefined => {
    const given = block.transforms[site];
    return given && placeTransform(memory, config, site, given);
  };
  const { keyTransform, keyClip, valueClip } = block;
  return {
    linears,
    grids,
    clips,
    inputNorm: norm(block.inputNorm),
    postNorm: norm(block.postNorm),
    qNorm: block.qNorm && norm(block.qNorm),
    kNorm: block.kNorm && norm(block.kNorm),
    transforms: {
      attn_in: transform("attn_in"),
      attn_out: transform("attn_out"),
      mlp_in: transform("mlp_in"),
      mlp_down: transform("mlp_down"),
    },
    queryMatrix: keyTransform ? memory.floats(keyTransform.inverseT).address : 0n,
    keyMatrix: keyTransform ? memory.floats(keyTransform.matrix).address : 0n,
    cacheClips: memory.floats([...logits(keyClip), ...logits(valueClip)]).address,
  };
}

function placeGrid(
  memory: EngineMemory,
  config: ModelConfig,
  grid: PackedGrid,
  { path, shape }: PackedLinear,
): PlacedGrid {
  const { activationBits, step, channel, part, factor } = grid;
  const room = MOST_SETS * widestSite(config);
  if (shape[1] + channel.length > room)
    throw new PlanishError(
      `${path} reads ${shape[1]} channels split into ${shape[1] + channel.length} columns; the engine has room for ${room}: quantize with a smaller maxExpansion`,
    );
  return {
    bits: activationBits,
    step,
    extras: channel.length,
    channel: channel.length > 0 ? memory.integers(channel).address : 0n,
    part: part.length > 0 ? memory.integers(part).address : 0n,
    factor: factor ? memory.floats(factor).address : 0n,
    key: JSON.stringify([activationBits, step, [...channel], [...part], factor && [...factor]]),
  };
}

/** σ(∞) = 1: nothing is clipped. */
function logits(clip: ClipLogits | undefined): [number, number] {
  return clip ? [clip.max, clip.min] : [Infinity, Infinity];
}

function siteWidth(config: ModelConfig, site: LinearSite): number {
  if (site === "attn_out") return config.numHeads * config.headDim;
  return site === "mlp_down" ? config.intermediateSize : config.hiddenSize;
}

function placeTransform(
  memory: EngineMemory,
  config: ModelConfig,
  site: LinearSite,
  { left, right }: PackedTransform,
): PlacedTransform {
  const width = siteWidth(config, site);
  const side = (data: Float32Array | undefined) => data && Math.sqrt(data.length);
  let nLeft = side(left);
  let nRight = site === "attn_out" ? config.headDim : side(right);
  nRight ??= width / (nLeft ?? 1);
  nLeft ??= width / nRight;
  if (nLeft * nRight !== width)
    throw new PlanishError(
      `the transform at ${site} is ${nLeft}×${nRight}, its activation ${width} wide`,
    );
  return {
    nLeft,
    nRight,
    left: left ? memory.floats(left).address : 0n,
    right: right ? memory.floats(right).address : 0n,
  };
}

/** Everything that block plans share. */
export interface PlanContext {
  readonly memory: EngineMemory;
  readonly plan: Plan;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly kind: PackedKind;
  readonly buffers: StepBuffers;
  readonly pages: bigint;
  readonly pageBytes: number;
}

/** What a site's activation is computed from. */
interface SiteInput {
  readonly input: keyof typeof SITE_INPUT;
  readonly x: bigint;
  readonly x2?: bigint;
  readonly op?: number;
  readonly norm?: PlacedNorm;
}

/** `cache`: this layer's part of page 0. */
export function planBlock(context: PlanContext, block: PlacedBlock, cache: bigint): void {
  const { plan, config, scheme, buffers } = context;
  const { hiddenSize, intermediateSize, headDim, numHeads, numKvHeads, norm, mlp } = config;
  const before = config.normPlacement !== "after";
  const normed = (w: PlacedNorm): SiteInput =>
    before
      ? { input: norm.kind, x: buffers.x.address, norm: w }
      : { input: "plain", x: buffers.x.address };
  const normAfter = (w: PlacedNorm) => {
    if (before) return;
    const { address } = buffers.x;
    plan.add(
      "norm",
      norm.kind === "layer" ? 1 : 0,
      address,
      hiddenSize,
      w.gain,
      w.bias,
      new Real(norm.epsilon),
      address,
    );
  };
  const rotary = config.positions.kind === "rope";

  linears(context, block, "attn_in", normed(block.inputNorm), {
    q: { address: buffers.q.address, width: numHeads * headDim },
    k: { address: buffers.k.address, width: numKvHeads * headDim },
    v: { address: buffers.v.address, width: numKvHeads * headDim },
  });
  plan.add(
    "cache",
    buffers.chunks.address,
    context.pages,
    numHeads,
    numKvHeads,
    headDim,
    buffers.q.address,
    buffers.k.address,
    buffers.v.address,
    block.qNorm?.gain ?? 0n,
    block.kNorm?.gain ?? 0n,
    new Real(norm.epsilon),
    rotary ? buffers.cosine.address : 0n,
    rotary ? buffers.sine.address : 0n,
    block.queryMatrix,
    block.keyMatrix,
    scheme.queryBits ?? 16,
    scheme.kvBits,
    block.cacheClips,
    cache,
    context.pageBytes,
  );
  plan.add(
    "attention",
    buffers.chunks.address,
    context.pages,
    numHeads,
    numKvHeads,
    headDim,
    config.slidingWindow ?? 0,
    new Real(1 / Math.sqrt(headDim)),
    buffers.q.address,
    scheme.kvBits,
    cache,
    context.pageBytes,
    buffers.mixed.address,
  );
  const residual = { address: buffers.x.address, width: hiddenSize };
  linears(
    context,
    block,
    "attn_out",
    { input: "plain", x: buffers.mixed.address },
    { o: residual },
  );
  normAfter(block.inputNorm);
  linears(context, block, "mlp_in", normed(block.postNorm), {
    gate: { address: buffers.gate.address, width: intermediateSize },
    up: { address: buffers.up.address, width: intermediateSize },
  });
  linears(
    context,
    block,
    "mlp_down",
    mlp.gated
      ? {
          input: "gated",
          x: buffers.gate.address,
          x2: buffers.up.address,
          op: SITE_ACTIVATION[mlp.activation],
        }
      : { input: "activation", x: buffers.up.address, op: SITE_ACTIVATION[mlp.activation] },
    { down: residual },
  );
  normAfter(block.postNorm);
}

/** A site: its activation, then its linears. Those of attn_out and mlp_down add to the residual stream. */
function linears(
  context: PlanContext,
  block: PlacedBlock,
  site: LinearSite,
  from: SiteInput,
  outputs: Partial<Record<LinearRole, { address: bigint; width: number }>>,
): void {
  const { plan, config, scheme, buffers, memory, kind } = context;
  const width = siteWidth(config, site);
  const roles = LINEAR_SITES[site].filter((role) => block.linears[role]);
  const transform = block.transforms[site] ?? { nLeft: 1, nRight: width, left: 0n, right: 0n };
  const gridded = roles.some((role) => block.grids[role]);
  const real = scheme.activationBits >= 16 || gridded;

  // Linears without clips of their own share one set of codes.
  const clips: [number, number][] = [];
  let shared: number | undefined;
  const setOf = roles.map((role) => {
    const clip = block.clips[role];
    if (!clip && shared !== undefined) return shared;
    clips.push(logits(clip));
    if (!clip) shared = clips.length - 1;
    return clips.length - 1;
  });
  if (clips.length > MOST_SETS) throw new RangeError(`${clips.length} sets of codes at ${site}`);

  const untouched = real && from.input === "plain" && !transform.left && !transform.right;
  if (!untouched)
    plan.add(
      "site",
      SITE_INPUT[from.input],
      from.op ?? 0,
      from.x,
      from.x2 ?? 0n,
      transform.nLeft,
      transform.nRight,
      from.norm?.gain ?? 0n,
      from.norm?.bias ?? 0n,
      new Real(config.norm.epsilon),
      transform.left,
      transform.right,
      real ? 16 : scheme.activationBits,
      clips.length,
      STEP_ROWS,
      memory.floats(clips.flat()).address,
      buffers.codes.address,
      buffers.scales.address,
      buffers.reals.address,
    );
  const accumulate = site === "attn_out" || site === "mlp_down" ? 1 : 0;
  if (gridded) {
    const x = untouched ? from.x : buffers.reals.address;
    gridProducts(context, block, roles, { x, width }, outputs, accumulate);
    return;
  }
  const parts = roles.flatMap((role, i): ProductPart[] => {
    const matrix = block.linears[role];
    const out = outputs[role];
    if (!matrix || !out) return [];
    const set = setOf[i];
    return [
      {
        n: matrix.shape[0],
        a: real
          ? untouched
            ? from.x
            : buffers.reals.address
          : buffers.codes.address + BigInt(set * STEP_ROWS * width),
        aScale: real ? 0n : buffers.scales.address + BigInt(set * STEP_ROWS * 4),
        packed: matrix.address,
        bScale: matrix.scale,
        bias: matrix.bias,
        out: out.address,
        outStride: out.width,
      },
    ];
  });
  plan.add("product", PACKED_KIND[kind], width, parts.length, plan.parts(parts), accumulate);
}

/**
 * Linears with static grids of their own: each quantizes the activation its way and multiplies at its own width; linears
 * whose grids are the same share both, where their weights have the same width too.
 */
function gridProducts(
  { plan, buffers }: PlanContext,
  block: PlacedBlock,
  roles: readonly LinearRole[],
  from: { readonly x: bigint; readonly width: number },
  outputs: Partial<Record<LinearRole, { address: bigint; width: number }>>,
  accumulate: number,
): void {
  const groups = new Map<string, LinearRole[]>();
  for (const role of roles) {
    const grid = block.grids[role];
    const matrix = block.linears[role];
    if (!grid || !matrix)
      throw new PlanishError(`linear "${role}" has no static grid, and others of its site do`);
    const key = `${matrix.kind} ${grid.key}`;
    groups.set(key, [...(groups.get(key) ?? []), role]);
  }
  for (const members of groups.values()) {
    const grid = block.grids[members[0]];
    const first = block.linears[members[0]];
    if (!grid || !first) continue;
    const columns = first.shape[1];
    plan.add(
      "flatten",
      from.x,
      from.width,
      grid.bits,
      new Real(grid.step),
      grid.factor,
      grid.extras,
      grid.channel,
      grid.part,
      columns,
      buffers.codes.address,
      buffers.scales.address,
    );
    const parts = members.flatMap((role): ProductPart[] => {
      const matrix = block.linears[role];
      const out = outputs[role];
      if (!matrix || !out) return [];
      return [
        {
          n: matrix.shape[0],
          a: buffers.codes.address,
          aScale: buffers.scales.address,
          packed: matrix.address,
          bScale: matrix.scale,
          bias: matrix.bias,
          out: out.address,
          outStride: out.width,
        },
      ];
    });
    plan.add(
      "product",
      PACKED_KIND[first.kind],
      columns,
      parts.length,
      plan.parts(parts),
      accumulate,
    );
  }
}
