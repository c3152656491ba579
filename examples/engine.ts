/**
 * Runs a model inside a program: two prompts at once, the first printed as it grows.
 *
 *   npx tsx examples/engine.ts [MODEL]
 */
import { collect, Engine, resolveModel } from "planish";

const [model = "tiny-llama"] = process.argv.slice(2);

// The engine computes in a thread of its own; this one stays free.
await using engine = await Engine.load(await resolveModel(model));

const second = collect(engine.generate({ prompt: "The city was", maxTokens: 16 }));
process.stdout.write("The ship");
for await (const event of engine.generate({ prompt: "The ship", maxTokens: 16, seed: 1 }))
  if (event.type === "token") process.stdout.write(event.text);

const { choices, usage } = await second;
console.log(`\nThe city was${choices[0].text}`);
console.log(`${usage.promptTokens} tokens read, ${usage.generatedTokens} written`);
