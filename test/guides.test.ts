/**
 * The contributors' guides, followed literally: the blocks of each toy are written into a copy of the sources, which then has
 * to compile, and the guide's own check has to pass. What a block touches is what the guide lists.
 */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../src/common/package.js";

const GUIDES = ["steps", "ops", "architectures", "backends", "instruction-sets", "methods"];

interface Block {
  readonly verb: "create" | "insert" | "replace" | "check";
  readonly file: string;
  readonly anchor?: { readonly where: "after" | "before" | "text"; readonly text: string };
  readonly body: string;
}

/** Blocks with an instruction beside their language; others are no part of the toy. */
function blocksOf(guide: string): Block[] {
  const text = readFileSync(join(packageRoot, "docs/contributing", `${guide}.md`), "utf8");
  return [
    ...text.matchAll(
      /^```(?:ts|cpp) (create|insert|replace|check)(?:=(\S+))?(.*)\n([\s\S]*?)^```$/gm,
    ),
  ].map(([, verb, file = "", rest, body]) => {
    const anchor = /^ (after|before|text)="(.*)"$/.exec(rest);
    return {
      verb: verb as Block["verb"],
      file,
      anchor: anchor ? { where: anchor[1] as "after", text: anchor[2] } : undefined,
      body,
    };
  });
}

const copy = mkdtempSync(join(tmpdir(), "planish-guides-"));
afterAll(() => rmSync(copy, { recursive: true, force: true }));

function apply({ verb, file, anchor, body }: Block): void {
  const path = join(copy, file);
  if (verb === "create") {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, body, { flag: "wx" });
    return;
  }
  const text = readFileSync(path, "utf8");
  if (!anchor) throw new Error(`${file}: the block names no place`);
  const at = text.indexOf(anchor.text);
  if (at < 0) throw new Error(`${file} has no ${anchor.text}`);
  if (verb === "replace") {
    writeFileSync(path, text.replace(anchor.text, body.trimEnd()));
    return;
  }
  // Whole lines are inserted.
  const line =
    anchor.where === "before" ? text.lastIndexOf("\n", at) + 1 : text.indexOf("\n", at) + 1;
  writeFileSync(path, text.slice(0, line) + body + text.slice(line));
}

function run(command: string, args: readonly string[]): void {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: copy, encoding: "utf8" });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}\n${stdout}${stderr}`);
}

const guides = GUIDES.map((name) => ({ name, blocks: blocksOf(name) }));

beforeAll(() => {
  for (const folder of ["src", "scripts", "native"])
    cpSync(join(packageRoot, folder), join(copy, folder), {
      recursive: true,
      filter: (path) => !path.includes(join("native", "build")) || path.endsWith("build.mjs"),
    });
  for (const file of ["package.json", "tsconfig.json", "tsconfig.build.json"])
    cpSync(join(packageRoot, file), join(copy, file));
  for (const link of ["node_modules", "models", "data"])
    symlinkSync(join(packageRoot, link), join(copy, link));
  for (const { blocks } of guides)
    for (const block of blocks) if (block.verb !== "check") apply(block);
  run("npx", ["tsx", "scripts/generate-abi.ts"]);
}, 120_000);

it("with all toys in it the project compiles", () => {
  run("npx", ["tsc", "-p", "tsconfig.build.json", "--noEmit"]);
}, 300_000);

describe.each(guides)("$name", ({ name, blocks }) => {
  it("its check passes", () => {
    const checks = blocks.filter(({ verb }) => verb === "check");
    expect(checks).toHaveLength(1);
    writeFileSync(join(copy, `check-${name}.ts`), checks[0].body);
    run("npx", ["tsx", `check-${name}.ts`]);
  }, 120_000);

  it("lists the files that it touches", () => {
    const text = readFileSync(join(packageRoot, "docs/contributing", `${name}.md`), "utf8");
    const listed = /^The toy's: ([\s\S]*?)\.$/m.exec(text)?.[1] ?? "";
    const touched = new Set(blocks.flatMap(({ file }) => (file === "" ? [] : [file])));
    expect([...listed.matchAll(/`([^`]+)`/g)].map(([, file]) => file).sort()).toEqual(
      [...touched].sort(),
    );
  });
});
