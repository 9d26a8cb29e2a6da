"""Each operator in plain PyTorch: its definition, and the oracle that every kernel is compared with.

Any device and dtype, differentiable twice, no dependency but torch. Arguments are taken as they are: ``motarfuse.ops``
validates.
"""

from motarfuse.reference.part_moments import cell_centers, part_moments

__all__ = ["cell_centers", "part_moments"]
