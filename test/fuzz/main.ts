/**
 * `npm run test:fuzz [-- --seconds N | --count N] [--format NAME] [--skip NAME] [--seed N] [--workers N]`: mutated inputs for everything
 * that reads what strangers write. A case fails when its process dies, when it takes over 5 seconds or brings the process
 * over 1 GB, when its error is not one clean line, or when nonsense is taken (docs/fuzzing.md).
 */
import { fork, type ChildProcess } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { caseOf, targetsOf } from "./cases.js";
import { makeDirectory, PARENT_VARIABLE } from "./scratch.js";
import type { Report, Task } from "./worker.js";

const HANG_MS = 5000;
const MAX_MEMORY = 1e9;
/** Of one worker's JavaScript heap; a case that fills it kills the process. */
const HEAP_MB = 768;
const KEPT = fileURLToPath(new URL("../../out/fuzz/", import.meta.url));
/** Failures of one format that are written out and shown. */
const SHOWN = 20;

const { values } = parseArgs({
  options: {
    seconds: { type: "string" },
    count: { type: "string" },
    format: { type: "string" },
    skip: { type: "string" },
    seed: { type: "string", default: String(Date.now() % 1e9) },
    workers: { type: "string", default: "2" },
  },
});

function whole(name: "seconds" | "count" | "seed" | "workers", least: number): number | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= least) return value;
  process.stderr.write(`give --${name} as a whole number, at least ${least}\n`);
  process.exit(2);
}

const count = whole("count", 1);
const seconds = whole("seconds", 1) ?? (count === undefined ? 60 : Infinity);
const seed = whole("seed", 0) ?? 0;
const workers = whole("workers", 1) ?? 2;
const end = count ?? Number.MAX_SAFE_INTEGER;

interface Line {
  tried: number;
  refused: number;
  failed: number;
}

class Lane {
  readonly lines = new Map<string, Line>();
  readonly #targets = targetsOf(values.format, values.skip);
  readonly #directory = makeDirectory();
  readonly #children = new Set<ChildProcess>();
  /** By number: cases may be done again after their process died. */
  readonly #failures = new Set<number>();
  #stopping = false;

