/** What a run will need, worked out before it starts: multiply-adds, memory, disk, and time at a measured rate. */
import { dirname, resolve } from "node:path";
import type { Backend } from "../../backend/contract/training.js";
import { PlanishError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { freeBytes } from "../../common/place.js";
import { availableMemory } from "../../common/memory.js";
import { stateWidth, type ModelConfig } from "../../models/config.js";
import { blockProgram, blockPrograms } from "../../models/architectures/index.js";
import type { CalibrationNeed } from "../schema/method.js";
import type { Scheme } from "../../backend/contract/scheme.js";

export interface RunEstimate {
  /** Floating-point and integer operations of the large products, two per multiply-add. */
  readonly operations: number;
  /** Of these, the operations of learning: blocks and end to end, without GPTQ's second moments. */
  readonly trainingOperations: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  /** At the rate measured just now, with an allowance for everything that is not a large product. */
  readonly seconds: number;
}

/** Weights in one block's linears; where blocks differ, in the largest's. */
export function blockParameters(config: ModelConfig): number {
  return Math.max(
    ...blockPrograms(config).map(({ linears }) =>
      Object.values(linears).reduce((sum, { shape }) => sum + shape[0] * shape[1], 0),
    ),
  );
}

/** Share of a step's time that large products take on the machines this was measured on. */
const PRODUCT_SHARE = 0.5;
/** Live float32 values per token and channel in a training step (activations and gradients), measured. */
const LIVE_PER_TOKEN = { hidden: 26, intermediate: 14 };

/** Bytes of one weight in an artifact, its share of the steps included; 3 and 2 bits lie in nibbles. */
function weightBytes({ weightBits, weightGroup, weightOffset }: Scheme): number {
  if (!weightGroup) return weightBits <= 4 ? 0.5 : weightBits / 8;
  return Math.max(weightBits, 4) / 8 + (weightOffset ? 4 : 2) / weightGroup;
}

/** The same of an element of embedding and head. */
function tableBytes({ tableBits, tableGroup }: Scheme): number {
  return tableBits && tableGroup ? tableBits / 8 + 2 / tableGroup : 2;
}

export function estimateRun(
  backend: Backend,
  config: ModelConfig,
  scheme: Scheme,
  need: CalibrationNeed | undefined,
): RunEstimate {
  const perBlock = blockParameters(config);
  const width = config.embeddingSize ?? config.hiddenSize;
  const embedding = config.vocabSize * width * (config.tiedEmbeddings ? 1 : 2);
  const packed = config.numLayers * perBlock * weightBytes(scheme) + embedding * tableBytes(scheme);
  if (!need)
    return {
      operations: 0,
      trainingOperations: 0,
      memoryBytes: perBlock * 24 + 2e8,
      diskBytes: 2 * packed,
      seconds: (config.numLayers * perBlock) / 2e7,
    };
  const tokens = need.stepsPerBlock * need.batch * need.seqLen;
  const attention = 2 * config.numHeads * config.headDim * need.seqLen;
  const forward = 2 * perBlock + attention;
  const training = tokens * forward * 3 * config.numLayers;
  const reference = need.samples * need.seqLen * forward * 2 * config.numLayers;
  const refineTokens = need.refineSteps * need.refineBatch * need.seqLen;
  const refine = refineTokens * (forward * 4 * config.numLayers + 8 * config.vocabSize * width);
  const widths = need.secondMoments
    ? Object.values(blockProgram(config, 0).linears).map(({ shape }) => shape[1])
    : [];
  const squares = widths.reduce((sum, cols) => sum + cols * cols, 0);
  // The prefix runs once more, and every activation is multiplied with itself.
  const moments = need.secondMoments
    ? need.samples * need.seqLen * (2 * forward + 2 * squares) * config.numLayers
    : 0;
  const trainingOperations = training + reference + refine;
  const operations = trainingOperations + moments;
  const activations = 2 * need.samples * need.seqLen * stateWidth(config) * 4;
  const step =
    need.batch *
    need.seqLen *
    4 *
    (LIVE_PER_TOKEN.hidden * config.hiddenSize +
      LIVE_PER_TOKEN.intermediate * config.intermediateSize);
  const held = need.refineStreams ? 1 : config.numLayers;
  const refineBytes = need.refineSteps > 0 ? held * perBlock * 16 + 2 * embedding : 0;
  return {
    operations,
    trainingOperations,
    memoryBytes:
      activations + step + perBlock * 16 + embedding * 4 + refineBytes + squares * 16 + 3e8,
    diskBytes:
      2 * packed +
      (need.refineSteps > 0 ? config.numLayers * perBlock * 12 : config.numLayers * 2e6),
    seconds: operations / (measuredRate(backend) * PRODUCT_SHARE),
  };
}

/** One rate for all estimates of a process, which are compared with each other. */
const rates = new WeakMap<Backend, number>();

/** Rate of a 512³ bf16 product on this backend, operations per second; measured when it is first asked for. */
function measuredRate(backend: Backend): number {
  const known = rates.get(backend);
  if (known !== undefined) return known;
  const rate = backend.name === "reference" ? 5e8 : measureRate(backend);
  rates.set(backend, rate);
  return rate;
}

function measureRate(backend: Backend): number {
  const n = 512;
  using arena = backend.arena();
  const buffers = [0, 1, 2].map(() => arena.alloc(backend.realType, n * n));
  for (const buffer of buffers) backend.fill(buffer, 0.5);
  const [a, b, out] = buffers.map((buffer) => ({ buffer }));
  const once = () => {
    const start = performance.now();
    backend.kernels.matmul({ m: n, n, k: n, a, b, out, precision: "bf16" });
    return performance.now() - start;
  };
  once();
  const best = Math.min(once(), once(), once());
  return (2 * n ** 3) / (best / 1000);
}

/**
 * @param writtenBytes Of the disk's share, what an interrupted run has written already.
 * @throws PlanishError when memory or disk will not do, with both numbers.
 */
export function refuseImpossible(estimate: RunEstimate, out: string, writtenBytes = 0): void {
  const memory = availableMemory();
  if (estimate.memoryBytes > memory)
    throw new PlanishError(
      `this run needs about ${formatBytes(estimate.memoryBytes)} of memory and ${formatBytes(memory)} are free; use fewer samples, a shorter --seq-len or a smaller --batch`,
    );
  const free = freeBytes(dirname(resolve(out)));
  const needed = estimate.diskBytes - writtenBytes;
  if (free !== undefined && needed > free)
    throw new PlanishError(
      `this run needs about ${formatBytes(needed)} of disk at ${dirname(resolve(out))} and ${formatBytes(free)} are free; free some space or choose another --out`,
    );
}
