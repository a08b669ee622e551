// CPU kernels of the gaussian_mi family, registered under the schemas of
// stib_fast/ops/gaussian_mi.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "finalize.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "memory.h"

#if defined(__x86_64__)
STIB_BEGIN_TARGET(STIB_AVX2)
namespace stib_fast::gaussian_mi::avx2 {
constexpr int kVectorBytes = 32, kBlockRows = 3, kBlockColumns = 3, kApplyColumns = 4;
#include "kernels.inl"
}  // namespace stib_fast::gaussian_mi::avx2
STIB_END_TARGET
STIB_BEGIN_TARGET(STIB_AVX512)
namespace stib_fast::gaussian_mi::avx512 {
constexpr int kVectorBytes = 64, kBlockRows = 4, kBlockColumns = 4, kApplyColumns = 8;
#include "kernels.inl"
}  // namespace stib_fast::gaussian_mi::avx512
STIB_END_TARGET
#endif
// SSE2 on x86-64, NEON on aarch64.
namespace stib_fast::gaussian_mi::baseline {
constexpr int kVectorBytes = 16, kBlockRows = 3, kBlockColumns = 3, kApplyColumns = 4;
#include "kernels.inl"
}  // namespace stib_fast::gaussian_mi::baseline

namespace stib_fast::gaussian_mi {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    switch (usable_instruction_set()) {
#if defined(__x86_64__)
      case InstructionSet::avx512:
        return avx512::kKernels;
      case InstructionSet::avx2:
        return avx2::kKernels;
#endif
      default:
        return baseline::kKernels;
    }
  }();
  return chosen;
}

// Room for either kernel: two float64 tiles and a vector of columns, the matrix, vectors of length
// d.
void* kernel_scratch(int64_t d) {
  struct Room;
  return scratch<Room>(sizeof(double) *
                       (size_t(2 * d + 18) * kTileRows + size_t(d) * size_t(d) + 16 * size_t(d)));
}

// ---- arguments ---------------------------------------------------------------------------------
// The Python layer checks what users pass; these checks keep a direct call of the op in bounds.

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::Double:
      return Element::float64;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      STD_TORCH_CHECK(false, "gaussian_mi: parts must be float32, float64, bfloat16 or float16");
  }
}

double unit_roundoff(Element element) {
  switch (element) {
    case Element::float32:
      return 0x1p-24;
    case Element::float64:
      return 0x1p-53;
    case Element::bfloat16:
      return 0x1p-8;
    case Element::float16:
      return 0x1p-11;
  }
  return 0;
}

const double* doubles(const Tensor& x, int64_t size, const char* name) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Double && x.is_contiguous() && x.numel() == size && x.is_cpu(),
      "gaussian_mi: ", name, " must be a contiguous float64 CPU tensor of ", size, " elements");
  return static_cast<const double*>(x.data_ptr());
}

Part part_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.size(1)}; }

// The sample and the memory its views point into.
class Parts {
 public:
  Parts(const Tensor* tensors, size_t size, const std::optional<Tensor>& weight) {
    STD_TORCH_CHECK(size > 0, "gaussian_mi: at least one part is needed");
    parts_.reserve(size);
    sample_.element = element_of(tensors[0]);
    sample_.d = 0;
    for (size_t i = 0; i < size; ++i) {
      const Tensor& x = tensors[i];
      STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2, "gaussian_mi: parts must be 2-D CPU tensors");
      STD_TORCH_CHECK(x.size(0) == tensors[0].size(0), "gaussian_mi: parts differ in rows");
      STD_TORCH_CHECK(element_of(x) == sample_.element, "gaussian_mi: parts differ in dtype");
      parts_.push_back(part_of(x));
      sample_.d += x.size(1);
    }
    sample_.parts = parts_.data();
    sample_.part_count = int64_t(size);
    sample_.rows = tensors[0].size(0);
    sample_.weight = weight ? doubles(*weight, sample_.rows, "weight") : nullptr;
  }
  const Sample& sample() const { return sample_; }

 private:
  std::vector<Part> parts_;
  Sample sample_;
};

Tensor new_doubles(const Tensor& like, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(like, std::vector<int64_t>(size), ScalarType::Double);
}

