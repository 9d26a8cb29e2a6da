// Arguments of the operators on what rows share with gallery entries, checked; the CPU and the GPU share them.
#pragma once

#include <optional>

#include "k_reciprocal_call.h"
#include "k_reciprocal_order.h"

namespace motarfuse {

inline SharedLists shared_lists(const Tensor& room, const Tensor& counts, const Tensor* columns, const Tensor& sums) {
  STD_TORCH_CHECK(is_list(room, ScalarType::Long) && is_list(counts, ScalarType::Long) &&
                      room.size(0) == counts.size(0) + 1 && is_list(sums, ScalarType::Double),
                  "k_reciprocal: what rows share are float64 sums, an int64 count a row and where its room begins");
  STD_TORCH_CHECK(columns == nullptr || (is_list(*columns, ScalarType::Int) && columns->size(0) == sums.size(0)),
                  "k_reciprocal: overlaps are int32 columns and as many float64 sums");
  return {data_or_null<const int64_t>(room), data_or_null<const int64_t>(counts),
          columns == nullptr ? nullptr : data_or_null<const int32_t>(*columns), data_or_null<const double>(sums),
          counts.size(0)};
}

// CPU only: what the lists point to must exist.
inline void check_shared(const SharedLists& lists, int64_t size) {
  bool inside = true;
  for (int64_t i = 0; i < lists.rows; ++i) {
    inside &= lists.room[i] >= 0 && lists.counts[i] >= 0 && lists.counts[i] <= size - lists.room[i];
  }
  STD_TORCH_CHECK(inside, "k_reciprocal: the entries of a row must lie in its room");
}

inline const double* row_numbers(const Tensor& numbers, int64_t rows, const char* what) {
  STD_TORCH_CHECK(is_list(numbers, ScalarType::Double) && numbers.size(0) == rows, "k_reciprocal: ", what,
                  " must be one float64 a row");
  return data_or_null<const double>(numbers);
}

inline RowsOut selected_rows(int64_t rows, const std::optional<Tensor>& starts, const Tensor& out,
                             const std::optional<Tensor>& out_sums) {
  STD_TORCH_CHECK(starts.has_value() == out_sums.has_value(),
                  "k_reciprocal_select: sums are written where the rows' starts are given");
  return rows_out(rows, starts, out, out_sums);
}

// Scores of a tile, the keys that are asked for, and which gallery entries do not count.
struct EarlierCall {
  SharedLists lists;
  KeyRule rule;
  const float *scores = nullptr, *slack = nullptr;
  int64_t stride = 0, width = 0, first = 0;
  const double* largest = nullptr;
  const int64_t *starts = nullptr, *left_out_starts = nullptr, *left_out = nullptr;
  const double* thresholds = nullptr;
  int64_t* steps = nullptr;
  bool* unsure = nullptr;
};

inline EarlierCall earlier_call(const Tensor& scores, const Tensor& slack, int64_t first, const Tensor& room,
                                const Tensor& counts, const Tensor& columns, const Tensor& sums,
                                const Tensor& largest, double gain, int64_t power, bool clamped, const Tensor& starts,
                                const Tensor& thresholds, const Tensor& left_out_starts, const Tensor& left_out,
                                const Tensor& steps, const Tensor& unsure) {
  EarlierCall call;
  call.lists = shared_lists(room, counts, &columns, sums);
  const int64_t rows = call.lists.rows;
  STD_TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == ScalarType::Float && scores.size(0) == rows &&
                      (scores.stride(1) == 1 || scores.size(1) <= 1) && is_list(slack, ScalarType::Float) &&
                      slack.size(0) == rows,
                  "k_reciprocal_count_earlier: expects float32 scores of the rows, and the slack of each");
  STD_TORCH_CHECK(power >= -1 && power <= 2, "k_reciprocal_count_earlier: power must be -1 to 2");
  STD_TORCH_CHECK(is_list(starts, ScalarType::Long) && starts.size(0) == rows + 1 &&
                      is_list(left_out_starts, ScalarType::Long) && left_out_starts.size(0) == rows + 1 &&
                      is_list(left_out, ScalarType::Long) && is_list(thresholds, ScalarType::Double) &&
                      is_list(steps, ScalarType::Long) && steps.size(0) == thresholds.size(0),
                  "k_reciprocal_count_earlier: expects float64 thresholds, int64 entries to leave out, and where "
                  "those of each row begin");
  STD_TORCH_CHECK(is_list(unsure, ScalarType::Bool) && unsure.size(0) == sums.size(0),
                  "k_reciprocal_count_earlier: there must be one bool for each overlap");
  call.rule = {power, gain, clamped};
  call.scores = data_or_null<const float>(scores);
  call.slack = data_or_null<const float>(slack);
  call.stride = scores.stride(0);
  call.width = scores.size(1);
  call.first = first;
  call.largest = row_numbers(largest, rows, "the largest distance");
  call.starts = data_or_null<const int64_t>(starts);
  call.left_out_starts = data_or_null<const int64_t>(left_out_starts);
  call.left_out = data_or_null<const int64_t>(left_out);
  call.thresholds = data_or_null<const double>(thresholds);
  call.steps = data_or_null<int64_t>(steps);
  call.unsure = data_or_null<bool>(unsure);
  return call;
}

// One row's entries in the tile, those of places [begin, end), and how they are looked at.
struct EarlierRow {
  const float* scores = nullptr;
  const double* thresholds = nullptr;
  const int64_t* left_out = nullptr;
  int64_t begin = 0, end = 0, asked = 0, num_left_out = 0;
  double slack = 0.0, largest = 0.0;
};

MOTARFUSE_HOST_DEVICE EarlierRow earlier_row(const EarlierCall& call, int64_t row) {
  EarlierRow result;
  const int64_t begin = call.lists.room[row], count = call.lists.counts[row];
  const int32_t* const columns = call.lists.columns + begin;
  result.asked = call.starts[row + 1] - call.starts[row];
  result.begin = begin + lower_place(columns, count, static_cast<int32_t>(call.first));
  result.end = begin + lower_place(columns, count, static_cast<int32_t>(call.first + call.width));
  result.scores = call.scores + row * call.stride - call.first;
  result.thresholds = call.thresholds + call.starts[row];
  result.left_out = call.left_out + call.left_out_starts[row];
  result.num_left_out = call.left_out_starts[row + 1] - call.left_out_starts[row];
  result.slack = static_cast<double>(call.slack[row]);
  result.largest = call.largest[row];
  return result;
}

// What the overlap at a place adds to the counts.
MOTARFUSE_HOST_DEVICE Step step_at(const EarlierCall& call, const EarlierRow& row, int64_t place) {
  const int32_t column = call.lists.columns[place];
  // False only of columns that do not ascend, which nothing promises here.
  if (column < call.first || column >= call.first + call.width) return {};
  const Step step = step_of(call.rule, row.scores[column], row.slack, row.largest, call.lists.sums[place],
                            row.thresholds, row.asked);
  if (step.first == step.last && !step.unsure) return {};
  return is_listed(row.left_out, row.num_left_out, column) ? Step{} : step;
}

}  // namespace motarfuse
