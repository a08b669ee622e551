// The d x d step of gaussian_mi on a GPU, in one block; the passes over the rows are Triton's
// (kernels/gaussian_mi.py). Registered under the schema of stib_fast/ops/gaussian_mi.py.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <tuple>

#include "finalize_block.h"

namespace stib_fast::gaussian_mi {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kWarp = 32, kMostThreads = 512;

// A power of two. Where d is small a phase is a few warps' work, and what counts is its latency.
int threads_for(int64_t d) { return d <= 32 ? 128 : kMostThreads; }

// The phases of finalize_block.h. Each for_each begins at the first warp that has no work yet in
// this phase, so that independent loops run side by side.
class ThreadBlock {
 public:
  template <class Function>
  __device__ void for_each(int count, const Function& function) {
    const int threads = static_cast<int>(blockDim.x);
    const int thread = (static_cast<int>(threadIdx.x) - first_) & (threads - 1);
    STIB_UNROLL(1)
    for (int i = thread; i < count; i += threads) function(i);
    first_ += (count + kWarp - 1) / kWarp * kWarp;
  }

  __device__ void barrier() {
    __syncthreads();
    first_ = 0;
  }

 private:
  int first_ = 0;
};

__global__ void __launch_bounds__(kMostThreads, 1) finalize_in_shared(FinalizeArguments arguments) {
  extern __shared__ double memory[];
  ThreadBlock block;
  finalize_block(block, arguments, memory);
}

__global__ void __launch_bounds__(kMostThreads, 1)
    finalize_in_global(FinalizeArguments arguments, double* memory) {
  ThreadBlock block;
  finalize_block(block, arguments, memory);
}

int64_t shared_memory_of(int32_t device) {
  int bytes = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

void launch(const FinalizeArguments& arguments, const Tensor& like) {
  constexpr int64_t without_asking = 48 * 1024;
  const int threads = threads_for(arguments.d);
  const int64_t size = Workspace::size(arguments.n, arguments.d);
  const int64_t bytes = size * static_cast<int64_t>(sizeof(double));
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &current));
  const auto stream = static_cast<cudaStream_t>(current);
  const int64_t most =
      bytes > without_asking ? shared_memory_of(like.get_device_index()) : without_asking;
  if (bytes > most) {
    const Tensor memory = torch::stable::new_empty(like, {size});
    finalize_in_global<<<1, threads, 0, stream>>>(arguments,
                                                  static_cast<double*>(memory.data_ptr()));
  } else {
    // Always the most there is: another thread's call for less could come before the launch.
    if (bytes > without_asking)
      STD_CUDA_CHECK(cudaFuncSetAttribute(
          finalize_in_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)));
    finalize_in_shared<<<1, threads, static_cast<size_t>(bytes), stream>>>(arguments);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

const double* doubles(const Tensor& x, int64_t size, const Tensor& mean, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double && x.is_contiguous() && x.numel() == size &&
                      x.is_cuda() && x.get_device_index() == mean.get_device_index(),
                  "gaussian_mi: ", name, " must be a contiguous float64 CUDA tensor of ", size,
                  " elements");
  return static_cast<const double*>(x.data_ptr());
}

std::tuple<Tensor, Tensor> gaussian_mi_finalize(const Tensor& count, const Tensor& mean,
                                                const Tensor& scatter, int64_t n, double eps,
                                                double unit_roundoff) {
  const int64_t d = mean.numel();
  STD_TORCH_CHECK(n > 0 && n < d && d <= kBlockColumns,
                  "gaussian_mi: n must lie between 0 and d, and d be at most ", kBlockColumns,
                  " in this kernel");
  const torch::stable::accelerator::DeviceGuard guard(mean.get_device_index());
  Tensor mi = torch::stable::new_empty(mean, {}, ScalarType::Double);
  Tensor state = torch::stable::new_empty(mean, {d + 2, d}, ScalarType::Double);
  launch(
      {doubles(count, 1, mean, "count"), doubles(mean, d, mean, "mean"),
       doubles(scatter, d * d, mean, "scatter"), static_cast<int>(n), static_cast<int>(d), eps,
       unit_roundoff, static_cast<double*>(mi.data_ptr()), static_cast<double*>(state.data_ptr())},
      mean);
  return {mi, state};
}

}  // namespace
}  // namespace stib_fast::gaussian_mi

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CUDA, library) {
  library.impl("gaussian_mi_finalize", TORCH_BOX(&stib_fast::gaussian_mi::gaussian_mi_finalize));
}
