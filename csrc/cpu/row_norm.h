// What add_layer_norm and gated_fusion share on the CPU: rows of tensors of any leading dimensions, strides and dtype
// in the type computed in, and sums over rows in an order that depends on sizes alone.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "../parallel.h"
#include "../views.h"
#include "part_pool_rows.h"
#include "simd.h"

namespace motarfuse {

// (..., C) as rows of C channels: strides in elements.
struct StridedRows {
  void* data = nullptr;  // null: not given, or not wanted
  ScalarType type = ScalarType::Float;
  int64_t row = 0, channel = 0;
  // Sizes and strides of the leading dimensions, innermost first, where no single stride leads from row to row.
  std::vector<std::pair<int64_t, int64_t>> leading;

  MOTARFUSE_INLINE int64_t offset(int64_t index) const {
    return leading.empty() ? index * row : offset_in_dimensions(index);
  }

 private:
  int64_t offset_in_dimensions(int64_t index) const {
    int64_t result = 0;
    for (const auto& [size, stride] : leading) {
      result += index % size * stride;
      index /= size;
    }
    return result;
  }
};

inline StridedRows strided_rows(const Tensor& tensor) {
  const int64_t dimensions = tensor.dim() - 1;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  StridedRows view{tensor.data_ptr(), tensor.scalar_type(), 0, sizes[dimensions] == 1 ? 1 : strides[dimensions], {}};
  int64_t merged = 1;  // the size of what is one dimension so far
  std::vector<std::pair<int64_t, int64_t>> leading;
  for (int64_t d = dimensions - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (merged == 1) {
      view.row = strides[d];
    } else if (strides[d] != merged * view.row) {
      leading.emplace_back(merged, view.row);
      merged = 1;
      view.row = strides[d];
    }
    merged *= sizes[d];
  }
  if (!leading.empty()) {
    leading.emplace_back(merged, view.row);
    view.leading = std::move(leading);
  }
  return view;
}

inline StridedRows strided_rows(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? strided_rows(*tensor) : StridedRows{};
}

template <class C>
constexpr ScalarType kScalarType = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;

// Rows that are at the same step: a row's sums wait for its end, and the next row need not wait for them. As many as
// leave room for four tensors of them in the innermost cache.
constexpr int64_t kRowsAtOnce = 8, kBytesAtOnce = 8192;
template <class C>
int64_t rows_at_once(int64_t channels) {
  return std::clamp<int64_t>(kBytesAtOnce / static_cast<int64_t>(sizeof(C)) / channels, 1, kRowsAtOnce);
}

// One thread's rows of a tensor: where they lie, or converted into rows of its own, one for each slot.
template <class C>
class Rows {
 public:
  Rows(const StridedRows& view, int64_t channels)
      : view_(view),
        channels_(channels),
        in_place_(view.data == nullptr || (view.type == kScalarType<C> && view.channel == 1)),
        own_(in_place_ ? 0 : rows_at_once<C>(channels) * channels) {}

  // Null where there is no tensor.
  MOTARFUSE_INLINE const C* read(int64_t index, int64_t slot) {
    if (view_.data == nullptr) return nullptr;
    if (in_place_) return offset<C>(view_.data, view_.offset(index));
    C* const row = own_.data() + slot * channels_;
    load_line(view_.data, view_.type, view_.offset(index), view_.channel, channels_, row);
    return row;
  }

  // Where a row is to be written; `write` follows.
  MOTARFUSE_INLINE C* target(int64_t index, int64_t slot) {
    if (view_.data == nullptr) return nullptr;
    return in_place_ ? offset<C>(view_.data, view_.offset(index)) : own_.data() + slot * channels_;
  }

  MOTARFUSE_INLINE void write(int64_t index, const C* row) {
    if (view_.data == nullptr) return;
    if (!in_place_) {
      store_line(view_.data, view_.type, view_.offset(index), view_.channel, channels_, row);
    } else if (C* const place = offset<C>(view_.data, view_.offset(index)); place != row) {
      std::memcpy(place, row, channels_ * sizeof(C));
    }
  }

