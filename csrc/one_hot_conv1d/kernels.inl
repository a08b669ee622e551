// The CPU kernels of one_hot_conv1d: filters in vector lanes, for one instruction set.
//
// Included once for each instruction set, in a namespace that defines kVectorBytes. Outputs are
// made and gradients read in square tiles of as many outputs as filters, transposed in registers,
// since filters are far apart in memory.

#include "vectors.inl"

// As many outputs as a whole number of tiles holds, from `begin` on, that see one class alone.
template <typename S>
inline int64_t run_of_tiles(const String& string, int64_t begin) {
  if (begin < string.run_begin || begin >= string.run_end) return 0;
  return (string.run_end - begin) / kLanes<S> * kLanes<S>;
}

// The first of the outputs that the tile of output t covers: the last tile overlaps the one before.
template <typename S>
inline int64_t tile_begin(const Geometry& geometry, int64_t t) {
  const int64_t last = geometry.outputs - kLanes<S> > 0 ? geometry.outputs - kLanes<S> : 0;
  return t < last ? t : last;
}

// sums[p] += the taps of output p. With a constant stride, inlined, one register addresses them
// all.
template <typename S>
__attribute__((always_inline)) inline void add_taps(const Geometry& geometry, const S* table,
                                                    const int32_t* starts, int64_t stride,
                                                    Vector<S>* sums) {
  for (int64_t k = 0; k < geometry.taps; ++k) {
#pragma GCC unroll 16
    for (int p = 0; p < kLanes<S>; ++p) sums[p] += load(table + starts[p * stride]);
    table += kLanes<S>;
    starts += geometry.dilation;
  }
}

template <typename S>
void forward(const Geometry& geometry, const String& string, const S* table, const S* bias,
             int64_t filters, S* out) {
  constexpr int lanes = kLanes<S>;
  const int64_t stride = geometry.stride, outputs = geometry.outputs;
  for (int64_t t = 0; t < outputs;) {
    if (const int64_t run = run_of_tiles<S>(string, t)) {
      const S* row = table + string.starts[t * stride];
      Vector<S> sum = load(bias);
      for (int64_t k = 0; k < geometry.taps; ++k) sum += load(row + k * lanes);
      S values[lanes];
      store(values, sum);
      for (int64_t f = 0; f < filters; ++f)
        for (int64_t i = t; i < t + run; i += lanes)
          store(out + f * outputs + i, values[f] - Vector<S>{});
      t += run;
      continue;
    }
    const int64_t begin = tile_begin<S>(geometry, t);
    Vector<S> sums[lanes];
#pragma GCC unroll 16
    for (int p = 0; p < lanes; ++p) sums[p] = load(bias);
    const int32_t* starts = string.starts + begin * stride;
    if (stride == 1)
      add_taps<S>(geometry, table, starts, 1, sums);
    else
      add_taps<S>(geometry, table, starts, stride, sums);
    transpose<S>(sums);
    S* to = out + begin;
    if (outputs >= lanes) {
#pragma GCC unroll 16
      for (int f = 0; f < lanes; ++f)
        if (f < filters) store(to + f * outputs, sums[f]);
    } else {
      for (int64_t f = 0; f < filters; ++f)
        __builtin_memcpy(to + f * outputs, sums + f, size_t(outputs) * sizeof(S));
    }
    t = begin + lanes;
  }
}

template <typename S>
void backward(const Geometry& geometry, const String& string, const S* grad, int64_t filter_stride,
              int64_t filters, S* table) {
  constexpr int lanes = kLanes<S>;
  const int64_t stride = geometry.stride, outputs = geometry.outputs;
  for (int64_t t = 0; t < outputs;) {
    Vector<S> sums[lanes] = {};
    if (const int64_t run = run_of_tiles<S>(string, t)) {
      for (int64_t f = 0; f < filters; ++f)
        for (int64_t i = t; i < t + run; i += lanes) sums[f] += load(grad + f * filter_stride + i);
      transpose<S>(sums);
      Vector<S> sum = {};
      for (int p = 0; p < lanes; ++p) sum += sums[p];
      S* row = table + string.starts[t * stride];
      for (int64_t k = 0; k < geometry.taps; ++k)
        store(row + k * lanes, load(row + k * lanes) + sum);
      t += run;
      continue;
    }
    const int64_t begin = tile_begin<S>(geometry, t);
    const S* from = grad + begin;
    if (outputs >= lanes) {
#pragma GCC unroll 16
      for (int f = 0; f < lanes; ++f)
        if (f < filters) sums[f] = load(from + f * filter_stride);
    } else {
      for (int64_t f = 0; f < filters; ++f)
        __builtin_memcpy(sums + f, from + f * filter_stride, size_t(outputs) * sizeof(S));
    }
    transpose<S>(sums);
    const int64_t end = begin + lanes < outputs ? begin + lanes : outputs;
    for (; t < end; ++t) {
      const Vector<S> value = sums[t - begin];
      const int32_t* starts = string.starts + t * stride;
      for (int64_t k = 0; k < geometry.taps; ++k) {
        S* row = table + starts[k * geometry.dilation] + k * lanes;
        store(row, load(row) + value);
      }
    }
  }
}

template <typename S>
void flush(S* table, int64_t size, double* totals) {
  for (int64_t i = 0; i < size; ++i) {
    totals[i] += double(table[i]);
    table[i] = 0;
  }
}

template <typename S>
constexpr Kernels<S> kKernels{kLanes<S>, forward<S>, backward<S>, flush<S>};
