// The forms in which many strings come. A Reader gives row i as a View; each thread has its own.
#pragma once

#include <cstdint>
#include <vector>

#include "scan.h"

namespace stib_fast::smiles {

// Anything that has its rows as Views already.
template <class Source>
class Reader {
 public:
  explicit Reader(const Source& source) : source_(source) {}
  View row(int64_t i) { return source_.row(i); }

 private:
  const Source& source_;
};

// Apache Arrow's layout: bytes end to end, row i in [offsets[i], offsets[i + 1]).
template <class Offset>
struct OffsetStrings {
  const char* data;
  const Offset* offsets;
  const uint8_t* valid;  // one bit a row, lowest first; null: no row is missing
  int64_t first_bit;

  STIB_HOST_DEVICE View row(int64_t i) const {
    const int64_t bit = first_bit + i;
    if (valid != nullptr && !(valid[bit >> 3] >> (bit & 7) & 1)) return {nullptr, kMissing};
    return {data + offsets[i], static_cast<int64_t>(offsets[i + 1] - offsets[i])};
  }
};

// NumPy's fixed width: `width` characters a row, zeros after the end.
template <class Char>
struct FixedStrings {
  const Char* data;
  int64_t width;

  View row(int64_t i) const {
    const Char* row = data + i * width;
    int64_t size = width;
    while (size > 0 && row[size - 1] == 0) --size;
    return {reinterpret_cast<const char*>(row), size};
  }
};

// NumPy's U: four bytes a character, narrowed here to the one that ASCII needs.
template <>
class Reader<FixedStrings<uint32_t>> {
 public:
  explicit Reader(const FixedStrings<uint32_t>& source)
      : source_(source), narrow_(static_cast<size_t>(source.width)) {}

  View row(int64_t i) {
    const uint32_t* wide = source_.data + i * source_.width;
    const int64_t size = source_.row(i).size;
    uint32_t all = 0;
    for (int64_t k = 0; k < size; ++k) {
      all |= wide[k];
      narrow_[static_cast<size_t>(k)] = static_cast<char>(wide[k]);
    }
    return all < 0x80 ? View{narrow_.data(), size} : View{nullptr, kNotAscii};
  }

 private:
  const FixedStrings<uint32_t>& source_;
  std::vector<char> narrow_;
};

}  // namespace stib_fast::smiles
