// Exact scores and comparisons of float32 scores, in vectors as wide as the instruction set has. Included once for each
// instruction set by ranking_variants.h, without a guard, with
//   MOTARFUSE_LOOPS   the namespace,
//   MOTARFUSE_TARGET  the attribute that every function here carries: a function without it splits wide vectors,
//   MOTARFUSE_BYTES   of a vector,
//   MOTARFUSE_ROWS    the file with an operator's rows, which uses these loops.
#define MOTARFUSE_TARGET_INLINE inline MOTARFUSE_TARGET __attribute__((always_inline))

namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

// Exact scores --------------------------------------------------------------------------------------------------------

typedef double Wide __attribute__((vector_size(MOTARFUSE_BYTES)));
constexpr int kWide = MOTARFUSE_BYTES / sizeof(double);
// Chain c holds the partial sums from c kWide on.
constexpr int kChains = kPartials / kWide;
// Gallery rows that one pass over a query's row is for; with more, sums would leave the registers.
constexpr int kRowsAtOnce = kChains <= 4 ? 2 : 1;

template <class T>
MOTARFUSE_TARGET_INLINE Wide load_wide(const T* source) {
  if constexpr (std::is_same_v<T, double>) {
    Wide wide;
    std::memcpy(&wide, source, sizeof(wide));
    return wide;
  } else {
    typedef float Narrow __attribute__((vector_size(MOTARFUSE_BYTES / 2)));
    Narrow narrow;
    std::memcpy(&narrow, source, sizeof(narrow));
    return __builtin_convertvector(narrow, Wide);
  }
}

// What columns add to their partial sums, rounded: no fused multiply-add unless the product is exact anyway.
template <class T, bool kDifferences>
MOTARFUSE_TARGET_INLINE Wide terms(Wide a, Wide b) {
  if constexpr (!kDifferences && std::is_same_v<T, float>) return a * b;
  Wide term = kDifferences ? a - b : a;
  term *= kDifferences ? term : b;
#if defined(__x86_64__) && defined(__GNUC__)
  asm("" : "+v"(term));
#elif defined(__aarch64__) && defined(__GNUC__)
  asm("" : "+w"(term));
#else
  for (int i = 0; i < kWide; ++i) term[i] = apart(term[i]);
#endif
  return term;
}

// The sums over `width` columns of a query's row with N gallery rows, each from column `start` on.
template <class T, bool kDifferences, int N>
MOTARFUSE_TARGET __attribute__((noinline)) void add_up(const double* query, const T* const* gallery, int64_t start,
                                                       int64_t width, double* sums) {
  Wide chains[N][kChains];
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < kChains; ++c) chains[n][c] = Wide{};
  }
  int64_t i = start;
  for (; i + kPartials <= start + width; i += kPartials) {
    for (int c = 0; c < kChains; ++c) {
      const Wide a = load_wide(query + i + c * kWide);
      for (int n = 0; n < N; ++n) chains[n][c] += terms<T, kDifferences>(a, load_wide(gallery[n] + i + c * kWide));
    }
  }
  if (const int64_t rest = start + width - i; rest > 0) {
    // Zeros change no partial sum: none is -0.
    double a[kPartials] = {};
    T b[kPartials] = {};
    std::copy(query + i, query + i + rest, a);
    for (int n = 0; n < N; ++n) {
      std::copy(gallery[n] + i, gallery[n] + i + rest, b);
      for (int c = 0; c < kChains; ++c) {
        chains[n][c] += terms<T, kDifferences>(load_wide(a + c * kWide), load_wide(b + c * kWide));
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int step = kChains / 2; step > 0; step /= 2) {
      for (int c = 0; c < step; ++c) chains[n][c] += chains[n][c + step];
    }
    double lanes[kWide];
    std::memcpy(lanes, &chains[n][0], sizeof(lanes));
    for (int step = kWide / 2; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) lanes[j] += lanes[j + step];
    }
    sums[n] = lanes[0];
  }
}

template <class T, int N>
MOTARFUSE_TARGET_INLINE void score_rows(const ScoreRule& rule, const double* query, const T* const* gallery,
                                        double* scores) {
  double sums[3][N] = {};
  int64_t start = 0;
  for (int segment = 0; segment < 3; start += rule.widths[segment++]) {
    if (!needs_segment(rule.form, segment)) continue;
    if (rule.form == ScoreForm::kEuclidean) {
      add_up<T, true, N>(query, gallery, start, rule.widths[segment], sums[segment]);
    } else {
      add_up<T, false, N>(query, gallery, start, rule.widths[segment], sums[segment]);
    }
  }
  for (int n = 0; n < N; ++n) scores[n] = score_of(rule, sums[0][n], sums[1][n], sums[2][n]);
}

