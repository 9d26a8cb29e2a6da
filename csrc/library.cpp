// Registers the implementations of motarfuse._C. The schemas are defined in Python (motarfuse/ops), so that the
// operators exist without this library, and only the stable ABI is used, so that one build serves every torch from 2.10
// on.
#include "library.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(motarfuse, CPU, library) {
  library.impl("part_moments_forward", TORCH_BOX(&motarfuse::part_moments_forward_cpu));
  library.impl("part_moments_backward", TORCH_BOX(&motarfuse::part_moments_backward_cpu));
  library.impl("motion_warp_forward", TORCH_BOX(&motarfuse::motion_warp_forward_cpu));
  library.impl("motion_warp_backward", TORCH_BOX(&motarfuse::motion_warp_backward_cpu));
  library.impl("part_pool_forward", TORCH_BOX(&motarfuse::part_pool_forward_cpu));
  library.impl("part_pool_backward", TORCH_BOX(&motarfuse::part_pool_backward_cpu));
  library.impl("batch_hard_triplet_forward", TORCH_BOX(&motarfuse::batch_hard_triplet_forward_cpu));
  library.impl("batch_hard_triplet_backward", TORCH_BOX(&motarfuse::batch_hard_triplet_backward_cpu));
  library.impl("add_layer_norm_forward", TORCH_BOX(&motarfuse::add_layer_norm_forward_cpu));
  library.impl("add_layer_norm_backward", TORCH_BOX(&motarfuse::add_layer_norm_backward_cpu));
  library.impl("gated_fusion_forward", TORCH_BOX(&motarfuse::gated_fusion_forward_cpu));
  library.impl("gated_fusion_backward", TORCH_BOX(&motarfuse::gated_fusion_backward_cpu));
  library.impl("bias_gelu_forward", TORCH_BOX(&motarfuse::bias_gelu_forward_cpu));
  library.impl("bias_gelu_backward", TORCH_BOX(&motarfuse::bias_gelu_backward_cpu));
  library.impl("temporal_conv_forward", TORCH_BOX(&motarfuse::temporal_conv_forward_cpu));
  library.impl("temporal_conv_backward", TORCH_BOX(&motarfuse::temporal_conv_backward_cpu));
  library.impl("k_reciprocal_neighbors", TORCH_BOX(&motarfuse::k_reciprocal_neighbors_cpu));
  library.impl("k_reciprocal_expand", TORCH_BOX(&motarfuse::k_reciprocal_expand_cpu));
  library.impl("k_reciprocal_normalize", TORCH_BOX(&motarfuse::k_reciprocal_normalize_cpu));
  library.impl("k_reciprocal_average", TORCH_BOX(&motarfuse::k_reciprocal_average_cpu));
  library.impl("k_reciprocal_overlap", TORCH_BOX(&motarfuse::k_reciprocal_overlap_cpu));
  library.impl("k_reciprocal_kth", TORCH_BOX(&motarfuse::k_reciprocal_kth_cpu));
  library.impl("k_reciprocal_select", TORCH_BOX(&motarfuse::k_reciprocal_select_cpu));
  library.impl("k_reciprocal_count_earlier", TORCH_BOX(&motarfuse::k_reciprocal_count_earlier_cpu));
  library.impl("unit_rows", TORCH_BOX(&motarfuse::unit_rows_cpu));
  library.impl("pair_scores", TORCH_BOX(&motarfuse::pair_scores_cpu));
  library.impl("count_before", TORCH_BOX(&motarfuse::count_before_cpu));
  library.impl("collect_top", TORCH_BOX(&motarfuse::collect_top_cpu));
}

#if defined(MOTARFUSE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(motarfuse, CUDA, library) {
  library.impl("part_moments_forward", TORCH_BOX(&motarfuse::part_moments_forward_cuda));
  library.impl("part_moments_backward", TORCH_BOX(&motarfuse::part_moments_backward_cuda));
  library.impl("motion_warp_forward", TORCH_BOX(&motarfuse::motion_warp_forward_cuda));
  library.impl("motion_warp_backward", TORCH_BOX(&motarfuse::motion_warp_backward_cuda));
  library.impl("part_pool_forward", TORCH_BOX(&motarfuse::part_pool_forward_cuda));
  library.impl("part_pool_backward", TORCH_BOX(&motarfuse::part_pool_backward_cuda));
  library.impl("motion_attention_backward", TORCH_BOX(&motarfuse::motion_attention_backward_cuda));
  library.impl("k_reciprocal_neighbors", TORCH_BOX(&motarfuse::k_reciprocal_neighbors_cuda));
  library.impl("k_reciprocal_expand", TORCH_BOX(&motarfuse::k_reciprocal_expand_cuda));
  library.impl("k_reciprocal_normalize", TORCH_BOX(&motarfuse::k_reciprocal_normalize_cuda));
  library.impl("k_reciprocal_average", TORCH_BOX(&motarfuse::k_reciprocal_average_cuda));
  library.impl("k_reciprocal_overlap", TORCH_BOX(&motarfuse::k_reciprocal_overlap_cuda));
  library.impl("k_reciprocal_kth", TORCH_BOX(&motarfuse::k_reciprocal_kth_cuda));
  library.impl("k_reciprocal_select", TORCH_BOX(&motarfuse::k_reciprocal_select_cuda));
  library.impl("k_reciprocal_count_earlier", TORCH_BOX(&motarfuse::k_reciprocal_count_earlier_cuda));
  library.impl("unit_rows", TORCH_BOX(&motarfuse::unit_rows_cuda));
  library.impl("pair_scores", TORCH_BOX(&motarfuse::pair_scores_cuda));
  library.impl("count_before", TORCH_BOX(&motarfuse::count_before_cuda));
}
#endif
