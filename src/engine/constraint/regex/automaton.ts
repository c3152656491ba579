/** A language's automaton: its derivatives as states, without those from which no text can be completed. */
import { intersect, normalize, ALL, LAST_CODE_POINT, type Range, type Ranges } from "./ranges.js";
import { TooComplex, type Regex, type Regexes } from "./nodes.js";

export interface Arrow {
  readonly ranges: Ranges;
  readonly to: number;
}

export interface State {
  /** Whether a text may end here. */
  readonly accepts: boolean;
  readonly arrows: readonly Arrow[];
}

/** States from the first, which is where texts begin. */
export type Automaton = readonly State[];

/** Returns undefined where no text fits. @throws TooComplex when there are more than `most` states. */
export function automatonOf(regexes: Regexes, start: Regex, most: number): Automaton | undefined {
  const numbers = new Map<Regex, number>([[start, 0]]);
  const nodes = [start];
  const states: State[] = [];
  for (let i = 0; i < nodes.length; i++) {
    const node = nodes[i];
    const targets = new Map<number, Range[]>();
    const edges = regexes.edgesOf(node);
    edges.forEach((first, at) => {
      if (first > LAST_CODE_POINT) return;
      const range = [first, (edges[at + 1] ?? LAST_CODE_POINT + 1) - 1] as const;
      if (intersect([range], ALL).length === 0) return;
      const next = regexes.derive(node, first);
      if (next === regexes.none) return;
      let to = numbers.get(next);
      if (to === undefined) {
        to = nodes.length;
        if (to >= most) throw new TooComplex(`more than ${most} states`);
        numbers.set(next, to);
        nodes.push(next);
      }
      const ranges = targets.get(to);
      if (ranges) ranges.push(range);
      else targets.set(to, [range]);
    });
    const arrows = [...targets].map(([to, ranges]) => ({ to, ranges: normalize(ranges) }));
    states.push({ accepts: node.nullable, arrows });
  }
  return withoutDeadEnds(states);
}

/** Whether a language has no text at all, found out by as much of its automaton as is needed. */
export function isEmpty(regexes: Regexes, start: Regex, most: number): boolean {
  const seen = new Set<Regex>([start]);
  for (const node of seen) {
    if (node.nullable) return false;
    for (const first of regexes.edgesOf(node)) {
      if (first > LAST_CODE_POINT) continue;
      const next = regexes.derive(node, first);
      if (next === regexes.none || seen.has(next)) continue;
      if (seen.size >= most) throw new TooComplex(`more than ${most} states`);
      seen.add(next);
    }
  }
  return true;
}

/** Whether a text is in a language. */
export function matches(regexes: Regexes, regex: Regex, text: string): boolean {
  let node = regex;
  for (const char of text) node = regexes.derive(node, char.codePointAt(0) ?? 0);
  return node.nullable;
}

function withoutDeadEnds(states: readonly State[]): Automaton | undefined {
  const sources = states.map((): number[] => []);
  states.forEach(({ arrows }, from) => arrows.forEach(({ to }) => sources[to].push(from)));
  const alive = new Set<number>();
  const queue = states.flatMap(({ accepts }, i) => (accepts ? [i] : []));
  for (let state = queue.pop(); state !== undefined; state = queue.pop()) {
    if (alive.has(state)) continue;
    alive.add(state);
    queue.push(...sources[state]);
  }
  if (!alive.has(0)) return undefined;
  const renamed = new Map<number, number>();
  states.forEach((_, i) => alive.has(i) && renamed.set(i, renamed.size));
  return states
    .filter((_, i) => alive.has(i))
    .map(({ accepts, arrows }) => ({
      accepts,
      arrows: arrows.flatMap(({ ranges, to }) => {
        const target = renamed.get(to);
        return target === undefined ? [] : [{ ranges, to: target }];
      }),
    }));
}
