/** The table of what a method found out about every linear, for `quantize` and `inspect`. */
import { formatTable } from "../../common/format.js";
import type { QuantizationInfo } from "../../quantize/artifact/artifact.js";
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

/**
 * Blocks that have grids or bits of their own beside the scheme's: by block, what and where. Nothing where there are none, or
 * where every block has the same.
 */
export function ownGridSections(layers: QuantizationInfo["layers"]): string[] {
  const rows = layers.flatMap(({ layer, grids = {}, activationBits = {} }) => {
    const weights = byValue(Object.entries(grids));
    const activations = byValue(Object.entries(activationBits));
    return weights || activations ? [[layer, weights, activations] as const] : [];
  });
  const different = new Set(rows.map(([, ...own]) => own.join(" | ")));
  if (rows.length === 0 || (rows.length === layers.length && different.size === 1)) return [];
  return [
    formatTable(["block", "weights of their own grid", "activations of their own bits"], rows),
  ];
}

/** `8g64: down_proj; 6g64: q_proj, k_proj`. */
function byValue(entries: readonly (readonly [string, string | number])[]): string {
  const names = new Map<string | number, string[]>();
  for (const [path, value] of entries)
    names.set(value, [...(names.get(value) ?? []), path.replace(/^.*\./, "")]);
  return [...names].map(([value, paths]) => `${value}: ${paths.join(", ")}`).join("; ");
}

/** "errorAfter" → "error after", "splitX" → "split X". */
function words(key: string): string {
  return key.replace(/([A-Z])/g, (letter, _group, at: number) =>
    /[XW]/.test(letter) && !/[a-z]/.test(key[at + 1] ?? "")
      ? ` ${letter}`
      : ` ${letter.toLowerCase()}`,
  );
}
