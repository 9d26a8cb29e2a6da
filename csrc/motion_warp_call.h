// The host side of motion_warp that both devices share: checks, allocation, and a call as plain pointers and strides.
#pragma once

#include "motion_warp.h"
#include "views.h"

namespace motarfuse {

// Keypoints (B, K, 2) or affines (B, K, 2, 2): strides in elements. No data: no gradient wanted.
struct PostureView {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t batch = 0, part = 0, row = 0, column = 0;  // of keypoints: x and y are a column apart

  MOTARFUSE_HOST_DEVICE int64_t at(int64_t b, int64_t k, int64_t i, int64_t j) const {
    return b * batch + k * part + i * row + j * column;
  }
};

// Both keypoints and affines, or their gradients.
struct PosturesView {
  PostureView source_keypoints, source_affines, target_keypoints, target_affines;
};

struct WarpCall {
  TokensView source;
  PosturesView postures;
  LogitsView logits;         // of the target, channel 0 the background
  LogitsView source_logits;  // no data: everything was visible
  // Results of the forward, or their gradients in the backward; no data: not given.
  TokensView warped;      // (B, N, C)
  TokensView flow;        // (B, N, 2)
  LogitsView visibility;  // (B, N): part 0
  // Gradients; no data: not wanted.
  TokensView grad_source;
  PosturesView grad_postures;
  LogitsView grad_logits, grad_source_logits;
  int64_t batch = 0, parts = 0, height = 0, width = 0, channels = 0;
  ScalarType compute = ScalarType::Float;

  MOTARFUSE_HOST_DEVICE int64_t num_cells() const { return height * width; }

  MOTARFUSE_HOST_DEVICE bool wants_postures() const {
    return grad_postures.source_keypoints.data != nullptr || grad_postures.source_affines.data != nullptr ||
           grad_postures.target_keypoints.data != nullptr || grad_postures.target_affines.data != nullptr;
  }
};

template <class C>
MOTARFUSE_HOST_DEVICE PosturePair<C> read_postures(const PosturesView& view, int64_t batch, int64_t part) {
  PosturePair<C> pair;
  const PostureView& p = view.source_keypoints;
  const PostureView& q = view.target_keypoints;
  pair.source_x = read_as<C>(p.data, p.type, p.at(batch, part, 0, 0));
  pair.source_y = read_as<C>(p.data, p.type, p.at(batch, part, 0, 1));
  pair.target_x = read_as<C>(q.data, q.type, q.at(batch, part, 0, 0));
  pair.target_y = read_as<C>(q.data, q.type, q.at(batch, part, 0, 1));
  for (int c = 0; c < 4; ++c) {
    const PostureView& a = view.source_affines;
    const PostureView& b = view.target_affines;
    pair.source_affine[c] = read_as<C>(a.data, a.type, a.at(batch, part, c / 2, c % 2));
    pair.target_affine[c] = read_as<C>(b.data, b.type, b.at(batch, part, c / 2, c % 2));
  }
  return pair;
}

template <class C>
MOTARFUSE_HOST_DEVICE void write_postures(const PosturesView& view, int64_t batch, int64_t part,
                                          const PosturePair<C>& pair) {
  const PostureView& p = view.source_keypoints;
  const PostureView& q = view.target_keypoints;
  const PostureView& a = view.source_affines;
  const PostureView& b = view.target_affines;
  if (p.data != nullptr) {
    write_as(p.data, p.type, p.at(batch, part, 0, 0), pair.source_x);
    write_as(p.data, p.type, p.at(batch, part, 0, 1), pair.source_y);
  }
  if (q.data != nullptr) {
    write_as(q.data, q.type, q.at(batch, part, 0, 0), pair.target_x);
    write_as(q.data, q.type, q.at(batch, part, 0, 1), pair.target_y);
  }
  for (int c = 0; c < 4; ++c) {
    if (a.data != nullptr) write_as(a.data, a.type, a.at(batch, part, c / 2, c % 2), pair.source_affine[c]);
    if (b.data != nullptr) write_as(b.data, b.type, b.at(batch, part, c / 2, c % 2), pair.target_affine[c]);
  }
}

inline PostureView keypoints_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(1), 0, tensor.stride(2)};
}

inline PostureView affines_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

// (B, N) as logits of one part.
inline LogitsView cells_view(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.scalar_type(), tensor.stride(0), 0, tensor.stride(1)};
}

// The tensors that forward and backward are given alike, in the order of their gradients.
struct WarpInputs {
  const Tensor &source, &source_keypoints, &source_affines, &target_keypoints, &target_affines, &part_logits;
  const std::optional<Tensor>& source_part_logits;
};

