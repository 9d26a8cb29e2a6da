// The entry points of every operator, one declaration a device; library.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace motarfuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using MomentResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using MomentGradients = std::tuple<Tensor, Tensor>;
using PoolResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using PoolGradients = std::tuple<Tensor, Tensor>;
using WarpResults = std::tuple<Tensor, Tensor, Tensor>;
using WarpGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using TripletResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using AddNormResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using AddNormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using GatedFusionResults = std::tuple<Tensor, Tensor, Tensor>;
using GatedFusionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BiasGeluGradients = std::tuple<Tensor, Tensor>;
using ConvGradients = std::tuple<Tensor, Tensor, Tensor>;
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

#define MOTARFUSE_DECLARE_PART_MOMENTS(device)                                                                    \
  MomentResults part_moments_forward_##device(const Tensor& logits, const std::optional<Tensor>& affine,          \
                                              int64_t height, int64_t width, double temperature,                  \
                                              ScalarType dtype, bool save_statistics);                            \
  MomentGradients part_moments_backward_##device(                                                                 \
      const Tensor& grad_keypoints, const Tensor& grad_affines, const Tensor& grad_confidence,                    \
      const Tensor& logits, const std::optional<Tensor>& affine, const Tensor& statistics, int64_t height,        \
      int64_t width, double temperature, bool needs_logits, bool needs_affine)

#define MOTARFUSE_DECLARE_K_RECIPROCAL(device)                                                                       \
  Tensor k_reciprocal_neighbors_##device(const Tensor& neighbors, int64_t k);                                        \
  void k_reciprocal_expand_##device(const Tensor& wide, const Tensor& narrow, const std::optional<Tensor>& starts,   \
                                    Tensor out);                                                                     \
  void k_reciprocal_normalize_##device(const Tensor& starts, Tensor values);                                         \
  void k_reciprocal_average_##device(const Tensor& starts, const Tensor& columns, const Tensor& values,              \
                                     const Tensor& neighbors, int64_t k, const std::optional<Tensor>& out_starts,    \
                                     Tensor out, const std::optional<Tensor>& out_values);                           \
  void k_reciprocal_overlap_##device(const Tensor& starts, const Tensor& columns, const Tensor& values,              \
                                     const Tensor& queries, const Tensor& inverse_starts,                            \
                                     const Tensor& inverse_rows, const Tensor& inverse_values, int64_t gallery,      \
                                     const Tensor& room, Tensor counts, Tensor out, Tensor out_sums);                \
  void k_reciprocal_kth_##device(const Tensor& room, const Tensor& counts, const Tensor& sums, int64_t k,            \
                                 Tensor out);                                                                        \
  void k_reciprocal_select_##device(const Tensor& room, const Tensor& counts, const Tensor& columns,                 \
                                    const Tensor& sums, const Tensor& least, const std::optional<Tensor>& starts,    \
                                    Tensor out, const std::optional<Tensor>& out_sums);                              \
  void k_reciprocal_count_earlier_##device(                                                                          \
      const Tensor& scores, const Tensor& slack, int64_t first, const Tensor& room, const Tensor& counts,            \
      const Tensor& columns, const Tensor& sums, const Tensor& largest, double gain, int64_t power, bool clamped,    \
      const Tensor& starts, const Tensor& thresholds, const Tensor& left_out_starts, const Tensor& left_out,         \
      Tensor steps, Tensor unsure)

#define MOTARFUSE_DECLARE_PART_POOL(device)                                                                           \
  PoolResults part_pool_forward_##device(const Tensor& tokens, const Tensor& part_logits, bool save_statistics);      \
  PoolGradients part_pool_backward_##device(const std::optional<Tensor>& grad_pooled,                                 \
                                            const std::optional<Tensor>& grad_mass, const Tensor& tokens,             \
                                            const Tensor& part_logits, const Tensor& pooled, const Tensor& total,     \
                                            bool needs_tokens, bool needs_logits)

#define MOTARFUSE_DECLARE_MOTION_WARP(device)                                                                         \
  WarpResults motion_warp_forward_##device(                                                                           \
      const Tensor& source, const Tensor& source_keypoints, const Tensor& source_affines,                             \
      const Tensor& target_keypoints, const Tensor& target_affines, const Tensor& part_logits,                        \
      const std::optional<Tensor>& source_part_logits, int64_t height, int64_t width);                                \
  WarpGradients motion_warp_backward_##device(                                                                        \
      const std::optional<Tensor>& grad_warped, const std::optional<Tensor>& grad_flow,                               \
      const std::optional<Tensor>& grad_visibility, const Tensor& source, const Tensor& source_keypoints,             \
      const Tensor& source_affines, const Tensor& target_keypoints, const Tensor& target_affines,                     \
      const Tensor& part_logits, const std::optional<Tensor>& source_part_logits, int64_t height, int64_t width,      \
      int64_t needs)

