// The host side of part_moments that both devices share: checks, allocation, and a call as plain pointers and strides.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "part_moments.h"
#include "views.h"

namespace motarfuse {

// (B, K, N, 2, 2): strides in elements. No data: the identity in every cell, or no gradient wanted.
struct AffineView {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t batch = 0, part = 0, cell = 0, row = 0, column = 0;

  // A cell's four numbers lie one after the other.
  MOTARFUSE_HOST_DEVICE bool packed() const { return row == 2 && column == 1; }
};

// Results of the forward, or their gradients in the backward: contiguous, one dtype.
struct RowsView {
  void* keypoints = nullptr;
  void* affines = nullptr;
  void* confidence = nullptr;
  ScalarType type = ScalarType::Float;
};

struct MomentsCall {
  LogitsView logits;
  AffineView affine;
  RowsView rows;
  void* statistics = nullptr;  // (B * K, kMomentStatistics); null when a forward need not keep them
  LogitsView grad_logits;
  AffineView grad_affine;
  int64_t batch = 0, parts = 0, height = 0, width = 0;
  double inverse_temperature = 1.0;

  MOTARFUSE_HOST_DEVICE int64_t num_rows() const { return batch * parts; }
  MOTARFUSE_HOST_DEVICE int64_t num_cells() const { return height * width; }
};

static_assert(sizeof(RowStatistics<double>) == kMomentStatistics * sizeof(double), "statistics are an array of rows");

template <class C>
MOTARFUSE_HOST_DEVICE void write_row(const MomentsCall& call, int64_t index, const RowStatistics<C>& row) {
  const RowsView& out = call.rows;
  write_as(out.keypoints, out.type, 2 * index, row.x);
  write_as(out.keypoints, out.type, 2 * index + 1, row.y);
  for (int c = 0; c < 4; ++c) write_as(out.affines, out.type, 4 * index + c, row.affine[c]);
  write_as(out.confidence, out.type, index, row.confidence);
  if (call.statistics != nullptr) static_cast<RowStatistics<C>*>(call.statistics)[index] = row;
}

template <class C>
MOTARFUSE_HOST_DEVICE RowGradient<C> read_row_gradient(const MomentsCall& call, int64_t index) {
  const RowsView& in = call.rows;
  RowGradient<C> gradient;
  gradient.row = static_cast<const RowStatistics<C>*>(call.statistics)[index];
  gradient.x = read_as<C>(in.keypoints, in.type, 2 * index);
  gradient.y = read_as<C>(in.keypoints, in.type, 2 * index + 1);
  for (int c = 0; c < 4; ++c) gradient.affine[c] = read_as<C>(in.affines, in.type, 4 * index + c);
  gradient.twice_confidence = C(2) * read_as<C>(in.confidence, in.type, index);
  gradient.inverse_temperature = static_cast<C>(call.inverse_temperature);
  return gradient;
}

inline AffineView affine_view(const Tensor& tensor) {
  return {tensor.data_ptr(),  tensor.scalar_type(), tensor.stride(0), tensor.stride(1),
          tensor.stride(2), tensor.stride(3),     tensor.stride(4)};
}

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(has_shape(tensor, shape), "part_moments: ", name,
                  " has a shape that does not fit the logits and the grid");
}

// What the forward and the backward are given alike. The public function has checked all of it with better messages;
// this guards direct calls of torch.ops, which would read out of bounds otherwise.
inline MomentsCall moments_call(const Tensor& logits, const std::optional<Tensor>& affine, int64_t height,
                                int64_t width, double temperature) {
  STD_TORCH_CHECK(logits.dim() == 3, "part_moments: logits must have 3 dimensions");
  STD_TORCH_CHECK(height > 0 && width > 0, "part_moments: the grid must be positive");
  MomentsCall call;
  call.batch = logits.size(0);
  call.parts = logits.size(1);
  call.height = height;
  call.width = width;
  call.inverse_temperature = 1.0 / temperature;
  check_shape(logits, {call.batch, call.parts, height * width}, "logits");
  call.logits = logits_view(logits);
  if (affine.has_value()) {
    check_shape(*affine, {call.batch, call.parts, height * width, 2, 2}, "affine");
    STD_TORCH_CHECK(affine->device() == logits.device(), "part_moments: affine is on another device than logits");
    call.affine = affine_view(*affine);
    STD_TORCH_CHECK(call.affine.type == call.logits.type ||
                        (call.affine.type == ScalarType::Float && is_half(call.logits.type)),
                    "part_moments: affine must have the logits' dtype, or float32 beside half logits");
  }
  return call;
}

