// The d x d step of gaussian_mi: scatter -> mutual information in nats and its gradient, in
// float64.
//
// With R the correlation matrix, A and B its diagonal blocks (one side each; A the smaller), L_A
// and L_B their Cholesky factors, c = 1 - eps and K = L_A^-1 R_AB L_B^-T,
//
//     MI = -1/2 log |P|,   P = I - c^2 K K^T,   W = c^2 P^-1 K,
//     dMI/dR_AB = L_A^-T W L_B^-1,   dMI/dR_AA = -1/2 L_A^-T W K^T L_A^-1   (B alike with K^T W).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "correlation.h"

namespace stib_fast::gaussian_mi {

// Row-major matrix of its own memory.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns) : rows_(rows), columns_(columns), values_(rows * columns) {}
  double* operator[](int64_t row) { return values_.data() + row * columns_; }
  const double* operator[](int64_t row) const { return values_.data() + row * columns_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

 private:
  int64_t rows_;
  int64_t columns_;
  std::vector<double> values_;
};

inline Matrix transposed(const Matrix& x) {
  Matrix y(x.columns(), x.rows());
  for (int64_t i = 0; i < x.rows(); ++i)
    for (int64_t j = 0; j < x.columns(); ++j) y[j][i] = x[i][j];
  return y;
}

// x -= factor * y over one row.
inline void subtract_row(double* x, double factor, const double* y, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) x[k] -= factor * y[k];
}

// Replaces the lower triangle of a symmetric matrix by its Cholesky factor; false where that fails.
inline bool cholesky(Matrix& a) {
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = a[i][j];
      for (int64_t k = 0; k < j; ++k) sum -= a[i][k] * a[j][k];
      if (i != j) {
        a[i][j] = sum / a[j][j];
      } else {
        if (!(sum > 0) || std::isinf(sum)) return false;
        a[i][i] = std::sqrt(sum);
      }
    }
  }
  return true;
}

// x <- L^-1 x
inline void solve_lower(const Matrix& factor, Matrix& x) {
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t k = 0; k < i; ++k) subtract_row(x[i], factor[i][k], x[k], x.columns());
    for (int64_t j = 0; j < x.columns(); ++j) x[i][j] /= factor[i][i];
  }
}

// x <- L^-T x
inline void solve_upper(const Matrix& factor, Matrix& x) {
  for (int64_t i = x.rows() - 1; i >= 0; --i) {
    for (int64_t k = i + 1; k < x.rows(); ++k) subtract_row(x[i], factor[k][i], x[k], x.columns());
    for (int64_t j = 0; j < x.columns(); ++j) x[i][j] /= factor[i][i];
  }
}

// x . y over one row.
inline double row_product(const double* x, const double* y, int64_t columns) {
  double sum = 0;
  for (int64_t k = 0; k < columns; ++k) sum += x[k] * y[k];
  return sum;
}

// Mutual information in nats between columns [0, n) and [n, d). `gradient` [d x d] receives dMI/dV
// in units of the scaled columns: dMI/dx_r = ((x_r - mean) * scale) gradient * scale. Where the
// count is below 2 or a factorisation fails (NaN or infinity in, or float32 products), all of it is
// NaN.
inline double finalize(double count, const double* mean, const double* scatter, int64_t n,
                       int64_t d, double eps, double unit_roundoff, double* scale,
                       double* gradient) {
  for (int64_t i = 0; i < d; ++i)
    scale[i] = column_scale(count, mean[i], scatter[i * d + i], unit_roundoff);
  const bool first_smaller = n <= d - n;
  const int64_t a_begin = first_smaller ? 0 : n, a_size = first_smaller ? n : d - n;
  const int64_t b_begin = first_smaller ? n : 0, b_size = d - a_size;
  const auto block = [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
    Matrix x(rows, columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        x[i][j] = correlation(scatter, scale, d, row + i, column + j);
    return x;
  };
  const auto fail = [&] {
    std::fill(gradient, gradient + d * d, std::numeric_limits<double>::quiet_NaN());
    return std::numeric_limits<double>::quiet_NaN();
  };
  const auto factor = [&](int64_t begin, int64_t size, Matrix& x) {
    x = block(begin, begin, size, size);
    for (int64_t i = 0; i < size; ++i) x[i][i] += kRidge;
    return cholesky(x);
  };

  Matrix factor_a(0, 0), factor_b(0, 0);
  if (!(count >= 2) || !factor(a_begin, a_size, factor_a) || !factor(b_begin, b_size, factor_b))
    return fail();

  Matrix half = block(a_begin, b_begin, a_size, b_size);
  solve_lower(factor_a, half);
  Matrix k_t = transposed(half);
  solve_lower(factor_b, k_t);
  const Matrix k = transposed(k_t);

  const double c2 = (1 - eps) * (1 - eps);
  Matrix p(a_size, a_size);
  for (int64_t i = 0; i < a_size; ++i)
    for (int64_t j = 0; j < a_size; ++j)
      p[i][j] = double(i == j) - c2 * row_product(k[i], k[j], b_size);
  if (!cholesky(p)) return fail();
  double mi = 0;
  for (int64_t i = 0; i < a_size; ++i) mi -= std::log(p[i][i]);

  Matrix w = k;
  solve_lower(p, w);
  solve_upper(p, w);
  for (int64_t i = 0; i < a_size; ++i)
    for (int64_t j = 0; j < b_size; ++j) w[i][j] *= c2;

  Matrix w_b = transposed(w), k_b = std::move(k_t);  // L_B^-T W^T and L_B^-T K^T
  solve_upper(factor_b, w_b);
  solve_upper(factor_b, k_b);
  Matrix cross = transposed(w_b);  // L_A^-T W L_B^-1
  solve_upper(factor_a, cross);
  Matrix w_a = std::move(w), k_a = k;  // L_A^-T W and L_A^-T K
  solve_upper(factor_a, w_a);
  solve_upper(factor_a, k_a);

  // dS = 2 (x - mean) dx, so `gradient` is twice the gradient with respect to the correlations.
  for (int64_t i = 0; i < a_size; ++i)
    for (int64_t j = 0; j < b_size; ++j)
      gradient[(a_begin + i) * d + b_begin + j] = gradient[(b_begin + j) * d + a_begin + i] =
          cross[i][j];
  const auto within = [&](int64_t begin, int64_t size, int64_t inner, const Matrix& u,
                          const Matrix& v) {
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j)
        gradient[(begin + i) * d + begin + j] = -row_product(u[i], v[j], inner);
  };
  within(a_begin, a_size, b_size, w_a, k_a);
  within(b_begin, b_size, a_size, w_b, k_b);
  // The scale of a column depends on its own S_ii: the unit diagonal's gradient is replaced.
  for (int64_t i = 0; i < d; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < d; ++j)
      if (j != i) sum += gradient[i * d + j] * correlation(scatter, scale, d, i, j);
    gradient[i * d + i] = -sum;
  }
  return mi;
}

}  // namespace stib_fast::gaussian_mi
