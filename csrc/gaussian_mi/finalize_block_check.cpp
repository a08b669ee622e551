// Runs finalize_block.h, the d x d step of the GPU, on the CPU and compares it with finalize.h.
//
// The items of a phase run forwards, backwards and shuffled, so that any two run in both orders:
// all bits must agree. Memory is of the exact size and begins as NaN; compile with the address and
// undefined-behaviour sanitizers. Prints a line for each kind of sample, fails on disagreement.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "gaussian_mi/finalize.h"
#include "gaussian_mi/finalize_block.h"

namespace stib_fast::gaussian_mi {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Order { forwards, backwards, shuffled };

class SerialBlock {
 public:
  explicit SerialBlock(Order order) : order_(order) {}

  void for_each(int count, std::function<void(int)> f) {
    for (int i = 0; i < count; ++i) items_.emplace_back(functions_.size(), i);
    functions_.push_back(std::move(f));
  }

  void barrier() {
    if (order_ == Order::backwards) std::reverse(items_.begin(), items_.end());
    if (order_ == Order::shuffled) std::shuffle(items_.begin(), items_.end(), random_);
    for (const auto& [function, i] : items_) functions_[function](i);
    items_.clear();
    functions_.clear();
  }

 private:
  Order order_;
  std::mt19937 random_{7};
  std::vector<std::function<void(int)>> functions_;
  std::vector<std::pair<size_t, int>> items_;
};

struct Moments {
  int n, d;
  double count;
  std::vector<double> mean, scatter;
};

// [mi, state]
using Result = std::vector<double>;

constexpr double kEps = 1e-9, kUnitRoundoff = 0x1p-53;

Result by_block(const Moments& moments, Order order) {
  const auto [n, d, count, mean, scatter] = moments;
  Result result(1 + (d + 2) * d, kNaN);
  // No vector: what lies beyond its size may still be its own.
  const size_t size = Workspace::size(n, d);
  const std::unique_ptr<double[]> memory(new double[size]);
  std::fill_n(memory.get(), size, kNaN);
  SerialBlock block(order);
  finalize_block(
      block,
      {&count, mean.data(), scatter.data(), n, d, kEps, kUnitRoundoff, &result[0], &result[1]},
      memory.get());
  block.barrier();
  return result;
}

Result by_host(const Moments& moments) {
  const auto& [n, d, count, mean, scatter] = moments;
  Result result(1 + (d + 2) * d);
  std::copy(mean.begin(), mean.end(), result.begin() + 1);
  result[0] = finalize(count, mean.data(), scatter.data(), n, d, kEps, kUnitRoundoff,
                       &result[1 + d], &result[1 + 2 * d]);
  return result;
}

// Largest difference of the values and of the gradients, the latter relative to the largest
// gradient; infinity where one is NaN and the other is not, or mean and scale differ.
double difference(const Result& x, const Result& y, int d) {
  double gradient = 0, error = 0;
  const int gradient_begin = 1 + 2 * d;
  for (int i = 0; i < gradient_begin + d * d; ++i) {
    if (std::isnan(x[i]) != std::isnan(y[i])) return kInfinity;
    if (std::isnan(x[i])) continue;
    const bool exact = i >= 1 && i < gradient_begin;
    if (exact && std::abs(x[i] - y[i]) > 4 * kUnitRoundoff * std::abs(y[i])) return kInfinity;
    if (i >= gradient_begin) {
      gradient = std::max(gradient, std::abs(y[i]));
      error = std::max(error, std::abs(x[i] - y[i]));
    }
  }
  const double value = std::isnan(x[0]) ? 0 : std::abs(x[0] - y[0]) / (1 + std::abs(y[0]));
  return std::max(value, gradient > 0 ? error / gradient : 0);
}

// ---- samples -----------------------------------------------------------------------------------

using Sample = std::vector<std::vector<double>>;  // columns

Sample dependent_columns(int n, int d, int rows, double noise, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Sample x(d, std::vector<double>(rows));
  for (int j = 0; j < d; ++j)
    for (int r = 0; r < rows; ++r) {
      double& value = x[j][r];
      value = normal(random);
      if (j >= n) value = noise * value + x[(j - n) % n][r];
    }
  return x;
}

Moments moments_of(const Sample& x, int n) {
  const int d = int(x.size());
  const size_t rows = x[0].size();
  Moments moments{n, d, double(rows), std::vector<double>(d), std::vector<double>(d * d)};
  for (int i = 0; i < d; ++i) {
    double sum = 0;
    for (const double value : x[i]) sum += value;
    moments.mean[i] = sum / double(rows);
  }
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < d; ++j)
      for (size_t r = 0; r < rows; ++r)
        moments.scatter[i * d + j] += (x[i][r] - moments.mean[i]) * (x[j][r] - moments.mean[j]);
  return moments;
}

