/**
 * Regular languages over code points, closed under "and" and "not", which is what a schema needs: a pattern and a length
 * and none of these names. Languages are stepped through by derivatives: after a character, the rest is again a language
 * (Brzozowski 1964; Owens, Reppy and Turon 2009, whose similarity rules the constructors apply).
 *
 * Nodes are built by one `Regexes`, which gives equal nodes one identity, so that derivatives come round to where they
 * were and are states of an automaton.
 */
import { ALL, contains, type Range, type Ranges } from "./ranges.js";

export type Regex =
  | { readonly kind: "none"; readonly id: number; readonly nullable: boolean }
  | { readonly kind: "empty"; readonly id: number; readonly nullable: boolean }
  | {
      readonly kind: "set";
      readonly id: number;
      readonly nullable: boolean;
      readonly ranges: Ranges;
    }
  | {
      readonly kind: "sequence";
      readonly id: number;
      readonly nullable: boolean;
      readonly head: Regex;
      readonly tail: Regex;
    }
  | {
      readonly kind: "either" | "both";
      readonly id: number;
      readonly nullable: boolean;
      readonly parts: readonly Regex[];
    }
  | { readonly kind: "not"; readonly id: number; readonly nullable: boolean; readonly part: Regex }
  | {
      readonly kind: "repeat";
      readonly id: number;
      readonly nullable: boolean;
      readonly part: Regex;
      readonly min: number;
      readonly max: number;
    }
  /** Decimal digits whose number, continued from remainder `rest`, `divisor` divides. */
  | {
      readonly kind: "multiple";
      readonly id: number;
      readonly nullable: boolean;
      readonly divisor: number;
      readonly rest: number;
    };

type WithoutId<T> = T extends unknown ? Omit<T, "id"> : never;

/** Nodes that one constraint may be made of: a pattern that is worse than that is refused. */
const MOST_NODES = 200_000;

export class TooComplex extends Error {
  override readonly name = "TooComplex";
}

const ZERO = 0x30;
const DIGITS: Range = [ZERO, ZERO + 9];

export class Regexes {
  private readonly known = new Map<string, Regex>();
  private readonly derived = new Map<Regex, Map<number, Regex>>();
  private readonly edges = new Map<Regex, readonly number[]>();

  /** Nothing fits. */
  readonly none = this.make("0", { kind: "none", nullable: false });
  /** The empty text. */
  readonly empty = this.make("1", { kind: "empty", nullable: true });
  readonly anyChar = this.set(ALL);
  /** Any text. */
  readonly any = this.repeat(this.anyChar, 0, Infinity);

  private make(key: string, node: WithoutId<Regex>): Regex {
    let found = this.known.get(key);
    if (found === undefined) {
      if (this.known.size >= MOST_NODES) throw new TooComplex("too many states");
      found = { ...node, id: this.known.size };
      this.known.set(key, found);
    }
    return found;
  }

  set(ranges: Ranges): Regex {
    if (ranges.length === 0) return this.none;
    return this.make(`s${ranges.join(";")}`, { kind: "set", nullable: false, ranges });
  }

  text(text: string): Regex {
    return this.sequence(
      Array.from(text, (char) => {
        const point = char.codePointAt(0) ?? 0;
        return this.set([[point, point]]);
      }),
    );
  }

  sequence(parts: readonly Regex[]): Regex {
    return parts.reduceRight((tail, head) => this.pair(head, tail), this.empty);
  }

  private pair(head: Regex, tail: Regex): Regex {
    if (head === this.none || tail === this.none) return this.none;
    if (head === this.empty) return tail;
    if (tail === this.empty) return head;
    if (head.kind === "sequence") return this.pair(head.head, this.pair(head.tail, tail));
    const nullable = head.nullable && tail.nullable;
    return this.make(`q${head.id},${tail.id}`, { kind: "sequence", nullable, head, tail });
  }

  either(parts: readonly Regex[]): Regex {
    const flat = this.flat("either", parts).filter((part) => part !== this.none);
    if (flat.includes(this.any)) return this.any;
    if (flat.length <= 1) return flat[0] ?? this.none;
    const nullable = flat.some((part) => part.nullable);
    return this.make(`e${ids(flat)}`, { kind: "either", nullable, parts: flat });
  }

  both(parts: readonly Regex[]): Regex {
    const flat = this.flat("both", parts).filter((part) => part !== this.any);
    if (flat.includes(this.none)) return this.none;
    if (flat.length === 0) return this.any;
    if (flat.length === 1) return flat[0];
    const nullable = flat.every((part) => part.nullable);
    return this.make(`b${ids(flat)}`, { kind: "both", nullable, parts: flat });
  }

