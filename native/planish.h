// The C ABI of Planish's CPU kernels. Callers own all memory; nothing here knows models or methods. What it consists of
// stands in src/backend/contract/abi.ts, with the meaning of each part; abi/ is made from it.
//
// Functions that return int return 0 on success, else an error code, and pl_last_error() (per thread) tells why in one
// line. Call pl_select once before any kernel. Kernels use the process-wide thread pool and must be called from one
// thread at a time; a second thread calling at once is served without the pool.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define PL_EXPORT extern "C" __declspec(dllexport)
#elif defined(__GNUC__)
#define PL_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define PL_EXPORT extern "C"
#endif

// Error codes.
#define PL_BAD_ARGUMENT 1
#define PL_OUT_OF_MEMORY 2
#define PL_UNSUPPORTED 3
#define PL_SINGULAR 4

#include "abi/functions.h"

#define PL_KERNEL(name, parameters, arguments) PL_EXPORT int pl_##name parameters;
#include "abi/kernels.h"
#undef PL_KERNEL
