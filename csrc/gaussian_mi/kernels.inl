// The CPU kernels of gaussian_mi: rows in vector lanes, for one instruction set.
//
// Included once for each instruction set, in a namespace that defines kVectorBytes and the register
// block kBlockRows x kBlockColumns of the scatter. Each tile of kTileRows rows is transposed once,
// so that a column is contiguous; every product then uses full vectors whatever the number of
// columns.

#include "vectors.inl"

// ---- reading and writing tiles ---------------------------------------------------------------

// `columns` vectors that hold consecutive rows of a matrix of that many columns (a power of two
// below the number of lanes) become its columns. Each stage takes the even and the odd lanes of two
// vectors.
template <typename S, int... I>
inline void split(const Vector<S>& a, const Vector<S>& b, Vector<S>& even, Vector<S>& odd,
                  Lanes<I...>) {
  const Vector<S> e = __builtin_shufflevector(a, b, (2 * I)...);
  odd = __builtin_shufflevector(a, b, (2 * I + 1)...);
  even = e;
}

template <typename S, int Most>
__attribute__((always_inline)) inline void separate(Vector<S>* v, int64_t columns) {
  if constexpr (Most > 1) {
    if (columns < Most) return separate<S, Most / 2>(v, columns);
    Vector<S> even[Most / 2], odd[Most / 2];
#pragma GCC unroll 8
    for (int i = 0; i < Most / 2; ++i)
      split<S>(v[2 * i], v[2 * i + 1], even[i], odd[i], typename MakeLanes<kLanes<S>>::type{});
    separate<S, Most / 2>(even, Most / 2);
    separate<S, Most / 2>(odd, Most / 2);
#pragma GCC unroll 8
    for (int i = 0; i < Most / 2; ++i) {
      v[2 * i] = even[i];
      v[2 * i + 1] = odd[i];
    }
  }
}

// The inverse of separate.
template <typename S, int... I>
inline void join(const Vector<S>& even, const Vector<S>& odd, Vector<S>& a, Vector<S>& b,
                 Lanes<I...>) {
  constexpr int n = kLanes<S>;
  a = __builtin_shufflevector(even, odd, (I / 2 + (I & 1) * n)...);
  b = __builtin_shufflevector(even, odd, (n / 2 + I / 2 + (I & 1) * n)...);
}

template <typename S, int Most>
__attribute__((always_inline)) inline void combine(Vector<S>* v, int64_t columns) {
  if constexpr (Most > 1) {
    if (columns < Most) return combine<S, Most / 2>(v, columns);
    Vector<S> even[Most / 2], odd[Most / 2];
#pragma GCC unroll 8
    for (int i = 0; i < Most / 2; ++i) {
      even[i] = v[2 * i];
      odd[i] = v[2 * i + 1];
    }
    combine<S, Most / 2>(even, Most / 2);
    combine<S, Most / 2>(odd, Most / 2);
#pragma GCC unroll 8
    for (int i = 0; i < Most / 2; ++i)
      join<S>(even[i], odd[i], v[2 * i], v[2 * i + 1], typename MakeLanes<kLanes<S>>::type{});
  }
}

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  // Multiplying by 2^112 rebiases the exponent and normalises subnormals; infinities and NaN keep
  // their mantissa and take the largest exponent.
  const uint32_t finite = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return bits_to_float(sign | (magnitude >= 0x0f800000u ? special : finite));
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, BFloat16& out) {
  const uint32_t bits = float_to_bits(x);
  // Round to nearest, ties to even; NaN must not become infinity.
  out.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(float x, Float16& out) {
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const float magnitude = bits_to_float(bits & 0x7fffffffu);
  if (x != x) {
    out.bits = uint16_t(sign | 0x7e00u);
  } else if (magnitude >= 65520.0f) {
    out.bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x1p-14f) {
    // Adding 0.5 places the last subnormal bit (2^-24) at the end of a float's mantissa.
    out.bits = uint16_t(sign | (float_to_bits(magnitude + 0.5f) - float_to_bits(0.5f)));
  } else {
    const uint32_t rebiased = float_to_bits(magnitude) - (112u << 23);
    out.bits = uint16_t(sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13));
  }
}

