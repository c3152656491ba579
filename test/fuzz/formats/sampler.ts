/** Sampler settings over logits that models should not have, but might. */
import { PlanishError } from "../../../src/common/errors.js";
import { Random } from "../../../src/common/random.js";
import { generateRequestSchema, parseRequest } from "../../../src/engine/request.js";
import { logProbabilities, Sampler } from "../../../src/engine/sampling.js";
import { ensure, type Target } from "../target.js";
import { decode, encode, JsonBase, pick } from "../mutate.js";

const SETTINGS = new JsonBase({
  prompt: [1, 2, 2], temperature: 0.8, topK: 5, topP: 0.9, minP: 0.05, repetitionPenalty: 1.3, presencePenalty: 0.5,
  frequencyPenalty: -0.5, logitBias: { "3": 5, "0": -100 }, seed: 5, logprobs: 4,
}); // prettier-ignore

const LOGITS = [
  0,
  -0,
  1,
  -1,
  20,
  -20,
  88,
  89,
  3.4e38,
  -3.4e38,
  1e-45,
  "Infinity",
  "-Infinity",
  "NaN",
];

export const samplerTarget: Target = {
  name: "sampler",
  generate(random) {
    const size = 1 + random.below(24);
    const strange = random.uniform();
    const logits = Array.from({ length: size }, () =>
      random.uniform() < strange ? pick(random, LOGITS) : Math.fround(random.normal() * 5),
    );
    return encode(`${JSON.stringify(logits)}\n${SETTINGS.mutated(random)}`);
  },
  run(input) {
    const text = decode(input);
    const end = text.indexOf("\n");
    const logits = Float32Array.from(
      (JSON.parse(text.slice(0, end)) as (number | string)[]).map(Number),
    );
    let given: unknown;
    try {
      given = JSON.parse(text.slice(end + 1));
    } catch {
      throw new PlanishError("settings are no JSON");
    }
    const { prompt, temperature = 0, ...rest } = parseRequest(generateRequestSchema, given);
    const ids = typeof prompt === "string" ? [] : prompt;
    const sampler = new Sampler(
      { temperature, ...rest },
      new Random(rest.seed ?? 0),
      logits.length,
      ids,
    );
    for (let step = 0; step < 3; step++) {
      const token = sampler.next(logits);
      ensure(
        Number.isSafeInteger(token) && token >= 0 && token < logits.length,
        `token ${token} was drawn`,
      );
      ensure(logits[token] > -Infinity, `token ${token} of logit ${logits[token]} was drawn`);
      const { logprob, top } = logProbabilities(logits, token, rest.logprobs ?? 0);
      for (const each of [logprob, ...top.map((entry) => entry.logprob)])
        ensure(Number.isFinite(each) && each <= 1e-9, `a log-probability of ${each}`);
    }
  },
};
