"""Mean token of each body part."""

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
    HALF_DTYPES,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
    dtype_name,
)
from motarfuse.reference import part_pool as reference
from motarfuse.reference.precision import compute_dtype

# By the tokens' dtype: masks and gradients of as many pooled tokens fit into 99 KB of shared memory, which a thread
# block has on every GPU that the kernels are compiled for.
MAX_CUDA_PARTS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 120, torch.float64: 88}


class PartPool(NamedTuple):
    """Results of ``part_pool``: pooled (B, K, C), mass (B, K)."""

    pooled: torch.Tensor
    mass: torch.Tensor


def part_pool(tokens: torch.Tensor, part_logits: torch.Tensor, *, impl: str = AUTO) -> PartPool:
    """Averages the tokens of each part, weighted by its mask, in one read of the tokens.

    With M = softmax of the part logits over channels, 0 being the background, for the K others:
    pooled_k = sum_u M_k x_u / (sum_u M_k + 1e-6), mass_k = mean_u M_k.

    Args:
        tokens: (B, N, C) float16, bfloat16, float32 or float64; any strides. Where channels lie apart, as in a feature
            map (B, C, N) seen as tokens, ``"auto"`` takes the reference on a CPU if gradients are wanted: it is faster.
        part_logits: (B, K + 1, N), K >= 0. -inf hides a channel in a cell; a cell whose channels are all hidden makes
            its image NaN, as softmax does.
        impl: ``"auto"``, or the backend that must run: ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Returns:
        pooled (B, K, C) of the tokens' dtype; mass (B, K) of the part logits' dtype; computed in float32 from half
        types, which may be mixed with float32. Without tokens (N = 0) both are zero.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside another.
        ValueError: Wrong rank or shape, tensors on different devices, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to both, where they require one: dx_u = sum_k M_k dpooled_k / (S_k + 1e-6), S_k = sum_u M_k, and
    dM_k(u) = <dpooled_k, x_u - pooled_k> / (S_k + 1e-6) + dmass_k / N, through the softmax to the logits.

    Compiled kernels are differentiable once and raise on the second derivative; the reference is differentiable any
    number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms.

    The backward of float32 and float64 tokens reads ``pooled``: changing it in place before raises, as after a softmax.

    Deterministic: every sum has a fixed order; two runs are bitwise equal, for any number of threads.

    Cost an image, element sizes e and e_l: reads N C e + N (K + 1) e_l bytes once, 2 N K C FLOP and N (K + 1)
    exponentials; backward reads them again, writes as much, twice the FLOP. No (B, K, N) tensor is stored.

    Source: mask-weighted pooling, as in Kalayeh et al. 2018 (SPReID), with soft learned masks.
    """
    check_tensor("tokens", tokens)
    check_tensor("part_logits", part_logits)
    check_rank("tokens", tokens, "(B, N, C)")
    check_rank("part_logits", part_logits, "(B, K + 1, N)")
    batch, cells, _ = tokens.shape
    channels = part_logits.shape[1]
    if channels < 1:
        raise ValueError(f"part_logits must be (B, K + 1, N), background included; got {tuple(part_logits.shape)}")
    check_shape("part_logits", part_logits, "(B, K + 1, N)", (batch, channels, cells), "tokens")
    tensors: dict[str, torch.Tensor | None] = {"tokens": tokens, "part_logits": part_logits}
    check_precisions(tensors)
    check_same_device(tensors)
    backend = OPERATOR.select(Request(tokens.device, tensors, {}), impl)
    return PartPool(*backend.run(tokens, part_logits))


def _fake_forward(tokens: torch.Tensor, part_logits: torch.Tensor, save_statistics: bool) -> tuple[torch.Tensor, ...]:
    batch, _, channels = tokens.shape
    parts = part_logits.shape[1] - 1
    compute = compute_dtype(tokens)
    keeps = save_statistics and tokens.dtype != compute
    return (
        tokens.new_empty((batch, parts, channels)),
        tokens.new_empty((batch, parts), dtype=part_logits.dtype),
        tokens.new_empty((batch, parts) if save_statistics else (0,), dtype=compute),
        tokens.new_empty((batch, parts, channels) if keeps else (0,), dtype=compute),
    )


