/**
 * vitest's interface for lanes: tests are registered by the same calls and checked by vitest's own matchers, so that suites
 * run as one bundled file on a machine that has a GPU, Node.js and nothing else. Who runs them is the lane: vitest's
 * workers cannot be bundled, and node:test runs a file in one process, where a kernel that hangs takes every later test
 * with it (lane.ts gives each test a limit and its process a successor).
 */
import { JestChaiExpect, JestExtend, type Assertion } from "@vitest/expect";
import * as chai from "chai";

chai.use(JestExtend);
chai.use(JestChaiExpect);

export const expect = Object.assign(
  chai.expect as unknown as <T>(value: T, message?: string) => Assertion<T>,
  {
    fail(message: string): never {
      throw new chai.AssertionError(message);
    },
  },
);

/** A test by its full name, the names of its groups before it, and what it does. */
export interface RegisteredTest {
  readonly group: string;
  readonly name: string;
  readonly run: () => unknown;
}

export interface Counts {
  readonly passed: number;
  readonly failed: number;
}

const path: string[] = [];
const before: (() => unknown)[] = [];
const after: (() => unknown)[] = [];
const registered: RegisteredTest[] = [];

function group(name: string, body: () => void): void {
  path.push(name);
  body();
  path.pop();
}

function register(name: string, run: () => unknown): void {
  registered.push({ group: path.join(" › "), name: [...path, name].join(" › "), run });
}

/** Fills %s and %i of a title in order. */
function titled(title: string, values: readonly unknown[]): string {
  let next = 0;
  return title.replace(/%[sdio]/g, () => String(values[next++]));
}

/** Skipped groups are said so when they are registered; nothing of them counts. */
export const describe = Object.assign(group, {
  skip(name: string): void {
    process.stdout.write(`skipped: ${name}\n`);
  },
  each:
    (rows: readonly unknown[]) =>
    (title: string, body: (...values: never[]) => void): void => {
      for (const row of rows) {
        const values: unknown[] = Array.isArray(row) ? row : [row];
        group(titled(title, values), () => {
          body(...(values as never[]));
        });
      }
    },
});

export const test = Object.assign(register, {
  each:
    (rows: readonly unknown[]) =>
    (title: string, run: (...values: never[]) => unknown): void => {
      for (const row of rows) {
        const values: unknown[] = Array.isArray(row) ? row : [row];
        register(titled(title, values), () => run(...(values as never[])));
      }
    },
});

export const it = test;
export const beforeAll = (run: () => unknown): number => before.push(run);
export const afterAll = (run: () => unknown): number => after.push(run);

export const registeredTests = (): readonly RegisteredTest[] => registered;

/** What `beforeAll` or `afterAll` asked for. */
export async function runHooks(which: "before" | "after"): Promise<void> {
  for (const run of which === "before" ? before : after) await run();
}

/** Runs one test; the beginning of its error's message when it fails. */
export async function runTest(test: RegisteredTest): Promise<string | undefined> {
  try {
    await test.run();
    return undefined;
  } catch (error) {
    return (error as Error).message.slice(0, 400) || "failed without a message";
  }
}

/**
 * Runs everything that was registered, or only what has `only` in its name, in this process; prints failures as they come, or
 * every test as it begins (`verbose`). Returns how many passed and failed.
 */
export async function runRegistered(
  print: (line: string) => void,
  only = "",
  verbose = false,
): Promise<Counts> {
  const counts = { passed: 0, failed: 0 };
  await runHooks("before");
  for (const test of registered) {
    if (!test.name.includes(only)) continue;
    if (verbose) print(test.name);
    const error = await runTest(test);
    if (error === undefined) counts.passed++;
    else {
      counts.failed++;
      print(`FAIL ${test.name}\n     ${error}`);
    }
  }
  await runHooks("after");
  return counts;
}
