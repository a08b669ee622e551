// How often each token occurs in many strings, and the most tokens that one has.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>

#include "scan.h"

namespace stib_fast::smiles {

class TokenCounts {
 public:
  explicit TokenCounts(bool atom_level) : alphabet_(make_alphabet(atom_level)) {}

  Status add(View text) {
    if (text.size < 0) return text.size == kMissing ? Status::missing : Status::malformed;
    Sink sink{*this, 1};
    const Status status = scan(alphabet_, text.data, text.size, sink);
    if (status == Status::kept) {
      if (sink.tokens > longest_) longest_ = sink.tokens;
    } else {  // the tokens before the fault do not count
      Sink back{*this, -1};
      scan(alphabet_, text.data, text.size, back);
    }
    return status;
  }

  void merge(const TokenCounts& other) {
    for (int c = 0; c < 256; ++c) {
      single_[c] += other.single_[c];
      pair_[c] += other.pair_[c];
    }
    for (const auto& [token, count] : other.longer_) longer_[token] += count;
    if (other.longest_ > longest_) longest_ = other.longest_;
  }

  int64_t longest() const { return longest_; }

  std::map<std::string, int64_t> counts() const {
    std::map<std::string, int64_t> all;
    for (int c = 0; c < 256; ++c) {
      const char first = static_cast<char>(c);
      if (single_[c] != 0) all[std::string{first}] = single_[c];
      if (pair_[c] != 0) all[std::string{first, static_cast<char>(alphabet_.second[c])}] = pair_[c];
    }
    for (const auto& [token, count] : longer_)
      if (count != 0) all[token] = count;
    return all;
  }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  struct Sink {
    TokenCounts& counts;
    int64_t by;
    int64_t tokens = 0;

    void single(uint8_t c) { counts.single_[c] += by, ++tokens; }
    void pair(uint8_t c) { counts.pair_[c] += by, ++tokens; }
    void token(const char* begin, int64_t length) {
      const std::string_view key(begin, static_cast<size_t>(length));
      auto found = counts.longer_.find(key);
      if (found == counts.longer_.end()) found = counts.longer_.emplace(key, 0).first;
      found->second += by;
      ++tokens;
    }
  };

  Alphabet alphabet_;
  int64_t single_[256] = {}, pair_[256] = {};
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> longer_;
  int64_t longest_ = 0;
};

}  // namespace stib_fast::smiles