MOTARFUSE_DECLARE_K_RECIPROCAL(cpu);
MOTARFUSE_DECLARE_PART_MOMENTS(cpu);
MOTARFUSE_DECLARE_PART_POOL(cpu);
MOTARFUSE_DECLARE_MOTION_WARP(cpu);

TripletResults batch_hard_triplet_forward_cpu(const Tensor& features, const Tensor& labels,
                                              std::optional<double> margin, std::string metric, bool save_statistics);
Tensor batch_hard_triplet_backward_cpu(const Tensor& grad_loss, const Tensor& features, const Tensor& skipped,
                                       const Tensor& chosen, const Tensor& distances, const Tensor& weights,
                                       const Tensor& length, const Tensor& lacking, std::string metric);

AddNormResults add_layer_norm_forward_cpu(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                          const Tensor& bias, const std::optional<Tensor>& layer_scale,
                                          const std::optional<Tensor>& sample_scale, double eps, bool save_statistics);
AddNormGradients add_layer_norm_backward_cpu(
    const std::optional<Tensor>& grad_normed, const std::optional<Tensor>& grad_sum, const std::optional<Tensor>& x,
    const std::optional<Tensor>& residual, const std::optional<Tensor>& total, const Tensor& weight,
    const std::optional<Tensor>& layer_scale, const std::optional<Tensor>& sample_scale, const Tensor& mean,
    const Tensor& rstd, ScalarType x_dtype, ScalarType bias_dtype, int64_t needs);

GatedFusionResults gated_fusion_forward_cpu(const Tensor& x, const Tensor& motion, const Tensor& gate_logits,
                                            const Tensor& weight, const Tensor& bias, double eps,
                                            bool save_statistics);
GatedFusionGradients gated_fusion_backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& motion,
                                               const Tensor& gate_logits, const Tensor& weight, const Tensor& mean,
                                               const Tensor& rstd, ScalarType bias_dtype, int64_t needs);

Tensor bias_gelu_forward_cpu(const Tensor& x, const std::optional<Tensor>& bias, std::string activation);
BiasGeluGradients bias_gelu_backward_cpu(const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& bias,
                                         std::string activation, bool needs_x, bool needs_bias);
Tensor temporal_conv_forward_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& frame_mask, std::string missing);
ConvGradients temporal_conv_backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                         const std::optional<Tensor>& bias, const std::optional<Tensor>& frame_mask,
                                         std::string missing, bool needs_x, bool needs_weight, bool needs_bias);

#define MOTARFUSE_DECLARE_RANKING(device)                                                                             \
  Tensor pair_scores_##device(const Tensor& query, const Tensor& gallery, const Tensor& rows, const Tensor& columns,  \
                              std::string form, std::vector<int64_t> widths, double weight, double epsilon);          \
  void count_before_##device(Tensor scores, const Tensor& slack, const Tensor& query, const Tensor& gallery,          \
                             int64_t first, const Tensor& starts, const Tensor& thresholds, const Tensor& entries,    \
                             const Tensor& left_out_starts, const Tensor& left_out, std::string form,                 \
                             std::vector<int64_t> widths, double weight, double epsilon, Tensor counts)

MOTARFUSE_DECLARE_RANKING(cpu);

std::tuple<Tensor, Tensor> unit_rows_cpu(const Tensor& features);
void collect_top_cpu(Tensor scores, const Tensor& slack, const Tensor& query, const Tensor& gallery, int64_t first,
                     const Tensor& left_out_starts, const Tensor& left_out, std::string form,
                     std::vector<int64_t> widths, double weight, double epsilon, bool largest,
                     const std::optional<Tensor>& query_camids, const std::optional<Tensor>& gallery_camids,
                     int64_t camera_rule, const std::optional<Tensor>& query_pids,
                     const std::optional<Tensor>& gallery_pids, int64_t pid_rule,
                     const std::optional<Tensor>& query_times, const std::optional<Tensor>& gallery_times,
                     double earliest, double latest, Tensor values, Tensor indices, Tensor filled);

#if defined(MOTARFUSE_WITH_CUDA)
MOTARFUSE_DECLARE_K_RECIPROCAL(cuda);
MOTARFUSE_DECLARE_PART_MOMENTS(cuda);
MOTARFUSE_DECLARE_PART_POOL(cuda);
MOTARFUSE_DECLARE_MOTION_WARP(cuda);
MOTARFUSE_DECLARE_RANKING(cuda);

std::tuple<Tensor, Tensor> unit_rows_cuda(const Tensor& features);

AttentionGradients motion_attention_backward_cuda(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& motion_query, const std::optional<Tensor>& motion_key,
    const std::optional<Tensor>& motion_scale, const std::optional<Tensor>& key_bias, const Tensor& out,
    const Tensor& lse, double scale, bool packed, int64_t needs);
#endif

}  // namespace motarfuse
