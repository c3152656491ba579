/**
 * The `packed_int4` layout that FlatQuant's repository publishes: names of an artifact where those have one, every
 * transform there, each with its own sizes, since its loader fills what is missing with random numbers.
 */

/** Linears of a block in that layout, with the module of the transform that their input goes through. */
export const LINEARS: Readonly<Record<string, string>> = {
  "self_attn.q_proj": "self_attn.ln_trans",
  "self_attn.k_proj": "self_attn.ln_trans",
  "self_attn.v_proj": "self_attn.ln_trans",
  "self_attn.o_proj": "self_attn.o_trans",
  "mlp.gate_proj": "mlp.up_gate_trans",
  "mlp.up_proj": "mlp.up_gate_trans",
  "mlp.down_proj": "mlp.down_trans",
};

/** File of settings beside the weights. */
export const SETTINGS_FILE = "quantization_config.json";
export const FORMAT = "packed_int4";

/** Two codes of two's complement a byte, as in an artifact. */
export const NIBBLES = { bits: 4, signed: true } as const;

/** A clipping logit whose factor is 1 in 16 bits: σ(20) = 1 − 2e-9. */
export const NO_CLIP = 20;

/**
 * Sizes of the left and right factor that the loader gives a transform of `width` channels: a − b and a + b of the
 * smallest a with a² − width a square b².
 */
export function factorSizes(width: number): readonly [number, number] {
  for (let a = Math.ceil(Math.sqrt(width)); a <= width; a++) {
    const b = Math.round(Math.sqrt(a * a - width));
    if (b * b === a * a - width) return [a - b, a + b];
  }
  return [1, width];
}
