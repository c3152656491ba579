/**
 * Variants of a model on the same text: the state of each travels through the blocks together with all others', so that one
 * pass over the checkpoint serves them all; at the end their next-token distributions are compared with full precision's.
 */
import type { Backend } from "../../backend/contract/training.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { BlockHooks, BlockWeights } from "../../models/interpret.js";
import { runBlock } from "../../models/interpret.js";
import { stateWidth, type ModelConfig } from "../../models/config.js";
import { finalNorm, headLogits, type EndLayerWeights } from "../../models/language-model.js";
import { Graph } from "../../tensor/tensor.js";

/** Positions whose distributions are compared, spread over the tokens: the head is a large part of a small model. */
const POSITIONS = 512;
/** Tokens run through a block at once. */
const BATCH_TOKENS = 4096;
/** Rows of logits formed at once. */
const LOGIT_ROWS = 256;

/** The text that variants are run on: `windows` of `time` tokens each. */
export interface VariantText {
  readonly backend: Backend;
  readonly config: ModelConfig;
  readonly endLayers: EndLayerWeights;
  readonly windows: number;
  readonly time: number;
}

/** States [windows, time, hidden], each through one block. */
export function runStates(
  { backend, config, windows, time }: VariantText,
  { weights, hooks }: { readonly weights: BlockWeights; readonly hooks: BlockHooks },
  states: readonly Float32Array[],
  layer: number,
): Float32Array[] {
  const together = Math.max(1, Math.floor(BATCH_TOKENS / (windows * time)));
  const program = blockProgram(config, layer);
  const out: Float32Array[] = [];
  using arena = backend.arena();
  for (let first = 0; first < states.length; first += together) {
    const some = states.slice(first, first + together);
    const size = some[0].length;
    const all = new Float32Array(some.length * size);
    some.forEach((state, i) => {
      all.set(state, i * size);
    });
    using g = new Graph(backend, { arena });
    const width = stateWidth(config);
    const x = g.constant([all.length / width, width], all);
    const batch = some.length * windows;
    const y = g.read(runBlock(g, program, weights, hooks, x, { layer, batch }));
    some.forEach((_, i) => out.push(Float32Array.from(y.subarray(i * size, (i + 1) * size))));
  }
  return out;
}

/** Mean KL, in nats per token, of each last state's next-token distribution from that of `expected`, over evenly spread positions. */
export function divergences(
  text: VariantText,
  expected: Float32Array,
  states: readonly Float32Array[],
): number[] {
  const tokens = expected.length / stateWidth(text.config);
  const every = Math.max(1, Math.floor(tokens / POSITIONS));
  const positions = Array.from({ length: Math.floor(tokens / every) }, (_, i) => i * every);
  const sums = new Float64Array(states.length);
  for (let first = 0; first < positions.length; first += LOGIT_ROWS)
    sumDivergences(text, positions.slice(first, first + LOGIT_ROWS), expected, states, sums);
  return Array.from(sums, (sum) => sum / positions.length);
}

function sumDivergences(
  { backend, config, endLayers }: VariantText,
  rows: readonly number[],
  expected: Float32Array,
  states: readonly Float32Array[],
  sums: Float64Array,
): void {
  const { vocabSize } = config;
  const width = stateWidth(config);
  const logits = (g: Graph, state: Float32Array) => {
    const some = new Float32Array(rows.length * width);
    rows.forEach((row, i) => {
      some.set(state.subarray(row * width, (row + 1) * width), i * width);
    });
    const hidden = g.constant([rows.length, width], some);
    return g.values(headLogits(g, config, endLayers, finalNorm(g, config, endLayers, hidden)));
  };
  using g = new Graph(backend);
  const teacher = logits(g, expected);
  states.forEach((state, i) => {
    using inner = g.nested();
    const kl = inner.real(rows.length);
    inner.kernels.softmaxKl({
      teacher,
      student: logits(inner, state),
      rows: rows.length,
      cols: vocabSize,
      kl,
      gradScale: 1,
    });
    for (const value of backend.read(kl)) sums[i] += value;
  });
}