double* data(const Tensor& x) { return static_cast<double*>(x.data_ptr()); }

// ---- moments -----------------------------------------------------------------------------------

// A fixed cut of the rows, whatever the number of threads: at most 64 chunks of whole tiles.
int64_t chunk_rows(int64_t rows) {
  constexpr int64_t chunks = 64;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return std::max<int64_t>(1, (tiles + chunks - 1) / chunks) * kTileRows;
}

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kSerialElements = 1 << 15;

template <class Function>
void for_chunks(const Sample& sample, int64_t chunks, const Function& function) {
  if (chunks == 1 || sample.rows * sample.d < kSerialElements)
    function(0, chunks);
  else
    torch::stable::parallel_for(0, chunks, 1, function);
}

// Chan, Golub & LeVeque 1979: moments of the union of two sets of rows, into the first.
void merge(double* count, double* mean, double* scatter, double other_count,
           const double* other_mean, const double* other_scatter, int64_t d) {
  const double total = *count + other_count;
  const double fraction = total > 0 ? other_count / total : 0;
  for (int64_t i = 0; i < d; ++i) {
    const double step = *count * fraction * (other_mean[i] - mean[i]);
    for (int64_t j = 0; j < d; ++j)
      scatter[i * d + j] += other_scatter[i * d + j] + step * (other_mean[j] - mean[j]);
  }
  for (int64_t i = 0; i < d; ++i) mean[i] += fraction * (other_mean[i] - mean[i]);
  *count = total;
}

// mean [d] and scatter [d x d] of the whole sample; returns the count.
double sample_moments(const Sample& sample, bool fast, double* mean, double* scatter) {
  const int64_t d = sample.d;
  const int64_t step = chunk_rows(sample.rows);
  const int64_t chunks = std::max<int64_t>(1, (sample.rows + step - 1) / step);
  if (chunks == 1)
    return kernels().moments(sample, 0, sample.rows, fast, mean, scatter, kernel_scratch(d));

  const int64_t stride = 1 + d + d * d;
  const std::unique_ptr<double[]> partial(new double[size_t(chunks * stride)]);
  for_chunks(sample, chunks, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      double* out = partial.get() + chunk * stride;
      out[0] = kernels().moments(sample, chunk * step, std::min(sample.rows, (chunk + 1) * step),
                                 fast, out + 1, out + 1 + d, kernel_scratch(d));
    }
  });
  for (int64_t distance = 1; distance < chunks; distance *= 2)
    for (int64_t chunk = 0; chunk + distance < chunks; chunk += 2 * distance) {
      double* to = partial.get() + chunk * stride;
      const double* from = to + distance * stride;
      merge(to, to + 1, to + 1 + d, from[0], from + 1, from + 1 + d, d);
    }
  std::copy_n(partial.get() + 1, d, mean);
  std::copy_n(partial.get() + 1 + d, d * d, scatter);
  return partial[0];
}

std::vector<Tensor> apply_rows(const Tensor* tensors, size_t size, const Sample& sample,
                               const Affine& affine) {
  std::vector<Tensor> result;
  std::vector<Part> out;
  result.reserve(size);
  out.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    result.push_back(torch::stable::new_empty(
        tensors[i], std::vector<int64_t>{sample.rows, tensors[i].size(1)}));
    out.push_back(part_of(result.back()));
    use_huge_pages(out.back().data, result.back().numel() * int64_t(result.back().element_size()));
  }
  const int64_t step = chunk_rows(sample.rows);
  for_chunks(sample, (sample.rows + step - 1) / step, [&](int64_t first, int64_t last) {
    kernels().apply(sample, affine, out.data(), first * step, std::min(sample.rows, last * step),
                    kernel_scratch(sample.d));
  });
  return result;
}

// ---- ops ---------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> moments(std::vector<Tensor> parts, std::optional<Tensor> weight,
                                           bool fast) {
  const Parts views(parts.data(), parts.size(), weight);
  const int64_t d = views.sample().d;
  Tensor count = new_doubles(parts[0], {}), mean = new_doubles(parts[0], {d}),
         scatter = new_doubles(parts[0], {d, d});
  *data(count) = sample_moments(views.sample(), fast, data(mean), data(scatter));
  return {count, mean, scatter};
}

