/**
 * The kernels that native/cuda declares, read from its sources: by file and name, how each argument is passed. From it come
 * src/backend/cuda/kernel-table.ts (`npm run generate:abi`) and the test that fails when that file is another's.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { kernelSourceFolder } from "../src/backend/cuda/modules.js";

export const KERNEL_TABLE = "src/backend/cuda/kernel-table.ts";

/** Parameters that are structs of 8-byte fields. */
const STRUCTS: Readonly<Record<string, string>> = {
  Shape: "i".repeat(16),
  Solves: "pppppi".repeat(24),
};

/** p, i or d of each parameter, as `KernelSignature` has them. @throws Error for one that is not 8 bytes wide. */
export function signatureOf(parameters: string): string {
  let type = "";
  return parameters
    .split(",")
    .map((parameter) => {
      const words = parameter
        .trim()
        .replace(/^const /, "")
        .split(/\s+/);
      // `i64 a, b` in a macro, and `const u8 *a, const i8 *b`.
      if (words.length > 1) type = words[0];
      if (parameter.includes("*")) return "p";
      if (type === "i64") return "i";
      if (type === "double") return "d";
      const fields = STRUCTS[type];
      if (fields === undefined) throw new Error(`a parameter of 8 bytes is expected: ${parameter}`);
      return fields;
    })
    .join("");
}

/** Signatures by file (without `.cu`) and kernel, as the sources declare them. */
export function declaredKernels(): Record<string, Record<string, string>> {
  const folder = kernelSourceFolder();
  const read = (file: string) =>
    readFileSync(join(folder, file), "utf8")
      .replace(/\\\n/g, " ")
      .replace(/\/\/.*$/gm, "");
  const ofProducts = /#define PARAMETERS\s+(.*)$/m.exec(read("engine/gemm.cuh"))?.[1] ?? "";
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".cu"))
    .map((name) => name.slice(0, -".cu".length).replaceAll("\\", "/"))
    .sort();
  return Object.fromEntries(
    files.map((file) => {
      const source = read(`${file}.cu`);
      const found: Record<string, string> = {};
      const plain = /extern "C" __global__ void[^{;]*?\b(\w+)\(([^()]*)\)\s*\{/g;
      for (const [, kernel, parameters] of source.matchAll(plain))
        found[kernel] = signatureOf(parameters.replace("PARAMETERS", ofProducts));
      for (const [, kernel, parameters] of source.matchAll(/ROW_KERNEL\((\w+),\s*\(([^)]*)\)/g))
        for (const form of ["warp", "block"]) found[`${kernel}_${form}`] = signatureOf(parameters);
      return [file, found];
    }),
  );
}

/** The text of src/backend/cuda/kernel-table.ts. */
export function kernelTable(): string {
  const lines = Object.entries(declaredKernels()).flatMap(([file, kernels]) => [
    `  ${/^\w+$/.test(file) ? file : JSON.stringify(file)}: {`,
    ...Object.entries(kernels).map(([name, signature]) => {
      const line = `    ${name}: "${signature}",`;
      return line.length <= 100 ? line : `    ${name}:\n      "${signature}",`;
    }),
    "  },",
  ]);
  return [
    "/**",
    " * The kernels of native/cuda by file and name, with how each argument is passed: p a device pointer, i a 64-bit integer,",
    " * d a double. Made from their declarations by `npm run generate:abi`; change those.",
    " */",
    "export const CUDA_KERNELS: Readonly<Record<string, Readonly<Record<string, string>>>> = {",
    ...lines,
    "};\n",
  ].join("\n");
}
