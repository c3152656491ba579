/** The HTTP server over an engine that computes nothing, asked by OpenAI's own client and by hand. */
import { connect } from "node:net";
import OpenAI from "openai";
import pino from "pino";
import { afterEach, describe, expect, it } from "vitest";
import type { Engine } from "../../src/engine/engine.js";
import type { HostOptions } from "../../src/engine/host.js";
import type { ChatServer, ServerOptions } from "../../src/serve/server.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "../engine/fake-executor.js";
import { until } from "../until.js";
import { listen, TEMPLATE } from "./listen.js";

const KEY = "test-key-0123456789";

interface Started {
  readonly server: ChatServer;
  readonly engine: Engine;
  readonly crash: (error: Error) => void;
  readonly url: string;
  readonly client: OpenAI;
}

const cleanup: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const each of cleanup.splice(0).reverse()) await each();
});

async function start(
  options: Partial<ServerOptions> = {},
  host: Partial<HostOptions> = {},
  stepMilliseconds = 0,
): Promise<Started> {
  const onStep = (): void => {
    const end = performance.now() + stepMilliseconds;
    while (performance.now() < end);
  };
  const executor = fakeExecutor({ onStep, maxPositions: 200 });
  const { engine, crash } = await fakeEngine(
    executor,
    { pages: 200, ...host },
    fakeTokenizer(TEMPLATE),
  );
  const { server, url, close } = await listen(engine, options);
  cleanup.push(close);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY, maxRetries: 0 });
  return { server, engine, crash, url, client };
}

const post = (
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Response> =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });

const messages = [{ role: "user" as const, content: "abc" }];
const chat = {
  model: "fake",
  messages,
  max_completion_tokens: 12,
  seed: 5,
  logit_bias: { 0: -100 },
};

