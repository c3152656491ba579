/** The engine's two halves and what passes between them, over a model that computes nothing. */
import { describe, expect, it } from "vitest";
import { collect, Engine } from "../../src/engine/engine.js";
import type { GenerateEvent, GenerateRequest } from "../../src/engine/request.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "./fake-executor.js";
import { until } from "../until.js";

const request = (rest: Partial<GenerateRequest> = {}): GenerateRequest => ({
  prompt: "abc",
  maxTokens: 8,
  temperature: 1,
  seed: 3,
  ignoreEnd: true,
  ...rest,
});

describe("Engine", () => {
  it("gives the same text for a seed, alone or among others", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const alone = await collect(engine.generate(request({ n: 2 })));
    const together = await Promise.all(
      [3, 4, 3].map((seed) => collect(engine.generate(request({ n: 2, seed })))),
    );
    expect(together[0]).toEqual({ ...alone, usage: together[0].usage });
    expect(together[2].choices).toEqual(alone.choices);
    expect(together[1].choices).not.toEqual(alone.choices);
    expect(alone.choices[0].text).not.toBe(alone.choices[1].text);
    expect(alone.usage).toEqual({ promptTokens: 3, cachedTokens: 0, generatedTokens: 16 });
  });

  it("sends acceptance first, then tokens, then an end for each choice, then usage", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const types: string[] = [];
    for await (const event of engine.generate(request({ maxTokens: 2 }))) types.push(event.type);
    expect(types).toEqual(["accepted", "token", "token", "finish", "end"]);
  });

  it("reports the likeliest tokens with their spelling", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const { choices } = await collect(
      engine.generate(request({ temperature: 0, logprobs: 3, maxTokens: 1 })),
    );
    const [{ text, logprobs }] = choices[0].tokens;
    expect(logprobs?.top).toHaveLength(3);
    expect(logprobs?.top[0]).toEqual({ ...logprobs, top: undefined });
    expect(logprobs).toMatchObject({ text, bytes: [text.charCodeAt(0)] });
    expect(logprobs?.logprob).toBeLessThan(0);
  });

  it("never chooses an id that the tokenizer has no token for, and lists its likeliest without", async () => {
    const plain = fakeTokenizer();
    const spell = plain.idToToken.bind(plain);
    const idToToken = (id: number): string | undefined => (id % 3 === 1 ? undefined : spell(id));
    const decode: typeof plain.decode = (ids) => {
      for (const id of Array.from(ids)) expect(idToToken(id)).toBeDefined();
      return plain.decode(ids);
    };
    const holed = { ...plain, idToToken, decode };
    const { engine } = await fakeEngine(fakeExecutor(), {}, holed);
    await using _ = engine;
    const biased = request({ logitBias: { 4: 100, 7: 100 }, maxTokens: 40, logprobs: 5 });
    const { choices } = await collect(engine.generate(biased));
    expect(choices[0].tokens).toHaveLength(40);
    for (const { token, logprobs } of choices[0].tokens) {
      expect(token % 3).not.toBe(1);
      expect(logprobs?.top.some((other) => other.token % 3 === 1)).toBe(false);
    }
  });

  it.each([
    [{ repetitionPenalty: 1e-300 }, "repetitionPenalty"],
    [{ repetitionPenalty: 1e300 }, "repetitionPenalty"],
    [{ temperature: NaN }, "temperature"],
    [{ temperature: Infinity }, "temperature"],
    [{ logitBias: { 1: 1e300 } }, "logitBias.1"],
    [{ topP: 0 }, "topP"],
    [{ minP: 2 }, "minP"],
    [{ presencePenalty: -1e300 }, "presencePenalty"],
  ])("refuses %j", async (settings, field) => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    await expect(collect(engine.generate(request(settings)))).rejects.toMatchObject({
      code: "invalid",
      message: expect.stringContaining(`${field}: `) as string,
    });
  });

  it("draws a seed of its own and tells it", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const first = await collect(engine.generate(request({ seed: undefined })));
    const again = await collect(engine.generate(request({ seed: first.seed })));
    expect(again.choices).toEqual(first.choices);
  });

  it("writes messages down by the chat template", async () => {
    const template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}w";
    const { engine } = await fakeEngine(fakeExecutor(), {}, fakeTokenizer(template));
    await using _ = engine;
    const messages = [
      { role: "user", content: "ab" },
      { role: "assistant", content: "c" },
      { role: "user", content: "d" },
    ];
    const { prompt: _prompt, ...rest } = request();
    const chat = await collect(engine.chat({ ...rest, messages }));
    const plain = await collect(engine.generate(request({ prompt: "uabacudw" })));
    expect(chat.choices).toEqual(plain.choices);
  });

  it.each<[string, Partial<GenerateRequest>, string, RegExp]>([
    ["an empty prompt", { prompt: "" }, "invalid", /no tokens/],
    [
      "unknown token ids",
      { prompt: [1, 99] },
      "invalid",
      /token id 99 is outside the vocabulary of 24/,
    ],
    [
      "a prompt beyond the context",
      { prompt: "a".repeat(50) },
      "context",
      /prompt has 50 tokens, and the model's context is 40; shorten it/,
    ],
    ["a hopelessly long text", { prompt: "a".repeat(500) }, "context", /500 characters, too many/],
    [
      "more tokens than the cache holds",
      { maxTokens: 31 },
      "context",
      /needs 33 positions, and the KV cache of .* holds 32/,
    ],
    ["a temperature below 0", { temperature: -1 }, "invalid", /^temperature: /],
    [
      "a bias for a token that is none",
      { logitBias: { 24: 1 } },
      "invalid",
      /logitBias: token id 24/,
    ],
    ["too many choices", { n: 1000 }, "invalid", /^n: /],
    ["settings that do not exist", { ["topX" as "topK"]: 1 }, "invalid", /topX/],
  ])("refuses %s", async (_name, rest, code, message) => {
    const { engine } = await fakeEngine(fakeExecutor({ maxPositions: 40 }), { pages: 8 });
    await using _ = engine;
    await expect(collect(engine.generate(request(rest)))).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(engine.stats).toMatchObject({ running: 0, waiting: 0, pagesUsed: 0 });
  });

  it("refuses chats of a model without template, and says what to do", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const messages = [{ role: "user", content: "a" }];
    await expect(collect(engine.chat({ messages }))).rejects.toThrow(
      /no chat template.*--chat-template/,
    );
  });

  it("refuses requests when too many wait, and takes them again later", async () => {
    const { engine } = await fakeEngine(fakeExecutor(), { maxRunning: 1, maxWaiting: 1 });
    await using _ = engine;
    const outcomes = await Promise.allSettled(
      Array.from({ length: 6 }, () => collect(engine.generate(request({ maxTokens: 100 })))),
    );
    const refused = outcomes.flatMap((o) => (o.status === "rejected" ? [o.reason as unknown] : []));
    expect(refused.length).toBeGreaterThan(0);
    expect(refused.length).toBeLessThan(6);
    for (const error of refused) expect(error).toMatchObject({ code: "busy" });
    await collect(engine.generate(request()));
  });

  it("ends at once when it is aborted, and frees what it held", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    const controller = new AbortController();
    const events: GenerateEvent[] = [];
    const reading = (async () => {
      for await (const event of engine.generate(
        request({ maxTokens: 250, signal: controller.signal }),
      )) {
        events.push(event);
        if (events.length === 5) controller.abort();
      }
    })();
    await expect(reading).rejects.toMatchObject({ name: "AbortError" });
    expect(events).toHaveLength(5);
    await until(() => engine.stats.pagesUsed === 0 && engine.stats.running === 0);
  });

  it("frees what a reader holds who walks away", async () => {
    const { engine } = await fakeEngine(fakeExecutor());
    await using _ = engine;
    for await (const event of engine.generate(request({ maxTokens: 250 })))
      if (event.type === "token") break;
    await until(() => engine.stats.pagesUsed === 0 && engine.stats.running === 0);
  });

  it("makes no more than a reader takes, and others go on meanwhile", async () => {
    const { engine } = await fakeEngine(fakeExecutor(), { pages: 200 });
    await using _ = engine;
    const slow = engine.generate(request({ maxTokens: 400, n: 1 }));
    await slow.next();
    await collect(engine.generate(request({ maxTokens: 300 })));
    // The slow one is ahead of its reader by the limit and no more.
    await until(() => engine.stats.running === 1);
    expect(engine.stats.generatedTokens).toBe(300);
    const used = engine.stats.pagesUsed;
    await collect(engine.generate(request({ maxTokens: 3 })));
    expect(engine.stats.pagesUsed).toBe(used);
    expect(used * 4).toBeLessThan(80);
    // It then gets everything.
    let tokens = 0;
    for await (const event of slow) tokens += event.type === "token" ? 1 : 0;
    expect(tokens).toBe(400);
  });

  it("reports a failed step to those concerned", async () => {
    const onStep = (): void => {
      throw new Error("the device is gone");
    };
    const { engine } = await fakeEngine(fakeExecutor({ onStep }));
    await using _ = engine;
    await expect(collect(engine.generate(request()))).rejects.toMatchObject({
      code: "failed",
      message: "the device is gone",
    });
  });

  it("turns the end of its thread into an error for everybody", async () => {
    const { engine, crash } = await fakeEngine(fakeExecutor(), { maxRunning: 1 });
    const readers = [1, 2].map((seed) =>
      collect(engine.generate(request({ maxTokens: 250, seed }))),
    );
    crash(new Error("out of memory"));
    for (const reader of readers)
      await expect(reader).rejects.toThrow("stopped unexpectedly: out of memory");
    expect(engine.isOpen).toBe(false);
    await expect(collect(engine.generate(request()))).rejects.toMatchObject({ code: "failed" });
  });

  it("closes: what runs fails as closed, and its executor is disposed", async () => {
    const executor = fakeExecutor();
    const { engine } = await fakeEngine(executor);
    const reader = engine.generate(request({ maxTokens: 250 }));
    await reader.next();
    await engine.close();
    const rest = async (): Promise<void> => {
      for await (const _event of reader);
    };
    await expect(rest()).rejects.toMatchObject({ code: "closed" });
    await expect(collect(engine.generate(request()))).rejects.toMatchObject({ code: "closed" });
    expect(executor.disposed).toBe(true);
  });

  it.each([
    ...[0, 1.5, NaN, 1e9, "1"].map((value) => ["maxRunning", value]),
    ...[-1, Infinity, "a"].map((value) => ["maxWaiting", value]),
    ...[0, 1e12].map((value) => ["stepTokens", value]),
    ...[NaN, -1, 0, Infinity, "5GB"].map((value) => ["kvMemory", value]),
    ...[-1, 2.5, 1e9].map((value) => ["threads", value]),
    ...[0, NaN, "x"].map((value) => ["promptSeconds", value]),
    ["chatTemplate", 5],
  ])("refuses %s %j by name, before a thread is started", async (name, value) => {
    await expect(Engine.load("x", { [name]: value })).rejects.toThrow(
      new RegExp(`^${name} must be [^\\n]+, found [^\\n]+$`),
    );
  });
});
