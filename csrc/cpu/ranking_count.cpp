// count_before on the CPU. Of a row, float32 scores far from a threshold are counted where they lie; the few that are
// within the slack of one are then scored exactly. Rows are over threads, and none adds to another's counts.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../ranking_call.h"

namespace motarfuse {
namespace {

// Thresholds of a row up to which comparing each score with each of them is faster than bisection.
constexpr int64_t kFewThresholds = 64;

struct CountRows {
  void (*of_float)(const CountCall&, int64_t, int64_t);
  void (*of_double)(const CountCall&, int64_t, int64_t);
};

// What a thread needs for a row.
struct CountWork {
  std::vector<double> query;
  std::vector<float> low, high;      // of each threshold's band
  std::vector<int64_t> above, bins;  // above: entries before each threshold
  std::vector<uint8_t> passed;       // thresholds that each column's score is above
  std::vector<int64_t> columns;      // that are within the band of a threshold
  std::vector<double> scores;        // theirs, exact

  void begin(const double* thresholds, int64_t count, float slack) {
    low.resize(count);
    high.resize(count);
    above.assign(count, 0);
    columns.clear();
    for (int64_t i = 0; i < count; ++i) {
      const Band band = band_of(thresholds[i], slack);
      // -inf, which does not count, is below every band then, and no number is between.
      low[i] = std::max(band.low, std::numeric_limits<float>::lowest());
      high[i] = band.high;
    }
  }

  // Adds the entries within a band that come before its threshold.
  void decide(const float* row, int64_t first, const double* thresholds, const int64_t* entries, int64_t count) {
    for (size_t c = 0; c < columns.size(); ++c) {
      const float score = row[columns[c]];
      const int64_t index = first + columns[c];
      // Both edges of the bands rise: the score is within those from the first that it is not above of, up to the first
      // that it is below of.
      const float* const edges = high.data();
      const bool unknown = score != score;
      int64_t i = unknown ? 0 : std::lower_bound(edges, edges + count, score) - edges;
      for (; i < count && !(score < low[i]); ++i) above[i] += comes_before(scores[c], index, thresholds[i], entries[i]);
    }
  }
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "ranking_count_rows.h"
#include "ranking_variants.h"

namespace motarfuse {

void count_before_cpu(Tensor scores, const Tensor& slack, const Tensor& query, const Tensor& gallery, int64_t first,
                      const Tensor& starts, const Tensor& thresholds, const Tensor& entries,
                      const Tensor& left_out_starts, const Tensor& left_out, std::string form,
                      std::vector<int64_t> widths, double weight, double epsilon, Tensor counts) {
  const CountCall call = count_call(scores, slack, query, gallery, first, starts, thresholds, entries, left_out_starts,
                                    left_out, form, widths, weight, epsilon, counts);
  check_starts("count_before", "starts", starts, thresholds.size(0));
  check_starts("count_before", "left_out_starts", left_out_starts, left_out.size(0));
  const CountRows& rows = best_rows();
  parallel_rows(call.tile.rows, call.tile.columns, [&](int64_t begin, int64_t end) {
    (call.exact.is_double ? rows.of_double : rows.of_float)(call, begin, end);
  });
}

}  // namespace motarfuse
