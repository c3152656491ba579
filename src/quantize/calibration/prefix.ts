/**
 * Full-precision hidden states of the calibration set on their way from block to block: every method needs them, none
 * changes them. Runs that share a `StateStore` compute each block's states once.
 */
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { BlockWeights } from "../../models/interpret.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { loadEndLayers } from "../../models/language-model.js";
import { embedAll, forwardAll, freeEndLayers } from "./forward.js";
import { sampleRange, type Activations, type TokenWindows } from "../schema/windows.js";

/**
 * Keeps states of one model's calibration windows, as many blocks as its budget holds. Runs of one seed draw the same
 * windows, some runs more of them than others: whoever draws fewer is served with the first of what is kept.
 */
export class StateStore {
  private owner: TokenWindows | undefined;
  private readonly kept = new Map<number, Activations>();
  private readonly parts = new Map<string, Activations>();
  private bytes = 0;

  /** `budgetBytes`: memory for states; blocks beyond it are computed again by every run. */
  constructor(readonly budgetBytes: number) {}

  /** States that enter block `layer`; undefined where they are not kept, or belong to other windows. */
  find(windows: TokenWindows, layer: number): Activations | undefined {
    const all = this.kept.get(layer);
    if (!all || !this.owner || !isBeginning(windows, this.owner)) return undefined;
    const key = `${layer}:${windows.samples}`;
    let part = this.parts.get(key);
    if (!part) {
      const { samples } = windows;
      part = { ...all, samples, data: sampleRange(all, 0, samples), statistics: new Map() };
      this.parts.set(key, part);
    }
    return part;
  }

  /** Keeps states that nobody will write to again; a longer set of windows takes the place of a shorter one. */
  keep(windows: TokenWindows, layer: number, states: Activations): void {
    if (this.owner && this.owner !== windows) {
      // A shorter run's states would not serve the others.
      if (isBeginning(windows, this.owner) || !isBeginning(this.owner, windows)) return;
      this.kept.clear();
      this.parts.clear();
      this.bytes = 0;
    }
    this.owner = windows;
    const size = states.data.byteLength;
    // What does not fit is computed again.
    if (this.kept.has(layer) || this.bytes + size > this.budgetBytes) return;
    this.kept.set(layer, states);
    this.bytes += size;
  }
}

function isBeginning(part: TokenWindows, all: TokenWindows): boolean {
  if (part === all) return true;
  return (
    part.time === all.time &&
    part.samples <= all.samples &&
    part.ids.every((id, i) => id === all.ids[i])
  );
}

export interface PrefixOptions {
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  /** Shared with other runs of the same model and windows. */
  readonly states?: StateStore;
}

export class Prefix {
  /** States that enter the block at hand. */
  inputs: Activations;
  /** Memory that is free for the next block's states. */
  private spare: Activations | undefined;

  constructor(
    private readonly options: PrefixOptions,
    private readonly windows: TokenWindows,
    /** States to begin with, where they are known already; else those that enter the first block. */
    start?: Activations,
  ) {
    const { backend, source, architecture, config, states } = options;
    const known = start ?? states?.find(windows, 0);
    if (known) {
      this.inputs = known;
      return;
    }
    const endLayers = loadEndLayers(backend, source, architecture, config);
    const embedded = embedAll(backend, config, endLayers, windows);
    freeEndLayers(backend, endLayers);
    states?.keep(windows, 0, embedded);
    this.inputs = states?.find(windows, 0) ?? embedded;
  }

  /** States that leave block `layer` when `inputs` enters it. @throws InterruptedError on the signal. */
  async outputs(weights: BlockWeights, layer: number, signal?: AbortSignal): Promise<Activations> {
    const { backend, config, states } = this.options;
    const known = states?.find(this.windows, layer + 1);
    if (known) return known;
    const { data, samples, time, hidden } = this.inputs;
    const outputs = this.spare ?? { data: new Float32Array(data.length), samples, time, hidden };
    this.spare = undefined;
    const program = blockProgram(config, layer);
    await forwardAll(backend, program, weights, this.inputs, outputs, layer, signal);
    states?.keep(this.windows, layer + 1, outputs);
    return states?.find(this.windows, layer + 1) ?? outputs;
  }

  /** Moves on: what left one block enters the next. */
  advance(outputs: Activations): void {
    // States in a store carry statistics; they stay as they are.
    if (!this.inputs.statistics) this.spare = this.inputs;
    this.inputs = outputs;
  }
}
