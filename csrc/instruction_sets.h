// Compiling one kernel for several instruction sets in one translation unit, and picking one at run
// time.
//
// A kernel is written once in a header without an include guard (*.inl) and included between
// STIB_BEGIN_TARGET and STIB_END_TARGET in a namespace of its own. Such a header calls no inline
// function of the standard library: the linker could keep the copy that needs AVX-512 for
// everybody.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "stib_fast needs GCC 12 or newer, or Clang 14: the kernels use __builtin_shufflevector"
#endif

#include <cstdlib>
#include <cstring>

#define STIB_PRAGMA(text) _Pragma(#text)

#if defined(__x86_64__)
#define STIB_AVX2 "avx2,fma"
#if defined(__clang__)
#define STIB_AVX512 STIB_AVX2 ",avx512f,avx512dq,avx512vl,avx512bw"
#define STIB_BEGIN_TARGET(features) \
  STIB_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define STIB_END_TARGET _Pragma("clang attribute pop")
#else
#define STIB_AVX512 STIB_AVX2 ",avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512"
#define STIB_BEGIN_TARGET(features) _Pragma("GCC push_options") STIB_PRAGMA(GCC target(features))
#define STIB_END_TARGET _Pragma("GCC pop_options")
#endif
#endif

namespace stib_fast {

enum class InstructionSet { baseline, avx2, avx512 };

// STIB_FAST_CPU=baseline|avx2 lowers the choice: for tests and for measuring one set against
// another.
inline InstructionSet usable_instruction_set() {
  InstructionSet best = InstructionSet::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = InstructionSet::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      best = InstructionSet::avx512;
  }
  const char* wanted = std::getenv("STIB_FAST_CPU");
  if (wanted != nullptr && std::strcmp(wanted, "baseline") == 0) return InstructionSet::baseline;
  if (wanted != nullptr && std::strcmp(wanted, "avx2") == 0 && best == InstructionSet::avx512)
    return InstructionSet::avx2;
#endif
  return best;
}

}  // namespace stib_fast
