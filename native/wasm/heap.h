// The C library's heap, for several threads.
#pragma once
#include <cstddef>

namespace planish {

// 64-byte aligned, contents undefined; null when memory is out.
void* heap_take(size_t bytes);
void heap_give(void* block);

}  // namespace planish