template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

// Hardware prefetchers stop while a tile's arithmetic goes on; measured: a quarter of the time of
// moments at 262,144 x 32. The address may lie past the end: a prefetch never faults.
inline void prefetch_ahead(const void* from) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + 8192), 0, 2);
}

// Sends the rows [begin, begin + rows) of `part` to a sink, column by column and, where the layout
// allows, a vector of rows at a time: sink.vector(column, row, x) or sink.scalar(column, row, x).
template <typename T, typename S, class Sink>
inline void read_part(const Part& part, int64_t begin, int64_t rows, int64_t total_rows,
                      Sink sink) {
  const T* first = static_cast<const T*>(part.data) + begin * part.row_stride;
  int64_t row = 0;
  if constexpr (__is_same(T, S)) {
    constexpr int lanes = kLanes<S>;
    if (part.row_stride == 1) {
      for (; row + lanes <= rows; row += lanes)
        for (int64_t column = 0; column < part.columns; ++column)
          sink.vector(column, row, load(first + row + column * part.column_stride));
    } else if (part.column_stride == 1 && part.row_stride == part.columns && part.columns < lanes &&
               (part.columns & (part.columns - 1)) == 0) {
      Vector<S> block[lanes];
      for (; row + lanes <= rows; row += lanes) {
        for (int64_t i = 0; i < part.columns; ++i) {
          const S* from = first + row * part.columns + i * lanes;
          block[i] = load(from);
          prefetch_ahead(from);
        }
        separate<S, lanes / 2>(block, part.columns);
        for (int64_t i = 0; i < part.columns; ++i) sink.vector(i, row, block[i]);
      }
    } else if (part.column_stride == 1 && part.row_stride > 0) {
      // Full vectors may run past the end of a row, never past the end of the matrix.
      const int64_t extent = (total_rows - 1 - begin) * part.row_stride + part.columns;
      const int64_t reach = (part.columns + lanes - 1) / lanes * lanes;
      for (; row + lanes <= rows && (row + lanes - 1) * part.row_stride + reach <= extent;
           row += lanes)
        for (int64_t column = 0; column < part.columns; column += lanes) {
          Vector<S> block[lanes];
          for (int i = 0; i < lanes; ++i) {
            const S* from = first + (row + i) * part.row_stride + column;
            block[i] = load(from);
            prefetch_ahead(from);
          }
          transpose<S>(block);
          for (int i = 0; i < lanes && column + i < part.columns; ++i)
            sink.vector(column + i, row, block[i]);
        }
    }
  }
  for (int64_t column = 0; column < part.columns; ++column)
    for (int64_t r = row; r < rows; ++r)
      sink.scalar(column, r, widen(first[r * part.row_stride + column * part.column_stride]));
}

template <typename T, typename S, class Sink>
inline void read_tile(const Sample& sample, int64_t begin, int64_t rows, Sink sink) {
  for (int64_t p = 0; p < sample.part_count; ++p) {
    read_part<T, S>(sample.parts[p], begin, rows, sample.rows, sink);
    sink.skip_columns(sample.parts[p].columns);
  }
}

// tile[column * kApplyRows + row] into contiguous rows [begin, begin + rows) of `part`.
template <typename T, typename S>
inline void write_part(const S* tile, const Part& part, int64_t begin, int64_t rows) {
  T* first = static_cast<T*>(part.data) + begin * part.columns;
  int64_t row = 0;
  if constexpr (__is_same(T, S)) {
    constexpr int lanes = kLanes<S>;
    Vector<S> block[lanes];
    if (part.columns < lanes && (part.columns & (part.columns - 1)) == 0) {
      for (; row + lanes <= rows; row += lanes) {
        for (int64_t i = 0; i < part.columns; ++i) block[i] = load(tile + i * kApplyRows + row);
        combine<S, lanes / 2>(block, part.columns);
        for (int64_t i = 0; i < part.columns; ++i)
          store(first + row * part.columns + i * lanes, block[i]);
      }
    } else {
      // A full vector overruns the end of its row; what it spoils is written afterwards (columns
      // from the last block to the first, rows ascending), and it never leaves this tile's rows.
      const int64_t last_column = (part.columns - 1) / lanes * lanes;
      for (; (row + lanes - 1) * part.columns + last_column + lanes <= rows * part.columns;
           row += lanes)
        for (int64_t column = last_column; column >= 0; column -= lanes) {
          for (int i = 0; i < lanes; ++i) block[i] = load(tile + (column + i) * kApplyRows + row);
          transpose<S>(block);
          for (int i = 0; i < lanes; ++i)
            store(first + (row + i) * part.columns + column, block[i]);
        }
    }
  }
  for (; row < rows; ++row)
    for (int64_t column = 0; column < part.columns; ++column)
      narrow(tile[column * kApplyRows + row], first[row * part.columns + column]);
}

