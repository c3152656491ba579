// A persistent thread pool, and what every kernel shares: error text and per-thread scratch memory.
//
// parallel_for splits tasks into one contiguous range per thread, so which thread does what depends on nothing but the
// counts. parallel_for_dynamic hands tasks out as threads come free: only for tasks that each write their own output,
// so that the result does not depend on who ran them. Nested calls, and calls from a second thread while the pool is
// busy, run inline.
#pragma once
#include <cstddef>
#include <cstdint>

namespace planish {

// Records the reason for pl_last_error() and returns `code`.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int fail(int code, const char* format, ...);

// Threads of the pool, the calling one included.
int thread_count();
// 0 for the thread that called parallel_for, up to thread_count() − 1; 0 outside of it.
int thread_index();

using TaskFunction = void (*)(const void* context, int64_t task);
void pool_run(int64_t tasks, TaskFunction function, const void* context, bool dynamic);

template <class F>
inline void parallel_for(int64_t tasks, const F& f) {
  pool_run(tasks, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); }, &f, false);
}

template <class F>
inline void parallel_for_dynamic(int64_t tasks, const F& f) {
  pool_run(tasks, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); }, &f, true);
}

// Splits [0, count) into ranges of at least `grain` items, at most one per thread, and calls f(begin, end) for each.
template <class F>
inline void parallel_ranges(int64_t count, int64_t grain, const F& f) {
  int64_t parts = grain > 0 ? count / grain : count;
  if (parts > thread_count()) parts = thread_count();
  if (parts <= 1) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  parallel_for(parts, [&](int64_t part) { f(count * part / parts, count * (part + 1) / parts); });
}

// Memory of the calling thread, 64-byte aligned, kept and reused between calls; contents are undefined. Slots are
// independent blocks (0 … SCRATCH_SLOTS−1), so that a nested kernel can hold its own. Null when memory is out.
constexpr int SCRATCH_SLOTS = 8;
void* thread_scratch(int slot, size_t bytes);

}  // namespace planish
