// The rows of unit_rows and pair_scores for one instruction set, included by ranking_loops.h.
namespace motarfuse {
namespace {
namespace MOTARFUSE_LOOPS {

// A row over its length, from `values` in float64; returns the length.
template <class C>
MOTARFUSE_TARGET_INLINE double divide_by_length(const double* values, int64_t width, C* row) {
  double square = 0.0;
  add_up<double, false, 1>(values, &values, 0, width, &square);
  const double norm = std::sqrt(square);
  if (norm == 0.0) {
    std::fill(row, row + width, C(0));
  } else {
    for (int64_t i = 0; i < width; ++i) row[i] = static_cast<C>(values[i] / norm);
  }
  return norm;
}

template <class C>
MOTARFUSE_TARGET void unit_rows(const UnitCall& call, int64_t begin, int64_t end) {
  const int64_t width = call.width;
  std::vector<double> scratch(width);
  std::vector<C> converted(in_place<C>(call.features) ? 0 : width);
  double* const values = scratch.data();
  for (int64_t index = begin; index < end; ++index) {
    const C* source = converted.data();
    if (converted.empty()) {
      source = row_at<C>(call.features, 0, index);
    } else {
      load_row(call.features, 0, index, width, converted.data());
    }
    C* const row = static_cast<C*>(call.rows) + index * width;
    if constexpr (std::is_same_v<C, double>) {
      const Scale scale(source, width);
      for (int64_t i = 0; i < width; ++i) values[i] = source[i] * scale.first * scale.second;
      call.norms[index] = std::ldexp(divide_by_length(values, width, row), scale.exponent);
    } else {
      for (int64_t i = 0; i < width; ++i) values[i] = static_cast<double>(source[i]);
      call.norms[index] = divide_by_length(values, width, row);
    }
  }
}

template <class T>
MOTARFUSE_TARGET void score_pairs(const PairCall& call, int64_t begin, int64_t end) {
  std::vector<double> scratch(call.exact.width);
  for (int64_t i = begin; i < end;) {
    const int64_t row = call.rows[i];
    int64_t last = i + 1;
    while (last < end && call.rows[last] == row) ++last;
    score_columns<T>(call.exact, query_row<T>(call.exact, row, scratch), call.columns + i, last - i, call.scores + i);
    i = last;
  }
}

constexpr ScoreRows kRows = {unit_rows<float>, unit_rows<double>, score_pairs<float>, score_pairs<double>};

}  // namespace MOTARFUSE_LOOPS
}  // namespace
}  // namespace motarfuse
