/** Bounds on numbers, short renderings of hostile values, JSON of strangers. */
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import {
  countIn,
  describeRange,
  finiteIn,
  idIn,
  integerIn,
  oneLine,
  parseJson,
  quoted,
  shown,
} from "../../src/common/bounds.js";
import { PlanishError } from "../../src/common/errors.js";

describe("numbers", () => {
  it.each([
    [
      () => integerIn(2e6, "num_hidden_layers", { min: 1, max: 4096 }),
      "from 1 to 4,096, found 2000000",
    ],
    [() => integerIn(-0.5, "sliding_window", { min: 1 }), "a whole number at least 1, found -0.5"],
    [() => integerIn(2 ** 53, "an id"), "a whole number, found 9007199254740992"],
    [() => integerIn("7", "layers"), 'found "7"'],
    [() => countIn(undefined, "layers", 10), "from 0 to 10, found nothing"],
    [() => idIn(10, "id", 10), "from 0 to 9, found 10"],
    [() => finiteIn(NaN, "theta", { above: 0 }), "a finite number above 0, found NaN"],
    [() => finiteIn(0, "theta", { above: 0, hint: "use 10000" }), "above 0, found 0; use 10000"],
    [() => finiteIn(1n << 80n, "theta"), "found 1208925819614629174706176"],
    [() => finiteIn({ a: [1] }, "theta"), 'found {"a":[1]}'],
  ])("outside the range are refused with what was found and what is accepted", (call, message) => {
    expect(call).toThrow(PlanishError);
    expect(call).toThrow(message);
  });

  it("inside the range come back as they are", () => {
    expect(integerIn(4096, "layers", { min: 1, max: 4096 })).toBe(4096);
    expect(idIn(0, "id", 1)).toBe(0);
    expect(finiteIn(1e-300, "penalty", { above: 0 })).toBe(1e-300);
    expect(describeRange({ above: 0, max: 0.00001 })).toBe("above 0 and at most 0.00001");
  });
});

describe("what strangers wrote, in an error line", () => {
  it("is one short line without control characters, whatever it is", () => {
    const anything = fc.oneof(
      fc.anything({ withBigInt: true, withTypedArray: true, withNullPrototype: true }),
      fc.string({ unit: "binary", size: "large" }),
    );
    fc.assert(
      fc.property(anything, fc.integer({ min: 8, max: 80 }), (value, most) => {
        const text = shown(value, most);
        expect(text.length).toBeLessThanOrEqual(most);
        // eslint-disable-next-line no-control-regex -- none must be there
        expect(text).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e]/);
        expect(text).not.toMatch(/\p{Surrogate}/u);
      }),
    );
  });

  it("is cut where it is long, and takes no time where it is deep or large", () => {
    let deep: unknown = 0;
    for (let i = 0; i < 100_000; i++) deep = [deep];
    expect(shown(deep)).toBe("[[[[…]]]]");
    expect(shown(new Array(1_000_000).fill(1))).toHaveLength(60);
    expect(shown(Object.fromEntries(Array.from({ length: 9999 }, (_, i) => [i, i])))).toHaveLength(
      60,
    );
    expect(quoted("a".repeat(100), 10)).toBe('"aaaaaaa…"');
    expect(quoted("\u0000".repeat(100), 12)).toBe('"\\u0000…"');
    expect(quoted("a\u001b[31m\u202e")).toBe('"a\\u001b[31m\\u202e"');
    expect(oneLine("bad\n  token <\u0007>")).toBe("bad token <\\u0007>");
  });
});

describe("JSON of strangers", () => {
  it("is what JSON.parse makes of it", () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 20 }), (text) => {
        expect(parseJson(text, "it")).toEqual(JSON.parse(text));
      }),
    );
    expect(parseJson(' {"a\\\\": "\\"]]]", "b": [-1.5e308, 12345]}', "it")).toEqual({
      "a\\": '"]]]',
      b: [-1.5e308, 12345],
    });
  });

  it("reads numbers of Python's only where they may stand, and never inside strings", () => {
    const text = '{"a": [0.0, Infinity], "b": -Infinity, "c": "Infinity, \\"NaN", "NaN": NaN}';
    expect(() => parseJson(text, "it")).toThrow(/not valid JSON/);
    expect(parseJson(text, "it", { python: true })).toEqual({
      a: [0, { __float__: "Infinity" }],
      b: { __float__: "-Infinity" },
      c: 'Infinity, "NaN',
      NaN: { __float__: "NaN" },
    });
    expect(() => parseJson('{"a": Infinityx}', "it", { python: true })).toThrow(/not valid JSON/);
  });

  it("is refused for its depth before anything is made of it", () => {
    const parse = vi.spyOn(JSON, "parse");
    expect(() => parseJson("[".repeat(1_000_000), "it")).toThrow(/nested more than 64 levels/);
    expect(parse).not.toHaveBeenCalled();
    parse.mockRestore();
  });

  it("is JSON.parse's, or refused, whatever the text", () => {
    const pieces = fc.constantFrom(
      "{",
      "}",
      "[",
      "]",
      '"',
      "\\",
      ",",
      ":",
      "1",
      "-",
      "e",
      "tru",
      " ",
      '"a"',
    );
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 30 }), (parts) => {
        const text = parts.join("");
        let wanted: unknown;
        try {
          wanted = JSON.parse(text);
        } catch {
          expect(() => parseJson(text, "it")).toThrow(PlanishError);
          return;
        }
        expect(parseJson(text, "it")).toEqual(wanted);
      }),
    );
  });

  it.each([
    ["broken", '{"a": tru\n}', /^it is not valid JSON \([^\n]*\)$/],
    [
      "deep",
      `{"a":${"[".repeat(100_000)}${"]".repeat(100_000)}}`,
      /^it is nested more than 64 levels/,
    ],
    ["deep by objects", `${'{"a":'.repeat(65)}1${"}".repeat(65)}`, /^it is nested more than 64/],
    ["beyond float64", '{"factor": 1e999}', /^it holds 1e999, which is no finite number$/],
    ["beyond float64 in digits", `[-${"9".repeat(400)}]`, /^it holds -9{58}…, which is no finite/],
    ["long", `"${"a".repeat(2000)}"`, /^it is 2,002 characters long; at most 1,000/],
  ])("is refused in one short line when it is %s", (_, text, message) => {
    const parse = (): unknown =>
      parseJson(text, "it", { length: message.source.includes("1,000") ? 1000 : undefined });
    expect(parse).toThrow(PlanishError);
    expect(parse).toThrow(message);
  });
});
