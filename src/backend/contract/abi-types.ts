/** Reads the parameter types of the ABI's table (abi.ts). */
import { createHash } from "node:crypto";
import {
  CODES,
  CONSTANTS,
  FUNCTIONS,
  KERNELS,
  PLAN_OPERATIONS,
  type CodeName,
  type Parameters,
  type PlanOperation,
} from "./abi.js";

export type Scalar = "i32" | "i64" | "f32" | "f64";
export type ElementType = Scalar | "i8" | "u8" | "any";

export type Parameter = { readonly name: string } & (
  | { readonly kind: "number"; readonly type: Scalar }
  | { readonly kind: "flag" }
  | { readonly kind: "code"; readonly code: CodeName }
  | {
      readonly kind: "memory";
      readonly element: ElementType;
      readonly readOnly: boolean;
      readonly optional: boolean;
      /** As written; `*` where the caller answers for it. */
      readonly length: string;
    }
);

/** A kernel's parameters in C's order. */
export function parametersOf(parameters: Parameters): Parameter[] {
  return Object.entries(parameters).map(([name, text]): Parameter => {
    if (text === "i32" || text === "i64" || text === "f32" || text === "f64")
      return { name, kind: "number", type: text };
    if (text === "flag") return { name, kind: "flag" };
    if (text in CODES) return { name, kind: "code", code: text as CodeName };
    const match = /^(const )?(f32|f64|i8|u8|i32|i64|any)\[(.+)\](\?)?$/.exec(text);
    if (!match) throw new RangeError(`abi: ${name} has the type "${text}", which nothing reads`);
    const [, readOnly, element, length, optional] = match;
    return {
      name,
      kind: "memory",
      element: element as ElementType,
      readOnly: readOnly !== undefined,
      optional: optional !== undefined,
      length,
    };
  });
}

/** A length as a function of the arguments' values in C's order. */
export type Length = (values: readonly unknown[]) => number;

/** Compiles a length (see abi.ts); undefined for `*`. `names`: the parameters in C's order. */
export function lengthOf(text: string, names: readonly string[]): Length | undefined {
  if (text === "*") return undefined;
  const operand = (word: string): Length => {
    if (/^\d+$/.test(word)) return () => Number(word);
    const index = names.indexOf(word);
    if (index < 0) throw new RangeError(`abi: the length "${text}" names no parameter "${word}"`);
    return (values) => values[index] as number;
  };
  const reach = /^reach\((.+)\)$/.exec(text);
  if (reach) {
    const axes = reach[1].split(",").map((axis) => axis.split(":").map(operand));
    return (values) => {
      let last = 0;
      for (const [count, stride] of axes) {
        const along = count(values);
        if (along === 0) return 0;
        last += (along - 1) * stride(values);
      }
      return last + 1;
    };
  }
  const [first, ...rest] = text.split(/(?=[*/])/);
  const start = operand(first);
  const factors = rest.map((part) => ({
    divides: part.startsWith("/"),
    of: operand(part.slice(1)),
  }));
  return (values) => {
    let result = start(values);
    for (const { divides, of } of factors)
      result = divides ? result / of(values) : result * of(values);
    return result;
  };
}

/** `packedMatmulParts` is `packed_matmul_parts` in C. */
export function cName(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** The table's number: another one means other calls. */
export function abiNumber(): number {
  const table = JSON.stringify([CODES, CONSTANTS, KERNELS, PLAN_OPERATIONS, FUNCTIONS]);
  return Number.parseInt(createHash("sha256").update(table).digest("hex").slice(0, 12), 16);
}

/** Words of a plan's call: its operation, then its parameters without rows and chunks. */
export const PLAN_WORDS =
  1 + Math.max(...PLAN_OPERATIONS.map((name) => planParameters(name).length));

/** A plan operation's parameters, in the order of its words. */
export function planParameters(name: PlanOperation): Parameter[] {
  return parametersOf(KERNELS[name]).filter(
    (each) => each.name !== "rows" && each.name !== "chunks",
  );
}
