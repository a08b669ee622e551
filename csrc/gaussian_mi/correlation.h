// Scatter -> correlation, for the d x d step on the CPU (finalize.h) and the GPU
// (finalize_block.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace stib_fast::gaussian_mi {

// Keeps the factors of R_A and R_B defined when columns are collinear. Invisible otherwise.
constexpr double kRidge = 1e-12;

// 1 / sqrt(S_ii), or 0 where column i is constant: S_ii <= count (8 u |mean|)^2.
STIB_HOST_DEVICE double column_scale(double count, double mean, double spread,
                                     double unit_roundoff) {
  const double rounding = 8 * unit_roundoff * std::abs(mean);
  return spread <= count * rounding * rounding ? 0.0 : 1.0 / std::sqrt(spread);
}

STIB_HOST_DEVICE double correlation(const double* scatter, const double* scale, int64_t d,
                                    int64_t i, int64_t j) {
  return i == j ? 1.0 : scatter[i * d + j] * scale[i] * scale[j];
}

}  // namespace stib_fast::gaussian_mi
