// The thread pool: one generation counter that workers watch, spinning for some microseconds before they sleep, since
// a training step is a stream of short kernels.
//
// WebAssembly starts no threads itself: the host runs an instance per thread on one memory, each of which calls
// pl_wasm_work with its number (src/backend/wasm/library.ts).
#include "pool.h"

#if defined(__wasm__)
#include "wasm/heap.h"
#else
#include <pthread.h>
#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <dlfcn.h>
#endif
#endif

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "planish.h"
#include "sleepers.h"

namespace planish {
namespace {

constexpr int MAX_THREADS = 256;
// About 30 µs on a 3 GHz core: longer than the gap between two calls from JavaScript, shorter than a scheduler tick.
#if defined(__wasm__)
constexpr int SPINS = 20000;  // no instruction that pauses
#else
constexpr int SPINS = 1500;
#endif

thread_local char last_error[512] = "";
thread_local bool inside_pool = false;
// Of the pool's threads: 0 is whoever calls.
thread_local int own_number = 0;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Job {
  TaskFunction function = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  int64_t pieces = 0;
  int shares = 1;
};

// Pieces of a share that were claimed; a cache line each, since every thread claims in its own most of the time.
struct alignas(64) Claims {
  std::atomic<int64_t> next{0};
};

// `entry` lets workers into the current job: the top bit says that it is open, the rest counts workers inside. A worker
// touches `job` only while counted, and the caller returns only when the door is shut and the count is zero.
constexpr uint32_t OPEN = 1u << 31;

struct Pool {
  Sleepers workers;  // for the next job
  Sleepers caller;   // for the workers to have left
#if !defined(__wasm__)
  pthread_t threads[MAX_THREADS];
#endif
  int count = 0;                  // threads, the caller included; 0: not started
  uint64_t first_generation = 0;  // of the workers: what they have seen when they begin
  Job job;
  alignas(64) std::atomic<uint64_t> generation{0};
  alignas(64) std::atomic<uint32_t> entry{0};
  Claims claims[MAX_THREADS];
  alignas(64) std::atomic<bool> stopping{false};
  std::atomic<bool> busy{false};
};

// Never destroyed: workers may still be waiting on it when the process exits.
Pool& pool() {
  alignas(Pool) static unsigned char place[sizeof(Pool)];
  static Pool* instance = new (place) Pool();
  return *instance;
}

#if !defined(__wasm__)
int hardware_threads() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
#if defined(_WIN32)
  const DWORD online = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
#else
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
#endif
  return online > 0 ? static_cast<int>(online) : 1;
}
#endif

// A thread's own share first, then what is left of the others'.
void work(Pool& p) {
  const Job& job = p.job;
  for (int turn = 0; turn < job.shares; turn++) {
    const int share = (own_number + turn) % job.shares;
    const int64_t first = job.pieces * share / job.shares, last = job.pieces * (share + 1) / job.shares;
    for (;;) {
      const int64_t piece = first + p.claims[share].next.fetch_add(1, std::memory_order_relaxed);
      if (piece >= last) break;
      const int64_t begin = job.tasks * piece / job.pieces, end = job.tasks * (piece + 1) / job.pieces;
      for (int64_t task = begin; task < end; task++) job.function(job.context, task);
    }
  }
}

bool enter(Pool& p) {
#if defined(__wasm__)
  if (own_number >= p.count) return false;
#endif
  uint32_t entry = p.entry.load(std::memory_order_acquire);
  while (entry & OPEN)
    if (p.entry.compare_exchange_weak(entry, entry + 1, std::memory_order_acq_rel)) return true;
  return false;
}

void leave(Pool& p) {
  // The last one out of a shut job may have to wake the caller.
  if (p.entry.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  p.caller.after([] {});
}

// Takes part in every job from the generation after `seen` on.
void work_on(Pool& p, int number, uint64_t seen) {
  inside_pool = true;
  own_number = number;
  const auto changed = [&] { return p.generation.load(std::memory_order_acquire) != seen; };
  for (;;) {
    for (int i = 0; i < SPINS && !changed(); i++) pause_cpu();
    if (!changed()) p.workers.until(changed);
    seen = p.generation.load(std::memory_order_acquire);
    if (p.stopping.load(std::memory_order_acquire)) return;
    if (!enter(p)) continue;
    work(p);
    leave(p);
  }
}

void announce(Pool& p) {
  p.workers.after([&] { p.generation.fetch_add(1, std::memory_order_acq_rel); });
}

#if !defined(__wasm__)
// The host may unload the library while its threads run, as a thread of Node.js does when it ends; its code must stay.
// On Linux the linker sees to that (build.mjs).
void stay_loaded() {
#if defined(_WIN32)
  HMODULE module;
  GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                     reinterpret_cast<LPCWSTR>(&stay_loaded), &module);
#elif defined(__APPLE__)
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&stay_loaded), &info)) dlopen(info.dli_fname, RTLD_NOW | RTLD_NODELETE);
#endif
}
#endif