std::vector<Tensor> moments_apply(std::vector<Tensor> parts, std::optional<Tensor> weight,
                                  Tensor center, Tensor scale, Tensor matrix, Tensor shift) {
  const Parts views(parts.data(), parts.size(), weight);
  const int64_t d = views.sample().d;
  const Affine affine{doubles(center, d, "center"), doubles(scale, d, "scale"),
                      doubles(matrix, d * d, "matrix"), doubles(shift, d, "shift"), 1.0};
  return apply_rows(parts.data(), parts.size(), views.sample(), affine);
}

// `state` [d + 2, d] is what the backward needs: mean, scale, gradient (finalize.h).
std::tuple<Tensor, Tensor> gaussian_mi(Tensor z, Tensor y, std::optional<Tensor> weight, double eps,
                                       bool fast) {
  const Tensor tensors[] = {z, y};
  const Parts views(tensors, 2, weight);
  const Sample& sample = views.sample();
  const int64_t d = sample.d;
  const bool wide = sample.element == Element::float64;
  Tensor state = new_doubles(z, {d + 2, d});
  Tensor mi = torch::stable::new_empty(z, std::vector<int64_t>{},
                                       wide ? ScalarType::Double : ScalarType::Float);
  double* mean = data(state);
  double* scale = mean + d;
  double* gradient = scale + d;
  const std::unique_ptr<double[]> scatter(new double[size_t(d * d)]);
  const double count = sample_moments(sample, fast, mean, scatter.get());
  const double value = finalize(count, mean, scatter.get(), z.size(1), d, eps,
                                unit_roundoff(sample.element), scale, gradient);
  if (wide)
    *data(mi) = value;
  else
    *static_cast<float*>(mi.data_ptr()) = float(value);
  return {mi, state};
}

std::tuple<Tensor, Tensor> gaussian_mi_finalize(Tensor count, Tensor mean, Tensor scatter,
                                                int64_t n, double eps, double unit_roundoff) {
  const int64_t d = mean.numel();
  STD_TORCH_CHECK(n > 0 && n < d, "gaussian_mi: n must lie between 0 and d");
  Tensor mi = new_doubles(mean, {}), state = new_doubles(mean, {d + 2, d});
  double* scale = data(state) + d;
  std::copy_n(doubles(mean, d, "mean"), d, data(state));
  *data(mi) = finalize(*doubles(count, 1, "count"), data(mean), doubles(scatter, d * d, "scatter"),
                       n, d, eps, unit_roundoff, scale, scale + d);
  return {mi, state};
}

std::tuple<Tensor, Tensor> gaussian_mi_backward(Tensor grad, Tensor z, Tensor y,
                                                std::optional<Tensor> weight, Tensor state) {
  const Tensor tensors[] = {z, y};
  const Parts views(tensors, 2, weight);
  const int64_t d = views.sample().d;
  const double* mean = doubles(state, (d + 2) * d, "state");
  STD_TORCH_CHECK(grad.numel() == 1 && grad.is_cpu(), "gaussian_mi: grad must be one CPU number");
  const bool wide = grad.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || grad.scalar_type() == ScalarType::Float,
                  "gaussian_mi: grad must be float32 or float64");
  const double factor = wide ? *data(grad) : double(*static_cast<const float*>(grad.data_ptr()));
  std::vector<Tensor> result =
      apply_rows(tensors, 2, views.sample(), {mean, mean + d, mean + 2 * d, nullptr, factor});
  return {result[0], result[1]};
}

}  // namespace
}  // namespace stib_fast::gaussian_mi

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CPU, m) {
  namespace op = stib_fast::gaussian_mi;
  m.impl("moments", TORCH_BOX(&op::moments));
  m.impl("moments_apply", TORCH_BOX(&op::moments_apply));
  m.impl("gaussian_mi", TORCH_BOX(&op::gaussian_mi));
  m.impl("gaussian_mi_finalize", TORCH_BOX(&op::gaussian_mi_finalize));
  m.impl("gaussian_mi_backward", TORCH_BOX(&op::gaussian_mi_backward));
}
