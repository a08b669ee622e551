// Types that the CPU kernels of gaussian_mi share with the code that calls them.
#pragma once

#include <cstdint>

namespace stib_fast::gaussian_mi {

enum class Element { float32, float64, bfloat16, float16 };

// One part of the joint sample: `columns` columns of a matrix that is read, or written, in place.
struct Part {
  void* data;
  int64_t row_stride;
  int64_t column_stride;
  int64_t columns;
};

// All parts of a sample; d = total number of columns, never concatenated in memory.
struct Sample {
  const Part* parts;
  int64_t part_count;
  int64_t rows;
  int64_t d;
  Element element;
  const double* weight;  // null: every row counts once
};

// Rows per tile of the moments: many, because each product ends in a sum over vector lanes.
constexpr int64_t kTileRows = 256;
// Rows per tile of apply: few, so that a tile and its result stay in the first-level cache.
constexpr int64_t kApplyRows = 64;

// The gradient rows w_r ((x_r - center) * scale) matrix * scale * factor + w_r shift (all lengths
// d).
struct Affine {
  const double* center;
  const double* scale;
  const double* matrix;  // d x d
  const double* shift;   // null: none
  double factor;
};

// The kernels of one instruction set. `scratch` is private to the thread, aligned to 64 bytes
// (cpu.cpp).
struct Kernels {
  // mean [d] and scatter [d x d] of rows [begin, end) about their mean; returns the sum of weights.
  double (*moments)(const Sample& sample, int64_t begin, int64_t end, bool fast, double* mean,
                    double* scatter, void* scratch);
  // Affine of rows [begin, end) into contiguous rows of `out`, one part for each part of the
  // sample.
  void (*apply)(const Sample& sample, const Affine& affine, const Part* out, int64_t begin,
                int64_t end, void* scratch);
};

}  // namespace stib_fast::gaussian_mi
