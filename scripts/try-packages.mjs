#!/usr/bin/env node
/**
 * Tries the packed packages (out/packages) on the platform at hand, without a registry: installs this platform's tarballs
 * into an empty folder, scripts blocked, and runs the demo model there. Needs Node.js and npm only.
 *
 *   node scripts/try-packages.mjs [--levels] [--into FOLDER]
 *
 * --levels  the kernels' own tests with the packaged library instead, at every level of this processor (needs `npm ci`)
 * --into    installs into an existing project and stops there
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { libraryName } from "../native/targets.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const packages = join(root, "out", "packages");
const { values } = parseArgs({
  options: { levels: { type: "boolean" }, into: { type: "string" } },
});
const windows = process.platform === "win32";
const musl =
  process.platform === "linux" &&
  process.report.getReport().header.glibcVersionRuntime === undefined;
const platform = `${process.platform}-${process.arch}${musl ? "-musl" : ""}`;

function run(command, args, options = {}) {
  // npm and npx are scripts on Windows, which only a shell starts.
  const shell = windows && command !== process.execPath;
  const { status, stdout, error } = spawnSync(command, args, {
    encoding: "utf8",
    stdio: ["ignore", options.capture ? "pipe" : "inherit", "inherit"],
    shell,
    ...options,
  });
  if (status !== 0)
    throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? `status ${status}`}`);
  return stdout;
}

/** The tarballs that fit here. */
function tarballs() {
  const native = new RegExp(`^planish-native-${platform}-\\d`);
  const files = readdirSync(packages).filter(
    (name) => !name.startsWith("planish-native-") || native.test(name),
  );
  if (!files.some((name) => native.test(name)))
    throw new Error(`out/packages has no package for ${platform}; run npm run pack there first`);
  return files.map((name) => join(packages, name));
}

try {
  const folder = values.into ? resolve(values.into) : mkdtempSync(join(tmpdir(), "planish-try-"));
  if (!existsSync(join(folder, "package.json")))
    writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "app", private: true }));
  const flags = ["--ignore-scripts", "--no-audit", "--no-fund"];
  run("npm", ["install", ...flags, ...tarballs()], { cwd: folder });
  const library = join(
    folder,
    "node_modules",
    "@planish",
    `native-${platform}`,
    libraryName(process.platform),
  );
  if (values.levels)
    run(process.execPath, [join(root, "scripts", "bundle-lane.mjs"), "levels"], {
      env: { ...process.env, PLANISH_NATIVE_LIBRARY: library },
    });
  else if (!values.into) {
    const planish = join(folder, "node_modules", "planish", "bin", "planish.mjs");
    const capture = { cwd: folder, capture: true };
    const { kernels } = JSON.parse(run(process.execPath, [planish, "doctor", "--json"], capture));
    console.log(`${platform}: ${kernels.serves}: ${kernels.description}`);
    if (kernels.serves !== "cpu") throw new Error(kernels.problem ?? "native kernels do not serve");
    const written = JSON.parse(
      run(
        process.execPath,
        [
          planish,
          ...["generate", "tiny-llama", "--prompt", "Once", "--max-tokens", "16", "--json"],
        ],
        capture,
      ),
    );
    console.log(JSON.stringify(written.text));
    if (written.tokens.length !== 16) throw new Error(`${written.tokens.length} tokens, not 16`);
  }
  console.log(`${platform}: ok`);
} catch (error) {
  console.error(`try-packages: ${error.message}`);
  process.exitCode = 1;
}
