// The C ABI of Planish's CPU kernels. Callers own all memory; nothing here knows models or methods.
//
// Functions that return int return 0 on success, else an error code, and pl_last_error() (per thread) tells why in one
// line. Call pl_select once before any kernel. Kernels use the process-wide thread pool and must be called from one
// thread at a time; a second thread calling at once is served without the pool.
#pragma once
#include <stdint.h>

#if defined(__GNUC__)
#define PL_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define PL_EXPORT extern "C"
#endif

// Error codes.
#define PL_BAD_ARGUMENT 1
#define PL_OUT_OF_MEMORY 2
#define PL_UNSUPPORTED 3
#define PL_SINGULAR 4

PL_EXPORT const char* pl_last_error(void);

// Chooses the instruction-set level: "portable", "avx2", "avx512", "amx", or null/"" for the best one this machine runs.
PL_EXPORT int pl_select(const char* level);
// The chosen level's name, and one line on the processor: "AMD EPYC, avx512 (vnni, bf16)".
PL_EXPORT const char* pl_level(void);
PL_EXPORT const char* pl_description(void);
// Comma-separated names of the levels that this machine runs and this build has, best last.
PL_EXPORT const char* pl_levels(void);

// Threads of the pool, the calling one included; 0 asks for one per hardware core. Returns what was set, or 0 on failure.
PL_EXPORT int pl_set_threads(int count);
PL_EXPORT int pl_threads(void);

// Zero-filled memory aligned to 64 bytes at least (2 MiB for big blocks, which ask for huge pages). Null when there is none.
PL_EXPORT void* pl_alloc(int64_t bytes);
PL_EXPORT void pl_free(void* pointer, int64_t bytes);
// Gives the physical pages back at once; the range stays mapped, reads as zeros and may be written again.
PL_EXPORT void pl_discard(void* pointer, int64_t bytes);

#define PL_KERNEL(name, parameters, arguments) PL_EXPORT int pl_##name parameters;
#include "kernel_list.h"
#undef PL_KERNEL

// Runs `calls` prepared kernel calls (plan.cpp) on `rows` rows of `chunks` sequences. `seconds`, where not null, receives
// the time spent per operation, added up (as many entries as there are operations).
PL_EXPORT int pl_run_plan(const int64_t* plan, int64_t calls, int64_t rows, int64_t chunks, double* seconds);
