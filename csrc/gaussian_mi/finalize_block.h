// The d x d step of gaussian_mi (finalize.h has the formulas) for the threads of one GPU block.
//
// `Block` runs phases: for_each(count, f) shares out f(0) ... f(count - 1) over the threads, and
// barrier() ends the phase. Within a phase nothing is read that another item writes, so the bits do
// not depend on the number of threads or their order; finalize_block_check.cpp runs it on the CPU.
// Nothing branches on a failure: a pivot that is not positive becomes NaN, which reaches the value.
#pragma once

#include <cmath>
#include <limits>

#include "correlation.h"

namespace stib_fast::gaussian_mi {

// The largest d: what one block works on fits the shared memory of sm_80, 163 KB.
constexpr int kBlockColumns = 128;

struct FinalizeArguments {
  const double *count, *mean, *scatter;
  int n, d;
  double eps, unit_roundoff;
  double *mi, *state;  // as of the op: one number, [d + 2, d]
};

STIB_DEVICE double inverse_root(double pivot) {
  if (!(pivot > 0 && pivot < std::numeric_limits<double>::infinity()))
    return std::numeric_limits<double>::quiet_NaN();
#if defined(__CUDA_ARCH__)
  return rsqrt(pivot);
#else
  return 1 / std::sqrt(pivot);
#endif
}

constexpr int triangle(int size) { return size * (size - 1) / 2; }

// A Cholesky factor that grows by a column a phase.
struct Factor {
  double* below;      // the rows below the diagonal, one after the other
  double* remaining;  // of the diagonal, less the columns so far
  double* inverse;    // 1 / L_ii
  int size;

  STIB_DEVICE double* row(int i) const { return below + triangle(i); }
};

// sum - x . y, term by term as in finalize.h: where columns are nearly collinear the first terms
// cancel all but little, of which the others then lose no digits. (Fetching code is much of the
// time where d is small: loops are unrolled little, and few are written out twice.)
STIB_DEVICE double subtract_product(double sum, const double* x, int x_step, const double* y,
                                    int y_step, int size) {
  STIB_UNROLL(4)
  for (int k = 0; k < size; ++k) sum -= x[k * x_step] * y[k * y_step];
  return sum;
}

// Element j of x <- L^-1 x, after elements 0 to j - 1.
STIB_DEVICE void solve_element(const Factor& factor, int j, double inverse, double* x, int step) {
  x[j * step] = subtract_product(x[j * step], factor.row(j), 1, x, step, j) * inverse;
}

// x <- L^-1 x
STIB_DEVICE void solve_lower(const Factor& factor, double* x, int step) {
  STIB_UNROLL(1)
  for (int j = 0; j < factor.size; ++j) solve_element(factor, j, factor.inverse[j], x, step);
}

// x <- L^-T x
STIB_DEVICE void solve_upper(const Factor& factor, double* x, int step) {
  STIB_UNROLL(1)
  for (int j = factor.size - 1; j >= 0; --j) {
    double sum = x[j * step];
    STIB_UNROLL(4)
    for (int i = j + 1; i < factor.size; ++i) sum -= factor.row(i)[j] * x[i * step];
    x[j * step] = sum * factor.inverse[j];
  }
}

// Column j of the factor, and row j of L^-1 X where X has as many columns.
template <class Block>
STIB_DEVICE void extend(Block& block, const Factor& factor, int j, double* x, int columns,
                        int pitch) {
  const int below = factor.size - j - 1;
  block.for_each(1 + below + columns, [=](int item) {
    const double inverse = inverse_root(factor.remaining[j]);
    if (item == 0) {
      factor.inverse[j] = inverse;
      return;
    }
    const int i = j + item;
    const bool in_factor = item <= below;
    double* solved = in_factor ? factor.row(i) : x + item - below - 1;
    solve_element(factor, j, inverse, solved, in_factor ? 1 : pitch);
    if (in_factor) factor.remaining[i] -= solved[j] * solved[j];
  });
}

// What the block works on: A is the smaller side, B the other; a x b matrices have an odd pitch, so
// that neither rows nor columns meet in a bank of the shared memory.
class Workspace {
 public:
  STIB_DEVICE Workspace(int n, int d, double* memory)
      : a(n <= d - n ? n : d - n), b(d - a), pitch(b | 1), begin_(n <= d - n ? 0 : n), d_(d) {
    const auto take = [&](int size) {
      double* taken = memory;
      memory += size;
      return taken;
    };
    double* inverse = take(d);
    factor_a = {take(triangle(a)), nullptr, inverse, a};
    factor_b = {take(triangle(b)), nullptr, inverse + a, b};
    k = take(a * pitch);
    w = take(a * pitch);
    w_a = take(a * pitch);
    k_a = take(a * pitch);
    mi = take(1);
    // In w_a and k_a until these are needed: the diagonals, then the factor of P.
    factor_a.remaining = w_a;
    factor_b.remaining = w_a + a;
    factor_p = {w_a, w_a + triangle(a), w_a + triangle(a) + a, a};
  }

