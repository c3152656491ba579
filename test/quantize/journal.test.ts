/** What a run keeps for itself is what was written, or is noticed: any one bit of its settings, results and states. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { sealedText, unsealed } from "../../src/checkpoint/sealed-json.js";
import { PlanishError } from "../../src/common/errors.js";
import { Journal } from "../../src/quantize/run/journal.js";

const directory = mkdtempSync(join(tmpdir(), "planish-journal-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const SETTINGS = {
  method: "flatquant",
  recipe: { samples: 4, seqLen: 64, epochs: 1, lr: 0.005, preset: undefined },
  seed: 7,
  machine: { device: "cpu", level: "avx2", threads: 2 },
};
let runs = 0;
const newOut = (): string => join(directory, `out-${runs++}`);
const flipped = (bytes: Uint8Array, bit: number): Uint8Array => {
  const copy = Uint8Array.from(bytes);
  copy[bit >> 3] ^= 1 << (bit & 7);
  return copy;
};

describe("settings of a run", () => {
  const out = newOut();
  Journal.open(out, SETTINGS, {});
  const file = join(Journal.pathFor(out), "settings.json");
  const written = readFileSync(file);

  it("are found again", () => {
    expect(Journal.open(out, SETTINGS, { resume: true }).damaged).toEqual([]);
    expect(() => Journal.open(out, { ...SETTINGS, seed: 8 }, { resume: true })).toThrow(
      /begun with other settings \(seed was 7, is 8\)/,
    );
  });

  it("with any one bit flipped are not taken for settings", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: written.length * 8 - 1 }), (bit) => {
        writeFileSync(file, flipped(written, bit));
        expect(() => Journal.open(out, SETTINGS, { resume: true })).toThrow(PlanishError);
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    ["a value", written.toString().replace('"seed": 7', '"seed": 5')],
    [
      "a value that makes two runs the same",
      sealedText({ ...SETTINGS, seed: 5 }).replace("5", "7"),
    ],
    ["half a file", written.toString().slice(0, 100)],
    ["no file", ""],
    ["a list", "[]"],
  ])("that are damaged are named, with what to do: %s", (_, text) => {
    writeFileSync(file, text);
    expect(() => Journal.open(out, SETTINGS, { resume: true })).toThrow(
      `${file} is damaged, so what this run was begun with is not known; remove ${Journal.pathFor(out)} and begin again`,
    );
  });
});

describe("states that enter a block", () => {
  const shape = { samples: 2, time: 3, hidden: 4 };
  const data = Float32Array.from({ length: 24 }, (_, i) => i / 7);
  const kept = (): { journal: Journal; file: string } => {
    const out = newOut();
    const journal = Journal.open(out, SETTINGS, {});
    journal.keepStates(3, { ...shape, data });
    return { journal, file: join(Journal.pathFor(out), "states-003.f32") };
  };

  it("are what was kept, and are cleared away with the rest", () => {
    const { journal } = kept();
    expect(journal.readStates(3, shape).data).toEqual(data);
    journal.keepStates(3, { ...shape, data: data.map((value) => -value) });
    expect(journal.readStates(3, shape).data[1]).toBe(-data[1]);
    journal.remove();
    expect(() => readFileSync(journal.directory)).toThrow("ENOENT");
  });

  it("with any one bit flipped are refused by name", () => {
    const { journal, file } = kept();
    const written = readFileSync(file);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: written.length * 8 - 1 }), (bit) => {
        writeFileSync(file, flipped(written, bit));
        expect(() => journal.readStates(3, shape)).toThrow(
          /block 3: states-003\.f32 does not hold the bytes that were written.*; run without --blocks/,
        );
      }),
      { numRuns: 50 },
    );
  });

  it("that are missing, cut or of other windows are refused", () => {
    const { journal, file } = kept();
    expect(() => journal.readStates(2, shape)).toThrow(/block 2: .*run without --blocks/);
    expect(() => journal.readStates(3, { ...shape, time: 4 })).toThrow(/holds 96 bytes/);
    writeFileSync(file, readFileSync(file).subarray(0, 50));
    expect(() => journal.readStates(3, shape)).toThrow(/has 50 bytes, and was written with 96/);
    rmSync(file);
    expect(() => journal.readStates(3, shape)).toThrow(/states-003\.f32 is missing/);
  });
});

describe("sealed JSON", () => {
  const read = (text: string): unknown =>
    unsealed(JSON.parse(text) as Record<string, unknown>, "r.json");

  it("holds what was given, in the order of JSON", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (content) => {
        fc.pre(!("sha256" in content) && !("__proto__" in content));
        const wanted = JSON.parse(JSON.stringify(content)) as unknown;
        expect(read(sealedText(content))).toEqual(wanted);
      }),
    );
  });

  it("with another number, text or key is refused in one line", () => {
    const text = sealedText({ perplexity: 21.5, name: "rtn", tasks: [{ acc: 0.25 }] });
    for (const [from, to] of [
      ["21.5", "21.6"],
      ["rtn", "rto"],
      ["0.25", "0.75"],
      ["acc", "bcc"],
    ])
      expect(() => read(text.replace(from, to))).toThrow(
        /^r\.json is damaged: it does not hold what was written \(SHA-256\); remove it to have it made again$/,
      );
    expect(read('{"perplexity": 1}')).toEqual({ perplexity: 1 });
  });
});
