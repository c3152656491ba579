#!/usr/bin/env node
/**
 * Makes the tarballs that npm gets, in out/packages/: planish, @planish/native-PLATFORM, @planish/wasm, @planish/demo and
 * @planish/data. What they hold is copied to out/stage/ and packed there, so that nothing of the repository changes.
 *
 *   node scripts/pack.mjs [--platforms linux-x64,…] [--no-build]
 *
 * --platforms  only these native packages (default: all of native/targets.mjs)
 * --no-build   takes the native libraries as they were built last
 *
 * npm cannot keep the native packages as workspaces: it refuses to install a workspace of another platform (EBADPLATFORM).
 * And planish names them as optional dependencies only once it is packed: in a clone they are not published yet.
 */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { libraryName, PLATFORMS } from "../native/targets.mjs";
import { buildPlatform, platformFolder } from "./build-packages.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const stage = join(root, "out", "stage");
export const packagesFolder = join(root, "out", "packages");
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const { version } = manifest;
/** Largest tarballs, bytes. */
const LIMIT = 3e6;
const UNLIMITED = ["@planish/demo", "@planish/data"];

const common = {
  version,
  license: manifest.license,
  repository: manifest.repository,
  engines: manifest.engines,
};

function run(command, args, options = {}) {
  const { status, stdout } = spawnSync(command, args, {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", options.capture ? "pipe" : 2, 2],
    ...options,
  });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed`);
  return stdout;
}

/** A stage of its own for a package: its manifest, README and licence. */
function begin(name, description, rest, readme) {
  const folder = join(stage, name.replace("@planish/", ""));
  mkdirSync(folder, { recursive: true });
  const fields = { name, description, ...common, ...rest };
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(fields, null, 2)}\n`);
  writeFileSync(join(folder, "README.md"), readme ?? `# ${name}\n\n${description}.\n`);
  cpSync(join(root, "LICENSE"), join(folder, "LICENSE"));
  return folder;
}

function pack(name, folder) {
  const [{ filename, size }] = JSON.parse(
    run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", packagesFolder], {
      cwd: folder,
      capture: true,
    }),
  );
  const file = join(packagesFolder, basename(filename.replace("@", "").replace("/", "-")));
  if (!existsSync(file)) renameSync(join(packagesFolder, filename), file);
  const megabytes = (size / 1e6).toFixed(2);
  if (size > LIMIT && !UNLIMITED.includes(name))
    throw new Error(`${name} has ${megabytes} MB packed; at most ${LIMIT / 1e6} MB are allowed`);
  console.error(`pack: ${basename(file)}: ${megabytes} MB`);
  return file;
}

async function nativePackage(platform, build) {
  const { os, cpu, libc } = PLATFORMS[platform];
  if (build) await buildPlatform(platform, (line) => console.error(`pack: ${line}`));
  const library = join(platformFolder(platform), libraryName(os));
  if (!existsSync(library)) throw new Error(`${library} is not built; leave --no-build out`);
  const name = `@planish/native-${platform}`;
  const folder = begin(name, `Planish's CPU kernels, compiled for ${platform}`, {
    os: [os],
    cpu: [cpu],
    ...(libc ? { libc: [libc] } : {}),
    preferUnplugged: true,
    files: [libraryName(os)],
  });
  cpSync(library, join(folder, libraryName(os)));
  return pack(name, folder);
}

const WASM = ["planish_simd128.wasm", "planish_relaxed.wasm"];

/** The kernels in WebAssembly; nothing in a tree that has none. */
function wasmPackage(build) {
  const script = join(root, "scripts", "build-wasm.mjs");
  if (!existsSync(script)) return undefined;
  if (build) run(process.execPath, [script]);
  const name = "@planish/wasm";
  const folder = begin(name, "Planish's CPU kernels in WebAssembly", { files: WASM });
  for (const file of WASM) cpSync(join(root, "native", "build", file), join(folder, file));
  return pack(name, folder);
}

/** A folder of the repository as a package, with its own README. */
function folderPackage(name, source, description) {
  const folder = begin(
    name,
    description,
    {},
    readFileSync(join(root, source, "README.md"), "utf8"),
  );
  cpSync(join(root, source), folder, { recursive: true });
  return pack(name, folder);
}

function planishPackage(platforms, withWasm) {
  const dependencies = { ...manifest.dependencies };
  if (withWasm) dependencies["@planish/wasm"] = version;
  const { description, keywords, type, bin, main, types, exports, files } = manifest;
  const folder = begin(
    "planish",
    description,
    {
      ...{ keywords, type, bin, main, types, exports, files, dependencies },
      optionalDependencies: Object.fromEntries(
        platforms.map((platform) => [`@planish/native-${platform}`, version]),
      ),
    },
    readFileSync(join(root, "README.md"), "utf8"),
  );
  for (const name of ["assets", "bin", "cjs", "native", "CHANGELOG.md"])
    cpSync(join(root, name), join(folder, name), {
      recursive: true,
      filter: (path) => ![join(root, "native/build"), join(root, "native/test")].includes(path),
    });
  const dist = join(folder, "dist");
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  run(process.execPath, [
    tsc,
    ...["-p", "tsconfig.build.json", "--outDir", dist],
    ...["--incremental", "false", "--tsBuildInfoFile", "null", "--sourceMap", "false"],
  ]);
  cpSync(join(root, "src/serve/page.html"), join(dist, "serve/page.html"));
  return pack("planish", folder);
}

/** Packs everything and returns the tarballs' paths, planish last. */
export async function packAll({ platforms = Object.keys(PLATFORMS), build = true } = {}) {
  for (const folder of [stage, packagesFolder]) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
  }
  const files = [];
  for (const platform of platforms) files.push(await nativePackage(platform, build));
  const wasm = wasmPackage(build);
  if (wasm) files.push(wasm);
  files.push(
    folderPackage("@planish/demo", "models", "Two small trained models to try Planish with"),
    folderPackage("@planish/data", "data", "Calibration and evaluation texts for Planish"),
    planishPackage(platforms, wasm !== undefined),
  );
  return files;
}

/** What --platforms and --no-build mean. @throws Error on an unknown platform. */
export function packOptions(values) {
  const platforms = values.platforms?.split(",");
  const unknown = platforms?.filter((platform) => !Object.hasOwn(PLATFORMS, platform)) ?? [];
  if (unknown.length > 0)
    throw new Error(
      `no platform ${unknown.join(", ")}; there are ${Object.keys(PLATFORMS).join(", ")}`,
    );
  return { platforms, build: !values["no-build"] };
}

export const PACK_FLAGS = { platforms: { type: "string" }, "no-build": { type: "boolean" } };

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await packAll(packOptions(parseArgs({ options: PACK_FLAGS }).values));
  } catch (error) {
    console.error(`pack: ${error.message}`);
    process.exitCode = 1;
  }
}
