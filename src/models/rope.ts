/** Angles of the rotary embedding, with the scalings that checkpoints ask for. */
import { PlanishError } from "../common/errors.js";
import type { Graph } from "../tensor/tensor.js";
import type { RopeTables } from "../tensor/ops/index.js";
import type { ModelConfig, RopeScaling } from "./config.js";

/**
 * Angular frequency of each rotated pair, length headDim/2: θ^(−2i/headDim), then scaled.
 * The llama3 scaling keeps short wavelengths, divides long ones by `factor`, and blends between
 * (Llama 3.1 model card: low/high frequency factors over the original context length).
 */
export function ropeFrequencies(
  headDim: number,
  theta: number,
  scaling: RopeScaling,
  frequencyType?: "bfloat16",
): Float64Array {
  const frequencies = new Float64Array(headDim / 2);
  for (let i = 0; i < frequencies.length; i++) {
    const base = theta ** ((-2 * i) / headDim);
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

/** cos/sin tables for positions start … start+length−1, as the rope op takes them. */
export function ropeTables(g: Graph, config: ModelConfig, start: number, length: number): RopeTables {
  return ropeTablesAt(g, config, Int32Array.from({ length }, (_, t) => start + t));
}

/** cos/sin tables for given positions: row r of the op's input is at `positions[r mod length]`. */
export function ropeTablesAt(g: Graph, config: ModelConfig, positions: Int32Array): RopeTables {
  if (config.positions.kind !== "rope") throw new PlanishError(`[rope] ${config.architecture} has no rotary positions`);
  const frequencies = ropeFrequencies(
    config.headDim,
    config.positions.theta,
    config.positions.scaling,
    config.positions.frequencyType,
  );
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
