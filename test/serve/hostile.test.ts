/** The server against malformed, hostile and merely odd requests. */
import { connect } from "node:net";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { collect, type Engine } from "../../src/engine/engine.js";
import type { ServerOptions } from "../../src/serve/server.js";
import { translateChat, translateCompletion } from "../../src/serve/requests.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "../engine/fake-executor.js";
import { listen, TEMPLATE } from "./listen.js";

const KEYS = ["first-key-0123456789", "second-key-0123456789"] as const;
const cleanup: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const each of cleanup.splice(0).reverse()) await each();
});

async function start(options: Partial<ServerOptions> = {}): Promise<{
  url: string;
  engine: Engine;
}> {
  const executor = fakeExecutor({ maxPositions: 200 });
  const { engine } = await fakeEngine(executor, { pages: 200 }, fakeTokenizer(TEMPLATE));
  const { url, close } = await listen(engine, { bodyLimit: 1_000_000, ...options });
  cleanup.push(close);
  return { url, engine };
}

const post = (url: string, body: string, key = ""): Promise<Response> =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body,
  });

interface ErrorAnswer {
  error: { message: string; type: string; param: string | null; code: string | null };
}

async function errorOf(response: Response): Promise<ErrorAnswer["error"]> {
  const { error } = (await response.json()) as ErrorAnswer;
  expect(Object.keys(error).sort()).toEqual(["code", "message", "param", "type"]);
  expect(error.message.length).toBeLessThan(500);
  return error;
}

/** What a server answers to bytes. */
async function raw(url: string, bytes: string): Promise<{ status: number; body: string }> {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.write(bytes);
  let text = "";
  for await (const part of socket) text += String(part);
  const [head, body] = text.split("\r\n\r\n");
  return { status: Number(/^HTTP\/1.1 (\d+)/.exec(head)?.[1]), body };
}

describe("requests that nest without end", () => {
  it("are refused, and forgotten", async () => {
    const { url, engine } = await start();
    const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
    for (const path of ["/v1/chat/completions", "/v1/completions"]) {
      const body = `{"messages": [{"role": "user", "content": "a", "extra": ${deep}}]}`;
      const response = await post(url + path, body);
      expect(response.status).toBe(400);
      expect((await errorOf(response)).message).toContain("nested more than 100 deep");
    }
    const answered = await post(
      `${url}/v1/completions`,
      JSON.stringify({ prompt: "abc", user: `"${"[{".repeat(900)}`, max_tokens: 1 }),
    );
    expect(answered.status).toBe(200);
    expect(engine.stats.running).toBe(0);
  });

  it("and others that cannot go to another thread are refused in a library too", async () => {
    const held: boolean[] = [];
    const { engine } = await fakeEngine(
      fakeExecutor(),
      {},
      fakeTokenizer("{{ messages[0].content }}"),
      {
        onHold: (busy) => held.push(busy),
      },
    );
    await using _ = engine;
    let deep: unknown = "x";
    for (let i = 0; i < 100_000; i++) deep = [deep];
    const message = { role: "user", content: "abc" };
    for (const extra of [deep, () => 1, Symbol("a"), new WeakMap()])
      await expect(
        collect(engine.chat({ messages: [{ ...message, extra }], maxTokens: 1 })),
      ).rejects.toMatchObject({ code: "invalid" });
    // Nothing keeps the process: the thread was never held, or is let go again.
    expect(held.at(-1) ?? false).toBe(false);
    const { choices } = await collect(engine.chat({ messages: [message], maxTokens: 1 }));
    expect(choices).toHaveLength(1);
    expect(held.at(-1)).toBe(false);
  });
});

describe("limits", () => {
  it("count guessed keys and wrong places, and leave those with a key alone", async () => {
    const { url } = await start({ requestsPerMinute: 5, apiKeys: [KEYS[0]] });
    const statuses: number[] = [];
    for (let i = 0; i < 7; i++)
      statuses.push((await post(`${url}/v1/completions`, "{}", `wrong-key-number-${i}`)).status);
    expect(statuses).toEqual([401, 401, 401, 401, 401, 429, 429]);
    expect((await fetch(`${url}/nothing/here`)).status).toBe(429);
    expect((await fetch(`${url}/health`)).status).toBe(200);
    const own = { headers: { authorization: `Bearer ${KEYS[0]}` } };
    for (let i = 0; i < 5; i++) expect((await fetch(`${url}/v1/nothing`, own)).status).toBe(404);
    expect((await fetch(`${url}/v1/models`, own)).status).toBe(429);
  });
});

