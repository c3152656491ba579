/**
 * The unit of work of a run: one block, learned from its full-precision inputs and outputs. The process of a run, its
 * worker processes and the workers of a queue all call this, so that a block has the same bytes wherever it was done.
 */
import type { Backend } from "../../backend/contract/training.js";
import { schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import type { ProgressTask } from "../../common/progress.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { ModelConfig } from "../../models/config.js";
import type { BlockWeights } from "../../models/interpret.js";
import type { HostBlock } from "../../models/weights.js";
import { countExpertTokens } from "../calibration/experts.js";
import type { AnyMethod } from "../methods/index.js";
import type { BlockOutcome } from "../schema/method.js";
import type { Activations } from "../schema/windows.js";

/** What all blocks of a run are learned with. */
export interface BlockSettings {
  readonly backend: Backend;
  readonly config: ModelConfig;
  readonly method: AnyMethod;
  readonly scheme: Scheme;
  readonly recipe: Record<string, unknown>;
  readonly seed: number;
}

/** One block, in memory and on the device, with what goes in and comes out at full precision. */
export interface BlockTask {
  readonly layer: number;
  readonly block: HostBlock;
  readonly weights: BlockWeights;
  readonly inputs: Activations;
  readonly outputs: Activations;
}

/** An expert that is chosen by fewer tokens is told of. */
const FEW_TOKENS = 64;

/**
 * Finds a block's parameters. @throws InterruptedError on the signal; Error when the method calibrates no blocks, which
 * callers have looked at.
 */
export async function calibrateOneBlock(
  { backend, config, method, scheme, recipe, seed }: BlockSettings,
  { layer, block, weights, inputs, outputs }: BlockTask,
  progress: ProgressTask,
  signal?: AbortSignal,
): Promise<BlockOutcome> {
  if (!method.calibrateBlock) throw new Error(`method ${method.name} calibrates no blocks`);
  const program = blockProgram(config, layer);
  const expertTokens = countExpertTokens(backend, program, weights, inputs, layer);
  const { parameters, report } = await method.calibrateBlock({
    backend,
    config,
    scheme: schemeOfBlock(scheme, layer),
    recipe,
    layer,
    program,
    expertTokens,
    seed,
    block,
    weights,
    inputs,
    targets: outputs,
    progress,
    signal,
  });
  const few = expertTokens && expertTokens.filter((tokens) => tokens < FEW_TOKENS).length;
  const notes = few
    ? [
        `block ${layer}: ${few} of ${expertTokens.length} experts are chosen by fewer than ${FEW_TOKENS} calibration tokens; they learn mostly with the others: give more --samples`,
      ]
    : [];
  return { parameters, report: { ...report, expertTokens, notes: [...report.notes, ...notes] } };
}

/** A finished block in a line of the log. */
export function blockLine(
  layer: number,
  { errorRounded, errorFinal }: BlockOutcome["report"],
): string {
  return `block ${layer}: error ${errorRounded.toPrecision(3)} rounded to nearest, ${errorFinal.toPrecision(3)} calibrated`;
}
