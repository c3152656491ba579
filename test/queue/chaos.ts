/**
 * Runs on a queue to which everything happens at random moments: workers are killed (SIGKILL), Redis dies and comes back from
 * its append-only file, the store takes nothing for a while, bytes in it flip, a job is there twice. Each run must
 * end in the bytes of one that nothing disturbed, or in one clear error from which --resume gets there. Used by
 * test/cli/queue-chaos.test.ts, and by `npm run test:queue -- --runs 30 [--seed N]`.
 */
import { spawn, type ChildProcess } from "node:child_process";
import {
  existsSync,
  openSync,
  readdirSync,
  readSync,
  statSync,
  writeSync,
  closeSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Queue } from "bullmq";
import { Random } from "../../src/common/random.js";
import { fileHashes, SMALL_RUN } from "../cli/artifacts.js";
import { planish, root } from "../cli/run-program.js";
import { RedisServer } from "./redis-server.js";

export const FAULTS = ["worker", "redis", "store", "blob", "twice"] as const;
export type Fault = (typeof FAULTS)[number];

/** A store and how to trouble it. */
export interface ChaosStore {
  /** What `--store` takes. */
  readonly address: string;
  /** Environment of the programs that use it. */
  readonly env: Readonly<Record<string, string>>;
  /** Where blobs lie as files. */
  readonly files: string;
  /** Has the store refuse what is written for some time; absent: this one cannot. */
  readonly refuse?: (milliseconds: number) => Promise<void>;
}

export interface ChaosOptions {
  readonly directory: string;
  /** A model's directory. */
  readonly model: string;
  readonly store: ChaosStore;
  readonly runs: number;
  readonly seed: number;
  /** Faults of each run; one of each kind is drawn in turn. */
  readonly faults?: readonly Fault[];
  /** Faults in one run. */
  readonly each?: number;
  /** Milliseconds that the store refuses, and that Redis is away. */
  readonly away: number;
  readonly log?: (line: string) => void;
}

export interface ChaosReport {
  readonly happened: Readonly<Record<string, number>>;
  /** Runs that ended with an error first, and the errors. */
  readonly errors: readonly string[];
}

/** @throws Error when a run ends in other bytes, or in an error from which --resume does not help. */
export async function chaos(options: ChaosOptions): Promise<ChaosReport> {
  const { directory, store, log = () => undefined } = options;
  const { runs, seed, faults = FAULTS, each = 2 } = options;
  const whole = join(directory, "whole");
  const began = performance.now();
  const first = await planish(command(options, "whole"));
  if (first.code !== 0) throw new Error(first.stderr);
  const length = performance.now() - began;
  const hashes = JSON.stringify(fileHashes(whole));
  const random = new Random(seed);
  const redis = await RedisServer.start(directory);
  const happened: Record<string, number> = {};
  const errors: string[] = [];
  const troupe = new Troupe(redis.url, store);
  try {
    for (let i = 0; i < 2; i++) troupe.hire();
    for (let run = 0; run < runs; run++) {
      const out = `run-${run}`;
      const over = new AbortController();
      const chosen = Array.from(
        { length: each },
        (_, i) => faults[(run * each + i) % faults.length],
      );
      const trouble = chosen.map(async (fault) => {
        const wait = random.uniform() * length;
        await sleep(wait, undefined, { signal: over.signal }).catch(() => undefined);
        // Where there is nothing yet that it could happen to, it waits for its chance.
        let what: string | undefined;
        while (!over.signal.aborted && what === undefined) {
          what = await troupe.suffer(fault, redis, options, random);
          if (what === undefined)
            await sleep(100, undefined, { signal: over.signal }).catch(() => undefined);
        }
        if (what === undefined) return;
        happened[fault] = (happened[fault] ?? 0) + 1;
        log(`run ${run}: ${what}`);
      });
      let ended = await planish(troupe.command(options, out), { env: store.env });
      over.abort();
      await Promise.all(trouble);
      for (let again = 0; ended.code === 1 && again < 3; again++) {
        const lines = ended.stderr.trim().split("\n");
        errors.push(lines[lines.length - 1]);
        log(`run ${run}: ${lines[lines.length - 1]}`);
        // Before anything is begun there is nothing to resume: the same command does it.
        const begun = existsSync(join(directory, `${out}.run`));
        if (begun && !/--resume/.test(ended.stderr)) throw new Error(ended.stderr);
        const more = begun ? ["--resume"] : [];
        ended = await planish([...troupe.command(options, out), ...more], { env: store.env });
      }
      if (ended.code !== 0) throw new Error(`run ${run} (seed ${seed}): ${ended.stderr}`);
      if (JSON.stringify(fileHashes(join(directory, out))) !== hashes)
        throw new Error(`run ${run} ended in other bytes (seed ${seed})`);
      if (existsSync(join(directory, `${out}.run`)))
        throw new Error(`run ${run} left its journal (seed ${seed})`);
      log(`run ${run}: the same bytes`);
    }
    return { happened, errors };
  } finally {
    await troupe.dismiss();
    await redis.kill();
  }
}