struct Kind {
  const char* name;
  double noise;
  int rows;  // 0: 4 d + 10
  std::function<void(Sample&)> change;
  bool is_nan;
};

const Kind kKinds[] = {
    {"plain", 1, 0, {}, false},
    {"noise 1e-3", 1e-3, 0, {}, false},
    {"noise 1e-6", 1e-6, 0, {}, false},
    {"dependent exactly", 0, 0, {}, false},
    {"fewer rows than columns", 1, 3, {}, false},
    {"one row", 1, 1, {}, true},
    {"first column constant", 1, 0, [](Sample& x) { x[0].assign(x[0].size(), 3.0); }, false},
    {"all columns constant", 1, 0,
     [](Sample& x) {
       for (auto& column : x) column.assign(column.size(), 1e5);
     },
     false},
    {"last column twice", 1, 0, [](Sample& x) { x[x.size() - 1] = x[x.size() / 2]; }, false},
    {"columns tiny and huge", 1, 0,
     [](Sample& x) {
       for (double& value : x[0]) value *= 1e-150;
       for (double& value : x.back()) value *= 1e150;
     },
     false},
    {"NaN", 1, 0, [](Sample& x) { x[x.size() / 2][1] = kNaN; }, true},
    {"infinity", 1, 0, [](Sample& x) { x[0][1] = kInfinity; }, true},
};

// What rounding may cost: the change when every correlation changes by a few units of rounding.
double sensitivity(const Moments& moments, const Result& expected, std::mt19937& random) {
  std::uniform_real_distribution<double> units(-4, 4);
  double largest = 0;
  for (int repetition = 0; repetition < 2; ++repetition) {
    Moments near = moments;
    for (int i = 0; i < near.d; ++i)
      for (int j = 0; j <= i; ++j) {
        const double factor = 1 + units(random) * kUnitRoundoff;
        near.scatter[i * near.d + j] *= factor;
        near.scatter[j * near.d + i] = near.scatter[i * near.d + j];
      }
    // Of the scale, which no rounding of ours touches, only the value counts.
    Result result = by_host(near);
    std::copy(expected.begin() + 1, expected.begin() + 1 + 2 * near.d, result.begin() + 1);
    largest = std::max(largest, difference(result, expected, near.d));
  }
  return largest;
}

bool check(const Kind& kind, int n, int d, std::mt19937& random, double& worst) {
  Sample x = dependent_columns(n, d, kind.rows > 0 ? kind.rows : 4 * d + 10, kind.noise, random);
  if (kind.change) kind.change(x);
  const Moments moments = moments_of(x, n);
  const Result expected = by_host(moments), found = by_block(moments, Order::forwards);
  for (const Order order : {Order::backwards, Order::shuffled}) {
    const Result other = by_block(moments, order);
    if (std::memcmp(other.data(), found.data(), sizeof(double) * found.size()) != 0) {
      std::printf("%s, n=%d, d=%d: the order of the threads changes bits\n", kind.name, n, d);
      return false;
    }
  }
  const double error = difference(found, expected, d);
  const double allowed = 8 * (kUnitRoundoff + sensitivity(moments, expected, random));
  worst = std::max(worst, error);
  if (std::isnan(found[0]) == kind.is_nan && error <= allowed) return true;
  std::printf("%s, n=%d, d=%d: mi %.17g, expected %.17g; error %.3g, allowed %.3g\n", kind.name, n,
              d, found[0], expected[0], error, allowed);
  return false;
}

bool check_all() {
  const int sizes[][2] = {{1, 2},  {1, 3},   {2, 3},   {2, 4},  {5, 8},     {9, 18},
                          {1, 33}, {32, 33}, {20, 40}, {1, 64}, {100, 127}, {64, 128}};
  bool passed = true;
  for (const Kind& kind : kKinds) {
    std::mt19937 random(11);
    double worst = 0;
    for (const auto& [n, d] : sizes) passed = check(kind, n, d, random, worst) && passed;
    std::printf("%-24s largest relative difference %.1e\n", kind.name, worst);
  }
  return passed;
}

}  // namespace
}  // namespace stib_fast::gaussian_mi

int main() { return stib_fast::gaussian_mi::check_all() ? 0 : 1; }