def _fake_backward(
    grad_pooled: torch.Tensor | None,
    grad_mass: torch.Tensor | None,
    tokens: torch.Tensor,
    part_logits: torch.Tensor,
    pooled: torch.Tensor,
    total: torch.Tensor,
    needs_tokens: bool,
    needs_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(tokens) if needs_tokens else tokens.new_empty((0,)),
        torch.empty_like(part_logits) if needs_logits else part_logits.new_empty((0,)),
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, tokens: torch.Tensor, part_logits: torch.Tensor, save_statistics: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, mass, total, exact = kernels.forward(tokens, part_logits, save_statistics)
        rounded = pooled.dtype != compute_dtype(tokens)
        ctx.save_for_backward(tokens, part_logits, exact if rounded else pooled, total)
        ctx.kernels = kernels
        keep_missing_gradients(ctx)
        return pooled, mass

    @staticmethod
    def backward(
        ctx: Any, grad_pooled: torch.Tensor | None, grad_mass: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        tokens, part_logits, pooled, total = ctx.saved_tensors
        needs_tokens, needs_logits = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        # Gradients of the small results: K rows an image, often expanded by a sum or a mean.
        grad_tokens, grad_logits = differentiable_once(
            "part_pool",
            ctx.kernels.backward,
            None if grad_pooled is None else grad_pooled.contiguous(),
            None if grad_mass is None else grad_mass.contiguous(),
            tokens,
            part_logits,
            pooled,
            total,
            needs_tokens,
            needs_logits,
        )
        return None, grad_tokens if needs_tokens else None, grad_logits if needs_logits else None, None


def _run_kernels(
    kernels: Kernels, tokens: torch.Tensor, part_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    requires_grad = tokens.requires_grad or part_logits.requires_grad
    if not differentiating(requires_grad):
        pooled, mass, _, _ = kernels.forward(tokens, part_logits, False)
        return pooled, mass
    return _KernelFunction.apply(kernels, tokens, part_logits, requires_grad)


def _example(device: torch.device) -> Request:
    tokens, part_logits = (torch.empty(*shape, device="meta") for shape in ((64, 128, 768), (64, 9, 128)))
    return Request(device, {"tokens": tokens, "part_logits": part_logits}, {})


KERNELS = KernelFamily(
    "part_pool",
    forward=Schema(
        "(Tensor tokens, Tensor part_logits, bool save_statistics) -> (Tensor, Tensor, Tensor, Tensor)", _fake_forward
    ),
    backward=Schema(
        "(Tensor? grad_pooled, Tensor? grad_mass, Tensor tokens, Tensor part_logits, Tensor pooled, Tensor total, "
        "bool needs_tokens, bool needs_logits) -> (Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)


def _load_triton() -> Any:  # a statement, which torch.compile can trace
    from motarfuse.kernels import part_pool

    return part_pool


_TRITON_BACKEND = KERNELS.triton(_load_triton)


def _too_much_for_cuda(request: Request) -> list[str]:
    tokens, part_logits = request.tensors["tokens"], request.tensors["part_logits"]
    assert tokens is not None
    assert part_logits is not None
    parts, most = part_logits.shape[1] - 1, MAX_CUDA_PARTS[tokens.dtype]
    return [f"it takes up to {most} parts of {dtype_name(tokens.dtype)}, got {parts}"] if parts > most else []


def _no_use_of_cuda(request: Request) -> list[str]:
    """The CUDA forward spends K multiplications on each number of the tokens, Triton's a matrix instruction on many.

    From so many parts on they take about as long as memory: an estimate from instruction counts, not a measurement.
    """
    tokens, part_logits = request.tensors["tokens"], request.tensors["part_logits"]
    assert tokens is not None
    assert part_logits is not None
    least = 8 if tokens.dtype in HALF_DTYPES else 17
    if part_logits.shape[1] - 1 < least or _TRITON_BACKEND.not_supported_reasons(request):
        return []
    return [f"triton's matrix instructions are faster from {least} parts of {dtype_name(tokens.dtype)} on"]


def _no_use_of_cpu(request: Request) -> list[str]:
    """Tokens of a feature map (B, C, N) are transposed block by block, which costs what the fused passes save."""
    tokens, part_logits = request.tensors["tokens"], request.tensors["part_logits"]
    assert tokens is not None
    assert part_logits is not None
    learns = torch.is_grad_enabled() and (tokens.requires_grad or part_logits.requires_grad)
    if learns and tokens.shape[2] > 1 and tokens.stride(2) != 1:
        return ["with gradients the reference is faster where tokens lie channel by channel"]
    return []


OPERATOR = Operator(
    "part_pool",
    _example,
    backends=(
        KERNELS.native("cuda", limits=_too_much_for_cuda, auto_reasons=_no_use_of_cuda),
        KERNELS.native("cpu", auto_reasons=_no_use_of_cpu),  # before triton, which a call on a CPU would import to ask
        _TRITON_BACKEND,
        Backend("reference", reference, supports_everything),
    ),
)
