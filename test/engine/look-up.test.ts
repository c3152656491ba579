/** Guesses from what came before: they spare steps where a text repeats itself, and change nothing of any text. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { collect } from "../../src/engine/engine.js";
import { LookUp } from "../../src/engine/look-up.js";
import { fakeEngine, fakeExecutor, fakeLogits, FAKE_VOCABULARY } from "./fake-executor.js";

/** A model that likes to copy what followed, eight tokens before; `zeal` says how much. */
const copying = (zeal: number) => (tokens: readonly number[]) => {
  const logits = fakeLogits(tokens);
  logits[0] = -100;
  const next = tokens.at(-8);
  if (next !== undefined) logits[next] += zeal;
  return logits;
};

const request = { prompt: "abcdefghabcdefgh", maxTokens: 120, temperature: 1, n: 1 };

async function run(zeal: number, lookUp: boolean, seed: number, temperature = 1) {
  let steps = 0;
  const executor = fakeExecutor({ logitsOf: copying(zeal), onStep: () => void (steps += 1) });
  const { engine } = await fakeEngine(executor, { lookUp });
  const { choices } = await collect(engine.generate({ ...request, seed, temperature }));
  const { stats } = engine;
  await engine.close();
  return { text: choices[0].text, steps, stats };
}

describe("looking up what followed", () => {
  it.each([0, 1])(
    "gives the same texts in fewer steps where they repeat (temperature %s)",
    async (temperature) => {
      for (const zeal of [0, 4, 8, 20])
        for (const seed of [1, 2]) {
          const plain = await run(zeal, false, seed, temperature);
          const guessed = await run(zeal, true, seed, temperature);
          expect(guessed.text).toBe(plain.text);
          expect(guessed.text).toHaveLength(120);
          expect(plain.stats.guessed).toBe(0);
          expect(guessed.steps).toBe(plain.steps - guessed.stats.guessedRight);
          if (zeal === 20) expect(guessed.steps).toBeLessThan(plain.steps / 3);
          // Where nothing repeats it soon rests: 120 steps take few rows in vain.
          const wasted = guessed.stats.guessed - guessed.stats.guessedRight;
          if (zeal === 0) expect(wasted).toBeLessThan(16);
        }
    },
  );

  it("draws each token as often as its probability says", async () => {
    // One token behind a prompt whose continuation is guessed; without it the text is the same, seed by seed.
    const count = new Map<string, number>();
    const executor = fakeExecutor({ logitsOf: copying(3) });
    const { engine } = await fakeEngine(executor, { lookUp: true });
    const draws = 600;
    for (let seed = 0; seed < draws; seed++) {
      const { choices } = await collect(engine.generate({ ...request, seed, maxTokens: 3 }));
      const second = choices[0].text.startsWith("a") ? choices[0].text[1] : undefined;
      if (second !== undefined) count.set(second, (count.get(second) ?? 0) + 1);
    }
    expect(engine.stats.guessed).toBeGreaterThan(draws / 4);
    await engine.close();
    const tokens = [...Array.from(request.prompt, (char) => char.charCodeAt(0) - 96), 1];
    const logits = copying(3)(tokens);
    const weights = Array.from(logits, Math.exp);
    const total = weights.reduce((a, b) => a + b, 0);
    const drawn = [...count.values()].reduce((a, b) => a + b, 0);
    // χ² with at most 23 degrees of freedom: above 60 once in 10⁵ runs, and seeds are fixed.
    let chi = 0;
    for (let token = 1; token < FAKE_VOCABULARY; token++) {
      const expected = (drawn * weights[token]) / total;
      chi += ((count.get(String.fromCharCode(96 + token)) ?? 0) - expected) ** 2 / expected;
    }
    expect(drawn).toBeGreaterThan(50);
    expect(chi).toBeLessThan(60);
  });

  it("guesses only what followed the same end before, and no more than it may", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(3), { minLength: 1, maxLength: 40 }),
        fc.nat(12),
        fc.array(fc.nat(3), { maxLength: 8 }),
        (tokens, most, right) => {
          const lookUp = new LookUp();
          const all = [...tokens];
          for (const kept of right) {
            const guess = lookUp.guess(all, most);
            expect(guess.length).toBeLessThanOrEqual(most);
            if (guess.length > 0) {
              const pattern = [...all.slice(-2), ...guess].join();
              const text = all.join();
              expect(text.includes(pattern)).toBe(true);
            }
            lookUp.learn(guess.length, Math.min(kept, guess.length));
            all.push(...guess.slice(0, kept), kept);
          }
        },
      ),
    );
  });
});
