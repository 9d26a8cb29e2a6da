// k-reciprocal encoding on the GPU: a thread a sample, by the CPU's own functions, with its workspace in global memory;
// overlaps a block a query, which adds the gallery's entries column by column to a dense row of its own. Entries of a
// column are of different rows, so that no two threads add to one sum, and every sum has the CPU's order and bits.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "../k_reciprocal.h"
#include "../k_reciprocal_call.h"
#include "../library.h"
#include "k_reciprocal_sums.cuh"
#include "launch.h"

namespace motarfuse {
namespace {

constexpr int kThreads = 128, kOverlapThreads = 256;
constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;

// Threads that share the samples, and as many workspaces.
struct Grid {
  unsigned blocks = 0;
  int64_t threads = 0;
};

// As many threads as there are rows, or as the workspaces of `bytes` each leave room for.
Grid grid_of(int64_t rows, int64_t bytes, int32_t device) {
  const int64_t most = std::max<int64_t>(1, kWorkspaceBytes / std::max<int64_t>(1, bytes) / kThreads);
  const int64_t wanted = std::min((rows + kThreads - 1) / kThreads, int64_t{num_multiprocessors(device)} * 16 + 1);
  const int64_t blocks = std::max<int64_t>(1, std::min(wanted, most));
  return {static_cast<unsigned>(blocks), blocks * kThreads};
}

__device__ __forceinline__ int64_t this_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

__global__ void __launch_bounds__(kThreads) k_reciprocal_neighbors_kernel(SampleLists lists, int64_t stride,
                                                                          int64_t threads, int32_t* out) {
  for (int64_t i = this_thread(); i < lists.samples; i += threads) {
    reciprocal_neighbors(lists, stride, i, out + i * lists.width);
  }
}

__global__ void __launch_bounds__(kThreads) k_reciprocal_expand_kernel(SampleLists wide, SampleLists narrow,
                                                                       RowsOut rows, int64_t threads,
                                                                       int32_t* workspace) {
  int32_t* const members = workspace + this_thread() * wide.width * (narrow.width + 1);
  for (int64_t i = this_thread(); i < wide.samples; i += threads) {
    const int64_t count = expand_set(wide, narrow, i, members);
    if (rows.counts != nullptr) {
      rows.counts[i] = count;
      continue;
    }
    for (int64_t j = 0; j < count; ++j) rows.columns[rows.starts[i] + j] = members[j];
  }
}

__global__ void __launch_bounds__(kThreads) k_reciprocal_normalize_kernel(const int64_t* starts, int64_t samples,
                                                                          int64_t threads, double* values) {
  for (int64_t i = this_thread(); i < samples; i += threads) normalize_row(starts, i, values);
}

__global__ void __launch_bounds__(kThreads) k_reciprocal_average_kernel(SparseRows rows, SampleLists lists, int64_t k,
                                                                        RowsOut out, int64_t threads,
                                                                        int64_t* workspace) {
  int64_t* const heads = workspace + this_thread() * k;
  for (int64_t i = this_thread(); i < lists.samples; i += threads) {
    if (out.counts != nullptr) {
      out.counts[i] = average_rows(rows, lists.row(i), k, heads, nullptr, nullptr);
    } else {
      average_rows(rows, lists.row(i), k, heads, out.columns + out.starts[i], out.values + out.starts[i]);
    }
  }
}

__global__ void __launch_bounds__(kOverlapThreads) k_reciprocal_overlap_kernel(OverlapCall call, double* workspace) {
  __shared__ int64_t before[kOverlapThreads];
  const int thread = static_cast<int>(threadIdx.x);
  double* const sums = workspace + int64_t{blockIdx.x} * call.gallery;
  // Each thread writes down a stretch of the row, in its order.
  const int64_t stretch = (call.gallery + kOverlapThreads - 1) / kOverlapThreads;
  const int64_t first = thread * stretch < call.gallery ? thread * stretch : call.gallery;
  const int64_t last = first + stretch < call.gallery ? first + stretch : call.gallery;
  for (int64_t entry = thread; entry < call.gallery; entry += kOverlapThreads) sums[entry] = 0.0;
  __syncthreads();
  for (int64_t i = blockIdx.x; i < call.count; i += gridDim.x) {
    const int64_t query = call.queries[i];
    for (int64_t place = call.rows.starts[query]; place < call.rows.starts[query + 1]; ++place) {
      const double own = call.rows.values[place];
      const int32_t column = call.rows.columns[place];
      const int64_t end = call.inverse_starts[column + 1];
      for (int64_t j = call.inverse_starts[column] + thread; j < end; j += kOverlapThreads) {
        const double theirs = call.inverse_values[j];
        double& sum = sums[call.inverse_rows[j]];
        sum = rounded_sum(sum, own < theirs ? own : theirs);
      }
      __syncthreads();
    }
    int64_t found = 0;
    for (int64_t entry = first; entry < last; ++entry) found += sums[entry] != 0.0;
    const int64_t upto = inclusive_sum<kOverlapThreads>(found, before);
    int64_t next = call.room[i] + upto - found;
    for (int64_t entry = first; entry < last; ++entry) {
      if (sums[entry] == 0.0) continue;
      call.columns[next] = static_cast<int32_t>(entry);
      call.sums[next++] = sums[entry];
      sums[entry] = 0.0;
    }
    if (thread == kOverlapThreads - 1) call.counts[i] = upto;
    __syncthreads();
  }
}

}  // namespace

Tensor k_reciprocal_neighbors_cuda(const Tensor& neighbors, int64_t k) {
  const int32_t device = neighbors.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const int64_t samples = neighbors.size(0);
  SampleLists lists = sample_lists(neighbors, samples);
  STD_TORCH_CHECK(k >= 1 && k <= lists.width, "k_reciprocal_neighbors: k must be 1 to the length of the lists");
  const int64_t stride = lists.width;
  lists.width = k;
  const Tensor found = new_empty(neighbors, {samples, k}, ScalarType::Int);
  if (samples == 0) return found;
  const Grid grid = grid_of(samples, 0, device);
  int32_t* const out = data_or_null<int32_t>(found);
  k_reciprocal_neighbors_kernel<<<grid.blocks, kThreads, 0, stream>>>(lists, stride, grid.threads, out);
  check_launch("k_reciprocal_neighbors_kernel");
  return found;
}

void k_reciprocal_expand_cuda(const Tensor& wide, const Tensor& narrow, const std::optional<Tensor>& starts,
                              Tensor out) {
  const int32_t device = wide.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const int64_t samples = wide.size(0);
  const SampleLists wide_lists = sample_lists(wide, samples), narrow_lists = sample_lists(narrow, samples);
  STD_TORCH_CHECK(narrow.size(0) == samples, "k_reciprocal_expand: both sets must be of the same samples");
  const RowsOut rows = rows_out(samples, starts, out, std::nullopt);
  if (samples == 0) return;
  const int64_t room = wide_lists.width * (narrow_lists.width + 1);
  const Grid grid = grid_of(samples, room * static_cast<int64_t>(sizeof(int32_t)), device);
  const Tensor workspace = new_empty(wide, {grid.threads * room}, ScalarType::Int);
  int32_t* const members = data_or_null<int32_t>(workspace);
  k_reciprocal_expand_kernel<<<grid.blocks, kThreads, 0, stream>>>(wide_lists, narrow_lists, rows, grid.threads,
                                                                   members);
  check_launch("k_reciprocal_expand_kernel");
}

void k_reciprocal_normalize_cuda(const Tensor& starts, Tensor values) {
  const int32_t device = starts.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  STD_TORCH_CHECK(is_list(starts, ScalarType::Long) && starts.size(0) >= 1 && is_list(values, ScalarType::Double),
                  "k_reciprocal_normalize: expects int64 starts and float64 values");
  const int64_t samples = starts.size(0) - 1;
  if (samples == 0) return;
  const Grid grid = grid_of(samples, 0, device);
  const int64_t* const places = data_or_null<const int64_t>(starts);
  double* const numbers = data_or_null<double>(values);
  k_reciprocal_normalize_kernel<<<grid.blocks, kThreads, 0, stream>>>(places, samples, grid.threads, numbers);
  check_launch("k_reciprocal_normalize_kernel");
}

void k_reciprocal_average_cuda(const Tensor& starts, const Tensor& columns, const Tensor& values,
                               const Tensor& neighbors, int64_t k, const std::optional<Tensor>& out_starts,
                               Tensor out, const std::optional<Tensor>& out_values) {
  const int32_t device = starts.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const int64_t samples = neighbors.size(0);
  const SampleLists lists = sample_lists(neighbors, samples);
  const SparseRows rows = sparse_rows(starts, columns, values);
  STD_TORCH_CHECK(k >= 1 && k <= lists.width && starts.size(0) == samples + 1,
                  "k_reciprocal_average: k must be 1 to the length of the lists, and there is one row a sample");
  const RowsOut target = rows_out(samples, out_starts, out, out_values);
  if (samples == 0) return;
  const Grid grid = grid_of(samples, k * static_cast<int64_t>(sizeof(int64_t)), device);
  const Tensor workspace = new_empty(starts, {grid.threads * k}, ScalarType::Long);
  int64_t* const heads = data_or_null<int64_t>(workspace);
  k_reciprocal_average_kernel<<<grid.blocks, kThreads, 0, stream>>>(rows, lists, k, target, grid.threads, heads);
  check_launch("k_reciprocal_average_kernel");
}

void k_reciprocal_overlap_cuda(const Tensor& starts, const Tensor& columns, const Tensor& values,
                               const Tensor& queries, const Tensor& inverse_starts, const Tensor& inverse_rows,
                               const Tensor& inverse_values, int64_t gallery, const Tensor& room, Tensor counts,
                               Tensor out, Tensor out_sums) {
  const int32_t device = starts.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const OverlapCall call = overlap_call(starts, columns, values, queries, inverse_starts, inverse_rows, inverse_values,
                                        gallery, room, counts, out, out_sums);
  if (call.count == 0) return;
  const int64_t row = std::max<int64_t>(1, gallery) * static_cast<int64_t>(sizeof(double));
  const int64_t most = std::max<int64_t>(1, kWorkspaceBytes / row);
  const int64_t wanted = std::min({call.count, most, int64_t{num_multiprocessors(device)} * 4 + 1});
  const auto blocks = static_cast<unsigned>(wanted);
  const Tensor workspace = new_empty(starts, {wanted * gallery}, ScalarType::Double);
  double* const sums = data_or_null<double>(workspace);
  k_reciprocal_overlap_kernel<<<blocks, kOverlapThreads, 0, stream>>>(call, sums);
  check_launch("k_reciprocal_overlap_kernel");
}

}  // namespace motarfuse
