/**
 * Zig's clang, which compiles C++ for every platform of native/targets.mjs and has each one's C library: from $ZIG, from
 * PATH, or as Python's package ziglang (`pip install ziglang`, outside the repository, or `installZig` into out/zig).
 */
import { spawnSync } from "node:child_process";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { compilerAt } from "../native/build.mjs";

/** Where `installZig` puts it. */
const ENVIRONMENT = join(resolve(dirname(fileURLToPath(import.meta.url)), ".."), "out", "zig");
/** The version that the builds were tried with. */
const ZIGLANG = "ziglang==0.17.1";

const CANDIDATES = [
  ["zig"],
  ["python3", "-m", "ziglang"],
  ["python", "-m", "ziglang"],
  [join(ENVIRONMENT, "bin", "python3"), "-m", "ziglang"],
];

/** Words of the command that runs zig. @throws Error when none does. */
export function findZig() {
  const named = process.env.ZIG?.split(/\s+/).filter(Boolean);
  for (const words of named ? [named] : CANDIDATES) {
    const [command, ...rest] = words;
    if (compilerAt(command, [...rest, "c++"])) return words;
  }
  throw new Error(
    named
      ? `$ZIG is "${process.env.ZIG}", which does not run`
      : 'no zig found; `pip install ziglang` in a virtual environment, and ZIG="VENV/bin/python -m ziglang"',
  );
}

/** Flags of levels (native/targets.mjs) that zig knows by other names. */
const SPELLINGS = { "-march=armv8.2-a+dotprod": "-mcpu=generic+v8_2a+dotprod" };

/** The compiler for a target triple, as native/build.mjs takes it. Zig traps undefined behaviour unless it is told not to. */
export function zigCompiler(triple) {
  const [command, ...rest] = findZig();
  const flags = ["c++", "-target", triple, "-fno-sanitize=undefined", "-g0"];
  return {
    ...compilerAt(command, [...rest, ...flags]),
    knowsEveryLevel: true,
    spellings: SPELLINGS,
  };
}

/**
 * Puts PyPI's ziglang (some 100 MB) into out/zig with python3, and returns the words of the command that runs it.
 * @throws Error where there is no python3, no venv or no PyPI.
 */
export function installZig() {
  const python = join(ENVIRONMENT, "bin", "python3");
  for (const [command, ...args] of [
    ["python3", "-m", "venv", ENVIRONMENT],
    [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ZIGLANG],
  ]) {
    const { status } = spawnSync(command, args, { stdio: ["ignore", 2, 2] });
    if (status !== 0)
      throw new Error(`zig cannot be installed: ${command} ${args.join(" ")} failed`);
  }
  return findZig();
}
