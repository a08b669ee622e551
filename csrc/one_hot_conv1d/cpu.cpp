// CPU kernels of one_hot_conv1d, registered under the schemas of stib_fast/ops/one_hot_conv1d.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "instruction_sets.h"
#include "memory.h"
#include "one_hot/ids.h"
#include "one_hot_conv1d/kernels.h"

#if defined(__x86_64__)
STIB_BEGIN_TARGET(STIB_AVX2)
namespace stib_fast::one_hot_conv1d::avx2 {
constexpr int kVectorBytes = 32;
#include "one_hot_conv1d/kernels.inl"
}  // namespace stib_fast::one_hot_conv1d::avx2
STIB_END_TARGET
STIB_BEGIN_TARGET(STIB_AVX512)
namespace stib_fast::one_hot_conv1d::avx512 {
constexpr int kVectorBytes = 64;
#include "one_hot_conv1d/kernels.inl"
}  // namespace stib_fast::one_hot_conv1d::avx512
STIB_END_TARGET
#endif
// SSE2 on x86-64, NEON on aarch64.
namespace stib_fast::one_hot_conv1d::baseline {
constexpr int kVectorBytes = 16;
#include "one_hot_conv1d/kernels.inl"
}  // namespace stib_fast::one_hot_conv1d::baseline

namespace stib_fast::one_hot_conv1d {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename S>
const Kernels<S>& kernels() {
  static const Kernels<S>& chosen = []() -> const Kernels<S>& {
    switch (usable_instruction_set()) {
#if defined(__x86_64__)
      case InstructionSet::avx512:
        return avx512::kKernels<S>;
      case InstructionSet::avx2:
        return avx2::kKernels<S>;
#endif
      default:
        return baseline::kKernels<S>;
    }
  }();
  return chosen;
}

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Below this many tap additions a second thread costs more than it brings.
constexpr int64_t kSerialAdditions = 1 << 17;

// ---- arguments ---------------------------------------------------------------------------------
// The Python layer checks what users pass; these checks keep a direct call of the op in bounds.

Geometry geometry_of(const Tensor& ids, int64_t classes, int64_t taps, int64_t stride,
                     int64_t padding, int64_t dilation) {
  STD_TORCH_CHECK(ids.dim() == 2, "one_hot_conv1d: ids must be 2-D");
  // The bounds keep the products below from overflowing.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(classes > 0 && classes < most && taps > 0 && taps < most && stride > 0 &&
                      stride < most && padding >= 0 && padding < most && dilation > 0 &&
                      dilation < most,
                  "one_hot_conv1d: num_classes, kernel_size, stride and dilation must be positive "
                  "32-bit integers, padding not negative");
  const int64_t span = (taps - 1) * dilation + 1, length = ids.size(1);
  STD_TORCH_CHECK(length + 2 * padding >= span,
                  "one_hot_conv1d: the kernel does not fit into the padded string");
  return {
      classes, taps, stride, padding, dilation, length, (length + 2 * padding - span) / stride + 1};
}

// The elements of one block's table.
int64_t table_size(const Geometry& geometry, int64_t lanes) {
  // The rows begin at 32-bit places, and the factors are below 2^31 and 2^4.
  const int64_t row = geometry.taps * lanes;
  STD_TORCH_CHECK(geometry.classes < std::numeric_limits<int32_t>::max() / row,
                  "one_hot_conv1d: num_classes times kernel_size is too large");
  return (geometry.classes + 1) * row;
}

// Where every string's positions begin in a table; refuses ids out of range.
class Strings {
 public:
  Strings(const Tensor& ids, const Geometry& geometry, std::optional<int64_t> padding_idx,
          int64_t lanes) {
    // A string shorter than a tile is read as if it were as long.
    const int64_t reach =
        (lanes - 1) * geometry.stride + (geometry.taps - 1) * geometry.dilation + 1;
    width_ = std::max(geometry.length + 2 * geometry.padding, reach);
    TokenIds from(ids, geometry.classes, padding_idx);
    const int64_t rows = from.rows();
    starts_.reset(new int32_t[size_t(rows * width_)]);
    runs_.reset(new Run[size_t(rows)]);
    const auto row_size = int32_t(geometry.taps * lanes);
    torch::stable::parallel_for(0, rows, (1 << 16) / width_ + 1, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        int32_t* starts = starts_.get() + row * width_;
        std::fill_n(starts, width_, int32_t(geometry.classes) * row_size);
        from.read(row, 0, geometry.length, row_size, starts + geometry.padding);
        runs_[row] = run_of(geometry, starts);
      }
    });
    from.refuse_outside();
  }

  String operator[](int64_t row) const {
    return {starts_.get() + row * width_, runs_[row].begin, runs_[row].end};
  }

 private:
  struct Run {
    int64_t begin, end;
  };

  // The outputs that see nothing but the repeated class at the end of a string.
  static Run run_of(const Geometry& geometry, const int32_t* starts) {
    const int64_t end = geometry.padding + geometry.length;
    int64_t begin = std::max(geometry.padding, end - 1);
    while (begin > geometry.padding && starts[begin - 1] == starts[end - 1]) --begin;
    const int64_t last = end - 1 - (geometry.taps - 1) * geometry.dilation;
    return {ceil_divide(begin, geometry.stride), last < 0 ? 0 : last / geometry.stride + 1};
  }

  int64_t width_;
  std::unique_ptr<int32_t[]> starts_;
  std::unique_ptr<Run[]> runs_;
};