#if defined(__wasm__)
// Threads that were started for a larger pool stay, and enter no job (`enter`).
int start_workers(Pool& p, int count) {
  p.count = count <= 0 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  return p.count;
}
#else
void* worker(void* argument) {
  Pool& p = pool();
  work_on(p, static_cast<int>(reinterpret_cast<uintptr_t>(argument)), p.first_generation);
  return nullptr;
}

void stop_workers(Pool& p) {
  if (p.count > 1) {
    p.stopping.store(true, std::memory_order_release);
    announce(p);
    for (int i = 1; i < p.count; i++) pthread_join(p.threads[i], nullptr);
    p.stopping.store(false, std::memory_order_release);
  }
  p.count = 0;
}

int start_workers(Pool& p, int count) {
  if (count <= 0) count = hardware_threads();
  if (count > MAX_THREADS) count = MAX_THREADS;
  if (count == p.count) return count;
  stop_workers(p);
  if (count > 1) stay_loaded();
  p.count = 1;
  p.first_generation = p.generation.load(std::memory_order_acquire);
  for (int i = 1; i < count; i++) {
    void* const number = reinterpret_cast<void*>(static_cast<uintptr_t>(i));
    if (pthread_create(&p.threads[i], nullptr, worker, number) != 0) break;
    p.count = i + 1;
  }
  return p.count;
}
#endif

#if defined(__wasm__)
void* aligned_block(size_t bytes) { return heap_take(bytes); }
void free_block(void* block) { heap_give(block); }
#elif defined(_WIN32)
void* aligned_block(size_t bytes) { return _aligned_malloc(bytes, 64); }
void free_block(void* block) { _aligned_free(block); }
#else
void* aligned_block(size_t bytes) {
  void* block = nullptr;
  return posix_memalign(&block, 64, bytes) == 0 ? block : nullptr;
}
void free_block(void* block) { free(block); }
#endif

struct Scratch {
  void* pointer[SCRATCH_SLOTS] = {};
  size_t bytes[SCRATCH_SLOTS] = {};
#if !defined(__wasm__)  // there no thread ends while the memory is in use
  ~Scratch() {
    for (void* block : pointer) free_block(block);
  }
#endif
};
thread_local Scratch scratch;

}  // namespace

int fail(int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

int thread_count() {
  const int count = pool().count;
  return count > 0 ? count : start_workers(pool(), 0);
}

void pool_run(int64_t tasks, int64_t pieces, int shares, TaskFunction function, const void* context) {
  if (tasks <= 0) return;
  Pool& p = pool();
  bool idle = false;
  if (tasks == 1 || inside_pool || thread_count() == 1 || !p.busy.compare_exchange_strong(idle, true)) {
    for (int64_t task = 0; task < tasks; task++) function(context, task);
    return;
  }
  inside_pool = true;
  const int64_t cut = pieces < tasks ? pieces : tasks;
  p.job = Job{function, context, tasks, cut, static_cast<int>(shares < cut ? shares : cut)};
  for (int share = 0; share < p.job.shares; share++) p.claims[share].next.store(0, std::memory_order_relaxed);
  p.entry.store(OPEN, std::memory_order_release);
  announce(p);
  work(p);
  uint32_t inside = p.entry.fetch_and(~OPEN, std::memory_order_acq_rel) & ~OPEN;
  for (int i = 0; i < SPINS && inside != 0; i++) {
    pause_cpu();
    inside = p.entry.load(std::memory_order_acquire);
  }
  if (inside != 0) p.caller.until([&] { return p.entry.load(std::memory_order_acquire) == 0; });
  inside_pool = false;
  p.busy.store(false, std::memory_order_release);
}

void* thread_scratch(int slot, size_t bytes) {
  if (scratch.bytes[slot] < bytes) {
    free_block(scratch.pointer[slot]);
    scratch.pointer[slot] = nullptr;
    scratch.bytes[slot] = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    void* const block = aligned_block(rounded);
    if (!block) return nullptr;
    scratch.pointer[slot] = block;
    scratch.bytes[slot] = rounded;
  }
  return scratch.pointer[slot];
}

}  // namespace planish

const char* pl_last_error(void) { return planish::last_error; }

int pl_set_threads(int count) {
  using namespace planish;
  if (inside_pool) {
    fail(PL_BAD_ARGUMENT, "the number of threads cannot change inside a kernel");
    return 0;
  }
  return start_workers(pool(), count);
}

int pl_threads(void) { return planish::thread_count(); }

#if defined(__wasm__)
// Makes the calling instance the pool's thread `number`, from 1 on, until `pl_wasm_end`.
extern "C" __attribute__((export_name("pl_wasm_work"))) void pl_wasm_work(int number) {
  planish::work_on(planish::pool(), number, 0);
}

// The pool's threads return, those that have not begun too; the caller does all work from then on.
extern "C" __attribute__((export_name("pl_wasm_end"))) void pl_wasm_end(void) {
  planish::Pool& p = planish::pool();
  p.stopping.store(true, std::memory_order_release);
  planish::announce(p);
}
#endif
