#!/usr/bin/env node
/**
 * Compiles native/ to WebAssembly with Zig's C++ compiler: native/build/planish_simd128.wasm and planish_relaxed.wasm, one
 * instruction-set level each.
 *
 *   node scripts/build-wasm.mjs [--install] [--optional] [--verbose]
 *
 * --install   puts PyPI's ziglang into out/zig where no zig is found.
 * --optional  a missing zig is a line on stderr, exit status 0.
 */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findZig, installZig } from "./zig.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const nativeDir = join(root, "native");
const buildDir = join(nativeDir, "build");

const flags = new Set(process.argv.slice(2));
const accepted = ["--install", "--optional", "--verbose"];
for (const flag of flags) {
  if (accepted.includes(flag)) continue;
  console.error(`build-wasm: unknown flag ${flag}; accepted: ${accepted.join(", ")}`);
  process.exit(2);
}

// As scripts/build-native.mjs says of its own: contraction only where a kernel asks for it.
const COMPILE = [
  "-target",
  "wasm32-wasi",
  "-std=c++17",
  "-O3",
  "-fno-exceptions",
  "-fno-rtti",
  // One thread is the first to come by.
  "-fno-threadsafe-statics",
  "-fno-math-errno",
  "-fno-trapping-math",
  "-ffp-contract=off",
  "-Wall",
  "-Wextra",
];
const FEATURES = "generic+simd128+atomics+bulk_memory+mutable_globals+nontrapping_fptoint+sign_ext";
const LEVELS = { simd128: FEATURES, relaxed: `${FEATURES}+relaxed_simd` };
const SOURCES = ["dispatch.cpp", "plan.cpp", "pool.cpp", "wasm/memory.cpp"];
// src/backend/wasm/linear-memory.ts and library.ts know the memory's first and largest size.
const LINK = [
  "-mexec-model=reactor",
  "-Wl,--shared-memory,--import-memory",
  `-Wl,--initial-memory=${512 * 2 ** 16}`,
  `-Wl,--max-memory=${(2 ** 16 - 1) * 2 ** 16}`,
  "-Wl,-z,stack-size=1048576",
  "-Wl,--export-dynamic",
  "-Wl,--export=__stack_pointer,--export=__wasm_init_tls,--export=__tls_size",
  "-s",
];

function run(zig, args) {
  const [command, ...rest] = zig;
  if (flags.has("--verbose")) console.error([...zig, ...args].join(" "));
  return new Promise((done, failed) => {
    const child = spawn(command, [...rest, ...args], { stdio: ["ignore", 2, 2] });
    child.on("error", failed);
    child.on("close", (code) =>
      code === 0 ? done() : failed(new Error(`${command} ended with status ${code}`)),
    );
  });
}

/** Everything that a module is made from. */
function keyOf(zig) {
  const hash = createHash("sha256");
  hash.update(spawnSync(zig[0], [...zig.slice(1), "version"], { encoding: "utf8" }).stdout);
  hash.update(readFileSync(fileURLToPath(import.meta.url)));
  const files = readdirSync(nativeDir, { recursive: true })
    .map(String)
    .filter((name) => /\.(h|cpp)$/.test(name) && !/^(build|cuda|test)\b/.test(name))
    .sort();
  for (const name of files) hash.update(name).update(readFileSync(join(nativeDir, name)));
  return hash.digest("hex");
}

async function build(zig, level) {
  const target = join(buildDir, `planish_${level}.wasm`);
  const key = keyOf(zig);
  if (existsSync(target) && existsSync(`${target}.key`))
    if (readFileSync(`${target}.key`, "utf8") === key) return false;
  const objects = join(buildDir, `wasm-${level}-${process.pid}`);
  mkdirSync(objects, { recursive: true });
  try {
    const compile = [
      "c++",
      ...COMPILE,
      `-mcpu=${LEVELS[level]}`,
      `-DPL_HAVE_${level.toUpperCase()}`,
    ];
    const outputs = [];
    for (const source of [...SOURCES, `levels/${level}.cpp`]) {
      const output = join(objects, `${source.replaceAll("/", "_")}.o`);
      await run(zig, [...compile, "-c", join(nativeDir, source), "-o", output]);
      outputs.push(output);
    }
    const linked = join(objects, "linked.wasm");
    await run(zig, [...compile, ...LINK, ...outputs, "-o", linked]);
    rmSync(`${target}.key`, { force: true });
    renameSync(linked, target);
    writeFileSync(`${target}.key`, key);
    return true;
  } finally {
    rmSync(objects, { recursive: true, force: true });
  }
}

function zigAtHand() {
  try {
    return findZig();
  } catch (error) {
    if (!flags.has("--install")) throw error;
    return installZig();
  }
}

let zig;
try {
  zig = zigAtHand();
} catch (error) {
  console.error(`build-wasm: ${error.message}`);
  process.exitCode = flags.has("--optional") ? 0 : 1;
}
if (zig) {
  try {
    const made = await Promise.all(Object.keys(LEVELS).map((level) => build(zig, level)));
    console.error(
      `build-wasm: native/build/planish_*.wasm ${made.includes(true) ? "built" : "are up to date"}`,
    );
  } catch (error) {
    console.error(`build-wasm: ${error.message}`);
    process.exitCode = 1;
  }
}
