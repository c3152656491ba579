/** How a calibration set spreads over a block's experts, and how many rows their statistics are taken of. */
import type { Backend } from "../../backend/contract/training.js";
import { routingOf, type BlockProgram } from "../../backend/contract/program.js";
import { plainHooks, runBlock, type BlockWeights } from "../../models/interpret.js";
import { Graph } from "../../tensor/tensor.js";
import { sampleRange, type Activations } from "../schema/windows.js";

/** The part of an even share that every expert's statistics see at least. */
const LEAST_SHARE = 0.25;

/**
 * Rows that every expert sees at least where statistics are taken: a quarter of what an even choice would give it. Rows
 * that did not choose it are those with its highest scores.
 */
export function leastRows(program: BlockProgram, rows: number): number | undefined {
  const route = routingOf(program);
  return route && Math.ceil((LEAST_SHARE * rows * route.chosen) / route.experts);
}

/** Tokens of the calibration set that chose each expert; undefined for blocks without experts. */
export function countExpertTokens(
  backend: Backend,
  program: BlockProgram,
  weights: BlockWeights,
  inputs: Activations,
  layer: number,
): number[] | undefined {
  const route = routingOf(program);
  if (!route) return undefined;
  const counts = new Array<number>(route.experts).fill(0);
  using arena = backend.arena();
  const hooks = plainHooks(weights);
  for (let window = 0; window < inputs.samples; window++) {
    using g = new Graph(backend, { arena });
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, window, 1));
    runBlock(g, program, weights, hooks, x, {
      layer,
      batch: 1,
      onRouted: (step, rows) => {
        if (step === route) rows.forEach((count, expert) => (counts[expert] += count));
      },
    });
  }
  return counts;
}
