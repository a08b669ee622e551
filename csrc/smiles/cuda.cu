// Bytes on a GPU to rows of token ids there, a thread for each row, with the code of the CPU.
// Registered under the schema of stib_fast/ops/smiles.py.
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

#include "encode.h"

namespace stib_fast::smiles {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 128;

template <class Id>
__global__ void encode_kernel(const char* data, int64_t size, const int64_t* offsets, int64_t rows,
                              const void* block, Settings settings, Id* ids, int64_t* lengths,
                              uint8_t* status) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  const int64_t begin = offsets[row], end = offsets[row + 1];
  // The caller refuses such offsets, but only after the kernel: nothing outside is read meanwhile.
  const bool inside = begin >= 0 && begin <= end && end <= size;
  const View text{data + (inside ? begin : 0), inside ? end - begin : kNotAscii};
  status[row] = static_cast<uint8_t>(
      encode_row(Table(block), text, settings, ids + row * settings.max_length, lengths + row));
}

template <class Id>
void launch(const Tensor& data, const Tensor& offsets, const Tensor& table,
            const Settings& settings, Tensor& ids, Tensor& lengths, Tensor& status) {
  const int64_t rows = lengths.size(0);
  if (rows == 0) return;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(data.get_device_index(), &stream));
  const int64_t blocks = (rows + kThreads - 1) / kThreads;
  encode_kernel<Id>
      <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          static_cast<const char*>(data.data_ptr()), data.size(0),
          static_cast<const int64_t*>(offsets.data_ptr()), rows, table.data_ptr(), settings,
          static_cast<Id*>(ids.data_ptr()), static_cast<int64_t*>(lengths.data_ptr()),
          static_cast<uint8_t*>(status.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void check(const Tensor& x, ScalarType type, const Tensor& data, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == type && x.dim() == 1 && x.is_contiguous() &&
                      x.get_device_index() == data.get_device_index(),
                  "smiles_encode: ", name, " has another type, shape or device");
}

std::tuple<Tensor, Tensor, Tensor> smiles_encode(const Tensor& data, const Tensor& offsets,
                                                 const Tensor& table, int64_t max_length, bool bos,
                                                 bool eos, bool keep_unknown, bool truncate,
                                                 bool wide) {
  check(data, ScalarType::Byte, data, "data");
  check(offsets, ScalarType::Long, data, "offsets");
  check(table, ScalarType::Byte, data, "table");
  STD_TORCH_CHECK(offsets.size(0) >= 1, "smiles_encode: offsets must not be empty");
  STD_TORCH_CHECK(max_length > bos + eos, "smiles_encode: max_length leaves no room for a token");
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  const int64_t rows = offsets.size(0) - 1;
  STD_TORCH_CHECK(rows < int64_t{kThreads} << 31, "smiles_encode: too many rows for one call");
  Tensor ids = torch::stable::new_empty(data, {rows, max_length},
                                        wide ? ScalarType::Short : ScalarType::Byte);
  Tensor lengths = torch::stable::new_empty(data, {rows}, ScalarType::Long);
  Tensor status = torch::stable::new_empty(data, {rows}, ScalarType::Byte);
  const Settings settings{max_length, bos, eos, keep_unknown, truncate};
  if (wide)
    launch<int16_t>(data, offsets, table, settings, ids, lengths, status);
  else
    launch<uint8_t>(data, offsets, table, settings, ids, lengths, status);
  return {ids, lengths, status};
}

}  // namespace
}  // namespace stib_fast::smiles

STABLE_TORCH_LIBRARY_IMPL(stib_fast, CUDA, library) {
  library.impl("smiles_encode", TORCH_BOX(&stib_fast::smiles::smiles_encode));
}
