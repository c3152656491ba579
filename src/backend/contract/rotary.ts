/** Angles of the rotary embedding, with the scalings that checkpoints ask for. */
import type { RopeScaling, Rotary } from "./program.js";

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
      const smooth =
        (originalMaxPositions / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      return ((1 - smooth) * frequency) / factor + smooth * frequency;
    }
  }
}
