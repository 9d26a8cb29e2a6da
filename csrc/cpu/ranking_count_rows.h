// The rows of count_before for one instruction set, included by ranking_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

#if MOTARFUSE_BYTES == 64
// Every threshold with every score, four thresholds at a time in registers: adds to `work.above`, and finds the columns
// that need an exact score.
MOTARFUSE_TARGET void compare_each(const float* scores, int64_t columns, int64_t thresholds, CountWork& work) {
  constexpr int kAtOnce = 4, kLanes16 = 16;
  const float nothing = -std::numeric_limits<float>::infinity();
  const __m512 empty = _mm512_set1_ps(nothing);
  const __m512i one = _mm512_set1_epi32(1);
  // Bit j: of every threshold it is known whether score j comes before it.
  work.known.assign((columns + kLanes16 - 1) / kLanes16, 0xFFFF);
  for (int64_t i = 0; i < thresholds; i += kAtOnce) {
    __m512 low[kAtOnce], high[kAtOnce];
    __m512i above[kAtOnce];
    for (int n = 0; n < kAtOnce; ++n) {
      // The last four are filled up with such that nothing is above, and everything below.
      const bool exists = i + n < thresholds;
      low[n] = _mm512_set1_ps(exists ? work.low[i + n] : -nothing);
      high[n] = _mm512_set1_ps(exists ? work.high[i + n] : -nothing);
      above[n] = _mm512_setzero_si512();
    }
    for (int64_t start = 0; start < columns; start += kLanes16) {
      const int64_t count = columns - start;
      const __mmask16 inside = count >= kLanes16 ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1);
      const __m512 score = _mm512_mask_loadu_ps(empty, inside, scores + start);
      __mmask16 known = 0xFFFF;
      for (int n = 0; n < kAtOnce; ++n) {
        const __mmask16 is_above = _mm512_cmp_ps_mask(score, high[n], _CMP_GT_OQ);
        const __mmask16 is_below = _mm512_cmp_ps_mask(score, low[n], _CMP_LT_OQ);
        above[n] = _mm512_mask_add_epi32(above[n], is_above, above[n], one);
        known &= is_above | is_below;
      }
      work.known[start / kLanes16] &= known;
    }
    for (int n = 0; n < kAtOnce && i + n < thresholds; ++n) work.above[i + n] += _mm512_reduce_add_epi32(above[n]);
  }
  for (int64_t start = 0; start < columns; start += kLanes16) {
    for (uint32_t rest = 0xFFFFu & ~work.known[start / kLanes16]; rest != 0; rest &= rest - 1) {
      work.columns.push_back(start + __builtin_ctz(rest));
    }
  }
}
#else
// Every threshold with every score: adds to `work.above`, and finds the columns that need an exact score.
MOTARFUSE_TARGET void compare_each(const float* scores, int64_t columns, int64_t thresholds, CountWork& work) {
  float rest[kBlock];
  const float *const low = work.low.data(), *const high = work.high.data();
  int64_t* const above = work.above.data();
  for (int64_t start = 0; start < columns; start += kBlock) {
    const float* const block = block_of(scores, start, columns, rest);
    uint64_t undecided = 0;
    for (int64_t i = 0; i < thresholds; ++i) {
      const Compared found = compare(block, low[i], high[i]);
      above[i] += __builtin_popcountll(found.above);
      undecided |= found.undecided;
    }
    for (; undecided != 0; undecided &= undecided - 1) work.columns.push_back(start + __builtin_ctzll(undecided));
  }
}
#endif

// Every score by bisection among the thresholds.
MOTARFUSE_TARGET void compare_by_search(const float* scores, int64_t columns, int64_t thresholds, CountWork& work) {
  float rest[kBlock];
  int32_t passed[kBlock];
  int levels = 0;
  while ((int64_t(1) << levels) <= thresholds) ++levels;
  // Numbers that are below no score fill the table up; the last of `low` is for scores above every threshold.
  work.high.resize((int64_t(1) << levels) - 1, std::numeric_limits<float>::infinity());
  work.low.push_back(std::numeric_limits<float>::infinity());
  work.bins.assign(thresholds + 1, 0);
  const float* const low = work.low.data();
  for (int64_t start = 0; start < columns; start += kBlock) {
    const float* const block = block_of(scores, start, columns, rest);
    search<false>(work.high.data(), levels, block, passed);
    const int64_t count = std::min<int64_t>(kBlock, columns - start);
    uint64_t undecided = 0;
    for (int j = 0; j < kBlock; ++j) undecided |= static_cast<uint64_t>(!(block[j] < low[passed[j]])) << j;
    for (int64_t j = 0; j < count; ++j) ++work.bins[passed[j]];
    for (; undecided != 0; undecided &= undecided - 1) {
      const int64_t j = __builtin_ctzll(undecided);
      if (passed[j] < thresholds) work.columns.push_back(start + j);
    }
  }
  int64_t total = 0;
  for (int64_t i = thresholds - 1; i >= 0; --i) {
    total += work.bins[i + 1];
    work.above[i] = total;
  }
}

template <class T>
MOTARFUSE_TARGET void count_rows(const CountCall& call, int64_t begin, int64_t end) {
  CountWork work;
  work.query.resize(call.exact.width);
  const int64_t columns = call.tile.columns;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = call.starts[row], count = call.starts[row + 1] - offset;
    if (count == 0) continue;
    const double* const thresholds = call.thresholds + offset;
    leave_out(call.tile, row);
    const float* const scores = call.tile.row(row);
    work.begin(thresholds, count, call.slack[row]);
    if (count <= kFewThresholds) {
      compare_each(scores, columns, count, work);
    } else {
      compare_by_search(scores, columns, count, work);
    }
    if (!work.columns.empty()) {
      const int64_t undecided = static_cast<int64_t>(work.columns.size());
      work.scores.resize(undecided);
      score_columns<T>(call.exact, query_row<T>(call.exact, row, work.query), work.columns.data(), undecided,
                       work.scores.data());
      work.decide(scores, call.tile.first, thresholds, call.entries + offset, count);
    }
    for (int64_t i = 0; i < count; ++i) call.counts[offset + i] += work.above[i];
  }
}

constexpr CountRows kRows = {count_rows<float>, count_rows<double>};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
