/** Sets of Unicode code points, as sorted, disjoint, inclusive ranges. Surrogates belong to no set: no text has them. */

export type Range = readonly [first: number, last: number];
export type Ranges = readonly Range[];

export const LAST_CODE_POINT = 0x10ffff;
const SURROGATES: Range = [0xd800, 0xdfff];

/** Every code point that a text can have. */
export const ALL: Ranges = [
  [0, SURROGATES[0] - 1],
  [SURROGATES[1] + 1, LAST_CODE_POINT],
];

/** Sorted, merged, and without surrogates. */
export function normalize(ranges: Iterable<Range>): Ranges {
  const sorted = [...ranges].filter(([a, b]) => a <= b).sort((a, b) => a[0] - b[0]);
  const merged: [number, number][] = [];
  for (const [first, last] of sorted) {
    const open = merged.at(-1);
    if (open && first <= open[1] + 1) open[1] = Math.max(open[1], last);
    else merged.push([first, last]);
  }
  return intersect(merged, ALL);
}

export function intersect(a: Ranges, b: Ranges): Ranges {
  const found: Range[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const first = Math.max(a[i][0], b[j][0]);
    const last = Math.min(a[i][1], b[j][1]);
    if (first <= last) found.push([first, last]);
    if (a[i][1] < b[j][1]) i += 1;
    else j += 1;
  }
  return found;
}

export function complement(ranges: Ranges): Ranges {
  const gaps: Range[] = [];
  let next = 0;
  for (const [first, last] of ranges) {
    gaps.push([next, first - 1]);
    next = last + 1;
  }
  gaps.push([next, LAST_CODE_POINT]);
  return normalize(gaps);
}

export function contains(ranges: Ranges, point: number): boolean {
  return ranges.some(([first, last]) => first <= point && point <= last);
}
