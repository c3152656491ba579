/** The functions of the CUDA driver that are used, with their C prototypes, bound through koffi once per process. */
import { PlanishError } from "../../common/errors.js";
import { openCudaLibrary, type ForeignFunction } from "./libraries.js";

/** CUresult values of a driver that does not start. */
const STUB_LIBRARY = 34;
const NO_DEVICE = 100;
const SYSTEM_DRIVER_MISMATCH = 803;

/** Names of driver functions and their prototypes; handles and addresses as 64-bit integers. */
const PROTOTYPES = {
  cuInit: "int cuInit(uint32_t flags)",
  cuDriverGetVersion: "int cuDriverGetVersion(void* version)",
  cuDeviceGetCount: "int cuDeviceGetCount(void* count)",
  cuDeviceGet: "int cuDeviceGet(void* device, int ordinal)",
  cuDeviceGetName: "int cuDeviceGetName(void* name, int length, int device)",
  cuDeviceGetAttribute: "int cuDeviceGetAttribute(void* value, int attribute, int device)",
  cuDeviceTotalMem: "int cuDeviceTotalMem_v2(void* bytes, int device)",
  cuDevicePrimaryCtxRetain: "int cuDevicePrimaryCtxRetain(void* context, int device)",
  cuDevicePrimaryCtxRelease: "int cuDevicePrimaryCtxRelease_v2(int device)",
  cuCtxSetCurrent: "int cuCtxSetCurrent(uint64_t context)",
  cuMemGetInfo: "int cuMemGetInfo_v2(void* free, void* total)",
  cuModuleLoadData: "int cuModuleLoadData(void* module, const void* image)",
  cuModuleUnload: "int cuModuleUnload(uint64_t module)",
  cuModuleGetFunction: "int cuModuleGetFunction(void* function, uint64_t module, const char* name)",
  cuFuncSetAttribute: "int cuFuncSetAttribute(uint64_t function, int attribute, int value)",
  cuFuncGetAttribute: "int cuFuncGetAttribute(void* value, int attribute, uint64_t function)",
  cuLaunchKernel:
    "int cuLaunchKernel(uint64_t function, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, " +
    "uint32_t bz, uint32_t shared, uint64_t stream, uint64_t params, uint64_t extra)",
  cuLaunchKernelEx:
    "int cuLaunchKernelEx(uint64_t config, uint64_t function, uint64_t params, uint64_t extra)",
  cuStreamCreate: "int cuStreamCreate(void* stream, uint32_t flags)",
  cuStreamDestroy: "int cuStreamDestroy_v2(uint64_t stream)",
  cuStreamSynchronize: "int cuStreamSynchronize(uint64_t stream)",
  cuStreamWaitEvent: "int cuStreamWaitEvent(uint64_t stream, uint64_t event, uint32_t flags)",
  cuStreamBeginCapture: "int cuStreamBeginCapture_v2(uint64_t stream, int mode)",
  cuStreamEndCapture: "int cuStreamEndCapture(uint64_t stream, void* graph)",
  cuGraphInstantiate: "int cuGraphInstantiateWithFlags(void* exec, uint64_t graph, uint64_t flags)",
  cuGraphLaunch: "int cuGraphLaunch(uint64_t exec, uint64_t stream)",
  cuGraphExecDestroy: "int cuGraphExecDestroy(uint64_t exec)",
  cuGraphDestroy: "int cuGraphDestroy(uint64_t graph)",
  cuEventCreate: "int cuEventCreate(void* event, uint32_t flags)",
  cuEventDestroy: "int cuEventDestroy_v2(uint64_t event)",
  cuEventRecord: "int cuEventRecord(uint64_t event, uint64_t stream)",
  cuEventSynchronize: "int cuEventSynchronize(uint64_t event)",
  cuEventElapsedTime: "int cuEventElapsedTime(void* milliseconds, uint64_t start, uint64_t end)",
  cuMemAllocAsync: "int cuMemAllocAsync(void* pointer, uint64_t bytes, uint64_t stream)",
  cuMemFreeAsync: "int cuMemFreeAsync(uint64_t pointer, uint64_t stream)",
  cuDeviceGetDefaultMemPool: "int cuDeviceGetDefaultMemPool(void* pool, int device)",
  cuMemPoolSetAttribute: "int cuMemPoolSetAttribute(uint64_t pool, int attribute, void* value)",
  cuMemPoolGetAttribute: "int cuMemPoolGetAttribute(uint64_t pool, int attribute, void* value)",
  cuMemPoolTrimTo: "int cuMemPoolTrimTo(uint64_t pool, uint64_t keep)",
  cuMemHostAlloc: "int cuMemHostAlloc(void* pointer, uint64_t bytes, uint32_t flags)",
  cuMemFreeHost: "int cuMemFreeHost(uint64_t pointer)",
  cuMemHostRegister:
    "int cuMemHostRegister_v2(const void* pointer, uint64_t bytes, uint32_t flags)",
  cuMemHostUnregister: "int cuMemHostUnregister(const void* pointer)",
  cuMemcpyHtoDAsync:
    "int cuMemcpyHtoDAsync_v2(uint64_t target, uint64_t source, uint64_t bytes, uint64_t stream)",
  /** The same function, from an array that is registered. */
  cuMemcpyArrayAsync:
    "int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, uint64_t bytes, uint64_t stream)",
  cuMemcpyDtoHAsync:
    "int cuMemcpyDtoHAsync_v2(uint64_t target, uint64_t source, uint64_t bytes, uint64_t stream)",
  cuMemcpyDtoDAsync:
    "int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, uint64_t bytes, uint64_t stream)",
  cuMemsetD8Async:
    "int cuMemsetD8Async(uint64_t target, uint8_t value, uint64_t count, uint64_t stream)",
  cuMemsetD32Async:
    "int cuMemsetD32Async(uint64_t target, uint32_t value, uint64_t count, uint64_t stream)",
} as const;

