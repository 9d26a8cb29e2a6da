// Exact scores of pairs of packed rows on the GPU: eight lanes a pair, four pairs a warp. Lane l of the eight has the
// partial sums 4 l to 4 l + 3, so that it reads 16 bytes at once and no two lanes wait for one another.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../ranking_call.h"
#include "access.h"

namespace motarfuse {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kGroup = 8;                   // lanes of a pair
constexpr int kPairs = kWarp / kGroup;      // pairs of a warp
constexpr int kEach = kPartials / kGroup;   // partial sums of a lane
static_assert(kEach == 4, "add_group adds four");

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// The sum of the 32 partial sums of a group, for all its lanes: in the order of add_partials, as addition has no sides.
__device__ __forceinline__ double add_group(double (&partials)[kEach]) {
#pragma unroll
  for (int distance = kGroup / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      partials[i] = rounded_sum(partials[i], __shfl_xor_sync(kAllLanes, partials[i], distance));
    }
  }
  return rounded_sum(rounded_sum(partials[0], partials[2]), rounded_sum(partials[1], partials[3]));
}

// Columns `column` to `column` + 3 of a row; those beyond its width are 0, which changes no sum.
template <class T>
__device__ __forceinline__ void load_columns(const T* row, int column, int width, bool packed,
                                             Compute<T> (&values)[kEach]) {
  if (packed && column + kEach <= width) return load_packed(row + column, values);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    values[i] = column + i < width ? static_cast<Compute<T>>(__ldg(row + column + i)) : Compute<T>(0);
  }
}

template <bool kDifferences, class C>
__device__ __forceinline__ void add_terms(const C (&a)[kEach], const C (&b)[kEach], double (&partials)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const double one = static_cast<double>(a[i]), other = static_cast<double>(b[i]);
    partials[i] = rounded_sum(partials[i], kDifferences ? difference_term(one, other) : product_term(one, other));
  }
}

// A segment's dot product, or its sum of squared differences, of the pair of this lane's group.
template <bool kDifferences, class T>
__device__ __forceinline__ double segment_sum(const T* a, const T* b, int width, bool packed) {
  constexpr int kSteps = sizeof(T) == 4 ? 4 : 2;  // whose accesses are under way at once
  double partials[kEach] = {0.0, 0.0, 0.0, 0.0};
  const int own = lane_index() % kGroup * kEach;
  int first = 0;
  if (packed) {
    for (; first + kSteps * kPartials <= width; first += kSteps * kPartials) {
      T values[2][kSteps][kEach];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        load_packed(a + first + s * kPartials + own, values[0][s]);
        load_packed(b + first + s * kPartials + own, values[1][s]);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) add_terms<kDifferences>(values[0][s], values[1][s], partials);
    }
  }
  for (; first < width; first += kPartials) {
    T values[2][kEach];
    load_columns(a, first + own, width, packed, values[0]);
    load_columns(b, first + own, width, packed, values[1]);
    add_terms<kDifferences>(values[0], values[1], partials);
  }
  return add_group(partials);
}

// For all lanes of each group, the exact score of its two rows. Every lane of the warp takes part.
template <class T>
__device__ __forceinline__ double exact_score(const ScoreRule& rule, const T* query, const T* gallery, bool packed) {
  if (rule.form == ScoreForm::kEuclidean) {
    const double sum = segment_sum<true>(query, gallery, static_cast<int>(rule.widths[0]), packed);
    return score_of(rule, sum, 0.0, 0.0);
  }
  double sums[3] = {0.0, 0.0, 0.0};
#pragma unroll 1
  for (int segment = 0; segment < 3; ++segment) {
    const int64_t width = segment == 0 ? rule.widths[0] : segment == 1 ? rule.widths[1] : rule.widths[2];
    if (needs_segment(rule.form, segment)) {
      const double sum = segment_sum<false>(query, gallery, static_cast<int>(width), packed);
      sums[0] = segment == 0 ? sum : sums[0];
      sums[1] = segment == 1 ? sum : sums[1];
      sums[2] = segment == 2 ? sum : sums[2];
    }
    query += width;
    gallery += width;
  }
  return score_of(rule, sums[0], sums[1], sums[2]);
}

inline bool is_multiple(const void* address, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && stride_bytes % 16 == 0;
}

// Whether each segment of each row may be read 16 bytes at a time.
inline bool packs_rows(const ExactCall& call) {
  const int64_t bytes = call.is_double ? sizeof(double) : sizeof(float);
  const int64_t* const widths = call.rule.widths;
  return is_multiple(call.query, call.query_stride * bytes) && is_multiple(call.gallery, call.gallery_stride * bytes) &&
         widths[0] % kEach == 0 && widths[1] % kEach == 0;
}

// Kernels count columns up to a step beyond the last.
inline void check_width(const char* name, int64_t width) {
  STD_TORCH_CHECK(width <= (int64_t{1} << 30), name, ": at most 2^30 columns");
}

}  // namespace
}  // namespace motarfuse
