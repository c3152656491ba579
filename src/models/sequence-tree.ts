/**
 * Token sequences as a tree of their common beginnings. In a causal model a position's state depends on the tokens up
 * to it alone, so sequences that begin alike share those rows: choices of one question share the question, and even
 * questions their opening words.
 */
import type { Graph } from "../tensor/tensor.js";
import type { SharedRows } from "./interpret.js";

/** A row is one token after one particular beginning; rows come after the rows they continue. */
export interface SequenceTree {
  /** Token of each row. */
  readonly ids: Int32Array;
  /** Position of each row in every sequence that holds it. */
  readonly positions: Int32Array;
  /** For each sequence given, the row of each of its tokens. */
  readonly rowsOf: readonly Int32Array[];
  /** Rows of the sequences that no other one continues or repeats: all that attention needs to see. */
  readonly longest: readonly Int32Array[];
}

/** The tree of some sequences of token ids, none of them empty. */
export function sequenceTree(sequences: readonly ArrayLike<number>[]): SequenceTree {
  const ids: number[] = [];
  const positions: number[] = [];
  const continued: boolean[] = [];
  /** Children by token; index 0 holds the roots, row r's are at r + 1. */
  const children = [new Map<number, number>()];
  const rowsOf = sequences.map((sequence) => {
    const rows = new Int32Array(sequence.length);
    let at = 0;
    for (let t = 0; t < sequence.length; t++) {
      const id = sequence[t];
      let row = children[at].get(id);
      if (row === undefined) {
        row = ids.length;
        children[at].set(id, row);
        children.push(new Map());
        ids.push(id);
        positions.push(t);
        continued.push(false);
        if (at > 0) continued[at - 1] = true;
      }
      rows[t] = row;
      at = row + 1;
    }
    return rows;
  });
  const seen = new Set<number>();
  const longest = rowsOf.filter((rows) => {
    const last = rows[rows.length - 1];
    if (continued[last] || seen.has(last)) return false;
    seen.add(last);
    return true;
  });
  return { ids: Int32Array.from(ids), positions: Int32Array.from(positions), rowsOf, longest };
}

/** The tree's rows as attention takes them: the longest sequences, padded at the right to equal length. */
export function attentionRows(g: Graph, { ids, longest }: SequenceTree): SharedRows {
  const time = longest.reduce((most, rows) => Math.max(most, rows.length), 0);
  const spread = new Int32Array(longest.length * time);
  const collect = new Int32Array(ids.length);
  for (const [s, rows] of longest.entries())
    for (const [t, row] of rows.entries()) {
      spread[s * time + t] = row;
      collect[row] = s * time + t;
    }
  return { sequences: longest.length, spread: g.indices(spread), collect: g.indices(collect) };
}
