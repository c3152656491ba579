#!/usr/bin/env node
/**
 * Compiles native/ into native/build/planish_native.so with the system's C++ compiler; no CMake, no dependencies.
 *
 *   node scripts/build-native.mjs [--optional] [--sanitize] [--emulate-amx] [--verbose]
 *
 * One translation unit per instruction-set level, each with its own flags; a level whose flags the compiler does not
 * know is left out, with a line that says so. Only what changed is compiled again: each object stands beside a key,
 * the hash of its source, its headers, its flags and the compiler's version.
 *
 * --optional  (npm's postinstall) a missing compiler or a failed compile is a warning, exit status 0.
 * --sanitize  builds planish_native_asan.so and the test driver under AddressSanitizer and UndefinedBehaviorSanitizer.
 *             The amx level runs on emulated tile instructions there; levels that this processor cannot run are left out.
 * --emulate-amx  builds planish_native_emulated.so, whose amx level runs on any AVX-512 machine, very slowly;
 *             PLANISH_NATIVE_LIBRARY=native/build/planish_native_emulated.so makes the loader take it.
 * $CXX names the compiler; otherwise c++, g++, clang++ are tried in this order.
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
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const nativeDir = join(root, "native");
const buildDir = join(nativeDir, "build");

const flags = new Set(process.argv.slice(2));
for (const flag of flags) {
  if (!["--optional", "--sanitize", "--emulate-amx", "--verbose"].includes(flag)) {
    console.error(
      `build-native: unknown flag ${flag}; accepted: --optional, --sanitize, --emulate-amx, --verbose`,
    );
    process.exit(2);
  }
}
const optional = flags.has("--optional");
const sanitize = flags.has("--sanitize");
const emulate = sanitize || flags.has("--emulate-amx");
const verbose = flags.has("--verbose");

class BuildError extends Error {}

// Products and sums are contracted to FMA only where a kernel asks for it, so that a level's results do not depend on
// the compiler's mood. Errno and traps of math functions are never read here.
const COMMON_FLAGS = [
  "-std=c++17",
  "-O3",
  "-fPIC",
  "-pthread",
  "-fno-exceptions",
  "-fno-rtti",
  "-fno-math-errno",
  "-fno-trapping-math",
  "-ffp-contract=off",
  "-fvisibility=hidden",
  "-Wall",
  "-Wextra",
];
// Lines in reports (g1), no variables: their tracking takes a quarter of the compiler's time.
const SANITIZE_FLAGS = [
  "-g1",
  "-fno-omit-frame-pointer",
  "-fsanitize=address,undefined",
  "-fno-sanitize-recover=all",
];

const AVX2 = ["-mavx2", "-mfma", "-mf16c"];
const AVX512 = [
  ...AVX2,
  "-mavx512f",
  "-mavx512bw",
  "-mavx512dq",
  "-mavx512vl",
  "-mavx512vnni",
  "-mavx512bf16",
];
const LEVEL_FLAGS = {
  portable: [],
  avx2: AVX2,
  avx512: AVX512,
  amx: [...AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
};

function sha256(...parts) {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
}

function findCompiler() {
  const candidates = process.env.CXX ? [process.env.CXX] : ["c++", "g++", "clang++"];
  for (const candidate of candidates) {
    const [command, ...extra] = candidate.split(/\s+/).filter(Boolean);
    const probe = spawnSync(command, [...extra, "--version"], { encoding: "utf8" });
    if (probe.status === 0) return { command, extra, version: probe.stdout };
  }
  throw new BuildError(
    process.env.CXX
      ? `$CXX is "${process.env.CXX}", which does not run`
      : "no C++ compiler found (tried c++, g++, clang++); install one or set CXX",
  );
}

/** Flags of /proc/cpuinfo without which a level does not run (native/dispatch.cpp); tiles are emulated under sanitizers. */
const AVX2_CPU = ["avx2", "fma", "f16c"];
const AVX512_CPU = ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"];
const SANITIZED_LEVEL_CPU = { portable: [], avx2: AVX2_CPU, avx512: AVX512_CPU, amx: AVX512_CPU };

