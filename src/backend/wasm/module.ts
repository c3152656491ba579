/**
 * The compiled WebAssembly modules (`npm run build:wasm`): where they are, and which of them this JavaScript engine runs.
 * Each holds one instruction-set level of the kernels.
 */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { PlanishError } from "../../common/errors.js";
import { Wasm, type WasmModule } from "./webassembly.js";

/** Best last: `relaxed` has the dot product of signed bytes and 7-bit integers (V8 11.4, so Node 22 and later). */
export const WASM_LEVELS = ["simd128", "relaxed"] as const;
export type WasmLevel = (typeof WASM_LEVELS)[number];

const require = createRequire(import.meta.url);

/**
 * A level's file: in the folder that PLANISH_WASM names, in a source tree's native/build, or in the package @planish/wasm;
 * undefined where it is in none.
 */
export function wasmModulePath(level: WasmLevel): string | undefined {
  const name = `planish_${level}.wasm`;
  const given = process.env.PLANISH_WASM;
  if (given) return existsSync(join(given, name)) ? join(given, name) : undefined;
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, "package.json")) && dirname(directory) !== directory)
    directory = dirname(directory);
  const built = join(directory, "native", "build", name);
  if (existsSync(built)) return built;
  try {
    return require.resolve(`@planish/wasm/${name}`);
  } catch {
    return undefined;
  }
}

/** Whether there is a module at all. */
export function wasmModuleExists(): boolean {
  return WASM_LEVELS.some((level) => wasmModulePath(level) !== undefined);
}

/** Levels that are built and that this JavaScript engine accepts, best last. */
export function wasmLevels(): WasmLevel[] {
  return WASM_LEVELS.filter((level) => {
    const path = wasmModulePath(level);
    if (path === undefined || (level === "relaxed" && relaxedIsFlawed())) return false;
    return Wasm.validate(readFileSync(path));
  });
}

/** V8 11.3, Node 20's, has the relaxed instructions behind a flag only; its dot product adds the products twice. */
function relaxedIsFlawed(): boolean {
  const [major, minor] = (process.versions.v8 ?? "99").split(".").map(Number);
  return major < 11 || (major === 11 && minor < 4);
}

/**
 * The file of the best level, or of the one that is named.
 * @throws PlanishError when none is built, or the JavaScript engine does not run it.
 */
export function chooseWasmModule(named?: string): string {
  if (!wasmModuleExists())
    throw new PlanishError(
      "the WebAssembly kernels are not built; run `npm run build:wasm` (needs PyPI's ziglang)",
    );
  const levels = wasmLevels();
  const level = named === undefined ? levels.at(-1) : levels.find((each) => each === named);
  const path = level && wasmModulePath(level);
  if (path !== undefined) return path;
  throw new PlanishError(
    named === undefined
      ? "this JavaScript engine runs none of the WebAssembly kernels: they need 128-bit vectors and shared memory (Node.js 20 or later)"
      : `instruction-set level "${named}" is not available in WebAssembly here; this engine and build have: ${levels.join(", ") || "none"}`,
  );
}

/** @throws PlanishError when the file is no module, or one that this JavaScript engine does not run. */
export function compileWasm(path: string): WasmModule {
  try {
    return new Wasm.Module(readFileSync(path));
  } catch (cause) {
    throw new PlanishError(
      `the WebAssembly kernels at ${path} do not load here (${(cause as Error).message}); run \`npm run build:wasm\``,
      { cause },
    );
  }
}
