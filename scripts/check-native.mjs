#!/usr/bin/env node
/**
 * Layout and lint of native/: clang-format on every file, clang-tidy on every translation unit (.clang-format, .clang-tidy).
 *
 *   node scripts/check-native.mjs [--fix]
 *
 * Layouts differ between versions, so both tools are of one version, from PyPI, in a virtual environment under
 * node_modules/.cache; a machine without Python 3 or PyPI says so and fails. --fix writes layouts instead of comparing.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { LEVEL_FLAGS } from "./build-native.mjs";

const TOOLS = ["clang-format==23.1.5", "clang-tidy==23.1.4"];
const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const fix = process.argv.includes("--fix");

function run(command, args, quiet = false) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  if (error) return { ok: false, text: `${command}: ${error.message}` };
  return { ok: status === 0, text: quiet ? "" : stdout + stderr };
}
