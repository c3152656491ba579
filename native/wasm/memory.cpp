// The big-block allocator inside WebAssembly's one linear memory, whose 4 GiB nothing gives back to the system: blocks
// are the C library's, aligned, and cleared when they are handed out. Its heap is not made for threads, so a lock guards
// it: the pool's threads take their scratch memory from it too (pool.cpp).
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../planish.h"
#include "../pool.h"
#include "heap.h"

namespace planish {
namespace {

std::atomic<int> taken{0};

struct Lock {
  Lock() {
    for (int free = 0; !taken.compare_exchange_weak(free, 1, std::memory_order_acquire); free = 0) {
    }
  }
  ~Lock() { taken.store(0, std::memory_order_release); }
};

}  // namespace

void* heap_take(size_t bytes) {
  const Lock lock;
  void* block = nullptr;
  return posix_memalign(&block, 64, bytes) == 0 ? block : nullptr;
}

void heap_give(void* block) {
  const Lock lock;
  free(block);
}

}  // namespace planish

using namespace planish;

void* pl_alloc(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  // Beyond it the size wraps around in 32 bits.
  void* const block = bytes < INT64_C(0xffff0000) ? heap_take(static_cast<size_t>(bytes)) : nullptr;
  if (!block) {
    fail(PL_OUT_OF_MEMORY, "no memory for %lld bytes; a WebAssembly memory has 4 GiB", static_cast<long long>(bytes));
    return nullptr;
  }
  return memset(block, 0, static_cast<size_t>(bytes));
}

void pl_free(void* pointer, int64_t) { heap_give(pointer); }

void pl_discard(void* pointer, int64_t bytes) {
  if (pointer && bytes > 0) memset(pointer, 0, static_cast<size_t>(bytes));
}
