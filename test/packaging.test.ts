/** What package.json promises about Node.js agrees with what its dependencies ask for. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packageRoot } from "../src/common/package.js";

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
