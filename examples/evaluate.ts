/**
 * Scores a quantized model beside the original: perplexity, divergence, and a zero-shot task.
 *
 *   npx tsx examples/evaluate.ts [ARTIFACT] [ORIGINAL] [ITEMS]
 */
import {
  evaluateDivergence,
  evaluateTasks,
  loadModel,
  loadTokenizer,
  openBackend,
  parseTasks,
  readDocuments,
  readTask,
  resolveModel,
  tokenizeCorpus,
} from "planish";

const [artifact = "tiny-llama-w4a4kv4", original = "tiny-llama", items = "20"] =
  process.argv.slice(2);

using backend = openBackend();
using quantized = loadModel(backend, await resolveModel(artifact));
using full = loadModel(backend, await resolveModel(original));
const tokenizer = loadTokenizer(full.checkpoint);

// The first windows of WikiText-2's test split.
const tokens = tokenizeCorpus(tokenizer, readDocuments("wikitext2"));
const { kl, topAgreement, model, reference } = await evaluateDivergence(
  quantized.model,
  full.model,
  tokens,
  { limit: 4 },
);
console.log(`perplexity ${model.perplexity.toFixed(2)}, was ${reference.perplexity.toFixed(2)}`);
console.log(`KL divergence ${kl.value.toFixed(4)} ± ${(kl.stderr ?? 0).toFixed(4)} nats a token`);
console.log(`same next token in ${(100 * topAgreement.value).toFixed(1)}% of places`);

const tasks = await Promise.all(
  parseTasks("piqa,arc_easy").map((task) => readTask(task, { limit: Number(items) })),
);
const { average } = await evaluateTasks(quantized.model, tokenizer, tasks);
console.log(
  `zero-shot ${(100 * average.value).toFixed(1)} ± ${(100 * (average.stderr ?? 0)).toFixed(1)}%`,
);