  /** Parts of parts, each once, in a fixed order. */
  private flat(kind: "either" | "both", parts: readonly Regex[]): Regex[] {
    const found = new Set<Regex>();
    for (const part of parts)
      for (const each of part.kind === kind ? part.parts : [part]) found.add(each);
    return [...found].sort((a, b) => a.id - b.id);
  }

  not(part: Regex): Regex {
    if (part.kind === "not") return part.part;
    if (part === this.none) return this.any;
    if (part === this.any) return this.none;
    return this.make(`n${part.id}`, { kind: "not", nullable: !part.nullable, part });
  }

  repeat(part: Regex, min: number, max: number): Regex {
    if (max === 0 || part === this.empty) return this.empty;
    if (part === this.none) return min === 0 ? this.empty : this.none;
    if (min === 1 && max === 1) return part;
    if (part.kind === "repeat" && part.min === 0 && part.max === Infinity) return part;
    const least = part.nullable ? 0 : min;
    const key = `r${part.id},${least},${max}`;
    return this.make(key, { kind: "repeat", nullable: least === 0, part, min: least, max });
  }

  /** Decimal digits, at least one, of a multiple of `divisor`. */
  multiple(divisor: number): Regex {
    const digit = this.set([DIGITS]);
    return this.both([this.remainder(divisor, 0), this.repeat(digit, 1, Infinity)]);
  }

  private remainder(divisor: number, rest: number): Regex {
    const node = { kind: "multiple", nullable: rest === 0, divisor, rest } as const;
    return this.make(`m${divisor},${rest}`, node);
  }

  /** The rest of the language after a character. */
  derive(node: Regex, point: number): Regex {
    let own = this.derived.get(node);
    if (own === undefined) this.derived.set(node, (own = new Map<number, Regex>()));
    const at = representative(this.edgesOf(node), point);
    let found = own.get(at);
    if (found === undefined) own.set(at, (found = this.derivative(node, point)));
    return found;
  }

  private derivative(node: Regex, point: number): Regex {
    switch (node.kind) {
      case "none":
      case "empty":
        return this.none;
      case "set":
        return contains(node.ranges, point) ? this.empty : this.none;
      case "sequence": {
        const first = this.pair(this.derive(node.head, point), node.tail);
        return node.head.nullable ? this.either([first, this.derive(node.tail, point)]) : first;
      }
      case "either":
        return this.either(node.parts.map((part) => this.derive(part, point)));
      case "both":
        return this.both(node.parts.map((part) => this.derive(part, point)));
      case "not":
        return this.not(this.derive(node.part, point));
      case "repeat": {
        const { part, min, max } = node;
        return this.pair(
          this.derive(part, point),
          this.repeat(part, Math.max(min - 1, 0), max - 1),
        );
      }
      case "multiple": {
        if (!contains([DIGITS], point)) return this.none;
        const { divisor, rest } = node;
        return this.remainder(divisor, (rest * 10 + point - ZERO) % divisor);
      }
    }
  }

  /**
   * Code points at which the derivative may change, sorted, beginning with 0: between two of them all characters have
   * the same one.
   */
  edgesOf(node: Regex): readonly number[] {
    let found = this.edges.get(node);
    if (found === undefined) this.edges.set(node, (found = this.findEdges(node)));
    return found;
  }

  private findEdges(node: Regex): readonly number[] {
    switch (node.kind) {
      case "none":
      case "empty":
        return [0];
      case "set":
        return merge([[0], ...node.ranges.map(([first, last]) => [first, last + 1])]);
      case "sequence":
        return node.head.nullable
          ? merge([this.edgesOf(node.head), this.edgesOf(node.tail)])
          : this.edgesOf(node.head);
      case "either":
      case "both":
        return merge(node.parts.map((part) => this.edgesOf(part)));
      case "not":
      case "repeat":
        return this.edgesOf(node.part);
      case "multiple":
        return [0, ...Array.from({ length: 11 }, (_, digit) => ZERO + digit)];
    }
  }
}

function ids(parts: readonly Regex[]): string {
  return parts.map((part) => part.id).join(",");
}

function merge(lists: readonly (readonly number[])[]): readonly number[] {
  return [...new Set(lists.flat())].sort((a, b) => a - b);
}

/** The last edge at or before a point. */
function representative(edges: readonly number[], point: number): number {
  let low = 0;
  let high = edges.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= point) low = middle;
    else high = middle - 1;
  }
  return edges[low];
}
