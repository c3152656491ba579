/**
 * Decoding with and without look-up, in turns: steps, processor time and wall time of prompts that ask for an edited copy of
 * code, and of ones that do not repeat themselves. npm run build && npx tsx bench/look-up.ts MODEL [rounds]
 */
import type * as EngineModule from "../src/engine/index.js";

// The built program: the engine starts a thread of its own.
const built = new URL("../dist/engine/index.js", import.meta.url);
const { collect, Engine } = (await import(built.href)) as typeof EngineModule;

const CODE = `function total(items) {
  let sum = 0;
  for (const item of items) {
    if (item.count > 0 && item.price > 0) {
      sum += item.count * item.price;
    }
  }
  return sum;
}

function average(items) {
  if (items.length === 0) return 0;
  return total(items) / items.length;
}
`;
const PROMPTS = {
  "edited copy": `Copy this code, but call the function "total" "sumOf" instead:\n\n${CODE}\nHere is the code, with the function renamed:\n\n`,
  story: "Once upon a time, in a village between two rivers, there lived a clockmaker who",
};

const [model, rounds = "3"] = process.argv.slice(2);
if (!model) throw new Error("give a model");

for (const [name, prompt] of Object.entries(PROMPTS)) {
  const times: Record<string, number[]> = { plain: [], guessed: [] };
  const steps: Record<string, number> = {};
  const texts = new Set<string>();
  for (let round = 0; round < Number(rounds); round++)
    for (const kind of round % 2 === 0 ? ["plain", "guessed"] : ["guessed", "plain"]) {
      await using engine = await Engine.load(model, { lookUp: kind === "guessed", threads: 1 });
      const request = { prompt, maxTokens: 160, temperature: 0 };
      await collect(engine.generate({ ...request, maxTokens: 1 }));
      const before = engine.stats.steps;
      const cpu = process.cpuUsage();
      const { choices } = await collect(engine.generate(request));
      const { user } = process.cpuUsage(cpu);
      times[kind].push(user / 1e6);
      steps[kind] = engine.stats.steps - before;
      texts.add(choices[0].text);
      if (kind === "guessed") steps["right"] = engine.stats.guessedRight;
      if (kind === "guessed") steps["guessed rows"] = engine.stats.guessed;
    }
  const median = (list: number[]) => [...list].sort((a, b) => a - b)[list.length >> 1];
  const ratio = median(times["plain"]) / median(times["guessed"]);
  process.stdout.write(
    `${name}: ${JSON.stringify(steps)}, processor seconds ${JSON.stringify(times)}, ratio ${ratio.toFixed(2)}, ${texts.size === 1 ? "same text" : "TEXTS DIFFER"}\n`,
  );
}
