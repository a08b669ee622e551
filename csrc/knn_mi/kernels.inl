// Distances in the maximum norm of a query to the points of a leaf, one in each vector lane.
// Included once for each instruction set, into a namespace of its own; STIB_VECTOR_BITS is its
// width.

// ---- vectors -----------------------------------------------------------------------------------
// Compilers write the maximum of vector extensions as a comparison and a blend, and have no way to
// a mask of bits, so the wide sets are written in intrinsics. They subtract by a multiply-add,
// which rounds the same: subtraction shares its units with the maximum on AMD's processors. The
// masked forms of maximum and minimum spare GCC 12 a false warning (its bug 105593).

template <typename S>
struct Vector;

#if STIB_VECTOR_BITS == 512
template <>
struct Vector<float> {
  __m512 v;
  static constexpr int lanes = 16;
  static Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vector all(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Vector difference(Vector a, Vector b) {
    return {_mm512_fmsub_ps(a.v, _mm512_set1_ps(1), b.v)};
  }
  static Vector larger(Vector a, Vector b) { return {_mm512_maskz_max_ps(0xffff, a.v, b.v)}; }
  static Vector smaller(Vector a, Vector b) { return {_mm512_maskz_min_ps(0xffff, a.v, b.v)}; }
  // max(|a|, |b|)
  static Vector larger_size(Vector a, Vector b) { return {_mm512_range_ps(a.v, b.v, 0b1011)}; }
  static uint32_t below(Vector a, Vector b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  static uint32_t at_most(Vector a, Vector b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
};
template <>
struct Vector<double> {
  __m512d v;
  static constexpr int lanes = 8;
  static Vector load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vector all(double x) { return {_mm512_set1_pd(x)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  static Vector difference(Vector a, Vector b) {
    return {_mm512_fmsub_pd(a.v, _mm512_set1_pd(1), b.v)};
  }
  static Vector larger(Vector a, Vector b) { return {_mm512_maskz_max_pd(0xff, a.v, b.v)}; }
  static Vector smaller(Vector a, Vector b) { return {_mm512_maskz_min_pd(0xff, a.v, b.v)}; }
  static Vector larger_size(Vector a, Vector b) { return {_mm512_range_pd(a.v, b.v, 0b1011)}; }
  static uint32_t below(Vector a, Vector b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
  static uint32_t at_most(Vector a, Vector b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ); }
};
#elif STIB_VECTOR_BITS == 256
template <>
struct Vector<float> {
  __m256 v;
  static constexpr int lanes = 8;
  static Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vector all(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  static Vector difference(Vector a, Vector b) {
    return {_mm256_fmsub_ps(a.v, _mm256_set1_ps(1), b.v)};
  }
  static Vector larger(Vector a, Vector b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vector smaller(Vector a, Vector b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vector larger_size(Vector a, Vector b) {
    return larger(a, {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), b.v)});
  }
  static uint32_t below(Vector a, Vector b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)));
  }
  static uint32_t at_most(Vector a, Vector b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)));
  }
};
template <>
struct Vector<double> {
  __m256d v;
  static constexpr int lanes = 4;
  static Vector load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vector all(double x) { return {_mm256_set1_pd(x)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  static Vector difference(Vector a, Vector b) {
    return {_mm256_fmsub_pd(a.v, _mm256_set1_pd(1), b.v)};
  }
  static Vector larger(Vector a, Vector b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Vector smaller(Vector a, Vector b) { return {_mm256_min_pd(a.v, b.v)}; }
  static Vector larger_size(Vector a, Vector b) {
    return larger(a, {_mm256_andnot_pd(_mm256_set1_pd(-0.0), b.v)});
  }
  static uint32_t below(Vector a, Vector b) {
    return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)));
  }
  static uint32_t at_most(Vector a, Vector b) {
    return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)));
  }
};
#else
template <typename S>
struct Vector {
  typedef S Lanes __attribute__((vector_size(16)));
  Lanes v;
  static constexpr int lanes = 16 / int(sizeof(S));
  static Vector load(const S* p) {
    Vector loaded;
    __builtin_memcpy(&loaded.v, p, sizeof loaded.v);
    return loaded;
  }
  static Vector all(S x) { return {x - Lanes{}}; }
  void store(S* p) const { __builtin_memcpy(p, &v, sizeof v); }
  static Vector difference(Vector a, Vector b) { return {a.v - b.v}; }
  static Vector larger(Vector a, Vector b) { return {a.v > b.v ? a.v : b.v}; }
  static Vector smaller(Vector a, Vector b) { return {a.v < b.v ? a.v : b.v}; }
  // Not -b: the size of 0 is to be 0, not -0.
  static Vector larger_size(Vector a, Vector b) { return larger(a, larger(b, {Lanes{} - b.v})); }
  static uint32_t below(Vector a, Vector b) { return bits(a.v < b.v); }
  static uint32_t at_most(Vector a, Vector b) { return bits(a.v <= b.v); }
  template <typename Mask>
  static uint32_t bits(Mask mask) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= uint32_t(mask[i] & 1) << i;
    return bits;
  }
};
#endif

