/**
 * A word in device memory where a kernel leaves the smallest index at which it met something wrong. Reading it waits
 * for the device, so only kernels whose contract is to throw use it.
 */
import type { CudaContext } from "../../context.js";
import type { DevicePointer } from "../../driver.js";

/** Bytes 0x7f…: larger than any index. */
const NOTHING = 0x7f;

/** A fresh flag in scratch memory. */
export function startFlag({ driver, scratch, stream }: CudaContext): DevicePointer {
  const flag = scratch.take(8);
  driver.fillBytes(flag, NOTHING, 8, stream);
  return flag;
}

/** The smallest index that a kernel put there, or undefined. */
export function readFlag({ transfers }: CudaContext, flag: DevicePointer): number | undefined {
  const bytes = new Uint8Array(8);
  transfers.read(flag, bytes);
  const value = new DataView(bytes.buffer).getBigInt64(0, true);
  return value === 0x7f7f_7f7f_7f7f_7f7fn ? undefined : Number(value);
}