// The public function has checked all of it with better messages; this guards direct calls of torch.ops, which would
// read out of bounds otherwise.
inline WarpCall warp_call(const WarpInputs& inputs, int64_t height, int64_t width) {
  const Tensor& source = inputs.source;
  STD_TORCH_CHECK(source.dim() == 3 && inputs.source_keypoints.dim() == 3,
                  "motion_warp: source must be (B, N, C) and source_keypoints (B, K, 2)");
  STD_TORCH_CHECK(height > 0 && width > 0, "motion_warp: the grid must be positive");
  WarpCall call;
  call.batch = source.size(0);
  call.channels = source.size(2);
  call.parts = inputs.source_keypoints.size(1);
  call.height = height;
  call.width = width;
  call.compute = compute_type(source.scalar_type());
  const int64_t batch = call.batch, parts = call.parts, cells = call.num_cells();
  const auto check = [&](const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
    STD_TORCH_CHECK(has_shape(tensor, shape), "motion_warp: ", name, " has a shape that does not fit the others");
    STD_TORCH_CHECK(tensor.device() == source.device(), "motion_warp: ", name, " is on another device than source");
    STD_TORCH_CHECK(computes_alike(tensor.scalar_type(), source.scalar_type()), "motion_warp: ", name,
                    " has a dtype that cannot stand beside the source's");
  };
  check(source, {batch, cells, call.channels}, "source");
  check(inputs.source_keypoints, {batch, parts, 2}, "source_keypoints");
  check(inputs.source_affines, {batch, parts, 2, 2}, "source_affines");
  check(inputs.target_keypoints, {batch, parts, 2}, "target_keypoints");
  check(inputs.target_affines, {batch, parts, 2, 2}, "target_affines");
  check(inputs.part_logits, {batch, parts + 1, cells}, "part_logits");
  call.source = tokens_view(source);
  call.postures = {keypoints_view(inputs.source_keypoints), affines_view(inputs.source_affines),
                   keypoints_view(inputs.target_keypoints), affines_view(inputs.target_affines)};
  call.logits = logits_view(inputs.part_logits);
  if (inputs.source_part_logits.has_value()) {
    check(*inputs.source_part_logits, {batch, parts + 1, cells}, "source_part_logits");
    call.source_logits = logits_view(*inputs.source_part_logits);
  }
  return call;
}

inline WarpResults allocate_warped(WarpCall& call, const WarpInputs& inputs) {
  const int64_t batch = call.batch, cells = call.num_cells();
  auto warped = new_empty(inputs.source, {batch, cells, call.channels}, call.source.type);
  auto flow = new_empty(inputs.source, {batch, cells, 2}, inputs.source_keypoints.scalar_type());
  auto visibility = new_empty(inputs.source, {batch, cells}, call.logits.type);
  call.warped = tokens_view(warped);
  call.flow = tokens_view(flow);
  call.visibility = cells_view(visibility);
  return {warped, flow, visibility};
}

inline void take_warped_gradients(WarpCall& call, const WarpInputs& inputs, const std::optional<Tensor>& grad_warped,
                                  const std::optional<Tensor>& grad_flow,
                                  const std::optional<Tensor>& grad_visibility) {
  const int64_t batch = call.batch, cells = call.num_cells();
  const auto check = [&](const Tensor& tensor, std::initializer_list<int64_t> shape, const char* name) {
    STD_TORCH_CHECK(has_shape(tensor, shape) && tensor.device() == inputs.source.device() &&
                        computes_alike(tensor.scalar_type(), call.compute),
                    "motion_warp: ", name, " must have its result's shape, device and precision");
  };
  if (grad_warped.has_value()) {
    check(*grad_warped, {batch, cells, call.channels}, "grad_warped");
    call.warped = tokens_view(*grad_warped);
  }
  if (grad_flow.has_value()) {
    check(*grad_flow, {batch, cells, 2}, "grad_flow");
    call.flow = tokens_view(*grad_flow);
  }
  if (grad_visibility.has_value()) {
    check(*grad_visibility, {batch, cells}, "grad_visibility");
    call.visibility = cells_view(*grad_visibility);
  }
}

// Bit i of `needs`: the gradient of the i-th input is wanted. Gradients take the strides of what they belong to, so that
// no transposition follows.
inline WarpGradients allocate_warp_gradients(WarpCall& call, const WarpInputs& inputs, int64_t needs) {
  const auto gradient = [&](int bit, const Tensor& tensor) {
    return (needs >> bit & 1) != 0 ? torch::stable::empty_like(tensor) : no_gradient(inputs.source);
  };
  auto source = gradient(0, inputs.source);
  auto source_keypoints = gradient(1, inputs.source_keypoints), source_affines = gradient(2, inputs.source_affines);
  auto target_keypoints = gradient(3, inputs.target_keypoints), target_affines = gradient(4, inputs.target_affines);
  auto logits = gradient(5, inputs.part_logits);
  const bool wants_source_logits = (needs >> 6 & 1) != 0 && inputs.source_part_logits.has_value();
  auto source_logits =
      wants_source_logits ? torch::stable::empty_like(*inputs.source_part_logits) : no_gradient(inputs.source);
  if ((needs & 1) != 0) call.grad_source = tokens_view(source);
  if ((needs >> 1 & 1) != 0) call.grad_postures.source_keypoints = keypoints_view(source_keypoints);
  if ((needs >> 2 & 1) != 0) call.grad_postures.source_affines = affines_view(source_affines);
  if ((needs >> 3 & 1) != 0) call.grad_postures.target_keypoints = keypoints_view(target_keypoints);
  if ((needs >> 4 & 1) != 0) call.grad_postures.target_affines = affines_view(target_affines);
  if ((needs >> 5 & 1) != 0) call.grad_logits = logits_view(logits);
  if (wants_source_logits) call.grad_source_logits = logits_view(source_logits);
  return {source, source_keypoints, source_affines, target_keypoints, target_affines, logits, source_logits};
}

}  // namespace motarfuse