/** What this processor lacks for a level; nothing where that cannot be found out. */
function lacking(level) {
  if (!existsSync("/proc/cpuinfo")) return [];
  const found = /^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1].split(/\s+/);
  return found ? SANITIZED_LEVEL_CPU[level].filter((flag) => !found.includes(flag)) : [];
}

function accepts(compiler, levelFlags) {
  const probe = spawnSync(
    compiler.command,
    [...compiler.extra, ...levelFlags, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"],
    { input: levelFlags.length ? "#include <immintrin.h>\n" : "", encoding: "utf8" },
  );
  return probe.status === 0;
}

function run(command, args) {
  if (verbose) console.error([command, ...args].join(" "));
  return new Promise((done, failed) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.on("data", (chunk) => (output += chunk));
    child.stderr.on("data", (chunk) => (output += chunk));
    child.on("error", failed);
    child.on("close", (code) => {
      if (code !== 0) failed(new BuildError(`${command} failed:\n${output.trim()}`));
      else done(output);
    });
  });
}

/** Files an object was made from, as the compiler wrote them in make's syntax; null when unknown. */
function dependencies(path) {
  if (!existsSync(path)) return null;
  const text = readFileSync(path, "utf8").replace(/\\\r?\n/g, " ");
  return text
    .slice(text.indexOf(":") + 1)
    .split(/(?<!\\)\s+/)
    .filter(Boolean)
    .map((name) => resolve(root, name.replace(/\\ /g, " ")));
}

function keyOf(unit, compiler, files) {
  const contents = files.map((file) => (existsSync(file) ? readFileSync(file) : "missing"));
  return sha256(compiler.version, [...compiler.extra, ...unit.flags].join(" "), ...contents);
}

function isFresh(unit, compiler) {
  const files = dependencies(`${unit.object}.d`);
  if (!files || !existsSync(unit.object) || !existsSync(`${unit.object}.key`)) return false;
  return readFileSync(`${unit.object}.key`, "utf8") === keyOf(unit, compiler, files);
}

/**
 * Two builds may run at once in one tree: everything is written under a name of its own, then renamed. A file edited
 * while the compiler ran leaves the object without a key, so that the next build makes it again.
 */
async function compile(unit, compiler) {
  const temporary = `${unit.object}.${process.pid}`;
  const started = Date.now();
  try {
    const output = await run(compiler.command, [
      ...compiler.extra,
      ...unit.flags,
      "-MMD",
      "-MF",
      `${temporary}.d`,
      "-c",
      unit.source,
      "-o",
      temporary,
    ]);
    if (output.trim()) console.error(output.trim());
    const files = dependencies(`${temporary}.d`);
    const edited = files.some((file) => !existsSync(file) || statSync(file).mtimeMs >= started);
    writeFileSync(`${temporary}.key`, edited ? "edited" : keyOf(unit, compiler, files));
    rmSync(`${unit.object}.key`, { force: true });
    renameSync(`${temporary}.d`, `${unit.object}.d`);
    renameSync(temporary, unit.object);
    renameSync(`${temporary}.key`, `${unit.object}.key`);
  } finally {
    for (const suffix of ["", ".d", ".key"]) rmSync(temporary + suffix, { force: true });
  }
}

function units(compiler) {
  const base = [
    ...COMMON_FLAGS,
    ...(sanitize ? [...SANITIZE_FLAGS, "-O1"] : []),
    ...(emulate ? ["-DPL_EMULATE_AMX"] : []),
  ];
  const objectDir = join(buildDir, sanitize ? "asan" : emulate ? "emulated" : "obj");
  mkdirSync(objectDir, { recursive: true });
  const levels = [];
  for (const [level, levelFlags] of Object.entries(LEVEL_FLAGS)) {
    if (level !== "portable" && process.arch !== "x64") continue;
    // The sanitized library only runs its own driver, here; the plain build has compiled every level.
    const lacks = sanitize ? lacking(level) : [];
    if (lacks.length > 0)
      console.error(
        `build-native: no ${level} under sanitizers, this processor lacks ${lacks.join(", ")}`,
      );
    else if (accepts(compiler, levelFlags)) levels.push(level);
    else
      console.error(
        `build-native: ${compiler.command} does not know ${levelFlags.join(" ")}; level ${level} is left out`,
      );
  }
  const have = levels.map((level) => `-DPL_HAVE_${level.toUpperCase()}`);
  const unit = (source, unitFlags) => ({
    source: join(nativeDir, source),
    object: join(objectDir, `${source.replace(/[/\\]/g, "_")}.o`),
    flags: unitFlags,
  });
  const plain = readdirSync(nativeDir)
    .filter((name) => name.endsWith(".cpp"))
    .sort()
    .map((name) => unit(name, [...base, ...have]));
  // The linker keeps the first copy of an inline function that several units share (from the standard library, say):
  // baseline objects come first, so that no copy with newer instructions runs on an older processor.
  const list = [
    ...plain,
    ...levels.map((level) => unit(`levels/${level}.cpp`, [...base, ...LEVEL_FLAGS[level]])),
  ];
  const driver = sanitize
    ? readdirSync(join(nativeDir, "test"))
        .filter((name) => name.endsWith(".cpp"))
        .sort()
        .map((name) => unit(`test/${name}`, [...base, ...have]))
    : [];
  return { library: list, driver };
}

