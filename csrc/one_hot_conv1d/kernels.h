// Types that the CPU kernels of one_hot_conv1d share with the code that calls them.
#pragma once

#include <cstdint>

namespace stib_fast::one_hot_conv1d {

// Output t sees the positions t * stride + k * dilation, k < taps, of a string with its padding.
struct Geometry {
  int64_t classes;
  int64_t taps;
  int64_t stride, padding, dilation;
  int64_t length;
  int64_t outputs;
};

// Tables [classes + 1][taps][lanes] hold a block of filters, one in each lane. Their last row
// stands for whatever has no class: the padding of the convolution, and padding_idx.

// One string: where the row of each position begins in a table.
struct String {
  const int32_t* starts;
  // Outputs that see one class alone, that of the string's end: SMILES are mostly padded.
  int64_t run_begin, run_end;
};

// The kernels of one instruction set, for one block of at most `lanes` filters.
template <typename S>
struct Kernels {
  int64_t lanes;
  // out[f][t] = bias[f] + sum over k of table[class at t * stride + k * dilation][k][f]; `out` has
  // rows of `outputs`.
  void (*forward)(const Geometry& geometry, const String& string, const S* table, const S* bias,
                  int64_t filters, S* out);
  // The transpose: table[class at t * stride + k * dilation][k][f] += grad[f][t]; `grad` has rows
  // `filter_stride` apart.
  void (*backward)(const Geometry& geometry, const String& string, const S* grad,
                   int64_t filter_stride, int64_t filters, S* table);
  // totals += table; table = 0.
  void (*flush)(S* table, int64_t size, double* totals);
};

}  // namespace stib_fast::one_hot_conv1d
