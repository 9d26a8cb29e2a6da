"""The operators: validated public functions over the backends that can run where the tensors are.

Every operator takes ``impl="auto"`` or the name of a backend; ``use_backend`` and ``MOTARFUSE_BACKEND`` prefer one.
"""

from motarfuse.ops.add_layer_norm import AddLayerNorm, add_layer_norm
from motarfuse.ops.backends import (
    Backend,
    Explanation,
    Operator,
    Request,
    UnknownBackendError,
    explain,
    known_backends,
    operators,
    use_backend,
)
from motarfuse.ops.batch_hard_triplet import batch_hard_triplet
from motarfuse.ops.bias_gelu import bias_gelu
from motarfuse.ops.gated_fusion import gated_fusion
from motarfuse.ops.linear_cross_entropy import linear_cross_entropy
from motarfuse.ops.motion_attention import motion_attention, motion_attention_packed
from motarfuse.ops.motion_warp import MotionWarp, motion_warp
from motarfuse.ops.part_moments import PartMoments, part_moments
from motarfuse.ops.part_pool import PartPool, part_pool
from motarfuse.ops.temporal_conv import temporal_conv
from motarfuse.reference import cell_centers, inverse_2x2, sample_bilinear
from motarfuse.reference.precision import without_autocast

__all__ = [
    "AddLayerNorm",
    "Backend",
    "Explanation",
    "MotionWarp",
    "Operator",
    "PartMoments",
    "PartPool",
    "Request",
    "UnknownBackendError",
    "add_layer_norm",
    "batch_hard_triplet",
    "bias_gelu",
    "cell_centers",
    "explain",
    "gated_fusion",
    "inverse_2x2",
    "known_backends",
    "linear_cross_entropy",
    "motion_attention",
    "motion_attention_packed",
    "motion_warp",
    "operators",
    "part_moments",
    "part_pool",
    "sample_bilinear",
    "temporal_conv",
    "use_backend",
    "without_autocast",
]
