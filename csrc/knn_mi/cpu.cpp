// CPU kernels of knn_mi, registered under the schemas of stib_fast/ops/knn_mi.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "instruction_sets.h"
#include "knn_mi/kernels.h"
#include "knn_mi/leaves.h"

#if defined(__x86_64__)
#include <immintrin.h>
STIB_BEGIN_TARGET(STIB_AVX2)
namespace stib_fast::knn_mi::avx2 {
#define STIB_VECTOR_BITS 256
#include "knn_mi/kernels.inl"
#undef STIB_VECTOR_BITS
}  // namespace stib_fast::knn_mi::avx2
STIB_END_TARGET
STIB_BEGIN_TARGET(STIB_AVX512)
namespace stib_fast::knn_mi::avx512 {
#define STIB_VECTOR_BITS 512
#include "knn_mi/kernels.inl"
#undef STIB_VECTOR_BITS
}  // namespace stib_fast::knn_mi::avx512
STIB_END_TARGET
#endif
namespace stib_fast::knn_mi::baseline {
#define STIB_VECTOR_BITS 128
#include "knn_mi/kernels.inl"
#undef STIB_VECTOR_BITS
}  // namespace stib_fast::knn_mi::baseline

namespace stib_fast::knn_mi {
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

// Whether the points are float64; they must be contiguous [n, columns].
bool is_wide(const Tensor& points) {
  STD_TORCH_CHECK(points.is_cpu() && points.dim() == 2 && points.is_contiguous() &&
                      points.size(0) > 0 && points.size(1) > 0,
                  "knn_mi: points must be a contiguous CPU tensor [n, columns]");
  STD_TORCH_CHECK(
      points.scalar_type() == ScalarType::Float || points.scalar_type() == ScalarType::Double,
      "knn_mi: points must be float32 or float64");
  return points.scalar_type() == ScalarType::Double;
}

void check_range(const Tensor& points, int64_t begin, int64_t end) {
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= points.size(0),
                  "knn_mi: begin and end must be rows");
}

template <typename S>
S* data(const Tensor& x) {
  return static_cast<S*>(x.data_ptr());
}

// work(first, last) for runs of the rows [begin, end) that lie in one leaf, on all threads.
template <class Work>
void for_each_run(int64_t begin, int64_t end, const Work& work) {
  if (begin == end) return;
  torch::stable::parallel_for(
      begin / kLeaf, (end + kLeaf - 1) / kLeaf, 1, [&](int64_t first, int64_t last) {
        for (int64_t leaf = first; leaf < last; ++leaf)
          work(std::max(begin, leaf * kLeaf), std::min(end, (leaf + 1) * kLeaf));
      });
}

// The leaves that the rows [begin, end) of one leaf have to look into.
template <typename S>
class Neighbourhood {
 public:
  Neighbourhood(const Leaves<S>& leaves, int64_t begin, int64_t end, bool closed)
      : leaves_(leaves),
        begin_(begin),
        end_(end),
        closed_(closed),
        low_(leaves.point(begin), leaves.point(begin + 1)),
        high_(low_) {
    for (int64_t row = begin; row < end; ++row)
      for (size_t c = 0; c < low_.size(); ++c) {
        low_[c] = std::min(low_[c], leaves.point(row)[c]);
        high_[c] = std::max(high_[c], leaves.point(row)[c]);
      }
  }

