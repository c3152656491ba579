import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { attentionRows, sequenceTree } from "../../src/models/sequence-tree.js";
import { Graph } from "../../src/tensor/tensor.js";

/** Few tokens, so that beginnings often agree. */
const sequences = fc.array(fc.array(fc.nat(2), { minLength: 1, maxLength: 6 }), {
  minLength: 1,
  maxLength: 8,
});

describe("sequenceTree", () => {
  it("shares a common beginning and nothing else", () => {
    const tree = sequenceTree([
      [7, 8, 9],
      [7, 8, 5, 9],
      [8, 9],
      [7, 8],
    ]);
    expect(Array.from(tree.ids)).toEqual([7, 8, 9, 5, 9, 8, 9]);
    expect(Array.from(tree.positions)).toEqual([0, 1, 2, 2, 3, 0, 1]);
    expect(tree.rowsOf.map((rows) => Array.from(rows))).toEqual([
      [0, 1, 2],
      [0, 1, 3, 4],
      [5, 6],
      [0, 1],
    ]);
    expect(tree.longest).toHaveLength(3);
  });

  it("has one row for every distinct beginning, and spells every sequence", () => {
    fc.assert(
      fc.property(sequences, (given) => {
        const tree = sequenceTree(given);
        const beginnings = new Set(
          given.flatMap((s) => s.map((_, t) => s.slice(0, t + 1).join(","))),
        );
        expect(tree.ids.length).toBe(beginnings.size);
        for (const [i, rows] of tree.rowsOf.entries()) {
          expect(Array.from(rows, (row) => tree.ids[row])).toEqual(given[i]);
          expect(Array.from(rows, (row) => tree.positions[row])).toEqual([...given[i].keys()]);
        }
      }),
    );
  });

  it("gives attention every row once or more, each where its own beginning precedes it", () => {
    const backend = createReferenceBackend({ realType: "f64" });
    fc.assert(
      fc.property(sequences, (given) => {
        using g = new Graph(backend);
        const tree = sequenceTree(given);
        const shared = attentionRows(g, tree);
        const spread = Array.from(backend.read(shared.spread));
        const collect = Array.from(backend.read(shared.collect));
        const time = spread.length / shared.sequences;
        expect(collect.map((place) => spread[place])).toEqual([...tree.ids.keys()]);
        for (const rows of tree.rowsOf) {
          const place = collect[rows[rows.length - 1]];
          const start = place - (place % time);
          expect(spread.slice(start, place + 1)).toEqual(Array.from(rows));
        }
      }),
    );
  });
});