describe("models", () => {
  it.each([
    ["fake", "fake"],
    ["org/name", "org/name"],
    ["org/name", "org%2Fname"],
    ["v1.5-w4.gguf", "v1.5-w4.gguf"],
    ["a b", "a%20b"],
  ])("%s is found as %s", async (model, path) => {
    const { url } = await start({ model });
    for (const prefix of ["/v1/models/", "/v1//models/", "//v1/models/"]) {
      const response = await fetch(url + prefix + path);
      expect(response.status).toBe(200);
      expect(((await response.json()) as { id: string }).id).toBe(model);
    }
    expect((await fetch(`${url}/v1//models`)).status).toBe(200);
    expect((await fetch(`${url}/v1/models/`)).status).toBe(200);
  });
});

describe("errors have one shape", () => {
  it.each([
    ["a malformed URL", "/v1/%zz", 400],
    ["a malformed name", "/v1/models/%E0%A4%A", 400],
    ["an over-long name", `/v1/models/${"a".repeat(2000)}`, 404],
    ["a place that is not there", `/v1/${"b".repeat(2000)}`, 404],
  ])("%s", async (_name, path, status) => {
    const { url } = await start();
    const answer = await raw(
      url,
      `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
    );
    expect(answer.status).toBe(status);
    const { error } = JSON.parse(answer.body) as ErrorAnswer;
    expect(Object.keys(error).sort()).toEqual(["code", "message", "param", "type"]);
  });

  it.each([
    ["no HTTP", "hello\r\n\r\n", 400],
    ["no Host", "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400],
    [
      "an unknown expectation",
      "GET / HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\nConnection: close\r\n\r\n",
      417,
    ],
    [
      "headers without end",
      `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${"a".repeat(40_000)}\r\n\r\n`,
      431,
    ],
  ])("%s", async (_name, bytes, status) => {
    const { url } = await start();
    const answer = await raw(url, bytes);
    expect(answer.status).toBe(status);
    const { error } = JSON.parse(answer.body) as ErrorAnswer;
    expect(Object.keys(error).sort()).toEqual(["code", "message", "param", "type"]);
  });

  it.each([
    [{ logit_bias: { 99_999: 1 } }, "logit_bias"],
    [{ logit_bias: { a: 1 } }, "logit_bias.a"],
    [
      { logit_bias: Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [i, 1])) },
      "logit_bias",
    ],
    [{ repetition_penalty: 1e-300 }, "repetition_penalty"],
    [{ repetition_penalty: 1e300 }, "repetition_penalty"],
    [{ top_p: 2 }, "top_p"],
    [{ stop: ["a".repeat(1000)] }, "stop.0"],
    [{ max_tokens: 0 }, "max_tokens"],
    [{ ["x".repeat(50_000)]: 1 }, null],
  ])("and the client's spelling (%#)", async (settings, param) => {
    const { url } = await start({ strict: true });
    const response = await post(
      `${url}/v1/completions`,
      JSON.stringify({ prompt: "abc", ...settings }),
    );
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error.param).toBe(param);
    expect(error.message).not.toMatch(/logitBias|repetitionPenalty|topP|maxTokens/);
  });

  it("whatever is asked", () => {
    const wild = fc.oneof(
      fc.jsonValue({ maxDepth: 3 }),
      fc.constantFrom(1e-300, 1e300, -1, 0, 1, "a", [], {}, null, 2 ** 53),
    );
    const names =
      "model stream n temperature top_p logit_bias seed stop top_k min_p logprobs max_tokens prompt messages";
    const body = fc.dictionary(fc.constantFrom(...names.split(" ")), wild, { maxKeys: 8 });
    fc.assert(
      fc.property(body, fc.boolean(), (request, chat) => {
        const base = chat ? { messages: [{ role: "user", content: "a" }] } : { prompt: "a" };
        try {
          (chat ? translateChat : translateCompletion)({ ...base, ...request });
        } catch (error) {
          expect(error).toMatchObject({ name: "ApiError", status: 400 });
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe("--separate-keys", () => {
  it.each([true, false])("no key sees another's prompts in the cache: %s", async (separateKeys) => {
    const { url } = await start({ apiKeys: KEYS, separateKeys });
    const body = JSON.stringify({ prompt: "abcdefghijklmnop", max_tokens: 1 });
    const cached: number[] = [];
    for (const key of [KEYS[0], KEYS[1], KEYS[0], KEYS[1]]) {
      const answer = (await (await post(`${url}/v1/completions`, body, key)).json()) as {
        usage: { prompt_tokens_details: { cached_tokens: number } };
      };
      cached.push(answer.usage.prompt_tokens_details.cached_tokens);
    }
    expect(cached).toEqual(separateKeys ? [0, 0, 12, 12] : [0, 12, 12, 12]);
  });
});
