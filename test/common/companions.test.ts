/** Demo models and texts: found in a clone, else fetched with npm, whole or not at all. */
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { allowFetching, companionFile, companionFolder } from "../../src/common/companions.js";
import { packageRoot } from "../../src/common/package.js";
import { VERSION } from "../../src/common/version.js";

// Elsewhere than in a clone.
const place = vi.hoisted(() => ({ root: "" }));
vi.mock(import("../../src/common/package.js"), async (original) => {
  const actual = await original();
  return {
    ...actual,
    get packageRoot() {
      return place.root === "" ? actual.packageRoot : place.root;
    },
  };
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "planish-companions-"));
  vi.stubEnv("XDG_CACHE_HOME", folder);
});
afterEach(() => {
  place.root = "";
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

/** Stands in for npm on PATH: a script that gets npm's arguments. */
function npm(script: string): void {
  const path = join(folder, "npm");
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  vi.stubEnv("PATH", [folder, dirname(process.execPath), process.env.PATH].join(delimiter));
}

describe("companion packages", () => {
  it("a clone has them", () => {
    expect(companionFolder("demo")).toBe(join(packageRoot, "models"));
    expect(existsSync(companionFile("data", "wikitext2", "test.txt"))).toBe(true);
  });

  it("a folder of the same name in an application is not taken for one", () => {
    place.root = packageRoot.replace(/\/$/, "/test");
    expect(companionFolder("data")).toBeUndefined();
  });

  it.skipIf(process.platform === "win32")("are fetched once, and that is told", () => {
    place.root = folder;
    npm(
      `echo "$@" >> ${folder}/calls; mkdir -p node_modules/@planish/data && echo text > node_modules/@planish/data/text.txt`,
    );
    const told: string[] = [];
    allowFetching((message) => told.push(message));
    const path = companionFile("data", "text.txt");
    expect(path).toBe(join(folder, "planish", "packages", VERSION, "data", "text.txt"));
    expect(existsSync(path)).toBe(true);
    expect(told).toEqual([
      `fetching calibration and evaluation texts (@planish/data@${VERSION}) into ${dirname(path)}`,
    ]);
    companionFile("data", "text.txt");
    expect(told).toHaveLength(1);
    expect(readdirSync(dirname(dirname(path)))).toEqual(["data"]);
  });

  it.skipIf(process.platform === "win32")("a failure leaves nothing and says what to do", () => {
    place.root = folder;
    npm(`mkdir -p node_modules/@planish/demo; echo "npm error 404 Not Found" >&2; exit 1`);
    allowFetching(() => undefined);
    expect(() => companionFile("demo", "tiny-llama")).toThrow(
      `cannot fetch the demo models with npm (npm error 404 Not Found); install it: npm install @planish/demo@${VERSION}`,
    );
    expect(readdirSync(join(folder, "planish", "packages", VERSION))).toEqual([]);
  });
});
