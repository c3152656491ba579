/** Random walks through what schemas allow: whatever the masks let through satisfies the schema, by another's judgment. */
import { Ajv2020 } from "ajv/dist/2020.js";
import { Ajv } from "ajv";
import formats from "ajv-formats";
import { afterAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../../src/checkpoint/open.js";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.js";
import { Random } from "../../../src/common/random.js";
import type { Constraint, Guide } from "../../../src/engine/constraint/contract.js";
import { ConstraintPool } from "../../../src/engine/constraint/pool.js";
import { vocabularyOf } from "../../../src/engine/constraint/vocabulary.js";
import { launchGuides } from "./launch.js";
import { REFUSED, SCHEMAS } from "./schemas.js";

using checkpoint = openCheckpoint("models/tiny-llama");
const vocabulary = vocabularyOf(loadTokenizer(checkpoint));
const texts = vocabulary.bytes.map((bytes) => Buffer.from(bytes, "latin1").toString("utf8"));
const pool = new ConstraintPool({ tokens: { vocabulary }, launch: launchGuides });
afterAll(() => pool[Symbol.dispose]());

const never = new AbortController().signal;

async function ready(guide: Guide): Promise<void> {
  if (!guide.isReady()) await new Promise<void>((resolve) => guide.onReady(resolve));
}

/** Tokens that bring a text to its end come more and more often, so that walks end. */
async function walk(constraint: Constraint, seed: number): Promise<string> {
  const random = Random.for(seed, "walk");
  using form = await pool.compile(constraint, "test", never);
  using guide = form.guide((error) => {
    throw error;
  });
  const bytes: string[] = [];
  const patterns = [...JSON.stringify(constraint).matchAll(/"(?:pattern|\^n|\^a|z\$)":"?([^"]*)/g)];
  const written = patterns.map(([found]) => found.replace("pattern", "")).join("");
  const hints = new Set(Array.from(`${written}@.`));
  for (let step = 0; step < 3000; step++) {
    await ready(guide);
    if (guide.isComplete) break;
    const { mask } = guide;
    const allowed = texts.flatMap((_, token) =>
      (mask[token >> 5] >>> (token & 31)) & 1 ? [token] : [],
    );
    if (allowed.length === 0) throw new Error(`nothing may follow ${bytes.join("")}`);
    const isEnd = (token: number): boolean => vocabulary.ends.includes(token);
    if (step > 20 && allowed.some(isEnd)) break;
    const closing = allowed.filter((token) => /^(?:["\]}]+|null|true)$/.test(texts[token]));
    // What brings a pattern's or format's next part, which random tokens hardly ever do.
    const marks = allowed.filter((token) => hints.has(texts[token]));
    const others = allowed.filter((token) => !isEnd(token));
    const hurried = random.uniform() < 0.2 + step / 60;
    const hurry = random.uniform() < 0.5 ? [closing, marks] : [marks, closing];
    const from = [...(hurried ? hurry : []), others, allowed].find((list) => list.length > 0)!;
    const token = from[Math.floor(random.uniform() * from.length)];
    if (isEnd(token)) break;
    bytes.push(vocabulary.bytes[token]);
    guide.accept(token);
  }
  return Buffer.from(bytes.join(""), "latin1").toString("utf8");
}

const options = { strict: false, allErrors: false, validateFormats: true } as const;
const current = new Ajv2020(options);
const old = new Ajv(options);
for (const ajv of [current, old])
  (formats as unknown as (ajv: unknown, mode: object) => void)(ajv, { mode: "full" });

describe("texts held to a schema", () => {
  it("are at least 200 kinds", () => expect(SCHEMAS.length).toBeGreaterThanOrEqual(200));

  it.each(SCHEMAS.map((schema, i) => [i, schema] as const))("%i: %j", async (i, schema) => {
    const isOld = JSON.stringify(schema).includes("additionalItems");
    const validate = (isOld ? old : current).compile(schema as object);
    for (const seed of [i, i + 1000]) {
      const text = await walk({ type: "schema", schema }, seed);
      expect(() => JSON.parse(text) as unknown, text).not.toThrow();
      expect(validate(JSON.parse(text)), `${text}: ${JSON.stringify(validate.errors)}`).toBe(true);
    }
  });

  it.each(REFUSED)("refuses %j by name", async (schema, names) => {
    const work = pool.compile({ type: "schema", schema }, "test", never);
    await expect(work).rejects.toThrow(names);
    await expect(work).rejects.toMatchObject({ name: "ConstraintError" });
  });
});
