/**
 * Packages that come beside `planish` and not in it: the demo models and the evaluation data. They lie in a clone, or are
 * installed, or are fetched into the user's cache with npm, which knows the registry, its proxy and its keys.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { planishCacheDir } from "./cache.js";
import { PlanishError } from "./errors.js";
import { packageRoot } from "./package.js";
import { temporaryName } from "./temporary.js";
import { VERSION } from "./version.js";

interface Companion {
  readonly package: string;
  /** What it holds, for messages. */
  readonly title: string;
  /** Its folder in a clone. */
  readonly folder: string;
}

const COMPANIONS = {
  demo: { package: "@planish/demo", title: "the demo models", folder: "models" },
  data: { package: "@planish/data", title: "calibration and evaluation texts", folder: "data" },
} as const satisfies Readonly<Record<string, Companion>>;
export type CompanionName = keyof typeof COMPANIONS;

let announce: ((message: string) => void) | undefined;

/** Lets `companionFile` fetch what is missing, and says how that is told. Without it, a library never starts npm. */
export function allowFetching(tell: (message: string) => void): void {
  announce = tell;
}

const require = createRequire(import.meta.url);

function installedFolder(name: string): string | undefined {
  try {
    return dirname(require.resolve(`${name}/package.json`));
  } catch {
    return undefined;
  }
}

/** Where a companion is kept once it was fetched; every version has a folder of its own. */
function kept(name: CompanionName): string {
  return join(planishCacheDir(), "packages", VERSION, name);
}

/** Where a companion lies on this machine; undefined when it has to be fetched. */
export function companionFolder(name: CompanionName): string | undefined {
  const { folder, package: full } = COMPANIONS[name];
  // In an application's bundle the root is anything, and `data` or `models` may be the application's own.
  const clone = existsSync(join(packageRoot, "scripts", "build-native.mjs"));
  return [clone ? join(packageRoot, folder) : undefined, installedFolder(full), kept(name)].find(
    (path) => path !== undefined && existsSync(path),
  );
}

/**
 * Absolute path of a companion's file or folder, fetched first where that is allowed and it is missing.
 * @throws PlanishError that says how to get it.
 */
export function companionFile(name: CompanionName, ...path: readonly string[]): string {
  const folder = companionFolder(name) ?? fetchCompanion(name);
  return join(folder, ...path);
}

function fetchCompanion(name: CompanionName): string {
  const { package: full, title } = COMPANIONS[name];
  const spec = `${full}@${VERSION}`;
  const advice = `install it: npm install ${spec}`;
  if (!announce) throw new PlanishError(`${title} are in the package ${full}; ${advice}`);
  const folder = kept(name);
  announce(`fetching ${title} (${spec}) into ${folder}`);
  const scratch = temporaryName(folder);
  mkdirSync(scratch, { recursive: true });
  // npm installs into the nearest project above; so this folder is one.
  writeFileSync(join(scratch, "package.json"), "{}");
  try {
    const reason = npmInstall(scratch, spec);
    if (reason !== undefined)
      throw new PlanishError(`cannot fetch ${title} with npm (${reason}); ${advice}`);
    // Whole or not at all; another process may have been faster.
    if (!existsSync(folder)) renameSync(join(scratch, "node_modules", full), folder);
    return folder;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Installs one package below `folder`; says why where that fails. */
function npmInstall(folder: string, spec: string): string | undefined {
  const flags = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  const { status, stderr, error } = spawnSync("npm", ["install", ...flags, spec], {
    cwd: folder,
    encoding: "utf8",
    stdio: ["ignore", "ignore", "pipe"],
    // npm is a script there, which only a shell starts; nothing of the command comes from outside.
    shell: process.platform === "win32",
  });
  if (status === 0) return undefined;
  return error?.message ?? (stderr.trim().split("\n")[0] || `status ${String(status)}`);
}
