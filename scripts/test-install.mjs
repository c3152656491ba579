#!/usr/bin/env node
/**
 * Installs what would be published, as a new user does: packs everything, serves it from a local registry, installs into
 * empty folders with npm, pnpm, yarn and bun, with install scripts blocked and no compiler on PATH, and runs the demo model.
 *
 *   node scripts/test-install.mjs [--managers npm,pnpm,yarn,bun] [--no-build] [--no-pack] [--rounds 7] [--keep]
 *
 * For every manager: `planish doctor` has to find the packaged kernels, `planish generate tiny-llama` has to fetch the demo
 * model and write the text that this clone's build writes, `require` and `import` have to load the library. With npm also:
 * types without skipLibCheck, the bundler examples of examples/bundlers, Bun and Deno as runtimes, and speed beside the clone's
 * build, alternating.
 * The last line is "N passed, N failed".
 */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { installTools, publish, startRegistry } from "./local-registry.mjs";
import { packAll, packagesFolder } from "./pack.mjs";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const PROMPT = ["--prompt", "The ship was", "--seed", "1", "--json"];

const { values } = parseArgs({
  options: {
    managers: { type: "string", default: "npm,pnpm,yarn,bun" },
    platforms: { type: "string" },
    "no-build": { type: "boolean" },
    "no-pack": { type: "boolean" },
    rounds: { type: "string", default: "7" },
    keep: { type: "boolean" },
  },
});
const scratch = mkdtempSync(join(tmpdir(), "planish-install-"));
let passed = 0;
let failed = 0;

