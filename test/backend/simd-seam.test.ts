/** Every instruction set's header offers what the kernels are written in: the names and parameters of portable.h, no others. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../../src/common/package.js";

const folder = join(packageRoot, "native", "simd");
const source = (name: string) =>
  readFileSync(join(folder, name), "utf8")
    .replace(/\/\/.*$/gm, "")
    .replace(/\\\n/g, " ");
const named = (pattern: RegExp) => readdirSync(folder).filter((name) => pattern.test(name));

/** A header that only takes another's place has nothing of its own: amx is avx512 with tiles. */
const vectors = named(/^(?!units|simd|vector)\w+\.h$/).filter((name) =>
  /LANES =/.test(source(name)),
);
const units = named(/^units_\w+\.h$/).filter((name) => /MR_VECTOR =/.test(source(name)));

/** Functions by name and types of parameters; types; constants. */
function offered(text: string): string[] {
  const functions = [
    ...text.matchAll(/^(?:PL_INLINE|inline)\s+(?:[\w:<>, ]+?)\s(\w+)\(([^{;]*?)\)\s*\{/gm),
  ].map(
    ([, name, parameters]) =>
      `${name}(${parameters
        .split(/,(?![^<(]*[>)])/)
        .map(type)
        .join(", ")})`,
  );
  const types = [...text.matchAll(/^(?:using (\w+) =|typedef \w+ (\w+) )/gm)].map(
    ([, used, defined]) => used ?? defined,
  );
  const constants = [...text.matchAll(/^constexpr int ([^;]*);/gm)].flatMap(([, list]) =>
    list.split(",").map((each) => each.trim().split(" ")[0]),
  );
  return [...new Set([...functions, ...types, ...constants])].sort();
}

/** A parameter without its name, its default and the number of lanes. */
function type(parameter: string): string {
  const bare = parameter.replace(/=.*/, "").trim();
  const array = /^(.*)\(&\w+\)\[\d+\]$/.exec(bare);
  return array ? `${array[1].trim()} (&)[]` : bare.replace(/\b\w+$/, "").trim() || bare;
}

describe("vectors", () => {
  const wanted = offered(source("portable.h"));

  test("portable.h is read whole", () => {
    expect(wanted.length).toBeGreaterThan(35);
    expect(wanted).toEqual(
      expect.arrayContaining([
        "LANES",
        "VF",
        "VI",
        "VD",
        "load(const int8_t*)",
        "nibble_columns(const uint8_t*, VI (&)[])",
      ]),
    );
  });

  test("the instruction sets have headers", () => {
    expect(vectors).toEqual(["avx2.h", "avx512.h", "neon.h", "portable.h", "wasm.h"]);
  });

  test.each(vectors)("%s offers the names of portable.h and no others", (name) => {
    expect(offered(source(name))).toEqual(wanted);
  });
});

describe("multiply-add units", () => {
  /** What a unit's struct declares. */
  const members = (body: string) =>
    [
      ...body.matchAll(/^ {2}(?:static constexpr \w+ (\w+)|using (\w+) =|static [\w:]+ (\w+)\()/gm),
    ].map(([, constant, alias, method]) => constant ?? alias ?? method);
  /** What units of integers inherit. */
  const shared = /^struct IntegerUnit \{\n([\s\S]*?)^\};/m.exec(source("units.h"))?.[1] ?? "";

  test("units.h is read whole", () => {
    expect(members(shared)).toEqual(expect.arrayContaining(["TILES", "Cell", "zero", "store"]));
  });

  test.each(units)("%s has every unit, each with its members", (name) => {
    const text = source(name);
    expect(offered(text)).toEqual(
      expect.arrayContaining(["MANY_PANELS", "MANY_PANELS_ROWS", "MR_VECTOR"]),
    );
    for (const unit of ["UnitBf16", "UnitI8", "UnitNibbles"])
      expect(text, unit).toMatch(new RegExp(`^(struct ${unit} |using ${unit} = )`, "m"));
    const structs = [
      ...text.matchAll(/^struct (\w+) (?:: IntegerUnit<(\w+)> )?\{\n([\s\S]*?)^\};/gm),
    ];
    expect(structs.length).toBeGreaterThan(0);
    for (const [, unit, ofInteger, body] of structs) {
      const integer =
        unit === "UnitBf16"
          ? ["ROUND"]
          : ["B_SHIFT", "codes", "Sum", "of", "more", "ones", "sum", "wide"];
      if (ofInteger !== undefined) expect(ofInteger, "its own `step` and `ones`").toBe(unit);
      const all = [...members(body), ...(ofInteger === undefined ? [] : members(shared))];
      expect(all, unit).toEqual(
        expect.arrayContaining([
          ...["GROUP", "TILES", "Cell", "Accumulator", "zero", "step", "store"],
          ...integer,
        ]),
      );
    }
  });
});
