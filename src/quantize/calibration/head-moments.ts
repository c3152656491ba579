/** What keys and queries of a block are like after rotary embedding, by channel of the KV heads. */
import { runBlock, plainHooks, type BlockHooks } from "../../models/interpret.js";
import { cacheShape } from "../../backend/contract/program.js";
import { Graph } from "../../tensor/tensor.js";
import type { BlockJob } from "../schema/method.js";
import { sampleRange } from "../schema/windows.js";
import type { HeadMoments } from "../transforms/key-balance.js";
import { leastRows } from "./experts.js";

/** Moments of the second order settle soon. */
const WINDOWS = 16;

/** Sums over tokens, [kvHeads·headDim] each; the first token of a window, which is like no other, is left out. */
export class HeadSums {
  private readonly key: Float64Array;
  private readonly keySquare: Float64Array;
  private readonly querySquare: Float64Array;
  private keys = 0;
  private queries = 0;

  /** `time`: tokens of a window. */
  constructor(
    private readonly kvHeads: number,
    private readonly headDim: number,
    private readonly time: number,
  ) {
    const width = kvHeads * headDim;
    [this.key, this.keySquare, this.querySquare] = [0, 1, 2].map(() => new Float64Array(width));
  }

  /** Keys of whole windows, [tokens, kvHeads·headDim]. */
  addKeys(values: ArrayLike<number>): void {
    const width = this.key.length;
    for (let row = 0; row * width < values.length; row++) {
      if (row % this.time === 0) continue;
      this.keys++;
      for (let i = 0, at = row * width; i < width; i++, at++) {
        this.key[i] += values[at];
        this.keySquare[i] += values[at] * values[at];
      }
    }
  }

  /** Queries of whole windows, [tokens, heads·headDim]. */
  addQueries(values: ArrayLike<number>, heads: number): void {
    const { headDim, kvHeads } = this;
    for (let row = 0; row * heads * headDim < values.length; row++) {
      if (row % this.time === 0) continue;
      this.queries += heads / kvHeads;
      for (let head = 0; head < heads; head++) {
        const to = Math.floor((head * kvHeads) / heads) * headDim;
        const from = (row * heads + head) * headDim;
        for (let i = 0; i < headDim; i++) this.querySquare[to + i] += values[from + i] ** 2;
      }
    }
  }

  get moments(): HeadMoments {
    const keyMean = this.key.map((sum) => sum / this.keys);
    return {
      keyMean,
      keyVariance: this.keySquare.map((sum, i) => Math.max(0, sum / this.keys - keyMean[i] ** 2)),
      querySquare: this.querySquare.map((sum) => sum / this.queries),
    };
  }
}

/** Of the full-precision block over the first calibration windows. */
export function captureHeadMoments({
  backend,
  program,
  weights,
  inputs,
  layer,
}: Pick<BlockJob<unknown>, "backend" | "program" | "weights" | "inputs" | "layer">): HeadMoments {
  const { heads: kvHeads, headDim } = cacheShape(program);
  const sums = new HeadSums(kvHeads, headDim, inputs.time);
  const hooks: BlockHooks = {
    ...plainHooks(weights),
    keys(g, k) {
      sums.addKeys(g.read(k));
      return k;
    },
    queries(g, q) {
      sums.addQueries(g.read(q), q.cols / headDim);
      return q;
    },
  };
  using arena = backend.arena();
  for (let window = 0; window < Math.min(WINDOWS, inputs.samples); window++) {
    using g = new Graph(backend, { arena });
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, window, 1));
    runBlock(g, program, weights, hooks, x, {
      layer,
      batch: 1,
      leastRows: leastRows(program, inputs.time),
    });
  }
  return sums.moments;
}
