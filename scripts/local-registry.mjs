/**
 * A registry on this machine (verdaccio) that has our tarballs and takes everything else from npm's own configured one, and
 * the package managers that install from it. They are put into out/install-tools once.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, openSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const tools = join(root, "out", "install-tools");

/** Verdaccio 6.8 is the last that runs on Node.js 20. It names a dependency by a tag that not every mirror has. */
const TOOLS = {
  private: true,
  dependencies: {
    verdaccio: "6.8.0",
    pnpm: "^10.0.0",
    "@yarnpkg/cli-dist": "^4.9.0",
    bun: "^1.3.0",
    deno: "^2.9.0",
  },
  overrides: { "node-fetch": "2.7.0" },
};

/** Installs the tools where they are missing and returns the folder of their commands. */
export function installTools() {
  const bin = join(tools, "node_modules", ".bin");
  if (!existsSync(join(bin, "verdaccio"))) {
    mkdirSync(tools, { recursive: true });
    writeFileSync(join(tools, "package.json"), JSON.stringify(TOOLS));
    const flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"];
    const { status } = spawnSync("npm", ["install", ...flags], { cwd: tools, stdio: [0, 2, 2] });
    if (status !== 0) throw new Error("the tools of test:install do not install");
    // bun's script links its binary, which is a package of its own.
    spawnSync(process.execPath, ["install.js"], { cwd: join(tools, "node_modules", "bun") });
  }
  return bin;
}

function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

const upstream = () =>
  spawnSync("npm", ["config", "get", "registry"], { encoding: "utf8", cwd: tools }).stdout.trim();

/** Starts verdaccio in `folder`. Returns its address and how to stop it. */
export async function startRegistry(folder) {
  const bin = installTools();
  mkdirSync(folder, { recursive: true });
  const port = await freePort();
  const url = `http://127.0.0.1:${port}/`;
  const access = "access: $all\n    publish: $all\n    unpublish: $all";
  writeFileSync(
    join(folder, "config.yaml"),
    [
      `storage: ${JSON.stringify(join(folder, "storage"))}`,
      `uplinks:\n  npm:\n    url: ${upstream()}\n    maxage: 1h\n    timeout: 120s`,
      `packages:\n  "@planish/*":\n    ${access}\n  planish:\n    ${access}\n  "**":\n    ${access}\n    proxy: npm`,
      "max_body_size: 100mb",
      `log: { type: stdout, format: pretty, level: warn }`,
    ].join("\n"),
  );
  const log = openSync(join(folder, "verdaccio.log"), "w");
  const child = spawn(
    process.execPath,
    [
      join(bin, "verdaccio"),
      "--config",
      join(folder, "config.yaml"),
      "--listen",
      `127.0.0.1:${port}`,
    ],
    { stdio: ["ignore", log, log] },
  );
  for (let tries = 0; ; tries++) {
    try {
      if ((await fetch(`${url}-/ping`)).ok) break;
    } catch {
      if (child.exitCode !== null || tries > 120)
        throw new Error(`verdaccio does not start: see ${join(folder, "verdaccio.log")}`);
    }
    await new Promise((done) => setTimeout(done, 500));
  }
  return { url, stop: () => child.kill() };
}

/** Puts a tarball into the registry. */
export function publish(url, tarball) {
  const { status, stderr } = spawnSync(
    "npm",
    [
      "publish",
      tarball,
      "--registry",
      url,
      `--${url.replace(/^http:/, "")}:_authToken=none`,
      "--ignore-scripts",
      "--provenance=false",
      "--loglevel=error",
    ],
    { encoding: "utf8" },
  );
  if (status !== 0) throw new Error(`npm publish ${tarball}: ${stderr}`);
}
