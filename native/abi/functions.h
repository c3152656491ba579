// What the library exports beside its kernels. Made from src/backend/contract/abi.ts by `npm run generate:abi`; change that.
#pragma once

#define PL_ABI INT64_C(106321920018401)

PL_EXPORT int64_t pl_abi(void);
PL_EXPORT const char* pl_last_error(void);
PL_EXPORT int pl_select(const char* level);
PL_EXPORT const char* pl_level(void);
PL_EXPORT const char* pl_description(void);
PL_EXPORT const char* pl_levels(void);
PL_EXPORT int32_t pl_set_threads(int32_t count);
PL_EXPORT int32_t pl_threads(void);
PL_EXPORT void* pl_alloc(int64_t bytes);
PL_EXPORT void pl_free(void* pointer, int64_t bytes);
PL_EXPORT void pl_discard(void* pointer, int64_t bytes);
PL_EXPORT int pl_run_plan(const int64_t* plan, int64_t calls, int64_t rows, int64_t chunks, double* seconds);
