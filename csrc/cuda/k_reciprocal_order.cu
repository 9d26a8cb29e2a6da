// What rows share with gallery entries, in the order of final distances, on the GPU: a block a row. What is counted are
// whole numbers, whose sums have no order, so that results have the CPU's bits.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "../k_reciprocal_order.h"
#include "../k_reciprocal_order_call.h"
#include "../library.h"
#include "k_reciprocal_sums.cuh"
#include "launch.h"

namespace motarfuse {
namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t rows, int32_t device) {
  return static_cast<unsigned>(std::min(rows, int64_t{num_multiprocessors(device)} * 8 + 1));
}

__device__ __forceinline__ double number_of_bits(int64_t bits) {
  double number;
  memcpy(&number, &bits, sizeof(number));
  return number;
}

// The largest number that k are not below, bit by bit from the highest: positive numbers rise with their bits.
__global__ void __launch_bounds__(kThreads) k_reciprocal_kth_kernel(SharedLists lists, int64_t k, double* out) {
  __shared__ int64_t totals[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = blockIdx.x; i < lists.rows; i += gridDim.x) {
    const double* const sums = lists.sums + lists.room[i];
    const int64_t count = lists.counts[i];
    int64_t found = 0;
    for (int bit = 62; bit >= 0 && count >= k; --bit) {
      const int64_t wanted = found | int64_t{1} << bit;
      const double least = number_of_bits(wanted);
      int64_t above = 0;
      for (int64_t j = thread; j < count; j += kThreads) above += sums[j] >= least;
      inclusive_sum<kThreads>(above, totals);
      if (totals[kThreads - 1] >= k) found = wanted;
      __syncthreads();
    }
    if (thread == 0) out[i] = number_of_bits(found);
  }
}

__global__ void __launch_bounds__(kThreads) k_reciprocal_select_kernel(SharedLists lists, const double* least,
                                                                       RowsOut target) {
  __shared__ int64_t before[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = blockIdx.x; i < lists.rows; i += gridDim.x) {
    const double* const sums = lists.sums + lists.room[i];
    const int32_t* const columns = lists.columns + lists.room[i];
    const int64_t count = lists.counts[i];
    // Each thread writes down a stretch of the row, in its order.
    const int64_t stretch = (count + kThreads - 1) / kThreads;
    const int64_t first = thread * stretch < count ? thread * stretch : count;
    const int64_t last = first + stretch < count ? first + stretch : count;
    int64_t found = 0;
    for (int64_t j = first; j < last; ++j) found += sums[j] >= least[i];
    const int64_t upto = inclusive_sum<kThreads>(found, before);
    if (target.counts != nullptr) {
      if (thread == kThreads - 1) target.counts[i] = upto;
    } else {
      int64_t next = target.starts[i] + upto - found;
      for (int64_t j = first; j < last; ++j) {
        if (!(sums[j] >= least[i])) continue;
        target.columns[next] = columns[j];
        target.values[next++] = sums[j];
      }
    }
    __syncthreads();
  }
}

__device__ __forceinline__ void add_whole(int64_t* target, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(target), static_cast<unsigned long long>(value));
}

__global__ void __launch_bounds__(kThreads) k_reciprocal_count_earlier_kernel(EarlierCall call) {
  for (int64_t i = blockIdx.x; i < call.lists.rows; i += gridDim.x) {
    const EarlierRow row = earlier_row(call, i);
    if (row.asked == 0) continue;
    int64_t* const counted = call.steps + call.starts[i];
    for (int64_t place = row.begin + threadIdx.x; place < row.end; place += kThreads) {
      const Step step = step_at(call, row, place);
      if (step.unsure) call.unsure[place] = true;
      if (step.first == step.last) continue;
      if (step.first < row.asked) add_whole(counted + step.first, 1);
      if (step.last < row.asked) add_whole(counted + step.last, -1);
    }
  }
}

}  // namespace

void k_reciprocal_kth_cuda(const Tensor& room, const Tensor& counts, const Tensor& sums, int64_t k, Tensor out) {
  const int32_t device = sums.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const SharedLists lists = shared_lists(room, counts, nullptr, sums);
  STD_TORCH_CHECK(k >= 1, "k_reciprocal_kth: k must be at least 1");
  double* const found = const_cast<double*>(row_numbers(out, lists.rows, "the result"));
  if (lists.rows == 0) return;
  const unsigned blocks = blocks_of(lists.rows, device);
  k_reciprocal_kth_kernel<<<blocks, kThreads, 0, stream>>>(lists, k, found);
  check_launch("k_reciprocal_kth_kernel");
}

void k_reciprocal_select_cuda(const Tensor& room, const Tensor& counts, const Tensor& columns, const Tensor& sums,
                              const Tensor& least, const std::optional<Tensor>& starts, Tensor out,
                              const std::optional<Tensor>& out_sums) {
  const int32_t device = sums.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const SharedLists lists = shared_lists(room, counts, &columns, sums);
  const double* const bounds = row_numbers(least, lists.rows, "the least sum");
  const RowsOut target = selected_rows(lists.rows, starts, out, out_sums);
  if (lists.rows == 0) return;
  const unsigned blocks = blocks_of(lists.rows, device);
  k_reciprocal_select_kernel<<<blocks, kThreads, 0, stream>>>(lists, bounds, target);
  check_launch("k_reciprocal_select_kernel");
}

void k_reciprocal_count_earlier_cuda(const Tensor& scores, const Tensor& slack, int64_t first, const Tensor& room,
                                     const Tensor& counts, const Tensor& columns, const Tensor& sums,
                                     const Tensor& largest, double gain, int64_t power, bool clamped,
                                     const Tensor& starts, const Tensor& thresholds, const Tensor& left_out_starts,
                                     const Tensor& left_out, Tensor steps, Tensor unsure) {
  const int32_t device = scores.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const EarlierCall call = earlier_call(scores, slack, first, room, counts, columns, sums, largest, gain, power,
                                        clamped, starts, thresholds, left_out_starts, left_out, steps, unsure);
  if (call.lists.rows == 0) return;
  const unsigned blocks = blocks_of(call.lists.rows, device);
  k_reciprocal_count_earlier_kernel<<<blocks, kThreads, 0, stream>>>(call);
  check_launch("k_reciprocal_count_earlier_kernel");
}

}  // namespace motarfuse
