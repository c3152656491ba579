/** Tables of rotary embeddings for the tape. */
import type { Graph } from "../tensor/tensor.js";
import type { RopeTables } from "../tensor/ops/index.js";
import { rotaryFrequencies } from "../backend/contract/rotary.js";
import { rotariesOf, rotaryKey, type BlockProgram, type Rotary } from "../backend/contract/program.js";

/** Rotary tables by `rotaryKey`. */
export type RotaryTables = ReadonlyMap<string, RopeTables>;

/** Tables of every rotary embedding that the blocks use, for positions start … start+length−1. */
export function rotaryTables(
  g: Graph,
  programs: readonly BlockProgram[],
  start: number,
  length: number,
): RotaryTables {
  return rotaryTablesAt(g, programs, Int32Array.from({ length }, (_, t) => start + t));
}

/** The same for given positions: row r of the op's input is at `positions[r mod length]`. */
export function rotaryTablesAt(g: Graph, programs: readonly BlockProgram[], positions: Int32Array): RotaryTables {
  return new Map(rotariesOf(programs).map((rotary) => [rotaryKey(rotary), tablesAt(g, rotary, positions)]));
}

/** cos/sin of each position's angles, as the rope op takes them. */
function tablesAt(g: Graph, rotary: Rotary, positions: Int32Array): RopeTables {
  const frequencies = rotaryFrequencies(rotary);
  const { length } = positions;
  const half = frequencies.length;
  const cos = new Float64Array(length * half);
  const sin = new Float64Array(length * half);
  for (let t = 0; t < length; t++)
    for (let i = 0; i < half; i++) {
      const angle = positions[t] * frequencies[i];
      cos[t * half + i] = Math.cos(angle);
      sin[t * half + i] = Math.sin(angle);
    }
  return {
    cos: g.values(g.constant([length, half], cos)),
    sin: g.values(g.constant([length, half], sin)),
    period: length,
  };
}
