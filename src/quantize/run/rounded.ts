/** What schemes cost as they stand, rounded to nearest: a quick look at several of them on a little text, in one pass. */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { InterruptedError } from "../../common/errors.js";
import type { ProgressSink } from "../../common/progress.js";
import { Random } from "../../common/random.js";
import { blockProgram } from "../../models/architectures/index.js";
import { plainHooks } from "../../models/interpret.js";
import { embed, loadEndLayers } from "../../models/language-model.js";
import { freeBlock, readBlock, uploadBlock } from "../../models/weights.js";
import { freeTensor, frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import { simulatedHooks } from "../artifact/simulated-model.js";
import { freeEndLayers } from "../calibration/forward.js";
import { readDocuments, tokenizeCorpus } from "../calibration/text.js";
import { divergences, runStates, type VariantText } from "../calibration/variants.js";
import type { OpenModel } from "../schema/method.js";
import { randomWindows } from "../schema/windows.js";
import { rotations } from "../transforms/rotations.js";
import { JUDGED } from "./bits.js";

/** A way to round; `rotates`: behind random rotations, as methods that learn matrices begin. */
export interface RoundedWay {
  readonly scheme: Scheme;
  readonly rotates: boolean;
}

export interface RoundedOptions extends OpenModel {
  readonly backend: Backend;
  /** As for `quantize`. */
  readonly calibration?: string;
  readonly seed?: number;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
}

/** Characters of the text that are looked at: enough to draw windows from. */
const CHARACTERS = 400_000;

/**
 * The KL divergence, in nats a token, of each way's next-token distributions from full precision's. Embedding and head stay in
 * full precision.
 * @throws PlanishError when the text is too short, InterruptedError on the signal.
 */
export async function roundedDivergences(
  options: RoundedOptions,
  ways: readonly RoundedWay[],
): Promise<number[]> {
  const { backend, source, architecture, config, seed = 0, signal } = options;
  const documents: string[] = [];
  let length = 0;
  for (const document of readDocuments(options.calibration ?? "wikipedia")) {
    if (length >= CHARACTERS) break;
    documents.push(document.slice(0, CHARACTERS));
    length += document.length;
  }
  const tokens = tokenizeCorpus(loadTokenizer(source), documents);
  const { ids, samples, time } = randomWindows(tokens, JUDGED.samples, JUDGED.seqLen, seed);
  const endLayers = loadEndLayers(backend, source, architecture, config);
  const text: VariantText = { backend, config, endLayers, windows: samples, time };
  const task = options.progress.task("trying schemes", config.numLayers);
  let teacher: Float32Array;
  {
    using g = new Graph(backend);
    teacher = Float32Array.from(g.read(embed(g, config, endLayers, ids, samples)));
  }
  let states = ways.map(() => teacher);
  for (let layer = 0; layer < config.numLayers; layer++) {
    if (signal?.aborted) throw new InterruptedError(`stopped in block ${layer} of a look ahead`);
    const program = blockProgram(config, layer);
    const weights = uploadBlock(backend, readBlock(source, architecture, config, layer));
    states = ways.flatMap(({ scheme, rotates }, i) => {
      const params = new Map<string, Tensor>();
      if (rotates)
        for (const [name, { shape, data }] of rotations(
          program,
          scheme,
          Random.for(seed, "block", layer),
        ))
          params.set(name, frozen(backend, shape, data));
      const hooks = simulatedHooks({ program, scheme }, weights, params);
      const out = runStates(text, { weights, hooks }, [states[i]], layer);
      for (const tensor of params.values()) freeTensor(backend, tensor);
      return out;
    });
    [teacher] = runStates(text, { weights, hooks: plainHooks(weights) }, [teacher], layer);
    freeBlock(backend, weights);
    task.advance();
    await nextTurn();
  }
  const found = divergences(text, teacher, states);
  freeEndLayers(backend, endLayers);
  task.done();
  return found;
}
