/** Runs packed blocks with simulated arithmetic on any backend; the engines read the same records. */
import type { Backend } from "../../backend/contract/training.js";
import { mapValues } from "../../common/records.js";
import {
  plainHooks,
  requireLinear,
  type BlockHooks,
  type BlockWeights,
  type LinearWeights,
  type NormWeights,
} from "../../models/interpret.js";
import type { Layer } from "../../models/language-model.js";
import type {
  ClipLogits,
  HostNorm,
  HostTensor,
  PackedBlock,
  PackedLinear,
  PackedTransform,
} from "../../backend/contract/packed.js";
import {
  siteNamed,
  type BlockProgram,
  type LinearName,
  type LinearSite,
} from "../../backend/contract/program.js";
import {
  flattenRows,
  kronecker,
  linear,
  type ClipPair,
  type FlattenOptions,
} from "../../tensor/ops/index.js";
import { frozen, Tensor, type Graph } from "../../tensor/tensor.js";
import {
  transformKeys,
  transformQueries,
  type BoundKeyTransform,
} from "../transforms/key-balance.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import { activationGrid, dequantized, onGrid } from "../grids/groups.js";
import { quantizeCache, quantizeQueries } from "./simulated-block.js";
import { copiesOf } from "../transforms/split.js";

/** Hears how many of the values that met a linear's static grid lay beyond its reach. */
export type ClipObserver = (linear: string, clipped: number, values: number) => void;

/** Puts a packed block on a backend, ready to run with the simulated arithmetic of that backend. */
export function packedLayer(
  backend: Backend,
  program: BlockProgram,
  scheme: Scheme,
  block: PackedBlock,
  onClipped?: ClipObserver,
): Layer {
  const put = (shape: readonly number[], data: Float32Array | HostTensor["data"]): Tensor =>
    frozen(backend, shape, data);
  const square = (data: Float32Array): Tensor =>
    put([Math.sqrt(data.length), Math.sqrt(data.length)], data);
  const putNorm = (n: HostNorm): NormWeights => ({
    gain: put(n.gain.shape, n.gain.data),
    bias: n.bias && put(n.bias.shape, n.bias.data),
  });
  const putClip = (clip: ClipLogits | undefined): ClipPair | undefined =>
    clip && { max: put([1], Float32Array.of(clip.max)), min: put([1], Float32Array.of(clip.min)) };

  const linears: Record<LinearName, LinearWeights> = {};
  const clips: Partial<Record<LinearName, ClipPair>> = {};
  const grids = bindGrids(backend, block, onClipped);
  for (const [role, l] of Object.entries(block.linears)) {
    linears[role] = {
      weight: putWeight(backend, l, scheme),
      bias: l.bias && put([l.shape[0]], l.bias),
    };
    const clip = putClip(l.activationClip);
    if (clip) clips[role] = clip;
  }
  const weights: BlockWeights = {
    norms: mapValues(block.norms, putNorm),
    linears,
    kept: mapValues(block.kept, ({ shape, data }) => put(shape, data)),
  };
  const transforms: Partial<Record<LinearSite, { left?: Tensor; right?: Tensor }>> = {};
  for (const [site, t] of Object.entries(block.transforms) as [LinearSite, PackedTransform][])
    transforms[site] = { left: t.left && square(t.left), right: t.right && square(t.right) };
  const keys = block.keyTransform && {
    matrix: square(block.keyTransform.matrix),
    inverseT: square(block.keyTransform.inverseT),
    balance: block.keyTransform.balance && {
      diag: put([block.keyTransform.balance.diag.length], block.keyTransform.balance.diag),
      shift: put([block.keyTransform.balance.shift.length], block.keyTransform.balance.shift),
    },
  };
  return {
    weights,
    hooks: packedHooks(program, scheme, weights, clips, grids, transforms, keys ?? {}, {
      k: putClip(block.keyClip),
      v: putClip(block.valueClip),
    }),
  };
}

