// Compiles MOTARFUSE_ROWS, a file with an operator's rows, for every instruction set. The file defines a constant
// `kRows`, a struct of function pointers, of which best_rows() is that of this processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../ranking_call.h"
#include "simd.h"

namespace motarfuse {
namespace {

// Scores that are compared at a time: one bit each.
constexpr int kBlock = 64;

// Marks the entries of a tile that do not count as scores that come last; returns how many there are.
[[maybe_unused]] int64_t leave_out(const TileCall& tile, int64_t row) {
  const int64_t* const end = tile.left_out.values + tile.left_out.starts[row + 1];
  const int64_t* entry = std::lower_bound(tile.left_out.values + tile.left_out.starts[row], end, tile.first);
  const int64_t* const begin = entry;
  for (; entry != end && *entry - tile.first < tile.columns; ++entry) {
    tile.row(row)[*entry - tile.first] = -std::numeric_limits<float>::infinity();
  }
  return entry - begin;
}

// 64 scores of a row from `start` on: where they lie, or the row's last ones in `scratch`, filled up with such that come
// last.
[[maybe_unused]] const float* block_of(const float* row, int64_t start, int64_t columns, float* scratch) {
  if (start + kBlock <= columns) return row + start;
  std::copy(row + start, row + columns, scratch);
  std::fill(scratch + (columns - start), scratch + kBlock, -std::numeric_limits<float>::infinity());
  return scratch;
}

// Lists that start where they may.
[[maybe_unused]] void check_starts(const char* name, const char* what, const Tensor& starts, int64_t size) {
  const int64_t* const data = pointer_to<int64_t>(starts);
  bool right = data[0] >= 0 && data[starts.size(0) - 1] <= size;
  for (int64_t i = 1; i < starts.size(0); ++i) right = right && data[i - 1] <= data[i];
  STD_TORCH_CHECK(right, name, ": ", what, " must rise from at least 0 to at most ", size);
}

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_LOOPS loops_baseline
#define MOTARFUSE_TARGET
#define MOTARFUSE_BYTES 16
#include "ranking_loops.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MOTARFUSE_LOOPS loops_avx2
#define MOTARFUSE_TARGET __attribute__((target("avx2,fma,popcnt")))
#define MOTARFUSE_BYTES 32
#include "ranking_loops.h"

#define MOTARFUSE_LOOPS loops_avx512
#define MOTARFUSE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")))
#define MOTARFUSE_BYTES 64
#include "ranking_loops.h"
#endif

namespace motarfuse {
namespace {

const auto& best_rows() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const auto& best = has_avx512() ? loops_avx512::kRows
                            : has_avx2() ? loops_avx2::kRows
                                         : loops_baseline::kRows;
  return best;
#else
  return loops_baseline::kRows;
#endif
}

}  // namespace
}  // namespace motarfuse