async function link(compiler, target, objects, extra) {
  const temporary = `${target}.${process.pid}`;
  try {
    await run(compiler.command, [
      ...compiler.extra,
      ...(sanitize ? SANITIZE_FLAGS : []),
      ...extra,
      "-pthread",
      ...objects,
      "-o",
      temporary,
    ]);
    renameSync(temporary, target);
  } finally {
    rmSync(temporary, { force: true });
  }
}

async function build() {
  if (process.platform === "win32")
    throw new BuildError("the CPU kernels are not built on Windows");
  const compiler = findCompiler();
  const { library, driver } = units(compiler);
  const stale = [...library, ...driver].filter((unit) => !isFresh(unit, compiler));
  const name = sanitize
    ? "planish_native_asan"
    : emulate
      ? "planish_native_emulated"
      : "planish_native";
  const target = join(buildDir, `${name}.so`);
  const driverTarget = join(buildDir, "driver_asan");
  const linkKeyPath = `${target}.key`;
  // Of what the objects were made from, not of their names: another build may have made them since the last link.
  const linkKey = () =>
    sha256(
      compiler.version,
      ...[...library, ...driver].map((unit) =>
        existsSync(`${unit.object}.key`) ? readFileSync(`${unit.object}.key`, "utf8") : "missing",
      ),
    );
  const linked =
    existsSync(target) &&
    (!driver.length || existsSync(driverTarget)) &&
    existsSync(linkKeyPath) &&
    readFileSync(linkKeyPath, "utf8") === linkKey();
  if (!stale.length && linked) {
    console.error(`build-native: ${relative(root, target)} is up to date`);
    return;
  }
  const started = Date.now();
  console.error(
    `build-native: compiling ${stale.length} of ${library.length + driver.length} units with ${compiler.command}; all of them take minutes`,
  );
  const queue = [...stale];
  const worker = async () => {
    for (let unit = queue.shift(); unit; unit = queue.shift()) await compile(unit, compiler);
  };
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
  const keyBefore = linkKey();
  rmSync(linkKeyPath, { force: true });
  await link(
    compiler,
    target,
    library.map((unit) => unit.object),
    ["-shared"],
  );
  if (driver.length) {
    await link(
      compiler,
      driverTarget,
      [...library, ...driver].map((unit) => unit.object),
      [],
    );
  }
  writeFileSync(linkKeyPath, keyBefore);
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  console.error(
    `build-native: ${relative(root, target)} built in ${seconds} s (${stale.length} of ${library.length + driver.length} units)`,
  );
}

// `npx planish` in a source tree runs its install scripts without showing what they print: minutes of silence.
const hidden = optional && process.env.npm_command === "exec" && existsSync(join(root, "src"));

try {
  if (!hidden) await build();
} catch (error) {
  const message = error instanceof BuildError ? error.message : String(error?.stack ?? error);
  if (optional) {
    console.error(
      `planish: the CPU kernels were not built (${message.split("\n")[0]}); the reference backend will serve, ` +
        `hundreds of times slower. Install a C++17 compiler and run: npm run build:native`,
    );
  } else {
    console.error(`build-native: ${message}`);
    process.exitCode = 1;
  }
}
