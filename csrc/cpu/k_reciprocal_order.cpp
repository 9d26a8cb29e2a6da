// What rows share with gallery entries, in the order of final distances, on the CPU: rows over threads.
#include "../k_reciprocal_order.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "../k_reciprocal_order_call.h"
#include "../library.h"
#include "../parallel.h"

namespace motarfuse {
namespace {

int64_t mean_length(const SharedLists& lists) {
  int64_t sum = 0;
  for (int64_t i = 0; i < lists.rows; ++i) sum += lists.counts[i];
  return sum / std::max<int64_t>(1, lists.rows) + 1;
}

// The k-th largest of some positive numbers, 0 where there are fewer. `kept` is workspace.
double kth_largest(const double* numbers, int64_t count, int64_t k, std::vector<double>& kept) {
  kept.clear();
  double least = 0.0;
  const auto shrink = [&] {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), std::greater<>());
    kept.resize(k);
    least = kept[k - 1];
  };
  for (int64_t i = 0; i < count; ++i) {
    if (!(numbers[i] > least)) continue;
    kept.push_back(numbers[i]);
    if (static_cast<int64_t>(kept.size()) == 2 * k) shrink();
  }
  if (static_cast<int64_t>(kept.size()) >= k) shrink();
  return least;
}

}  // namespace

void k_reciprocal_kth_cpu(const Tensor& room, const Tensor& counts, const Tensor& sums, int64_t k, Tensor out) {
  const SharedLists lists = shared_lists(room, counts, nullptr, sums);
  check_shared(lists, sums.size(0));
  STD_TORCH_CHECK(k >= 1, "k_reciprocal_kth: k must be at least 1");
  double* const found = const_cast<double*>(row_numbers(out, lists.rows, "the result"));
  parallel_rows(lists.rows, mean_length(lists), [&](int64_t begin, int64_t end) {
    std::vector<double> kept;
    for (int64_t i = begin; i < end; ++i) {
      found[i] = kth_largest(lists.sums + lists.room[i], lists.counts[i], k, kept);
    }
  });
}

void k_reciprocal_select_cpu(const Tensor& room, const Tensor& counts, const Tensor& columns, const Tensor& sums,
                             const Tensor& least, const std::optional<Tensor>& starts, Tensor out,
                             const std::optional<Tensor>& out_sums) {
  const SharedLists lists = shared_lists(room, counts, &columns, sums);
  check_shared(lists, sums.size(0));
  const double* const bounds = row_numbers(least, lists.rows, "the least sum");
  const RowsOut target = selected_rows(lists.rows, starts, out, out_sums);
  if (starts.has_value()) check_starts(*starts, out.size(0));
  parallel_rows(lists.rows, mean_length(lists), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = lists.room[i], last = first + lists.counts[i];
      if (target.counts != nullptr) {
        int64_t count = 0;
        for (int64_t j = first; j < last; ++j) count += lists.sums[j] >= bounds[i];
        target.counts[i] = count;
        continue;
      }
      int64_t next = target.starts[i];
      const int64_t stop = target.starts[i + 1];
      for (int64_t j = first; j < last && next < stop; ++j) {
        if (!(lists.sums[j] >= bounds[i])) continue;
        target.columns[next] = lists.columns[j];
        target.values[next++] = lists.sums[j];
      }
    }
  });
}

void k_reciprocal_count_earlier_cpu(const Tensor& scores, const Tensor& slack, int64_t first, const Tensor& room,
                                    const Tensor& counts, const Tensor& columns, const Tensor& sums,
                                    const Tensor& largest, double gain, int64_t power, bool clamped,
                                    const Tensor& starts, const Tensor& thresholds, const Tensor& left_out_starts,
                                    const Tensor& left_out, Tensor steps, Tensor unsure) {
  const EarlierCall call = earlier_call(scores, slack, first, room, counts, columns, sums, largest, gain, power,
                                        clamped, starts, thresholds, left_out_starts, left_out, steps, unsure);
  check_shared(call.lists, sums.size(0));
  check_starts(starts, thresholds.size(0));
  check_starts(left_out_starts, left_out.size(0));
  parallel_rows(call.lists.rows, call.width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const EarlierRow row = earlier_row(call, i);
      int64_t* const counted = call.steps + call.starts[i];
      for (int64_t place = row.begin; row.asked > 0 && place < row.end; ++place) {
        const Step step = step_at(call, row, place);
        if (step.unsure) call.unsure[place] = true;
        if (step.first == step.last) continue;
        if (step.first < row.asked) counted[step.first] += 1;
        if (step.last < row.asked) counted[step.last] -= 1;
      }
    }
  });
}

}  // namespace motarfuse
