/**
 * Golden vectors for tests: finds the directory (PLANISH_GOLDEN, else test/golden), discovers files and the cases in
 * them by name, and compares tensors. Nothing here lists a case: a directory of further vectors in the same
 * form goes through unchanged.
 */

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";

export interface GoldenTensor {
  readonly shape: readonly number[];
  /** Integers (token ids) are widened: they fit exactly. */
  readonly data: Float64Array;
}

export type GoldenTensors = ReadonlyMap<string, GoldenTensor>;

export interface GoldenFile {
  /** File name without extension, e.g. `block-gqa`. */
  readonly name: string;
  readonly path: string;
}

/** One `<case>/…` group of a file, with the prefix taken off its tensors' names. */
export interface GoldenCase {
  readonly name: string;
  readonly tensors: GoldenTensors;
}

/** Relative error the reference backend may show against a float64 golden vector (DESIGN.md, Testing). */
export const GOLDEN_RELATIVE = 1e-9;

export function goldenDirectory(): string {
  const fromEnvironment = process.env.PLANISH_GOLDEN;
  if (fromEnvironment) return fromEnvironment;
  return join(dirname(fileURLToPath(import.meta.url)), "..", "golden");
}

/** Safetensors files whose name is `prefix`, or begins with it and a non-letter. Throws when there is none. */
export function goldenFiles(prefix: string): GoldenFile[] {
  const directory = goldenDirectory();
  const pattern = new RegExp(`^${prefix}([^A-Za-z].*)?\\.safetensors$`);
  const files = readdirSync(directory)
    .filter((file) => pattern.test(file))
    .sort()
    .map((file) => ({ name: file.slice(0, -".safetensors".length), path: join(directory, file) }));
  if (files.length === 0) {
    throw new Error(
      `no ${prefix}*.safetensors in ${directory}; PLANISH_GOLDEN must name a directory of golden vectors`,
    );
  }
  return files;
}

/** The JSON of settings that stands beside a golden file. */
export function goldenSettings(file: GoldenFile): unknown {
  return JSON.parse(readFileSync(file.path.replace(/\.safetensors$/, ".json"), "utf8"));
}

function toFloat64(bytes: Uint8Array, type: string, name: string): Float64Array {
  const { buffer, byteOffset, byteLength } = bytes.slice();
  switch (type) {
    case "F64":
      return new Float64Array(buffer, byteOffset, byteLength / 8);
    case "F32":
      return Float64Array.from(new Float32Array(buffer, byteOffset, byteLength / 4));
    case "I64":
      return Float64Array.from(new BigInt64Array(buffer, byteOffset, byteLength / 8), Number);
    case "I32":
      return Float64Array.from(new Int32Array(buffer, byteOffset, byteLength / 4));
    case "I8":
      return Float64Array.from(new Int8Array(buffer, byteOffset, byteLength));
    case "U8":
    case "BOOL":
      return Float64Array.from(new Uint8Array(buffer, byteOffset, byteLength));
    default:
      throw new Error(
        `golden tensor ${name} has type ${type}; the checks read F64, F32, I64, I32, I8, U8 and BOOL`,
      );
  }
}

/** All tensors of a golden file, in file order. */
export function readGolden(path: string): GoldenTensors {
  using store = openSafetensors(path).store;
  const tensors = new Map<string, GoldenTensor>();
  for (const [name, { shape, type }] of store.tensors) {
    tensors.set(name, { shape, data: toFloat64(store.readBytes(name), type, name) });
  }
  return tensors;
}

/** Groups `<case>/<tensor>` names by case, in file order. */
export function goldenCases(tensors: GoldenTensors): GoldenCase[] {
  const cases = new Map<string, Map<string, GoldenTensor>>();
  for (const [name, tensor] of tensors) {
    const slash = name.indexOf("/");
    if (slash < 0)
      throw new Error(`golden tensor ${name} belongs to no case: names are <case>/<tensor>`);
    const caseName = name.slice(0, slash);
    let members = cases.get(caseName);
    if (!members) cases.set(caseName, (members = new Map<string, GoldenTensor>()));
    members.set(name.slice(slash + 1), tensor);
  }
  return [...cases].map(([name, members]) => ({ name, tensors: members }));
}

/**
 * Asserts |actual − expected| ≤ relative·|expected| + relative/1000·max|expected| for every element. The second term is
 * for elements that are a difference of large ones: their rounding error scales with the terms, not with the result.
 */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  what: string,
  relative = GOLDEN_RELATIVE,
): void {
  expect(actual.length, `${what}: number of elements`).toBe(expected.length);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]));
  let worst = { ratio: 0, text: "" };
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    const allowed = relative * (Math.abs(expected[i]) + largest / 1000);
    const ratio = difference === 0 ? 0 : difference / allowed;
    // Written so that NaN counts as a miss.
    if (!(ratio <= worst.ratio)) {
      worst = {
        ratio: Number.isNaN(ratio) ? Infinity : ratio,
        text: `[${i}]: got ${actual[i]}, expected ${expected[i]}`,
      };
    }
  }
  if (worst.ratio > 1)
    expect.fail(
      `${what}${worst.text} (${worst.ratio.toPrecision(3)} times the bound of ${relative})`,
    );
}