// Exact scores of a query's row, in float64, with the gallery's rows of these numbers.
template <class T>
MOTARFUSE_TARGET void score_columns(const ExactCall& call, const double* query, const int64_t* columns, int64_t count,
                                    double* scores) {
  const T* const rows = static_cast<const T*>(call.gallery);
  const auto row = [&](int64_t i) { return rows + columns[i] * call.gallery_stride; };
  int64_t i = 0;
  for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) {
    const T* gallery[kRowsAtOnce];
    for (int n = 0; n < kRowsAtOnce; ++n) {
      gallery[n] = row(i + n);
      if (i + kRowsAtOnce + n >= count) continue;
      // Rows are far from one another: nothing else would ask for the next ones in time.
      const char* const next = reinterpret_cast<const char*>(row(i + kRowsAtOnce + n));
      const int64_t bytes = call.width * static_cast<int64_t>(sizeof(T));
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b);
    }
    score_rows<T, kRowsAtOnce>(call.rule, query, gallery, scores + i);
  }
  for (; i < count; ++i) {
    const T* const gallery = row(i);
    score_rows<T, 1>(call.rule, query, &gallery, scores + i);
  }
}

// A query's row in float64: where it lies, or converted into `scratch`.
template <class T>
MOTARFUSE_TARGET_INLINE const double* query_row(const ExactCall& call, int64_t index, std::vector<double>& scratch) {
  const T* const row = static_cast<const T*>(call.query) + index * call.query_stride;
  if constexpr (std::is_same_v<T, double>) {
    return row;
  } else {
    double* const target = scratch.data();
    for (int64_t i = 0; i < call.width; ++i) target[i] = static_cast<double>(row[i]);
    return target;
  }
}

// Comparisons --------------------------------------------------------------------------------------------------------

// Bit j: score j of 64 is above `high`; is not above it and not below `low`.
struct Compared {
  uint64_t above, undecided;
};

MOTARFUSE_TARGET_INLINE Compared compare(const float* scores, float low, float high) {
  Compared found{0, 0};
#if MOTARFUSE_BYTES == 64
  for (int j = 0; j < kBlock; j += 16) {
    const __m512 score = _mm512_loadu_ps(scores + j);
    const __mmask16 above = _mm512_cmp_ps_mask(score, _mm512_set1_ps(high), _CMP_GT_OQ);
    const __mmask16 below = _mm512_cmp_ps_mask(score, _mm512_set1_ps(low), _CMP_LT_OQ);
    found.above |= static_cast<uint64_t>(above) << j;
    found.undecided |= static_cast<uint64_t>(above | below) << j;
  }
#elif MOTARFUSE_BYTES == 32
  for (int j = 0; j < kBlock; j += 8) {
    const __m256 score = _mm256_loadu_ps(scores + j);
    const __m256 above = _mm256_cmp_ps(score, _mm256_set1_ps(high), _CMP_GT_OQ);
    const __m256 below = _mm256_cmp_ps(score, _mm256_set1_ps(low), _CMP_LT_OQ);
    found.above |= static_cast<uint64_t>(_mm256_movemask_ps(above)) << j;
    found.undecided |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_or_ps(above, below))) << j;
  }
#elif defined(__x86_64__)
  for (int j = 0; j < kBlock; j += 4) {
    const __m128 score = _mm_loadu_ps(scores + j);
    const __m128 above = _mm_cmpgt_ps(score, _mm_set1_ps(high));
    const __m128 below = _mm_cmplt_ps(score, _mm_set1_ps(low));
    found.above |= static_cast<uint64_t>(_mm_movemask_ps(above)) << j;
    found.undecided |= static_cast<uint64_t>(_mm_movemask_ps(_mm_or_ps(above, below))) << j;
  }
#else
  for (int j = 0; j < kBlock; ++j) {
    const bool above = scores[j] > high, below = scores[j] < low;
    found.above |= static_cast<uint64_t>(above) << j;
    found.undecided |= static_cast<uint64_t>(above || below) << j;
  }
#endif
  found.undecided = ~found.undecided;
  return found;
}

// How many of a rising table's 2^levels - 1 numbers are below each of 64 scores.
MOTARFUSE_TARGET_INLINE void search(const float* table, int levels, const float* scores, int32_t* found) {
  for (int j = 0; j < kBlock; ++j) found[j] = 0;
  for (int32_t step = levels > 0 ? int32_t(1) << (levels - 1) : 0; step > 0; step /= 2) {
    const float* const middle = table + step - 1;
    for (int j = 0; j < kBlock; ++j) {
      const float number = middle[found[j]];
      found[j] += number < scores[j] ? step : 0;
    }
  }
}

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse

#include MOTARFUSE_ROWS

#undef MOTARFUSE_TARGET_INLINE
#undef MOTARFUSE_LOOPS
#undef MOTARFUSE_TARGET
#undef MOTARFUSE_BYTES
