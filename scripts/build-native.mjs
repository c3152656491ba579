#!/usr/bin/env node
/**
 * Compiles native/ into native/build/ with the system's C++ compiler, in a clone; what is compiled and how stands in
 * native/build.mjs.
 *
 *   node scripts/build-native.mjs [--sanitize] [--emulate-amx] [--verbose]
 *
 * --sanitize  builds planish_native_asan and the test driver under AddressSanitizer and UndefinedBehaviorSanitizer.
 * --emulate-amx  builds planish_native_emulated, whose amx level runs on any AVX-512 machine, very slowly;
 *             PLANISH_NATIVE_LIBRARY=native/build/planish_native_emulated.so makes the loader take it.
 * $CXX names the compiler; otherwise c++, g++, clang++ are tried in this order.
 */
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { BuildError, buildNative, findCompiler } from "../native/build.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const ACCEPTED = ["--sanitize", "--emulate-amx", "--verbose"];

const flags = new Set(process.argv.slice(2));
for (const flag of flags) {
  if (!ACCEPTED.includes(flag)) {
    console.error(`build-native: unknown flag ${flag}; accepted: ${ACCEPTED.join(", ")}`);
    process.exit(2);
  }
}

const log = (line) => console.error(`build-native: ${line}`);
const started = Date.now();
try {
  const built = await buildNative({
    out: join(root, "native", "build"),
    compiler: findCompiler(),
    sanitize: flags.has("--sanitize"),
    emulate: flags.has("--sanitize") || flags.has("--emulate-amx"),
    verbose: flags.has("--verbose"),
    log,
  });
  const path = relative(root, built.path);
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  log(
    built.upToDate
      ? `${path} is up to date`
      : `${path} built in ${seconds} s (${built.compiled} of ${built.units} units)`,
  );
} catch (error) {
  log(error instanceof BuildError ? error.message : String(error?.stack ?? error));
  process.exitCode = 1;
}