describe("the API", () => {
  it("lists its model", async () => {
    const { client } = await start();
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(["fake"]);
    expect((await client.models.retrieve("fake")).id).toBe("fake");
    await expect(client.models.retrieve("other")).rejects.toBeInstanceOf(OpenAI.NotFoundError);
  });

  it("streams the very text that it gives whole, with usage", async () => {
    const { client } = await start();
    const whole = await client.chat.completions.create({ ...chat, n: 2 });
    expect(whole.usage).toMatchObject({
      prompt_tokens: 5,
      completion_tokens: 24,
      total_tokens: 29,
    });
    const texts = ["", ""];
    const reasons: (string | null)[] = [];
    let usage: OpenAI.CompletionUsage | null | undefined;
    const stream = await client.chat.completions.create({
      ...chat,
      n: 2,
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const { choices, usage: own } of stream) {
      for (const { index, delta, finish_reason: reason } of choices) {
        texts[index] += delta.content ?? "";
        if (reason) reasons[index] = reason;
      }
      usage = own ?? usage;
    }
    expect(texts).toEqual(whole.choices.map(({ message }) => message.content));
    expect(texts[0]).toHaveLength(12);
    expect(reasons).toEqual(["length", "length"]);
    expect(usage).toMatchObject({ completion_tokens: 24 });
  });

  it("stops before stop strings, and says so", async () => {
    const { client } = await start();
    const { choices } = await client.chat.completions.create(chat);
    const text = choices[0].message.content ?? "";
    const stop = text.slice(4, 7);
    const cut = await client.chat.completions.create({ ...chat, stop: [stop] });
    expect(cut.choices[0]).toMatchObject({
      message: { content: text.slice(0, text.indexOf(stop)) },
      finish_reason: "stop",
    });
  });

  it("reports log-probabilities in both forms", async () => {
    const { client } = await start();
    const { choices } = await client.chat.completions.create({
      ...chat,
      logprobs: true,
      top_logprobs: 2,
    });
    const content = choices[0].logprobs?.content ?? [];
    expect(content.map(({ token }) => token).join("")).toBe(choices[0].message.content);
    expect(content.every(({ top_logprobs: top }) => top.length === 2)).toBe(true);
    const completion = await client.completions.create({
      model: "fake",
      prompt: "abc",
      max_tokens: 4,
      logprobs: 3,
      logit_bias: { 0: -100 },
    });
    const [{ logprobs, text }] = completion.choices;
    expect(logprobs?.tokens?.join("")).toBe(text);
    expect(logprobs?.text_offset).toEqual([0, 1, 2, 3]);
    expect(Object.keys(logprobs?.top_logprobs?.[0] ?? {})).toHaveLength(3);
  });

  it("takes several prompts, as text and as token ids, streamed and not", async () => {
    const { client } = await start();
    const request = { model: "fake", max_tokens: 6, seed: 1, n: 2, logit_bias: { 0: -100 } };
    const texts = await client.completions.create({ ...request, prompt: ["abc", "bcd"] });
    const ids = await client.completions.create({
      ...request,
      prompt: [
        [1, 2, 3],
        [2, 3, 4],
      ],
    });
    expect(texts.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(ids.choices.map(({ text }) => text)).toEqual(texts.choices.map(({ text }) => text));
    const streamed = ["", "", "", ""];
    const stream = await client.completions.create({
      ...request,
      prompt: ["abc", "bcd"],
      stream: true,
    });
    for await (const { choices } of stream)
      for (const { index, text } of choices) streamed[index] += text;
    expect(streamed).toEqual(texts.choices.map(({ text }) => text));
  });

  it("takes messages in parts, and developers for the system", async () => {
    const { client } = await start();
    const plain = await client.chat.completions.create({
      ...chat,
      messages: [{ role: "system", content: "ab" }, ...messages],
    });
    const parts = await client.chat.completions.create({
      ...chat,
      messages: [
        { role: "developer", content: "ab" },
        {
          role: "user",
          content: [
            { type: "text", text: "ab" },
            { type: "text", text: "c" },
          ],
        },
      ],
    });
    expect(parts.choices).toEqual(plain.choices);
  });
});

describe("settings that nobody has heard of", () => {
  const body = {
    ...chat,
    some_new_setting: { deep: [1] },
    messages: [{ role: "user", content: [{ type: "text", text: "abc", cache_control: {} }] }],
  };

  it("are ignored, and told to the log", async () => {
    const lines: string[] = [];
    const logger = pino({ level: "warn" }, { write: (line) => void lines.push(line) });
    const { url, client } = await start({ logger });
    const response = await post(`${url}/v1/chat/completions`, body);
    const { choices } = (await response.json()) as OpenAI.ChatCompletion;
    const known = await client.chat.completions.create(chat);
    expect(choices[0].message.content).toBe(known.choices[0].message.content);
    expect(lines.join("")).toMatch(/"ignored":\["some_new_setting"\]/);
  });

  it("are refused by a strict server", async () => {
    const { url } = await start({ strict: true });
    const response = await post(`${url}/v1/chat/completions`, body);
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as { error: { message: string; type: string } };
    expect(error).toMatchObject({ type: "invalid_request_error" });
    expect(error.message).toMatch(/some_new_setting/);
  });
});

describe("pages of other origins", () => {
  const preflight = (url: string, origin: string): Promise<Response> =>
    fetch(`${url}/v1/chat/completions`, {
      method: "OPTIONS",
      headers: {
        origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
      },
    });

  it("may call where they are let, without a key for the question", async () => {
    const page = "https://page.example";
    const { url } = await start({ corsOrigins: [page], apiKeys: [KEY], requestsPerMinute: 100 });
    const asked = await preflight(url, page);
    expect(asked.status).toBe(204);
    expect(asked.headers.get("access-control-allow-origin")).toBe(page);
    expect(asked.headers.get("access-control-allow-headers")).toMatch(/authorization/);
    const headers = { authorization: `Bearer ${KEY}`, origin: page };
    const answered = await post(`${url}/v1/chat/completions`, { ...chat, stream: true }, headers);
    expect(answered.status).toBe(200);
    expect(answered.headers.get("access-control-allow-origin")).toBe(page);
    expect(await answered.text()).toContain("[DONE]");
    const other = await preflight(url, "https://other.example");
    expect(other.headers.get("access-control-allow-origin")).not.toBe("https://other.example");
    const refused = await post(`${url}/v1/chat/completions`, chat, { origin: page });
    expect(refused.status).toBe(401);
    expect(refused.headers.get("access-control-allow-origin")).toBe(page);
  });

  it("may not where they are not", async () => {
    const { url } = await start();
    const asked = await preflight(url, "https://page.example");
    expect(asked.headers.get("access-control-allow-origin")).toBeNull();
    expect(((await asked.json()) as { error: { type: string } }).error.type).toBe(
      "not_found_error",
    );
  });
});

describe("what it refuses", () => {
  it.each<[string, unknown, number, RegExp]>([
    ["no JSON", "{", 400, /not valid JSON/],
    ["an empty body", "", 400, /empty|expected object/],
    ["a list", [], 400, /expected object/],
    ["no messages", { messages: [] }, 400, /^messages: /],
    ["messages of another type", { messages: "hello" }, 400, /^messages: /],
    ["an unknown role", { messages: [{ role: "root", content: "a" }] }, 400, /^messages.0.role: /],
    [
      "a picture",
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: {} }] }] },
      400,
      /^messages.0.content/,
    ],
    ["tools", { messages, tools: [{ type: "function", function: { name: "f" } }] }, 400, /^tools/],
    [
      "a form of output that there is not",
      { messages, response_format: { type: "yaml" } },
      400,
      /^response_format/,
    ],
    [
      "a prototype for a body",
      '{"messages": [{"role": "user", "content": "a"}], "__proto__": {"n": 5}}',
      400,
      /not valid JSON/,
    ],
    ["a temperature out of range", { messages, temperature: 3 }, 400, /^temperature: /],
    ["infinitely many choices", { messages, n: 1e9 }, 400, /^n: /],
    ["a bias for no token", { messages, logit_bias: { a: 1 } }, 400, /logitBias|logit_bias/],
    ["top_logprobs without logprobs", { messages, top_logprobs: 2 }, 400, /set logprobs/],
    ["another model", { messages, model: "gpt-9" }, 404, /"gpt-9" is not served; this is fake/],
    [
      "a prompt beyond the context",
      { messages: [{ role: "user", content: "a".repeat(300) }] },
      400,
      /context is 200/,
    ],
    [
      "a body beyond the limit",
      { messages: [{ role: "user", content: "a".repeat(20_000) }] },
      413,
      /too large/,
    ],
    [
      "nesting without end",
      `{"messages":${"[".repeat(4000)}${"]".repeat(4000)}}`,
      400,
      /nested more than 100 deep/,
    ],
  ])("refuses %s", async (_name, body, status, message) => {
    const { url, engine } = await start();
    for (const stream of [false, true]) {
      const sent =
        stream && typeof body === "object" && !Array.isArray(body) ? { ...body, stream } : body;
      const response = await post(`${url}/v1/chat/completions`, sent);
      expect(response.status).toBe(status);
      const { error } = (await response.json()) as { error: { message: string; type: string } };
      expect(error.message).toMatch(message);
      expect(error.type).toMatch(/_error$/);
    }
    expect((await fetch(`${url}/health`)).status).toBe(200);
    expect(engine.stats.pagesUsed).toBe(0);
  });

  it("refuses bodies that are not JSON, and places that are not there", async () => {
    const { url } = await start();
    const text = await post(`${url}/v1/completions`, "prompt", { "content-type": "text/plain" });
    expect(text.status).toBe(415);
    expect((await fetch(`${url}/v1/nothing`)).status).toBe(404);
    expect((await fetch(`${url}/../../etc/passwd`)).status).toBe(404);
    expect((await fetch(`${url}/v1/chat/completions`)).status).toBe(404);
  });

  it("refuses other host names on this machine's own address", async () => {
    const { url } = await start();
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.write("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    let text = "";
    for await (const part of socket) text += String(part);
    expect(text).toMatch(/^HTTP\/1.1 403 /);
  });

  it("asks for a key where keys are set, everywhere but for health and the page", async () => {
    const { url, client } = await start({ apiKeys: ["another-key-0123456789", KEY] });
    for (const [path, status] of [
      ["/v1/models", 401],
      ["/metrics", 401],
      ["/health", 200],
      ["/", 200],
    ] as const)
      expect((await fetch(url + path)).status).toBe(status);
    const wrong = new OpenAI({ baseURL: `${url}/v1`, apiKey: `${KEY}x`, maxRetries: 0 });
    await expect(wrong.chat.completions.create(chat)).rejects.toBeInstanceOf(
      OpenAI.AuthenticationError,
    );
    expect((await client.chat.completions.create(chat)).choices).toHaveLength(1);
  });

  it("limits the rate of a client", async () => {
    const { client, url } = await start({ requestsPerMinute: 3, apiKeys: [KEY] });
    for (let i = 0; i < 3; i++) await client.models.list();
    await expect(client.models.list()).rejects.toBeInstanceOf(OpenAI.RateLimitError);
    const response = await fetch(`${url}/v1/models`, {
      headers: { authorization: `Bearer ${KEY}` },
    });
    expect(response.headers.get("retry-after")).toMatch(/^\d+$/);
    expect((await fetch(`${url}/health`)).status).toBe(200);
  });

  it("answers 503 when too many wait", async () => {
    const { client } = await start({}, { maxRunning: 1, maxWaiting: 1 }, 2);
    const outcomes = await Promise.allSettled(
      Array.from({ length: 5 }, () =>
        client.chat.completions.create({ ...chat, max_completion_tokens: 60 }),
      ),
    );
    const errors = outcomes.flatMap((o) => (o.status === "rejected" ? [o.reason as unknown] : []));
    expect(errors.length).toBeGreaterThan(0);
    expect(errors.length).toBeLessThan(5);
    for (const error of errors) expect(error).toMatchObject({ status: 503, code: "overloaded" });
  });
});

