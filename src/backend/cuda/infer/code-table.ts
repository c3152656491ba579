/** Embedding and head on the GPU as codes with scales of groups (native/cuda/engine/tables.cu). */
import { areHalves } from "../../../common/half.js";
import type { QuantizedMatrix } from "../../contract/packed.js";
import { DEFAULT_TABLE_GROUP, type Scheme } from "../../contract/scheme.js";
import { EndLayerKernels, type CodeTable } from "./end-layer-kernels.js";
import { asStored, codeShift, groupOf } from "./group-scales.js";
import { NoCudaKernel } from "./support.js";
import type { MemoryDevice } from "./memory-device.js";

/** Rows whose codes are on their way at a time. */
const STAGED_ROWS = 1 << 14;

/** @throws PlanishError when its groups have no kernel. */
export function placeTable(
  device: MemoryDevice,
  [rows, columns]: readonly [number, number],
  matrix: QuantizedMatrix,
  { tableBits }: Scheme,
): { readonly table: CodeTable; readonly bytes: number } {
  const own = matrix.bits ?? tableBits ?? 8;
  const bits = own <= 4 ? 4 : 8;
  const group = groupOf(
    "the embedding",
    { ...matrix, group: matrix.group ?? DEFAULT_TABLE_GROUP },
    columns,
  );
  if (group === undefined)
    throw new NoCudaKernel("an embedding with one scale for a whole row has no CUDA kernel");
  const shift = codeShift(matrix, bits);
  const size = (rows * columns * bits) / 8;
  const codes = device.allocate(size);
  const staging = device.allocate(Math.min(rows, STAGED_ROWS) * columns);
  const kernels = new EndLayerKernels(device);
  // Codes of nibbles are 0 … 15 there, beside offsets from the start.
  const bias = bits === 8 ? 128 : matrix.offset ? 0 : 8;
  for (let row = 0; row < rows; row += STAGED_ROWS) {
    const count = Math.min(STAGED_ROWS, rows - row);
    device.write(staging, matrix.codes.subarray(row * columns, (row + count) * columns));
    kernels.packTable(staging, count * columns, bits, bias, codes + (row * columns * bits) / 8);
  }
  device.synchronize();
  device.free(staging);
  const halves = areHalves(matrix.scale) && (!matrix.offset || areHalves(matrix.offset));
  const [scale, offset] = [matrix.scale, matrix.offset].map(
    (values) => values && asStored(values, halves),
  );
  if (!scale) throw new NoCudaKernel("an embedding without scales has no CUDA kernel");
  return {
    table: {
      codes,
      bits,
      group,
      halves,
      scale: device.put(scale),
      offset: offset && device.put(offset),
      shift,
    },
    bytes: size + scale.byteLength + (offset?.byteLength ?? 0),
  };
}
