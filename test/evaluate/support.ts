/** Models for evaluation tests, and scores stated plainly: one sequence at a time, softmax written out. */

import { join } from "node:path";
import type { Backend } from "../../src/backend/contract/training.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer, type Tokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { parseScheme } from "../../src/backend/contract/scheme.js";
import { simulatedModel } from "../../src/quantize/artifact/simulated-model.js";
import { Graph } from "../../src/tensor/tensor.js";

export interface TestModel {
  readonly model: LanguageModel;
  readonly tokenizer: Tokenizer;
}

export function fixture(name: string): string {
  return join(packageRoot, "test/fixtures/evaluate", name);
}

/** An embedded model; with a scheme, its weights rounded to nearest and activations quantized on the fly. */
export function embeddedModel(backend: Backend, name: string, scheme?: string): TestModel {
  const checkpoint = openCheckpoint(join(packageRoot, "models", name));
  const model =
    scheme === undefined
      ? LanguageModel.load(backend, checkpoint)
      : simulatedModel(backend, checkpoint, parseScheme(scheme));
  return { model, tokenizer: loadTokenizer(checkpoint) };
}

/** Log-probabilities [position][token] of what follows each token. */
export function logProbabilities(model: LanguageModel, ids: readonly number[]): number[][] {
  using g = new Graph(model.backend);
  const logits = Array.from(g.read(model.logits(g, model.hidden(g, Int32Array.from(ids)))));
  const { vocabSize } = model.config;
  return ids.map((_, t) => {
    const row = logits.slice(t * vocabSize, (t + 1) * vocabSize);
    const largest = Math.max(...row);
    const total = row.reduce((sum, x) => sum + Math.exp(x - largest), 0);
    return row.map((x) => x - largest - Math.log(total));
  });
}

/** Sum of the continuation's log-probabilities, and whether each token was the likeliest. */
export function plainScore(
  model: LanguageModel,
  context: readonly number[],
  continuation: readonly number[],
): { logLikelihood: number; greedy: boolean } {
  const rows = logProbabilities(model, [...context, ...continuation]);
  let logLikelihood = 0;
  let greedy = true;
  for (const [i, id] of continuation.entries()) {
    const row = rows[context.length - 1 + i];
    logLikelihood += row[id];
    if (row.indexOf(Math.max(...row)) !== id) greedy = false;
  }
  return { logLikelihood, greedy };
}
