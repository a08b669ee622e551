// Rows of token ids to strings.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "scan.h"

namespace stib_fast::smiles {

// How each id is written: pad and bos not at all. Eight bytes are copied at once, so that most
// tokens cost one store.
class Spelling {
 public:
  explicit Spelling(const std::vector<std::string>& tokens) {
    for (size_t id = 0; id < tokens.size(); ++id) {
      const std::string& token = tokens[id];
      Entry entry{};
      entry.length = id == kPad || id == kBos ? 0 : static_cast<uint32_t>(token.size());
      std::memcpy(entry.head, token.data(), token.size() < 8 ? token.size() : 8);
      entry.rest = static_cast<uint32_t>(pool_.size());
      if (token.size() > 8) pool_ += token.substr(8);
      if (entry.length > longest_) longest_ = entry.length;
      entries_.push_back(entry);
    }
  }

  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  // Room that a row of L ids needs at most, with what the last store writes beyond the end.
  int64_t room(int64_t length) const { return length * longest_ + 8; }

  char* write(int64_t id, char* at) const {
    const Entry& entry = entries_[static_cast<size_t>(id)];
    std::memcpy(at, entry.head, 8);
    if (entry.length > 8) [[unlikely]]
      std::memcpy(at + 8, pool_.data() + entry.rest, entry.length - 8);
    return at + entry.length;
  }

 private:
  struct Entry {
    char head[8];
    uint32_t length;
    uint32_t rest;
  };
  std::vector<Entry> entries_;
  std::string pool_;
  int64_t longest_ = 0;
};

// Strings end to end, as one part of the rows was written; used again for the next part.
struct Text {
  std::vector<char> bytes;
  std::vector<int64_t> ends;
  bool valid = true;  // every id was in the vocabulary
};

template <class Id>
void decode_rows(const Spelling& spelling, const Id* ids, int64_t begin, int64_t end,
                 int64_t length, Text& text) {
  text.ends.clear();
  const auto tokens = static_cast<uint64_t>(spelling.size());
  const auto room = static_cast<size_t>(spelling.room(length));
  size_t used = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Id* row = ids + i * length;
    bool outside = false;
    for (int64_t j = 0; j < length; ++j)
      outside |= static_cast<uint64_t>(static_cast<int64_t>(row[j])) >= tokens;
    if (outside) {
      text.valid = false;
      return;
    }
    if (text.bytes.size() < used + room) text.bytes.resize(2 * text.bytes.size() + room);
    char* at = text.bytes.data() + used;
    for (int64_t j = 0; j < length && row[j] != kEos; ++j) at = spelling.write(row[j], at);
    used = static_cast<size_t>(at - text.bytes.data());
    text.ends.push_back(static_cast<int64_t>(used));
  }
}

}  // namespace stib_fast::smiles
