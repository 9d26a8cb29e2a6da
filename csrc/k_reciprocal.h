// k-reciprocal encoding (Zhong et al. 2017), sample by sample: sets of neighbours and averages of sparse rows. Lists
// are ascending sample numbers; every sum has one order, on the CPU and on the GPU.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "ranking.h"

namespace motarfuse {

// (rows, width) lists side by side. A list that is shorter than the width ends with numbers >= the number of samples.
struct SampleLists {
  const int32_t* data = nullptr;
  int64_t samples = 0, width = 0;

  MOTARFUSE_HOST_DEVICE const int32_t* row(int64_t sample) const { return data + sample * width; }
};

// Sparse rows: row i has the columns and values from starts[i] to starts[i + 1], columns ascending.
struct SparseRows {
  const int64_t* starts = nullptr;
  const int32_t* columns = nullptr;
  const double* values = nullptr;
};

// First place of an ascending list whose number is not below `value`.
MOTARFUSE_HOST_DEVICE int64_t lower_place(const int32_t* list, int64_t count, int32_t value) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = list[first + half] < value;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// Puts a number where it belongs in an ascending list that does not have it yet; returns the new length.
MOTARFUSE_HOST_DEVICE int64_t insert_sample(int32_t* list, int64_t count, int32_t value) {
  const int64_t place = lower_place(list, count, value);
  if (place < count && list[place] == value) return count;
  for (int64_t i = count; i > place; --i) list[i] = list[i - 1];
  list[place] = value;
  return count + 1;
}

// Those of a sample's `neighbors.width` nearest that have it among their own, ascending; the rest of `found` (width) is
// filled with the number of samples. Lists are read up to their width; their rows lie `stride` apart.
MOTARFUSE_HOST_DEVICE void reciprocal_neighbors(const SampleLists& neighbors, int64_t stride, int64_t sample,
                                                int32_t* found) {
  const int32_t* const own = neighbors.data + sample * stride;
  int64_t count = 0;
  for (int64_t i = 0; i < neighbors.width; ++i) {
    const int32_t* const theirs = neighbors.data + own[i] * stride;
    bool mutual = false;
    for (int64_t j = 0; j < neighbors.width; ++j) mutual |= theirs[j] == sample;
    if (mutual) count = insert_sample(found, count, own[i]);
  }
  for (int64_t i = count; i < neighbors.width; ++i) found[i] = static_cast<int32_t>(neighbors.samples);
}

MOTARFUSE_HOST_DEVICE int64_t list_length(const SampleLists& lists, int64_t sample) {
  const int32_t* const list = lists.row(sample);
  int64_t length = 0;
  while (length < lists.width && list[length] < lists.samples) ++length;
  return length;
}

// A sample's reciprocal neighbours (`wide`) and the narrower sets of those that share more than two thirds of theirs
// with it; returns how many. `members` has room for wide.width * (narrow.width + 1).
//
// 3 * shared > 2 * length is what `shared > 2. / 3 * length` gives in double for every length: 2. / 3 is below 2/3 by
// so little that a product that should be whole is rounded to it.
MOTARFUSE_HOST_DEVICE int64_t expand_set(const SampleLists& wide, const SampleLists& narrow, int64_t sample,
                                         int32_t* members) {
  const int32_t* const own = wide.row(sample);
  const int64_t length = list_length(wide, sample);
  int64_t count = length;
  for (int64_t i = 0; i < length; ++i) members[i] = own[i];
  for (int64_t i = 0; i < length; ++i) {
    const int32_t* const theirs = narrow.row(own[i]);
    const int64_t candidates = list_length(narrow, own[i]);
    int64_t shared = 0, a = 0, b = 0;
    while (a < length && b < candidates) {
      shared += own[a] == theirs[b];
      const bool first = own[a] <= theirs[b], second = theirs[b] <= own[a];
      a += first;
      b += second;
    }
    if (3 * shared <= 2 * candidates) continue;
    for (int64_t j = 0; j < candidates; ++j) count = insert_sample(members, count, theirs[j]);
  }
  return count;
}

// Divides a row by its sum, which is added from the first value on.
MOTARFUSE_HOST_DEVICE void normalize_row(const int64_t* starts, int64_t row, double* values) {
  double sum = 0.0;
  for (int64_t i = starts[row]; i < starts[row + 1]; ++i) sum = rounded_sum(sum, values[i]);
  for (int64_t i = starts[row]; i < starts[row + 1]; ++i) values[i] /= sum;
}

// The mean of `count` sparse rows, added in the order in which they are given; returns how many columns it has. `heads`
// has room for `count` places. Writes nothing where `columns` is null.
MOTARFUSE_HOST_DEVICE int64_t average_rows(const SparseRows& rows, const int32_t* samples, int64_t count,
                                           int64_t* heads, int32_t* columns, double* values) {
  constexpr int32_t kNone = INT32_MAX;
  for (int64_t i = 0; i < count; ++i) heads[i] = rows.starts[samples[i]];
  for (int64_t length = 0;; ++length) {
    int32_t column = kNone;
    for (int64_t i = 0; i < count; ++i) {
      if (heads[i] == rows.starts[samples[i] + 1]) continue;
      const int32_t next = rows.columns[heads[i]];
      column = next < column ? next : column;
    }
    if (column == kNone) return length;
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      if (heads[i] == rows.starts[samples[i] + 1] || rows.columns[heads[i]] != column) continue;
      if (columns != nullptr) sum = rounded_sum(sum, rows.values[heads[i]]);
      ++heads[i];
    }
    if (columns != nullptr) {
      columns[length] = column;
      values[length] = sum / static_cast<double>(count);
    }
  }
}

}  // namespace motarfuse