 private:
  const StridedRows& view_;
  const int64_t channels_;
  const bool in_place_;
  Buffer<C> own_;
};

// A vector of a tensor in the type computed in, contiguous.
template <class C>
class VectorOf {
 public:
  VectorOf() = default;
  explicit VectorOf(const Tensor& tensor) {
    const int64_t count = tensor.numel(), stride = tensor.stride(0);
    if (tensor.scalar_type() == kScalarType<C> && (stride == 1 || count <= 1)) {
      data_ = static_cast<const C*>(tensor.data_ptr());
      return;
    }
    converted_.resize(count);
    load_line(tensor.data_ptr(), tensor.scalar_type(), 0, stride, count, converted_.data());
    data_ = converted_.data();
  }
  explicit VectorOf(const std::optional<Tensor>& tensor)
      : VectorOf(tensor.has_value() ? VectorOf(*tensor) : VectorOf()) {}
  VectorOf(VectorOf&&) = default;
  VectorOf(const VectorOf&) = delete;

  const C* data() const { return data_; }

 private:
  std::vector<C> converted_;
  const C* data_ = nullptr;
};

// Sums over rows, of as many vectors (C,) as wanted: one for each group of rows, then over the groups in their order.
template <class C>
class RowSums {
 public:
  RowSums(int64_t rows, int64_t channels, int64_t vectors)
      : rows_(rows),
        channels_(channels),
        vectors_(vectors),
        group_rows_(std::clamp<int64_t>(kGroupNumbers / channels, 16, 256)),
        sums_(vectors * groups() * channels) {}

  int64_t groups() const { return (rows_ + group_rows_ - 1) / group_rows_; }
  int64_t first_row(int64_t group) const { return std::min(rows_, group * group_rows_); }
  int64_t numbers() const { return group_rows_ * channels_; }

  C* sum(int64_t group, int64_t vector) { return sums_.data() + (group * vectors_ + vector) * channels_; }

  // In float64, so that many groups cost no accuracy.
  void write(int64_t vector, const Tensor& target) {
    std::vector<double> total(channels_);
    std::vector<C> rounded(channels_);
    for (int64_t group = 0; group < groups(); ++group) {
      const C* const one = sum(group, vector);
      for (int64_t c = 0; c < channels_; ++c) total[c] += one[c];
    }
    for (int64_t c = 0; c < channels_; ++c) rounded[c] = static_cast<C>(total[c]);
    store_line(target.data_ptr(), target.scalar_type(), 0, 1, channels_, rounded.data());
  }

 private:
  static constexpr int64_t kGroupNumbers = 1 << 15;  // enough for a thread, few enough to share among threads
  const int64_t rows_, channels_, vectors_, group_rows_;
  Buffer<C> sums_;
};

// The public functions have checked all of it with better messages; this guards direct calls of torch.ops, which would
// read out of bounds otherwise.
inline bool fits(const std::optional<Tensor>& tensor, torch::headeronly::IntHeaderOnlyArrayRef shape,
                 ScalarType compute) {
  if (!tensor.has_value()) return true;
  const auto sizes = tensor->sizes();
  return sizes.size() == shape.size() && std::equal(sizes.begin(), sizes.end(), shape.begin()) &&
         computes_alike(tensor->scalar_type(), compute);
}

inline void check_statistics(const char* name, const Tensor& mean, const Tensor& rstd) {
  const ScalarType compute = mean.scalar_type();
  STD_TORCH_CHECK((compute == ScalarType::Float || compute == ScalarType::Double) && rstd.scalar_type() == compute &&
                      fits(rstd, mean.sizes(), compute) && mean.is_contiguous() && rstd.is_contiguous(),
                  name, ": mean and rstd are not what a forward with statistics saved");
}

// Of no elements where nobody needs it.
inline Tensor new_or_none(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType type,
                          bool needed) {
  return needed ? torch::stable::new_empty(like, shape, type) : new_empty(like, {0}, type);
}

// Of contiguous tensors.
inline void fill_with_zeros(const Tensor& tensor) {
  if (tensor.numel() > 0) std::memset(tensor.data_ptr(), 0, tensor.numel() * tensor.element_size());
}

template <class C>
C* numbers_of(const Tensor& tensor) {
  return static_cast<C*>(tensor.data_ptr());
}

}  // namespace motarfuse
