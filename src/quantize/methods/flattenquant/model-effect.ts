/**
 * What each linear at 4 bits costs the model (ours): the divergence of its next-token distribution from full precision's
 * that this linear adds, with all others at 8 bits. Blocks are read one at a time: every linear's variant is a state that
 * travels through the blocks behind it together with all others', so that one pass over the checkpoint serves them all.
 */
import type { PackedBlock } from "../../../backend/contract/packed.js";
import { setImmediate as nextTurn } from "node:timers/promises";
import { InterruptedError } from "../../../common/errors.js";
import { blockProgram } from "../../../models/architectures/index.js";
import type { ModelConfig } from "../../../models/config.js";
import { embed } from "../../../models/language-model.js";
import { freeBlock, type HostBlock } from "../../../models/weights.js";
import type { LinearName } from "../../../backend/contract/program.js";
import { Graph } from "../../../tensor/tensor.js";
import { divergences, runStates, type VariantText } from "../../calibration/variants.js";
import { sampleRange } from "../../schema/windows.js";
import { foldBlock } from "../../block/fold.js";
import type { ParameterValues } from "../../schema/parameters.js";
import type { RefineJob } from "../../schema/method.js";
import { packedLayer } from "../../block/packed-block.js";

/** Calibration tokens that are looked at: fewer where each costs more, so that a model takes minutes. */
const TOKENS = { least: 512, most: 2048, weightsTimesTokens: 5e10 };

export interface ModelEffect {
  /** KL(full precision ‖ model) in nats per token with all linears at 8 bits. */
  readonly all8: number;
  /** By block: what each linear at 4 bits adds to that. */
  readonly added: readonly Readonly<Record<LinearName, number>>[];
}

/**
 * `parametersOf`: a block's parameters with all its linears at 8, or at 4 bits. Weights go to the nearest integer.
 * @throws InterruptedError on the job's signal.
 */
export async function modelEffect(
  job: RefineJob<unknown>,
  parametersOf: (layer: number, bits: 4 | 8) => ParameterValues,
): Promise<ModelEffect> {
  const { backend, config, endLayers, windows, scheme } = job;
  const hosts = (layer: number): HostBlock => job.readBlock(layer);
  const count = windowsLookedAt(config, hosts(0), windows);
  const ids = windows.ids.subarray(0, count * windows.time);
  const text: VariantText = { backend, config, endLayers, windows: count, time: windows.time };
  const names: { layer: number; role: LinearName }[] = [];
  let states: Float32Array[];
  {
    using g = new Graph(backend);
    states = [Float32Array.from(g.read(embed(g, config, endLayers, ids, count)))];
  }
  for (let layer = 0; layer < config.numLayers; layer++) {
    const host = hosts(layer);
    const program = blockProgram(config, layer);
    const description = { program, scheme };
    const [at8, at4] = ([8, 4] as const).map((bits) =>
      foldBlock(host, description, parametersOf(layer, bits)),
    );
    const through = (block: PackedBlock, from: readonly Float32Array[]): Float32Array[] => {
      const packed = packedLayer(backend, program, scheme, block);
      const out = runStates(text, packed, from, layer);
      freeBlock(backend, packed.weights);
      return out;
    };
    const [entering] = states;
    const behind = through(at8, states);
    for (const role of Object.keys(host.linears)) {
      refuseAborted(job, layer);
      const linears = { ...at8.linears, [role]: at4.linears[role] };
      behind.push(...through({ ...at8, linears }, [entering]));
      names.push({ layer, role });
      await nextTurn();
    }
    states = behind;
    job.progress.advance(1, `effect of block ${layer} at 4 bits`);
  }
  const [all8, ...each] = divergences(text, sampleRange(job.teacher, 0, count), states);
  const added: Record<LinearName, number>[] = Array.from({ length: config.numLayers }, () => ({}));
  names.forEach(({ layer, role }, i) => {
    added[layer][role] = each[i] - all8;
  });
  return { all8, added };
}

function refuseAborted({ signal }: RefineJob<unknown>, layer: number): void {
  if (signal?.aborted)
    throw new InterruptedError(`stopped in block ${layer} while bits were chosen`);
}

function windowsLookedAt(
  config: ModelConfig,
  first: HostBlock,
  windows: { readonly samples: number; readonly time: number },
): number {
  const perBlock = Object.values(first.linears).reduce((sum, l) => sum + l.weight.data.length, 0);
  const affordable = TOKENS.weightsTimesTokens / (perBlock * config.numLayers);
  const tokens = Math.min(Math.max(affordable, TOKENS.least), TOKENS.most);
  return Math.min(windows.samples, Math.max(1, Math.floor(tokens / windows.time)));
}
