// The rows of count_before for one instruction set, included by ranking_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

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
    search(work.high.data(), levels, block, passed);
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

#if MOTARFUSE_BYTES == 64
// The numbers of a table of 16 kHalves at these places.
template <int kHalves>
MOTARFUSE_TARGET_INLINE __m512 look_up(const __m512* table, __m512i places) {
  if constexpr (kHalves == 1) return _mm512_permutexvar_ps(places, table[0]);
  return _mm512_permutex2var_ps(table[0], places, table[1]);
}

// Every score by bisection among fewer than 16 kHalves thresholds, which lie in registers; then each threshold counts
// the scores that passed it, 64 at a time. A comparison with each threshold takes three times as long.
template <int kHalves>
MOTARFUSE_TARGET void compare_few(const float* scores, int64_t columns, int64_t thresholds, CountWork& work) {
  constexpr int kLanes16 = 16, kAtOnce = 4, kBlock64 = kLanes16 * kAtOnce;
  const float last = std::numeric_limits<float>::infinity();
  const __m512 empty = _mm512_set1_ps(-last);
  // Places behind the thresholds hold a number that no score is above, and every score below.
  work.high.resize(kLanes16 * kHalves, last);
  work.low.resize(kLanes16 * kHalves, last);
  __m512 high[kHalves], low[kHalves];
  for (int h = 0; h < kHalves; ++h) {
    high[h] = _mm512_loadu_ps(work.high.data() + h * kLanes16);
    low[h] = _mm512_loadu_ps(work.low.data() + h * kLanes16);
  }
  work.passed.resize((columns + kBlock64 - 1) / kBlock64 * kBlock64);
  uint8_t* const passed = work.passed.data();
  for (int64_t start = 0; start < columns; start += kBlock64) {
    __m512 score[kAtOnce];
    __m512i place[kAtOnce];
    for (int n = 0; n < kAtOnce; ++n) {
      const int64_t count = columns - start - n * kLanes16;
      const __mmask16 inside = count >= kLanes16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
      score[n] = _mm512_mask_loadu_ps(empty, inside, scores + start + n * kLanes16);
      place[n] = _mm512_setzero_si512();
    }
    for (int step = kLanes16 * kHalves / 2; step > 0; step /= 2) {
      const __m512i before = _mm512_set1_epi32(step - 1), whole = _mm512_set1_epi32(step);
      for (int n = 0; n < kAtOnce; ++n) {
        const __m512 middle = look_up<kHalves>(high, _mm512_add_epi32(place[n], before));
        const __mmask16 above = _mm512_cmp_ps_mask(score[n], middle, _CMP_GT_OQ);
        place[n] = _mm512_mask_add_epi32(place[n], above, place[n], whole);
      }
    }
    uint64_t known = 0;
    for (int n = 0; n < kAtOnce; ++n) {
      const __mmask16 below = _mm512_cmp_ps_mask(score[n], look_up<kHalves>(low, place[n]), _CMP_LT_OQ);
      known |= static_cast<uint64_t>(below) << (n * kLanes16);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(passed + start + n * kLanes16), _mm512_cvtepi32_epi8(place[n]));
    }
    for (uint64_t rest = ~known; rest != 0; rest &= rest - 1) work.columns.push_back(start + __builtin_ctzll(rest));
  }
  for (int64_t i = 0; i < thresholds; ++i) {
    const __m512i number = _mm512_set1_epi8(static_cast<char>(i));
    int64_t above = 0;
    for (int64_t start = 0; start < columns; start += kBlock64) {
      const __m512i places = _mm512_loadu_si512(passed + start);
      above += __builtin_popcountll(_mm512_cmpgt_epu8_mask(places, number));
    }
    work.above[i] = above;
  }
}
#endif

// Counts by the way that is fastest for this many thresholds.
MOTARFUSE_TARGET void compare_all(const float* scores, int64_t columns, int64_t thresholds, CountWork& work) {
#if MOTARFUSE_BYTES == 64
  if (thresholds < 16) return compare_few<1>(scores, columns, thresholds, work);
  if (thresholds < 32) return compare_few<2>(scores, columns, thresholds, work);
#endif
  if (thresholds <= kFewThresholds) return compare_each(scores, columns, thresholds, work);
  compare_by_search(scores, columns, thresholds, work);
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
    compare_all(scores, columns, count, work);
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