describe("clients that go", () => {
  it.each([true, false])("frees the place of a client that goes (streamed: %s)", async (stream) => {
    const { client, engine } = await start({}, {}, 2);
    const controller = new AbortController();
    const { signal } = controller;
    const asking = client.chat.completions.create(
      { ...chat, max_completion_tokens: 150, stream },
      { signal },
    );
    await until(() => engine.stats.running === 1);
    controller.abort();
    await asking.catch(() => undefined);
    await until(() => engine.stats.running === 0 && engine.stats.pagesUsed === 0);
    expect(engine.stats.generatedTokens).toBe(0);
  });

  it("survives clients that go between two pieces of their answer", async () => {
    const { client, engine } = await start({}, {}, 1);
    await Promise.all(
      Array.from({ length: 12 }, async (_, seed) => {
        const controller = new AbortController();
        const request = { ...chat, seed, max_completion_tokens: 150 };
        const stream = await client.chat.completions.create(
          { ...request, stream: true },
          { signal: controller.signal },
        );
        for await (const { choices } of stream) if (choices[0].delta.content) break;
        controller.abort();
      }),
    );
    await until(() => engine.stats.running === 0 && engine.stats.pagesUsed === 0);
    expect((await client.chat.completions.create(chat)).choices).toHaveLength(1);
  });

  it("finishes what runs when it drains, and takes nothing new", async () => {
    const { client, server, url } = await start({}, {}, 3);
    const stream = await client.chat.completions.create({
      ...chat,
      max_completion_tokens: 100,
      stream: true,
    });
    let text = "";
    const reading = (async () => {
      for await (const { choices } of stream) text += choices[0].delta.content ?? "";
    })();
    await until(() => text !== "");
    const draining = server.drain(10_000);
    await expect(client.chat.completions.create(chat)).rejects.toMatchObject({ status: 503 });
    expect((await fetch(`${url}/health`)).status).toBe(503);
    await reading;
    expect(text).toHaveLength(100);
    expect(await draining).toBe(0);
    await expect(fetch(`${url}/health`)).rejects.toThrow();
  });

  it("cuts off what does not finish in time", async () => {
    const { client, server, engine } = await start({}, {}, 5);
    const asking = client.chat.completions.create({ ...chat, max_completion_tokens: 190 });
    await until(() => engine.stats.running === 1);
    const failed = expect(asking).rejects.toThrow();
    expect(await server.drain(30)).toBe(1);
    await failed;
  });
});

