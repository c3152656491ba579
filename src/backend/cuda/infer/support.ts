/** What the engine's CUDA kernels take; everything else runs simulated, with the reason told. */
import { PlanishError } from "../../../common/errors.js";
import type { InferenceSource, EndLayerSource } from "../../contract/inference.js";
import { rotariesOf, type BlockProgram, type Step } from "../../contract/program.js";
import { hasFixedAngles } from "../../contract/rotary.js";
import { fuse, NoKernel } from "../../contract/fuse.js";
import { siteGeometry, siteSharedBytes, type SiteGrid, type SiteShape } from "./layout.js";

/** A model that the kernels do not take. The message is a reason, as it stands after "because". */
export class NoCudaKernel extends PlanishError {}

/** The first reason why a model of this scheme cannot run on the kernels; undefined when it can. */
export function cudaObstacle(
  source: Pick<InferenceSource, "shape" | "programs" | "scheme"> & {
    readonly endLayers: Pick<EndLayerSource, "projectIn">;
  },
): string | undefined {
  const { shape, programs, scheme, endLayers } = source;
  const { weightBits, activationBits, kvBits, queryBits = 16 } = scheme;
  if (weightBits >= 16 && activationBits >= 16)
    return "a model that is not quantized has no CUDA engine";
  if (weightBits >= 16) return "weights of 16 bits have no integer kernels";
  if (activationBits >= 16) return "activations of 16 bits have no integer kernels on CUDA";
  if (scheme.activationOffset && activationBits > 6)
    return `activations of ${activationBits} bits with offsets have no CUDA kernel; 2 to 6 bits have`;
  if (kvBits > 4 && kvBits < 16)
    return `a cache of ${kvBits} bits has no CUDA kernel; 2 to 4, and 16, have`;
  if (queryBits < 16) return "quantized queries have no CUDA kernel";
  const { hiddenSize, learnedPositions, stateWidth } = shape;
  if (stateWidth !== undefined)
    return "embeddings of layers, and keys and values that layers share, have no CUDA kernel";
  for (const program of programs)
    for (const step of program.steps) {
      const reason = stepObstacle(step);
      if (reason !== undefined) return reason;
    }
  const notFused = fusionObstacle(programs);
  if (notFused !== undefined) return notFused;
  if (learnedPositions || rotariesOf(programs).length === 0)
    return "learned positions have no CUDA kernel";
  if (!rotariesOf(programs).every(hasFixedAngles))
    return "rotary scaling that depends on a sequence's length, or grows queries, has no CUDA kernel";
  if (endLayers.projectIn) return "an embedding with a width of its own has no CUDA kernel";
  if (hiddenSize % 8 !== 0) return `hidden states of ${hiddenSize} columns are no multiple of 8`;
  return undefined;
}

/** Why a step by itself has no CUDA kernel; undefined where it has one. */
export function stepObstacle(step: Step): string | undefined {
  switch (step.op) {
    case "attention":
      if (step.sinks !== undefined) return "attention with sinks has no CUDA kernel";
      if (step.softcap !== undefined) return "attention scores with a soft cap have no CUDA kernel";
      if (step.slopes !== undefined) return "attention with linear biases has no CUDA kernel";
      if (step.chunk !== undefined) return "attention in chunks of positions has no CUDA kernel";
      if (step.headDim % 32 !== 0 || step.headDim > 128)
        return `heads of ${step.headDim} columns have no CUDA kernel; multiples of 32 up to 128 have`;
      return undefined;
    case "conv":
      return "short convolutions have no CUDA kernel";
    case "recurrence":
      return step.beta === undefined
        ? "state-space layers have no CUDA kernel"
        : "linear attention has no CUDA kernel";
    default:
      return undefined;
  }
}

/** Why steps cannot be grouped as the kernels compute them. */
function fusionObstacle(programs: readonly BlockProgram[]): string | undefined {
  try {
    for (const program of programs)
      for (const { op } of fuse(program))
        if (op === "route" || op === "experts" || op === "weigh" || op === "transform")
          return "a mixture of experts has no CUDA kernel";
        else if (op === "arrange") return "heads made of parts have no CUDA kernel";
        else if (op === "take" || op === "splice")
          return "values that lie beside hidden states have no CUDA kernel";
    return undefined;
  } catch (error) {
    if (error instanceof NoKernel) return error.message;
    throw error;
  }
}

/** Most threads of a block, and those that leave a thread all its registers. */
const MOST_THREADS = 1024;

export interface SitePlan {
  readonly shape: SiteShape;
  /** Rows as sums of two halves, as good as f32; false where only single halves fit. */
  readonly precise: boolean;
}

/**
 * How the site kernel takes a shape: with rows as two halves where shared memory holds them.
 * @throws NoCudaKernel when a block of threads cannot hold the row.
 */
export function planSite(
  shape: SiteShape,
  sharedBytesPerBlock: number,
  grid: SiteGrid = {},
): SitePlan {
  const { threads } = siteGeometry(shape);
  if (threads <= MOST_THREADS)
    for (const precise of [true, false])
      // The kernel has some hundred bytes of its own.
      if (siteSharedBytes(shape, precise, grid) + 1024 <= sharedBytesPerBlock)
        return { shape, precise };
  throw new NoCudaKernel(
    `a transform of ${shape.left}×${shape.right} is too large for the CUDA kernel of sites`,
  );
}

/** Rows as left×right, for a site without a transform: the pair that takes the fewest threads. */
export function plainShape(width: number): SiteShape {
  let best: SiteShape | undefined;
  for (let right = 1; right <= width; right++) {
    if (width % right !== 0) continue;
    const shape = { left: width / right, right, hasLeft: false, hasRight: false };
    // Columns in fours are loaded 16 bytes at a time.
    const cost = (s: SiteShape) => siteGeometry(s).threads * (s.right % 4 === 0 ? 1 : 4);
    if (!best || cost(shape) < cost(best)) best = shape;
  }
  return best ?? { left: 1, right: width, hasLeft: false, hasRight: false };
}