function command({ directory, model }: ChaosOptions, out: string): string[] {
  return ["quantize", model, "--out", join(directory, out), "--no-verdict", ...SMALL_RUN];
}

/** Milliseconds until a worker that ended is started again. */
const REST = 300;

/** The workers, and what happens to them. */
class Troupe {
  private readonly workers = new Set<ChildProcess>();
  private dismissed = false;

  constructor(
    private readonly url: string,
    private readonly store: ChaosStore,
  ) {}

  command(options: ChaosOptions, out: string): string[] {
    return [...command(options, out), "--queue", this.url, "--store", this.store.address];
  }

  hire(): void {
    if (this.dismissed) return;
    const child = spawn(
      process.execPath,
      [join(root, "dist", "cli", "main.js"), "worker", "--queue", this.url].concat([
        "--store",
        this.store.address,
        "--threads",
        "1",
        "--takeover",
        "2",
        "--quiet",
      ]),
      { cwd: root, env: { ...process.env, NODE_OPTIONS: "", ...this.store.env }, stdio: "ignore" },
    );
    this.workers.add(child);
    child.once("exit", () => {
      this.workers.delete(child);
      // One that begins while Redis is away ends at once, and whatever keeps services alive starts it again.
      if (!this.dismissed) setTimeout(() => this.hire(), REST).unref();
    });
  }

  /** What happened, in words; undefined when there was nothing that it could happen to. */
  async suffer(
    fault: Fault,
    redis: RedisServer,
    { away }: ChaosOptions,
    random: Random,
  ): Promise<string | undefined> {
    switch (fault) {
      case "worker": {
        const all = [...this.workers];
        if (all.length === 0) return undefined;
        all[random.below(all.length)].kill("SIGKILL");
        return "a worker is killed";
      }
      case "redis":
        await redis.restart(away / 4);
        return "Redis dies and comes back";
      case "store":
        if (!this.store.refuse) return undefined;
        await this.store.refuse(away);
        return `the store refuses writes for ${away / 1000} s`;
      case "blob":
        return spoil(this.store.files, random);
      case "twice":
        return this.duplicate(redis, random);
    }
  }

  /** Adds a job that is there already under another id. */
  private async duplicate(redis: RedisServer, random: Random): Promise<string | undefined> {
    const connection = { host: "127.0.0.1", port: redis.port, maxRetriesPerRequest: 1 };
    const runs = await planish(["jobs", "--queue", redis.url, "--json"]);
    if (runs.code !== 0) return undefined;
    const [latest] = (JSON.parse(runs.stdout) as { runs: { queue: string; state: string }[] }).runs;
    if (latest?.state !== "running") return undefined;
    const queue = new Queue(latest.queue, { connection, prefix: "planish" });
    queue.on("error", () => undefined);
    try {
      const jobs = await queue.getJobs(["waiting", "active"]);
      if (jobs.length === 0) return undefined;
      const job = jobs[random.below(jobs.length)];
      await queue.add(job.name, job.data, { removeOnComplete: true, removeOnFail: true });
      return `block job ${job.name} is there twice`;
    } catch {
      return undefined;
    } finally {
      await queue.close();
    }
  }

  async dismiss(): Promise<void> {
    this.dismissed = true;
    await Promise.all(
      [...this.workers].map(
        (child) =>
          new Promise((resolve) => {
            child.once("exit", resolve);
            child.kill("SIGKILL");
          }),
      ),
    );
  }
}

/** Flips a bit of some stored blob. */
function spoil(directory: string, random: Random): string | undefined {
  const files = existsSync(directory)
    ? readdirSync(directory, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && !entry.name.includes(".partial"))
        .map(({ parentPath, name }) => join(parentPath, name))
    : [];
  if (files.length === 0) return undefined;
  const path = files[random.below(files.length)];
  try {
    const file = openSync(path, "r+");
    try {
      const at = random.below(Math.max(1, statSync(path).size));
      const byte = new Uint8Array(1);
      readSync(file, byte, 0, 1, at);
      byte[0] ^= 1 << random.below(8);
      writeSync(file, byte, 0, 1, at);
      return `bit ${at} of ${path.slice(-12)} flips`;
    } finally {
      closeSync(file);
    }
  } catch {
    // It was removed meanwhile.
    return undefined;
  }
}
