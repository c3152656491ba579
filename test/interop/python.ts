/**
 * The Python that the interop lane asks for a second opinion: PLANISH_INTEROP_PYTHON, or an environment that the lane
 * makes for itself under out/ with the versions of requirements.txt.
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../../src/common/package.js";

const here = join(packageRoot, "test/interop");

/** Path of the interpreter; installs what it needs the first time, which takes minutes. */
export function interopPython(): string {
  const given = process.env["PLANISH_INTEROP_PYTHON"];
  if (given) return given;
  const venv = join(packageRoot, "out/interop-venv");
  const python = join(venv, "bin/python");
  if (!existsSync(join(venv, "complete"))) {
    execFileSync("python3", ["-m", "venv", venv], { stdio: "inherit" });
    const pip = ["-m", "pip", "install", "-q", "-r", join(here, "requirements.txt")];
    execFileSync(python, pip, { stdio: "inherit" });
    execFileSync("touch", [join(venv, "complete")]);
  }
  return python;
}

/** Runs a script of this folder. @throws when it fails, with what it printed. */
export function runPython(script: string, args: readonly string[]): string {
  return execFileSync(interopPython(), [join(here, script), ...args], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    maxBuffer: 1 << 26,
    env: { ...process.env, HF_HUB_OFFLINE: "1", TOKENIZERS_PARALLELISM: "false" },
  });
}
