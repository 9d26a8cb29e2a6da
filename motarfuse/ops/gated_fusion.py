"""Gated addition of motion to appearance, with layer norm."""

from __future__ import annotations

from typing import Any

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating
from motarfuse.ops.validation import (
    check_positive,
    check_precisions,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
)
from motarfuse.reference import gated_fusion as reference
from motarfuse.reference.precision import compute_dtype


def gated_fusion(
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    *,
    impl: str = AUTO,
) -> torch.Tensor:
    """LayerNorm(x + sigmoid(gate_logits) motion): how much motion enters, each channel decides for itself.

    Args:
        x: (..., C) float16, bfloat16, float32 or float64, at least two dimensions; any strides, also of the others.
        motion: The shape of x.
        gate_logits: The shape of x.
        weight: (C,).
        bias: (C,).
        eps: Finite and greater than 0.
        impl: ``"auto"``, or the backend that must run: ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns:
        The shape and dtype of x, computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others.
        ValueError: Wrong rank or shape, tensors on different devices, an eps that is not positive, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all tensors, where they require one. With dsum of the layer norm and s = sigmoid(gate_logits):
    dx = dsum, dmotion = s dsum, dgate_logits = s (1 - s) motion dsum.

    The compiled kernels are differentiable once and raise on the second derivative; the reference is differentiable any
    number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms and, on
    a CPU, of float16 and of few numbers that learn, where it is faster. The kernels' backward reads the inputs again;
    two numbers a row are all that is kept beside them.

    Deterministic: sums over rows have an order that depends on sizes alone; two runs of a kernel are bitwise equal, on
    a CPU for any number of threads.

    Cost a row, for one element size e: 4 C e bytes forward, 7 C e backward; about 15 C FLOP and C exponentials forward,
    25 C and C backward: bound by memory.

    Source: the gate is this project's reading of the fusion of MOTAR-FUSE (Ling et al. 2025).
    """
    check_tokens("x", x)
    tensors = {"motion": motion, "gate_logits": gate_logits, "weight": weight, "bias": bias}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    for name in ("motion", "gate_logits"):
        if tensors[name].shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}; got {tuple(tensors[name].shape)}")
    for name in ("weight", "bias"):
        check_shape(name, tensors[name], "(C,)", x.shape[-1:], "x")
    eps = check_positive("eps", eps)
    everything: dict[str, torch.Tensor | None] = {"x": x, **tensors}
    check_precisions(everything)
    check_same_device(everything)
    backend = OPERATOR.select(Request(x.device, everything, {"eps": eps}), impl)
    return backend.run(x, motion, gate_logits, weight, bias, eps)


def _fake_forward(
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    save_statistics: bool,
) -> tuple[torch.Tensor, ...]:
    size, compute = x.shape[:-1] if save_statistics else (0,), compute_dtype(x)
    return x.new_empty(x.shape), x.new_empty(size, dtype=compute), x.new_empty(size, dtype=compute)


def _fake_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    bias_dtype: torch.dtype,
    needs: int,
) -> tuple[torch.Tensor, ...]:
    kinds = [(one.shape, one.dtype) for one in (x, motion, gate_logits, weight)] + [(weight.shape, bias_dtype)]
    return tuple(
        x.new_empty(size if needs & (1 << index) else (0,), dtype=kind) for index, (size, kind) in enumerate(kinds)
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: torch.Tensor,
        motion: torch.Tensor,
        gate_logits: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        save_statistics: bool,
    ) -> torch.Tensor:
        out, mean, rstd = kernels.forward(x, motion, gate_logits, weight, bias, eps, save_statistics)
        ctx.save_for_backward(x, motion, gate_logits, weight, mean, rstd)
        ctx.kernels, ctx.bias_dtype = kernels, bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:6]
        needs = sum(1 << index for index, one in enumerate(needed) if one)
        found = differentiable_once(
            "gated_fusion", ctx.kernels.backward, grad_out, *ctx.saved_tensors, ctx.bias_dtype, needs
        )
        return None, *(gradient if one else None for gradient, one in zip(found, needed, strict=True)), None, None


def _run_kernels(
    kernels: Kernels,
    x: torch.Tensor,
    motion: torch.Tensor,
    gate_logits: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    tensors = (x, motion, gate_logits, weight, bias)
    requires_grad = any(tensor.requires_grad for tensor in tensors)
    if not differentiating(requires_grad):
        out: torch.Tensor = kernels.forward(*tensors, eps, False)[0]
        return out
    return _KernelFunction.apply(kernels, *tensors, eps, requires_grad)


def _example(device: torch.device) -> Request:
    tokens, vector = torch.empty(64, 128, 768, device="meta"), torch.empty(768, device="meta")
    tensors = {"x": tokens, "motion": tokens, "gate_logits": tokens, "weight": vector, "bias": vector}
    return Request(device, tensors, {"eps": 1e-6})


KERNELS = KernelFamily(
    "gated_fusion",
    forward=Schema(
        "(Tensor x, Tensor motion, Tensor gate_logits, Tensor weight, Tensor bias, float eps, bool save_statistics) -> "
        "(Tensor, Tensor, Tensor)",
        _fake_forward,
    ),
    backward=Schema(
        "(Tensor grad_out, Tensor x, Tensor motion, Tensor gate_logits, Tensor weight, Tensor mean, Tensor rstd, "
        "ScalarType bias_dtype, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import gated_fusion

    return gated_fusion


# Below so many numbers the kernel's autograd.Function, 40 us of Python a step, costs more than fewer passes over memory
# save: two threads with AVX-512, float32.
_SMALL = 1 << 14


def _no_use_of_cpu(request: Request) -> list[str]:
    x = request.tensors["x"]
    assert x is not None
    given = [tensor for tensor in request.tensors.values() if tensor is not None]
    if any(tensor.dtype == torch.float16 for tensor in given):
        return ["the reference is faster in float16, which the kernel converts by integer arithmetic"]
    # A compiled graph has no such overhead, and no use of a guard on sizes.
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    if learns and not torch.compiler.is_compiling() and x.numel() < _SMALL:
        return [f"with gradients the reference is faster below {_SMALL} numbers"]
    return []


OPERATOR = Operator(
    "gated_fusion",
    _example,
    backends=(
        KERNELS.native("cpu", auto_reasons=_no_use_of_cpu),  # before triton, which a call on a CPU would import to ask
        KERNELS.triton(_load_triton),
        Backend("reference", reference, supports_everything),
    ),
)