describe("what it shows", () => {
  it("counts in Prometheus' form", async () => {
    const { client, url } = await start();
    await client.chat.completions.create(chat);
    const text = await (await fetch(`${url}/metrics`)).text();
    const value = (name: string): number =>
      Number(new RegExp(`^planish_${name} (\\S+)$`, "m").exec(text)?.[1]);
    expect(value("generated_tokens_total")).toBe(12);
    expect(value("prompt_tokens_total")).toBe(5);
    expect(value("sequences_running")).toBe(0);
    expect(value("cache_pages")).toBe(200);
    expect(value("generations_open")).toBe(0);
    expect(value("time_to_first_token_seconds_count")).toBe(1);
    expect(value('http_requests_total{route="/v1/chat/completions",status="200"}')).toBe(1);
    expect(text).toContain("process_resident_memory_bytes");
    // The names by which gateways find a server that has room.
    for (const name of ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"])
      expect(text).toMatch(new RegExp(`^# TYPE vllm:${name} gauge\\nvllm:${name} 0$`, "m"));
  });

  it("is not healthy when its engine has failed", async () => {
    const { client, crash, url } = await start();
    crash(new Error("out of memory"));
    await until(() => true);
    const { status } = await fetch(`${url}/health`);
    expect(status).toBe(503);
    await expect(client.chat.completions.create(chat)).rejects.toMatchObject({ status: 500 });
  });

  it("serves a page that loads nothing from elsewhere", async () => {
    const { url } = await start();
    const response = await fetch(url);
    const page = await response.text();
    expect(response.headers.get("content-security-policy")).toContain("default-src 'none'");
    // Its scripts are inside; what they could fetch is the policy's, and the browser's tests', to say.
    const markup = page.replace(/(<script>)[^]*?(<\/script>)/g, "$1$2");
    expect(markup.match(/<script>/g)).toHaveLength(3);
    expect(markup).not.toMatch(/<script[^>]/);
    expect(markup).not.toMatch(/(?:src|href)="(?!data:)/);
    expect(markup).not.toMatch(/https?:/);
  });
});
