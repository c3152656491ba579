/**
 * What npm would publish, unpacked in an empty folder away from the repository, with the packages that it declares and no
 * others: it is whole and small enough, its program and its library run. No network, and nothing is compiled: dist/ is
 * built before this project runs, and the dependencies are links to the repository's.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { root, runScript } from "./run-program.js";

interface Packed {
  filename: string;
  size: number;
  files: { path: string; size: number; mode: number }[];
}
interface Manifest {
  name: string;
  main: string;
  bin: Record<string, string>;
  dependencies: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

const folder = directory.file("empty");
const installed = join(folder, "node_modules", "planish");
let packed: Packed;
let manifest: Manifest;

beforeAll(() => {
  // Scripts would compile dist/ again under the feet of the tests beside this one.
  const json = execFileSync(
    "npm",
    ["pack", "--ignore-scripts", "--json", "--pack-destination", directory.path],
    { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
  );
  [packed] = JSON.parse(json) as Packed[];
  mkdirSync(installed, { recursive: true });
  const tarball = join(directory.path, packed.filename);
  // As npm does: what a tarball holds lies in one folder, whose name does not count.
  execFileSync("tar", ["-xzf", tarball, "-C", installed, "--strip-components=1"]);
  manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8")) as Manifest;
  for (const name of Object.keys({ ...manifest.optionalDependencies, ...manifest.dependencies })) {
    const source = join(root, "node_modules", name);
    if (!existsSync(source) && !(name in manifest.dependencies)) continue;
    const link = join(folder, "node_modules", name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(source, link);
  }
}, 300_000);

// The demo model has a package of its own; scripts/test-install.mjs fetches it from a registry.
const generate = [
  ...["generate", join(root, "models/tiny-llama"), "--prompt", "The ship", "--max-tokens", "4"],
];

describe("the package", () => {
  it("holds what runs, and neither build output nor tests", () => {
    const paths = packed.files.map(({ path }) => path);
    for (const needed of [
      ...["dist/cli/main.js", "dist/index.js", "dist/index.d.ts", "dist/serve/page.html"],
      ...[
        "dist/engine/worker.js",
        "dist/engine/prompt-process.js",
        "bin/planish.mjs",
        "README.md",
        "LICENSE",
      ],
    ])
      // prettier-ignore
      expect(paths).toContain(needed);
    expect(
      paths.filter((path) =>
        /^(test|bench|out|src|\.git)\/|^native\/build\/|(^|\/)node_modules\/|\.(o|tgz|key)$|\.test\./.test(
          path,
        ),
      ),
    ).toEqual([]);
    expect(packed.size).toBeLessThan(20e6);
  });

  it("has every file that its fields name", () => {
    for (const path of [manifest.main, ...Object.values(manifest.bin)])
      expect(existsSync(join(installed, path)), path).toBe(true);
  });

  it("runs as a program in an empty folder", async () => {
    const bin = join(installed, manifest.bin["planish"]);
    const version = await runScript(bin, ["--version"], { cwd: folder });
    expect(version).toMatchObject({ code: 0, stderr: "" });
    const { code, stdout, stderr } = await runScript(bin, generate, { cwd: folder });
    expect(code, stderr).toBe(0);
    expect(stdout.length).toBeGreaterThan("The ship".length);
  });

  it("is imported as a library", async () => {
    const script = join(folder, "use.mjs");
    writeFileSync(
      script,
      `import { Engine, loadModel, quantize, compare } from "planish";
      console.log([Engine, loadModel, quantize, compare].map((each) => typeof each).join());`,
    );
    const outcome = await runScript(script, [], { cwd: folder });
    expect(outcome).toEqual({
      code: 0,
      stdout: "function,function,function,function\n",
      stderr: "",
    });
  });

  // The state of a clone in which nothing was built: npm has linked the program all the same.
  it("without dist/ says in one line what to run", async () => {
    const clone = directory.file("clone");
    mkdirSync(join(clone, "bin"), { recursive: true });
    const bin = join(clone, "bin/planish.mjs");
    writeFileSync(bin, readFileSync(join(root, "bin/planish.mjs")));
    const { code, stdout, stderr } = await runScript(bin, ["--help"], { cwd: clone });
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^planish: error: .* run there: npm ci && npm run build\n$/);
    rmSync(clone, { recursive: true });
  });
});
