// The big-block allocator: memory mapped from the system, zero-filled, in whole pages.
#include <cstdint>
#include <cstring>

#include "planish.h"
#include "pool.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace planish;

#if defined(_WIN32)

void* pl_alloc(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  void* block = VirtualAlloc(nullptr, static_cast<SIZE_T>(bytes), MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (!block) fail(PL_OUT_OF_MEMORY, "no memory for %lld bytes", static_cast<long long>(bytes));
  return block;
}

void pl_free(void* pointer, int64_t bytes) {
  if (pointer && bytes > 0) VirtualFree(pointer, 0, MEM_RELEASE);
}

void pl_discard(void* pointer, int64_t bytes) {
  if (!pointer || bytes <= 0) return;
  const SIZE_T size = static_cast<SIZE_T>(bytes);
  // Only pages that are committed anew are zero. Another process may take what was just given back: then it is waited
  // for, since views of the block must stay readable.
  if (!VirtualFree(pointer, size, MEM_DECOMMIT)) return;
  while (!VirtualAlloc(pointer, size, MEM_COMMIT, PAGE_READWRITE)) Sleep(1);
}

#else

namespace {
constexpr int64_t HUGE_PAGE = int64_t{2} << 20;

// Pages have 4 KiB on x86-64, 16 on Apple's processors, up to 64 on other Arm machines.
int64_t mapped_bytes(int64_t bytes) {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}
}  // namespace

void* pl_alloc(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  const int64_t size = mapped_bytes(bytes);
  // Map enough to align big blocks to a huge page, then give the ends back.
  const int64_t slack = size >= HUGE_PAGE ? HUGE_PAGE : 0;
  void* raw =
      mmap(nullptr, static_cast<size_t>(size + slack), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) {
    fail(PL_OUT_OF_MEMORY, "no memory for %lld bytes", static_cast<long long>(bytes));
    return nullptr;
  }
  if (!slack) return raw;
  char* start = static_cast<char*>(raw);
  char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(start) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
  if (aligned > start) munmap(start, static_cast<size_t>(aligned - start));
  char* end = start + size + slack;
  if (end > aligned + size) munmap(aligned + size, static_cast<size_t>(end - (aligned + size)));
#if defined(MADV_HUGEPAGE)
  madvise(aligned, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  return aligned;
}

void pl_free(void* pointer, int64_t bytes) {
  if (pointer && bytes > 0) munmap(pointer, static_cast<size_t>(mapped_bytes(bytes)));
}

void pl_discard(void* pointer, int64_t bytes) {
  if (!pointer || bytes <= 0) return;
  const size_t size = static_cast<size_t>(mapped_bytes(bytes));
#if defined(__linux__)
  madvise(pointer, size, MADV_DONTNEED);
#else
  // Elsewhere advice may leave old contents readable; a new mapping in the same place has zeros.
  if (mmap(pointer, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    memset(pointer, 0, size);
#endif
}

#endif
