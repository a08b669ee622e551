// Many rows of token ids, with the fastest code that this CPU runs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "encode.h"
#include "encode_avx512.h"
#include "instruction_sets.h"

namespace stib_fast::smiles {

// Rows [begin, end) of a table of ids [N, max_length], with the length and the status of each.
template <class Id, class Reader>
void encode_rows(const Table& table, Reader& reader, const Settings& settings, int64_t begin,
                 int64_t end, Id* ids, int64_t* lengths, uint8_t* status) {
  const int64_t width = settings.max_length;
  const auto scalar = [&](int64_t i, View text) {
    status[i] =
        static_cast<uint8_t>(encode_row(table, text, settings, ids + i * width, lengths + i));
  };
  int64_t i = begin;
#if defined(__x86_64__)
  if constexpr (std::is_same_v<Id, uint8_t>) {
    static const bool usable = usable_instruction_set() == InstructionSet::avx512 && has_vbmi2();
    if (usable) {
      const VectorEncoder vectors(table);
      // What is written beyond a row must be rows that are still to come, here, in this thread.
      const int64_t beyond = (VectorEncoder::kBeyond + width - 1) / width;
      for (; i < end - beyond; ++i) {
        const View text = reader.row(i);
        if (vectors.encode(text, settings, ids + i * width, lengths + i))
          status[i] = static_cast<uint8_t>(Status::kept);
        else
          scalar(i, text);
      }
    }
  }
#endif
  for (; i < end; ++i) scalar(i, reader.row(i));
}

}  // namespace stib_fast::smiles
