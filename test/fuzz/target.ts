/** What a format of the fuzz lane is, and when a case of it has failed. */
import { PlanishError } from "../../src/common/errors.js";
import type { Random } from "../../src/common/random.js";
import { ApiError } from "../../src/serve/errors.js";

/** One kind of input, with mutations that know its structure. */
export interface Target {
  readonly name: string;
  /** One mutated input; the same random state gives the same bytes. */
  generate(random: Random): Uint8Array;
  /**
   * Reads the input as the program would. Returns when it is taken.
   * @throws PlanishError or ApiError when the input is refused, `Unsound` when nonsense is taken, anything else on faults.
   */
  run(input: Uint8Array): void;
}

/** The reader took what it should have refused. */
export class Unsound extends Error {
  override readonly name = "Unsound";
}

export type Outcome =
  { readonly kind: "taken" | "refused" } | { readonly kind: "failed"; readonly reason: string };

/** Longer error lines repeat what a stranger wrote. */
const LONGEST_LINE = 1500;

/** Runs one case; what hangs or dies is seen by whoever started this process. */
export function judge(target: Target, input: Uint8Array): Outcome {
  try {
    target.run(input);
    return { kind: "taken" };
  } catch (error) {
    if (!(error instanceof PlanishError || error instanceof ApiError))
      return { kind: "failed", reason: describe(error) };
    const { message } = error;
    if (message.length > LONGEST_LINE)
      return { kind: "failed", reason: `an error line of ${message.length} characters` };
    // eslint-disable-next-line no-control-regex -- control characters are what this looks for
    if (/[\u0000-\u001f\u007f]/.test(message))
      return { kind: "failed", reason: `no single clean line: ${JSON.stringify(message)}` };
    if (error instanceof ApiError && error.status >= 500)
      return { kind: "failed", reason: `status ${error.status}: ${message}` };
    return { kind: "refused" };
  }
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error).slice(0, 500);
  const [, ...frames] = (error.stack ?? "").split("\n    at ");
  const where = frames
    .slice(0, 3)
    .map((frame) => frame.replace(/\(?file:\/\/.*\/(\w+\/[\w.-]+:\d+):\d+\)?/, "$1"));
  return `${error.name}: ${error.message.slice(0, 300)} [${where.join(" < ")}]`;
}

/** Refuses to go on when a reader let something through. @throws Unsound */
export function ensure(condition: boolean, what: string): void {
  if (!condition) throw new Unsound(what);
}

/** Every number in what a reader returned is finite. @throws Unsound naming the one that is not. */
export function ensureFinite(value: unknown, path = "result", depth = 0): void {
  if (typeof value === "number") ensure(Number.isFinite(value), `${path} is ${value}`);
  if (typeof value !== "object" || value === null || depth > 12) return;
  if (value instanceof Map || value instanceof Set) {
    for (const each of value) ensureFinite(each, path, depth + 1);
  } else if (ArrayBuffer.isView(value)) {
    if (value instanceof Float32Array || value instanceof Float64Array)
      for (const each of value) ensure(Number.isFinite(each), `${path} holds ${each}`);
  } else {
    for (const [key, each] of Object.entries(value))
      ensureFinite(each, `${path}.${key}`, depth + 1);
  }
}
