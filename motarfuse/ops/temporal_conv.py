"""Depthwise convolution over the frames of a clip, with GELU."""

from __future__ import annotations

from typing import Any

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating
from motarfuse.ops.validation import (
    FLOAT_DTYPES,
    check_choice,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
)
from motarfuse.reference import temporal_conv as reference

MISSING = ("hold", "zero")


def temporal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    frame_mask: torch.Tensor | None = None,
    *,
    missing: str = "hold",
    impl: str = AUTO,
) -> torch.Tensor:
    """Each token sees the same token of the neighbouring frames: GELU(bias + sum_j weight_j x_{t + j}).

    j runs from -(k - 1) / 2 to (k - 1) / 2, GELU is the exact one (erf), the length stays. With ``missing="hold"`` a
    neighbour outside the clip or masked reads as x_t itself, so that a clip of equal frames gives in each frame what
    its single frame gives, wherever it begins, ends or has holes.

    Args:
        x: (B, T, N, C) float16, bfloat16, float32 or float64; any strides.
        weight: (C, k), k odd; column (k - 1) / 2 is the frame itself.
        bias: (C,), or None for 0.
        frame_mask: (B, T) booleans, False for a frame that is not there (padding); None: all are. What a masked frame
            holds is never read, and it comes out as zero.
        missing: ``"hold"`` or ``"zero"``, what a neighbour that is not there reads as.
        impl: ``"auto"``, or the backend that must run: ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns:
        (B, T, N, C) of x's dtype, computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others, a mask that is not boolean.
        ValueError: Wrong rank or shape, an even k, tensors on different devices, an unknown ``missing`` or ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to x, weight and bias, where they require one; masked frames take none. With g_t = GELU'(u_t) dout_t of
    the frames that are there and u_t the sum: dx_s = sum_j weight_j g_{s - j}, with ``"hold"`` also
    g_s sum weight_j over the j whose frame s + j is not there; dweight_j = sum g_t x_{t + j}, as read, dbias = sum g_t.

    The compiled kernels are differentiable once and raise on the second derivative; the reference is differentiable any
    number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms and, being
    faster, for float64 on a CPU. Nothing is kept for their backward but the arguments: it computes the sums again.

    Deterministic: sums over frames and tokens have a fixed order; two runs are bitwise equal, on a CPU with any number
    of threads.

    Cost a number of x, of element size e: 2 e bytes forward, 3 e backward, on a GPU of clips of up to 16 frames; longer
    ones are cut there into runs of 16 or less, whose k - 1 neighbours are read again, twice as many backward. 2 k + 20
    FLOP and one exponential forward, 6 k + 30 and two backward: bound by memory.

    Source: depthwise temporal convolution in adapters: Pan et al. 2022 (ST-Adapter).
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_rank("x", x, "(B, T, N, C)")
    check_rank("weight", weight, "(C, k)")
    batch, frames, _, channels = x.shape
    width = weight.shape[1]
    check_shape("weight", weight, "(C, k)", (channels, width), "x")
    if width % 2 == 0:
        raise ValueError(f"weight must be (C, k) with k odd, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, "(C,)", (channels,), "x")
    if frame_mask is not None:
        check_tensor("frame_mask", frame_mask, (torch.bool,))
        check_shape("frame_mask", frame_mask, "(B, T)", (batch, frames), "x")
    check_choice("missing", missing, MISSING)
    tensors = {"x": x, "weight": weight, "bias": bias}
    check_precisions(tensors)
    tensors["frame_mask"] = frame_mask
    check_same_device(tensors)
    backend = OPERATOR.select(Request(x.device, tensors, {"missing": missing}), impl)
    result: torch.Tensor = backend.run(x, weight, bias, frame_mask, missing=missing)
    return result


def _fake_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, frame_mask: torch.Tensor | None, missing: str
) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
    missing: str,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if needs_x else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
        (weight if bias is None else bias).new_empty(weight.shape[:1] if needs_bias else (0,)),
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        frame_mask: torch.Tensor | None,
        missing: str,
    ) -> torch.Tensor:
        out: torch.Tensor = kernels.forward(x, weight, bias, frame_mask, missing)
        ctx.save_for_backward(x, weight, bias, frame_mask)
        ctx.kernels, ctx.missing = kernels, missing
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:4]
        found = differentiable_once(
            "temporal_conv", ctx.kernels.backward, grad_out, *ctx.saved_tensors, ctx.missing, *needs
        )
        return None, *(gradient if one else None for gradient, one in zip(found, needs, strict=True)), None, None


def _run_kernels(
    kernels: Kernels,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
    *,
    missing: str,
) -> torch.Tensor:
    if not differentiating(any(one is not None and one.requires_grad for one in (x, weight, bias))):
        out: torch.Tensor = kernels.forward(x, weight, bias, frame_mask, missing)
        return out
    return _KernelFunction.apply(kernels, x, weight, bias, frame_mask, missing)


def _example(device: torch.device) -> Request:
    tensors = {"x": torch.empty(16, 8, 129, 192, device="meta"), "weight": torch.empty(192, 3, device="meta")}
    return Request(device, {**tensors, "bias": None, "frame_mask": None}, {"missing": "hold"})


KERNELS = KernelFamily(
    "temporal_conv",
    forward=Schema("(Tensor x, Tensor weight, Tensor? bias, Tensor? frame_mask, str missing) -> Tensor", _fake_forward),
    backward=Schema(
        "(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, Tensor? frame_mask, str missing, bool needs_x, "
        "bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _slower_on_cpu(request: Request) -> list[str]:
    # One erfc and one exponential of the C++ library a number, 1.4 to 3 times PyTorch's time: for gradcheck.
    x = request.tensors["x"]
    return ["in float64 PyTorch's own functions are faster"] if x is not None and x.dtype == torch.float64 else []


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import temporal_conv

    return temporal_conv


OPERATOR = Operator(
    "temporal_conv",
    _example,
    backends=(
        KERNELS.native("cpu", dtypes=(*FLOAT_DTYPES, torch.bool), auto_reasons=_slower_on_cpu),
        KERNELS.triton(_load_triton),
        Backend("reference", reference, supports_everything),
    ),
)
