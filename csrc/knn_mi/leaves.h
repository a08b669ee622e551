// Points in blocks, leaves and groups of neighbours: the order of a k-d tree, and the boxes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.h"

namespace stib_fast::knn_mi {

// Rows of points [n][columns] in the order of a k-d tree, cut across the widest column, ties by
// row, and at a multiple of the largest of kGroup, kLeaf and kBlock that leaves something on both
// sides.
template <typename S>
void order_rows(const S* points, int64_t columns, int64_t* begin, int64_t* end) {
  const int64_t count = end - begin;
  if (count <= kBlock) return;
  int64_t widest = 0;
  S most = -1;
  for (int64_t c = 0; c < columns; ++c) {
    S low = std::numeric_limits<S>::infinity(), high = -low;
    for (const int64_t* row = begin; row < end; ++row) {
      low = std::min(low, points[*row * columns + c]);
      high = std::max(high, points[*row * columns + c]);
    }
    if (high - low > most) most = high - low, widest = c;
  }
  const int64_t unit = count > kGroup ? kGroup : count > kLeaf ? kLeaf : kBlock;
  int64_t* middle = begin + (count / 2 + unit - 1) / unit * unit;
  std::nth_element(begin, middle, end, [&](int64_t a, int64_t b) {
    const S x = points[a * columns + widest], y = points[b * columns + widest];
    return x < y || (x == y && a < b);
  });
  order_rows(points, columns, begin, middle);
  order_rows(points, columns, middle, end);
}

// The boxes around runs of `size` points, kBlock of them together.
template <typename S>
class BoxTable {
 public:
  BoxTable(const S* points, int64_t n, int64_t columns, int64_t size)
      : n_(n), columns_(columns), size_(size) {
    const int64_t together = (n + size * kBlock - 1) / (size * kBlock);
    low_.assign(size_t(together * columns * kBlock), std::numeric_limits<S>::quiet_NaN());
    high_ = low_;
    for (int64_t row = 0; row < n; ++row) {
      const int64_t box = row / size;
      for (int64_t c = 0; c < columns; ++c) {
        const S x = points[row * columns + c];
        const auto at = size_t((box / kBlock * columns + c) * kBlock + box % kBlock);
        if (!(low_[at] <= x)) low_[at] = x;
        if (!(high_[at] >= x)) high_[at] = x;
      }
    }
  }

  // The boxes of the points [kBlock * size * index, kBlock * size * (index + 1)).
  Boxes<S> operator[](int64_t index) const {
    const int64_t at = index * columns_ * kBlock;
    const int64_t full = std::min(kBlock, n_ / size_ - index * kBlock);
    return {low_.data() + at, high_.data() + at, (uint32_t{1} << full) - 1};
  }

 private:
  int64_t n_, columns_, size_;
  std::vector<S> low_, high_;
};

template <typename S>
class Leaves {
 public:
  // `points` [n][columns] are in the order of order_rows, and outlive this.
  Leaves(const S* points, int64_t n, int64_t columns)
      : points_(points),
        n_(n),
        columns_(columns),
        blocks_(points, n, columns, kBlock),
        leaves_(points, n, columns, kLeaf) {
    packed_.assign(size_t((n + kBlock - 1) / kBlock * kBlock * columns),
                   std::numeric_limits<S>::quiet_NaN());
    for (int64_t row = 0; row < n; ++row)
      for (int64_t c = 0; c < columns; ++c)
        packed_[size_t((row / kBlock * columns + c) * kBlock + row % kBlock)] =
            points[row * columns + c];
  }

  int64_t groups() const { return (n_ + kGroup - 1) / kGroup; }
  int64_t columns() const { return columns_; }
  const S* point(int64_t row) const { return points_ + row * columns_; }
  Boxes<S> group(int64_t index) const { return leaves_[index]; }
  Leaf<S> operator[](int64_t index) const {
    return {packed_.data() + index * kLeaf * columns_, blocks_[index]};
  }

 private:
  const S* points_;
  int64_t n_, columns_;
  std::vector<S> packed_;
  BoxTable<S> blocks_, leaves_;
};

}  // namespace stib_fast::knn_mi
