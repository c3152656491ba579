/**
 * The small floats of compressed-tensors: NVFP4 (4-bit floats in groups of 16, scales of 8 bits and one of the tensor),
 * MXFP4 and MXFP8 (groups of 32 with powers of two). All come out as bfloat16, the type that the package unpacks them to.
 */
import { quoted } from "../../common/bounds.js";
import { E2M1 } from "./codes.js";
import type { Linear } from "./compressed-tensors-grid.js";
import { groupsOf } from "./linear.js";
import { toBfloat16 } from "./rounding.js";
import type { QuantizedTensor, StoredSource } from "./reading.js";

/** Reads a linear of one of the three formats. @throws PlanishError when its tensors are not what its grid says. */
export function readPackedFloats(source: StoredSource, linear: Linear): QuantizedTensor {
  const { module, format, grid } = linear;
  const where = `module ${quoted(module, 120)}`;
  const nv = format === "nvfp4-pack-quantized";
  const [bits, size] = [format === "mxfp8-quantized" ? 8 : 4, nv ? 16 : 32];
  if (
    grid.type !== "float" ||
    grid.num_bits !== bits ||
    grid.group_size !== size ||
    !grid.symmetric
  )
    source.refuse(
      `${where} is ${format} without symmetric ${bits}-bit floats in groups of ${size}`,
    );
  const codes = bits === 8 ? `${module}.weight` : `${module}.weight_packed`;
  const [rows, width] = source.need(codes, [bits === 8 ? "F8_E4M3" : "U8"], [[-1, -1]]).shape;
  const columns = bits === 8 ? width : 2 * width;
  if (columns % size !== 0) source.refuse(`${where} has ${columns} columns in groups of ${size}`);
  const groups = columns / size;
  const [scale, global] = [`${module}.weight_scale`, `${module}.weight_global_scale`];
  source.need(scale, nv ? ["F8_E4M3"] : ["U8", "F8_E8M0"], [[rows, groups]]);
  if (nv) source.need(global, ["F32"], [[1], []]);
  return {
    name: `${module}.weight`,
    shape: [rows, columns],
    type: "BF16",
    parts: [codes, scale, ...(nv ? [global] : [])],
    read: () => {
      const scales = nv ? source.floats(scale) : powersOfTwo(source.bytes(scale));
      // One scale of the tensor divides those of groups, in float32.
      const over = nv ? source.floats(global)[0] : 1;
      const factors = nv ? scales.map((value) => value / over) : scales;
      const values = bits === 8 ? source.floats(codes) : unpackE2M1(source.bytes(codes));
      const group = groupsOf(columns, size);
      for (let row = 0; row < rows; row++)
        for (let column = 0; column < columns; column++) {
          const at = row * columns + column;
          values[at] = toBfloat16(Math.fround(values[at] * factors[row * groups + group[column]]));
        }
      return values;
    },
  };
}

/** Scales of one byte: 2^(byte − 127); 255 is no number. */
export function powersOfTwo(bytes: Uint8Array): Float32Array {
  return Float32Array.from(bytes, (byte) => (byte === 255 ? NaN : 2 ** (byte - 127)));
}

/** Two 4-bit floats a byte, the first in its low half. */
export function unpackE2M1(bytes: Uint8Array): Float32Array {
  const out = new Float32Array(2 * bytes.length);
  for (let i = 0; i < bytes.length; i++) {
    out[2 * i] = E2M1[bytes[i] & 15];
    out[2 * i + 1] = E2M1[bytes[i] >> 4];
  }
  return out;
}
