/** A program that uses the installed package as README shows; its argument is the artifact's directory. */

import {
  evaluatePerplexity,
  generate,
  loadModel,
  loadTokenizer,
  openBackend,
  openCheckpoint,
  quantize,
  readDocuments,
  tokenizeCorpus,
} from "planish";

const out = process.argv[2];
const backend = openBackend();
const source = openCheckpoint("models/tiny-llama");
const { info } = await quantize({ backend, source, out, method: "rtn", scheme: "w4a8kv8" });
const loaded = loadModel(backend, out);
const tokenizer = loadTokenizer(loaded.checkpoint);
const { text } = await generate(loaded.model, tokenizer, { prompt: "The ship was", maxTokens: 8 });
const tokens = tokenizeCorpus(
  tokenizer,
  readDocuments("wikitext2").map((text) => text.slice(0, 10_000)),
);
const options = { limit: 2, seqLen: 128 };
const { perplexity } = await evaluatePerplexity(loaded.model, tokens, options);
console.log(JSON.stringify({ scheme: info.scheme, text, perplexity }));
