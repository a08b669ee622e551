// Strings to rows of token ids: one row on the CPU or a GPU, many rows on the threads of the CPU.
#pragma once

#include <cstdint>

#include "scan.h"
#include "table.h"

namespace stib_fast::smiles {

struct Settings {
  int64_t max_length;  // columns of a row; bos and eos count
  bool bos, eos;
  bool keep_unknown;  // write kUnknown, instead of refusing the row
  bool truncate;      // keep the first tokens, instead of refusing the row
};

template <class Id>
struct IdWriter {
  const Table& table;
  Id* out;
  int64_t room;
  int64_t count = 0;
  bool unknown = false;

  STIB_HOST_DEVICE void put(uint16_t id) {
    unknown |= id == kUnknown;
    if (count < room) out[count] = static_cast<Id>(id);
    ++count;
  }
  STIB_HOST_DEVICE void single(uint8_t c) { put(table.header->single[c]); }
  STIB_HOST_DEVICE void pair(uint8_t c) { put(table.header->pair[c]); }
  STIB_HOST_DEVICE void token(const char* begin, int64_t length) {
    put(find(table, head_of(begin, length), begin, length));
  }
};

// Writes max_length ids, pad where the string does not reach. A row that is refused is all pad, of
// length 0.
template <class Id>
STIB_HOST_DEVICE Status encode_row(const Table& table, View text, const Settings& settings, Id* row,
                                   int64_t* length) {
  IdWriter<Id> writer{table, row + settings.bos, settings.max_length - settings.bos - settings.eos};
  Status status = text.size >= 0 ? scan(table.header->alphabet, text.data, text.size, writer)
                  : text.size == kMissing ? Status::missing
                                          : Status::malformed;
  if (status == Status::kept) {
    if (writer.unknown && !settings.keep_unknown)
      status = Status::unknown;
    else if (writer.count > writer.room && !settings.truncate)
      status = Status::too_long;
  }
  int64_t used = 0;
  if (status == Status::kept) {
    used = settings.bos + (writer.count < writer.room ? writer.count : writer.room);
    if (settings.bos) row[0] = static_cast<Id>(kBos);
    if (settings.eos) row[used++] = static_cast<Id>(kEos);
  }
  *length = used;
  for (int64_t i = used; i < settings.max_length; ++i) row[i] = static_cast<Id>(kPad);
  return status;
}

}  // namespace stib_fast::smiles
