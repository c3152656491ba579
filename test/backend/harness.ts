/**
 * What a conformance case is and how it is run: buffers by name, one call, and how far each output may lie from
 * the float64 reference. Inputs are rounded to float32 first, so that every backend sees the same numbers and
 * a bound speaks of arithmetic alone.
 */

import { expect } from "vitest";
import type {
  Backend,
  Buffer,
  DType,
  HostArray,
  Kernels,
} from "../../src/backend/contract/training.js";

/** Unit roundoff of float32 and of bfloat16 (8 significant bits): relative error of one rounding. */
export const U = 2 ** -24;
export const U_BF16 = 2 ** -8;
/** Results below the normal range of float32 may be flushed to zero. */
const SMALLEST_NORMAL = 2 ** -126;
/** Elements allocated past the end of every buffer; a kernel that changes one of them fails. */
const GUARD = 19;
const GUARD_VALUE = 77;

export interface BufferSpec {
  readonly type: "real" | "i8" | "i32";
  /** Content before the call (of outputs too, so that untouched gaps can be compared). */
  readonly data: Float64Array;
}

export type Buffers = Readonly<Record<string, Buffer>>;
export type Values = Readonly<Record<string, Float64Array>>;

export interface ConformanceCase {
  readonly kernel: keyof Kernels;
  /** Parameters, for the test's name. */
  readonly title: string;
  readonly buffers: Readonly<Record<string, BufferSpec>>;
  /** Names of the buffers that the kernel writes. */
  readonly outputs: readonly string[];
  run(kernels: Kernels, buffers: Buffers): void;
  /** Largest allowed |result − truth| per element of each output; an output it does not name is left to `verify`. */
  bounds(truth: Values): Record<string, Float64Array>;
  /** ‖result − truth‖ ≤ this · ‖truth‖ for each named output, in the Euclidean norm. */
  readonly norms?: Readonly<Record<string, number>>;
  /** Checks that are no plain bound (codes beside rounding ties). */
  verify?(result: Values, truth: Values): void;
}

/** A kernel's cases under the sentence that says and argues the bound. */
export interface CaseGroup {
  readonly bound: string;
  readonly cases: readonly ConformanceCase[];
}

const SEED = Number(process.env.PLANISH_TEST_SEED ?? 20240917);

/** Seeded random numbers (mulberry32); every case makes its own from its name. */
export class Random {
  #state: number;

  constructor(name: string) {
    let hash = SEED | 0;
    for (const character of name) hash = (Math.imul(hash, 31) + character.charCodeAt(0)) | 0;
    this.#state = hash;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Integer in [low, high]. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }

  /** Standard normal. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  normals(length: number, deviation = 1, mean = 0): Float64Array {
    return this.#filled(length, () => Math.fround(mean + deviation * this.normal()));
  }

  /** Uniform in [low, high). */
  uniforms(length: number, low: number, high: number): Float64Array {
    return this.#filled(length, () => Math.fround(low + (high - low) * this.uniform()));
  }

  integers(length: number, low: number, high: number): Float64Array {
    return this.#filled(length, () => this.integer(low, high));
  }

  /** A plain loop: `from` with a function takes several times as long, and the suite draws millions. */
  #filled(length: number, next: () => number): Float64Array {
    const values = new Float64Array(length);
    for (let i = 0; i < length; i++) values[i] = next();
    return values;
  }
}

export function real(data: Float64Array): BufferSpec {
  return { type: "real", data: new Float64Array(new Float32Array(data)) };
}

export function codes(data: Float64Array): BufferSpec {
  return { type: "i8", data };
}

export function ids(data: Float64Array): BufferSpec {
  return { type: "i32", data };
}

/** An output that must be overwritten in full: it holds NaN (or a stray code) before. */
export function output(length: number, type: BufferSpec["type"] = "real"): BufferSpec {
  return { type, data: new Float64Array(length).fill(type === "real" ? NaN : 99) };
}

const word = new DataView(new ArrayBuffer(4));

