/** How a matrix with a scale per group lies in memory (native/group_weights.h). */
import { areHalves } from "../../../common/half.js";
import { CONSTANTS } from "../../contract/abi.js";
import type { QuantizedMatrix } from "../../contract/packed.js";

/** Codes of up to 4 bits take 4, others 8. */
export function groupKind(bits: number): "int4" | "int8" {
  return bits <= 4 ? "int4" : "int8";
}

/**
 * The form's number: scales and offsets as halves where that is what they are, f32 elsewhere; codes beside offsets begin at
 * 0 and become signed. `bits`: of the codes.
 */
export function groupForm({ scale, offset }: QuantizedMatrix, bits: number): number {
  const halves = areHalves(scale) && (!offset || areHalves(offset));
  return (
    (halves ? CONSTANTS.groupHalves : 0) |
    (offset ? CONSTANTS.groupOffset | ((2 ** (bits - 1)) << 8) : 0)
  );
}

/** Scales (and offsets) of groups `times` smaller: each stands for as many of them. */
export function repeated(values: Float32Array, times: number): Float32Array {
  if (times === 1) return values;
  const out = new Float32Array(values.length * times);
  for (let i = 0; i < values.length; i++) out.fill(values[i], i * times, (i + 1) * times);
  return out;
}