template <typename S>
S* data(const Tensor& x) {
  return static_cast<S*>(x.data_ptr());
}

bool is_wide(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3, "one_hot_conv1d: a 3-D CPU tensor is needed");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "one_hot_conv1d: weight and grad must be float32 or float64");
  return x.scalar_type() == ScalarType::Double;
}

// ---- forward -----------------------------------------------------------------------------------

// The tables of all blocks, [blocks][classes + 1][taps][lanes], then the biases, [blocks][lanes].
template <typename S>
const S* pack(const Tensor& weight, const std::optional<Tensor>& bias, const Geometry& geometry,
              int64_t lanes) {
  const int64_t filters = weight.size(0), blocks = ceil_divide(filters, lanes);
  const int64_t size = table_size(geometry, lanes);
  struct Tables;
  const size_t bytes = sizeof(S) * size_t(blocks * (size + lanes));
  S* tables = static_cast<S*>(scratch<Tables>(bytes));
  std::memset(tables, 0, bytes);
  const S* from = data<S>(weight);
  const int64_t steps[] = {weight.stride(0), weight.stride(1), weight.stride(2)};
  for (int64_t f = 0; f < filters; ++f) {
    S* to = tables + f / lanes * size + f % lanes;
    for (int64_t v = 0; v < geometry.classes; ++v)
      for (int64_t k = 0; k < geometry.taps; ++k, to += lanes)
        *to = from[f * steps[0] + v * steps[1] + k * steps[2]];
  }
  for (int64_t f = 0; f < filters && bias; ++f)
    tables[blocks * size + f] = data<S>(*bias)[f * bias->stride(0)];
  return tables;
}

template <typename S>
void forward(const Tensor& ids, const Tensor& weight, const std::optional<Tensor>& bias,
             const Geometry& geometry, std::optional<int64_t> padding_idx, const Tensor& out) {
  const Kernels<S>& kernel = kernels<S>();
  const int64_t lanes = kernel.lanes, filters = weight.size(0);
  const int64_t blocks = ceil_divide(filters, lanes), size = table_size(geometry, lanes);
  const S* tables = pack<S>(weight, bias, geometry, lanes);
  const Strings strings(ids, geometry, padding_idx, lanes);
  S* to = data<S>(out);
  const int64_t additions = geometry.outputs * geometry.taps * blocks * lanes;
  torch::stable::parallel_for(
      0, ids.size(0), kSerialAdditions / additions + 1, [&](int64_t first, int64_t last) {
        // A few strings at a time, so that a block's table stays in the cache from one to the next.
        constexpr int64_t group = 16;
        for (int64_t begin = first; begin < last; begin += group)
          for (int64_t block = 0; block < blocks; ++block)
            for (int64_t row = begin; row < std::min(begin + group, last); ++row)
              kernel.forward(geometry, strings[row], tables + block * size,
                             tables + blocks * size + block * lanes,
                             std::min(lanes, filters - block * lanes),
                             to + (row * filters + block * lanes) * geometry.outputs);
      });
}

Tensor one_hot_conv1d(Tensor ids, Tensor weight, std::optional<Tensor> bias, int64_t stride,
                      int64_t padding, int64_t dilation, std::optional<int64_t> padding_idx) {
  const bool wide = is_wide(weight);
  STD_TORCH_CHECK(weight.size(0) > 0, "one_hot_conv1d: weight must have a filter");
  if (bias)
    STD_TORCH_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                        bias->scalar_type() == weight.scalar_type(),
                    "one_hot_conv1d: bias must be one number for each filter of weight");
  const Geometry geometry =
      geometry_of(ids, weight.size(1), weight.size(2), stride, padding, dilation);
  Tensor out = torch::stable::new_empty(
      weight, std::vector<int64_t>{ids.size(0), weight.size(0), geometry.outputs});
  use_huge_pages(out.data_ptr(), out.numel() * int64_t(out.element_size()));
  if (wide)
    forward<double>(ids, weight, bias, geometry, padding_idx, out);
  else
    forward<float>(ids, weight, bias, geometry, padding_idx, out);
  return out;
}

// ---- backward ----------------------------------------------------------------------------------

// A fixed cut of the work, whatever the number of threads.
struct Cut {
  int64_t strings_per_flush;
  int64_t strings_per_chunk;
  int64_t chunks;
};

