#!/usr/bin/env node
/**
 * A release: checks that version, changelog and tree agree, packs every package, tries them as a new user would
 * (scripts/test-install.mjs), and publishes them, planish last, so that it never names what is not there yet.
 *
 *   npm run release -- --dry-run            everything but publishing
 *   npm run release -- --version 0.2.0      writes the version into package.json, its lock and src/common/version.ts
 *   npm run release                         publishes; in CI with --provenance, which signs where each tarball was built
 *
 * A tree with uncommitted changes is not published.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { packAll, packagesFolder, packOptions, PACK_FLAGS } from "./pack.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const { values } = parseArgs({
  options: {
    ...PACK_FLAGS,
    "dry-run": { type: "boolean" },
    provenance: { type: "boolean" },
    version: { type: "string" },
  },
});

const read = (name) => readFileSync(join(root, name), "utf8");

function run(command, args) {
  const { status } = spawnSync(command, args, { cwd: root, stdio: ["ignore", "inherit", 2] });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed`);
}

function setVersion(version) {
  if (!/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
    throw new Error(`--version ${version} is no version; write it as 1.2.3 or 1.2.3-rc.1`);
  run("npm", ["version", version, "--no-git-tag-version", "--allow-same-version"]);
  const file = join(root, "src/common/version.ts");
  writeFileSync(
    file,
    read("src/common/version.ts").replace(/VERSION = "[^"]*"/, `VERSION = "${version}"`),
  );
}

/** Why this tree cannot be released; nothing when it can. */
function problems() {
  const { version } = JSON.parse(read("package.json"));
  const found = [];
  if (!read("src/common/version.ts").includes(`VERSION = "${version}"`))
    found.push(`src/common/version.ts is not at ${version}`);
  if (!read("CHANGELOG.md").includes(`\n## ${version}\n`))
    found.push(`CHANGELOG.md has no section "## ${version}"`);
  const changed = spawnSync("git", ["status", "--porcelain"], { cwd: root, encoding: "utf8" });
  if (changed.stdout.trim() !== "") found.push("there are uncommitted changes");
  return found;
}

try {
  if (values.version) {
    setVersion(values.version);
    console.error(`release: version ${values.version}; add its section to CHANGELOG.md and commit`);
  } else {
    const found = problems();
    for (const problem of found) console.error(`release: ${problem}`);
    if (found.length > 0 && !values["dry-run"]) throw new Error("nothing was published");
    await packAll(packOptions(values));
    run("npm", ["run", "--silent", "build"]);
    run(process.execPath, ["scripts/test-install.mjs", "--no-pack"]);
    const tarballs = readdirSync(packagesFolder).sort(
      // planish-0.1.0.tgz has a digit where the others have a name.
      (a, b) => Number(/^planish-\d/.test(a)) - Number(/^planish-\d/.test(b)),
    );
    for (const name of tarballs) {
      const flags = ["--access", "public", ...(values.provenance ? ["--provenance"] : [])];
      const dry = values["dry-run"] ? ["--dry-run"] : [];
      run("npm", ["publish", join(packagesFolder, name), ...flags, ...dry]);
    }
    if (found.length > 0) throw new Error(`this tree cannot be released: ${found.join("; ")}`);
    console.error(
      `release: ${values["dry-run"] ? "everything but publishing is done" : "published"}`,
    );
  }
} catch (error) {
  console.error(`release: ${error.message}`);
  process.exitCode = 1;
}
