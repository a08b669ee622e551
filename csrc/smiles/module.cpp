// The SMILES tokeniser for Python: what stib_fast/_smiles.pyi describes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "count.h"
#include "decode.h"
#include "encode.h"
#include "encode_rows.h"
#include "lines.h"
#include "parallel.h"
#include "scan.h"
#include "sources.h"
#include "table.h"

namespace py = pybind11;

namespace stib_fast::smiles {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The strings of a list that nobody changes: they live as long as it does.
class PythonStrings {
 public:
  PythonStrings(const py::list& list, int64_t first_row) : list_(list) {
    const Py_ssize_t count = PyList_GET_SIZE(list.ptr());
    views_.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i)
      views_.push_back(view_of(PyList_GET_ITEM(list.ptr(), i), first_row + i));
  }

  int64_t size() const { return static_cast<int64_t>(views_.size()); }
  View row(int64_t i) const { return views_[static_cast<size_t>(i)]; }

 private:
  static View view_of(PyObject* item, int64_t row) {
    // NaN is what data frames put where nothing is.
    if (item == Py_None || (PyFloat_Check(item) && std::isnan(PyFloat_AS_DOUBLE(item))))
      return {nullptr, kMissing};
    if (!PyUnicode_Check(item))
      throw py::value_error("row " + std::to_string(row) + ": expected a SMILES string, not " +
                            py::cast<std::string>(py::repr(item)));
    if (!PyUnicode_IS_ASCII(item)) return {nullptr, kNotAscii};
    return {static_cast<const char*>(PyUnicode_DATA(item)), PyUnicode_GET_LENGTH(item)};
  }

  py::list list_;
  std::vector<View> views_;
};

// Many strings in one of their forms, with whatever owns their memory.
class Strings {
 public:
  Strings(const py::list& list, int64_t first_row)
      : source_(std::in_place_type<PythonStrings>, list, first_row) {
    size_ = std::get<PythonStrings>(source_).size();
  }

  // Arrow's buffers, or any bytes with offsets.
  template <class Offset>
  Strings(const py::buffer& data, const Array<Offset>& offsets,
          const std::optional<py::buffer>& valid, int64_t first_bit)
      : size_(offsets.size() - 1) {
    if (size_ < 0) throw py::value_error("offsets must hold at least one entry");
    const py::buffer_info& bytes = kept(data);
    const int64_t limit = bytes.size * bytes.itemsize;
    const Offset* at = offsets.data();
    bool ascending = at[0] >= 0 && at[size_] <= limit;
    for (int64_t i = 0; i < size_; ++i) ascending &= at[i] <= at[i + 1];
    if (!ascending) throw py::value_error("offsets must ascend and stay within the data");
    const uint8_t* bits = nullptr;
    if (valid) {
      const py::buffer_info& info = kept(*valid);
      if (first_bit < 0 || info.size * info.itemsize * 8 < first_bit + size_)
        throw py::value_error("the validity bitmap is too short");
      bits = static_cast<const uint8_t*>(info.ptr);
    }
    arrays_.push_back(offsets);
    source_ = OffsetStrings<Offset>{static_cast<const char*>(bytes.ptr), at, bits, first_bit};
  }

  // NumPy's fixed width [N, width]: uint8 for its type S, uint32 for U.
  template <class Char>
  explicit Strings(const Array<Char>& characters) {
    if (characters.ndim() != 2) throw py::value_error("characters must be [N, width]");
    size_ = characters.shape(0);
    arrays_.push_back(characters);
    source_ = FixedStrings<Char>{characters.data(), characters.shape(1)};
  }

  int64_t size() const { return size_; }

  // work(reader, part, begin, end) for consecutive ranges of rows, without the GIL.
  template <class Work>
  void for_each(int64_t parts, const Work& work) const {
    const py::gil_scoped_release release;
    std::visit(
        [&](const auto& source) {
          for_each_part(size_, parts, [&](int64_t part, int64_t begin, int64_t end) {
            Reader reader(source);
            work(reader, part, begin, end);
          });
        },
        source_);
  }

 private:
  const py::buffer_info& kept(const py::buffer& buffer) {
    const py::buffer_info& info = buffers_.emplace_back(buffer.request());
    if (!PyBuffer_IsContiguous(info.view(), 'C'))
      throw py::value_error("data and valid must be contiguous");
    return info;
  }

