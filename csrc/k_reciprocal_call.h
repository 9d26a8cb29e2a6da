// Arguments of the k-reciprocal operators, checked; the CPU and the GPU share them.
#pragma once

#include <limits>
#include <optional>

#include "k_reciprocal.h"
#include "library.h"
#include "views.h"

namespace motarfuse {

inline bool is_list(const Tensor& tensor, ScalarType type) {
  return tensor.dim() == 1 && tensor.is_contiguous() && tensor.scalar_type() == type;
}

// CPU only: the places that numbers of a call point to must exist.
template <class T>
void check_range(const Tensor& numbers, int64_t first, int64_t last, const char* what) {
  const T* const data = static_cast<const T*>(numbers.data_ptr());
  int64_t size = 1;
  for (int64_t i = 0; i < numbers.dim(); ++i) size *= numbers.size(i);
  bool inside = true;
  for (int64_t i = 0; i < size; ++i) inside &= data[i] >= first && data[i] <= last;
  STD_TORCH_CHECK(inside, "k_reciprocal: ", what);
}

// Lists that begin at `starts` lie in `size` numbers, one after the other.
inline void check_starts(const Tensor& starts, int64_t size) {
  const int64_t* const data = static_cast<const int64_t*>(starts.data_ptr());
  int64_t before = 0;
  bool rising = starts.size(0) >= 1;
  for (int64_t i = 0; i < starts.size(0); ++i) {
    rising &= data[i] >= before;
    before = data[i];
  }
  STD_TORCH_CHECK(rising && before <= size, "k_reciprocal: starts must rise from 0 to the numbers there are");
}

constexpr const char* kSamplesExist = "samples must be 0 to the number of samples";

template <class T>
T* data_or_null(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline SampleLists sample_lists(const Tensor& lists, int64_t samples) {
  STD_TORCH_CHECK(lists.dim() == 2 && lists.is_contiguous() && lists.scalar_type() == ScalarType::Int,
                  "k_reciprocal: lists of samples must be a contiguous matrix of int32");
  STD_TORCH_CHECK(samples < std::numeric_limits<int32_t>::max(), "k_reciprocal: too many samples");
  return {data_or_null<const int32_t>(lists), samples, lists.size(1)};
}

inline SparseRows sparse_rows(const Tensor& starts, const Tensor& columns, const Tensor& values) {
  STD_TORCH_CHECK(is_list(starts, ScalarType::Long) && is_list(columns, ScalarType::Int) &&
                      is_list(values, ScalarType::Double) && columns.size(0) == values.size(0),
                  "k_reciprocal: sparse rows are int64 starts, int32 columns and as many float64 values");
  return {data_or_null<const int64_t>(starts), data_or_null<const int32_t>(columns),
          data_or_null<const double>(values)};
}

// What queries share with a gallery: their rows, the gallery's entries by column, and the room for what is found.
struct OverlapCall {
  SparseRows rows;
  const int64_t* queries = nullptr;
  int64_t count = 0, gallery = 0;
  const int64_t* inverse_starts = nullptr;
  const int32_t* inverse_rows = nullptr;
  const double* inverse_values = nullptr;
  const int64_t* room = nullptr;
  int64_t* counts = nullptr;
  int32_t* columns = nullptr;
  double* sums = nullptr;
};

inline OverlapCall overlap_call(const Tensor& starts, const Tensor& columns, const Tensor& values,
                                const Tensor& queries, const Tensor& inverse_starts, const Tensor& inverse_rows,
                                const Tensor& inverse_values, int64_t gallery, const Tensor& room,
                                const Tensor& counts, const Tensor& out, const Tensor& sums) {
  const SparseRows rows = sparse_rows(starts, columns, values),
                   inverse = sparse_rows(inverse_starts, inverse_rows, inverse_values);
  STD_TORCH_CHECK(is_list(queries, ScalarType::Long) && is_list(room, ScalarType::Long) &&
                      is_list(counts, ScalarType::Long) && counts.size(0) == queries.size(0) &&
                      room.size(0) == queries.size(0) + 1 && gallery >= 0,
                  "k_reciprocal_overlap: expects int64 queries, one count for each, and where their room begins");
  STD_TORCH_CHECK(is_list(out, ScalarType::Int) && is_list(sums, ScalarType::Double) && out.size(0) == sums.size(0),
                  "k_reciprocal_overlap: overlaps are int32 columns and as many float64 sums");
  return {rows,           data_or_null<const int64_t>(queries), queries.size(0),
          gallery,        inverse.starts,                       inverse.columns,
          inverse.values, data_or_null<const int64_t>(room),    data_or_null<int64_t>(counts),
          data_or_null<int32_t>(out), data_or_null<double>(sums)};
}

// What a call writes: how many numbers each row has, or the rows themselves where their starts are known.
struct RowsOut {
  const int64_t* starts = nullptr;
  int64_t* counts = nullptr;
  int32_t* columns = nullptr;
  double* values = nullptr;
};

inline RowsOut rows_out(int64_t rows, const std::optional<Tensor>& starts, const Tensor& out,
                        const std::optional<Tensor>& values) {
  if (!starts.has_value()) {
    STD_TORCH_CHECK(is_list(out, ScalarType::Long) && out.size(0) == rows,
                    "k_reciprocal: counts must be one int64 a row");
    return {nullptr, data_or_null<int64_t>(out), nullptr, nullptr};
  }
  STD_TORCH_CHECK(is_list(*starts, ScalarType::Long) && starts->size(0) == rows + 1 && is_list(out, ScalarType::Int),
                  "k_reciprocal: rows are written to int32 columns behind int64 starts");
  RowsOut result{data_or_null<const int64_t>(*starts), nullptr, data_or_null<int32_t>(out), nullptr};
  if (values.has_value()) {
    STD_TORCH_CHECK(is_list(*values, ScalarType::Double) && values->size(0) == out.size(0),
                    "k_reciprocal: there must be one float64 value for each column");
    result.values = data_or_null<double>(*values);
  }
  return result;
}

}  // namespace motarfuse
