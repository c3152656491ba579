/** A launch on the emulated GPU: which kernel, compiled how, with which arguments. */
import type { CudaKernel } from "../../../../src/backend/cuda/driver.js";

export interface EmulatedKernel extends CudaKernel {
  readonly key: string;
  readonly defines: Readonly<Record<string, number>>;
}

export interface Launch {
  readonly kernel: EmulatedKernel;
  readonly grid: readonly number[];
  readonly args: readonly number[];
}

export const silu = (x: number): number => x / (1 + Math.exp(-x));
