/** A GPU for the engine: driver, stream, compiled kernels, transfers. */
import { CudaDriver, type DevicePointer } from "../driver.js";
import { Transfers } from "../memory.js";
import { KernelModules } from "../modules.js";
import { KernelCompiler } from "../nvrtc.js";
import { EngineKernels, type EngineDevice } from "./kernels.js";

export class CudaEngineDevice implements EngineDevice, Disposable {
  readonly driver: CudaDriver;
  readonly stream: number;
  readonly modules: KernelModules;
  readonly kernels: EngineKernels;
  private readonly transfers: Transfers;
  private readonly allocations = new Set<DevicePointer>();

  /** @throws PlanishError when there is no such GPU, driver or compiler. */
  constructor(ordinal = 0) {
    this.driver = new CudaDriver(ordinal);
    this.stream = this.driver.createStream();
    this.modules = new KernelModules(this.driver, new KernelCompiler());
    this.transfers = new Transfers(this.driver, this.stream);
    this.kernels = new EngineKernels(this);
  }

  /** Device memory, owned by this object until freed; contents undefined. */
  allocate(bytes: number): DevicePointer {
    const pointer = this.driver.allocate(bytes, this.stream);
    this.allocations.add(pointer);
    return pointer;
  }

  free(pointer: DevicePointer): void {
    if (this.allocations.delete(pointer)) this.driver.free(pointer, this.stream);
  }

  write(target: DevicePointer, data: ArrayBufferView): void {
    this.transfers.write(target, data);
  }

  /** A copy of `data` on the device. */
  put(data: ArrayBufferView): DevicePointer {
    const pointer = this.allocate(data.byteLength);
    this.write(pointer, data);
    return pointer;
  }

  /** Fills `target` from the device; waits for all earlier work. */
  read<T extends ArrayBufferView>(source: DevicePointer, target: T): T {
    this.transfers.read(source, target);
    return target;
  }

  synchronize(): void {
    this.driver.synchronize(this.stream);
  }

  [Symbol.dispose](): void {
    this.synchronize();
    for (const pointer of this.allocations) this.driver.free(pointer, this.stream);
    this.allocations.clear();
    this.transfers[Symbol.dispose]();
    this.modules[Symbol.dispose]();
    this.driver.synchronize(this.stream);
    this.driver.destroyStream(this.stream);
    this.driver[Symbol.dispose]();
  }
}
