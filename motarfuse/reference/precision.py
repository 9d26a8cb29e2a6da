"""What every reference shares: the dtype it computes in, autocast kept out, and a softmax that may hide everything."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# Asked once: torch.compile does not trace the question before torch 2.11.
_AUTOCAST_DEVICE_TYPES = tuple(
    device_type for device_type in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device_type)
)


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32: half types compute in float32."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for a device's type; False for types that have none, such as meta."""
    return device.type in _AUTOCAST_DEVICE_TYPES and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would turn the float32 products inside a definition back into half ones; nothing where it is off.

    An exported graph keeps each region as a subgraph of its own, and torch cannot write all of them.
    """
    if autocast_enabled(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def softmax_or_zeros(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension; -inf hides an entry, and a row that hides all entries is zero, not NaN.

    Such a row is masked before and after, so that its gradient is zero as well at every order.
    """
    hidden = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(hidden, 0.0), dim=-1).masked_fill(hidden, 0.0)
