// Calls of the ranking operators as plain pointers, and the checks of their arguments that both devices share. The
// public functions have validated all of it with better messages; this guards direct calls of torch.ops, which would
// read out of bounds otherwise.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "ranking.h"
#include "views.h"

namespace motarfuse {

// Packed rows (Q, W) and (G, W), float32 or float64, and how their exact score is put together.
struct ExactCall {
  const void *query = nullptr, *gallery = nullptr;
  int64_t query_stride = 0, gallery_stride = 0, queries = 0, entries = 0, width = 0;
  bool is_double = false;
  ScoreRule rule;
};

// Gallery indices of each row: those of row i are values[starts[i]] to values[starts[i + 1] - 1].
struct EntryLists {
  const int64_t *starts = nullptr, *values = nullptr;
};

// Scores (n, T) of all queries with gallery entries `first`, first + 1, ...
struct TileCall {
  float* scores = nullptr;
  int64_t stride = 0, rows = 0, columns = 0, first = 0;
  EntryLists left_out;

  float* row(int64_t index) const { return scores + index * stride; }
};

struct CountCall {
  ExactCall exact;
  TileCall tile;
  const float* slack = nullptr;
  const int64_t* starts = nullptr;
  const double* thresholds = nullptr;
  const int64_t* entries = nullptr;
  int64_t* counts = nullptr;
};

template <class T>
T* pointer_to(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline void check_list(const char* name, const char* what, const Tensor& list, ScalarType type, int64_t size,
                       const Tensor& beside) {
  STD_TORCH_CHECK(list.dim() == 1 && list.scalar_type() == type && list.is_contiguous(), name, ": ", what,
                  " must be contiguous, of 1 dimension, and ",
                  type == ScalarType::Long     ? "int64"
                  : type == ScalarType::Double ? "float64"
                                               : "float32");
  STD_TORCH_CHECK(size < 0 || list.size(0) == size, name, ": ", what, " has ", list.size(0), " numbers instead of ",
                  size);
  STD_TORCH_CHECK(list.device() == beside.device(), name, ": ", what, " is on another device");
}

inline ScoreRule score_rule(const char* name, const std::string& form, const std::vector<int64_t>& widths,
                            double weight, double epsilon, int64_t width) {
  ScoreRule rule;
  static const char* const kForms[] = {"product", "euclidean", "parts", "sum", "masked"};
  int index = 0;
  while (index < 5 && form != kForms[index]) ++index;
  STD_TORCH_CHECK(index < 5, name, ": form is product, euclidean, parts, sum or masked, not ", form);
  rule.form = static_cast<ScoreForm>(index);
  STD_TORCH_CHECK(widths.size() == 3, name, ": widths are those of 3 segments");
  int64_t total = 0;
  for (int i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(widths[i] >= 0 && widths[i] <= width - total, name, ": widths must add up to the columns of a row");
    rule.widths[i] = widths[i];
    total += widths[i];
  }
  STD_TORCH_CHECK(total == width, name, ": widths must add up to the columns of a row");
  if (rule.form == ScoreForm::kEuclidean) {
    STD_TORCH_CHECK(widths[0] == width, name, ": euclidean takes all columns as the first segment");
  }
  rule.weight = weight;
  rule.epsilon = epsilon;
  return rule;
}

inline ExactCall exact_call(const char* name, const Tensor& query, const Tensor& gallery, const std::string& form,
                            const std::vector<int64_t>& widths, double weight, double epsilon) {
  STD_TORCH_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1), name,
                  ": query and gallery must be (Q, W) and (G, W)");
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && gallery.scalar_type() == type, name,
                  ": query and gallery must both be float32 or both float64");
  STD_TORCH_CHECK(query.device() == gallery.device(), name, ": query and gallery are on different devices");
  const auto is_packed = [](const Tensor& rows) { return rows.size(1) <= 1 || rows.stride(1) == 1; };
  STD_TORCH_CHECK(is_packed(query) && is_packed(gallery), name, ": columns of query and gallery must be contiguous");
  ExactCall call;
  call.query = query.data_ptr();
  call.gallery = gallery.data_ptr();
  call.query_stride = query.stride(0);
  call.gallery_stride = gallery.stride(0);
  call.queries = query.size(0);
  call.entries = gallery.size(0);
  call.width = query.size(1);
  call.is_double = type == ScalarType::Double;
  call.rule = score_rule(name, form, widths, weight, epsilon, call.width);
  return call;
}

inline TileCall tile_call(const char* name, const Tensor& scores, int64_t first, const Tensor& left_out_starts,
                          const Tensor& left_out) {
  STD_TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == ScalarType::Float, name,
                  ": scores must be (n, T) and float32");
  STD_TORCH_CHECK(scores.size(1) <= 1 || scores.stride(1) == 1, name, ": columns of scores must be contiguous");
  STD_TORCH_CHECK(scores.size(0) <= 1 || scores.stride(0) >= scores.size(1), name, ": rows of scores must not overlap");
  STD_TORCH_CHECK(scores.size(1) <= std::numeric_limits<int32_t>::max(), name, ": too many columns in one tile");
  check_list(name, "left_out_starts", left_out_starts, ScalarType::Long, scores.size(0) + 1, scores);
  check_list(name, "left_out", left_out, ScalarType::Long, -1, scores);
  TileCall call;
  call.scores = pointer_to<float>(scores);
  call.stride = scores.stride(0);
  call.rows = scores.size(0);
  call.columns = scores.size(1);
  call.first = first;
  call.left_out = {pointer_to<int64_t>(left_out_starts), pointer_to<int64_t>(left_out)};
  return call;
}

// That the packed rows are those of the tile.
inline void check_tile_rows(const char* name, const ExactCall& exact, const TileCall& tile, const Tensor& slack,
                            const Tensor& scores) {
  STD_TORCH_CHECK(exact.queries == tile.rows && exact.entries == tile.columns, name,
                  ": query and gallery must have a row for each row and each column of scores");
  check_list(name, "slack", slack, ScalarType::Float, tile.rows, scores);
}

inline CountCall count_call(const Tensor& scores, const Tensor& slack, const Tensor& query, const Tensor& gallery,
                            int64_t first, const Tensor& starts, const Tensor& thresholds, const Tensor& entries,
                            const Tensor& left_out_starts, const Tensor& left_out, const std::string& form,
                            const std::vector<int64_t>& widths, double weight, double epsilon, const Tensor& counts) {
  const char* const name = "count_before";
  CountCall call;
  call.exact = exact_call(name, query, gallery, form, widths, weight, epsilon);
  call.tile = tile_call(name, scores, first, left_out_starts, left_out);
  check_tile_rows(name, call.exact, call.tile, slack, scores);
  STD_TORCH_CHECK(query.device() == scores.device(), name, ": query is on another device than scores");
  check_list(name, "starts", starts, ScalarType::Long, call.tile.rows + 1, scores);
  check_list(name, "thresholds", thresholds, ScalarType::Double, -1, scores);
  check_list(name, "entries", entries, ScalarType::Long, thresholds.size(0), scores);
  check_list(name, "counts", counts, ScalarType::Long, thresholds.size(0), scores);
  call.slack = pointer_to<float>(slack);
  call.starts = pointer_to<int64_t>(starts);
  call.thresholds = pointer_to<double>(thresholds);
  call.entries = pointer_to<int64_t>(entries);
  call.counts = pointer_to<int64_t>(counts);
  return call;
}

}  // namespace motarfuse
