// Rows shared out over threads that live for one call: nothing is left behind for a fork to break.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace stib_fast::smiles {

// Fewer rows than this are done before a thread would have started.
constexpr int64_t kRowsPerThread = 2048;

inline int64_t part_count(int64_t rows, int64_t threads) {
  return std::clamp<int64_t>(rows / kRowsPerThread, 1, std::max<int64_t>(threads, 1));
}

// work(part, begin, end) for `parts` consecutive ranges of rows; the first exception comes out
// here.
template <class Work>
void for_each_part(int64_t rows, int64_t parts, const Work& work) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(parts));
  const auto run = [&](int64_t part) {
    try {
      work(part, rows * part / parts, rows * (part + 1) / parts);
    } catch (...) {
      errors[static_cast<size_t>(part)] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(parts - 1));
  int64_t own = 1;  // parts that no thread could be had for are done here
  try {
    for (; own < parts; ++own) others.emplace_back(run, own);
  } catch (...) {
  }
  for (int64_t part = own; part < parts; ++part) run(part);
  run(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace stib_fast::smiles
