// count_before on the GPU: a block a query and stretch of a tile's columns. A float32 score is placed among the edges of
// the query's thresholds by bisection in shared memory and counted there, whatever the number of thresholds; the few
// within the slack of one wait in a queue of their warp, which scores four at a time exactly and places those. Counts
// are integers: their atomic sums have no order.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../library.h"
#include "../ranking_call.h"
#include "launch.h"
#include "ranking_pairs.cuh"

namespace motarfuse {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
// Blocks that a multiprocessor holds, at 96 and 128 registers a thread.
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 5 : 4;
constexpr int kThresholds = 512;  // one more than are searched at a time
constexpr int kScores = 4;        // that a lane takes at once: 16 bytes
constexpr int kStep = kWarp * kScores;
constexpr int kQueue = kPairs + kStep;
// Columns of a stretch, at most: beginning a stretch costs little beside them, and their packed rows (25 MB of 768
// float32 columns) stay in the second-level cache while all queries meet them.
constexpr int64_t kStretch = 8192;
constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

struct CountPlan {
  int64_t stretch = 0, stretches = 0, thresholds = 0;
  bool packed = false;
};

// A round's thresholds and what is found of them. Beyond the last threshold all three are inf, which no score is above.
struct Round {
  double exact[kThresholds];
  float low[kThresholds], high[kThresholds];
  int bins[kThresholds];  // bins[b]: entries that come before the first b thresholds and no other
  int queue[kWarps][kQueue];
};

__device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The lowest of the three edges, for a bisection that never looks beyond them: 2 top - 1 numbers, top a power of two.
template <class V>
__device__ __forceinline__ int bisect(const V* edges, int top, V value) {
  int place = 0;
  for (int step = top; step > 0; step /= 2) place += value > edges[place + step - 1] ? step : 0;
  return place;
}

__device__ __forceinline__ void begin_round(Round& round, const CountCall& call, int64_t from, int count, int top,
                                            float slack) {
  for (int i = threadIdx.x; i < 2 * top; i += kThreads) {
    const double threshold = i < count ? call.thresholds[from + i] : static_cast<double>(INFINITY);
    const Band band = band_of(threshold, slack);
    round.exact[i] = threshold;
    round.low[i] = i < count ? band.low : INFINITY;
    round.high[i] = i < count ? band.high : INFINITY;
    round.bins[i] = 0;
  }
}

// Places the exact scores of up to four columns of a warp's queue.
template <class T>
__device__ __forceinline__ void decide(Round& round, const CountCall& call, const CountPlan& plan, int64_t row,
                                       int64_t begin, const int* queue, int queued, int64_t from, int count, int top) {
  const int group = lane_index() / kGroup, own = lane_index() % kGroup;
  const int64_t column = begin + queue[group < queued ? group : 0];
  const T* const query = static_cast<const T*>(call.exact.query) + row * call.exact.query_stride;
  const T* const gallery = static_cast<const T*>(call.exact.gallery) + column * call.exact.gallery_stride;
  const double score = exact_score(call.exact.rule, query, gallery, plan.packed);
  if (group >= queued) return;
  const int place = bisect(round.exact, top, score);
  if (own == 0 && place > 0) atomicAdd(&round.bins[place], 1);
  // Of equal scores the index decides, threshold by threshold: one more before this one and no other.
  for (int i = place + own; i < count && score == round.exact[i]; i += kGroup) {
    if (comes_before(score, call.tile.first + column, round.exact[i], call.entries[from + i])) {
      atomicAdd(&round.bins[i + 1], 1);
      atomicAdd(&round.bins[i], -1);
    }
  }
}

// A warp's columns of a stretch, 128 at a time from the first 16 bytes of the row that reach into it.
template <class T>
__device__ __forceinline__ void place_scores(Round& round, const CountCall& call, const CountPlan& plan, int64_t row,
                                             int64_t begin, int64_t end, int64_t from, int count, int top) {
  constexpr float kOut = -INFINITY;
  const float* const scores = call.tile.scores + row * call.tile.stride + begin;
  const int columns = static_cast<int>(end - begin);
  int* const queue = round.queue[warp_index()];
  int queued = 0;
  int base = warp_index() * kStep - static_cast<int>(reinterpret_cast<uintptr_t>(scores) / sizeof(float) % kScores);
  for (;; base += kWarps * kStep) {
    const bool last = base >= columns;
    if (!last) {
      const int column = base + lane_index() * kScores;
      float values[kScores];
      if (column >= 0 && column + kScores <= columns) {
        load_packed(scores + column, values);
      } else {
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
          values[i] = column + i >= 0 && column + i < columns ? __ldg(scores + column + i) : kOut;
        }
      }
      const float lowest = round.low[0];
      bool matters = false;
#pragma unroll
      for (int i = 0; i < kScores; ++i) matters = matters || (!(values[i] < lowest) && values[i] != kOut);
      if (!__any_sync(kAllLanes, matters)) continue;  // most of a gallery, where features are good
      int places[kScores] = {0, 0, 0, 0};
      for (int step = top; step > 0; step /= 2) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) places[i] += values[i] > round.high[places[i] + step - 1] ? step : 0;
      }
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const bool undecided = places[i] < count && !(values[i] < round.low[places[i]]) && values[i] != kOut;
        if (places[i] > 0 && !undecided) atomicAdd(&round.bins[places[i]], 1);
        const unsigned waiting = __ballot_sync(kAllLanes, undecided);
        if (undecided) queue[queued + __popc(waiting & ((1u << lane_index()) - 1u))] = column + i;
        queued += __popc(waiting);
      }
    }
    __syncwarp();
    while (queued >= kPairs || (last && queued > 0)) {
      const int taken = min(queued, kPairs);
      queued -= taken;
      decide<T>(round, call, plan, row, begin, queue + queued, taken, from, count, top);
    }
    if (last) return;
    __syncwarp();
  }
}

