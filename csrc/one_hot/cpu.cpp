// The CPU kernel of one_hot, registered under the schema of stib_fast/ops/one_hot.py.
//
// The output is zeroed piece by piece, each small enough to stay in the first-level cache until its
// ones are written: the memory sees one pass, as under fill_.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "memory.h"
#include "one_hot/ids.h"

namespace stib_fast::one_hot {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPieceBytes = 1 << 14;
// Below this many bytes a second thread costs more than it brings.
constexpr int64_t kSerialBytes = 1 << 17;

// The bits of 1 in a type of `size` bytes.
struct One {
  int size;
  uint64_t bits;
};

One one_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return {4, 0x3f800000};
    case ScalarType::Double:
      return {8, 0x3ff0000000000000};
    case ScalarType::BFloat16:
      return {2, 0x3f80};
    case ScalarType::Half:
      return {2, 0x3c00};
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
      return {1, 1};
    case ScalarType::Short:
      return {2, 1};
    case ScalarType::Int:
      return {4, 1};
    case ScalarType::Long:
      return {8, 1};
    default:
      STD_TORCH_CHECK(false, "one_hot: out has a dtype that is not supported");
  }
}

template <typename T, bool ClassesFirst>
void write(TokenIds& ids, int64_t classes, T one, T* out) {
  const int64_t length = ids.length(), row_size = length * classes;
  const int64_t positions = std::max<int64_t>(1, kPieceBytes / int64_t(classes * sizeof(T)));
  const int64_t step = ClassesFirst ? std::max<int64_t>(1, length) : std::min(length, positions);
  const int64_t grain = kSerialBytes / std::max<int64_t>(1, row_size * int64_t(sizeof(T))) + 1;
  struct Classes;
  torch::stable::parallel_for(0, ids.rows(), grain, [&](int64_t first, int64_t last) {
    int32_t* found = static_cast<int32_t*>(scratch<Classes>(sizeof(int32_t) * size_t(step)));
    for (int64_t row = first; row < last; ++row)
      for (int64_t begin = 0; begin < length; begin += step) {
        const int64_t count = std::min(step, length - begin);
        T* piece = out + row * row_size + begin * classes;
        std::memset(piece, 0, sizeof(T) * size_t(count * classes));
        ids.read(row, begin, count, 1, found);
        for (int64_t i = 0; i < count; ++i)
          if (found[i] < classes)
            piece[ClassesFirst ? found[i] * length + i : i * classes + found[i]] = one;
      }
  });
}

template <typename T>
void write(TokenIds& ids, int64_t classes, bool classes_first, uint64_t one, void* out) {
  if (classes_first)
    write<T, true>(ids, classes, T(one), static_cast<T*>(out));
  else
    write<T, false>(ids, classes, T(one), static_cast<T*>(out));
}

void one_hot(Tensor out, Tensor ids, bool classes_first, std::optional<int64_t> padding_idx) {
  STD_TORCH_CHECK(out.is_cpu() && out.dim() == 3 && out.is_contiguous(),
                  "one_hot: out must be a contiguous 3-D CPU tensor");
  const int64_t classes = out.size(classes_first ? 1 : 2);
  TokenIds from(ids, classes, padding_idx);
  STD_TORCH_CHECK(out.size(0) == from.rows() && out.size(classes_first ? 2 : 1) == from.length(),
                  "one_hot: the shapes of out and ids differ");
  const One one = one_of(out.scalar_type());
  void* to = out.data_ptr();
  use_huge_pages(to, out.numel() * one.size);
  switch (one.size) {
    case 1:
      write<uint8_t>(from, classes, classes_first, one.bits, to);
      break;
    case 2:
      write<uint16_t>(from, classes, classes_first, one.bits, to);
      break;
    case 4:
      write<uint32_t>(from, classes, classes_first, one.bits, to);
      break;
    default:
      write<uint64_t>(from, classes, classes_first, one.bits, to);
  }
  from.refuse_outside();
}

}  // namespace
}  // namespace stib_fast::one_hot

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CPU, m) {
  m.impl("one_hot", TORCH_BOX(&stib_fast::one_hot::one_hot));
}
