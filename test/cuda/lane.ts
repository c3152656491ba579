/**
 * Runs a lane's tests in several processes on one GPU: references and run-time compilation keep a processor each. Every test
 * has a limit of its own: a process that does not come back (a kernel that hangs cannot be stopped from inside) is killed, its
 * test counts as failed, and another process goes on with the rest.
 */
import { fork, type ChildProcess } from "node:child_process";
import { availableParallelism } from "node:os";
import {
  registeredTests,
  runHooks,
  runTest,
  type Counts,
  type RegisteredTest,
} from "./registered-tests.js";

/** Seconds that a test may take, compiling its kernels included; the slowest takes some ten. */
const TEST_SECONDS = 60;
/** Seconds in which a process must have begun: it opens the GPU, and writes the models of the executor's tests. */
const START_SECONDS = 120;
/** More processes than this wait for the GPU rather than for each other. */
const MOST_PROCESSES = 12;
/** Tests of one group that go to one process: they may share what the first of them made. */
const TOGETHER = 8;

export interface LaneOptions {
  /** Runs the tests with this in their names. */
  readonly only: string;
  /** Prints each test as it begins. */
  readonly verbose: boolean;
  /** Tests that measure time, which no other test may run beside. */
  readonly alone: (name: string) => boolean;
  readonly print: (line: string) => void;
}

type FromWorker =
  | { readonly kind: "idle" }
  | { readonly kind: "begins"; readonly test: number }
  | { readonly kind: "ends"; readonly test: number; readonly error?: string };

/** Tests in the order they were registered, cut where the group changes. */
function unitsOf(tests: readonly RegisteredTest[], only: string): number[][] {
  const units: number[][] = [];
  let group: string | undefined;
  tests.forEach((test, index) => {
    if (!test.name.includes(only)) return;
    const last = units.at(-1);
    if (last && group === test.group && last.length < TOGETHER) last.push(index);
    else units.push([index]);
    group = test.group;
  });
  return units;
}

/** Whether this process is one of a lane's: it then serves with `serveLane`. */
export function isLaneWorker(): boolean {
  return process.env.PLANISH_LANE_WORKER === "1" && process.send !== undefined;
}

/** Takes units from the lane and runs them, until the lane hangs up. */
export async function serveLane(): Promise<void> {
  const send = (message: FromWorker) => process.send?.(message);
  const tests = registeredTests();
  await runHooks("before");
  await new Promise<void>((done) => {
    process.on("disconnect", done);
    process.on("message", (unit: number[]) => {
      void (async () => {
        for (const test of unit) {
          send({ kind: "begins", test });
          send({ kind: "ends", test, error: await runTest(tests[test]) });
        }
        send({ kind: "idle" });
      })();
    });
    send({ kind: "idle" });
  });
  await runHooks("after");
}

/** One process and the unit it has. */
class Worker {
  readonly done: Promise<void>;
  private readonly child: ChildProcess;
  private timer: NodeJS.Timeout | undefined;
  private unit: readonly number[] = [];

  constructor(
    private readonly take: () => readonly number[] | undefined,
    private readonly ends: (test: number, error: string | undefined) => void,
    private readonly begins: (test: number) => void,
    private readonly giveBack: (tests: readonly number[]) => void,
  ) {
    this.child = fork(process.argv[1], process.argv.slice(2), {
      env: { ...process.env, PLANISH_LANE_WORKER: "1" },
    });
    this.limit(START_SECONDS);
    this.child.on("message", (message) => {
      this.hear(message as FromWorker);
    });
    this.done = new Promise((done) => {
      this.child.on("exit", (code, signal) => {
        clearTimeout(this.timer);
        const [now, ...rest] = this.unit;
        if (now !== undefined) {
          const why =
            signal === "SIGKILL" ? `not done within ${TEST_SECONDS} s` : `exit ${code ?? signal}`;
          this.ends(now, `its process was lost: ${why}`);
          this.giveBack(rest);
        }
        done();
      });
    });
  }

  private limit(seconds: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.child.kill("SIGKILL"), 1000 * seconds);
  }

  private hear(message: FromWorker): void {
    if (message.kind === "begins") {
      this.begins(message.test);
      this.limit(TEST_SECONDS);
    } else if (message.kind === "ends") {
      this.unit = this.unit.slice(1);
      this.ends(message.test, message.error);
    } else {
      clearTimeout(this.timer);
      this.unit = this.take() ?? [];
      if (this.unit.length > 0) {
        this.limit(TEST_SECONDS);
        this.child.send([...this.unit]);
      } else this.child.disconnect();
    }
  }
}

/** Runs all registered tests and returns how many passed and failed. */
export async function runLane(options: LaneOptions): Promise<Counts> {
  const { only, verbose, alone, print } = options;
  const tests = registeredTests();
  const counts = { passed: 0, failed: 0 };
  const units = unitsOf(tests, only);
  const solitary = units.filter(([first]) => alone(tests[first].name));
  const others = units.filter(([first]) => !alone(tests[first].name));
  for (const [queue, most] of [
    [solitary, 1],
    [others, Math.min(MOST_PROCESSES, availableParallelism())],
  ] as const) {
    const work = async (): Promise<void> => {
      // A process that is lost before it takes a unit would be lost again.
      while (queue.length > 0) {
        let took = false;
        const worker = new Worker(
          () => {
            took = true;
            return queue.shift();
          },
          (test, error) => {
            if (error === undefined) counts.passed++;
            else {
              counts.failed++;
              print(`FAIL ${tests[test].name}\n     ${error}`);
            }
          },
          (test) => {
            if (verbose) print(tests[test].name);
          },
          (rest) => {
            if (rest.length > 0) queue.unshift([...rest]);
          },
        );
        await worker.done;
        if (took) continue;
        counts.failed++;
        print("FAIL a process of the lane did not begin");
        return;
      }
    };
    await Promise.all(Array.from({ length: Math.min(most, queue.length) }, work));
    if (queue.length > 0) {
      counts.failed += queue.flat().length;
      print(`FAIL ${queue.flat().length} tests did not run`);
    }
  }
  return counts;
}
