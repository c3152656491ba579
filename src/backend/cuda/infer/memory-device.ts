/** A GPU, or what stands for one, that holds memory and runs the engine's kernels. */
import type { DevicePointer } from "../driver.js";
import type { EngineDevice, EngineKernels } from "./kernels.js";

/** A device that holds what it is given (CudaEngineDevice). */
export interface MemoryDevice extends EngineDevice {
  readonly kernels: EngineKernels;
  allocate(bytes: number): DevicePointer;
  free(pointer: DevicePointer): void;
  write(target: DevicePointer, data: ArrayBufferView): void;
  put(data: ArrayBufferView): DevicePointer;
  read<T extends ArrayBufferView>(source: DevicePointer, target: T): T;
  synchronize(): void;
}
