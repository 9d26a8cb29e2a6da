"""Residual addition and layer norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import (
    KernelFamily,
    Kernels,
    Schema,
    differentiable_once,
    differentiating,
    keep_missing_gradients,
)
from motarfuse.ops.validation import (
    check_positive,
    check_precisions,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
)
from motarfuse.reference import add_layer_norm as reference
from motarfuse.reference.precision import compute_dtype


class AddLayerNorm(NamedTuple):
    """Results of ``add_layer_norm``: normed and sum, both (B, ..., C)."""

    normed: torch.Tensor
    sum: torch.Tensor


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-6,
    *,
    layer_scale: torch.Tensor | None = None,
    sample_scale: torch.Tensor | None = None,
    impl: str = AUTO,
) -> AddLayerNorm:
    """Adds a branch to the residual stream and normalises the sum: both are needed by the next block.

    sum = residual + sample_scale layer_scale x
    normed = (sum - mean) / sqrt(var + eps) weight + bias, mean and (biased) variance over the last dimension

    Args:
        x: (B, ..., C) float16, bfloat16, float32 or float64, at least two dimensions; any strides, also of the others.
        residual: (B, ..., C), often float32 beside a half branch.
        weight: (C,).
        bias: (C,).
        eps: Finite and greater than 0.
        layer_scale: (C,), or None for 1.
        sample_scale: (B,), or None for 1: zero or 1 / (1 - p) for stochastic depth.
        impl: ``"auto"``, or the backend that must run: ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns:
        normed of x's dtype, which the next matrix product takes; sum of the residual's dtype; computed in float32 from
        half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others.
        ValueError: Wrong rank or shape, tensors on different devices, an eps that is not positive, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all tensors, where they require one. With y the normalised sum before weight and bias, g = dnormed
    weight and s the standard deviation: dsum_total = dsum + (g - mean g - y mean(g y)) / s, dresidual = dsum_total,
    dx = sample_scale layer_scale dsum_total.

    The compiled kernels are differentiable once and raise on the second derivative; the reference is differentiable any
    number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms and, on
    a CPU, of float16 and of few numbers that learn, where it is faster.

    Their backward reads ``sum`` where the residual has the type computed in, and x and the residual where ``sum`` was
    rounded; x as well where a scale takes a gradient. Changing those in place before raises.

    Deterministic: sums over rows have an order that depends on sizes alone; two runs of a kernel are bitwise equal, on
    a CPU for any number of threads.

    Cost a row, element sizes e of x and r of the residual: 2 C (e + r) bytes forward; backward C (e + r) of gradients
    and C r of the sum (C (e + r) of x and the residual where they are half) read, C (e + r) written. About 10 C FLOP
    forward, 15 C backward: bound by memory.

    Source: Ba et al. 2016 (layer norm); Touvron et al. 2021 (layer scale); Huang et al. 2016 (stochastic depth).
    """
    check_tokens("x", x)
    required = {"residual": residual, "weight": weight, "bias": bias}
    tensors = {**required, "layer_scale": layer_scale, "sample_scale": sample_scale}
    for name, tensor in tensors.items():
        if tensor is not None or name in required:
            check_tensor(name, tensor)
    if residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {tuple(x.shape)}; got {tuple(residual.shape)}")
    for name in ("weight", "bias", "layer_scale"):
        vector = tensors[name]
        if vector is not None:
            check_shape(name, vector, "(C,)", x.shape[-1:], "x")
    if sample_scale is not None:
        check_shape("sample_scale", sample_scale, "(B,)", x.shape[:1], "x")
    eps = check_positive("eps", eps)
    everything = {"x": x, **tensors}
    check_precisions(everything)
    check_same_device(everything)
    backend = OPERATOR.select(Request(x.device, everything, {"eps": eps}), impl)
    return AddLayerNorm(
        *backend.run(x, residual, weight, bias, eps, layer_scale=layer_scale, sample_scale=sample_scale)
    )


def _fake_forward(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    layer_scale: torch.Tensor | None,
    sample_scale: torch.Tensor | None,
    eps: float,
    save_statistics: bool,
) -> tuple[torch.Tensor, ...]:
    size, compute = x.shape[:-1] if save_statistics else (0,), compute_dtype(x)
    return (
        x.new_empty(x.shape),
        residual.new_empty(x.shape),
        x.new_empty(size, dtype=compute),
        x.new_empty(size, dtype=compute),
    )


def _fake_backward(
    grad_normed: torch.Tensor | None,
    grad_sum: torch.Tensor | None,
    x: torch.Tensor | None,
    residual: torch.Tensor | None,
    total: torch.Tensor | None,
    weight: torch.Tensor,
    layer_scale: torch.Tensor | None,
    sample_scale: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    x_dtype: torch.dtype,
    bias_dtype: torch.dtype,
    needs: int,
) -> tuple[torch.Tensor, ...]:
    shape, kept = (*mean.shape, weight.shape[0]), residual if total is None else total
    kinds = (
        (shape, x_dtype),
        (shape, x_dtype if kept is None else kept.dtype),
        (weight.shape, weight.dtype),
        (weight.shape, bias_dtype),
        (weight.shape, mean.dtype if layer_scale is None else layer_scale.dtype),
        (mean.shape[:1], mean.dtype if sample_scale is None else sample_scale.dtype),
    )
    return tuple(
        mean.new_empty(size if needs & (1 << index) else (0,), dtype=kind) for index, (size, kind) in enumerate(kinds)
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        layer_scale: torch.Tensor | None,
        sample_scale: torch.Tensor | None,
        eps: float,
        save_statistics: bool,
        scales_learn: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, total, mean, rstd = kernels.forward(
            x, residual, weight, bias, layer_scale, sample_scale, eps, save_statistics
        )
        # A rounded sum is not enough: beside a large common offset it has lost the deviations.
        exact = total.dtype == mean.dtype
        ctx.save_for_backward(
            None if exact and not scales_learn else x,
            None if exact else residual,
            total if exact else None,
            weight,
            layer_scale,
            sample_scale,
            mean,
            rstd,
        )
        ctx.kernels, ctx.x_dtype, ctx.bias_dtype = kernels, x.dtype, bias.dtype
        # Then both have the same gradient, which is written once.
        ctx.alike = layer_scale is None and sample_scale is None and x.dtype == residual.dtype
        keep_missing_gradients(ctx)
        return normed, total

    @staticmethod
    def backward(
        ctx: Any, grad_normed: torch.Tensor | None, grad_sum: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:7]
        shared = ctx.alike and needed[0] and needed[1]
        needs = sum(1 << index for index, one in enumerate(needed) if one and not (shared and index == 0))
        found = differentiable_once(
            "add_layer_norm",
            ctx.kernels.backward,
            grad_normed,
            grad_sum,
            *ctx.saved_tensors,
            ctx.x_dtype,
            ctx.bias_dtype,
            needs,
        )
        gradients = [gradient if one else None for gradient, one in zip(found, needed, strict=True)]
        if shared:
            gradients[0] = gradients[1]
        return None, *gradients, None, None, None


def _run_kernels(
    kernels: Kernels,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    *,
    layer_scale: torch.Tensor | None,
    sample_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (x, residual, weight, bias, layer_scale, sample_scale)
    learn = [tensor is not None and tensor.requires_grad for tensor in tensors]
    if not differentiating(any(learn)):
        normed, total, _, _ = kernels.forward(*tensors, eps, False)
        return normed, total
    return _KernelFunction.apply(kernels, *tensors, eps, any(learn), any(learn[4:]))


def _example(device: torch.device) -> Request:
    tokens, vector = torch.empty(64, 129, 768, device="meta"), torch.empty(768, device="meta")
    tensors = {
        "x": tokens,
        "residual": tokens,
        "weight": vector,
        "bias": vector,
        "layer_scale": None,
        "sample_scale": None,
    }
    return Request(device, tensors, {"eps": 1e-6})


KERNELS = KernelFamily(
    "add_layer_norm",
    forward=Schema(
        "(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? layer_scale, Tensor? sample_scale, float eps, "
        "bool save_statistics) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_forward,
    ),
    backward=Schema(
        "(Tensor? grad_normed, Tensor? grad_sum, Tensor? x, Tensor? residual, Tensor? total, Tensor weight, "
        "Tensor? layer_scale, Tensor? sample_scale, Tensor mean, Tensor rstd, ScalarType x_dtype, "
        "ScalarType bias_dtype, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import add_layer_norm

    return add_layer_norm


# Below so many numbers the kernel's autograd.Function, 40 us of Python a step, costs more than fewer passes over memory
# save: two threads with AVX-512, float32.
_SMALL = 1 << 17


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
    "add_layer_norm",
    _example,
    backends=(
        KERNELS.native("cpu", auto_reasons=_no_use_of_cpu),  # before triton, which a call on a CPU would import to ask
        KERNELS.triton(_load_triton),
        Backend("reference", reference, supports_everything),
    ),
)