function putWeight(backend: Backend, l: PackedLinear, scheme: Scheme): Tensor {
  if (!l.quantized)
    return frozen(backend, l.shape, l.weight ?? new Float32Array(l.shape[0] * l.shape[1]));
  const { group } = l.quantized;
  // Products by integers have a scale per row; values serve groups.
  if (group !== undefined)
    return frozen(backend, l.shape, dequantized(l.quantized.codes, l.shape[1], l.quantized));
  const codes = backend.alloc("i8", l.quantized.codes.length);
  backend.write(codes, l.quantized.codes);
  const scale = backend.alloc(backend.realType, l.quantized.scale.length);
  backend.write(scale, l.quantized.scale);
  const shape = [l.shape[0], l.quantized.codes.length / l.shape[0]];
  const bits = l.grid?.weightBits ?? l.quantized.bits ?? scheme.weightBits;
  return new Tensor(shape, undefined, false, { codes, scale, bits });
}

/** How each linear with a static grid takes its activation. */
type BoundGrids = ReadonlyMap<LinearName, (g: Graph, x: Tensor) => Tensor>;

function bindGrids(
  backend: Backend,
  block: PackedBlock,
  onClipped: ClipObserver | undefined,
): BoundGrids {
  const grids = new Map<LinearName, (g: Graph, x: Tensor) => Tensor>();
  const integers = (values: Int32Array) => {
    const buffer = backend.alloc("i32", values.length);
    backend.write(buffer, values);
    return buffer;
  };
  for (const [role, { grid, path, shape }] of Object.entries(block.linears)) {
    if (!grid) continue;
    const { activationBits, step, channel, part, factor } = grid;
    const split = channel.length > 0;
    const options: FlattenOptions = {
      bits: activationBits,
      step,
      channel: split ? integers(channel) : undefined,
      part: split ? integers(part) : undefined,
      factor: factor && frozen(backend, [factor.length], factor),
    };
    const copies = onClipped && integers(copiesOf(shape[1], channel, part));
    grids.set(role, (g, x) =>
      flattenRows(g, x, {
        ...options,
        count: copies && { copies, add: (clipped) => onClipped(path, clipped, x.size) },
      }),
    );
  }
  return grids;
}

function packedHooks(
  program: BlockProgram,
  scheme: Scheme,
  weights: BlockWeights,
  clips: Partial<Record<LinearName, ClipPair>>,
  grids: BoundGrids,
  transforms: Partial<Record<LinearSite, { left?: Tensor; right?: Tensor }>>,
  keys: BoundKeyTransform,
  cacheClips: { k?: ClipPair; v?: ClipPair },
): BlockHooks {
  const transform = (g: Graph, site: LinearSite, x: Tensor): Tensor => {
    const t = transforms[site];
    if (!t) return x;
    return kronecker(g, x, { ...t, nRight: siteNamed(program, site).attention?.headDim });
  };
  if (scheme.activationBits >= 16) {
    const plain = plainHooks(weights);
    return { ...cacheHooks(), transform, linears: (...args) => plain.linears(...args) };
  }
  return {
    ...cacheHooks(),
    transform,
    linears(g, site, input, roles) {
      let shared: Tensor | undefined;
      return roles.map((role) => {
        const clip = clips[role];
        const quantize = () => onGrid(g, input, activationGrid(scheme, site), { clip });
        const onTensor = grids.get(role);
        const activation = onTensor
          ? onTensor(g, input)
          : clip
            ? quantize()
            : (shared ??= quantize());
        const { weight, bias } = requireLinear(weights, role);
        return linear(g, activation, weight, bias);
      });
    },
  };

  function cacheHooks(): Pick<BlockHooks, "queries" | "keys" | "values"> {
    return {
      queries: (g, q, { headDim }) =>
        quantizeQueries(g, transformQueries(g, q, keys, headDim), scheme, headDim),
      keys: (g, k, { headDim }) =>
        quantizeCache(g, transformKeys(g, k, keys), scheme, headDim, cacheClips.k),
      values: (g, v, { headDim }) => quantizeCache(g, v, scheme, headDim, cacheClips.v),
    };
  }
}
