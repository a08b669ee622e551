// Rows of uint8 ids with AVX-512 VBMI2 (Ice Lake, Zen 4 and later): 64 bytes of a string at a time.
//
// One permutation looks up the ids of 64 bytes, one compression drops the bytes that begin no token
// (the l of Cl, the inside of a bracket atom), and the zeros behind it are the padding. What is
// rare (ring closures above 9, a dative <-, anything malformed) is left to the scalar code.
#pragma once

#include "encode.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define STIB_VBMI2 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt")))

namespace stib_fast::smiles {

inline bool has_vbmi2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("bmi2");
}

class VectorEncoder {
 public:
  // A row is written in whole vectors: this many bytes after it may be overwritten.
  static constexpr int64_t kBeyond = 64;

  explicit VectorEncoder(const Table& table)
      : table_(table), atoms_(table.header->alphabet.second[uint8_t{'C'}] != kAlone) {
    for (int c = 0; c < 128; ++c) {
      id_[c] = static_cast<uint8_t>(table.header->single[c]);
      const bool bracket = atoms_ && (c == '[' || c == ']');
      const bool rare = table.header->alphabet.second[c] == kSpecial || (atoms_ && c == '<');
      leave_[c] = rare && !bracket ? 0x80 : 0;
    }
  }

  // As encode_row; nothing is done and false returned where the scalar code must do it.
  STIB_VBMI2 bool encode(View text, const Settings& settings, uint8_t* row, int64_t* length) const {
    uint8_t* const out = row + settings.bos;
    const int64_t room = settings.max_length - settings.bos - settings.eos;
    if (text.size <= 0) return false;
    int64_t count = 0, written = 0;
    uint64_t unknown = 0;
    for (int64_t at = 0; at < text.size;) {
      Block block;
      if (!tokens_of(text.data + at, text.size - at, &block)) return false;
      unknown |= block.unknown;
      if (count <= room) {
        _mm512_storeu_si512(out + count, block.ids);
        written = count + 64;
        for (int i = 0; i < block.brackets; ++i) out[count + block.place[i]] = block.bracket_id[i];
      }
      count += block.count;
      at += block.bytes;
    }
    if ((unknown != 0 && !settings.keep_unknown) || (count > room && !settings.truncate))
      return false;
    for (; written < room + settings.eos; written += 64)
      _mm512_storeu_si512(out + written, _mm512_setzero_si512());
    const int64_t used = count < room ? count : room;
    if (settings.bos) row[0] = kBos;
    if (settings.eos) out[used] = kEos;
    *length = settings.bos + used + settings.eos;
    return true;
  }

 private:
  struct Block {
    __m512i ids;       // of the tokens, one behind the other, then zeros
    int64_t bytes;     // of text that they take
    int64_t count;     // of tokens
    uint64_t unknown;  // not 0: one of them is
    int brackets;
    uint8_t place[22], bracket_id[22];  // 64 bytes hold 21 bracket atoms of three
  };

  STIB_VBMI2 bool tokens_of(const char* text, int64_t left, Block* block) const {
    const uint64_t inside_text = left >= 64 ? ~uint64_t{0} : _bzhi_u64(~uint64_t{0}, left);
    const __m512i bytes = _mm512_maskz_loadu_epi8(inside_text, text);
    const __m512i leave = lookup(leave_, bytes);
    if ((_mm512_movepi8_mask(_mm512_or_si512(leave, bytes)) & inside_text) != 0) return false;
    __m512i ids = lookup(id_, bytes);
    uint64_t begins = inside_text, opens = 0;
    int64_t take = left < 64 ? left : 64;
    block->brackets = 0;
    block->unknown = 0;
    uint16_t bracket_at[22];
    if (atoms_) {
      const uint64_t chlorine = equal(bytes, 'C') & equal(bytes, 'l') >> 1;
      const uint64_t bromine = equal(bytes, 'B') & equal(bytes, 'r') >> 1;
      const uint64_t arrow = equal(bytes, '-') & equal(bytes, '>') >> 1;
      ids = with(ids, chlorine, 'C');
      ids = with(ids, bromine, 'B');
      ids = with(ids, arrow, '-');
      opens = equal(bytes, '[');
      const uint64_t closes = equal(bytes, ']');
      uint64_t within = 0;
      for (uint64_t rest = opens; rest != 0; rest &= rest - 1) {
        const auto open = static_cast<int64_t>(_tzcnt_u64(rest));
        const uint64_t after = closes >> open << open;
        if (after == 0) {  // it may go on in the next block
          if (left <= 64 || open == 0) return false;
          take = open;
          break;
        }
        const auto close = static_cast<int64_t>(_tzcnt_u64(after));
        const uint64_t span = _bzhi_u64(~uint64_t{0}, close + 1) >> (open + 1) << (open + 1);
        if (close == open + 1 || (opens & span) != 0) return false;
        within |= span;
        bracket_at[block->brackets] = static_cast<uint16_t>(open);
        const uint16_t id = find_from(text + open, close + 1 - open);
        block->unknown |= id == kUnknown;
        block->bracket_id[block->brackets++] = static_cast<uint8_t>(id);
      }
      if ((closes & ~within) != 0) return false;
      if (take == 64 && left > 64 && !(within >> 63) && may_begin_pair(text[63])) take = 63;
      begins &= ~((chlorine | bromine | arrow) << 1 | within);
    }
    begins = _bzhi_u64(begins, static_cast<uint64_t>(take));
    for (int i = 0; i < block->brackets; ++i)
      block->place[i] = static_cast<uint8_t>(_mm_popcnt_u64(_bzhi_u64(begins, bracket_at[i])));
    block->unknown |= equal(ids, kUnknown) & begins & ~opens;
    block->ids = _mm512_maskz_compress_epi8(begins, ids);
    block->count = _mm_popcnt_u64(begins);
    block->bytes = take;
    return true;
  }

  static bool may_begin_pair(char c) { return c == 'C' || c == 'B' || c == '-'; }

  STIB_VBMI2 static __m512i lookup(const uint8_t* table, __m512i bytes) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), bytes, _mm512_load_si512(table + 64));
  }

  STIB_VBMI2 static uint64_t equal(__m512i bytes, char c) {
    return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(c));
  }

  STIB_VBMI2 __m512i with(__m512i ids, uint64_t where, uint8_t first) const {
    return _mm512_mask_blend_epi8(where, ids,
                                  _mm512_set1_epi8(static_cast<char>(table_.header->pair[first])));
  }

  STIB_VBMI2 uint16_t find_from(const char* token, int64_t length) const {
    const auto mask = static_cast<__mmask16>(_bzhi_u32(0xff, static_cast<uint32_t>(length)));
    const auto head = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_maskz_loadu_epi8(mask, token)));
    return find(table_, head, token, length);
  }

  alignas(64) uint8_t id_[128];
  alignas(64) uint8_t leave_[128];  // 0x80: left to the scalar code
  Table table_;
  bool atoms_;
};

}  // namespace stib_fast::smiles
#endif
