/** Requests whose prompts are being written down elsewhere: they wait, can be left, and hold nobody up. */
import { describe, expect, it } from "vitest";
import { collect } from "../../src/engine/engine.js";
import type { Prompts } from "../../src/engine/preparing.js";
import { EngineError } from "../../src/engine/request.js";
import { until } from "../until.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "./fake-executor.js";

/** Prompts are written when the test says so. */
function heldPrompts() {
  const held: { client?: string; write: () => void; signal: AbortSignal }[] = [];
  const state = { disposed: false };
  const prompts: Prompts = {
    write: (_prompt, { client }, signal) =>
      new Promise((resolve, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason as Error));
        held.push({ client, signal, write: () => resolve([1, 2, 3]) });
      }),
    [Symbol.dispose]: () => void (state.disposed = true),
  };
  return { prompts, held, state };
}

async function open(maxWaiting = 4) {
  const { prompts, held, state } = heldPrompts();
  const tokenizer = fakeTokenizer("{{ messages[0].content }}");
  const { engine } = await fakeEngine(fakeExecutor(), { maxWaiting }, tokenizer, { prompts });
  const chat = (client?: string, signal?: AbortSignal) =>
    collect(
      engine.chat({
        messages: [{ role: "user", content: "a" }],
        maxTokens: 4,
        seed: 1,
        ignoreEnd: true,
        client,
        signal,
      }),
    );
  return { engine, chat, held, state };
}

const codeOf = (answer: Promise<unknown>): Promise<unknown> =>
  answer.then(
    () => "served",
    (error: unknown) => (error instanceof EngineError ? error.code : error),
  );

describe("requests being prepared", () => {
  it("wait while others are served, and are answered as if written here", async () => {
    const { engine, chat, held } = await open();
    const answer = chat();
    await until(() => engine.stats.waiting === 1);
    const request = { prompt: [1, 2, 3], maxTokens: 4, seed: 1, ignoreEnd: true };
    const other = await collect(engine.generate(request));
    const short = await collect(engine.generate({ ...request, prompt: "abc" }));
    expect(short).toEqual(other);
    held[0].write();
    expect((await answer).choices).toEqual(other.choices);
    expect(engine.stats.waiting).toBe(0);
    await engine.close();
  });

  it("are for chats and long texts", async () => {
    const { engine, held } = await open();
    const answer = collect(engine.generate({ prompt: "a".repeat(1001), maxTokens: 4 }));
    await until(() => held.length === 1);
    held[0].write();
    expect((await answer).usage.promptTokens).toBe(3);
    await engine.close();
  });

  it("can be left", async () => {
    const { engine, chat, held } = await open();
    const leaving = new AbortController();
    const answer = chat("a", leaving.signal);
    await until(() => held.length === 1);
    leaving.abort(new Error("gone"));
    await expect(answer).rejects.toThrow("gone");
    await until(() => held[0].signal.aborted && engine.stats.waiting === 0);
    // It comes too late.
    held[0].write();
    await engine.close();
  });

  it("fail as closed when the engine closes, and the pool with it", async () => {
    const { engine, chat, held, state } = await open();
    const code = codeOf(chat());
    await until(() => held.length === 1);
    await engine.close();
    expect(await code).toBe("closed");
    expect(state.disposed).toBe(true);
    expect(held[0].signal.aborted).toBe(true);
  });

  it("of one client leave places in a full line to another's", async () => {
    const { engine, chat, held } = await open(4);
    const greedy = Array.from({ length: 4 }, () => codeOf(chat("a")));
    await until(() => held.length === 4);
    expect(await codeOf(chat("a"))).toBe("busy");
    const second = codeOf(chat("b"));
    expect(await greedy[3]).toBe("busy");
    const third = codeOf(chat("b"));
    // Two each: now everybody who comes is told to come again.
    expect(await Promise.race([third, greedy[2]])).toBe("busy");
    await until(() => engine.stats.waiting === 4);
    for (const each of held) each.write();
    const codes = await Promise.all([...greedy, second, third]);
    expect(codes.filter((code) => code === "served").length).toBe(4);
    await engine.close();
  });
});
