// The vocabulary as one flat block of memory, which a GPU can hold as well: the id of every byte
// and pair, and a hash table of the longer tokens.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "scan.h"

namespace stib_fast::smiles {

struct Header {
  Alphabet alphabet;
  uint16_t single[256];  // id of the token that is this byte; kUnknown where there is none
  uint16_t pair[256];    // id of the two-character token that begins with this byte
  uint32_t slot_mask;    // number of slots, a power of two, less one
  uint32_t unused;       // keeps the slots aligned to 8 bytes
};

// A longer token: its first eight bytes (the first in the lowest), the rest in the pool.
struct Slot {
  uint64_t head;
  uint32_t rest;    // where the bytes after the eighth are in the pool
  uint16_t length;  // 0: the slot is free
  uint16_t id;
};

// Header, slots, pool, one behind the other.
struct Table {
  const Header* header;
  const Slot* slots;
  const char* pool;

  STIB_HOST_DEVICE explicit Table(const void* block)
      : header(static_cast<const Header*>(block)),
        slots(reinterpret_cast<const Slot*>(header + 1)),
        pool(reinterpret_cast<const char*>(slots + header->slot_mask + 1)) {}
};

STIB_HOST_DEVICE uint64_t head_of(const char* token, int64_t length) {
  uint64_t head = 0;
  for (int64_t i = 0; i < length && i < 8; ++i)
    head |= static_cast<uint64_t>(static_cast<uint8_t>(token[i])) << (8 * i);
  return head;
}

STIB_HOST_DEVICE uint32_t slot_of(uint64_t head, const char* token, int64_t length, uint32_t mask) {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15u;
  uint64_t mixed = (head ^ static_cast<uint64_t>(length)) * kFactor;
  for (int64_t i = 8; i < length; ++i)
    mixed = (mixed ^ (mixed >> 32) ^ static_cast<uint8_t>(token[i])) * kFactor;
  return static_cast<uint32_t>(mixed >> 40) & mask;
}

// Id of a token of three characters or more; kUnknown where the vocabulary has none.
STIB_HOST_DEVICE uint16_t find(const Table& table, uint64_t head, const char* token,
                               int64_t length) {
  const uint32_t mask = table.header->slot_mask;
  for (uint32_t i = slot_of(head, token, length, mask); table.slots[i].length != 0;
       i = (i + 1) & mask) {
    const Slot& slot = table.slots[i];
    if (slot.head != head || slot.length != length) continue;
    int64_t k = 8;
    while (k < length && token[k] == table.pool[slot.rest + k - 8]) ++k;
    if (k >= length) return slot.id;
  }
  return kUnknown;
}

// The block for the tokens of a vocabulary; a token's place is its id. The first four are special.
inline std::vector<uint64_t> make_table(const std::vector<std::string>& tokens, bool atom_level) {
  Header header{};
  header.alphabet = make_alphabet(atom_level);
  for (int c = 0; c < 256; ++c) header.single[c] = header.pair[c] = kUnknown;
  uint32_t slot_count = 4;
  while (slot_count < 2 * tokens.size()) slot_count *= 2;
  header.slot_mask = slot_count - 1;
  std::vector<Slot> slots(slot_count, Slot{});
  std::string pool;
  for (size_t id = kUnknown + 1; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    const int64_t length = static_cast<int64_t>(token.size());
    const auto first = static_cast<uint8_t>(token[0]);
    if (length == 1) header.single[first] = static_cast<uint16_t>(id);
    if (length == 2) header.pair[first] = static_cast<uint16_t>(id);
    if (length <= 2) continue;
    const uint64_t head = head_of(token.data(), length);
    uint32_t i = slot_of(head, token.data(), length, header.slot_mask);
    while (slots[i].length != 0) i = (i + 1) & header.slot_mask;
    slots[i] = {head, static_cast<uint32_t>(pool.size()), static_cast<uint16_t>(length),
                static_cast<uint16_t>(id)};
    if (length > 8) pool += token.substr(8);
  }
  const size_t bytes = sizeof(Header) + slots.size() * sizeof(Slot) + pool.size();
  std::vector<uint64_t> block((bytes + 7) / 8);
  auto* at = reinterpret_cast<char*>(block.data());
  std::memcpy(at, &header, sizeof(Header));
  std::memcpy(at + sizeof(Header), slots.data(), slots.size() * sizeof(Slot));
  std::memcpy(at + sizeof(Header) + slots.size() * sizeof(Slot), pool.data(), pool.size());
  return block;
}

}  // namespace stib_fast::smiles
