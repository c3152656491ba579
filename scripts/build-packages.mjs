#!/usr/bin/env node
/**
 * Compiles the native library for every platform that has a package, with zig (scripts/zig.mjs), into out/native/PLATFORM/.
 * Only what changed is compiled again.
 *
 *   node scripts/build-packages.mjs [PLATFORM…]     default: every platform of native/targets.mjs
 */
import { mkdirSync, statSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { buildNative } from "../native/build.mjs";
import { PLATFORMS } from "../native/targets.mjs";
import { zigCompiler } from "./zig.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");

/** Where a platform's library and its objects are made. */
export function platformFolder(platform) {
  return join(root, "out", "native", platform);
}

/** Builds a platform's library and returns its path. @throws BuildError, or Error without zig. */
export async function buildPlatform(platform, log) {
  const { os, cpu, triple } = PLATFORMS[platform];
  const out = platformFolder(platform);
  mkdirSync(out, { recursive: true });
  const started = Date.now();
  const built = await buildNative({
    out,
    os,
    arch: cpu,
    compiler: zigCompiler(triple),
    linkFlags: ["-s"],
    log: (line) => log(`${platform}: ${line}`),
  });
  const megabytes = (statSync(built.path).size / 1e6).toFixed(2);
  const time = built.upToDate ? "up to date" : `${((Date.now() - started) / 1000).toFixed(0)} s`;
  log(`${relative(root, built.path)}: ${built.levels.join(", ")}; ${megabytes} MB, ${time}`);
  return built.path;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const log = (line) => console.error(`build-packages: ${line}`);
  const names = process.argv.slice(2);
  const unknown = names.filter((name) => !Object.hasOwn(PLATFORMS, name));
  if (unknown.length > 0) {
    log(`no platform ${unknown.join(", ")}; there are ${Object.keys(PLATFORMS).join(", ")}`);
    process.exit(2);
  }
  try {
    for (const platform of names.length > 0 ? names : Object.keys(PLATFORMS))
      await buildPlatform(platform, log);
  } catch (error) {
    log(error.message);
    process.exitCode = 1;
  }
}
