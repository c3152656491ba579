/** Angles of the rotary embedding, with the scalings that checkpoints ask for. */
import type { Graph } from "../tensor/tensor.js";
import type { RopeTables } from "../tensor/ops/index.js";
import { rotariesOf, rotaryKey, type BlockProgram, type RopeScaling, type Rotary } from "./program.js";

/**
 * Angular frequency of each rotated pair, length dims/2: θ^(−2i/dims), then scaled.
 * The llama3 scaling keeps short wavelengths, divides long ones by `factor`, and blends between
 * (Llama 3.1 model card: low/high frequency factors over the original context length).
 */
export function rotaryFrequencies({ dims, theta, scaling, frequencyType }: Rotary): Float64Array {
  const frequencies = new Float64Array(dims / 2);
  for (let i = 0; i < frequencies.length; i++) {
    const base = theta ** ((-2 * i) / dims);
    frequencies[i] = scaled(base, scaling);
  }
  return frequencyType === "bfloat16" ? frequencies.map(toBfloat16) : frequencies;
}

/** Nearest bfloat16, ties to even. */
function toBfloat16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0];
}

function scaled(frequency: number, scaling: RopeScaling): number {
  switch (scaling.type) {
    case "default":
      return frequency;
    case "linear":
      return frequency / scaling.factor;
    case "llama3": {
      const wavelength = (2 * Math.PI) / frequency;
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
      if (wavelength < originalMaxPositions / highFreqFactor) return frequency;
      if (wavelength > originalMaxPositions / lowFreqFactor) return frequency / factor;
      const smooth = (originalMaxPositions / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      return ((1 - smooth) * frequency) / factor + smooth * frequency;
    }
  }
}

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