// ---- kernels -----------------------------------------------------------------------------------

// kBlock numbers.
template <typename S>
struct Block {
  static constexpr int kVectors = int(kBlock) / Vector<S>::lanes;
  Vector<S> part[kVectors];
};

template <bool closed, typename S>
inline uint32_t bits_within(const Block<S>& far, S radius) {
  using V = Vector<S>;
  const V limit = V::all(radius);
  uint32_t bits = 0;
  for (int i = 0; i < Block<S>::kVectors; ++i)
    bits |= (closed ? V::at_most(far.part[i], limit) : V::below(far.part[i], limit))
            << (i * V::lanes);
  return bits;
}

template <typename S>
inline Vector<S> difference(const S* points, int64_t column, int part, const S* query) {
  using V = Vector<S>;
  return V::difference(V::load(points + column * kBlock + part * V::lanes), V::all(query[column]));
}

// Distances of the points of a block in the columns from `begin` to `end`, of which there is one.
template <typename S>
inline Block<S> distances(const S* points, int64_t begin, int64_t end, const S* query) {
  using V = Vector<S>;
  Block<S> far;
  for (int i = 0; i < Block<S>::kVectors; ++i) {
    const V first = difference(points, begin, i, query);
    far.part[i] = V::larger_size(first, first);
  }
#pragma GCC unroll 4
  for (int64_t c = begin + 1; c < end; ++c)
    for (int i = 0; i < Block<S>::kVectors; ++i)
      far.part[i] = V::larger_size(far.part[i], difference(points, c, i, query));
  return far;
}

// Bounds on the distances between the points of boxes and those between `low` and `high`. Rounding
// is monotone, so that they hold for computed distances, to the last bit.
template <typename S>
struct Bounds {
  Block<S> least;
  Block<S> most;
};
template <typename S>
inline Bounds<S> bounds(const Boxes<S>& boxes, int64_t columns, const S* low, const S* high) {
  using V = Vector<S>;
  Bounds<S> bounds;
  for (int i = 0; i < Block<S>::kVectors; ++i) {
    V least = V::all(0), most = V::all(0);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t at = c * kBlock + i * V::lanes;
      const V from = V::all(low[c]), to = V::all(high[c]);
      const V box_low = V::load(boxes.low + at), box_high = V::load(boxes.high + at);
      least =
          V::larger(V::larger(least, V::difference(box_low, to)), V::difference(from, box_high));
      most = V::larger(V::larger(most, V::difference(to, box_low)), V::difference(box_high, from));
    }
    bounds.least.part[i] = least;
    bounds.most.part[i] = most;
  }
  return bounds;
}

template <bool closed, typename S>
inline Reach reach_within(const Boxes<S>& boxes, int64_t columns, const S* low, const S* high,
                          S radius) {
  const Bounds<S> far = bounds(boxes, columns, low, high);
  return {bits_within<closed>(far.least, radius),
          bits_within<closed>(far.most, radius) & boxes.full};
}

