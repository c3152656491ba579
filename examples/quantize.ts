/**
 * Quantizes a model to 4 bits from a program, and says what it cost.
 *
 *   npx tsx examples/quantize.ts [MODEL] [OUT]
 */
import { openBackend, openCheckpoint, quantize, resolveModel } from "planish";

const [model = "tiny-llama", out = "tiny-llama-w4a4kv4"] = process.argv.slice(2);

// A path, a short name or hf:org/name; what is not here yet is fetched.
const path = await resolveModel(model);
using source = openCheckpoint(path);
using backend = openBackend();

const { info, bytes, sourceBytes, layers } = await quantize({
  backend,
  source,
  out,
  method: "flatquant",
  scheme: "w4a4kv4",
  // Few windows and one pass, to be done in seconds; leave `recipe` out for the preset as it is.
  preset: "fast",
  recipe: { samples: 8, seqLen: 128, epochs: 1 },
  seed: 0,
});

console.log(`${out}: ${info.scheme} by ${info.method}, ${bytes} of ${sourceBytes} bytes`);
for (const [block, { errorRounded, errorFinal }] of layers.entries())
  console.log(
    `block ${block}: ${((100 * errorFinal) / errorRounded).toFixed(0)}% of the error of rounding`,
  );
