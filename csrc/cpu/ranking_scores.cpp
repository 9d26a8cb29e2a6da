// unit_rows and pair_scores on the CPU: rows and pairs over threads.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "../library.h"
#include "../parallel.h"
#include "../ranking_call.h"
#include "tokens.h"

namespace motarfuse {
namespace {

struct UnitCall {
  TokensView features;  // one item
  int64_t width = 0;
  void* rows = nullptr;
  double* norms = nullptr;
};

struct PairCall {
  ExactCall exact;
  const int64_t *rows = nullptr, *columns = nullptr;
  double* scores = nullptr;
};

struct ScoreRows {
  void (*unit_float)(const UnitCall&, int64_t, int64_t);
  void (*unit_double)(const UnitCall&, int64_t, int64_t);
  void (*pairs_float)(const PairCall&, int64_t, int64_t);
  void (*pairs_double)(const PairCall&, int64_t, int64_t);
};

// Brings the largest magnitude of a row into [0.5, 1), by a power of two: squares stay in range and no digit changes.
struct Scale {
  double first = 1.0, second = 1.0;  // two factors: the smallest numbers take more than the largest power of two
  int exponent = 0;

  Scale(const double* row, int64_t width) {
    uint64_t largest = 0;  // magnitudes have the order of their bits, NaN the last place
    for (int64_t i = 0; i < width; ++i) {
      uint64_t bits;
      std::memcpy(&bits, row + i, sizeof(bits));
      bits &= ~(uint64_t(1) << 63);
      largest = bits > largest ? bits : largest;
    }
    double magnitude;
    std::memcpy(&magnitude, &largest, sizeof(magnitude));
    if (largest == 0 || !std::isfinite(magnitude)) return;
    std::frexp(magnitude, &exponent);
    first = std::ldexp(1.0, std::min(-exponent, 1023));
    second = std::ldexp(1.0, std::max(-exponent - 1023, 0));
  }
};

}  // namespace
}  // namespace motarfuse

#define MOTARFUSE_ROWS "ranking_scores_rows.h"
#include "ranking_variants.h"

namespace motarfuse {

std::tuple<Tensor, Tensor> unit_rows_cpu(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 2 && is_floating(features.scalar_type()),
                  "unit_rows: features must have 2 dimensions and a floating-point dtype");
  const int64_t count = features.size(0), width = features.size(1);
  const ScalarType compute = compute_type(features.scalar_type());
  Tensor rows = new_empty(features, {count, width}, compute);
  Tensor norms = new_empty(features, {count}, ScalarType::Double);
  UnitCall call;
  call.features = {features.data_ptr(), features.scalar_type(), 0, features.stride(0), features.stride(1)};
  call.width = width;
  call.rows = rows.data_ptr();
  call.norms = pointer_to<double>(norms);
  const ScoreRows& loops = best_rows();
  parallel_rows(count, width, [&](int64_t begin, int64_t end) {
    (compute == ScalarType::Double ? loops.unit_double : loops.unit_float)(call, begin, end);
  });
  return {rows, norms};
}

Tensor pair_scores_cpu(const Tensor& query, const Tensor& gallery, const Tensor& rows, const Tensor& columns,
                       std::string form, std::vector<int64_t> widths, double weight, double epsilon) {
  const char* const name = "pair_scores";
  PairCall call;
  call.exact = exact_call(name, query, gallery, form, widths, weight, epsilon);
  check_list(name, "rows", rows, ScalarType::Long, -1, query);
  check_list(name, "columns", columns, ScalarType::Long, rows.size(0), query);
  call.rows = pointer_to<int64_t>(rows);
  call.columns = pointer_to<int64_t>(columns);
  const int64_t count = rows.size(0);
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) {
    inside = inside && call.rows[i] >= 0 && call.rows[i] < call.exact.queries && call.columns[i] >= 0 &&
             call.columns[i] < call.exact.entries;
  }
  STD_TORCH_CHECK(inside, name, ": rows and columns must be those of query and gallery");
  Tensor scores = new_empty(query, {count}, ScalarType::Double);
  call.scores = pointer_to<double>(scores);
  const ScoreRows& loops = best_rows();
  parallel_rows(count, call.exact.width, [&](int64_t begin, int64_t end) {
    (call.exact.is_double ? loops.pairs_double : loops.pairs_float)(call, begin, end);
  });
  return scores;
}

}  // namespace motarfuse