template <typename S>
Reach reach(const Boxes<S>& boxes, int64_t columns, const S* low, const S* high, S radius,
            bool closed) {
  return closed ? reach_within<true>(boxes, columns, low, high, radius)
                : reach_within<false>(boxes, columns, low, high, radius);
}

// All larger distances move up by one: no branch depends on the place.
template <typename S>
inline void insert(const Nearest<S>& nearest, S distance) {
  using V = Vector<S>;
  const V one = V::all(distance);
  for (int64_t i = nearest.count - V::lanes; i >= 0; i -= V::lanes) {
    const V moved = V::larger(V::load(nearest.distance + i - 1), one);
    V::smaller(V::load(nearest.distance + i), moved).store(nearest.distance + i);
  }
}

template <typename S>
void nearest(const Leaf<S>& leaf, uint32_t wanted, int64_t columns, const S* query,
             const Nearest<S>& nearest) {
  const Block<S> least = bounds(leaf.blocks, columns, query, query).least;
  uint32_t blocks = wanted & bits_within<true>(least, nearest.furthest());
  while (blocks != 0) {
    const int b = __builtin_ctz(blocks);
    blocks &= blocks - 1;
    const Block<S> far = distances(leaf.points + b * columns * kBlock, 0, columns, query);
    uint32_t bits = bits_within<false>(far, nearest.furthest());
    if (bits == 0) continue;
    S found[kBlock];
    for (int i = 0; i < Block<S>::kVectors; ++i) far.part[i].store(found + i * Vector<S>::lanes);
    for (; bits != 0; bits &= bits - 1) insert(nearest, found[__builtin_ctz(bits)]);
    blocks &= bits_within<true>(least, nearest.furthest());
  }
}

template <bool closed, typename S>
inline int64_t count_within(const Leaf<S>& leaf, int64_t columns, const S* query, S radius) {
  const Reach reach = reach_within<closed>(leaf.blocks, columns, query, query, radius);
  int64_t found = kBlock * __builtin_popcount(reach.inside);
  for (uint32_t blocks = reach.near & ~reach.inside; blocks != 0; blocks &= blocks - 1) {
    const S* block = leaf.points + __builtin_ctz(blocks) * columns * kBlock;
    found += __builtin_popcount(bits_within<closed>(distances(block, 0, columns, query), radius));
  }
  return found;
}

template <typename S>
int64_t count(const Leaf<S>& leaf, int64_t columns, const S* query, S radius, bool closed) {
  return closed ? count_within<true>(leaf, columns, query, radius)
                : count_within<false>(leaf, columns, query, radius);
}

template <typename S>
void widen(const Leaf<S>& leaf, int64_t columns, int64_t x_columns, const S* query, S radius, S& x,
           S& y) {
  using V = Vector<S>;
  const Block<S> least = bounds(leaf.blocks, columns, query, query).least;
  for (uint32_t blocks = bits_within<true>(least, radius); blocks != 0; blocks &= blocks - 1) {
    const S* block = leaf.points + __builtin_ctz(blocks) * columns * kBlock;
    const Block<S> far_x = distances(block, 0, x_columns, query);
    const Block<S> far_y = distances(block, x_columns, columns, query);
    uint32_t bits = bits_within<true>(far_x, radius) & bits_within<true>(far_y, radius);
    if (bits == 0) continue;
    S found_x[kBlock], found_y[kBlock];
    for (int i = 0; i < Block<S>::kVectors; ++i) {
      far_x.part[i].store(found_x + i * V::lanes);
      far_y.part[i].store(found_y + i * V::lanes);
    }
    for (; bits != 0; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      x = x > found_x[i] ? x : found_x[i];
      y = y > found_y[i] ? y : found_y[i];
    }
  }
}

template <typename S>
constexpr Kernels<S> kKernels = {reach<S>, nearest<S>, count<S>, widen<S>};
