/**
 * Zig's clang, which compiles C++ for every platform of native/targets.mjs and has each one's C library: from $ZIG, from
 * PATH, or as Python's package ziglang (`pip install ziglang`, outside the repository).
 */
import { compilerAt } from "../native/build.mjs";

const CANDIDATES = [["zig"], ["python3", "-m", "ziglang"], ["python", "-m", "ziglang"]];

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

/** The compiler for a target triple, as native/build.mjs takes it. Zig traps undefined behaviour unless it is told not to. */
export function zigCompiler(triple) {
  const [command, ...rest] = findZig();
  const flags = ["c++", "-target", triple, "-fno-sanitize=undefined", "-g0"];
  return { ...compilerAt(command, [...rest, ...flags]), knowsEveryLevel: true };
}
