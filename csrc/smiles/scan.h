// Cutting one SMILES string into tokens, in a single pass over its bytes, on the CPU and on a GPU.
//
// At atom level a token is a two-letter organic-subset atom (Cl, Br), a whole bracket atom, a ring
// closure %nn or %(nnn), a dative bond -> or <-, or any other printable character but '[', ']' and
// '%'. At character level every printable character is a token. Everything else is malformed.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace stib_fast::smiles {

enum class Status : uint8_t { kept, malformed, unknown, too_long, missing };

constexpr uint16_t kPad = 0, kBos = 1, kEos = 2, kUnknown = 3;

// A string to read; negative sizes are rows without one.
constexpr int64_t kMissing = -1, kNotAscii = -2;
struct View {
  const char* data;
  int64_t size;
};

// The byte that makes a token of two characters with this one; no byte equals these two:
constexpr uint16_t kAlone = 0x100;    // the byte is a token by itself
constexpr uint16_t kSpecial = 0x101;  // a bracket atom or ring closure begins, or no token does
constexpr uint16_t kNotAByte = 0x102;
struct Alphabet {
  uint16_t second[256];
};

constexpr Alphabet make_alphabet(bool atom_level) {
  Alphabet alphabet{};
  for (int c = 0; c < 256; ++c) alphabet.second[c] = c >= '!' && c <= '~' ? kAlone : kSpecial;
  if (!atom_level) return alphabet;
  alphabet.second[uint8_t{'C'}] = 'l';
  alphabet.second[uint8_t{'B'}] = 'r';
  alphabet.second[uint8_t{'-'}] = '>';
  alphabet.second[uint8_t{'<'}] = '-';
  alphabet.second[uint8_t{'['}] = alphabet.second[uint8_t{']'}] = alphabet.second[uint8_t{'%'}] =
      kSpecial;
  return alphabet;
}

STIB_HOST_DEVICE bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the bracket atom that begins at text[at] == '[', or 0.
STIB_HOST_DEVICE int64_t bracket_length(const char* text, int64_t at, int64_t size) {
  for (int64_t i = at + 1; i < size; ++i) {
    const char c = text[i];
    if (c == ']') return i > at + 1 ? i + 1 - at : 0;
    if (c == '[' || c < '!' || c > '~') return 0;
  }
  return 0;
}

// Length of the ring closure that begins at text[at] == '%', or 0.
STIB_HOST_DEVICE int64_t ring_length(const char* text, int64_t at, int64_t size) {
  if (at + 2 >= size) return 0;
  if (is_digit(text[at + 1])) return is_digit(text[at + 2]) ? 3 : 0;
  if (text[at + 1] != '(') return 0;
  int64_t i = at + 2;
  while (i < size && is_digit(text[i])) ++i;
  return i > at + 2 && i < size && text[i] == ')' ? i + 1 - at : 0;
}

// Gives every token to the sink: single(byte), pair(first byte) or token(begin, length).
template <class Sink>
STIB_HOST_DEVICE Status scan(const Alphabet& alphabet, const char* text, int64_t size, Sink& sink) {
  if (size == 0) return Status::malformed;
  for (int64_t at = 0; at < size;) {
    const uint8_t c = static_cast<uint8_t>(text[at]);
    const uint16_t next = at + 1 < size ? static_cast<uint8_t>(text[at + 1]) : kNotAByte;
    const uint16_t second = alphabet.second[c];
    // Both branches are rare, so they are predicted, and the next byte does not wait for this one.
    if (second == kSpecial) [[unlikely]] {
      const int64_t length = c == '['   ? bracket_length(text, at, size)
                             : c == '%' ? ring_length(text, at, size)
                                        : 0;
      if (length == 0) return Status::malformed;
      sink.token(text + at, length);
      at += length;
    } else if (next == second) [[unlikely]] {
      sink.pair(c);
      at += 2;
    } else {
      sink.single(c);
      ++at;
    }
  }
  return Status::kept;
}

}  // namespace stib_fast::smiles
