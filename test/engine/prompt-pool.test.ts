/** Prompts written down in other processes: what is refused, who gets a process, and that nothing is left behind. */
import { fork, type ChildProcess } from "node:child_process";
import { setMaxListeners } from "node:events";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { PromptPool } from "../../src/engine/prompt-pool.js";
import { PromptWriter, type Prompt } from "../../src/engine/prompt.js";
import { until } from "../until.js";

const MODEL = "models/tiny-llama";
const entry = fileURLToPath(new URL("../../src/engine/prompt-process.ts", import.meta.url));

let children: ChildProcess[] = [];
const pools: PromptPool[] = [];
afterEach(async () => {
  for (const pool of pools.splice(0)) pool[Symbol.dispose]();
  await until(() => children.every(hasEnded));
  children = [];
});

const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null;

/** A pool whose processes run the sources. */
function open(chatTemplate?: string, seconds = 60, path = MODEL): PromptPool {
  const launch = (): ChildProcess => {
    const child = fork(entry, {
      execArgv: ["--import", "tsx", "--max-old-space-size=256"],
      serialization: "advanced",
      stdio: ["ignore", "ignore", "ignore", "ipc"],
    });
    children.push(child);
    return child;
  };
  const pool = new PromptPool({ path, chatTemplate, seconds, launch });
  pools.push(pool);
  return pool;
}

const chat = (content: string): Prompt => ({ kind: "chat", messages: [{ role: "user", content }] });
const text = (prompt: string): Prompt => ({ kind: "generate", prompt });
const never = new AbortController().signal;
const options = { contextTokens: 256 };

const LOOP =
  "{% if messages[0].content == 'loop' %}{% for i in range(10000) %}{% for j in range(10000) %}" +
  "{% for k in range(10000) %}{% endfor %}{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}";

describe("prompts", () => {
  it("are what the engine's own thread makes of them", async () => {
    using checkpoint = openCheckpoint(MODEL);
    const writer = new PromptWriter(loadTokenizer(checkpoint), LOOP);
    const pool = open(LOOP);
    const long = "The ship was far from the land. ".repeat(60);
    for (const prompt of [text(long), text("Hello"), chat("Where is the ship?")])
      expect(await pool.write(prompt, { contextTokens: 4096 }, never)).toEqual(
        writer.write(prompt, 4096),
      );
    expect(children.length).toBe(1);
  });

  it("that are longer than the context are refused before they are cut into tokens", async () => {
    const pool = open();
    const refused = pool.write(text("a".repeat(300_000)), options, never);
    await expect(refused).rejects.toMatchObject({ code: "context" });
    await expect(refused).rejects.toThrow(/300000 characters, too many for the context of 256/);
  });

  it("that a template refuses say why, on a line that is not as long as they are", async () => {
    const pool = open("{{ raise_exception(messages[0].content) }}");
    const refused = pool.write(chat("no\n".repeat(10_000)), options, never);
    await expect(refused).rejects.toMatchObject({ code: "invalid" });
    const { message } = (await refused.catch((error: unknown) => error)) as Error;
    expect(message).toMatch(/refuses these messages: .*no no no/);
    expect(message.length).toBeLessThan(500);
    expect(message).not.toContain("\n");
  });

  it("that take too long end with one line, and the next ones are served", async () => {
    const pool = open(LOOP, 1);
    const refused = pool.write(chat("loop"), options, never);
    await expect(refused).rejects.toMatchObject({ code: "invalid" });
    await expect(refused).rejects.toThrow(/took more than 1 s; give fewer or shorter messages$/);
    expect(await pool.write(chat("the"), options, never)).not.toEqual([]);
    expect(children.map(hasEnded)).toEqual([true, false]);
  });

  // Each ends the whole process, where a thread's limit on its heap does not help.
  it.each([
    [
      "a list",
      "{% set n = namespace(x=['a']) %}{% for i in range(30) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x[0] }}",
    ],
    [
      "the parts of a text",
      "{% set n = namespace(x='abcdefgh') %}{% for i in range(24) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x.split('a') }}",
    ],
  ])("that take too much memory end with one line: %s", async (_what, template) => {
    const refused = open(template).write(chat("the"), options, never);
    await expect(refused).rejects.toMatchObject({ code: "invalid" });
    await expect(refused).rejects.toThrow(/of memory; give fewer or shorter messages$/);
  });

  it("fail where the model's files have gone", async () => {
    const pool = open(undefined, 60, "models/gone");
    const failed = pool.write(text("Hello"), options, never);
    await expect(failed).rejects.toMatchObject({ code: "failed" });
    await expect(failed).rejects.toThrow(/tokenizer cannot be loaded again: .*models\/gone/);
  });
});

describe("processes", () => {
  it("are shared: a client with any number of endless prompts has half of them", async () => {
    const pool = open(LOOP);
    const leaving = new AbortController();
    setMaxListeners(0, leaving.signal);
    const endless = Array.from({ length: 20 }, () =>
      pool.write(chat("loop"), { ...options, client: "a" }, leaving.signal),
    );
    const ends = Promise.allSettled(endless);
    expect(await pool.write(chat("the"), { ...options, client: "b" }, never)).not.toEqual([]);
    await Promise.all(
      Array.from({ length: 8 }, (_, i) =>
        pool.write(chat("the"), { ...options, client: `c${i % 3}` }, never),
      ),
    );
    expect(children.length).toBeLessThanOrEqual(4);
    leaving.abort(new Error("left"));
    expect((await ends).map(({ status }) => status)).toEqual(Array(20).fill("rejected"));
  });

  it("are not started for prompts that nobody waits for any more", async () => {
    const pool = open(LOOP);
    const leaving = new AbortController();
    setMaxListeners(0, leaving.signal);
    const prompts = Array.from({ length: 20 }, () =>
      pool.write(chat("loop"), options, leaving.signal),
    );
    leaving.abort(new Error("left"));
    for (const each of prompts) await expect(each).rejects.toThrow("left");
    expect(children.length).toBe(2);
  });

  it("that die of other causes fail their prompt, and others take their place", async () => {
    const pool = open(LOOP);
    const lost = pool.write(chat("loop"), options, never);
    await pool.write(chat("the"), { ...options, client: "b" }, never);
    children[0].kill("SIGKILL");
    await expect(lost).rejects.toMatchObject({ code: "failed" });
    await expect(lost).rejects.toThrow(/was ended by SIGKILL; try again$/);
    expect(await pool.write(chat("the"), options, never)).not.toEqual([]);
  });

  it("end by themselves when the engine has gone, also from the middle of a prompt", async () => {
    const pool = open(LOOP, 2);
    const lost = pool.write(chat("loop"), options, never).catch(() => undefined);
    await pool.write(chat("the"), { ...options, client: "b" }, never);
    for (const child of children) child.disconnect();
    await until(() => children.every(hasEnded));
    await lost;
  });
});
