// Tensors as plain pointers and strides in elements, and the checks and dtypes that every operator's call shares.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "library.h"
#include "scalar_types.h"

namespace motarfuse {

// (B, K, N).
struct LogitsView {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t batch = 0, part = 0, cell = 0;
};

// (B, N, C).
struct TokensView {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t batch = 0, cell = 0, channel = 0;
};

inline LogitsView logits_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline TokensView tokens_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool equal = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; equal && d < tensor.dim(); ++d) equal = tensor.size(d) == shape.begin()[d];
  return equal;
}

inline bool is_floating(ScalarType type) {
  return is_half(type) || type == ScalarType::Float || type == ScalarType::Double;
}

// float64 stands alone; half types and float32 may be mixed.
inline bool computes_alike(ScalarType one, ScalarType other) {
  return is_floating(one) && is_floating(other) && compute_type(one) == compute_type(other);
}

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

// What stands for a gradient that nobody wants.
inline Tensor no_gradient(const Tensor& like) { return new_empty(like, {0}, like.scalar_type()); }

}  // namespace motarfuse
