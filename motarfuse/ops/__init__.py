"""The operators: validated public functions over the backends that can run where the tensors are.

Every operator takes ``impl="auto"`` or the name of a backend; ``use_backend`` and ``MOTARFUSE_BACKEND`` prefer one.
"""

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
from motarfuse.ops.part_moments import PartMoments, part_moments

__all__ = [
    "Backend",
    "Explanation",
    "Operator",
    "PartMoments",
    "Request",
    "UnknownBackendError",
    "explain",
    "known_backends",
    "operators",
    "part_moments",
    "use_backend",
]
