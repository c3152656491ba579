/** A packed block in the engine's memory: matrices in the order of the kernels, norms, transforms, grids. */
import type {
  ClipLogits,
  HostNorm,
  PackedBlock,
  PackedGrid,
  PackedLinear,
  PackedTransform,
} from "../../contract/packed.js";
import type { PackedKind } from "../../contract/inference-kernels.js";
import type { Scheme } from "../../contract/scheme.js";
import { PlanishError } from "../../../common/errors.js";
import { mapValues } from "../../../common/records.js";
import {
  sitesOf,
  type BlockProgram,
  type KeptName,
  type LinearName,
  type LinearSite,
  type NormName,
  type SitePlace,
} from "../../contract/program.js";
import { MOST_SETS, widestSite } from "./buffers.js";
import type { EngineMemory } from "./memory.js";
import type { MatrixPacker, PackedMatrix } from "./packed-matrix.js";

export interface PlacedNorm {
  readonly gain: bigint;
  readonly bias: bigint;
}

export interface PlacedTransform {
  readonly nLeft: number;
  readonly nRight: number;
  readonly left: bigint;
  readonly right: bigint;
}

/** A static grid of one linear's whole activation, with the columns that its split channels add. */
export interface PlacedGrid {
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
  readonly linears: Readonly<Record<LinearName, PackedMatrix>>;
  readonly grids: Readonly<Partial<Record<LinearName, PlacedGrid>>>;
  readonly clips: Readonly<Partial<Record<LinearName, ClipLogits>>>;
  /** Of a site's codes, where they are not the scheme's. */
  readonly activationBits: Readonly<Partial<Record<LinearSite, number>>>;
  readonly norms: Readonly<Record<NormName, PlacedNorm>>;
  /** f32, row by row. */
  readonly kept: Readonly<Record<KeptName, bigint>>;
  readonly transforms: Readonly<Record<LinearSite, PlacedTransform | undefined>>;
  /** P_k⁻ᵀ for queries and P_k for keys; 0n for none. */
  readonly queryMatrix: bigint;
  readonly keyMatrix: bigint;
  readonly keyDiag: bigint;
  readonly keyShift: bigint;
  /** Clipping logits of keys and values, [4]. */
  readonly cacheClips: bigint;
}

export function placeBlock(
  memory: EngineMemory,
  packer: MatrixPacker,
  program: BlockProgram,
  { kind, scheme }: { readonly kind: PackedKind; readonly scheme: Scheme },
  block: PackedBlock,
): PlacedBlock {
  const room = MOST_SETS * widestSite([program]);
  const norm = ({ gain, bias }: HostNorm): PlacedNorm => ({
    gain: memory.floats(gain.data).address,
    bias: bias ? memory.floats(bias.data).address : 0n,
  });
  const linears: Record<LinearName, PackedMatrix> = {};
  const clips: Partial<Record<LinearName, ClipLogits>> = {};
  const grids: Partial<Record<LinearName, PlacedGrid>> = {};
  for (const role of Object.keys(block.linears)) {
    const linear = block.linears[role];
    if (!linear) continue;
    const values = linear.quantized?.codes ?? linear.weight;
    if (!values) throw new PlanishError(`${linear.path} holds neither codes nor weights`);
    const { grid } = linear;
    if (grid) grids[role] = placeGrid(memory, room, grid, linear);
    if (linear.activationClip) clips[role] = linear.activationClip;
    const { quantized } = linear;
    if (quantized && !grid && (quantized.group ?? scheme.activationGroup)) {
      const bits = quantized.bits ?? scheme.weightBits;
      const matrix = { ...quantized, bias: linear.bias };
      linears[role] = packer.grouped(
        linear.path,
        linear.shape,
        matrix,
        bits,
        scheme.activationGroup,
      );
      continue;
    }
    const own = grid ? kindOf(grid.weightBits, "int8") : kindOf(quantized?.bits, kind);
    linears[role] = packer.packed(own, [linear.shape[0], values.length / linear.shape[0]], {
      values,
      scale: linear.quantized?.scale,
      bias: linear.bias,
    });
  }
  const transforms = Object.fromEntries(
    sitesOf(program).map((place) => {
      const given = block.transforms[place.site];
      return [place.site, given && placeTransform(memory, place, given)] as const;
    }),
  );
  const { keyTransform, keyClip, valueClip } = block;
  const balance = keyTransform?.balance;
  return {
    linears,
    grids,
    clips,
    activationBits: block.activationBits ?? {},
    norms: mapValues(block.norms, norm),
    kept: mapValues(block.kept, ({ data }) => memory.floats(data).address),
    transforms,
    queryMatrix: keyTransform ? memory.floats(keyTransform.inverseT).address : 0n,
    keyMatrix: keyTransform ? memory.floats(keyTransform.matrix).address : 0n,
    keyDiag: balance ? memory.floats(balance.diag).address : 0n,
    keyShift: balance ? memory.floats(balance.shift).address : 0n,
    cacheClips: memory.floats([...clipLogits(keyClip), ...clipLogits(valueClip)]).address,
  };
}

/** The kind for codes of as many bits, multiplied as `kind` is; without bits of their own: `kind`. */
function kindOf(bits: number | undefined, kind: PackedKind): PackedKind {
  if (bits === undefined) return kind;
  const real = kind === "int4F32" || kind === "int8F32";
  if (bits <= 4) return real ? "int4F32" : "int4";
  return real ? "int8F32" : "int8";
}

function placeGrid(
  memory: EngineMemory,
  room: number,
  grid: PackedGrid,
  { path, shape }: PackedLinear,
): PlacedGrid {
  const { activationBits, step, channel, part, factor } = grid;
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
export function clipLogits(clip: ClipLogits | undefined): [number, number] {
  return clip ? [clip.max, clip.min] : [Infinity, Infinity];
}

function placeTransform(
  memory: EngineMemory,
  { site, width, attention }: SitePlace,
  { left, right }: PackedTransform,
): PlacedTransform {
  const side = (data: Float32Array | undefined) => data && Math.sqrt(data.length);
  let nLeft = side(left);
  let nRight = attention ? attention.headDim : side(right);
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
