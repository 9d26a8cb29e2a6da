// The rows of score_histogram for one instruction set, included by ranking_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

MOTARFUSE_TARGET void histogram_rows(const HistogramCall& call, int64_t begin, int64_t end, int64_t* bins) {
  float rest[kBlock];
  int32_t passed[kBlock];
  const int64_t columns = call.tile.columns, thresholds = call.thresholds;
  int64_t missing = 0;
  for (int64_t row = begin; row < end; ++row) {
    missing += leave_out(call.tile, row);
    const float* const scores = call.tile.row(row);
    for (int64_t start = 0; start < columns; start += kBlock) {
      const int64_t count = std::min<int64_t>(kBlock, columns - start);
      search<true>(call.table, call.levels, block_of(scores, start, columns, rest), passed);
      for (int64_t j = 0; j < count; ++j) ++bins[std::min<int64_t>(passed[j], thresholds)];
    }
  }
  bins[call.lowest_bin] -= missing;
}

constexpr HistogramRows kRows = {histogram_rows};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