// ---- moments ---------------------------------------------------------------------------------

// Lane i of the result: the sum of the lanes of v[i]. Destroys v [kLanes<S>].
template <typename S>
inline Vector<S> sum_each(Vector<S>* v) {
  transpose<S>(v);
  for (int half = kLanes<S> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// Lane by lane; __builtin_convertvector goes by halves where one instruction would do (GCC 12).
template <typename To, typename P, typename From, int... I>
inline To convert(From x, Lanes<I...>) {
  return To{P(x[I])...};
}

// Receives S, keeps (x - origin) sqrt(weight) as P and its weighted sum.
template <typename S, typename P>
struct Center {
  P* values;
  const S* origin;
  const P* root_weight;  // null: 1
  Vector<P>* sums;
  double* tail_sums;

  void vector(int64_t column, int64_t row, Vector<S> x) const {
    constexpr int lanes = kLanes<S> < kLanes<P> ? kLanes<S> : kLanes<P>;
    constexpr int pieces = kLanes<S> / lanes;
    typedef S Piece __attribute__((vector_size(lanes * sizeof(S))));
    typedef P Value __attribute__((vector_size(lanes * sizeof(P))));
    Value total = {};
#pragma GCC unroll 2
    for (int piece = 0; piece < pieces; ++piece) {
      Piece part;
      __builtin_memcpy(&part, reinterpret_cast<const S*>(&x) + piece * lanes, sizeof part);
      Value value;
      if constexpr (sizeof(S) > sizeof(P))
        value = convert<Value, P>(part - origin[column], typename MakeLanes<lanes>::type{});
      else
        value = convert<Value, P>(part, typename MakeLanes<lanes>::type{}) - P(origin[column]);
      if (root_weight == nullptr) {
        total += value;
      } else {
        Value root;
        __builtin_memcpy(&root, root_weight + row + piece * lanes, sizeof root);
        value *= root;
        total += value * root;
      }
      __builtin_memcpy(values + column * kTileRows + row + piece * lanes, &value, sizeof value);
    }
    Value sum;
    __builtin_memcpy(&sum, sums + column, sizeof sum);
    sum += total;
    __builtin_memcpy(sums + column, &sum, sizeof sum);
  }

  void scalar(int64_t column, int64_t row, S x) const {
    const P root = root_weight != nullptr ? root_weight[row] : P(1);
    const P difference = sizeof(S) > sizeof(P) ? P(x - origin[column]) : P(x) - P(origin[column]);
    values[column * kTileRows + row] = difference * root;
    tail_sums[column] += double(difference * root) * double(root);
  }

  void skip_columns(int64_t columns) {
    values += columns * kTileRows;
    origin += columns;
    sums += columns;
    tail_sums += columns;
  }
};

// scatter[i, j] += sum over rows of value_i value_j for an NI x NJ block; only i <= j where
// Triangle.
template <typename T, int NI, int NJ, bool Triangle>
inline void product_block(const T* left, const T* right, int64_t vectors, double* scatter,
                          int64_t d) {
  constexpr int lanes = kLanes<T>, groups = (NI * NJ + lanes - 1) / lanes;
  Vector<T> sums[groups * lanes];
#pragma GCC unroll 64
  for (int k = 0; k < groups * lanes; ++k) sums[k] = Vector<T>{};
  for (int64_t v = 0; v < vectors; ++v) {
    Vector<T> a[NI];
#pragma GCC unroll 8
    for (int i = 0; i < NI; ++i) a[i] = load(left + i * kTileRows + v * lanes);
#pragma GCC unroll 8
    for (int j = 0; j < NJ; ++j) {
      const Vector<T> b = Triangle ? a[j] : load(right + j * kTileRows + v * lanes);
#pragma GCC unroll 8
      for (int i = 0; i < NI; ++i)
        if (!Triangle || i <= j) sums[i * NJ + j] += a[i] * b;
    }
  }
  T totals[groups * lanes];
#pragma GCC unroll 8
  for (int group = 0; group < groups; ++group)
    store(totals + group * lanes, sum_each<T>(sums + group * lanes));
#pragma GCC unroll 8
  for (int i = 0; i < NI; ++i)
#pragma GCC unroll 8
    for (int j = Triangle ? i : 0; j < NJ; ++j) scatter[i * d + j] += double(totals[i * NJ + j]);
}

template <typename T, int NI, int NJ>
inline void product_columns(const T* left, const T* right, int64_t columns, int64_t vectors,
                            double* scatter, int64_t d) {
  if constexpr (NJ > 0) {
    if (columns == NJ)
      product_block<T, NI, NJ, false>(left, right, vectors, scatter, d);
    else
      product_columns<T, NI, NJ - 1>(left, right, columns, vectors, scatter, d);
  }
}

// The upper triangle of one strip of NI rows of the scatter: the diagonal block, then the rest.
template <typename T, int NI>
inline void product_strip(const T* tile, int64_t first, int64_t rows, int64_t vectors,
                          double* scatter, int64_t d) {
  if constexpr (NI > 0) {
    if (rows != NI) return product_strip<T, NI - 1>(tile, first, rows, vectors, scatter, d);
    const T* left = tile + first * kTileRows;
    product_block<T, NI, NI, true>(left, left, vectors, scatter + first * d + first, d);
    for (int64_t column = first + NI; column < d; column += kBlockColumns)
      product_columns<T, NI, kBlockColumns>(left, tile + column * kTileRows,
                                            d - column < kBlockColumns ? d - column : kBlockColumns,
                                            vectors, scatter + first * d + column, d);
  }
}

// Elements T in memory, S as read, values and products in P.
template <typename T, typename P>
double moments_of(const Sample& sample, int64_t begin, int64_t end, double* mean, double* scatter,
                  void* scratch) {
  using S = typename ComputeOf<T>::type;
  const int64_t d = sample.d;
  Vector<P>* sums = static_cast<Vector<P>*>(scratch);
  P* values = reinterpret_cast<P*>(sums + d);
  P* root_weight = values + d * kTileRows;
  double* delta = reinterpret_cast<double*>(root_weight + kTileRows);
  double* tile_mean = delta + d;
  S* origin = reinterpret_cast<S*>(tile_mean + d);
  const bool weighted = sample.weight != nullptr;

  // Products are taken about an origin near the tile's mean, so that they carry no offset: one row
  // at first (of the largest weight: rows of weight 0 may hold anything), then the running mean.
  // What remains of it is taken off exactly below.
  int64_t typical = begin;
  for (int64_t row = begin; row < end && weighted; ++row)
    if (sample.weight[row] > sample.weight[typical]) typical = row;
  S* to = origin;
  for (int64_t p = 0; p < sample.part_count; ++p)
    for (int64_t column = 0; column < sample.parts[p].columns && begin < end; ++column)
      *to++ = widen(
          static_cast<const T*>(sample.parts[p].data)[typical * sample.parts[p].row_stride +
                                                      column * sample.parts[p].column_stride]);
  for (int64_t i = 0; i < d; ++i) mean[i] = 0;
  for (int64_t i = 0; i < d * d; ++i) scatter[i] = 0;
  double count = 0;
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t rows = end - row < kTileRows ? end - row : kTileRows;
    double tile_count = double(rows);
    if (weighted) {
      tile_count = 0;
      for (int64_t r = 0; r < rows; ++r) {
        tile_count += sample.weight[row + r];
        root_weight[r] = P(__builtin_sqrt(sample.weight[row + r]));
      }
    }
    if (count > 0)
      for (int64_t i = 0; i < d; ++i) origin[i] = S(mean[i]);
    for (int64_t i = 0; i < d; ++i) {
      sums[i] = Vector<P>{};
      delta[i] = 0;
    }
    read_tile<T, S>(sample, row, rows,
                    Center<S, P>{values, origin, weighted ? root_weight : nullptr, sums, delta});
    const int64_t vectors = (rows + kLanes<P> - 1) / kLanes<P>;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t r = rows; r < vectors * kLanes<P>; ++r) values[i * kTileRows + r] = 0;
      for (int k = 0; k < kLanes<P>; ++k) delta[i] += double(sums[i][k]);
      if (tile_count > 0) delta[i] /= tile_count;
      tile_mean[i] = double(origin[i]) + delta[i];
    }

    for (int64_t first = 0; first < d; first += kBlockRows)
      product_strip<P, kBlockRows>(values, first, d - first < kBlockRows ? d - first : kBlockRows,
                                   vectors, scatter, d);

    // The scatter about the tile's own mean, then Chan's update with the rows before.
    const double total = count + tile_count;
    const double fraction = total > 0 ? tile_count / total : 0;
    for (int64_t i = 0; i < d; ++i) {
      const double step = count * fraction * (tile_mean[i] - mean[i]);
      const double offset = tile_count * delta[i];
      for (int64_t j = i; j < d; ++j)
        scatter[i * d + j] += step * (tile_mean[j] - mean[j]) - offset * delta[j];
    }
    for (int64_t i = 0; i < d; ++i) mean[i] += fraction * (tile_mean[i] - mean[i]);
    count = total;
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < i; ++j) scatter[i * d + j] = scatter[j * d + i];
  return count;
}

