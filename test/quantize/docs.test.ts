import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { flatQuantPresets } from "../../src/quantize/methods/flatquant/recipe.js";

const methods = readFileSync(new URL("../../docs/methods.md", import.meta.url), "utf8");

/** Fields of a record with those inside joined by dots. */
function fieldsOf(record: object, prefix = ""): [string, string][] {
  return Object.entries(record).flatMap(([key, value]: [string, unknown]) =>
    typeof value === "object" && value !== null
      ? fieldsOf(value, `${prefix}${key}.`)
      : [[prefix + key, String(value)] as [string, string]],
  );
}

describe("docs/methods.md", () => {
  it("states every field of FlatQuant's presets as they are", () => {
    const table = /<!-- presets -->([^]*)<!-- \/presets -->/.exec(methods)?.[1] ?? "";
    const rows = table
      .split("\n")
      .filter((line) => line.startsWith("| `"))
      .map((line) => line.split("|").map((cell) => cell.trim().replaceAll("`", "")));
    const stated = (column: number) => rows.map((cells) => [cells[1], cells[column]]);
    expect(stated(2)).toEqual(fieldsOf(flatQuantPresets.fast));
    expect(stated(3)).toEqual(fieldsOf(flatQuantPresets.paper));
    expect(stated(4)).toEqual(fieldsOf(flatQuantPresets.best));
  });
});
