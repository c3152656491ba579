/** Quantization schemes as people write them: `w<bits>a<bits>kv<bits>`, where 16 means "not quantized". */

import { UsageError } from "../../common/errors.js";

/** Every bit width a scheme may name. */
export const LEGAL_BITS = [2, 3, 4, 6, 8, 16] as const;
export type Bits = (typeof LEGAL_BITS)[number];

/** Bit widths of one quantized model; 16 means that the tensor stays in 16 or more bits. */
export interface Scheme {
  /** Weights of the block's linears. */
  readonly weightBits: Bits;
  /** Inputs of the block's linears. */
  readonly activationBits: Bits;
  /** Keys and values as the cache keeps them. */
  readonly kvBits: Bits;
  /** Queries after rotary embedding; absent means 16. Not part of the written form. */
  readonly queryBits?: Bits;
}

const WRITTEN = /^w(\d+)a(\d+)(?:kv(\d+))?$/i;

/**
 * Reads `w4a4kv4` (letter case ignored; a missing `kv…` means `kv16`).
 * Throws UsageError naming what was given and what is legal.
 */
export function parseScheme(text: string): Scheme {
  const match = WRITTEN.exec(text.trim());
  if (match === null) {
    throw new UsageError(
      `scheme "${text}" is not of the form w<bits>a<bits>kv<bits>; give one like w4a4kv4 or w4a16kv16`,
    );
  }
  const bits = (digits: string, what: string): Bits => {
    const value = Number(digits);
    if (isLegalBits(value)) return value;
    throw new UsageError(
      `scheme "${text}" asks for ${digits}-bit ${what}; ` +
        `legal widths are ${LEGAL_BITS.join(", ")} (16 means not quantized)`,
    );
  };
  return {
    weightBits: bits(match[1], "weights"),
    activationBits: bits(match[2], "activations"),
    kvBits: bits(match[3] ?? "16", "KV cache"),
  };
}

/** Whether a text is a scheme as `parseScheme` reads it. */
export function isScheme(text: string): boolean {
  try {
    parseScheme(text);
    return true;
  } catch {
    return false;
  }
}

/** The written form, always with its `kv` part: the inverse of `parseScheme`. */
export function formatScheme(scheme: Scheme): string {
  return `w${scheme.weightBits}a${scheme.activationBits}kv${scheme.kvBits}`;
}

/** Whether `value` is a width that a scheme may name. */
export function isLegalBits(value: number): value is Bits {
  return (LEGAL_BITS as readonly number[]).includes(value);
}