  int64_t size_;
  std::variant<OffsetStrings<int32_t>, OffsetStrings<int64_t>, FixedStrings<uint8_t>,
               FixedStrings<uint32_t>, PythonStrings>
      source_;
  std::deque<py::buffer_info> buffers_;  // a buffer that is held cannot be resized
  std::vector<py::object> arrays_;
};

// ---- encode and decode -------------------------------------------------------------------------

template <class T>
void require_size(const Array<T>& array, int64_t size, const char* name) {
  if (array.ndim() != 1 || array.size() != size)
    throw py::value_error(std::string(name) + " must have one entry a row");
}

class Codec {
 public:
  Codec(const std::vector<std::string>& tokens, bool atom_level)
      : block_(make_table(tokens, atom_level)), spelling_(tokens) {}

  template <class Id>
  void encode(const Strings& strings, Array<Id> ids, Array<int64_t> lengths, Array<uint8_t> status,
              bool bos, bool eos, bool keep_unknown, bool truncate, int64_t threads) const {
    if (ids.ndim() != 2 || ids.shape(0) != strings.size() || ids.shape(1) <= bos + eos)
      throw py::value_error("ids must be [N, max_length]");
    require_size(lengths, strings.size(), "lengths");
    require_size(status, strings.size(), "status");
    const Settings settings{ids.shape(1), bos, eos, keep_unknown, truncate};
    const Table table(block_.data());
    Id* const id_rows = ids.mutable_data();
    int64_t* const length_of = lengths.mutable_data();
    uint8_t* const status_of = status.mutable_data();
    strings.for_each(part_count(strings.size(), threads), [&](auto& reader, int64_t, int64_t begin,
                                                              int64_t end) {
      encode_rows(table, reader, settings, begin, end, id_rows, length_of, status_of);
    });
  }

  template <class Id>
  py::list decode(const Array<Id>& ids, int64_t threads) const {
    if (ids.ndim() != 2) throw py::value_error("ids must be [N, L]");
    const int64_t rows = ids.shape(0), length = ids.shape(1);
    const Id* data = ids.data();
    py::list list(static_cast<size_t>(rows));
    PyObject_GC_UnTrack(list.ptr());  // nobody is to find it before it is full
    // In blocks, so that the text stays in the cache until Python's strings are made of it.
    const int64_t block = kDecodeRows * std::max<int64_t>(threads, 1);
    std::vector<Text> texts(static_cast<size_t>(part_count(block, threads)));
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t count = std::min(block, rows - first);
      const int64_t parts = part_count(count, threads);
      {
        const py::gil_scoped_release release;
        for_each_part(count, parts, [&](int64_t part, int64_t begin, int64_t end) {
          decode_rows(spelling_, data + first * length, begin, end, length,
                      texts[static_cast<size_t>(part)]);
        });
      }
      int64_t row = first;
      for (int64_t part = 0; part < parts; ++part)
        row = add_strings(texts[static_cast<size_t>(part)], list, row);
    }
    PyObject_GC_Track(list.ptr());
    return list;
  }

  py::bytes table() const {
    return {reinterpret_cast<const char*>(block_.data()), block_.size() * sizeof(block_[0])};
  }

 private:
  static constexpr int64_t kDecodeRows = 4 * kRowsPerThread;

  // The strings of a part, from `row` of the list on; returns the row behind them.
  static int64_t add_strings(const Text& text, const py::list& list, int64_t row) {
    if (!text.valid) throw py::index_error("an id is outside the vocabulary");
    int64_t begin = 0;
    for (const int64_t end : text.ends) {
      PyObject* string = PyUnicode_New(end - begin, 127);
      if (string == nullptr) throw py::error_already_set();
      std::memcpy(PyUnicode_1BYTE_DATA(string), text.bytes.data() + begin,
                  static_cast<size_t>(end - begin));
      PyList_SET_ITEM(list.ptr(), row++, string);
      begin = end;
    }
    return row;
  }

  std::vector<uint64_t> block_;
  Spelling spelling_;
};

// ---- counting ----------------------------------------------------------------------------------

class TokenCounter {
 public:
  explicit TokenCounter(bool atom_level) : atom_level_(atom_level), counts_(atom_level) {}

