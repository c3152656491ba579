/**
 * Experts of gpt-oss: `quant_method` "mxfp4". `<name>_blocks` [experts, out, in/32, 16] holds two 4-bit floats a byte,
 * the first in the low half, and `<name>_scales` [experts, out, in/32] powers of two. The dense tensor is what
 * transformers makes of them: bfloat16 [experts, in, out].
 */
import { quoted } from "../../common/bounds.js";
import { powersOfTwo, unpackE2M1 } from "./packed-floats.js";
import { toBfloat16 } from "./rounding.js";
import type { QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

/** Floats that share a scale, and the bytes that they take. */
const BLOCK = 32;
const BLOCK_BYTES = BLOCK / 2;

/** Reads MXFP4 experts. @throws PlanishError naming what is missing or of a wrong shape. */
export function readMxfp4(source: StoredSource): QuantizedReading {
  const blocks = source.modules("_blocks");
  const lone = source.modules("_scales").find((name) => !source.has(`${name}_blocks`));
  if (lone !== undefined) source.refuse(`tensor ${quoted(`${lone}_scales`, 120)} has no blocks`);
  return {
    tensors: blocks.map((name) => readExperts(source, name)),
    dropped: [],
    notes: [],
    grid: `4-bit floats in groups of ${BLOCK}`,
  };
}

function readExperts(source: StoredSource, name: string): QuantizedTensor {
  const parts = [`${name}_blocks`, `${name}_scales`];
  const [experts, outputs, groups] = source.need(
    parts[0],
    ["U8"],
    [[-1, -1, -1, BLOCK_BYTES]],
  ).shape;
  source.need(parts[1], ["U8"], [[experts, outputs, groups]]);
  const inputs = BLOCK * groups;
  return {
    name,
    shape: [experts, inputs, outputs],
    type: "BF16",
    parts,
    read: () => {
      const values = unpackE2M1(source.bytes(parts[0]));
      const scales = powersOfTwo(source.bytes(parts[1]));
      const out = new Float32Array(values.length);
      for (let expert = 0; expert < experts; expert++)
        for (let output = 0; output < outputs; output++) {
          const row = expert * outputs + output;
          for (let input = 0; input < inputs; input++) {
            const scale = scales[row * groups + Math.floor(input / BLOCK)];
            const value = Math.fround(values[row * inputs + input] * scale);
            out[(expert * inputs + input) * outputs + output] = toBfloat16(value);
          }
        }
      return out;
    },
  };
}
