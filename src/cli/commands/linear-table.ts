/** The table of what a method found out about every linear, for `quantize` and `inspect`. */
import { formatTable } from "../../common/format.js";
import { summarizeBits, type LayersOfFacts } from "../../quantize/schema/linear-reports.js";

/** Table and summary; nothing where the method reports nothing by linear. */
export function linearSections(layers: LayersOfFacts): string[] {
  const keys = [
    ...new Set(layers.flatMap(({ linears }) => Object.values(linears ?? {}).flatMap(Object.keys))),
  ];
  if (keys.length === 0) return [];
  const rows = layers.flatMap(({ linears }, layer) =>
    Object.entries(linears ?? {}).map(([path, facts]) => [
      layer,
      path,
      ...keys.map((key) => {
        const value = facts[key];
        return typeof value === "number" && !Number.isInteger(value)
          ? Number(value.toPrecision(3)).toString()
          : value;
      }),
    ]),
  );
  const sections = [formatTable(["block", "linear", ...keys.map(words)], rows)];
  const summary = summarizeBits(layers);
  if (summary)
    sections.push(
      `${(100 * summary.fourBitShare).toFixed(1)}% of the linears' multiply-adds at 4 bits, K'/K ${summary.expansion.toFixed(3)}`,
    );
  return sections;
}

/** "errorAfter" → "error after", "splitX" → "split X". */
function words(key: string): string {
  return key.replace(/([A-Z])/g, (letter, _group, at: number) =>
    /[XW]/.test(letter) && !/[a-z]/.test(key[at + 1] ?? "")
      ? ` ${letter}`
      : ` ${letter.toLowerCase()}`,
  );
}