/** Nearest bfloat16, ties to even. */
export function toBf16(x: number): number {
  word.setFloat32(0, x);
  const bits = word.getUint32(0);
  word.setUint32(0, ((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000) >>> 0);
  return word.getFloat32(0);
}

export const absolute = (values: Float64Array) => values.map(Math.abs);
export const squared = (values: Float64Array) => values.map((v) => v * v);

/** Runs a kernel call on named arrays and returns all of them as they are afterwards. */
export function evaluate(
  backend: Backend,
  specs: Readonly<Record<string, BufferSpec>>,
  call: (kernels: Kernels, buffers: Buffers) => void,
): Record<string, Float64Array> {
  const buffers: Record<string, Buffer> = {};
  for (const [name, { type, data }] of Object.entries(specs)) {
    const dtype: DType = type === "real" ? backend.realType : type;
    const buffer = backend.alloc(dtype, data.length + GUARD);
    backend.fill(buffer, GUARD_VALUE);
    backend.write(buffer, toHostArray(dtype, data));
    buffers[name] = buffer;
  }
  call(backend.kernels, buffers);
  const results: Record<string, Float64Array> = {};
  for (const [name, buffer] of Object.entries(buffers)) {
    const all = Float64Array.from(backend.read(buffer) as Float64Array);
    results[name] = all.slice(0, buffer.length - GUARD);
    const guard = all.slice(buffer.length - GUARD);
    expect(
      guard.every((v) => v === GUARD_VALUE),
      `${name}: written past its end`,
    ).toBe(true);
    backend.free(buffer);
  }
  return results;
}

function toHostArray(dtype: DType, data: Float64Array): HostArray {
  if (dtype === "f64") return data;
  if (dtype === "f32") return Float32Array.from(data);
  if (dtype === "i8") return Int8Array.from(data);
  if (dtype === "u8") return Uint8Array.from(data);
  return Int32Array.from(data);
}

/** Runs one case on the backend and on the truth and asserts all that the case and the contract say. */
export function checkCase(backend: Backend, truthBackend: Backend, test: ConformanceCase): void {
  const call = test.run.bind(test);
  const truth = evaluate(truthBackend, test.buffers, call);
  const result = evaluate(backend, test.buffers, call);
  const again = evaluate(backend, test.buffers, call);
  const bounds = test.bounds(truth);
  for (const name of Object.keys(test.buffers)) {
    if (!test.outputs.includes(name)) {
      expectWithin(
        result[name],
        test.buffers[name].data,
        new Float64Array(result[name].length),
        `${name} (an input)`,
      );
      continue;
    }
    const differs = result[name].findIndex((value, i) => !Object.is(value, again[name][i]));
    if (differs >= 0) expect.fail(`${name}[${differs}] differs between two runs`);
    if (bounds[name]) expectWithin(result[name], truth[name], bounds[name], name);
    else if (!test.verify) expect.fail(`${test.kernel} ${test.title}: the case bounds no ${name}`);
  }
  for (const [name, limit] of Object.entries(test.norms ?? {})) {
    const error = norm(result[name].map((v, i) => v - truth[name][i])) / norm(truth[name]);
    if (!(error <= limit))
      expect.fail(`${name}: relative error in norm ${error}, allowed ${limit}`);
  }
  test.verify?.(result, truth);
}

function norm(values: Float64Array): number {
  return Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
}

/** Asserts |actual − expected| ≤ bound element by element; a NaN fails, equal infinities pass. */
export function expectWithin(
  actual: Float64Array,
  expected: Float64Array,
  bound: Float64Array,
  what: string,
): void {
  expect(bound.length, `${what}: bounds`).toBe(expected.length);
  let misses = 0;
  let worst = { excess: -1, text: "" };
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i]) || actual[i] === expected[i]) continue;
    const error = Math.abs(actual[i] - expected[i]);
    const allowed = bound[i] === 0 ? 0 : bound[i] + SMALLEST_NORMAL;
    if (error <= allowed) continue;
    misses++;
    const excess = Number.isNaN(error) || allowed === 0 ? Infinity : error / allowed;
    if (excess > worst.excess) {
      worst = { excess, text: `[${i}] is ${actual[i]}, expected ${expected[i]} ± ${allowed}` };
    }
  }
  if (misses > 0)
    expect.fail(
      `${what}: ${misses} of ${expected.length} elements out of bounds; worst ${what}${worst.text}`,
    );
}
