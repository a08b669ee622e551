// libFuzzer on the tokeniser without Python (tools/sanitize.sh): whatever bytes come, the vector
// code, the scalar code and a slow reading of the rules agree, and none leaves its memory. Every
// text and table has a heap block of its own size, so that the address sanitizer sees one byte too
// many.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "count.h"
#include "decode.h"
#include "encode.h"
#include "encode_rows.h"
#include "lines.h"
#include "scan.h"
#include "sources.h"
#include "table.h"

namespace stib_fast::smiles {
namespace {

void require(bool holds, const char* law) {
  if (holds) return;
  std::fprintf(stderr, "broken law: %s\n", law);
  std::abort();
}

// ---- the rules, read off the text without tables ----

using Tokens = std::vector<std::string>;
using Row = std::optional<std::string>;  // nothing: the row is missing

bool is_printable(char c) { return c >= '!' && c <= '~'; }

// Length of the token that the text begins with, or 0.
size_t first_token(std::string_view text, bool atom_level) {
  const auto starts = [&](std::string_view with) { return text.substr(0, with.size()) == with; };
  const auto digit = [&](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
  if (!is_printable(text[0])) return 0;
  if (!atom_level) return 1;
  if (starts("Cl") || starts("Br") || starts("->") || starts("<-")) return 2;
  if (starts("%(")) {
    const size_t stop = text.find_first_not_of("0123456789", 2);
    return stop != text.npos && stop > 2 && text[stop] == ')' ? stop + 1 : 0;
  }
  if (starts("%")) return digit(1) && digit(2) ? 3 : 0;
  if (starts("[")) {
    const size_t stop = text.find_first_of("[]", 1);
    if (stop == text.npos || stop == 1 || text[stop] == '[') return 0;
    for (const char c : text.substr(1, stop - 1))
      if (!is_printable(c)) return 0;
    return stop + 1;
  }
  return starts("]") ? 0 : 1;
}

// Nothing where the text is malformed.
std::optional<Tokens> cut(std::string_view text, bool atom_level) {
  if (text.empty()) return std::nullopt;
  Tokens tokens;
  while (!text.empty()) {
    const size_t length = first_token(text, atom_level);
    if (length == 0) return std::nullopt;
    tokens.emplace_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return tokens;
}

struct Settled {
  bool atom_level;
  Tokens vocabulary;
  Settings settings;
  std::vector<uint64_t> table = make_table(vocabulary, atom_level);
  Spelling spelling = Spelling(vocabulary);
};

struct Expected {
  Status status;
  std::vector<int64_t> ids = {};
  std::string decoded = {};
};

Expected expect(const Row& row, const std::map<std::string, int64_t>& id_of, const Settled& by) {
  if (!row) return {Status::missing};
  const std::optional<Tokens> tokens = cut(*row, by.atom_level);
  if (!tokens) return {Status::malformed};
  const Settings& settings = by.settings;
  const auto room = static_cast<size_t>(settings.max_length - settings.bos - settings.eos);
  Expected expected{Status::kept};
  bool unknown = false;
  if (settings.bos) expected.ids.push_back(kBos);
  for (size_t i = 0; i < tokens->size(); ++i) {
    const auto found = id_of.find((*tokens)[i]);
    unknown |= found == id_of.end();
    if (i >= room) continue;
    expected.ids.push_back(found == id_of.end() ? kUnknown : found->second);
    expected.decoded += by.vocabulary[static_cast<size_t>(expected.ids.back())];
  }
  if (settings.eos) expected.ids.push_back(kEos);
  if (unknown && !settings.keep_unknown) return {Status::unknown};
  if (tokens->size() > room && !settings.truncate) return {Status::too_long};
  if (!unknown && tokens->size() <= room)
    require(expected.decoded == *row, "tokens join to the string");
  return expected;
}

std::vector<Expected> expect_all(const std::vector<Row>& rows, const Settled& by) {
  std::map<std::string, int64_t> id_of;
  for (size_t id = kUnknown + 1; id < by.vocabulary.size(); ++id)
    id_of[by.vocabulary[id]] = static_cast<int64_t>(id);
  std::vector<Expected> expected;
  for (const Row& row : rows) expected.push_back(expect(row, id_of, by));
  return expected;
}

// ---- encode and decode ----

template <class Id, class Source>
void check_encode(const Settled& by, const std::vector<Expected>& expected, size_t split,
                  const Source& source) {
  const auto count = static_cast<int64_t>(expected.size());
  const auto middle = static_cast<int64_t>(split);
  const int64_t width = by.settings.max_length;
  const Table table(by.table.data());
  std::vector<Id> ids(expected.size() * static_cast<size_t>(width), Id{77});
  std::vector<int64_t> lengths(expected.size(), -1);
  std::vector<uint8_t> status(expected.size(), 77);
  // As two threads would, and the one with the rows behind is the first to be done.
  for (const auto& [begin, end] : {std::pair{middle, count}, std::pair{int64_t{0}, middle}}) {
    Reader reader(source);
    encode_rows(table, reader, by.settings, begin, end, ids.data(), lengths.data(), status.data());
  }
  Text text;
  decode_rows(by.spelling, ids.data(), 0, count, width, text);
  require(text.valid && text.ends.size() == expected.size(), "every row is decoded");
  int64_t begin = 0;
  for (size_t row = 0; row < expected.size(); ++row) {
    const Expected& wanted = expected[row];
    require(status[row] == static_cast<uint8_t>(wanted.status), "status");
    require(lengths[row] == static_cast<int64_t>(wanted.ids.size()), "length");
    for (size_t k = 0; k < static_cast<size_t>(width); ++k)
      require(ids[row * static_cast<size_t>(width) + k] ==
                  (k < wanted.ids.size() ? wanted.ids[k] : kPad),
              "ids, and pad behind them");
    const std::string_view decoded(text.bytes.data() + begin,
                                   static_cast<size_t>(text.ends[row] - begin));
    require(decoded == wanted.decoded, "decode gives back what encode kept");
    begin = text.ends[row];
  }
}

template <class Source>
void check_narrow(const Settled& by, const std::vector<Expected>& expected, size_t split,
                  const Source& source) {
  if (by.vocabulary.size() <= 256) check_encode<uint8_t>(by, expected, split, source);
}

struct Views {
  std::vector<std::vector<char>> texts;
  std::vector<View> views;

  explicit Views(const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      texts.emplace_back(row ? std::vector<char>(row->begin(), row->end()) : std::vector<char>());
      views.push_back({texts.back().data(), row ? static_cast<int64_t>(row->size()) : kMissing});
    }
  }
  View row(int64_t i) const { return views[static_cast<size_t>(i)]; }
};

void check_views_and_offsets(const Settled& by, const std::vector<Row>& rows, size_t split,
                             int64_t first_bit) {
  std::string joined;
  std::vector<int32_t> offsets = {0};
  std::vector<uint8_t> valid((static_cast<size_t>(first_bit) + rows.size() + 7) / 8);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i]) {
      joined += *rows[i];
      const size_t bit = static_cast<size_t>(first_bit) + i;
      valid[bit / 8] = static_cast<uint8_t>(valid[bit / 8] | 1 << bit % 8);
    }
    offsets.push_back(static_cast<int32_t>(joined.size()));
  }
  const std::vector<char> data(joined.begin(), joined.end());
  const std::vector<Expected> expected = expect_all(rows, by);
  check_narrow(by, expected, split, Views(rows));
  check_encode<int16_t>(by, expected, split, Views(rows));
  check_narrow(by, expected, split,
               OffsetStrings<int32_t>{data.data(), offsets.data(), valid.data(), first_bit});
}

