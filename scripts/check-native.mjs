#!/usr/bin/env node
/**
 * Layout and lint of native/: clang-format on every file that is not made from the ABI's table, clang-tidy on every
 * translation unit that clang compiles for x64 (.clang-format, .clang-tidy).
 *
 *   node scripts/check-native.mjs [--fix] [--optional]
 *
 * Layouts differ between versions, so both tools have one: they come from PyPI into out/clang. Without Python 3 or PyPI the
 * check fails and says so; with --optional it says so and passes. --fix writes layouts instead of comparing.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { LEVELS } from "../native/targets.mjs";

const TOOLS = ["clang-format==23.1.5", "clang-tidy==23.1.4"];
const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const environment = join(root, "out", "clang");
const fix = process.argv.includes("--fix");
const optional = process.argv.includes("--optional");

function run(command, args) {
  const options = { cwd: root, encoding: "utf8", maxBuffer: 1 << 28 };
  const { status, stdout, stderr, error } = spawnSync(command, args, options);
  return { ok: status === 0, text: error ? error.message : stdout + stderr };
}

function must(what, command, args) {
  const { ok, text } = run(command, args);
  if (ok) return text;
  console.error(`check-native: ${what} failed: ${text.trim()}`);
  process.exit(1);
}

/** Path of one of the tools; both are installed by the first call. */
function tool(name) {
  const stamp = join(environment, "versions");
  const versions = TOOLS.join(" ");
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== versions) {
    const steps = [
      ["python3", ["-m", "venv", environment]],
      [join(environment, "bin", "pip"), ["install", "--quiet", ...TOOLS]],
    ];
    for (const [command, args] of steps) {
      const { ok, text } = run(command, args);
      if (ok) continue;
      console.error(
        `check-native: ${TOOLS.join(" and ")} cannot be installed here: ${text.trim()}`,
      );
      process.exit(optional ? 0 : 1);
    }
    writeFileSync(stamp, versions);
  }
  return join(environment, "bin", name);
}

const tracked = must("git ls-files", "git", ["ls-files", "native"]).trim().split("\n");
const sources = tracked.filter(
  (file) => /\.(cpp|h|cu|cuh)$/.test(file) && !file.startsWith("native/abi/"),
);
const layout = run(tool("clang-format"), [
  ...(fix ? ["-i"] : ["--dry-run", "-Werror"]),
  ...sources,
]);

const units = tracked
  .filter((file) => file.endsWith(".cpp"))
  .flatMap((file) => {
    const level = /^native\/levels\/(\w+)\.cpp$/.exec(file)?.[1];
    // Levels of other processors are compiled by their own compilers.
    if (level !== undefined && !(level in LEVELS.x64)) return [];
    return [{ file, flags: level === undefined ? [] : LEVELS.x64[level] }];
  });
const failures = [];
if (process.arch === "x64") {
  for (const { file, flags } of units) {
    const { ok, text } = run(tool("clang-tidy"), [
      "--quiet",
      file,
      "--",
      "-std=c++17",
      "-Inative",
      ...flags,
    ]);
    if (!ok) failures.push(text.trim());
  }
} else console.log("check-native: clang-tidy runs on x64 only");

if (!layout.ok) console.error(layout.text.trim());
for (const text of failures) console.error(text);
console.log(
  `check-native: ${sources.length} files, ${units.length} units, ` +
    (layout.ok && failures.length === 0 ? "clean" : "see above; npm run format:native lays out"),
);
if (!layout.ok || failures.length > 0) process.exitCode = 1;
