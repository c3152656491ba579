/**
 * Compiles the C++ in this folder to the library that src/backend/cpu/library.ts loads; no CMake, no dependencies. Used by
 * scripts/build-native.mjs (in a clone), scripts/build-packages.mjs (for every platform) and `planish build`.
 *
 * One translation unit per instruction-set level, each with its own flags; a level whose flags the compiler does not
 * know is left out, with a line that says so. Only what changed is compiled again: each object stands beside a key,
 * the hash of its source, its headers, its flags and the compiler's version.
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
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { LEVELS, OTHER_LEVELS, libraryName } from "./targets.mjs";

const nativeDir = dirname(fileURLToPath(import.meta.url));

// A thread of Node.js unloads at its end what it loaded, with the pool's threads still in the library (pool.cpp has the
// other systems' ways).
const LIBRARY_FLAGS = { linux: ["-Wl,-z,nodelete"] };

/** Why there is no library, for users. */
export class BuildError extends Error {}

// Products and sums are contracted to FMA only where a kernel asks for it, so that a level's results do not depend on
// the compiler's mood. Errno and traps of math functions are never read here.
const COMMON_FLAGS = [
  "-std=c++17",
  "-O3",
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

function sha256(...parts) {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
}

/** The compiler that $CXX names, else the first of c++, g++, clang++ that runs. @throws BuildError when none does. */
export function findCompiler(environment = process.env) {
  const candidates = environment.CXX ? [environment.CXX] : ["c++", "g++", "clang++"];
  for (const candidate of candidates) {
    const [command, ...extra] = candidate.split(/\s+/).filter(Boolean);
    const found = compilerAt(command, extra);
    if (found) return found;
  }
  throw new BuildError(
    environment.CXX
      ? `$CXX is "${environment.CXX}", which does not run`
      : "no C++ compiler found (tried c++, g++, clang++); install one or set CXX",
  );
}

/** A compiler by its command and what always follows it; undefined when it does not run. */
export function compilerAt(command, extra = []) {
  const probe = spawnSync(command, [...extra, "--version"], { encoding: "utf8" });
  return probe.status === 0 ? { command, extra, version: probe.stdout } : undefined;
}

/** Flags of /proc/cpuinfo without which a level does not run (native/dispatch.cpp); tiles are emulated under sanitizers. */
const AVX2_CPU = ["avx2", "fma", "f16c"];
const AVX512_CPU = ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"];
const SANITIZED_LEVEL_CPU = { avx2: AVX2_CPU, avx512: AVX512_CPU, amx: AVX512_CPU };

/** What this processor lacks for a level; nothing where that cannot be found out. */
function lacking(level) {
  if (!existsSync("/proc/cpuinfo")) return [];
  const found = /^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1].split(/\s+/);
  return found ? (SANITIZED_LEVEL_CPU[level] ?? []).filter((flag) => !found.includes(flag)) : [];
}