  // visit(leaf, row) for every leaf, one after the other, and the rows to whose choice
  // choose(row, group, reach), a bit for each leaf of the group, it belongs.
  template <class Radius, class Choose, class Visit>
  void for_each(const Radius& radius, const Choose& choose, const Visit& visit) const {
    const int64_t own = begin_ / kGroup;
    for (int64_t step = 0; step < leaves_.groups(); ++step) {
      const int64_t group = step == 0 ? own : step <= own ? step - 1 : step;
      S widest = 0;
      for (int64_t row = begin_; row < end_; ++row) widest = std::max(widest, radius(row));
      if (reach(group, low_.data(), high_.data(), widest).near == 0) continue;
      uint32_t chosen[kLeaf], any = 0;
      for (int64_t row = begin_; row < end_; ++row) {
        const S* point = leaves_.point(row);
        chosen[row - begin_] = choose(row, group, reach(group, point, point, radius(row)));
        any |= chosen[row - begin_];
      }
      for (; any != 0; any &= any - 1) {
        const int i = __builtin_ctz(any);
        const Leaf<S> leaf = leaves_[group * kBlock + i];
        for (int64_t row = begin_; row < end_; ++row)
          if (chosen[row - begin_] >> i & 1) visit(leaf, row);
      }
    }
  }

 private:
  Reach reach(int64_t group, const S* low, const S* high, S radius) const {
    return kernels<S>().reach(leaves_.group(group), leaves_.columns(), low, high, radius, closed_);
  }

  const Leaves<S>& leaves_;
  int64_t begin_, end_;
  bool closed_;
  std::vector<S> low_, high_;
};

// ---- order -------------------------------------------------------------------------------------

Tensor knn_order(Tensor points) {
  const bool wide = is_wide(points);
  Tensor order = torch::stable::new_empty(points, {points.size(0)}, ScalarType::Long);
  int64_t* rows = data<int64_t>(order);
  std::iota(rows, rows + points.size(0), int64_t{0});
  if (wide)
    order_rows(data<double>(points), points.size(1), rows, rows + points.size(0));
  else
    order_rows(data<float>(points), points.size(1), rows, rows + points.size(0));
  return order;
}

// ---- the k-th neighbour ------------------------------------------------------------------------

// The distances of the k nearest neighbours of the rows [begin, end) of one leaf.
template <typename S>
class Search {
 public:
  Search(const Leaves<S>& leaves, const Neighbourhood<S>& neighbourhood, int64_t k, int64_t begin,
         int64_t end)
      : begin_(begin),
        k_(k),
        count_((k + kBlock) / kBlock * kBlock),
        distance_(size_t((end - begin) * (count_ + 1)), std::numeric_limits<S>::infinity()) {
    const Kernels<S>& chosen = kernels<S>();
    const int64_t own = begin / kLeaf, columns = leaves.columns();
    for (int64_t row = begin; row < end; ++row) {
      of(row).distance[-1] = 0;
      // What is nearest prunes the rest.
      const uint32_t block = uint32_t{1} << (row % kLeaf / kBlock);
      for (uint32_t wanted : {block, ~block})
        chosen.nearest(leaves[own], wanted, columns, leaves.point(row), of(row));
    }
    neighbourhood.for_each(
        [&](int64_t row) { return radius(row); },
        [&](int64_t, int64_t group, Reach reach) {
          return group == own / kBlock ? reach.near & ~(uint32_t{1} << own % kBlock) : reach.near;
        },
        [&](const Leaf<S>& leaf, int64_t row) {
          chosen.nearest(leaf, ~uint32_t{0}, columns, leaves.point(row), of(row));
        });
  }

  S radius(int64_t row) const { return distance_[size_t((row - begin_) * (count_ + 1) + 1 + k_)]; }

 private:
  // The row itself is the nearest of k + 1.
  Nearest<S> of(int64_t row) {
    return {distance_.data() + (row - begin_) * (count_ + 1) + 1, count_, k_};
  }

  int64_t begin_, k_, count_;
  std::vector<S> distance_;
};

