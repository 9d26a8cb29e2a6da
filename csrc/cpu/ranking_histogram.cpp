// score_histogram on the CPU: each score by bisection among the thresholds, rows over threads, with a histogram each.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../ranking_call.h"

namespace motarfuse {
namespace {

struct HistogramCall {
  TileCall tile;
  const float* table = nullptr;  // 2^levels - 1 numbers: the thresholds, and infinities
  int levels = 0;
  int64_t thresholds = 0, lowest_bin = 0;  // lowest_bin: of -inf
};

struct HistogramRows {
  void (*add)(const HistogramCall&, int64_t, int64_t, int64_t*);
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "ranking_histogram_rows.h"
#include "ranking_variants.h"

namespace motarfuse {

void score_histogram_cpu(Tensor scores, int64_t first, const Tensor& left_out_starts, const Tensor& left_out,
                         const Tensor& thresholds, Tensor histogram) {
  const char* const name = "score_histogram";
  HistogramCall call;
  call.tile = tile_call(name, scores, first, left_out_starts, left_out);
  check_starts(name, "left_out_starts", left_out_starts, left_out.size(0));
  check_list(name, "thresholds", thresholds, ScalarType::Float, -1, scores);
  call.thresholds = thresholds.size(0);
  check_list(name, "histogram", histogram, ScalarType::Long, call.thresholds + 1, scores);
  STD_TORCH_CHECK(call.thresholds < (int64_t(1) << 30), name, ": too many thresholds");
  const float* const numbers = pointer_to<float>(thresholds);
  while ((int64_t(1) << call.levels) <= call.thresholds) ++call.levels;
  std::vector<float> table(numbers, numbers + call.thresholds);
  table.resize((int64_t(1) << call.levels) - 1, std::numeric_limits<float>::infinity());
  call.table = table.data();
  const float lowest = -std::numeric_limits<float>::infinity();
  call.lowest_bin = std::upper_bound(numbers, numbers + call.thresholds, lowest) - numbers;
  int64_t* const total = pointer_to<int64_t>(histogram);
  const HistogramRows& rows = best_rows();
  std::mutex merging;
  // Fewer scores than bins would not be worth a histogram of their own.
  const int64_t cells = std::max<int64_t>(1, call.tile.columns * kCellsPerTask / std::max(kCellsPerTask, call.thresholds));
  parallel_rows(call.tile.rows, cells, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> bins(call.thresholds + 1);
    rows.add(call, begin, end, bins.data());
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t i = 0; i <= call.thresholds; ++i) total[i] += bins[i];
  });
}

}  // namespace motarfuse
