/** What the model's generation config says of sampling holds where a request says nothing. */
import OpenAI from "openai";
import { afterEach, describe, expect, it } from "vitest";
import { modelSampling, type ModelSampling } from "../../src/engine/model-sampling.js";
import { translateChat } from "../../src/serve/requests.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "../engine/fake-executor.js";
import { listen, TEMPLATE } from "./listen.js";

const cleanup: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const each of cleanup.splice(0).reverse()) await each();
});

const messages = [{ role: "user" as const, content: "abc" }];

async function ask(sampling: ModelSampling, settings: object = {}): Promise<string[]> {
  const { engine } = await fakeEngine(fakeExecutor(), {}, fakeTokenizer(TEMPLATE), { sampling });
  const { url, close } = await listen(engine);
  cleanup.push(close);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
  const request = {
    model: "fake",
    messages,
    n: 4,
    seed: 1,
    max_tokens: 20,
    logit_bias: { 0: -100 },
  };
  const { choices } = await client.chat.completions.create({ ...request, ...settings });
  return choices.map(({ message }) => message.content ?? "");
}

describe("a model's own sampling", () => {
  it("is read as far as it makes sense", () => {
    const config = {
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      min_p: 0.05,
      repetition_penalty: 1.1,
    };
    expect(modelSampling(config)).toEqual({
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      minP: 0.05,
      repetitionPenalty: 1.1,
    });
    const senseless = {
      temperature: -1,
      top_k: 2.5,
      top_p: 0,
      min_p: "1",
      repetition_penalty: NaN,
    };
    expect(modelSampling({ ...senseless, do_sample: false, eos_token_id: 2 })).toEqual({});
    expect(modelSampling()).toEqual({});
  });

  it("holds where a request says nothing, and only there", async () => {
    const greedy = await ask({ temperature: 0 });
    expect(new Set(greedy).size).toBe(1);
    const plain = await ask({});
    expect(new Set(plain).size).toBeGreaterThan(1);
    expect(await ask({ temperature: 0 }, { temperature: 1 })).toEqual(plain);
    expect(await ask({ topK: 1 })).toEqual(greedy);
    expect(await ask({ topK: 1 }, { top_k: -1 })).toEqual(plain);
  });

  it("gives way to each setting of its own", () => {
    const sampling = { temperature: 0.5, topK: 5, topP: 0.5, minP: 0.5, repetitionPenalty: 1.5 };
    const [own] = translateChat({ messages }, { sampling }).requests;
    expect(own).toMatchObject(sampling);
    const settings = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };
    const [asked] = translateChat({ messages, ...settings }, { sampling }).requests;
    expect(asked).toMatchObject({
      temperature: 1,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
    });
  });
});