Cut cut_of(const Geometry& geometry, int64_t strings, int64_t blocks) {
  // Sums of the working precision stay this short; no shorter than a table is tall, whose flush
  // would then cost more than the sums.
  const int64_t outputs = std::max<int64_t>(1 << 12, geometry.classes);
  const int64_t per_flush = std::max<int64_t>(1, outputs / geometry.outputs);
  // Enough tasks for many threads; few enough that their tables stay small beside the gradient.
  const int64_t chunks = std::max<int64_t>(1, 32 / blocks);
  const int64_t per_chunk =
      std::max<int64_t>(1, ceil_divide(ceil_divide(strings, chunks), 2 * per_flush)) * 2 *
      per_flush;
  return {per_flush, per_chunk, std::max<int64_t>(1, ceil_divide(strings, per_chunk))};
}

template <typename S>
void backward(const Tensor& ids, const Tensor& grad, const Geometry& geometry,
              std::optional<int64_t> padding_idx, const Tensor& weight, const Tensor& bias) {
  const Kernels<S>& kernel = kernels<S>();
  const int64_t lanes = kernel.lanes, filters = grad.size(1), strings_count = ids.size(0);
  const int64_t blocks = ceil_divide(filters, lanes), size = table_size(geometry, lanes);
  const Strings strings(ids, geometry, padding_idx, lanes);
  const Cut cut = cut_of(geometry, strings_count, blocks);
  const S* from = data<S>(grad);
  const int64_t string_stride = grad.stride(0), filter_stride = grad.stride(1);
  struct Table;
  // [chunks][blocks][classes + 1][taps][lanes]
  const std::unique_ptr<double[]> totals(new double[size_t(cut.chunks * blocks * size)]);
  const int64_t additions = strings_count * geometry.outputs * geometry.taps * lanes * blocks;
  const int64_t tasks = cut.chunks * blocks;
  torch::stable::parallel_for(
      0, tasks, additions < kSerialAdditions ? tasks : 1, [&](int64_t first, int64_t last) {
        S* table = static_cast<S*>(scratch<Table>(sizeof(S) * size_t(size)));
        std::memset(table, 0, sizeof(S) * size_t(size));
        for (int64_t task = first; task < last; ++task) {
          const int64_t block = task % blocks, begin = task / blocks * cut.strings_per_chunk;
          const int64_t end = std::min(begin + cut.strings_per_chunk, strings_count);
          double* total = totals.get() + task * size;
          std::memset(total, 0, sizeof(double) * size_t(size));
          for (int64_t row = begin; row < end; ++row) {
            kernel.backward(geometry, strings[row],
                            from + row * string_stride + block * lanes * filter_stride,
                            filter_stride, std::min(lanes, filters - block * lanes), table);
            if ((row + 1 - begin) % cut.strings_per_flush == 0 || row + 1 == end)
              kernel.flush(table, size, total);
          }
        }
      });
  for (int64_t chunk = 1; chunk < cut.chunks; ++chunk)
    for (int64_t i = 0; i < blocks * size; ++i) totals[i] += totals[chunk * blocks * size + i];
  const int64_t taps = geometry.taps, classes = geometry.classes;
  for (int64_t f = 0; f < filters; ++f) {
    const double* total = totals.get() + f / lanes * size + f % lanes;
    S* to = data<S>(weight) + f * classes * taps;
    for (int64_t i = 0; i < classes * taps; ++i) to[i] = S(total[i * lanes]);
    // Every output adds its gradient to one row of each tap.
    double sum = 0;
    for (int64_t v = 0; v <= classes; ++v) sum += total[v * taps * lanes];
    data<S>(bias)[f] = S(sum);
  }
}

std::tuple<Tensor, Tensor> one_hot_conv1d_backward(Tensor ids, Tensor grad, int64_t num_classes,
                                                   int64_t kernel_size, int64_t stride,
                                                   int64_t padding, int64_t dilation,
                                                   std::optional<int64_t> padding_idx) {
  const bool wide = is_wide(grad);
  STD_TORCH_CHECK(grad.size(1) > 0, "one_hot_conv1d: grad must have a filter");
  const Geometry geometry = geometry_of(ids, num_classes, kernel_size, stride, padding, dilation);
  STD_TORCH_CHECK(grad.size(0) == ids.size(0) && grad.size(2) == geometry.outputs,
                  "one_hot_conv1d: the shapes of grad and ids do not fit");
  if (grad.stride(2) != 1) grad = torch::stable::contiguous(grad);
  Tensor weight =
      torch::stable::new_empty(grad, std::vector<int64_t>{grad.size(1), num_classes, kernel_size});
  Tensor bias = torch::stable::new_empty(grad, std::vector<int64_t>{grad.size(1)});
  if (wide)
    backward<double>(ids, grad, geometry, padding_idx, weight, bias);
  else
    backward<float>(ids, grad, geometry, padding_idx, weight, bias);
  return {weight, bias};
}

}  // namespace
}  // namespace stib_fast::one_hot_conv1d

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CPU, m) {
  namespace op = stib_fast::one_hot_conv1d;
  m.impl("one_hot_conv1d", TORCH_BOX(&op::one_hot_conv1d));
  m.impl("one_hot_conv1d_backward", TORCH_BOX(&op::one_hot_conv1d_backward));
}
