"""Depthwise convolution over time with GELU: the definition (``motarfuse.ops.temporal_conv`` says what it computes)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from motarfuse.reference.precision import compute_dtype, without_autocast

_HAS_FAST_CONV = torch.backends.mkldnn.is_available()


def temporal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    frame_mask: torch.Tensor | None = None,
    *,
    missing: str = "hold",
) -> torch.Tensor:
    """GELU(bias + sum_j weight_j x_{t + j}), j from -(k - 1) / 2 to (k - 1) / 2; x_{t + j} may be missing.

    A missing neighbour counts as zero in the sum over taps. With ``"hold"`` its tap then weighs x_t itself.

    Args:
        x: (B, T, N, C).
        weight: (C, k), k odd.
        bias: (C,), or None.
        frame_mask: (B, T) booleans, False for a frame that is not there, or None; such a frame comes out as zero.
        missing: What a neighbour outside the clip or not there reads as: ``"hold"`` x_t itself, ``"zero"`` zero.

    Returns:
        (B, T, N, C) of x's dtype.
    """
    compute = compute_dtype(x, weight, bias)
    hold, radius = missing == "hold", weight.shape[1] // 2
    with without_autocast(x.device):
        values, taps = x.to(compute), weight.to(compute)
        offset = None if bias is None else bias.to(compute)
        there = None if frame_mask is None else frame_mask[..., None, None]
        if there is not None:
            values = torch.where(there, values, 0.0)  # once, and not by a factor: 0 times NaN is NaN
        if x.shape[1] == 1 or radius == 0:
            total = _add(values * (taps.sum(1) if hold else taps[:, radius]), offset)
        elif _convolves(values):
            total = _by_convolution(values, taps, offset, frame_mask, hold)
        else:
            total = _by_taps(values, taps, offset, frame_mask, hold)
        result = F.gelu(total)
        if there is not None:
            result = result.masked_fill(~there, 0.0) if _traced() else result.masked_fill_(~there, 0.0)
        return result.to(x.dtype)


def _traced() -> bool:
    """Whether a graph is made or torch.func transforms the code: no place, then, for operations in place."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _add(total: torch.Tensor, term: torch.Tensor | None) -> torch.Tensor:
    """Their sum, in the memory of total, which no backward needs; None is zero."""
    if term is None:
        return total
    return total + term if _traced() else total.add_(term)


def _convolves(values: torch.Tensor) -> bool:
    """Whether PyTorch's convolution is the fast way, and exact to float32.

    On a GPU it may round to TF32; float64 takes a slow path; and a graph fuses the taps, and may move to a GPU.
    """
    return (
        _HAS_FAST_CONV
        and not _traced()
        and values.device.type == "cpu"
        and values.dtype == torch.float32
        and values.numel() > 0
    )


def _by_convolution(
    values: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, frame_mask: torch.Tensor | None, hold: bool
) -> torch.Tensor:
    """As pictures of T x N pixels in the layout of channels last, which (B, T, N, C) is without a copy."""
    frames, channels = values.shape[1], values.shape[3]
    radius = taps.shape[1] // 2
    # Three taps reach one frame beyond an end, where what is held is the end itself: cheaper than a second product.
    repeats = hold and radius == 1 and frame_mask is None
    if repeats:
        reached = torch.arange(-1, frames + 1, device=values.device).clamp(0, frames - 1)
        values = values.index_select(1, reached)
    pictures = values.contiguous().permute(0, 3, 1, 2)
    padding = (0 if repeats else radius, 0)
    total = F.conv2d(pictures, taps[:, None, :, None], bias, padding=padding, groups=channels).permute(0, 2, 3, 1)
    if not hold or repeats:
        return total
    # In the product's memory: the backward of an addition in place to a view copies all of it.
    return _add(values * _held(frames, taps, frame_mask), total)


def _by_taps(
    values: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None, frame_mask: torch.Tensor | None, hold: bool
) -> torch.Tensor:
    frames, radius = values.shape[1], taps.shape[1] // 2
    own = taps[:, radius]
    total = _add(values * (own + _held(frames, taps, frame_mask) if hold else own), bias)
    padded = F.pad(values, (0, 0, 0, 0, radius, radius))
    for tap in range(taps.shape[1]):
        if tap != radius:
            total = _add(total, padded[:, tap : tap + frames] * taps[:, tap])
    return total


def _held(frames: int, taps: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
    """The sum of the taps of a frame whose neighbours are not there: (B, T, 1, C), B = 1 without a mask."""
    width = taps.shape[1]
    there = torch.ones(1, frames, dtype=torch.bool, device=taps.device) if frame_mask is None else frame_mask
    padded = F.pad(there, (width // 2, width // 2))
    present = torch.stack([padded[:, tap : tap + frames] for tap in range(width)], dim=-1)
    return ((~present).to(taps.dtype) @ taps.t())[:, :, None]
