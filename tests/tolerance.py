"""The one rule by which a kernel is right (motarfuse.ops): against float64, and no worse than twice plain PyTorch.

error(kernel) <= 2 * (error(eager of the same dtype) + eps(dtype) * max |reference|), errors being largest absolute
differences from the float64 reference. There is no absolute tolerance that a wrong kernel would pass.
"""

from __future__ import annotations

import torch


def max_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference from the float64 reference; infinite where only one is NaN or infinite."""
    if result.shape != reference.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(reference.shape)}")
    if reference.numel() == 0:
        return 0.0
    difference = (result.double() - reference).abs()
    same = (result.double() == reference) | (result.isnan() & reference.isnan())
    difference = torch.where(same, 0.0, difference)
    return torch.where(difference.isnan(), torch.inf, difference).max().item()


def assert_close(
    name: str,
    result: torch.Tensor,
    eager: torch.Tensor,
    reference: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    scale: float | None = None,
) -> None:
    """Raises AssertionError unless ``result`` keeps the rule.

    Args:
        name: Of the output or gradient, for the message.
        result: The kernel's.
        eager: The plain PyTorch reference's with the same inputs in the same dtype; its dtype is the rule's.
        reference: The float64 reference's on the same values.
        dtype: Of the rule, where a float32 result is computed from half numbers; None is ``eager``'s.
        scale: What stands for max |reference| where the result is a sum of many numbers that cancel.
    """
    dtype = eager.dtype if dtype is None else dtype
    if result.dtype != eager.dtype:
        raise AssertionError(f"{name} has dtype {result.dtype} instead of {eager.dtype}")
    error, eager_error = max_error(result, reference), max_error(eager, reference)
    if scale is None:
        scale = reference[reference.isfinite()].abs().max().item() if reference.isfinite().any() else 0.0
    bound = 2 * (eager_error + torch.finfo(dtype).eps * scale)
    if not error <= bound:
        raise AssertionError(
            f"{name}: error {error:.3e} exceeds {bound:.3e} = 2 * (eager's {eager_error:.3e} + "
            f"{torch.finfo(dtype).eps:.1e} * {scale:.3e})"
        )