inline MomentResults allocate_results(MomentsCall& call, const Tensor& logits, ScalarType dtype, bool save_statistics) {
  const auto compute = compute_type(call.logits.type);
  const std::array<int64_t, 4> shape{call.batch, call.parts, 2, 2};
  const std::array<int64_t, 3> statistics_shape{call.batch, call.parts, kMomentStatistics};
  const std::array<int64_t, 1> nothing{0};
  using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
  auto keypoints = torch::stable::new_empty(logits, Sizes(shape.data(), 3), dtype);
  auto affines = torch::stable::new_empty(logits, Sizes(shape.data(), 4), dtype);
  auto confidence = torch::stable::new_empty(logits, Sizes(shape.data(), 2), dtype);
  auto statistics = torch::stable::new_empty(
      logits, save_statistics ? Sizes(statistics_shape.data(), 3) : Sizes(nothing.data(), 1), compute);
  call.rows = {keypoints.data_ptr(), affines.data_ptr(), confidence.data_ptr(), dtype};
  call.statistics = save_statistics ? statistics.data_ptr() : nullptr;
  return {keypoints, affines, confidence, statistics};
}

inline void take_row_gradients(MomentsCall& call, const Tensor& logits, const Tensor& grad_keypoints,
                               const Tensor& grad_affines, const Tensor& grad_confidence, const Tensor& statistics) {
  check_shape(grad_keypoints, {call.batch, call.parts, 2}, "grad_keypoints");
  check_shape(grad_affines, {call.batch, call.parts, 2, 2}, "grad_affines");
  check_shape(grad_confidence, {call.batch, call.parts}, "grad_confidence");
  check_shape(statistics, {call.batch, call.parts, kMomentStatistics}, "statistics");
  STD_TORCH_CHECK(grad_keypoints.is_contiguous() && grad_affines.is_contiguous() && grad_confidence.is_contiguous() &&
                      statistics.is_contiguous(),
                  "part_moments: gradients of the results and statistics must be contiguous");
  const auto type = grad_keypoints.scalar_type();
  STD_TORCH_CHECK(grad_affines.scalar_type() == type && grad_confidence.scalar_type() == type,
                  "part_moments: gradients of the results must have one dtype");
  STD_TORCH_CHECK(statistics.scalar_type() == compute_type(call.logits.type),
                  "part_moments: statistics have a wrong dtype");
  for (const Tensor* tensor : {&grad_keypoints, &grad_affines, &grad_confidence, &statistics}) {
    STD_TORCH_CHECK(tensor->device() == logits.device(), "part_moments: a gradient is on another device than logits");
  }
  call.rows = {grad_keypoints.data_ptr(), grad_affines.data_ptr(), grad_confidence.data_ptr(), type};
  call.statistics = statistics.data_ptr();
}

// Gradients take the strides of what they belong to, so that no transposition follows.
inline MomentGradients allocate_gradients(MomentsCall& call, const Tensor& logits, const std::optional<Tensor>& affine,
                                          bool needs_logits, bool needs_affine) {
  needs_affine = needs_affine && affine.has_value();
  const std::array<int64_t, 1> nothing{0};
  const torch::headeronly::IntHeaderOnlyArrayRef empty(nothing.data(), 1);
  auto grad_logits = needs_logits ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, empty);
  auto grad_affine = needs_affine ? torch::stable::empty_like(*affine) : torch::stable::new_empty(logits, empty);
  if (needs_logits) call.grad_logits = logits_view(grad_logits);
  if (needs_affine) call.grad_affine = affine_view(grad_affine);
  return {grad_logits, grad_affine};
}

}  // namespace motarfuse
