// Types that the CPU kernels of knn_mi share with the code that calls them.
#pragma once

#include <cstdint>

namespace stib_fast::knn_mi {

// Points lie in blocks, blocks in leaves and leaves in groups, kBlock in each. Points of a block,
// and boxes of a leaf or group, are stored column by column, kBlock numbers of each.
constexpr int64_t kBlock = 16;
constexpr int64_t kLeaf = kBlock * kBlock;
constexpr int64_t kGroup = kLeaf * kBlock;

// Boxes around the blocks of a leaf or the leaves of a group.
template <typename S>
struct Boxes {
  const S* low;  // [columns][kBlock]; NaN, near to nothing, where there is none
  const S* high;
  uint32_t full;  // a bit for each that has all its points
};

template <typename S>
struct Leaf {
  const S* points;  // [blocks][columns][kBlock]; NaN where there is no point
  Boxes<S> blocks;
};

struct Reach {
  uint32_t near;    // a bit for each box that may hold a point within the radius
  uint32_t inside;  // and for each full one that holds no other
};

// The distances of the points nearest to a query found so far, ascending, infinity at first.
template <typename S>
struct Nearest {
  S* distance;    // [count]; distance[-1] is 0
  int64_t count;  // a multiple of kBlock
  int64_t last;   // of those that are wanted

  S furthest() const { return distance[last]; }
};

// The kernels of one instruction set, in the maximum norm, for a query [columns]. Within a radius
// is nearer than the radius or, where `closed`, as near.
template <typename S>
struct Kernels {
  // For all queries in the box from `low` to `high` [columns].
  Reach (*reach)(const Boxes<S>& boxes, int64_t columns, const S* low, const S* high, S radius,
                 bool closed);
  // Offers the points of the `wanted` blocks (a bit each) of a leaf.
  void (*nearest)(const Leaf<S>& leaf, uint32_t wanted, int64_t columns, const S* query,
                  const Nearest<S>& nearest);
  // Counts the points of a leaf within the radius.
  int64_t (*count)(const Leaf<S>& leaf, int64_t columns, const S* query, S radius, bool closed);
  // Raises x and y to the distances in the first columns, and in the others, of the points of a
  // leaf within the closed radius.
  void (*widen)(const Leaf<S>& leaf, int64_t columns, int64_t x_columns, const S* query, S radius,
                S& x, S& y);
};

}  // namespace stib_fast::knn_mi
