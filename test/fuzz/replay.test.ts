/** Inputs that once failed, or that a reader should go on taking or refusing, by format: test/fuzz/seeds/FORMAT/NAME. */
import { readdirSync, readFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../../src/common/random.js";
import { TARGETS } from "./formats/index.js";
import { removeScratch } from "./scratch.js";
import { judge } from "./target.js";

afterAll(removeScratch);

const SEEDS = new URL("./seeds/", import.meta.url);

describe.each(readdirSync(SEEDS))("seeds of %s", (folder) => {
  const target = TARGETS.find(({ name }) => name.replace(/\W/g, "-") === folder);
  it.each(readdirSync(new URL(`${folder}/`, SEEDS)))("%s", (name) => {
    if (target === undefined) throw new Error(`no format belongs to test/fuzz/seeds/${folder}`);
    const outcome = judge(target, readFileSync(new URL(`${folder}/${name}`, SEEDS)));
    // The name says what becomes of it: refused-… or taken-….
    expect(outcome).toEqual({ kind: name.split("-")[0] });
  });
});

it.each(TARGETS)("$name: a seed makes the same input again, and inputs differ", (target) => {
  const [first, again, other] = [1, 1, 2].map((n) => target.generate(Random.for(5, n)));
  expect(again).toEqual(first);
  expect(other).not.toEqual(first);
});
