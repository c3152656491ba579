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
      const uint32_t seen = changes_.load(std::memory_order_acquire);
      if (holds()) return;
      __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int*>(&changes_), static_cast<int>(seen), -1);
    }
  }
  // Makes the change and wakes everyone.
  template <class Change>
  void after(const Change& change) {
    change();
    changes_.fetch_add(1, std::memory_order_acq_rel);
    __builtin_wasm_memory_atomic_notify(reinterpret_cast<int*>(&changes_), ~0u);
  }

 private:
  std::atomic<uint32_t> changes_{0};
};
#else
class Sleepers {
 public:
  template <class Holds>
  void until(const Holds& holds) {
    pthread_mutex_lock(&mutex_);
    while (!holds()) pthread_cond_wait(&changed_, &mutex_);
    pthread_mutex_unlock(&mutex_);
  }
  // Makes the change and wakes everyone; under the mutex, so that a thread about to sleep cannot miss it.
  template <class Change>
  void after(const Change& change) {
    pthread_mutex_lock(&mutex_);
    change();
    pthread_cond_broadcast(&changed_);
    pthread_mutex_unlock(&mutex_);
  }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed_ = PTHREAD_COND_INITIALIZER;
};
#endif

}  // namespace planish
