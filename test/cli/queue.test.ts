/** Runs on a queue: the real program on several sides, a real Redis, and a store between them. */
import type { ChildProcess } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Queue } from "bullmq";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readQuantizationInfo } from "../../src/quantize/artifact/quantization-info.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { noRedis, RedisServer } from "../queue/redis-server.js";
import { fileHashes, SMALL_RUN, temporaryDirectory, type TemporaryDirectory } from "./artifacts.js";
import { planish, root, type Outcome } from "./run-program.js";

const BLOCKS = 3;

describe.skipIf(noRedis !== undefined)(`a queue${noRedis ? ` (${noRedis})` : ""}`, () => {
  let directory: TemporaryDirectory;
  let redis: RedisServer;
  let whole: Record<string, string>;

  const quantize = (
    out: string,
    more: readonly string[] = [],
    options: Parameters<typeof planish>[1] = {},
  ) =>
    planish(
      [
        ...["quantize", directory.file("model"), "--out", directory.file(out), "--no-verdict"],
        ...[...SMALL_RUN, ...more],
      ],
      options,
    );
  const queue = () => ["--queue", redis.url, "--store", directory.file("store")];
  /** A worker until it is told to end; `done` stops it and has its summary. */
  const worker = (...more: string[]) => {
    let child: ChildProcess | undefined;
    const outcome = planish(["worker", ...queue(), "--threads", "1", "--json", ...more], {
      onStderr: (started) => (child = started),
    });
    const done = async (): Promise<Outcome & { summary: unknown }> => {
      child?.kill("SIGTERM");
      const ended = await outcome;
      expect(ended.code, ended.stderr).toBe(0);
      return { ...ended, summary: JSON.parse(ended.stdout) };
    };
    return { done, outcome };
  };
  const jobs = async (...more: string[]): Promise<Record<string, unknown>> => {
    const { code, stdout, stderr } = await planish([
      "jobs",
      "--queue",
      redis.url,
      "--json",
      ...more,
    ]);
    expect(code, stderr).toBe(0);
    return JSON.parse(stdout) as Record<string, unknown>;
  };
  beforeAll(async () => {
    directory = temporaryDirectory();
    await writeFirstBlocks(join(root, "models/tiny-llama"), directory.file("model"), BLOCKS);
    redis = await RedisServer.start(directory.path);
    const { code, stderr } = await quantize("whole");
    expect(code, stderr).toBe(0);
    whole = fileHashes(directory.file("whole"));
  });
  afterAll(async () => {
    await redis.kill();
    directory[Symbol.dispose]();
  });

  it("gives the bytes of a run by itself, and leaves nothing in the store; what is no job is refused", async () => {
    const serving = worker();
    // With states of every second block, a worker runs the block between.
    const { code, stderr } = await quantize("queued", [...queue(), "--states-every", "2"]);
    expect(code, stderr).toBe(0);
    expect(fileHashes(directory.file("queued"))).toEqual(whole);
    const { runs } = (await jobs()) as { runs: { queue: string; run: string }[] };
    expect(runs).toMatchObject([
      { model: "model", blocks: BLOCKS, done: BLOCKS, state: "finished" },
    ]);
    const raw = new Queue(runs[0].queue, {
      connection: { host: "127.0.0.1", port: redis.port },
      prefix: "planish",
    });
    await raw.add("strange", { run: "../../x", command: "rm" });
    while ((await raw.getFailedCount()) === 0) await sleep(50);
    expect(await raw.getFailed()).toMatchObject([{ name: "strange", attemptsMade: 1 }]);
    const { stderr: said, summary } = await serving.done();
    expect(summary).toMatchObject({ blocks: BLOCKS, failed: 0 });
    expect(said).toMatch(/refused: job \d+: run: /);
    await raw.obliterate({ force: true });
    await raw.close();
    const files = readdirSync(directory.file("store"), { recursive: true, withFileTypes: true });
    expect(files.filter((entry) => entry.isFile())).toEqual([]);
  });

  it("waits for workers of its class, is cancelled, and goes on where it was", async () => {
    const cancelled: Promise<Record<string, unknown>>[] = [];
    const first = await quantize("again", queue(), {
      onStderr: (_child, text) => {
        if (cancelled.length > 0 || !/no worker serves this run/.test(text)) return;
        const run = /run ([0-9a-f]{16}):/.exec(text)?.[1] ?? "";
        cancelled.push(jobs(run.slice(0, 8), "--cancel"));
      },
    });
    expect(first.code, first.stderr).toBe(1);
    expect(first.stderr).toMatch(
      /no worker serves this run, which is for .*, 1 threads; start one with: planish worker .* --threads 1\n/,
    );
    expect(first.stderr).toMatch(
      /was cancelled .*nothing is finished yet; go on with: .* --resume\n$/,
    );
    expect(await cancelled[0]).toMatchObject({ state: "cancelled" });
    // One thread more sums in another order: not these workers.
    const others = worker("--threads", "2");
    const one = worker("--once");
    const stopped = await quantize("again", [...queue(), "--resume"], {
      onStderr: (child, text) => {
        if (!child.killed && /^block \d/m.test(text)) child.kill("SIGINT");
      },
    });
    expect(stopped.code, stopped.stderr).toBe(130);
    expect(stopped.stderr).toMatch(new RegExp(`[1-9] of ${BLOCKS} blocks are kept; go on with`));
    expect(JSON.parse((await one.outcome).stdout)).toMatchObject({ blocks: 1 });
    const rest = worker();
    const last = await quantize("again", [...queue(), "--resume"]);
    expect(last.code, last.stderr).toBe(0);
    expect(fileHashes(directory.file("again"))).toEqual(whole);
    expect((await rest.done()).summary).toMatchObject({ blocks: BLOCKS - 1 });
    expect((await others.done()).summary).toMatchObject({ blocks: 0, machine: { threads: 2 } });
  });

  it("takes any device with --mix, and the artifact says which", async () => {
    const serving = worker("--threads", "2");
    const { code, stderr } = await quantize("mixed", [...queue(), "--mix"]);
    expect(code, stderr).toBe(0);
    const info = readQuantizationInfo(directory.file("mixed"));
    expect(info.machine?.threads).toBe(1);
    expect(info.layers.map(({ machine }) => machine?.threads)).toEqual([2, 2, 2]);
    await serving.done();
  });

  it("ends with one line when workers and run have different stores, or nobody is there", async () => {
    const serving = worker("--store", directory.file("elsewhere"));
    const { code, stderr } = await quantize("apart", queue());
    expect(code, stderr).toBe(1);
    expect(stderr).toMatch(/its data were damaged, 7 times; see that all workers use the store/);
    await serving.done();
    const nobody = await quantize("nobody", ["--queue", "redis://127.0.0.1:1", "--store", "x"]);
    expect(nobody.code).toBe(1);
    expect(nobody.stderr).toMatch(
      /^planish: the queue at redis:\/\/127.0.0.1:1 cannot be used: nobody answers there; [^\n]+\n$/,
    );
  });
});