template <typename S>
void radii(const Tensor& points, int64_t x_columns, int64_t k, int64_t variant, int64_t begin,
           int64_t end, const Tensor& x_radius, const Tensor& y_radius) {
  const int64_t columns = points.size(1);
  const Leaves<S> leaves(data<S>(points), points.size(0), columns);
  S *x = data<S>(x_radius), *y = data<S>(y_radius);
  for_each_run(begin, end, [&](int64_t first, int64_t last) {
    const Neighbourhood<S> neighbourhood(leaves, first, last, true);
    const Search<S> search(leaves, neighbourhood, k, first, last);
    for (int64_t row = first; row < last; ++row)
      x[row - begin] = y[row - begin] = variant == 1 ? search.radius(row) : 0;
    if (variant == 1) return;
    neighbourhood.for_each([&](int64_t row) { return search.radius(row); },
                           [](int64_t, int64_t, Reach reach) { return reach.near; },
                           [&](const Leaf<S>& leaf, int64_t row) {
                             kernels<S>().widen(leaf, columns, x_columns, leaves.point(row),
                                                search.radius(row), x[row - begin], y[row - begin]);
                           });
  });
}

std::tuple<Tensor, Tensor> knn_radii(Tensor points, int64_t x_columns, int64_t k, int64_t variant,
                                     int64_t begin, int64_t end) {
  const bool wide = is_wide(points);
  check_range(points, begin, end);
  STD_TORCH_CHECK(k >= 1 && k < points.size(0), "knn_mi: k must be from 1 to n - 1");
  STD_TORCH_CHECK(variant == 1 || (variant == 2 && 0 < x_columns && x_columns < points.size(1)),
                  "knn_mi: variant must be 1, or 2 with columns on both sides");
  Tensor x_radius = torch::stable::new_empty(points, {end - begin});
  Tensor y_radius = torch::stable::new_empty(points, {end - begin});
  if (wide)
    radii<double>(points, x_columns, k, variant, begin, end, x_radius, y_radius);
  else
    radii<float>(points, x_columns, k, variant, begin, end, x_radius, y_radius);
  return {x_radius, y_radius};
}

// ---- counts ------------------------------------------------------------------------------------

template <typename S>
void counts(const Tensor& points, const Tensor& radius, bool closed, int64_t begin, int64_t end,
            const Tensor& found) {
  const int64_t columns = points.size(1);
  const Leaves<S> leaves(data<S>(points), points.size(0), columns);
  int64_t* to = data<int64_t>(found);
  const S* radii = data<S>(radius);
  for_each_run(begin, end, [&](int64_t first, int64_t last) {
    std::fill(to + (first - begin), to + (last - begin), 0);
    Neighbourhood<S>(leaves, first, last, closed)
        .for_each([&](int64_t row) { return radii[row - begin]; },
                  [&](int64_t row, int64_t, Reach reach) {
                    to[row - begin] += kLeaf * __builtin_popcount(reach.inside);
                    return reach.near & ~reach.inside;
                  },
                  [&](const Leaf<S>& leaf, int64_t row) {
                    to[row - begin] += kernels<S>().count(leaf, columns, leaves.point(row),
                                                          radii[row - begin], closed);
                  });
  });
}

Tensor knn_counts(Tensor points, Tensor radius, bool closed, int64_t begin, int64_t end) {
  const bool wide = is_wide(points);
  check_range(points, begin, end);
  STD_TORCH_CHECK(radius.is_cpu() && radius.is_contiguous() && radius.dim() == 1 &&
                      radius.size(0) == end - begin && radius.scalar_type() == points.scalar_type(),
                  "knn_mi: radius must have an entry for each row from begin to end");
  Tensor found = torch::stable::new_empty(points, {end - begin}, ScalarType::Long);
  if (wide)
    counts<double>(points, radius, closed, begin, end, found);
  else
    counts<float>(points, radius, closed, begin, end, found);
  return found;
}

}  // namespace
}  // namespace stib_fast::knn_mi

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CPU, m) {
  namespace op = stib_fast::knn_mi;
  m.impl("knn_order", TORCH_BOX(&op::knn_order));
  m.impl("knn_radii", TORCH_BOX(&op::knn_radii));
  m.impl("knn_counts", TORCH_BOX(&op::knn_counts));
}
