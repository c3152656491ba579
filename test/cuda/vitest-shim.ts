/**
 * The few functions of vitest that the conformance suite uses, so that it runs as one bundled file on a machine that
 * has a GPU, Node.js and nothing else. Tests run in the order of their registration; failures are counted and printed.
 */
import { isDeepStrictEqual } from "node:util";

class AssertionError extends Error {}

function show(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}

function matches(value: unknown, pattern: Record<string, unknown>): boolean {
  return Object.entries(pattern).every(([key, wanted]) =>
    isDeepStrictEqual((value as Record<string, unknown>)[key], wanted),
  );
}

function check(condition: boolean, text: string, message: string | undefined): void {
  if (!condition) throw new AssertionError(message === undefined ? text : `${message}: ${text}`);
}

function assertions(value: unknown, message?: string) {
  const that = (condition: boolean, text: string) => {
    check(condition, `${show(value)} ${text}`, message);
  };
  return {
    toBe: (wanted: unknown) => {
      that(Object.is(value, wanted), `is not ${show(wanted)}`);
    },
    toEqual: (wanted: unknown) => {
      that(isDeepStrictEqual(value, wanted), `does not equal ${show(wanted)}`);
    },
    toMatchObject: (wanted: Record<string, unknown>) => {
      that(matches(value, wanted), `does not match ${show(wanted)}`);
    },
    toBeGreaterThan: (limit: number) => {
      that((value as number) > limit, `is not above ${limit}`);
    },
    toBeGreaterThanOrEqual: (limit: number) => {
      that((value as number) >= limit, `is below ${limit}`);
    },
    toBeLessThanOrEqual: (limit: number) => {
      that((value as number) <= limit, `is above ${limit}`);
    },
    toThrow: (wanted: string | RegExp | (new (...args: never[]) => Error)) => {
      let thrown: unknown;
      try {
        (value as () => unknown)();
      } catch (error) {
        thrown = error;
      }
      check(thrown !== undefined, "nothing was thrown", message);
      const fits =
        typeof wanted === "string"
          ? String(thrown).includes(wanted)
          : wanted instanceof RegExp
            ? wanted.test(String(thrown))
            : thrown instanceof wanted;
      check(fits, `threw ${String(thrown)}`, message);
    },
  };
}

export const expect = Object.assign(assertions, {
  fail(message: string): never {
    throw new AssertionError(message);
  },
});

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
