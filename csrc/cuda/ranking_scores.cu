// unit_rows and pair_scores on the GPU: eight lanes a row or a pair, whose sums have the CPU's order and bits.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "../library.h"
#include "../ranking_call.h"
#include "../scalar_types.h"
#include "launch.h"
#include "ranking_pairs.cuh"

namespace motarfuse {
namespace {

constexpr int kThreads = 256;
constexpr int kPerBlock = kThreads / kGroup;  // rows or pairs
constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

struct UnitCall {
  TokensView features;  // one item
  int64_t rows = 0;
  int width = 0;
  bool packed = false, packed_out = false;
  void* unit = nullptr;
  double* norms = nullptr;
};

struct PairCall {
  ExactCall exact;
  const int64_t *rows = nullptr, *columns = nullptr;
  double* scores = nullptr;
  int64_t count = 0;
  bool packed = false;
};

// Brings a row's largest magnitude into [0.5, 1): squares stay in range, and no digit changes.
struct Scale {
  double first = 1.0, second = 1.0;  // two factors: the smallest numbers take more than the largest power of two
  int exponent = 0;

  __device__ __forceinline__ explicit Scale(double largest) {
    if (largest == INFINITY) return;
    frexp(largest, &exponent);
    first = ldexp(1.0, -exponent < 1023 ? -exponent : 1023);
    second = ldexp(1.0, -exponent > 1023 ? -exponent - 1023 : 0);
  }
};

template <class T>
struct FeatureRow {
  const T* row;
  int64_t stride;
  int width;
  bool packed;
  double first = 1.0, second = 1.0;

