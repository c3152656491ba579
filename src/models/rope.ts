/** Tables of rotary embeddings for the tape. */
import type { Graph } from "../tensor/tensor.js";
import type { RopeTables } from "../tensor/ops/index.js";
import { RotaryRows } from "../backend/contract/rotary.js";
import {
  rotariesOf,
  rotaryKey,
  type BlockProgram,
  type Rotary,
} from "../backend/contract/program.js";

/** Rotary tables by `rotaryKey`. */
export type RotaryTables = ReadonlyMap<string, RopeTables>;

/** Tables of every rotary embedding that the blocks use, for positions start … start+length−1. */
export function rotaryTables(
  g: Graph,
  programs: readonly BlockProgram[],
  start: number,
  length: number,
): RotaryTables {
  return rotaryTablesAt(
    g,
    programs,
    Int32Array.from({ length }, (_, t) => start + t),
  );
}

/**
 * The same for given positions: row r of the op's input is at `positions[r mod length]`. `lengths`: of each row's sequence;
 * absent: all rows are of one that ends with the last position.
 */
export function rotaryTablesAt(
  g: Graph,
  programs: readonly BlockProgram[],
  positions: Int32Array,
  lengths?: Int32Array,
): RotaryTables {
  const longest = positions.reduce((a, b) => Math.max(a, b), 0) + 1;
  const lengthOf = (row: number): number => lengths?.[row] ?? longest;
  return new Map(
    rotariesOf(programs).map((rotary) => [
      rotaryKey(rotary),
      tablesAt(g, rotary, positions, lengthOf),
    ]),
  );
}

/** cos/sin of each position's angles, as the rope op takes them. */
function tablesAt(
  g: Graph,
  rotary: Rotary,
  positions: Int32Array,
  lengthOf: (row: number) => number,
): RopeTables {
  const rows = new RotaryRows(rotary);
  const { length } = positions;
  const { pairs } = rows;
  const [cos, sin] = [new Float64Array(length * pairs), new Float64Array(length * pairs)];
  for (let t = 0; t < length; t++) rows.write(positions[t], lengthOf(t), { cos, sin }, t * pairs);
  return {
    cos: g.values(g.constant([length, pairs], cos)),
    sin: g.values(g.constant([length, pairs], sin)),
    period: length,
  };
}
