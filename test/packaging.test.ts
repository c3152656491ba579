/** What package.json promises agrees with what its dependencies ask for, with the sources, and with what is packed. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect, test } from "vitest";
import { libraryFileName, PACKAGED_PLATFORMS } from "../src/backend/cpu/library-path.js";
import { packageRoot } from "../src/common/package.js";
import { VERSION } from "../src/common/version.js";

const { satisfies } = createRequire(import.meta.url)("semver") as {
  satisfies: (version: string, range: string) => boolean;
};
const { packages } = JSON.parse(readFileSync(join(packageRoot, "package-lock.json"), "utf8")) as {
  packages: Record<string, { dev?: boolean; engines?: { node?: string } }>;
};

// Tools may want a later release of a line than the package itself does.
test.each([
  ["20.0.0", false],
  ["20.19.0", true],
  ["22.13.0", true],
  ["24.0.0", true],
])("every dependency takes Node.js %s", (version, tools) => {
  const refusing = Object.entries(packages)
    .filter(([, { dev, engines }]) => (tools || !dev) && !satisfies(version, engines?.node ?? "*"))
    .map(([name, { engines }]) => `${name} wants ${engines?.node}`);
  expect(refusing).toEqual([]);
});

test("the version that results record is package.json's", () => {
  const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as {
    version: string;
  };
  expect(VERSION).toBe(version);
});

test("the platforms that the loader knows are those that are packed", async () => {
  // JavaScript without declarations: a clone runs it before anything is compiled.
  const targets: string = "../native/targets.mjs";
  const { PLATFORMS, libraryName } = (await import(targets)) as {
    PLATFORMS: Record<string, { os: string; cpu: string; libc?: string }>;
    libraryName: (os: string) => string;
  };
  expect([...PACKAGED_PLATFORMS].sort()).toEqual(Object.keys(PLATFORMS).sort());
  for (const [name, { os, cpu, libc }] of Object.entries(PLATFORMS))
    expect(name).toBe(`${os}-${cpu}${libc === "musl" ? "-musl" : ""}`);
  expect(libraryName(process.platform)).toBe(libraryFileName());
});

test("npm pack leaves out what has packages of its own, and what is built", () => {
  // npm's own answer, without running scripts or writing anything.
  const packed = spawnSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: packageRoot,
    encoding: "utf8",
  });
  const [{ files }] = JSON.parse(packed.stdout) as [{ files: { path: string }[] }];
  const paths = files.map(({ path }) => path);
  expect(paths).toEqual(
    expect.arrayContaining(["bin/planish.mjs", "cjs/index.cjs", "native/build.mjs"]),
  );
  expect(paths.filter((path) => /^(models|data|native\/(build|test)|src)\//.test(path))).toEqual(
    [],
  );
  expect(paths.filter((path) => /\.(map|so|dll|dylib|o|tsbuildinfo)$/.test(path))).toEqual([]);
});
