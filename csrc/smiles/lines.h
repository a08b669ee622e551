// The lines of a .smi file: a SMILES, and after a blank or tab a name that need not be there.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace stib_fast::smiles {

// Arrow's layout: strings end to end, and where each begins; the last offset is where all end.
struct Column {
  std::vector<char> data;
  std::vector<int32_t> offsets = {0};

  void add(const char* begin, const char* end) {
    data.insert(data.end(), begin, end);
    offsets.push_back(static_cast<int32_t>(data.size()));
  }
};

struct Lines {
  Column smiles, names;
};

inline bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// A line ends at a newline or at the end of the block, which must be smaller than 2 GiB. Lines of
// blanks alone are none; blanks around either part, and the CR of CRLF, are left out.
inline Lines split_lines(const char* block, int64_t size) {
  Lines lines;
  lines.smiles.data.reserve(static_cast<size_t>(size));
  const char* const end = block + size;
  for (const char* at = block; at < end;) {
    const void* newline = std::memchr(at, '\n', static_cast<size_t>(end - at));
    const char* stop = newline != nullptr ? static_cast<const char*>(newline) : end;
    const char* const next = stop + 1;
    while (stop > at && is_blank(stop[-1])) --stop;
    while (at < stop && is_blank(*at)) ++at;
    if (at < stop) {
      const char* blank = at;
      while (blank < stop && !is_blank(*blank)) ++blank;
      lines.smiles.add(at, blank);
      while (blank < stop && is_blank(*blank)) ++blank;
      lines.names.add(blank, stop);
    }
    at = next;
  }
  return lines;
}

}  // namespace stib_fast::smiles