function check(name, work) {
  try {
    const said = work();
    passed++;
    console.log(`ok      ${name}${said ? `: ${said}` : ""}`);
    return true;
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}: ${error.message}`);
    return false;
  }
}

/** Node.js, npm and a shell, and nothing else: no compiler, no Python. */
function barePath() {
  const bin = join(scratch, "bin");
  mkdirSync(bin);
  const find = (name) =>
    process.env.PATH.split(":")
      .map((folder) => join(folder, name))
      .find((path) => existsSync(path));
  symlinkSync(process.execPath, join(bin, "node"));
  for (const name of ["npm", "npx", "sh", "env", "uname", "sed", "dirname", "cat", "ls"]) {
    const path = find(name);
    if (path) symlinkSync(path, join(bin, name));
  }
  for (const name of ["pnpm", "yarn", "bun", "bunx"])
    symlinkSync(join(installTools(), name), join(bin, name));
  return bin;
}

/** Runs a command in a folder and returns what it wrote on stdout. */
function run(folder, command, args, environment) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: folder,
    env: environment,
    encoding: "utf8",
    timeout: 600_000,
  });
  if (status !== 0)
    throw new Error(
      `${command} ${args.join(" ")}: ${error?.message ?? `status ${status}`}: ${(stderr || stdout).trim().slice(-1500)}`,
    );
  return stdout;
}

const MANAGERS = {
  npm: {
    install: ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"],
    exec: ["npx", "--no-install"],
  },
  pnpm: { install: ["pnpm", "add", "--ignore-scripts"], exec: ["pnpm", "exec"] },
  yarn: { install: ["yarn", "add"], exec: ["yarn", "run"] },
  bun: { install: ["bun", "add", "--ignore-scripts"], exec: ["bunx", "--no-install"] },
};

/** An empty project that installs from the registry, with caches of its own. */
function project(name, url, bin) {
  const folder = join(scratch, name);
  const home = join(scratch, `${name}-home`);
  mkdirSync(folder, { recursive: true });
  mkdirSync(home, { recursive: true });
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "app", private: true }));
  writeFileSync(join(folder, ".npmrc"), `registry=${url}\n`);
  writeFileSync(
    join(folder, ".yarnrc.yml"),
    [
      "nodeLinker: node-modules",
      "enableScripts: false",
      `npmRegistryServer: ${url.replace(/\/$/, "")}`,
      "unsafeHttpWhitelist: [127.0.0.1]",
      "enableTelemetry: false",
      // It waits days before it trusts what was just published.
      "npmMinimalAgeGate: 0",
    ].join("\n"),
  );
  const environment = {
    PATH: bin,
    HOME: home,
    XDG_CACHE_HOME: join(home, ".cache"),
    npm_config_registry: url,
    BUN_CONFIG_REGISTRY: url,
    npm_config_update_notifier: "false",
    // Managers that would hand over to a version of their own.
    COREPACK_ENABLE_STRICT: "0",
    npm_config_manage_package_manager_versions: "false",
    YARN_IGNORE_PATH: "1",
  };
  return { folder, environment };
}

const clone = (args) =>
  JSON.parse(
    run(root, process.execPath, [join(root, "bin/planish.mjs"), ...args], {
      ...process.env,
      PLANISH_NATIVE_LIBRARY: "",
    }),
  );

function tryManager(name, url, bin, expected) {
  const { folder, environment } = project(name, url, bin);
  const { install, exec } = MANAGERS[name];
  const planish = (args) =>
    run(folder, exec[0], [...exec.slice(1), "planish", ...args], environment);
  const installed = check(`${name}: installs without scripts and without a compiler`, () => {
    run(folder, install[0], [...install.slice(1), "planish"], environment);
    const owned = join(folder, "node_modules", "@planish");
    return existsSync(owned) ? readdirSync(owned).join(", ") : "in a store of its own";
  });
  if (!installed) return undefined;
  check(`${name}: the packaged kernels serve`, () => {
    const { kernels, platform } = JSON.parse(planish(["doctor", "--json"]));
    const taken = kernels.places.find(({ exists }) => exists);
    if (kernels.serves !== "cpu" || taken?.title !== `@planish/native-${platform}`)
      throw new Error(JSON.stringify(kernels));
    return kernels.description;
  });
  check(`${name}: generate fetches the demo model and writes what the clone writes`, () => {
    const { text } = JSON.parse(
      planish(["generate", "tiny-llama", "--max-tokens", "16", ...PROMPT]),
    );
    if (text !== expected)
      throw new Error(`${JSON.stringify(text)}, not ${JSON.stringify(expected)}`);
    return JSON.stringify(text);
  });
  check(`${name}: import and require`, () => {
    const work =
      'const a = require("planish"), b = require("planish/engine");' +
      'import("planish").then((c) => import("planish/engine").then((d) => console.log([a, b, c, d].map((m) => typeof m.Engine.load).join())))';
    const kinds = run(folder, "node", ["-e", work], environment).trim();
    if (kinds !== "function,function,function,function") throw new Error(kinds);
  });
  return { folder, environment };
}

/** The installed program on other runtimes, with the native kernels and with WebAssembly's, beside Node.js. */
function tryRuntimes({ folder, environment }) {
  const program = join(folder, "node_modules", "planish", "bin", "planish.mjs");
  const runtimes = { bun: ["bun"], deno: ["deno", "run", "-A"] };
  for (const device of ["cpu", "wasm"]) {
    const args = [program, "generate", "tiny-llama", "--max-tokens", "16", ...PROMPT];
    const textOf = (command, flags) =>
      JSON.parse(run(folder, command, [...flags, ...args, "--device", device], environment)).text;
    const expected = textOf("node", []);
    for (const [name, [command, ...flags]] of Object.entries(runtimes))
      check(`${name} runs it with --device ${device}`, () => {
        const text = textOf(join(installTools(), command), flags);
        if (text !== expected)
          throw new Error(`${JSON.stringify(text)}, not ${JSON.stringify(expected)}`);
      });
  }
}

/** Tokens per second of the installed package over the clone's, as the median of alternating rounds. */
function compareSpeed({ folder, environment }, rounds) {
  const args = ["generate", "tiny-llama", "--max-tokens", "400", ...PROMPT];
  const installed = () =>
    JSON.parse(run(folder, "npx", ["--no-install", "planish", ...args], environment));
  const rate = ({ tokens, decodeSeconds }) => tokens.length / decodeSeconds;
  const ratios = [];
  for (let round = 0; round <= rounds; round++) {
    const pair = round % 2 ? [rate(installed()), rate(clone(args))] : [];
    if (pair.length === 0) {
      const own = rate(clone(args));
      pair.push(rate(installed()), own);
    }
    if (round > 0) ratios.push(pair[0] / pair[1]);
  }
  ratios.sort((x, y) => x - y);
  const at = (q) => ratios[Math.round((ratios.length - 1) * q)].toFixed(2);
  console.log(
    `speed   decoding tiny-llama, installed over clone: ${at(0.5)} [${at(0.25)}–${at(0.75)}], ${rounds} alternating rounds`,
  );
}

/** The examples of examples/bundlers with the installed package, each built and run. */
function tryBundlers({ folder, environment }, url) {
  const examples = join(root, "examples", "bundlers");
  if (!existsSync(examples)) return;
  const model = join(root, "models", "tiny-llama");
  for (const name of readdirSync(examples).sort()) {
    // Electron fetches its program when it is installed, and needs a screen: .github/workflows/install.yml runs it.
    if (name === "electron") continue;
    check(`bundled by ${name}`, () => {
      const target = join(folder, name);
      cpSync(join(examples, name), target, { recursive: true });
      const { scripts } = JSON.parse(readFileSync(join(target, "package.json"), "utf8"));
      const flags = ["--no-audit", "--no-fund", "--loglevel=error"];
      // Bundlers have binaries of their own, some put in place by a script.
      run(target, "npm", ["install", ...flags], { ...environment, npm_config_registry: url });
      run(target, "npm", ["run", "--silent", "build"], environment);
      const said = run(target, "npm", ["run", "--silent", "start", "--", model], environment);
      if (!said.includes("The ship was")) throw new Error(said.slice(0, 500));
      return scripts.build;
    });
  }
}

/** A project in TypeScript that checks the declarations too. */
function tryTypes({ folder, environment }) {
  const source = (ending) =>
    `import { Engine, loadModel, quantize, compare } from "planish";\nimport { Engine as Lean } from "planish/engine";\n` +
    `export const used: readonly unknown[] = [loadModel, quantize, compare];\n` +
    `export async function main(): Promise<string> {\n  const engine: Engine = await Lean.load("${ending}");\n` +
    `  await engine.close();\n  return "done";\n}\n`;
  writeFileSync(join(folder, "esm.mts"), source("esm"));
  writeFileSync(join(folder, "cjs.cts"), source("cjs"));
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  const types = join(folder, "node_modules", "@types");
  mkdirSync(types, { recursive: true });
  for (const name of ["node"])
    if (!existsSync(join(types, name)))
      symlinkSync(join(root, "node_modules", "@types", name), join(types, name));
  for (const file of ["esm.mts", "cjs.cts"])
    check(`types of ${file} without skipLibCheck`, () => {
      const flags = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"];
      run(
        folder,
        "node",
        [tsc, ...flags, "--types", "node", "--skipLibCheck", "false", file],
        environment,
      );
    });
}

let registry;
try {
  const tarballs = values["no-pack"]
    ? readdirSync(packagesFolder).map((name) => join(packagesFolder, name))
    : await packAll({
        platforms: values.platforms?.split(","),
        build: !values["no-build"],
      });
  if (!existsSync(join(root, "dist/cli/main.js"))) throw new Error("run npm run build first");
  registry = await startRegistry(join(scratch, "registry"));
  for (const tarball of tarballs) publish(registry.url, tarball);
  const bin = barePath();
  const expected = clone(["generate", "tiny-llama", "--max-tokens", "16", ...PROMPT]).text;
  for (const name of values.managers.split(",")) {
    const made = tryManager(name, registry.url, bin, expected);
    if (name !== "npm" || !made) continue;
    tryTypes(made);
    tryBundlers(made, registry.url);
    tryRuntimes(made);
    compareSpeed(made, Number(values.rounds));
  }
} catch (error) {
  failed++;
  console.error(`test:install: ${error.message}`);
} finally {
  registry?.stop();
  if (values.keep) console.error(`kept ${scratch}`);
  else rmSync(scratch, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