  // Columns `column` to `column` + 3, scaled; 0 beyond the width.
  __device__ __forceinline__ void load(int column, double (&values)[kEach]) const {
    Compute<T> given[kEach];
    if (packed && column + kEach <= width) {
      load_packed(row + column, given);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        given[i] = column + i < width ? static_cast<Compute<T>>(row[(column + i) * stride]) : Compute<T>(0);
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      values[i] = static_cast<double>(given[i]);
      if constexpr (std::is_same_v<T, double>) values[i] = rounded_product(rounded_product(values[i], first), second);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) ranking_unit_rows_kernel(UnitCall call) {
  using C = Compute<T>;
  const int own = lane_index() % kGroup * kEach, group = static_cast<int>(threadIdx.x) / kGroup;
  for (int64_t first = int64_t{blockIdx.x} * kPerBlock; first < call.rows; first += int64_t{gridDim.x} * kPerBlock) {
    // Groups beyond the last row do its work again, as all lanes of a warp take part in the sums.
    const int64_t index = first + group < call.rows ? first + group : call.rows - 1;
    FeatureRow<T> row{static_cast<const T*>(call.features.data) + index * call.features.cell, call.features.channel,
                      call.width, call.packed};
    int exponent = 0;
    if constexpr (std::is_same_v<T, double>) {
      double largest = 0.0;
      for (int column = own; column < call.width; column += kPartials) {
        double values[kEach];
        row.load(column, values);
#pragma unroll
        for (int i = 0; i < kEach; ++i) largest = fmax(largest, fabs(values[i]));  // takes no NaN
      }
#pragma unroll
      for (int distance = kGroup / 2; distance > 0; distance /= 2) {
        largest = fmax(largest, __shfl_xor_sync(kAllLanes, largest, distance));
      }
      const Scale scale(largest);
      row.first = scale.first;
      row.second = scale.second;
      exponent = scale.exponent;
    }
    double partials[kEach] = {0.0, 0.0, 0.0, 0.0};
    for (int column = own; column < call.width; column += kPartials) {
      double values[kEach];
      row.load(column, values);
      add_terms<false>(values, values, partials);
    }
    __syncwarp();
    const double norm = sqrt(add_group(partials));
    if (first + group >= call.rows) continue;
    C* const unit = static_cast<C*>(call.unit) + index * call.width;
    for (int column = own; column < call.width; column += kPartials) {
      double values[kEach];
      row.load(column, values);
      C results[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) results[i] = norm == 0.0 ? C(0) : static_cast<C>(values[i] / norm);
      if (call.packed_out && column + kEach <= call.width) {
        store_packed(unit + column, results);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (column + i < call.width) unit[column + i] = results[i];
      }
    }
    if (own == 0) call.norms[index] = ldexp(norm, exponent);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) ranking_pair_scores_kernel(PairCall call) {
  const ExactCall& exact = call.exact;
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  for (int64_t first = int64_t{blockIdx.x} * kPerBlock; first < call.count; first += int64_t{gridDim.x} * kPerBlock) {
    const int64_t pair = first + group < call.count ? first + group : call.count - 1;
    const int64_t row = __ldg(call.rows + pair), column = __ldg(call.columns + pair);
    // What is not there is not read: its score is NaN.
    const bool exists = row >= 0 && row < exact.queries && column >= 0 && column < exact.entries;
    const T* const query = static_cast<const T*>(exact.query) + (exists ? row * exact.query_stride : 0);
    const T* const gallery = static_cast<const T*>(exact.gallery) + (exists ? column * exact.gallery_stride : 0);
    const double score = exact_score(exact.rule, query, gallery, call.packed);
    if (lane_index() % kGroup == 0 && first + group < call.count) {
      call.scores[pair] = exists ? score : static_cast<double>(NAN);
    }
  }
}

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::min((count + kPerBlock - 1) / kPerBlock, kMaximumBlocks));
}

template <class T>
void launch_unit_rows(UnitCall call, cudaStream_t stream) {
  const auto is_aligned = [](const void* address, int64_t stride, int64_t size) {
    const int64_t word = std::min<int64_t>(kEach * size, 16);
    return reinterpret_cast<uintptr_t>(address) % word == 0 && stride * size % word == 0;
  };
  call.packed = call.features.channel == 1 && is_aligned(call.features.data, call.features.cell, sizeof(T));
  call.packed_out = is_aligned(call.unit, call.width, sizeof(Compute<T>));
  const unsigned blocks = blocks_for(call.rows);
  ranking_unit_rows_kernel<T><<<blocks, kThreads, 0, stream>>>(call);
  check_launch("ranking_unit_rows_kernel");
}

}  // namespace

std::tuple<Tensor, Tensor> unit_rows_cuda(const Tensor& features) {
  const int32_t device = features.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_TORCH_CHECK(features.dim() == 2 && is_floating(features.scalar_type()),
                  "unit_rows: features must have 2 dimensions and a floating-point dtype");
  const int64_t count = features.size(0), width = features.size(1);
  check_width("unit_rows", width);
  Tensor rows = new_empty(features, {count, width}, compute_type(features.scalar_type()));
  Tensor norms = new_empty(features, {count}, ScalarType::Double);
  if (count == 0) return {rows, norms};
  UnitCall call;
  call.features = {features.data_ptr(), features.scalar_type(), 0, features.stride(0), features.stride(1)};
  call.rows = count;
  call.width = static_cast<int>(width);
  call.unit = rows.data_ptr();
  call.norms = pointer_to<double>(norms);
  dispatch_float(features.scalar_type(),
                 [&](auto t) { launch_unit_rows<decltype(t)>(call, current_stream(device)); });
  return {rows, norms};
}

Tensor pair_scores_cuda(const Tensor& query, const Tensor& gallery, const Tensor& rows, const Tensor& columns,
                        std::string form, std::vector<int64_t> widths, double weight, double epsilon) {
  const char* const name = "pair_scores";
  const int32_t device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  PairCall call;
  call.exact = exact_call(name, query, gallery, form, widths, weight, epsilon);
  check_width(name, call.exact.width);
  check_list(name, "rows", rows, ScalarType::Long, -1, query);
  check_list(name, "columns", columns, ScalarType::Long, rows.size(0), query);
  call.count = rows.size(0);
  Tensor scores = new_empty(query, {call.count}, ScalarType::Double);
  if (call.count == 0) return scores;
  STD_TORCH_CHECK(call.exact.queries > 0 && call.exact.entries > 0, name, ": there are pairs of no rows");
  call.rows = pointer_to<int64_t>(rows);
  call.columns = pointer_to<int64_t>(columns);
  call.scores = pointer_to<double>(scores);
  call.packed = packs_rows(call.exact);
  const unsigned blocks = blocks_for(call.count);
  const cudaStream_t stream = current_stream(device);
  if (call.exact.is_double) {
    ranking_pair_scores_kernel<double><<<blocks, kThreads, 0, stream>>>(call);
  } else {
    ranking_pair_scores_kernel<float><<<blocks, kThreads, 0, stream>>>(call);
  }
  check_launch("ranking_pair_scores_kernel");
  return scores;
}

}  // namespace motarfuse