  constructor() {
    for (const { name } of this.#targets) this.lines.set(name, { tried: 0, refused: 0, failed: 0 });
  }

  async run(): Promise<void> {
    const timer = Number.isFinite(seconds)
      ? setTimeout(() => this.stop(), seconds * 1000)
      : undefined;
    try {
      await Promise.all(Array.from({ length: workers }, (_, worker) => this.#drive(worker)));
    } finally {
      clearTimeout(timer);
      rmSync(this.#directory, { recursive: true, force: true });
    }
  }

  stop(): void {
    this.#stopping = true;
    for (const child of this.#children) child.kill("SIGTERM");
  }

  /** Starts processes one after the other until a worker's cases are done: each goes on after the case that ended the last. */
  async #drive(worker: number): Promise<void> {
    const skip = new Set<number>();
    let from = worker;
    while (from < end && !this.#stopping) {
      const statusFile = join(this.#directory, `status-${worker}`);
      writeFileSync(statusFile, new Uint8Array(new Float64Array([-1]).buffer));
      const { next, problem } = await this.#process({
        format: values.format, skip: values.skip, seed, from, stride: workers, end: Math.min(end, nextOf(skip, from) ?? end), statusFile, maxMemory: MAX_MEMORY,
      }); // prettier-ignore
      from = next;
      if (problem !== undefined) {
        // What was done since the last report is done again, without the case that ended the process.
        const number = caseAt(statusFile);
        if (number < 0)
          throw new Error(
            "a process of the lane did not start: run npx tsx test/fuzz/worker.ts to see why",
          );
        skip.add(number);
        this.#add(caseOf(this.#targets, seed, number).target.name, 1, 0);
        this.#fail(number, problem);
      }
      if (skip.has(from)) {
        skip.delete(from);
        from += workers;
      }
    }
  }

  /** One process from its start to its end. */
  #process(task: Task): Promise<{ next: number; problem?: string }> {
    return new Promise((resolve) => {
      const child = fork(
        fileURLToPath(new URL("./worker.ts", import.meta.url)),
        [JSON.stringify(task)],
        {
          execArgv: ["--import", "tsx", `--max-old-space-size=${HEAP_MB}`],
          env: { ...process.env, [PARENT_VARIABLE]: this.#directory },
          stdio: ["ignore", "ignore", "ignore", "ipc"],
        },
      );
      this.#children.add(child);
      let next = task.from;
      let hung = false;
      let seen = { number: -1, since: performance.now() };
      const watch = setInterval(() => {
        const number = caseAt(task.statusFile);
        if (number !== seen.number || number < 0) seen = { number, since: performance.now() };
        else if (performance.now() - seen.since > HANG_MS) {
          hung = true;
          child.kill("SIGKILL");
        }
      }, 250);
      child.on("message", (report: Report) => {
        if (report.kind === "failed") this.#fail(report.number, report.reason);
        else {
          next = report.next;
          for (const [name, { tried, refused }] of Object.entries(report.counts))
            this.#add(name, tried, refused);
        }
      });
      child.on("exit", (code, signal) => {
        clearInterval(watch);
        this.#children.delete(child);
        const ended = code === 0 || this.#stopping;
        const problem = hung
          ? `took over ${HANG_MS / 1000} s`
          : `the process died (${signal ?? `exit ${String(code)}`})`;
        resolve(ended ? { next } : { next, problem });
      });
    });
  }

  #add(name: string, tried: number, refused: number): void {
    const line = this.lines.get(name);
    if (line === undefined) return;
    line.tried += tried;
    line.refused += refused;
  }

  #fail(number: number, reason: string): void {
    const { target, input } = caseOf(this.#targets, seed, number);
    const line = this.lines.get(target.name);
    if (line === undefined || this.#failures.has(number)) return;
    this.#failures.add(number);
    line.failed += 1;
    if (line.failed > SHOWN) return;
    mkdirSync(KEPT, { recursive: true });
    const file = join(KEPT, `${target.name.replace(/\W/g, "-")}-${seed}-${number}`);
    writeFileSync(file, input());
    process.stdout.write(`FAILED ${target.name}, case ${number}: ${reason}\n  input: ${file}\n`);
  }
}

/** The first case from `from` on that must not be done again. */
function nextOf(skip: ReadonlySet<number>, from: number): number | undefined {
  const later = [...skip].filter((number) => number >= from);
  return later.length > 0 ? Math.min(...later) : undefined;
}

function caseAt(statusFile: string): number {
  const bytes = readFileSync(statusFile);
  return bytes.length === 8 ? bytes.readDoubleLE(0) : -1;
}

function table(lines: ReadonlyMap<string, Line>): { text: string; tried: number; failed: number } {
  const all = [...lines].map(([name, line]) => ({ name, ...line }));
  const sum = (key: keyof Line): number => all.reduce((total, line) => total + line[key], 0);
  const total = {
    name: "all",
    tried: sum("tried"),
    refused: sum("refused"),
    failed: sum("failed"),
  };
  const row = (cells: readonly string[]): string =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(18) : cell.padStart(10))).join(" ");
  const rows = [...all, total].map(({ name, tried, refused, failed }) =>
    row([
      name,
      ...[tried, tried - refused - failed, refused, failed].map((value) =>
        value.toLocaleString("en-US"),
      ),
    ]),
  );
  const text = [row(["format", "tried", "taken", "refused", "failed"]), ...rows].join("\n");
  return { text, tried: total.tried, failed: total.failed };
}

const lane = new Lane();
process.on("SIGINT", () => lane.stop());
const started = performance.now();
process.stdout.write(`seed ${seed}, ${workers} processes\n`);
await lane.run();
const { text, tried, failed } = table(lane.lines);
const taken = (performance.now() - started) / 1000;
process.stdout.write(
  `${text}\n${tried.toLocaleString("en-US")} inputs in ${taken.toFixed(0)} s, ${Math.round(tried / taken)} a second\n`,
);
process.exitCode = failed > 0 ? 1 : 0;
