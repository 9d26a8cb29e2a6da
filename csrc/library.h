// The entry points of every operator, one declaration a device; library.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace motarfuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using MomentResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using MomentGradients = std::tuple<Tensor, Tensor>;

#define MOTARFUSE_DECLARE_PART_MOMENTS(device)                                                                    \
  MomentResults part_moments_forward_##device(const Tensor& logits, const std::optional<Tensor>& affine,          \
                                              int64_t height, int64_t width, double temperature,                  \
                                              ScalarType dtype, bool save_statistics);                            \
  MomentGradients part_moments_backward_##device(                                                                 \
      const Tensor& grad_keypoints, const Tensor& grad_affines, const Tensor& grad_confidence,                    \
      const Tensor& logits, const std::optional<Tensor>& affine, const Tensor& statistics, int64_t height,        \
      int64_t width, double temperature, bool needs_logits, bool needs_affine)

MOTARFUSE_DECLARE_PART_MOMENTS(cpu);
#if defined(MOTARFUSE_WITH_CUDA)
MOTARFUSE_DECLARE_PART_MOMENTS(cuda);
#endif

}  // namespace motarfuse
