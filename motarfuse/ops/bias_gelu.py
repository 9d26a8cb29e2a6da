"""Bias and GELU in one pass: the epilogue of an MLP's first layer."""

from __future__ import annotations

from typing import Any

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating
from motarfuse.ops.validation import check_choice, check_precisions, check_same_device, check_shape, check_tensor
from motarfuse.reference import bias_gelu as reference

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


def bias_gelu(
    x: torch.Tensor, bias: torch.Tensor | None, *, activation: str = "gelu", impl: str = AUTO
) -> torch.Tensor:
    """Adds a bias to each row and takes a GELU of the sum: activation(x + bias).

    With u = x + bias, ``"gelu"`` is u Phi(u) = u (1 + erf(u / sqrt(2))) / 2, ``"gelu_tanh"``
    u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) / 2, and ``"quick_gelu"``, of CLIP, u sigmoid(1.702 u).

    Args:
        x: (..., C) float16, bfloat16, float32 or float64, any leading dimensions, none included; any strides.
        bias: (C,), or None for 0.
        activation: One of the three.
        impl: ``"auto"``, or the backend that must run: ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns:
        The shape and dtype of x, computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside another.
        ValueError: Wrong rank or shape, tensors on different devices, an unknown ``activation`` or ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to x and bias, where they require one: dx = activation'(u) dout, dbias = its sum over rows, added up in
    float32 before anything is rounded. For ``"gelu"`` the derivative is Phi(u) + u phi(u).

    The compiled kernels are differentiable once and raise on the second derivative; the reference is differentiable any
    number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms and, being
    faster, for float16 and float64 on a CPU. Nothing is kept for their backward but x and bias; it reads x and the
    incoming gradient once.

    Deterministic: sums over rows have a fixed order; two runs are bitwise equal, on a CPU with any number of threads.

    Cost a number of x, of element size e: 2 e bytes forward, 3 e backward; about 25 FLOP and one exponential forward,
    30 and two backward: bound by memory.

    Source: Hendrycks and Gimpel 2016 (GELU and its approximations).
    """
    check_tensor("x", x)
    if x.dim() < 1:
        raise ValueError("x must be (..., C), one dimension at least; got a scalar")
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, "(C,)", x.shape[-1:], "x")
    check_choice("activation", activation, ACTIVATIONS)
    tensors = {"x": x, "bias": bias}
    check_precisions(tensors)
    check_same_device(tensors)
    backend = OPERATOR.select(Request(x.device, tensors, {"activation": activation}), impl)
    result: torch.Tensor = backend.run(x, bias, activation=activation)
    return result


def _fake_forward(x: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    needs_x: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    like = x if bias is None else bias
    return x.new_empty(x.shape if needs_x else (0,)), like.new_empty(x.shape[-1:] if needs_bias else (0,))


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, x: torch.Tensor, bias: torch.Tensor | None, activation: str
    ) -> torch.Tensor:
        out: torch.Tensor = kernels.forward(x, bias, activation)
        ctx.save_for_backward(x, bias)
        ctx.kernels, ctx.activation = kernels, activation
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_x, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grad_x, grad_bias = differentiable_once(
            "bias_gelu", ctx.kernels.backward, grad_out, *ctx.saved_tensors, ctx.activation, needs_x, needs_bias
        )
        return None, grad_x if needs_x else None, grad_bias if needs_bias else None, None


def _run_kernels(kernels: Kernels, x: torch.Tensor, bias: torch.Tensor | None, *, activation: str) -> torch.Tensor:
    if not differentiating(x.requires_grad or (bias is not None and bias.requires_grad)):
        out: torch.Tensor = kernels.forward(x, bias, activation)
        return out
    return _KernelFunction.apply(kernels, x, bias, activation)


def _example(device: torch.device) -> Request:
    tensors = {"x": torch.empty(64, 129, 3072, device="meta"), "bias": torch.empty(3072, device="meta")}
    return Request(device, tensors, {"activation": "gelu"})


KERNELS = KernelFamily(
    "bias_gelu",
    forward=Schema("(Tensor x, Tensor? bias, str activation) -> Tensor", _fake_forward),
    backward=Schema(
        "(Tensor grad_out, Tensor x, Tensor? bias, str activation, bool needs_x, bool needs_bias) -> (Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _slower_on_cpu(request: Request) -> list[str]:
    # One erfc and one exponential of the C++ library a number, 2.5 to 3 times PyTorch's time: for gradcheck.
    # float16 is converted by integer arithmetic.
    x = request.tensors["x"]
    slow = x is not None and x.dtype in (torch.float16, torch.float64)
    return ["in float16 and float64 PyTorch's own functions are faster"] if slow else []


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import bias_gelu

    return bias_gelu


OPERATOR = Operator(
    "bias_gelu",
    _example,
    backends=(
        KERNELS.native("cpu", auto_reasons=_slower_on_cpu),
        KERNELS.triton(_load_triton),
        Backend("reference", reference, supports_everything),
    ),
)
