#!/usr/bin/env node
/**
 * Compiles src/ to dist/ where npm asks for a package that runs.
 *
 *   node scripts/prepare.mjs          (npm's `prepare`: npm ci, npx and git dependencies) when dist/ is missing or older
 *                                     than src/; without the compiler it says what to run, exit status 0
 *   node scripts/prepare.mjs --pack   (npm's `prepack`) always, from nothing; installs the compiler first where the
 *                                     dependencies are missing
 *
 * Everything it prints goes to stderr: `npm pack --json` owns stdout.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const main = join(root, "dist", "cli", "main.js");
const pack = process.argv.includes("--pack");

/** Whether a file of src/ is newer than what was compiled. */
function outdated() {
  if (!existsSync(main)) return true;
  const compiled = statSync(main).mtimeMs;
  return readdirSync(join(root, "src"), { recursive: true }).some(
    (name) => statSync(join(root, "src", name)).mtimeMs > compiled,
  );
}

function npm(...args) {
  const { status } = spawnSync("npm", args, {
    cwd: root,
    stdio: ["ignore", 2, 2],
    shell: process.platform === "win32",
  });
  if (status !== 0) {
    console.error(`planish: npm ${args.join(" ")} failed`);
    process.exit(1);
  }
}

if (pack || outdated()) {
  const compiler = existsSync(join(root, "node_modules", "typescript", "package.json"));
  if (!compiler && !pack) {
    console.error(
      "planish: dist/ is not compiled, and TypeScript is not installed; run: npm ci && npm run build",
    );
    process.exit(0);
  }
  if (!compiler) {
    console.error("planish: installing what compiles it (npm ci --ignore-scripts)");
    npm("ci", "--ignore-scripts");
  }
  if (pack) rmSync(join(root, "dist"), { recursive: true, force: true });
  console.error("planish: compiling src/ to dist/");
  npm("run", "--silent", "build");
}
