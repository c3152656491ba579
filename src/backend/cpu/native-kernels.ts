/**
 * The native kernels as typed functions, called by names (contract/abi.ts): addresses of memory, codes for words, and a
 * check of types and lengths, which the native side trusts.
 */
import type { Buffer, DType } from "../contract/training.js";
import {
  CODES,
  KERNELS,
  type KernelName,
  type NativeKernels as KernelsOf,
  type Parameters,
} from "../contract/abi.js";
import {
  lengthOf,
  parametersOf,
  type ElementType,
  type Length,
  type Parameter,
} from "../contract/abi-types.js";
import { PlanishError } from "../../common/errors.js";
import type { NativeLibrary } from "../contract/native-library.js";
import { NativeBuffer } from "./memory.js";

export type NativeKernels = KernelsOf<Buffer>;

const ARRAYS = {
  f32: [Float32Array],
  f64: [Float64Array],
  i8: [Int8Array],
  u8: [Uint8Array],
  i32: [Int32Array],
  i64: [BigInt64Array],
  any: [Int8Array, Float32Array],
} as const satisfies Readonly<Record<ElementType, readonly unknown[]>>;

/** Turns one argument into what the foreign call takes. */
type Convert = (value: unknown, values: readonly unknown[]) => unknown;

function converter(kernel: string, parameter: Parameter, names: readonly string[]): Convert {
  const what = `${kernel} ${parameter.name}`;
  switch (parameter.kind) {
    case "number":
      return (value) => value;
    case "flag":
      return (value) => (value ? 1 : 0);
    case "code": {
      const words: readonly string[] = CODES[parameter.code];
      return (value) => {
        const code = words.indexOf(value as string);
        if (code < 0)
          throw new PlanishError(`${what}: got ${String(value)}; accepted: ${words.join(", ")}`);
        return code;
      };
    }
    case "memory":
      return memory(what, parameter, lengthOf(parameter.length, names));
  }
}

function memory(
  what: string,
  { element, optional }: Parameter & { readonly kind: "memory" },
  length: Length | undefined,
): Convert {
  const fits = (given: number, values: readonly unknown[]) => {
    const needed = length ? length(values) : 0;
    if (!(needed >= 0 && needed <= given))
      throw new PlanishError(`${what} has ${given} elements; it needs ${needed}`);
  };
  const accepts = (dtype: DType) =>
    element === "any" ? dtype === "i8" || dtype === "f32" : dtype === element;
  return (value, values) => {
    if (typeof value === "bigint") return value;
    if (value instanceof NativeBuffer) {
      if (!accepts(value.dtype))
        throw new PlanishError(
          `${what}: got a ${value.dtype} buffer, the cpu backend takes ${element === "any" ? "f32 or i8" : element}`,
        );
      fits(value.length, values);
      return value.address;
    }
    if (value === undefined || value === null) {
      if (optional) return null;
      throw new PlanishError(`${what}: is missing`);
    }
    for (const type of ARRAYS[element])
      if (value instanceof type) {
        fits(value.length, values);
        return value;
      }
    throw new PlanishError(
      ArrayBuffer.isView(value)
        ? `${what}: takes ${ARRAYS[element].map(({ name }) => name).join(" or ")}, got ${value.constructor.name}`
        : `${what}: this buffer belongs to another backend; copy it with read and write`,
    );
  };
}

function bindKernel(library: NativeLibrary, name: KernelName, types: Parameters) {
  const parameters = parametersOf(types);
  const names = parameters.map((parameter) => parameter.name);
  const converters = parameters.map((parameter) => converter(name, parameter, names));
  const call = library.kernel(name, parameters);
  const count = parameters.length;
  return (args: Readonly<Record<string, unknown>>): void => {
    const values = new Array<unknown>(count);
    for (let i = 0; i < count; i++) values[i] = args[names[i]];
    // Lengths read numbers, which stay what they are.
    for (let i = 0; i < count; i++) values[i] = converters[i](values[i], values);
    call(...values);
  };
}

const bound = new WeakMap<NativeLibrary, NativeKernels>();

/** The library's kernels; each is bound when it is first asked for. */
export function nativeKernels(library: NativeLibrary): NativeKernels {
  const known = bound.get(library);
  if (known) return known;
  const kernels = {} as NativeKernels;
  for (const name of Object.keys(KERNELS) as KernelName[])
    Object.defineProperty(kernels, name, {
      configurable: true,
      enumerable: true,
      get: () => {
        const value = bindKernel(library, name, KERNELS[name]);
        Object.defineProperty(kernels, name, { value, enumerable: true });
        return value;
      },
    });
  bound.set(library, kernels);
  return kernels;
}
