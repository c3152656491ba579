/** Rounding of products to the type that a package computes in. */
import { halfFloats } from "../element-types.js";
import { floatToHalfBits } from "../../common/half.js";
import type { DenseType } from "./reading.js";

const floatView = new Float32Array(1);
const bitView = new Uint32Array(floatView.buffer);

/** Nearest bfloat16 of a float32, ties to even. */
export function toBfloat16(value: number): number {
  floatView[0] = value;
  const bits = bitView[0];
  if ((bits & 0x7f800000) !== 0x7f800000)
    bitView[0] = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  return floatView[0];
}

/** Nearest half of a float32, ties to even. */
function toHalf(value: number): number {
  return halfFloats()[floatToHalfBits(value)];
}

/** Rounds a float32 to a type. */
export function rounderTo(type: DenseType): (value: number) => number {
  return type === "BF16" ? toBfloat16 : type === "F16" ? toHalf : Math.fround;
}
