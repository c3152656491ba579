/** Element conversions against their definitions. */

import { describe, expect, it } from "vitest";
import { elementsToFloat32, halfFloatBits } from "../../src/checkpoint/element-types.js";

/** Value of a half by IEEE 754's formula, computed in doubles. */
function halfByFormula(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

describe("elements to float32", () => {
  it("converts every half exactly, signs of zero included", () => {
    const all = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
    const out = new Float32Array(65536);
    elementsToFloat32("F16", new Uint8Array(all.buffer), out, 0);
    for (let bits = 0; bits < 65536; bits++) {
      if (!Object.is(out[bits], halfByFormula(bits))) {
        expect({ bits, value: out[bits] }).toEqual({ bits, value: halfByFormula(bits) });
      }
    }
    expect(halfFloatBits()[0x8000]).toBe(0x80000000);
  });

  it("converts bfloat16 as the upper half of a float32", () => {
    const out = new Float32Array(5);
    elementsToFloat32(
      "BF16",
      Uint8Array.of(0x80, 0x3f, 0x00, 0xc0, 0x80, 0x7f, 0x01, 0x00),
      out,
      1,
    );
    expect([...out]).toEqual([0, 1, -2, Infinity, Math.fround(2 ** -133)]);
  });

  it.each([
    ["F64", new Float64Array([1.5, -(2 ** 40)]), [1.5, -(2 ** 40)]],
    [
      "I64",
      new BigInt64Array([-1n, 2n ** 40n, -(2n ** 33n) + 5n]),
      [-1, 2 ** 40, Math.fround(-(2 ** 33) + 5)],
    ],
    ["I32", new Int32Array([-7, 1 << 24]), [-7, 1 << 24]],
    ["I8", new Int8Array([-128, 127]), [-128, 127]],
    ["U8", new Uint8Array([0, 255]), [0, 255]],
    [
      "F8_E4M3",
      Uint8Array.of(0x00, 0x80, 0x01, 0x38, 0x7e, 0xfe, 0x7f),
      [0, -0, 2 ** -9, 1, 448, -448, NaN],
    ],
    ["F8_E5M2", Uint8Array.of(0x01, 0x3c, 0x7b, 0xfc), [2 ** -16, 1, 57344, -Infinity]],
    ["F8_E8M0", Uint8Array.of(0, 127, 254, 255), [2 ** -127, 1, 2 ** 127, NaN]],
    ["BOOL", new Uint8Array([0, 1, 2]), [0, 1, 1]],
  ] as const)("converts %s", (type, values, expected) => {
    const out = new Float32Array(expected.length);
    elementsToFloat32(type, new Uint8Array(values.buffer), out, 0);
    expect([...out]).toEqual(expected);
  });
});
