"""A copy of a buffer as it is now, which compiled graphs keep."""

from __future__ import annotations

import torch

torch.library.define("motarfuse::snapshot", "(Tensor buffer) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl("motarfuse::snapshot", "CompositeExplicitAutograd")
def _snapshot(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.clone()


@torch.library.register_fake("motarfuse::snapshot")
def _fake_snapshot(buffer: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(buffer)


def snapshot(buffer: torch.Tensor) -> torch.Tensor:
    """What a buffer holds before the step changes it in place, for all that is computed from it.

    Under ``torch.compile`` a backward may compute again what it needs from a graph's inputs, and a buffer that the
    forward has changed in place holds other numbers by then (torch 2.13 gives wrong gradients, without an error). A
    copy by an operator that the compiler does not know is kept instead; ``clone`` is not.

    Args:
        buffer: Without a gradient.

    Returns:
        Its shape, dtype and strides.
    """
    copied: torch.Tensor = torch.ops.motarfuse.snapshot(buffer)
    return copied
