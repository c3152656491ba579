/** The CUDA engine's door: opens an artifact as an executor on a GPU. */
import { cudaDeviceCount } from "../backend/cuda/driver.js";
import { openCudaLibrary } from "../backend/cuda/libraries.js";
import { PlanishError } from "../common/errors.js";
import type { InferenceSource } from "../backend/contract/inference.js";
import { openSource } from "./source.js";
import { CudaEngineDevice } from "../backend/cuda/infer/device.js";
import { CudaExecutor, type CudaExecutorOptions } from "../backend/cuda/infer/executor.js";
import { cudaObstacle, NoCudaKernel } from "../backend/cuda/infer/support.js";
import type { MemoryDevice } from "../backend/cuda/infer/memory-device.js";
import { WeightPlacer } from "../backend/cuda/infer/weights.js";

export { CudaExecutor, type CudaExecutorOptions } from "../backend/cuda/infer/executor.js";
export { cudaObstacle, NoCudaKernel } from "../backend/cuda/infer/support.js";

/** @throws PlanishError naming what is missing: the driver, a GPU, or the compiler of the kernels. */
export function requireCuda(): void {
  if (cudaDeviceCount() === 0)
    throw new PlanishError(
      "--device cuda: the driver reports no GPU (check nvidia-smi and CUDA_VISIBLE_DEVICES)",
    );
  openCudaLibrary("nvrtc");
}

/**
 * Opens a local artifact for the engine on the GPU. Its schemes are w2–w8 with a2–a8 and a cache of 2 to 4 or 16 bits.
 * @throws NoCudaKernel when no kernel takes the model, PlanishError when there is no such model, no GPU, no compiler, or
 * too little memory.
 */
export function openCudaExecutor(path: string, options: CudaExecutorOptions = {}): CudaExecutor {
  using source = openSource(path);
  return cudaExecutorOf(source, new CudaEngineDevice(), options);
}

/** An executor of a source's blocks. The device becomes the executor's, and is disposed where there is none. */
export function cudaExecutorOf(
  source: InferenceSource,
  device: MemoryDevice & Disposable,
  options: CudaExecutorOptions = {},
): CudaExecutor {
  const { shape, programs, scheme } = source;
  try {
    const obstacle = cudaObstacle(source);
    if (obstacle !== undefined) throw new NoCudaKernel(obstacle);
    using placer = new WeightPlacer(device, scheme);
    const blocks = programs.map((program, layer) => placer.block(program, source.block(layer)));
    const endLayers = placer.endLayersOf(source.endLayers);
    const { weightBytes } = placer;
    return new CudaExecutor(
      device,
      { shape, programs, scheme, blocks, endLayers, weightBytes },
      options,
    );
  } catch (error) {
    device[Symbol.dispose]();
    throw error;
  }
}
