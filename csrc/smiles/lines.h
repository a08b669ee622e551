// The lines of a .smi file: a SMILES, and after a blank or tab a name that need not be there.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

namespace stib_fast::smiles {

// Arrow's layout: strings end to end, and where each begins; the last offset is where all end.
struct Column {
  char* data;  // room for the whole block, and eight bytes more
  int32_t used = 0;
  std::vector<int32_t> offsets = {0};

  void add(const char* begin, int64_t size) {
    std::memcpy(data + used, begin, static_cast<size_t>(size));
    close(size);
  }
  void close(int64_t size) {
    used += static_cast<int32_t>(size);
    offsets.push_back(used);
  }
};

inline bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
inline bool ends_word(char c) { return is_blank(c) || c == '\n'; }

// Copies bytes up to the first that is at most ' ', eight at a time; gives their number. Up to
// seven bytes more are copied, and `end - from` may be all that can be read.
inline int64_t copy_printable(const char* from, const char* end, char* to) {
  const char* at = from;
  if constexpr (std::endian::native == std::endian::little) {
    constexpr uint64_t kOnes = 0x0101010101010101u;
    for (; end - at >= 8; at += 8, to += 8) {
      uint64_t word;
      std::memcpy(&word, at, 8);
      std::memcpy(to, &word, 8);
      // The high bit of each byte below 0x21; a borrow can reach only the bytes after the first.
      const uint64_t low = (word - 0x21 * kOnes) & ~word & 0x80 * kOnes;
      if (low != 0) return at - from + std::countr_zero(low) / 8;
    }
  }
  for (; at < end && static_cast<uint8_t>(*at) > ' '; ++at) *to++ = *at;
  return at - from;
}

// A line ends at a newline or at the end of the block, which must be smaller than 2 GiB. Lines of
// blanks alone are none; blanks around either part, and the CR of CRLF, are left out. Any other
// control byte is part of its word: the tokeniser is to see it.
inline void split_lines(const char* block, int64_t size, Column& smiles, Column& names) {
  const char* const end = block + size;
  const char* at = block;
  while (at < end) {
    if (ends_word(*at)) {
      ++at;
      continue;
    }
    const char* const word = at;
    char* const to = smiles.data + smiles.used;
    do {
      at += copy_printable(at, end, to + (at - word));
      if (at < end && !ends_word(*at)) to[at - word] = *at, ++at;
    } while (at < end && !ends_word(*at));
    smiles.close(at - word);
    const void* newline = std::memchr(at, '\n', static_cast<size_t>(end - at));
    const char* stop = newline != nullptr ? static_cast<const char*>(newline) : end;
    const char* const next = stop;
    while (at < stop && is_blank(*at)) ++at;
    while (stop > at && is_blank(stop[-1])) --stop;
    names.add(at, stop - at);
    at = next;
  }
}

}  // namespace stib_fast::smiles