function accepts(compiler, levelFlags, arch) {
  if (compiler.knowsEveryLevel) return true;
  const probe = spawnSync(
    compiler.command,
    [...compiler.extra, ...levelFlags, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"],
    {
      input: levelFlags.length && arch === "x64" ? "#include <immintrin.h>\n" : "",
      encoding: "utf8",
    },
  );
  return probe.status === 0;
}

function run(command, args, options) {
  if (options.verbose) options.log([command, ...args].join(" "));
  return new Promise((done, failed) => {
    const child = spawn(command, args, {
      stdio: ["ignore", "pipe", "pipe"],
      signal: options.signal,
    });
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
    .slice(text.indexOf(": ") + 1)
    .split(/(?<!\\)\s+/)
    .filter(Boolean)
    .map((name) => resolve(name.replace(/\\ /g, " ")));
}

function keyOf(unit, compiler, files) {
  const contents = files.map((file) => (existsSync(file) ? readFileSync(file) : "missing"));
  return sha256(compiler.version, [...compiler.extra, ...unit.flags].join(" "), ...contents);
}

function isFresh(unit, compiler) {
  const files = dependencies(`${unit.object}.d`);
  // An object that was copied with its tree names the other tree's files.
  if (!files?.includes(unit.source)) return false;
  if (!existsSync(unit.object) || !existsSync(`${unit.object}.key`)) return false;
  return readFileSync(`${unit.object}.key`, "utf8") === keyOf(unit, compiler, files);
}

/**
 * Two builds may run at once in one tree: everything is written under a name of its own, then renamed. A file edited
 * while the compiler ran leaves the object without a key, so that the next build makes it again.
 */
async function compile(unit, compiler, options) {
  const temporary = `${unit.object}.${process.pid}`;
  const started = Date.now();
  try {
    const output = await run(
      compiler.command,
      [
        ...compiler.extra,
        ...unit.flags,
        "-MMD",
        "-MF",
        `${temporary}.d`,
        "-c",
        unit.source,
        "-o",
        temporary,
      ],
      options,
    );
    if (output.trim()) options.log(output.trim());
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

/** A level's flags as the compiler spells them. */
function ownFlags(compiler, flags) {
  return flags.map((flag) => compiler.spellings?.[flag] ?? flag);
}

function units(compiler, options) {
  const { os, arch, sanitize, emulate, log } = options;
  const base = [
    ...COMMON_FLAGS,
    // Everything is relocatable on Windows.
    ...(os === "win32" ? [] : ["-fPIC"]),
    ...(sanitize ? [...SANITIZE_FLAGS, "-O1"] : []),
    ...(emulate ? ["-DPL_EMULATE_AMX"] : []),
  ];
  mkdirSync(options.objectDir, { recursive: true });
  const levelFlags = LEVELS[arch] ?? OTHER_LEVELS;
  const levels = [];
  for (const [level, flags] of Object.entries(levelFlags)) {
    // The sanitized library only runs its own driver, here; the plain build has compiled every level.
    const lacks = sanitize ? lacking(level) : [];
    if (lacks.length > 0)
      log(`no ${level} under sanitizers, this processor lacks ${lacks.join(", ")}`);
    else if (accepts(compiler, ownFlags(compiler, flags), arch)) levels.push(level);
    else log(`${compiler.command} does not know ${flags.join(" ")}; level ${level} is left out`);
  }
  const have = levels.map((level) => `-DPL_HAVE_${level.toUpperCase()}`);
  const unit = (source, flags) => ({
    source: join(nativeDir, source),
    object: join(options.objectDir, `${source.replace(/[/\\]/g, "_")}.o`),
    flags,
  });
  const plain = readdirSync(nativeDir)
    .filter((name) => name.endsWith(".cpp"))
    .sort()
    .map((name) => unit(name, [...base, ...have]));
  // The linker keeps the first copy of an inline function that several units share (from the standard library, say):
  // baseline objects come first, so that no copy with newer instructions runs on an older processor.
  const list = [
    ...plain,
    ...levels.map((level) =>
      unit(`levels/${level}.cpp`, [...base, ...ownFlags(compiler, levelFlags[level])]),
    ),
  ];
  const driver = options.driver
    ? readdirSync(join(nativeDir, "test"))
        .filter((name) => name.endsWith(".cpp"))
        .sort()
        .map((name) => unit(`test/${name}`, [...base, ...have]))
    : [];
  return { library: list, driver, levels };
}

async function link(compiler, target, objects, extra, options) {
  const temporary = `${target}.${process.pid}`;
  try {
    await run(
      compiler.command,
      [
        ...compiler.extra,
        ...(options.sanitize ? SANITIZE_FLAGS : []),
        ...extra,
        "-pthread",
        ...objects,
        "-o",
        temporary,
      ],
      options,
    );
    renameSync(temporary, target);
  } finally {
    rmSync(temporary, { force: true });
    // What linkers for Windows leave beside a library.
    for (const suffix of [".lib", ".pdb"]) rmSync(temporary + suffix, { force: true });
  }
}

/**
 * Builds the library, where anything of it has changed, and returns its path, its levels and how many units were compiled.
 *
 * Options:
 * - `out`       directory of the library; objects go to `objects` (default: `out`/obj, or asan or emulated)
 * - `compiler`  of `findCompiler` or `compilerAt`
 * - `os`, `arch`  of the target, as Node.js names them (default: this machine's)
 * - `linkFlags` passed on when linking the library
 * - `sanitize`  planish_native_asan and the test driver under AddressSanitizer and UndefinedBehaviorSanitizer; the amx
 *               level runs on emulated tile instructions there, levels that this processor cannot run are left out
 * - `driver`    the test driver (native/test) too, for this machine or an emulator (default: as `sanitize`)
 * - `emulate`   planish_native_emulated, whose amx level runs on any AVX-512 machine, very slowly
 * - `log`, `onUnit`, `verbose`, `signal`  lines for people; called with units done and in all; commands too; stops it
 *
 * @throws BuildError with the compiler's output
 */
export async function buildNative(given) {
  const {
    sanitize = false,
    emulate = sanitize,
    os = process.platform,
    arch = process.arch,
  } = given;
  const stem = sanitize
    ? "planish_native_asan"
    : emulate
      ? "planish_native_emulated"
      : "planish_native";
  const objects =
    given.objects ?? join(given.out, sanitize ? "asan" : emulate ? "emulated" : "obj");
  const options = {
    log: () => {},
    onUnit: () => {},
    ...given,
    sanitize,
    driver: given.driver ?? sanitize,
    emulate,
    os,
    arch,
    objectDir: objects,
  };
  const { compiler } = options;
  const { library, driver, levels } = units(compiler, options);
  const every = [...library, ...driver];
  const stale = every.filter((unit) => !isFresh(unit, compiler));
  const target = join(options.out, libraryName(os, stem));
  const driverTarget = join(options.out, sanitize ? "driver_asan" : "driver");
  const linkKeyPath = `${target}.key`;
  // Of what the objects were made from, not of their names: another build may have made them since the last link.
  const flags = ["-shared", ...(LIBRARY_FLAGS[os] ?? []), ...(options.linkFlags ?? [])];
  const linkKey = () =>
    sha256(
      compiler.version,
      ...flags,
      ...every.map((unit) =>
        existsSync(`${unit.object}.key`) ? readFileSync(`${unit.object}.key`, "utf8") : "missing",
      ),
    );
  const linked =
    existsSync(target) &&
    (!driver.length || existsSync(driverTarget)) &&
    existsSync(linkKeyPath) &&
    readFileSync(linkKeyPath, "utf8") === linkKey();
  const result = { path: target, levels, compiled: stale.length, units: every.length };
  if (!stale.length && linked) return { ...result, upToDate: true };
  if (stale.length)
    options.log(
      `compiling ${stale.length} of ${every.length} units with ${compiler.command}; all of them take minutes`,
    );
  const queue = [...stale];
  let done = 0;
  options.onUnit(done, stale.length);
  const worker = async () => {
    for (let unit = queue.shift(); unit; unit = queue.shift()) {
      await compile(unit, compiler, options);
      options.onUnit(++done, stale.length);
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
  const keyBefore = linkKey();
  rmSync(linkKeyPath, { force: true });
  const paths = (list) => list.map((unit) => unit.object);
  await link(compiler, target, paths(library), flags, options);
  if (driver.length) await link(compiler, driverTarget, paths(every), [], options);
  writeFileSync(linkKeyPath, keyBefore);
  return { ...result, upToDate: false };
}