export type DriverFunctions = Readonly<Record<keyof typeof PROTOTYPES, ForeignFunction>>;

let loaded: { functions: DriverFunctions; errorText: (status: number) => string } | undefined;

/** The driver's functions, bound and initialized once per process. Throws PlanishError naming what is missing. */
export function loadDriver() {
  if (loaded) return loaded;
  const library = openCudaLibrary("driver");
  const text = library.bind("int cuGetErrorString(int status, _Out_ const char** text)");
  const name = library.bind("int cuGetErrorName(int status, _Out_ const char** text)");
  const errorText = (status: number): string => {
    const [title, explanation]: [string | null][] = [[null], [null]];
    name(status, title);
    text(status, explanation);
    return `${title[0] ?? `status ${status}`}: ${explanation[0] ?? "no text"}`;
  };
  const functions = Object.fromEntries(
    Object.entries(PROTOTYPES).map(([key, prototype]) => [key, library.bind(prototype)]),
  ) as unknown as DriverFunctions;
  const status = Number(functions.cuInit(0));
  if (status !== 0) {
    const advice =
      status === NO_DEVICE
        ? "no NVIDIA GPU is visible here (check nvidia-smi and CUDA_VISIBLE_DEVICES)"
        : status === STUB_LIBRARY
          ? "the loader found the toolkit's stub of libcuda, not the driver's; take lib64/stubs out of LD_LIBRARY_PATH"
          : status === SYSTEM_DRIVER_MISMATCH
            ? "the driver library and the kernel module are of different versions; reboot or reinstall the NVIDIA driver"
            : "the NVIDIA driver does not start; check nvidia-smi";
    throw new PlanishError(`--device cuda: cuInit failed (${errorText(status)}): ${advice}`);
  }
  loaded = { functions, errorText };
  return loaded;
}