  static constexpr int64_t size(int n, int d) {
    const int64_t a = n <= d - n ? n : d - n, b = d - a;
    return d + triangle(int(a)) + triangle(int(b)) + 4 * a * (b | 1) + 1;
  }

  // The column of the sample that is column p of A, B.
  STIB_DEVICE int column(int p) const { return p + begin_ < d_ ? p + begin_ : p + begin_ - d_; }

  // Where the correlation of columns p and q of A, B has its place; most have it once.
  STIB_DEVICE double* place(int p, int q) const {
    if (p < a && q >= a) return k + p * pitch + q - a;
    if (q < p && p < a) return factor_a.row(p) + q;
    if (q < p && q >= a) return factor_b.row(p - a) + q - a;
    return nullptr;
  }

  int a, b, pitch;
  Factor factor_a, factor_b, factor_p;
  double *k, *w, *w_a, *k_a;  // a x b, but w_a and k_a are at first factor_p
  double* mi;

 private:
  int begin_, d_;
};

static_assert(Workspace::size(kBlockColumns / 2, kBlockColumns) * sizeof(double) <= 163 * 1024);

// Correlations into their places, mean and scale into the state.
template <class Block>
STIB_DEVICE void load_correlations(Block& block, const FinalizeArguments& args,
                                   const Workspace& at) {
  const int d = args.d;
  double* scale = at.factor_a.inverse;  // free until the factors begin
  block.for_each(d, [=](int p) {
    const int i = at.column(p);
    scale[p] = column_scale(*args.count, args.mean[i], args.scatter[i * d + i], args.unit_roundoff);
    at.factor_a.remaining[p] = 1 + kRidge;
    args.state[i] = args.mean[i];
    args.state[d + i] = scale[p];
  });
  block.for_each(d * d, [=](int e) {
    const int p = e / d, q = e % d;
    if (double* place = at.place(p, q)) *place = args.scatter[at.column(p) * d + at.column(q)];
  });
  block.barrier();
  block.for_each(d * d, [=](int e) {
    const int p = e / d, q = e % d;
    if (double* place = at.place(p, q)) *place = *place * scale[p] * scale[q];
  });
  block.barrier();
}

// K = L_A^-1 R_AB L_B^-T, with both factors.
template <class Block>
STIB_DEVICE void whiten(Block& block, const Workspace& at) {
  STIB_UNROLL(1)
  for (int j = 0; j < at.b; ++j) {
    extend(block, at.factor_b, j, nullptr, 0, 0);
    if (j < at.a) extend(block, at.factor_a, j, at.k, at.b, at.pitch);
    block.barrier();
  }
  block.for_each(at.a, [=](int i) { solve_lower(at.factor_b, at.k + i * at.pitch, 1); });
  block.barrier();
}

// P = I - c^2 K K^T, its factor, W = c^2 P^-1 K and the value; then copies of W and K.
template <class Block>
STIB_DEVICE void solve_for_w(Block& block, const FinalizeArguments& args, const Workspace& at) {
  const Factor& p = at.factor_p;
  const double c2 = (1 - args.eps) * (1 - args.eps);
  block.for_each(at.a * at.a, [=](int e) {
    const int i = e / at.a, j = e % at.a;
    if (j > i) return;
    const double* row = at.k + i * at.pitch;
    const double value = c2 * subtract_product(0, row, 1, at.k + j * at.pitch, 1, at.b);
    if (i == j)
      p.remaining[i] = 1 + value;
    else
      p.row(i)[j] = value;
  });
  block.for_each(at.a * at.b, [=](int e) {
    const int place = e / at.b * at.pitch + e % at.b;
    at.w[place] = at.k[place];
  });
  block.barrier();
  STIB_UNROLL(1)
  for (int j = 0; j < at.a; ++j) {
    extend(block, p, j, at.w, at.b, at.pitch);
    block.barrier();
  }
  block.for_each(at.b, [=](int c) { solve_upper(p, at.w + c, at.pitch); });
  block.for_each(at.a, [=](int i) { p.remaining[i] = std::log(p.inverse[i]); });
  block.barrier();
  block.for_each(1, [=](int) {
    double sum = 0;
    STIB_UNROLL(4)
    for (int i = 0; i < at.a; ++i) sum += p.remaining[i];
    *at.mi = *args.count >= 2 ? sum : std::numeric_limits<double>::quiet_NaN();
    *args.mi = *at.mi;
  });
  block.barrier();
  block.for_each(at.a * at.b, [=](int e) {
    const int place = e / at.b * at.pitch + e % at.b;
    at.w[place] *= c2;
    at.w_a[place] = at.w[place];
    at.k_a[place] = at.k[place];
  });
  block.barrier();
}

template <class Block>
STIB_DEVICE void write_gradient(Block& block, const FinalizeArguments& args, const Workspace& at) {
  const int d = args.d;
  double* gradient = args.state + 2 * d;
  // L_A^-T W and L_A^-T K, column by column; W L_B^-1 and K L_B^-1, row by row.
  block.for_each(2 * at.b, [=](int c) {
    double* x = c < at.b ? at.w_a + c : at.k_a + c - at.b;
    solve_upper(at.factor_a, x, at.pitch);
  });
  block.for_each(2 * at.a, [=](int i) {
    double* x = i < at.a ? at.w + i * at.pitch : at.k + (i - at.a) * at.pitch;
    solve_upper(at.factor_b, x, 1);
  });
  block.barrier();
  const auto put = [=](int p, int q, double value) {
    if (std::isnan(*at.mi)) value = *at.mi;
    gradient[at.column(p) * d + at.column(q)] = value;
  };
  block.for_each(at.a * at.a, [=](int e) {
    const int i = e / at.a, j = e % at.a;
    const double *w = at.w_a + i * at.pitch, *k = at.k_a + j * at.pitch;
    if (i != j) put(i, j, subtract_product(0, w, 1, k, 1, at.b));
  });
  block.for_each(at.b * at.b, [=](int e) {
    const int i = e / at.b, j = e % at.b;
    if (i == j) return;
    put(at.a + i, at.a + j, subtract_product(0, at.w + i, at.pitch, at.k + j, at.pitch, at.a));
  });
  block.barrier();
  block.for_each(at.b, [=](int c) {
    solve_upper(at.factor_a, at.w + c, at.pitch);
    STIB_UNROLL(1)
    for (int i = 0; i < at.a; ++i) {
      put(i, at.a + c, at.w[i * at.pitch + c]);
      put(at.a + c, i, at.w[i * at.pitch + c]);
    }
  });
  block.barrier();
  // The scale of a column depends on its own S_ii: the unit diagonal's gradient is replaced. Down
  // the columns, which neighbouring threads read together.
  block.for_each(d, [=](int i) {
    double sum = 0;
    STIB_UNROLL(4)
    for (int j = 0; j < d; ++j)
      if (j != i) sum += gradient[j * d + i] * correlation(args.scatter, args.state + d, d, j, i);
    gradient[i * d + i] = -sum;
  });
}

template <class Block>
STIB_DEVICE void finalize_block(Block& block, const FinalizeArguments& args, double* memory) {
  const Workspace at(args.n, args.d, memory);
  load_correlations(block, args, at);
  whiten(block, at);
  solve_for_w(block, args, at);
  write_gradient(block, args, at);
}

}  // namespace stib_fast::gaussian_mi