double moments(const Sample& sample, int64_t begin, int64_t end, bool fast, double* mean,
               double* scatter, void* scratch) {
  switch (sample.element) {
    case Element::float32:
      return fast ? moments_of<float, float>(sample, begin, end, mean, scatter, scratch)
                  : moments_of<float, double>(sample, begin, end, mean, scatter, scratch);
    case Element::float64:
      return fast ? moments_of<double, float>(sample, begin, end, mean, scatter, scratch)
                  : moments_of<double, double>(sample, begin, end, mean, scatter, scratch);
    case Element::bfloat16:
      return fast ? moments_of<BFloat16, float>(sample, begin, end, mean, scatter, scratch)
                  : moments_of<BFloat16, double>(sample, begin, end, mean, scatter, scratch);
    case Element::float16:
      return fast ? moments_of<Float16, float>(sample, begin, end, mean, scatter, scratch)
                  : moments_of<Float16, double>(sample, begin, end, mean, scatter, scratch);
  }
  __builtin_unreachable();
}

// ---- apply -----------------------------------------------------------------------------------

// Receives S, keeps (x - mean) * scale. The mean comes in two pieces: with the first alone a large
// offset would cost digits in float32.
template <typename S>
struct Standardise {
  S* values;
  const S* high;
  const S* low;
  const S* scale;