void check_fixed_width(const Settled& by, std::vector<Row> rows, size_t split) {
  size_t width = 0;
  for (Row& row : rows) {
    if (!row) row = "";
    while (!row->empty() && row->back() == '\0') row->pop_back();  // the layout cannot hold them
    width = std::max(width, row->size());
  }
  std::vector<uint8_t> narrow(rows.size() * width);
  std::vector<uint32_t> wide(rows.size() * width);
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t k = 0; k < rows[i]->size(); ++k)
      wide[i * width + k] = narrow[i * width + k] = static_cast<uint8_t>((*rows[i])[k]);
  const std::vector<Expected> expected = expect_all(rows, by);
  const auto columns = static_cast<int64_t>(width);
  check_narrow(by, expected, split, FixedStrings<uint8_t>{narrow.data(), columns});
  check_narrow(by, expected, split, FixedStrings<uint32_t>{wide.data(), columns});
}

// ---- counts and lines ----

void check_counts(bool atom_level, const std::vector<Row>& rows, size_t split) {
  const Views source(rows);
  TokenCounts counts(atom_level), behind(atom_level);
  std::map<std::string, int64_t> expected;
  int64_t longest = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    TokenCounts& part = i < split ? counts : behind;
    const Status status = part.add(source.row(static_cast<int64_t>(i)));
    const std::optional<Tokens> tokens = rows[i] ? cut(*rows[i], atom_level) : std::nullopt;
    require(status == (tokens    ? Status::kept
                       : rows[i] ? Status::malformed
                                 : Status::missing),
            "status of a counted row");
    if (!tokens) continue;
    for (const std::string& token : *tokens) ++expected[token];
    longest = std::max(longest, static_cast<int64_t>(tokens->size()));
  }
  counts.merge(behind);
  require(counts.counts() == expected, "counts");
  require(counts.longest() == longest, "most tokens of a row");
}

Tokens strings_of(const Column& column) {
  Tokens strings;
  for (size_t i = 1; i < column.offsets.size(); ++i)
    strings.emplace_back(column.data + column.offsets[i - 1], column.data + column.offsets[i]);
  return strings;
}

