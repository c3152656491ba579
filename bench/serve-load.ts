/**
 * Loads `planish serve` with streaming clients, stops a third of them midway, and watches the server's memory:
 *
 *   npm run build && npx tsx bench/serve-load.ts [--model M] [--clients 32] [--seconds 60] [--threads N] [--vanish]
 *
 * With `--vanish`, a third of the clients leave every stream that they begin after some chunks, from the first minute to
 * the last. The server's memory is printed on stderr every 30 s; ten minutes: `--vanish --seconds 600`.
 * Every stream is checked: one chunk for each token that its usage counts, a finish, and [DONE]. Prints one JSON document.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: flags } = parseArgs({
  options: {
    model: { type: "string", default: "models/tiny-llama" },
    clients: { type: "string", default: "32" },
    seconds: { type: "string", default: "60" },
    threads: { type: "string", default: "2" },
    vanish: { type: "boolean", default: false },
  },
});
const clients = Number(flags.clients);
const seconds = Number(flags.seconds);
const root = fileURLToPath(new URL("..", import.meta.url));

interface Tally {
  requests: number;
  /** Streams that their client left. */
  vanished: number;
  tokens: number;
  /** Streams whose chunks did not agree with their usage, or that did not end as they should. */
  damaged: number;
  errors: string[];
  firstTokenSeconds: number[];
}

const newTally = (): Tally => ({
  requests: 0,
  vanished: 0,
  tokens: 0,
  damaged: 0,
  errors: [],
  firstTokenSeconds: [],
});

async function startServer(): Promise<{ child: ChildProcess; url: string }> {
  const args = ["dist/cli/main.js", "serve", flags.model, "--port", "0", "--rate-limit", "0"];
  const child = spawn(
    process.execPath,
    [...args, "--threads", flags.threads, "--log-level", "error"],
    {
      cwd: root,
      stdio: ["ignore", "ignore", "pipe"],
    },
  );
  let text = "";
  for await (const part of child.stderr) {
    text += String(part);
    const url = /listening on (\S+)/.exec(text)?.[1];
    if (url !== undefined) {
      child.stderr.resume();
      return { child, url };
    }
  }
  throw new Error(`the server did not start: ${text}`);
}

/** One streamed completion, left after `leaveAfter` chunks. Half of the prompts share a beginning of some pages. */
async function stream(
  url: string,
  seed: number,
  tally: Tally,
  signal: AbortSignal,
  leaveAfter = Infinity,
): Promise<void> {
  const shared = "The ship was far from the land when the storm came up in the night. ".repeat(6);
  const prompt = `${seed % 2 === 0 ? shared : ""}Number ${seed} said:`;
  const started = performance.now();
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      prompt,
      seed,
      max_tokens: 32 + (seed % 5) * 32,
      ignore_eos: true,
      // A chunk for every token, also for those without text.
      logprobs: 0,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  if (!response.ok || !response.body) throw new Error(`status ${response.status}`);
  let rest = "";
  let chunks = 0;
  let counted = -1;
  let finished = false;
  let done = false;
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\n\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "data: [DONE]") done = true;
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6)) as {
        choices: { finish_reason: string | null }[];
        usage?: { completion_tokens: number };
      };
      if (event.usage) counted = event.usage.completion_tokens;
      const [choice] = event.choices;
      if (!choice) continue;
      if (choice.finish_reason !== null) finished = true;
      else {
        if (chunks === 0) tally.firstTokenSeconds.push((performance.now() - started) / 1000);
        chunks += 1;
        tally.tokens += 1;
        if (chunks >= leaveAfter) {
          tally.vanished += 1;
          return;
        }
      }
    }
  }
  tally.requests += 1;
  if (!done || !finished || chunks !== counted) tally.damaged += 1;
}

async function client(
  url: string,
  first: number,
  tally: Tally,
  signal: AbortSignal,
  vanishes: boolean,
): Promise<void> {
  for (let seed = first; !signal.aborted; seed += 1000) {
    const gone = new AbortController();
    const either = AbortSignal.any([signal, gone.signal]);
    try {
      await stream(url, seed, tally, either, vanishes ? 1 + (seed % 20) : undefined);
    } catch (error) {
      if (!signal.aborted) tally.errors.push(String(error));
    } finally {
      // Closes the connection in mid-stream where the client left.
      gone.abort();
    }
  }
}

function residentMegabytes(pid: number): number {
  const line = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
  return Math.round(Number(line?.[1]) / 1000);
}

async function gauge(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
}

/** Runs `count` clients; those with a number divisible by three go after half of the time. */
async function load(url: string, count: number, time: number, kill: boolean): Promise<Tally> {
  const tally = newTally();
  const controllers = Array.from({ length: count }, () => new AbortController());
  const running = controllers.map((c, i) =>
    client(url, i + 1, tally, c.signal, flags.vanish && kill && i % 3 === 0),
  );
  await delay((time / 2) * 1000);
  if (kill && !flags.vanish) controllers.forEach((c, i) => i % 3 === 0 && c.abort());
  await delay((time / 2) * 1000);
  for (const controller of controllers) controller.abort();
  await Promise.all(running);
  return tally;
}

const median = (values: number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

const { child, url } = await startServer();
const pid = child.pid ?? 0;
const memory: number[] = [];
const watch = setInterval(() => memory.push(residentMegabytes(pid)), flags.vanish ? 30_000 : 2000);
const began = performance.now();
const print = setInterval(() => {
  const elapsed = Math.round((performance.now() - began) / 1000);
  process.stderr.write(`${elapsed} s: ${residentMegabytes(pid)} MB\n`);
}, 30_000);
const singleSeconds = Math.min(10, seconds / 3);
const single = await load(url, 1, singleSeconds, false);
memory.push(residentMegabytes(pid));
const tally = await load(url, clients, seconds, true);
await delay(1000);
const after = {
  running: await gauge(url, "planish_sequences_running"),
  waiting: await gauge(url, "planish_sequences_waiting"),
  pagesUsed: await gauge(url, "planish_cache_pages_used"),
  open: await gauge(url, "planish_generations_open"),
};
clearInterval(watch);
clearInterval(print);
const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
child.kill("SIGTERM");
const rates = { single: single.tokens / singleSeconds, together: tally.tokens / seconds };
process.stdout.write(
  `${JSON.stringify(
    {
      model: flags.model,
      clients,
      seconds,
      requests: tally.requests,
      vanished: tally.vanished,
      tokens: tally.tokens,
      damaged: tally.damaged,
      errors: tally.errors.length,
      firstErrors: tally.errors.slice(0, 3),
      medianFirstTokenSeconds: median(tally.firstTokenSeconds),
      tokensPerSecond: rates,
      ratio: rates.together / rates.single,
      residentMegabytes: memory,
      after,
      exitCode: await ended,
    },
    undefined,
    1,
  )}\n`,
);
