// Memory that the CPU ops share: scratch kept between calls, and new outputs in large pages.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace stib_fast {

// Memory of this thread, aligned to 64 bytes: it grows, is kept for the next call and is freed with
// its thread. Each type `Use` has its own.
template <class Use>
void* scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    buffer.reset();
    capacity = 0;
    void* fresh = nullptr;
    if (posix_memalign(&fresh, 64, bytes) != 0) throw std::bad_alloc();
    buffer.reset(fresh);
    capacity = bytes;
  }
  return buffer.get();
}

// Outputs are new memory: in 4 KiB pages their first touch costs more than the arithmetic.
inline void use_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + uintptr_t(bytes)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace stib_fast