void check_lines(std::string_view text) {
  const std::vector<char> block(text.begin(), text.end());
  std::vector<char> smiles_room(block.size() + 8), names_room(block.size() + 8);
  Column smiles_column{smiles_room.data()}, names_column{names_room.data()};
  split_lines(block.data(), static_cast<int64_t>(block.size()), smiles_column, names_column);
  Tokens smiles, names;
  while (!text.empty()) {
    const size_t stop = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, stop);
    text.remove_prefix(std::min(stop + 1, text.size()));
    const auto trim = [&line] {
      line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
      line = line.substr(0, line.find_last_not_of(" \t\r") + 1);
    };
    trim();
    if (line.empty()) continue;
    const size_t blank = std::min(line.find_first_of(" \t\r"), line.size());
    smiles.emplace_back(line.substr(0, blank));
    line.remove_prefix(blank);
    trim();
    names.emplace_back(line);
  }
  require(strings_of(smiles_column) == smiles, "first word of each line");
  require(strings_of(names_column) == names, "the rest of each line");
}

// ---- from bytes to a case ----

constexpr size_t kKnobs = 5;

Tokens split_at(char separator, const std::string& text) {
  Tokens parts = {""};
  for (const char c : text) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

// Half of the inputs spell each byte as a piece, for long strings that are nearly well-formed: one
// byte in 32 is what the vector code leaves to the scalar code, or what no token begins with.
std::string spelled(std::string_view bytes, bool in_pieces) {
  static const Tokens tokens =
      split_at(' ',
               "C c Cl l Br r B N ( ) = 1 - > -> [nH] [C@@H] [C] [13CH3-] [13C@H2+] [13C@H2-] "
               "[13C@@H2+] [0123456789abcdef] "
               "[0123456789abcdeg] ccccccc " +
                   std::string(40, 'c') + " " + std::string(62, 'N') + " " + std::string(63, 'c') +
                   " [" + std::string(70, 'H') + "] \n \n");
  static const Tokens rare = split_at('\n',
                                      "%12\n%(345)\n<-\n<\n%\n%1\n%(\n[\n]\n[]\n[C[\n"
                                      " \n\t\n\r\n\x7f\n\xc3\n" +
                                          std::string(1, '\0'));
  if (!in_pieces) return std::string(bytes);
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    text += byte < 248 ? tokens[byte % tokens.size()] : rare[byte % rare.size()];
  }
  return text;
}

// The tokens of a text that is well-formed, and many of one length and beginning where asked for.
Tokens vocabulary_of(const std::string& text, bool atom_level, int more) {
  Tokens vocabulary = {"<pad>", "<bos>", "<eos>", "<unk>"};
  std::map<std::string, bool> seen;
  const auto add = [&](const std::string& token) {
    if (!seen[token]) vocabulary.push_back(token);
    seen[token] = true;
  };
  for (const std::string& part : split_at('\n', text))
    for (const std::string& token : cut(part, atom_level).value_or(Tokens())) add(token);
  for (int i = 0; atom_level && i < more; ++i) add("[0123456" + std::to_string(1000 + i) + "]");
  return vocabulary;
}

void check(std::string_view bytes) {
  const auto knob = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const auto flag = [&](int bit) { return (knob(0) >> bit & 1) != 0; };
  const bool atom_level = flag(0) || flag(7), bos = flag(1), eos = flag(2), in_pieces = flag(5);
  const std::string_view content = bytes.substr(kKnobs);
  const size_t middle = content.size() * knob(4) / 255;
  const int more = knob(2) < 248 ? 0 : 40 * (knob(2) - 247);  // up to 320 tokens: past uint8
  const Settled by{atom_level,
                   vocabulary_of(spelled(content.substr(0, middle), in_pieces), atom_level, more),
                   {.max_length = 1 + bos + eos + knob(1) % 160,
                    .bos = bos,
                    .eos = eos,
                    .keep_unknown = flag(3),
                    .truncate = flag(4)}};
  std::vector<Row> rows;
  for (const std::string& text : split_at('\n', spelled(content.substr(middle), in_pieces)))
    rows.push_back(rows.size() % 8 == knob(3) % 16u ? Row() : Row(text));
  // The vector code leaves the last rows, those within 64 bytes of the end, to the scalar code.
  const size_t given = rows.size();
  for (int64_t behind = 0; behind < 64; behind += by.settings.max_length)
    rows.push_back(rows[rows.size() % given]);
  const size_t split = rows.size() * (knob(3) / 16u) / 15;

  check_views_and_offsets(by, rows, split, knob(2) % 8);
  check_fixed_width(by, rows, split);
  check_counts(atom_level, rows, split);
  check_lines(spelled(content, flag(6)));
}

}  // namespace
}  // namespace stib_fast::smiles

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size >= stib_fast::smiles::kKnobs)
    stib_fast::smiles::check({reinterpret_cast<const char*>(data), size});
  return 0;
}
