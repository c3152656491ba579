/**
 * Writes native/abi/*.h from the ABI's table (src/backend/contract/abi.ts), and the table of CUDA launches from the kernels'
 * declarations (cuda-kernels.ts): `npm run generate:abi`. They are committed, so that building needs no TypeScript;
 * test/backend/abi.test.ts fails when they are not what the table says.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  CODES,
  CONSTANTS,
  FUNCTIONS,
  KERNELS,
  PLAN_OPERATIONS,
  PRODUCT_KERNELS,
  type KernelName,
} from "../src/backend/contract/abi.js";
import {
  abiNumber,
  cName,
  parametersOf,
  PLAN_WORDS,
  planParameters,
  type Parameter,
} from "../src/backend/contract/abi-types.js";
import { KERNEL_TABLE, kernelTable } from "./cuda-kernels.js";

export const ABI_FOLDER = resolve(dirname(fileURLToPath(import.meta.url)), "..", "native", "abi");

const C_TYPES = {
  i8: "int8_t",
  u8: "uint8_t",
  i32: "int32_t",
  i64: "int64_t",
  f32: "float",
  f64: "double",
  any: "void",
  text: "const char*",
  address: "void*",
  status: "int",
  void: "void",
} as const;

function cType(parameter: Parameter): string {
  if (parameter.kind === "memory")
    return `${parameter.readOnly ? "const " : ""}${C_TYPES[parameter.element]}*`;
  return parameter.kind === "number" ? C_TYPES[parameter.type] : "int32_t";
}

function declaration(parameter: Parameter): string {
  return `${cType(parameter)} ${cName(parameter.name)}`;
}

/** Items after one another, broken where a line has no room for the next. */
function wrapped(items: readonly string[], indent: string, end: string): string {
  const lines: string[] = [];
  let line = indent;
  items.forEach((item, i) => {
    const text = item + (i + 1 < items.length ? "," : end);
    if (line.length + text.length > 118 && line.trim()) {
      lines.push(line.trimEnd());
      line = indent;
    }
    line += `${text} `;
  });
  return [...lines, line.trimEnd()].join("\n");
}

const header = (what: string, guard = true) =>
  `// ${what} Made from src/backend/contract/abi.ts by \`npm run generate:abi\`; change that.\n` +
  (guard ? "#pragma once\n" : "// No include guard on purpose.\n");

function kernelLine(name: KernelName): string {
  const parameters = parametersOf(KERNELS[name]);
  return (
    `PL_KERNEL(${cName(name)},\n` +
    `${wrapped(parameters.map(declaration), "          ", "),").replace("          ", "          (")}\n` +
    wrapped(
      parameters.map((each) => cName(each.name)),
      "          ",
      "))",
    ).replace("          ", "          (")
  );
}

function kernels(): string {
  const names = Object.keys(KERNELS) as KernelName[];
  const products = names.filter((name) => PRODUCT_KERNELS.includes(name));
  const others = names.filter((name) => !PRODUCT_KERNELS.includes(name));
  return [
    header("Every kernel, once: PL_KERNEL(name, (parameters), (arguments)).", false),
    ...products.map(kernelLine),
    "#if !defined(PL_PRODUCTS_ONLY)",
    ...others.map(kernelLine),
    "#endif\n",
  ].join("\n");
}

function functions(): string {
  const lines = Object.entries(FUNCTIONS).map(([name, { returns, parameters }]) => {
    const list = Object.entries(parameters).map(([parameter, type]) =>
      type === "text" || type === "address"
        ? `${C_TYPES[type]} ${cName(parameter)}`
        : declaration(parametersOf({ [parameter]: type })[0]),
    );
    return `PL_EXPORT ${C_TYPES[returns]} pl_${cName(name)}(${list.join(", ") || "void"});`;
  });
  return `${header("What the library exports beside its kernels.")}\n#define PL_ABI INT64_C(${abiNumber()})\n\n${lines.join("\n")}\n`;
}

function codes(): string {
  const constants = Object.entries(CONSTANTS).map(
    ([name, value]) => `constexpr int64_t ${cName(name).toUpperCase()} = ${value};`,
  );
  const enums = Object.entries(CODES).map(([name, words]) => {
    const prefix = cName(name).slice(1).toUpperCase();
    const members = [...words, "count"].map((word) => `  ${prefix}_${cName(word).toUpperCase()},`);
    return `enum ${name} : int32_t {\n${members.join("\n")}\n};`;
  });
  return `${header("Words and numbers that both sides of the ABI know.")}#include <cstdint>

namespace planish {

${constants.join("\n")}

${enums.join("\n\n")}

}  // namespace planish
`;
}

function plan(): string {
  const cases = PLAN_OPERATIONS.map((name, operation) => {
    const words = planParameters(name).map((each) => each.name);
    const values = parametersOf(KERNELS[name]).map((each) => {
      const word = `word[${words.indexOf(each.name) + 1}]`;
      if (each.name === "rows" || each.name === "chunks") return each.name;
      if (each.name === "length") return `rows * ${word}`;
      if (each.kind === "memory") return `pointer<${cType(each).slice(0, -1)}>(${word})`;
      if (each.kind === "number" && each.type === "i64") return word;
      if (each.kind === "number" && each.type !== "i32")
        return `static_cast<${C_TYPES[each.type]}>(real(${word}))`;
      return `static_cast<int32_t>(${word})`;
    });
    return `    case ${operation}:\n      return pl_${cName(name)}(\n${wrapped(values, "          ", ");")}`;
  });
  return `${header("The operations of plans (plan.cpp): a call's kernel, with its parameters from the words.")}#include <cstring>

#include "../planish.h"
#include "../pool.h"

namespace planish {

constexpr int64_t PLAN_WORDS = ${PLAN_WORDS};

template <class T>
inline T* pointer(int64_t word) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(word));
}

inline double real(int64_t word) {
  double value;
  memcpy(&value, &word, sizeof value);
  return value;
}

inline int run_call(const int64_t* word, int64_t rows, int64_t chunks) {
  switch (word[0]) {
${cases.join("\n")}
    default:
      return fail(PL_BAD_ARGUMENT, "plan: unknown operation %lld", static_cast<long long>(word[0]));
  }
}

}  // namespace planish
`;
}

/** Every header, by name. */
export const HEADERS: Readonly<Record<string, () => string>> = {
  "kernels.h": kernels,
  "functions.h": functions,
  "codes.h": codes,
  "plan.h": plan,
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  mkdirSync(ABI_FOLDER, { recursive: true });
  for (const [name, text] of Object.entries(HEADERS)) writeFileSync(join(ABI_FOLDER, name), text());
  writeFileSync(resolve(ABI_FOLDER, "../..", KERNEL_TABLE), kernelTable());
}
