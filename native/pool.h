// A persistent thread pool, and what every kernel shares: error text and per-thread scratch memory.
//
// Threads claim tasks as they come free, and the caller never waits for a thread that has not begun: on a busy machine
// it does the work itself. So tasks must not depend on who runs them: each writes its own output, and sums are kept per
// task and added up in task order. Nested calls, and calls from a second thread while the pool is busy, run inline.
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

using TaskFunction = void (*)(const void* context, int64_t task);
// Hands tasks out in `pieces` contiguous pieces, in order within each of `shares` contiguous shares (at most one per
// thread): a thread takes the pieces of its own share first.
void pool_run(int64_t tasks, int64_t pieces, int shares, TaskFunction function, const void* context);

// One piece per thread: for tasks alike in cost, so that neighbours stay on one thread.
template <class F>
inline void parallel_for(int64_t tasks, const F& f) {
  const int threads = thread_count();
  pool_run(
      tasks, threads, threads, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); }, &f);
}

// Task by task: for few large tasks, or tasks of uneven cost.
template <class F>
inline void parallel_for_dynamic(int64_t tasks, const F& f) {
  pool_run(tasks, tasks, 1, [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); }, &f);
}

// Task by task, each thread from a stretch of its own as long as it lasts: for tasks that read one long stretch of memory
// between them, which comes faster, and again from the same cache, where a thread walks straight on.
template <class F>
inline void parallel_for_stretches(int64_t tasks, const F& f) {
  pool_run(
      tasks, tasks, thread_count(), [](const void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
      &f);
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
