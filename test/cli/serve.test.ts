/** The real server with a real model, asked by OpenAI's client. */

import { writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { chatModel } from "./chat-model.js";
import { planish } from "./run-program.js";
import { startServer, type Server } from "./start-server.js";
import { until } from "../until.js";

const KEY = "a-key-for-the-tests-0";
const directory = temporaryDirectory();
const model = chatModel(directory.file("chat-llama"));
const keyFile = directory.file("keys.txt");
writeFileSync(keyFile, `# for tests\n${KEY}\n`);

const start = (flags: readonly string[] = []): Promise<Server> => startServer(model, flags, KEY);

async function gauge(url: string, name: string): Promise<number> {
  const response = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${KEY}` } });
  return Number(new RegExp(`^planish_${name} (\\S+)$`, "m").exec(await response.text())?.[1]);
}

const chat = {
  model: "chat-llama",
  messages: [{ role: "user" as const, content: "Where is the ship?" }],
  max_completion_tokens: 24,
  seed: 7,
};

let server: Server;
beforeAll(async () => {
  server = await start(["--api-key-file", keyFile, "--max-body", "100KB"]);
});
afterAll(() => {
  server.child.kill("SIGKILL");
  directory[Symbol.dispose]();
});

describe("planish serve", () => {
  it("answers OpenAI's client, whole and streamed alike, alone and in company", async () => {
    const { client } = server;
    const whole = await client.chat.completions.create(chat);
    const text = whole.choices[0].message.content ?? "";
    expect(text.length).toBeGreaterThan(10);
    expect(whole.usage?.completion_tokens).toBeLessThanOrEqual(24);
    const streamed = async (seed: number): Promise<string> => {
      const request = { ...chat, seed };
      const stream = await client.chat.completions.create({ ...request, stream: true });
      let all = "";
      for await (const { choices } of stream) all += choices[0].delta.content ?? "";
      return all;
    };
    const together = await Promise.all([7, 8, 9, 10, 7, 11, 12, 13].map(streamed));
    expect(together[0]).toBe(text);
    expect(together[4]).toBe(text);
    expect(new Set(together).size).toBe(7);
  });

  it("completes as planish generate does", async () => {
    const prompt = "The ship was";
    const { choices } = await server.client.completions.create({
      model: "chat-llama",
      prompt,
      max_tokens: 12,
      temperature: 0,
    });
    const { stdout } = await planish(["generate", model, "--prompt", prompt, "--max-tokens", "12"]);
    expect(`${prompt}${choices[0].text}\n`).toBe(stdout);
  });

  it("holds answers to a schema, and refuses by name what it cannot", async () => {
    const { client } = server;
    const Ship = z.object({
      name: z.string().max(12),
      masts: z.int().min(1).max(5),
      cargo: z.array(z.enum(["wool", "iron"])).max(2),
    });
    const request = { ...chat, max_completion_tokens: 200, temperature: 1 };
    const response_format = zodResponseFormat(Ship, "ship");
    const { choices } = await client.chat.completions.parse({ ...request, n: 3, response_format });
    for (const { message, finish_reason: reason } of choices) {
      expect(reason).toBe("stop");
      expect(Ship.parse(message.parsed)).toEqual(JSON.parse(message.content!));
    }
    const stream = client.chat.completions.stream({ ...request, response_format });
    expect(Ship.parse((await stream.finalChatCompletion()).choices[0].message.parsed)).toBeTruthy();
    const schema = { type: "array", uniqueItems: true };
    const refused = client.chat.completions.create({
      ...request,
      response_format: { type: "json_schema", json_schema: { name: "x", schema } },
    });
    await expect(refused).rejects.toMatchObject({
      status: 400,
      param: "response_format",
      message: expect.stringContaining('"uniqueItems"'),
    });
  });

  it("asks for the key, and refuses what is malformed, huge or too long, and goes on", async () => {
    const { url } = server;
    const send = async (body: string, key = KEY): Promise<number> => {
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
        body,
      });
      const { error } = (await response.json()) as { error: { message: string } };
      expect(error.message).not.toBe("");
      return response.status;
    };
    const asking = (content: string): string =>
      JSON.stringify({ messages: [{ role: "user", content }] });
    expect(await send(asking("hello"), "no-key-at-all-000000")).toBe(401);
    expect(await send("{]")).toBe(400);
    expect(await send('{"messages": 5}')).toBe(400);
    expect(await send(asking("long ".repeat(5000)))).toBe(400);
    expect(await send(asking("x".repeat(200_000)))).toBe(413);
    expect((await server.client.chat.completions.create(chat)).choices).toHaveLength(1);
  });

  it("frees the places of clients that go", async () => {
    const controllers = Array.from({ length: 6 }, () => new AbortController());
    const asking = controllers.map(async ({ signal }, seed) => {
      const request = { ...chat, seed, max_completion_tokens: 900, logit_bias: { 0: -100 } };
      const stream = await server.client.chat.completions.create(
        { ...request, stream: true },
        { signal },
      );
      for await (const { choices } of stream) if (choices[0].delta.content) break;
    });
    await Promise.allSettled(asking);
    for (const controller of controllers) controller.abort();
    await until(
      async () =>
        (await gauge(server.url, "sequences_running")) === 0 &&
        (await gauge(server.url, "cache_pages_used")) === 0,
    );
    expect(await gauge(server.url, "generations_open")).toBe(0);
  });

  it("keeps others' tokens coming while a client's prompt loops or is long without end", async () => {
    const template = directory.file("loop.jinja");
    const loops = "{% for i in range(10000) %}";
    writeFileSync(
      template,
      `{% if messages[0].content == "loop" %}${loops.repeat(3)}${"{% endfor %}".repeat(3)}{% endif %}{{ messages[0].content }}`,
    );
    const { child, url, client, exit } = await start(["--chat-template", template]);
    const post = (path: string, body: object): Promise<Response> =>
      fetch(`${url}/v1/${path}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    let answered = false;
    const looping = post("chat/completions", { messages: [{ role: "user", content: "loop" }] });
    void looping.then(() => (answered = true));
    await until(async () => (await gauge(url, "sequences_waiting")) === 1);
    const long = await post("completions", { prompt: "a".repeat(300_000) });
    expect([400, 413]).toContain(long.status);
    expect(await long.json()).toMatchObject({ error: { code: "context_length_exceeded" } });
    const plain = await client.completions.create({ model: "chat-llama", prompt: "The ship was" });
    expect(plain.usage?.completion_tokens).toBeGreaterThan(0);
    const other = await client.chat.completions.create(chat);
    expect(other.usage?.completion_tokens).toBeGreaterThan(0);
    expect((await fetch(`${url}/health`, { signal: AbortSignal.timeout(1000) })).status).toBe(200);
    // All of that while the first one was still at it.
    expect(answered).toBe(false);
    const refused = await looping;
    expect(refused.status).toBe(400);
    const { error } = (await refused.json()) as { error: { message: string } };
    expect(error.message).toMatch(/^writing the prompt down .* took more than 10 s; /);
    child.kill("SIGTERM");
    expect(await exit).toBe(0);
  });

  it("tells the second of two servers on one port so, in a line", async () => {
    const { port } = new URL(server.url);
    const second = await planish(["serve", model, "--port", port]);
    expect(second).toMatchObject({ code: 1, stdout: "" });
    expect(second.stderr).toMatch(/^planish: address 127\.0\.0\.1:\d+ is taken .*\n$/);
    expect((await server.client.chat.completions.create(chat)).choices).toHaveLength(1);
  });

  it("finishes what runs on SIGTERM, refuses what comes, and exits with 0", async () => {
    const { client, child, url, exit, stdout } = await start();
    const request = { ...chat, max_completion_tokens: 600, logit_bias: { 0: -100 } };
    const stream = await client.chat.completions.create({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    });
    let counted = 0;
    let refused: number | undefined;
    for await (const { choices, usage } of stream) {
      counted = usage?.completion_tokens ?? counted;
      if (refused !== undefined || !choices[0]?.delta.content) continue;
      child.kill("SIGTERM");
      await delay(50);
      refused = (await fetch(`${url}/v1/completions`, { method: "POST" })).status;
    }
    // A body that does not parse is refused before it is known that none is taken.
    expect(refused).toBeGreaterThanOrEqual(400);
    expect(counted).toBe(600);
    expect(await exit).toBe(0);
    expect(stdout()).toMatch(/^served \d+ prompt tokens .* and 600 new tokens in \d+ s\n$/);
  });

  it.each([
    [["--port", "70000"], 2, "from 0 to 65,535"],
    [["--max-body", "much"], 2, "Give a size such as 500MB"],
    [["--kv-memory", "1KB"], 1, "holds no page of"],
    [["--kv-memory", "90000GB"], 1, "of memory are free; give less"],
    [["--api-key-file", "/nowhere"], 1, "cannot read API key file /nowhere: it does not exist"],
    [["--chat-template", "/nowhere"], 1, "cannot read chat template /nowhere: it does not exist"],
  ])("refuses %j", async (flags, code, message) => {
    const result = await planish(["serve", model, ...flags]);
    expect(result).toMatchObject({ code, stdout: "" });
    expect(result.stderr).toContain(message);
  });
});
