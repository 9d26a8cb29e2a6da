// The rows of collect_top for one instruction set, included by ranking_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

// Scores turned round, so that the smallest are the largest. -inf still does not count, and nothing else becomes it.
MOTARFUSE_TARGET void turn_round(float* scores, int64_t columns) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < columns; ++i) {
    const float score = scores[i], turned = score == kInfinity ? std::numeric_limits<float>::lowest() : -score;
    scores[i] = score == -kInfinity ? score : turned;
  }
}

// A score that at least k of a row surely have: the k-th largest of the largest of disjoint groups of scores. The lanes of
// some strips of the row are the groups, several times as many as k, so that it is not far below the k-th score itself.
MOTARFUSE_TARGET float reached_by(int64_t k, const float* scores, int64_t columns, TopWork& work) {
  constexpr int64_t kLanes16 = 16;
  const int64_t vectors = columns / kLanes16, strips = std::min(vectors, (4 * k + kLanes16 - 1) / kLanes16);
  if (strips * kLanes16 < k) return -std::numeric_limits<float>::infinity();
  work.sorted.resize(strips * kLanes16);
  for (int64_t strip = 0; strip < strips; ++strip) {
    float largest[kLanes16];
    std::fill(largest, largest + kLanes16, -std::numeric_limits<float>::infinity());
    for (int64_t vector = strip * vectors / strips; vector < (strip + 1) * vectors / strips; ++vector) {
      const float* const score = scores + vector * kLanes16;
      for (int64_t j = 0; j < kLanes16; ++j) largest[j] = score[j] > largest[j] ? score[j] : largest[j];  // NaN is not
    }
    std::copy(largest, largest + kLanes16, work.sorted.data() + strip * kLanes16);
  }
  std::nth_element(work.sorted.begin(), work.sorted.begin() + (k - 1), work.sorted.end(), std::greater<float>());
  return work.sorted[k - 1];
}

// Columns that may be among the best, and their scores.
MOTARFUSE_TARGET void scan(const TopCall& call, int64_t row, const float* scores, float bound, TopWork& work) {
  float rest[kBlock];
  const int64_t columns = call.tile.columns;
  const bool has_rules = call.rules.any();
  for (int64_t start = 0; start < columns; start += kBlock) {
    const float* const block = block_of(scores, start, columns, rest);
    uint64_t found = compare(block, bound, std::numeric_limits<float>::infinity()).undecided;
    for (; found != 0; found &= found - 1) {
      const int64_t j = __builtin_ctzll(found);
      if (has_rules && !call.rules.pass(row, start + j)) continue;
      work.columns.push_back(start + j);
      work.keys.push_back(block[j]);
    }
  }
}

template <class T>
MOTARFUSE_TARGET void top_rows(const TopCall& call, int64_t begin, int64_t end) {
  TopWork work;
  work.query.resize(call.exact.width);
  for (int64_t row = begin; row < end; ++row) {
    float* const scores = call.tile.row(row);
    if (!call.largest) turn_round(scores, call.tile.columns);
    leave_out(call.tile, row);
    work.begin();
    float bound = call.bound(row);
    if (call.filled[row] < call.k && !call.rules.any()) {
      const double reached = reached_by(call.k, scores, call.tile.columns, work);
      bound = std::max(bound, rounded_down(reached - 2.0 * static_cast<double>(call.slack[row])));
    }
    scan(call, row, scores, bound, work);
    if (work.columns.empty()) continue;
    work.cut(call.k, call.slack[row]);
    const int64_t count = static_cast<int64_t>(work.columns.size());
    work.scores.resize(count);
    score_columns<T>(call.exact, query_row<T>(call.exact, row, work.query), work.columns.data(), count,
                     work.scores.data());
    work.merge(call, row);
  }
}

constexpr TopRows kRows = {top_rows<float>, top_rows<double>};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
