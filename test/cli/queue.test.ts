/** Runs on a queue: the real program on several sides, a real Redis, and a store between them. */
import { readdirSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { noRedis, RedisServer } from "../queue/redis-server.js";
import { fileHashes, SMALL_RUN, temporaryDirectory, type TemporaryDirectory } from "./artifacts.js";
import { planish } from "./run-program.js";

describe.skipIf(noRedis !== undefined)(`a queue${noRedis ? ` (${noRedis})` : ""}`, () => {
  let directory: TemporaryDirectory;
  let redis: RedisServer;
  let whole: Record<string, string>;

  const quantize = (out: string, ...more: string[]) =>
    planish([
      ...["quantize", "models/tiny-llama", "--out", directory.file(out), "--no-verdict"],
      ...[...SMALL_RUN, ...more],
    ]);
  const queue = () => ["--queue", redis.url, "--store", directory.file("store")];
  const worker = (...more: string[]) =>
    planish(["worker", ...queue(), "--threads", "1", "--json", ...more]);

  beforeAll(async () => {
    directory = temporaryDirectory();
    redis = await RedisServer.start(directory.path);
    const { code, stderr } = await quantize("whole");
    expect(code, stderr).toBe(0);
    whole = fileHashes(directory.file("whole"));
  });
  afterAll(async () => {
    await redis.kill();
    directory[Symbol.dispose]();
  });

  it("gives the bytes of a run by itself, and leaves nothing in store and queue", async () => {
    const serving = worker("--idle", "4");
    const { code, stderr } = await quantize("queued", ...queue());
    expect(code, stderr).toBe(0);
    expect(fileHashes(directory.file("queued"))).toEqual(whole);
    const served = await serving;
    expect(served.code, served.stderr).toBe(0);
    expect(JSON.parse(served.stdout)).toMatchObject({ blocks: 8, failed: 0 });
    const files = readdirSync(directory.file("store"), { recursive: true, withFileTypes: true });
    expect(files.filter((entry) => entry.isFile())).toEqual([]);
    const jobs = await planish(["jobs", "--queue", redis.url, "--json"]);
    expect(JSON.parse(jobs.stdout)).toMatchObject({
      runs: [{ model: "tiny-llama", blocks: 8, done: 8, state: "finished" }],
      workers: [],
    });
  });
});
