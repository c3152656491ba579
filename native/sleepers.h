// Threads that sleep until something holds. The one place where the pool asks its system to wait.
#pragma once
#include <atomic>
#include <cstdint>

#if !defined(__wasm__)
#include <pthread.h>
#endif

namespace planish {

#if defined(__wasm__)
// What is waited for changes before the count does, so a thread that saw the old state finds another count and looks again.
class Sleepers {
 public:
  template <class Holds>
  void until(const Holds& holds) {
    for (;;) {
      const uint32_t seen = changes.load(std::memory_order_acquire);
      if (holds()) return;
      __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int*>(&changes), static_cast<int>(seen), -1);
    }
  }
  // Makes the change and wakes everyone.
  template <class Change>
  void after(const Change& change) {
    change();
    changes.fetch_add(1, std::memory_order_acq_rel);
    __builtin_wasm_memory_atomic_notify(reinterpret_cast<int*>(&changes), ~0u);
  }

 private:
  std::atomic<uint32_t> changes{0};
};
#else
class Sleepers {
 public:
  template <class Holds>
  void until(const Holds& holds) {
    pthread_mutex_lock(&mutex);
    while (!holds()) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
  }
  // Makes the change and wakes everyone; under the mutex, so that a thread about to sleep cannot miss it.
  template <class Change>
  void after(const Change& change) {
    pthread_mutex_lock(&mutex);
    change();
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
  }

 private:
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
};
#endif

}  // namespace planish
