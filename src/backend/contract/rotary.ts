/** Angles of the rotary embedding, with the scalings that checkpoints ask for. */
import type { RopeScaling, Rotary } from "./program.js";

/**
 * Angular frequency of each of a head's pairs, length dims/2: θ^(−2i/d) for d channels that turn, scaled, then zeros for
 * pairs that do not. `length`: of the sequence, which some scalings depend on.
 */
export function rotaryFrequencies(rotary: Rotary, length: number): Float64Array {
  const { dims, turning = dims, theta, scaling, frequencyType } = rotary;
  const frequencies = new Float64Array(dims / 2);
  const base = scaling.type === "dynamic" ? grownBase(theta, turning, scaling, length) : theta;
  const ramp = scaling.type === "yarn" ? yarnRamp(theta, turning, scaling) : undefined;
  for (let i = 0; i < turning / 2; i++) {
    const frequency = base ** ((-2 * i) / turning);
    frequencies[i] = scaled(frequency, i, scaling, length, ramp);
  }
  return frequencyType === "bfloat16" ? frequencies.map(toBfloat16) : frequencies;
}

type Scaling<T extends RopeScaling["type"]> = Extract<RopeScaling, { readonly type: T }>;

function grownBase(
  theta: number,
  dims: number,
  { factor, originalMaxPositions }: Scaling<"dynamic">,
  length: number,
): number {
  const stretch =
    (factor * Math.max(length, originalMaxPositions)) / originalMaxPositions - (factor - 1);
  return theta * stretch ** (dims / (dims - 2));
}

/** How much of pair i is interpolated: 0 for pairs that turn more often than betaFast, 1 below betaSlow. */
function yarnRamp(
  theta: number,
  dims: number,
  { originalMaxPositions, betaFast, betaSlow, truncate }: Scaling<"yarn">,
): (pair: number) => number {
  const pairThatTurns = (times: number): number =>
    (dims * Math.log(originalMaxPositions / (times * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [pairThatTurns(betaFast), pairThatTurns(betaSlow)];
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const top = Math.min(truncate ? Math.ceil(slow) : slow, dims - 1);
  // One pair wide at least, or nearly nothing, as published.
  const high = low === top ? top + 0.001 : top;
  return (pair) => Math.min(Math.max((pair - low) / (high - low), 0), 1);
}

/** What queries are multiplied with at a position. */
export function growthAt({ growth }: Pick<Rotary, "growth">, position: number): number {
  if (!growth) return 1;
  const { beta, length, first = 0 } = growth;
  return 1 + beta * Math.log(1 + Math.floor((position + first) / length));
}

/** Whether a position alone decides cos and sin: they are those of its angles, times a number where the scaling has one. */
export function hasFixedAngles({ scaling, growth }: Rotary): boolean {
  return !growth && ["default", "linear", "llama3", "yarn"].includes(scaling.type);
}

/** Cos and sin of positions, row by row; frequencies are computed once for each that a length asks for. */
export class RotaryRows {
  private readonly known = new Map<number, Float64Array>();
  /** Pairs of a head. */
  readonly pairs: number;
  private readonly turning: number;

  constructor(private readonly rotary: Rotary) {
    this.pairs = rotary.dims / 2;
    this.turning = (rotary.turning ?? rotary.dims) / 2;
  }

  /** Writes the `pairs` numbers of a position in a sequence of `length` at `at` of each table. */
  write(
    position: number,
    length: number,
    tables: {
      readonly cos: Float32Array | Float64Array;
      readonly sin: Float32Array | Float64Array;
    },
    at: number,
  ): void {
    const frequencies = this.frequencies(length);
    // Growth is of whole queries, the scaling's factor of what turns.
    const still = growthAt(this.rotary, position);
    const { scaling } = this.rotary;
    const size = "attentionFactor" in scaling ? scaling.attentionFactor * still : still;
    for (let i = 0; i < this.pairs; i++) {
      const angle = position * frequencies[i];
      const factor = i < this.turning ? size : still;
      tables.cos[at + i] = factor * Math.cos(angle);
      tables.sin[at + i] = factor * Math.sin(angle);
    }
  }

  /** What multiplies queries at a position. */
  growth(position: number): number {
    return growthAt(this.rotary, position);
  }

  private frequencies(length: number): Float64Array {
    const { scaling } = this.rotary;
    const deciding =
      scaling.type === "dynamic"
        ? Math.max(length, scaling.originalMaxPositions)
        : scaling.type === "longrope" && length > scaling.originalMaxPositions
          ? scaling.originalMaxPositions + 1
          : 0;
    let found = this.known.get(deciding);
    if (!found) {
      if (this.known.size > 16) this.known.clear();
      found = rotaryFrequencies(this.rotary, deciding);
      this.known.set(deciding, found);
    }
    return found;
  }
}

/** Nearest bfloat16, ties to even. */
function toBfloat16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0];
}

/**
 * One frequency, scaled. The llama3 scaling keeps short wavelengths, divides long ones by `factor`, and blends between
 * (Llama 3.1 model card: low/high frequency factors over the original context length).
 */
function scaled(
  frequency: number,
  pair: number,
  scaling: RopeScaling,
  length: number,
  ramp: ((pair: number) => number) | undefined,
): number {
  switch (scaling.type) {
    case "default":
    case "dynamic":
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
    case "yarn": {
      const interpolated = ramp?.(pair) ?? 0;
      return (interpolated * frequency) / scaling.factor + (1 - interpolated) * frequency;
    }
    case "longrope": {
      const { shortFactors, longFactors, originalMaxPositions } = scaling;
      return frequency / (length > originalMaxPositions ? longFactors : shortFactors)[pair];
    }
  }
}