  void vector(int64_t column, int64_t row, Vector<S> x) const {
    store(values + column * kApplyRows + row, ((x - high[column]) - low[column]) * scale[column]);
  }
  void scalar(int64_t column, int64_t row, S x) const {
    values[column * kApplyRows + row] = ((x - high[column]) - low[column]) * scale[column];
  }
  void skip_columns(int64_t columns) {
    values += columns * kApplyRows;
    high += columns;
    low += columns;
    scale += columns;
  }
};

// out_j = factor_j (sum over i of in_i matrix[i, j]) + shift_j for NJ columns of the matrix, two
// vectors of rows at a time.
template <typename S, int NJ>
inline void apply_columns(const S* in, const S* matrix, const S* factor, const S* shift, int64_t d,
                          int64_t vectors, S* out) {
  constexpr int lanes = kLanes<S>;
  for (int64_t v = 0; v < vectors; v += 2) {
    Vector<S> sums[2][NJ] = {};
    for (int64_t i = 0; i < d; ++i) {
      const Vector<S> a = load(in + i * kApplyRows + v * lanes);
      const Vector<S> b = load(in + i * kApplyRows + (v + 1) * lanes);
#pragma GCC unroll 8
      for (int j = 0; j < NJ; ++j) {
        sums[0][j] += a * matrix[i * d + j];
        sums[1][j] += b * matrix[i * d + j];
      }
    }
    for (int j = 0; j < NJ; ++j) {
      store(out + j * kApplyRows + v * lanes, sums[0][j] * factor[j] + shift[j]);
      store(out + j * kApplyRows + (v + 1) * lanes, sums[1][j] * factor[j] + shift[j]);
    }
  }
}

