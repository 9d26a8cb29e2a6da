// k-reciprocal encoding on the CPU: samples over threads. What queries share with the gallery is added up in one dense
// row a thread, column by column of the query's sparse row: the order in which two ascending rows are merged.
#include "../k_reciprocal.h"

#include <algorithm>
#include <vector>

#include "../k_reciprocal_call.h"
#include "../library.h"
#include "../parallel.h"

namespace motarfuse {

Tensor k_reciprocal_neighbors_cpu(const Tensor& neighbors, int64_t k) {
  const int64_t samples = neighbors.size(0);
  SampleLists lists = sample_lists(neighbors, samples);
  STD_TORCH_CHECK(k >= 1 && k <= lists.width, "k_reciprocal_neighbors: k must be 1 to the length of the lists");
  check_range<int32_t>(neighbors, 0, samples - 1, kSamplesExist);
  const int64_t stride = lists.width;
  lists.width = k;
  const Tensor found = new_empty(neighbors, {samples, k}, ScalarType::Int);
  int32_t* const out = data_or_null<int32_t>(found);
  parallel_rows(samples, k * k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) reciprocal_neighbors(lists, stride, i, out + i * k);
  });
  return found;
}

void k_reciprocal_expand_cpu(const Tensor& wide, const Tensor& narrow, const std::optional<Tensor>& starts,
                             Tensor out) {
  const int64_t samples = wide.size(0);
  const SampleLists wide_lists = sample_lists(wide, samples), narrow_lists = sample_lists(narrow, samples);
  STD_TORCH_CHECK(narrow.size(0) == samples, "k_reciprocal_expand: both sets must be of the same samples");
  const RowsOut rows = rows_out(samples, starts, out, std::nullopt);
  check_range<int32_t>(wide, 0, samples, kSamplesExist);
  check_range<int32_t>(narrow, 0, samples, kSamplesExist);
  if (starts.has_value()) check_starts(*starts, out.size(0));
  const int64_t room = wide_lists.width * (narrow_lists.width + 1);
  parallel_rows(samples, 4 * room, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> members(room);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = expand_set(wide_lists, narrow_lists, i, members.data());
      if (rows.counts != nullptr) {
        rows.counts[i] = count;
      } else {
        std::copy_n(members.data(), count, rows.columns + rows.starts[i]);
      }
    }
  });
}

void k_reciprocal_normalize_cpu(const Tensor& starts, Tensor values) {
  STD_TORCH_CHECK(is_list(starts, ScalarType::Long) && starts.size(0) >= 1 && is_list(values, ScalarType::Double),
                  "k_reciprocal_normalize: expects int64 starts and float64 values");
  check_starts(starts, values.size(0));
  const int64_t samples = starts.size(0) - 1;
  const int64_t* const places = data_or_null<const int64_t>(starts);
  double* const numbers = data_or_null<double>(values);
  parallel_rows(samples, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) normalize_row(places, i, numbers);
  });
}

void k_reciprocal_average_cpu(const Tensor& starts, const Tensor& columns, const Tensor& values,
                              const Tensor& neighbors, int64_t k, const std::optional<Tensor>& out_starts,
                              Tensor out, const std::optional<Tensor>& out_values) {
  const int64_t samples = neighbors.size(0);
  const SampleLists lists = sample_lists(neighbors, samples);
  const SparseRows rows = sparse_rows(starts, columns, values);
  STD_TORCH_CHECK(k >= 1 && k <= lists.width && starts.size(0) == samples + 1,
                  "k_reciprocal_average: k must be 1 to the length of the lists, and there is one row a sample");
  const RowsOut target = rows_out(samples, out_starts, out, out_values);
  check_starts(starts, columns.size(0));
  check_range<int32_t>(neighbors, 0, samples - 1, kSamplesExist);
  if (out_starts.has_value()) check_starts(*out_starts, out.size(0));
  parallel_rows(samples, 64 * k * k, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> heads(k);
    for (int64_t i = begin; i < end; ++i) {
      if (target.counts != nullptr) {
        target.counts[i] = average_rows(rows, lists.row(i), k, heads.data(), nullptr, nullptr);
      } else {
        const int64_t start = target.starts[i];
        average_rows(rows, lists.row(i), k, heads.data(), target.columns + start, target.values + start);
      }
    }
  });
}

void k_reciprocal_overlap_cpu(const Tensor& starts, const Tensor& columns, const Tensor& values,
                              const Tensor& queries, const Tensor& inverse_starts, const Tensor& inverse_rows,
                              const Tensor& inverse_values, int64_t gallery, const Tensor& room, Tensor counts,
                              Tensor out, Tensor out_sums) {
  const OverlapCall call = overlap_call(starts, columns, values, queries, inverse_starts, inverse_rows, inverse_values,
                                        gallery, room, counts, out, out_sums);
  check_starts(starts, columns.size(0));
  check_starts(inverse_starts, inverse_rows.size(0));
  check_starts(room, out.size(0));
  check_range<int64_t>(queries, 0, starts.size(0) - 2, "queries must be those of the rows");
  check_range<int32_t>(columns, 0, inverse_starts.size(0) - 2, "columns must be those of the index by columns");
  check_range<int32_t>(inverse_rows, 0, gallery - 1, "rows of the index by columns must be the gallery's");
  parallel_rows(call.count, 4096, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(gallery, 0.0);
    std::vector<int32_t> met;
    for (int64_t i = begin; i < end; ++i) {
      met.clear();
      const int64_t query = call.queries[i];
      for (int64_t place = call.rows.starts[query]; place < call.rows.starts[query + 1]; ++place) {
        const double own = call.rows.values[place];
        const int32_t column = call.rows.columns[place];
        for (int64_t j = call.inverse_starts[column]; j < call.inverse_starts[column + 1]; ++j) {
          const double theirs = call.inverse_values[j];
          double& sum = sums[call.inverse_rows[j]];
          if (sum == 0.0) met.push_back(call.inverse_rows[j]);
          sum += own < theirs ? own : theirs;
        }
      }
      int64_t next = call.room[i];
      const auto take = [&](int64_t entry) {
        call.columns[next] = static_cast<int32_t>(entry);
        call.sums[next++] = sums[entry];
        sums[entry] = 0.0;
      };
      // Sorting takes longer than a look at every entry where there are many.
      if (static_cast<int64_t>(met.size()) > gallery / 32) {
        for (int64_t entry = 0; entry < gallery; ++entry) {
          if (sums[entry] != 0.0) take(entry);
        }
      } else {
        std::sort(met.begin(), met.end());
        for (const int32_t entry : met) {
          if (sums[entry] != 0.0) take(entry);
        }
      }
      call.counts[i] = next - call.room[i];
    }
  });
}

}  // namespace motarfuse