// Adds to each threshold's count the bins above it; one warp, from the last threshold to the first.
__device__ __forceinline__ void end_round(const Round& round, int64_t* counts, int count) {
  int above = 0;
  for (int first = (count - 1) / kWarp * kWarp; first >= 0; first -= kWarp) {
    const int i = first + lane_index();
    int sum = i < count ? round.bins[i + 1] : 0;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int next = __shfl_down_sync(kAllLanes, sum, distance);
      sum += lane_index() + distance < kWarp ? next : 0;
    }
    sum += above;
    above = __shfl_sync(kAllLanes, sum, 0);
    if (i < count && sum != 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(counts + i), static_cast<unsigned long long>(sum));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) ranking_count_kernel(CountCall call, CountPlan plan) {
  __shared__ Round round;
  const int64_t items = call.tile.rows * plan.stretches;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t row = item % call.tile.rows, begin = item / call.tile.rows * plan.stretch;
    const int64_t end = smaller(begin + plan.stretch, call.tile.columns);
    const int64_t stop = smaller(call.starts[row + 1], plan.thresholds);
    for (int64_t from = larger(call.starts[row], 0); from < stop; from += kThresholds - 1) {
      const int count = static_cast<int>(smaller(stop - from, kThresholds - 1));
      int top = 1;
      while (2 * top <= count) top *= 2;
      __syncthreads();
      begin_round(round, call, from, count, top, call.slack[row]);
      __syncthreads();
      place_scores<T>(round, call, plan, row, begin, end, from, count, top);
      __syncthreads();
      if (warp_index() == 0) end_round(round, call.counts + from, count);
    }
  }
}

// A warp a query: scores that do not count become -inf.
__global__ void __launch_bounds__(kThreads) ranking_leave_out_kernel(TileCall tile, int64_t entries) {
  for (int64_t row = int64_t{blockIdx.x} * kWarps + warp_index(); row < tile.rows; row += int64_t{gridDim.x} * kWarps) {
    const int64_t stop = smaller(tile.left_out.starts[row + 1], entries);
    for (int64_t i = larger(tile.left_out.starts[row], 0) + lane_index(); i < stop; i += kWarp) {
      const int64_t column = tile.left_out.values[i] - tile.first;
      if (column >= 0 && column < tile.columns) {
        tile.scores[row * tile.stride + column] = -INFINITY;
      }
    }
  }
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Stretches that leave no multiprocessor idle where queries are few.
CountPlan plan_count(const CountCall& call, int64_t thresholds, int multiprocessors) {
  constexpr int64_t kLeast = kThreads * kScores;
  const int64_t wanted = int64_t{multiprocessors} * kBlocks<float> * 8, columns = call.tile.columns;
  const int64_t stretches = std::max(divide_up(columns, kStretch), divide_up(wanted, call.tile.rows));
  CountPlan plan;
  plan.stretch = divide_up(divide_up(columns, stretches), kLeast) * kLeast;
  plan.stretches = divide_up(columns, plan.stretch);
  plan.thresholds = thresholds;
  plan.packed = packs_rows(call.exact);
  return plan;
}

}  // namespace

void count_before_cuda(Tensor scores, const Tensor& slack, const Tensor& query, const Tensor& gallery, int64_t first,
                       const Tensor& starts, const Tensor& thresholds, const Tensor& entries,
                       const Tensor& left_out_starts, const Tensor& left_out, std::string form,
                       std::vector<int64_t> widths, double weight, double epsilon, Tensor counts) {
  const int32_t device = scores.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const CountCall call = count_call(scores, slack, query, gallery, first, starts, thresholds, entries, left_out_starts,
                                    left_out, form, widths, weight, epsilon, counts);
  check_width("count_before", call.exact.width);
  if (call.tile.rows == 0 || call.tile.columns == 0 || thresholds.size(0) == 0) return;
  const cudaStream_t stream = current_stream(device);
  if (left_out.size(0) > 0) {
    const unsigned blocks = static_cast<unsigned>(std::min(divide_up(call.tile.rows, kWarps), kMaximumBlocks));
    ranking_leave_out_kernel<<<blocks, kThreads, 0, stream>>>(call.tile, left_out.size(0));
    check_launch("ranking_leave_out_kernel");
  }
  const CountPlan plan = plan_count(call, thresholds.size(0), num_multiprocessors(device));
  const unsigned blocks = static_cast<unsigned>(std::min(call.tile.rows * plan.stretches, kMaximumBlocks));
  if (call.exact.is_double) {
    ranking_count_kernel<double><<<blocks, kThreads, 0, stream>>>(call, plan);
  } else {
    ranking_count_kernel<float><<<blocks, kThreads, 0, stream>>>(call, plan);
  }
  check_launch("ranking_count_kernel");
}

}  // namespace motarfuse
