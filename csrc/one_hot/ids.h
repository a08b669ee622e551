// Token ids [B, L] of any integer type and strides, as the CPU kernels of one_hot and
// one_hot_conv1d read them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <optional>

namespace stib_fast {

class TokenIds {
 public:
  TokenIds(const torch::stable::Tensor& ids, int64_t classes, std::optional<int64_t> padding_idx)
      : data_(ids.data_ptr()),
        type_(ids.scalar_type()),
        classes_(classes),
        padding_(padding_idx.value_or(-1)) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(ids.is_cpu() && ids.dim() == 2, "one_hot: ids must be a 2-D CPU tensor");
    STD_TORCH_CHECK(type_ == ScalarType::Byte || type_ == ScalarType::Char ||
                        type_ == ScalarType::Short || type_ == ScalarType::Int ||
                        type_ == ScalarType::Long,
                    "one_hot: ids must be uint8, int8, int16, int32 or int64");
    STD_TORCH_CHECK(classes > 0 && classes < INT32_MAX,
                    "one_hot: the number of classes must be positive and below 2^31");
    rows_ = ids.size(0);
    length_ = ids.size(1);
    row_stride_ = ids.stride(0);
    stride_ = ids.stride(1);
  }

  int64_t rows() const { return rows_; }
  int64_t length() const { return length_; }

  // out[i] = scale * (the class of ids[row, begin + i]). An id without a class counts as the one
  // past the last: padding_idx, and an id out of range, which refuse_outside() tells of afterwards.
  void read(int64_t row, int64_t begin, int64_t count, int32_t scale, int32_t* out) {
    using torch::headeronly::ScalarType;
    switch (type_) {
      case ScalarType::Byte:
        return read_as<uint8_t, int32_t>(row, begin, count, scale, out);
      case ScalarType::Char:
        return read_as<int8_t, int32_t>(row, begin, count, scale, out);
      case ScalarType::Short:
        return read_as<int16_t, int32_t>(row, begin, count, scale, out);
      case ScalarType::Int:
        return read_as<int32_t, int32_t>(row, begin, count, scale, out);
      default:
        return read_as<int64_t, int64_t>(row, begin, count, scale, out);
    }
  }

  // After all reads, on one thread.
  void refuse_outside() const {
    const int64_t first = first_outside_.load();
    if (first == kNone) return;
    const int64_t row = first / length_, column = first % length_;
    STD_TORCH_CHECK(false, "one_hot: ids[", row, ", ", column, "] lies outside [0, ", classes_,
                    ")");
  }

 private:
  static constexpr int64_t kNone = INT64_MAX;

  // Ids of type T, compared as W.
  template <typename T, typename W>
  void read_as(int64_t row, int64_t begin, int64_t count, int32_t scale, int32_t* out) {
    const T* from = static_cast<const T*>(data_) + row * row_stride_ + begin * stride_;
    const int64_t stride = stride_;
    const W classes = W(classes_), padding = W(padding_);
    bool all_inside = true;
    for (int64_t i = 0; i < count; ++i) {
      const W id = W(from[i * stride]);
      const bool inside = (id >= 0) & (id < classes);
      all_inside &= inside;
      const bool counts = inside & (id != padding);
      out[i] = scale * int32_t(counts ? id : classes);
    }
    if (all_inside) return;
    int64_t i = 0;
    while (from[i * stride] >= 0 && W(from[i * stride]) < classes) ++i;
    const int64_t place = row * length_ + begin + i;
    int64_t first = first_outside_.load();
    while (place < first && !first_outside_.compare_exchange_weak(first, place)) {
    }
  }

  const void* data_;
  torch::headeronly::ScalarType type_;
  int64_t classes_, padding_;
  int64_t rows_, length_, row_stride_, stride_;
  std::atomic<int64_t> first_outside_{kNone};
};

}  // namespace stib_fast
