"""Each operator in plain PyTorch: its definition, and the oracle that every kernel is compared with.

Any device and dtype, differentiable twice, no dependency but torch. Arguments are taken as they are: ``motarfuse.ops``
validates.
"""

from motarfuse.reference.add_layer_norm import add_layer_norm
from motarfuse.reference.batch_hard_triplet import batch_hard_triplet
from motarfuse.reference.bias_gelu import bias_gelu
from motarfuse.reference.gated_fusion import gated_fusion
from motarfuse.reference.linear_cross_entropy import linear_cross_entropy
from motarfuse.reference.motion_attention import motion_attention
from motarfuse.reference.motion_warp import inverse_2x2, motion_warp, sample_bilinear
from motarfuse.reference.part_moments import cell_centers, part_moments
from motarfuse.reference.part_pool import part_pool
from motarfuse.reference.temporal_conv import temporal_conv

__all__ = [
    "add_layer_norm",
    "batch_hard_triplet",
    "bias_gelu",
    "cell_centers",
    "gated_fusion",
    "inverse_2x2",
    "linear_cross_entropy",
    "motion_attention",
    "motion_warp",
    "part_moments",
    "part_pool",
    "sample_bilinear",
    "temporal_conv",
]