template <typename S, int NJ>
inline void apply_block(const S* in, const S* matrix, const S* factor, const S* shift,
                        int64_t columns, int64_t d, int64_t vectors, S* out) {
  if constexpr (NJ > 0) {
    if (columns == NJ)
      apply_columns<S, NJ>(in, matrix, factor, shift, d, vectors, out);
    else
      apply_block<S, NJ - 1>(in, matrix, factor, shift, columns, d, vectors, out);
  }
}

template <typename T>
void apply_of(const Sample& sample, const Affine& affine, const Part* out, int64_t begin,
              int64_t end, void* scratch) {
  using S = typename ComputeOf<T>::type;
  const int64_t d = sample.d;
  S* in = static_cast<S*>(scratch);
  S* result = in + d * kApplyRows;
  S* matrix = result + (d + kLanes<S>)*kApplyRows;
  S* high = matrix + d * d;
  S* low = high + d;
  S* scale = low + d;
  S* factor = scale + d;
  S* shift = factor + d;
  for (int64_t i = 0; i < d * d; ++i) matrix[i] = S(affine.matrix[i]);
  for (int64_t i = 0; i < d; ++i) {
    high[i] = S(affine.center[i]);
    low[i] = S(affine.center[i] - double(high[i]));
    scale[i] = S(affine.scale[i]);
    factor[i] = S(affine.scale[i] * affine.factor);
    shift[i] = affine.shift != nullptr ? S(affine.shift[i]) : S(0);
  }
  for (int64_t row = begin; row < end; row += kApplyRows) {
    const int64_t rows = end - row < kApplyRows ? end - row : kApplyRows;
    const int64_t padded = (rows + 2 * kLanes<S> - 1) / (2 * kLanes<S>)*(2 * kLanes<S>);
    read_tile<T, S>(sample, row, rows, Standardise<S>{in, high, low, scale});
    for (int64_t i = 0; i < d; ++i)
      for (int64_t r = rows; r < padded; ++r) in[i * kApplyRows + r] = 0;
    for (int64_t j = 0; j < d; j += kApplyColumns)
      apply_block<S, kApplyColumns>(in, matrix + j, factor + j, shift + j,
                                    d - j < kApplyColumns ? d - j : kApplyColumns, d,
                                    padded / kLanes<S>, result + j * kApplyRows);
    for (int64_t j = 0; j < d && sample.weight != nullptr; ++j)
      for (int64_t r = 0; r < rows; ++r) result[j * kApplyRows + r] *= S(sample.weight[row + r]);
    const S* columns = result;
    for (int64_t p = 0; p < sample.part_count; ++p) {
      write_part<T, S>(columns, out[p], row, rows);
      columns += out[p].columns * kApplyRows;
    }
  }
}

void apply(const Sample& sample, const Affine& affine, const Part* out, int64_t begin, int64_t end,
           void* scratch) {
  switch (sample.element) {
    case Element::float32:
      return apply_of<float>(sample, affine, out, begin, end, scratch);
    case Element::float64:
      return apply_of<double>(sample, affine, out, begin, end, scratch);
    case Element::bfloat16:
      return apply_of<BFloat16>(sample, affine, out, begin, end, scratch);
    case Element::float16:
      return apply_of<Float16>(sample, affine, out, begin, end, scratch);
  }
}

constexpr Kernels kKernels{moments, apply};