  void add(const Strings& strings, Array<uint8_t> status, int64_t threads) {
    require_size(status, strings.size(), "status");
    const int64_t parts = part_count(strings.size(), threads);
    std::vector<TokenCounts> counts(static_cast<size_t>(parts), TokenCounts(atom_level_));
    uint8_t* const status_of = status.mutable_data();
    strings.for_each(parts, [&](auto& reader, int64_t part, int64_t begin, int64_t end) {
      TokenCounts& own = counts[static_cast<size_t>(part)];
      for (int64_t i = begin; i < end; ++i)
        status_of[i] = static_cast<uint8_t>(own.add(reader.row(i)));
    });
    for (const TokenCounts& part : counts) counts_.merge(part);
  }

  std::map<std::string, int64_t> counts() const { return counts_.counts(); }
  int64_t longest() const { return counts_.longest(); }

 private:
  bool atom_level_;
  TokenCounts counts_;
};

// ---- lines -------------------------------------------------------------------------------------

Array<uint8_t> room_for(size_t size) { return Array<uint8_t>(static_cast<py::ssize_t>(size) + 8); }

Column column_in(Array<uint8_t>& room) {
  return Column{reinterpret_cast<char*>(room.mutable_data())};
}

// The part of the memory that was written, which the array keeps alive, and the offsets.
py::tuple arrays_of(const Column& column, const Array<uint8_t>& room) {
  return py::make_tuple(
      Array<int32_t>(static_cast<py::ssize_t>(column.offsets.size()), column.offsets.data()),
      Array<uint8_t>(column.used, room.data(), room));
}

py::tuple lines_of(const py::bytes& block) {
  const std::string_view text = block;
  if (text.size() >= (1u << 31)) throw py::value_error("a block must be smaller than 2 GiB");
  Array<uint8_t> smiles_room = room_for(text.size()), names_room = room_for(text.size());
  Column smiles = column_in(smiles_room), names = column_in(names_room);
  {
    const py::gil_scoped_release release;
    split_lines(text.data(), static_cast<int64_t>(text.size()), smiles, names);
  }
  return py::make_tuple(arrays_of(smiles, smiles_room), arrays_of(names, names_room));
}

}  // namespace

PYBIND11_MODULE(_smiles, module) {
  using py::arg;
  using Valid = std::optional<py::buffer>;
  py::class_<Strings>(module, "Strings")
      .def(py::init<const py::list&, int64_t>(), arg("strings"), arg("first_row") = 0)
      .def(py::init<const py::buffer&, const Array<int32_t>&, const Valid&, int64_t>(), arg("data"),
           arg("offsets").noconvert(), arg("valid") = py::none(), arg("first_bit") = 0)
      .def(py::init<const py::buffer&, const Array<int64_t>&, const Valid&, int64_t>(), arg("data"),
           arg("offsets").noconvert(), arg("valid") = py::none(), arg("first_bit") = 0)
      .def(py::init<const Array<uint8_t>&>(), arg("characters").noconvert())
      .def(py::init<const Array<uint32_t>&>(), arg("characters").noconvert())
      .def("__len__", &Strings::size);

  py::class_<Codec> codec(module, "Codec");
  codec.def(py::init<const std::vector<std::string>&, bool>(), arg("tokens"), arg("atom_level"));
  const auto add_encode = [&]<class Id>(Id) {
    codec.def("encode", &Codec::encode<Id>, arg("strings"), arg("ids").noconvert(),
              arg("lengths").noconvert(), arg("status").noconvert(), py::kw_only(), arg("bos"),
              arg("eos"), arg("keep_unknown"), arg("truncate"), arg("threads"));
  };
  add_encode(uint8_t{});
  add_encode(int16_t{});
  const auto add_decode = [&]<class Id>(Id) {
    codec.def("decode", &Codec::decode<Id>, arg("ids").noconvert(), py::kw_only(), arg("threads"));
  };
  add_decode(uint8_t{});
  add_decode(int8_t{});
  add_decode(int16_t{});
  add_decode(int32_t{});
  add_decode(int64_t{});
  codec.def("table", &Codec::table);

  py::class_<TokenCounter>(module, "TokenCounter")
      .def(py::init<bool>(), arg("atom_level"))
      .def("add", &TokenCounter::add, arg("strings"), arg("status").noconvert(), py::kw_only(),
           arg("threads"))
      .def("counts", &TokenCounter::counts)
      .def_property_readonly("longest", &TokenCounter::longest);

  module.def("split_lines", &lines_of, arg("block"));
}

}  // namespace stib_fast::smiles
