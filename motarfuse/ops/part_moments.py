"""Moments of part heat maps: keypoints, affines and confidences, in one pass over the cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from motarfuse.ops.backends import AUTO, Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once, differentiating
from motarfuse.ops.validation import (
    HALF_DTYPES,
    check_grid,
    check_positive,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
    dtype_name,
)
from motarfuse.reference import part_moments as reference
from motarfuse.reference.precision import autocast_enabled

# Per row and in the dtype computed in: keypoint 2, affine 4, confidence, largest logit, 1 / sum of exponentials.
STATISTICS = 9


class PartMoments(NamedTuple):
    """Results of ``part_moments``: keypoints (B, K, 2), affines (B, K, 2, 2), confidence (B, K)."""

    keypoints: torch.Tensor
    affines: torch.Tensor
    confidence: torch.Tensor


def part_moments(
    logits: torch.Tensor,
    affine: torch.Tensor | None = None,
    *,
    grid: tuple[int, int],
    temperature: float = 0.1,
    impl: str = AUTO,
) -> PartMoments:
    """Reduces each part's heat map over a grid of cells to its mean position, mean affine and peakedness.

    With P = softmax(logits / temperature) over the N cells, u = (x, y) their centres in [-1, 1] and a their affines:
    keypoints = sum P u, affines = sum P a, confidence = sum P^2 (1 for a single peak, 1/N for a flat map).

    Args:
        logits: (B, K, N) float16, bfloat16, float32 or float64; N = h*w cells, row-major. -inf hides a cell; a row
            whose cells are all hidden gives zeros and has zero gradient. Any strides; B = 0 and K = 0 are allowed.
        affine: (B, K, N, 2, 2) of the logits' dtype or float32 beside half logits; None is the identity in every
            cell. Any strides, expanded views included.
        grid: (h, w) in cells, height first.
        temperature: Finite and greater than 0.
        impl: ``"auto"``, or the backend that must run: ``"cuda"``, ``"cpu"`` or ``"reference"``.

    Returns:
        keypoints (B, K, 2), x first; affines (B, K, 2, 2); confidence (B, K). Their dtype is the one that logits and
        affine promote to, computed in float32 from half types. Under autocast, half inputs give float32 results and are
        not copied: the operator reduces in float32 anyway, as softmax does there.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, a grid or temperature of another type.
        ValueError: Wrong rank or shape, a grid that does not fit N, tensors on different devices, a temperature that is
            not finite and positive, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to logits and affine, where they require one: dlogits_i = P_i / temperature * (g_i - sum_j P_j g_j) with
    g_i = <dkeypoints, u_i> + <daffines, a_i> + 2 dconfidence P_i, and daffine_i = P_i daffines. Compiled kernels are
    differentiable once and raise on the second derivative; the reference is differentiable any number of times, in
    forward mode too, and is what ``impl="auto"`` takes under ``torch.func`` transforms.

    Deterministic: each row is reduced in a fixed order; two runs are bitwise equal, for any number of threads.

    Cost a row of N cells, element sizes e and e_a: reads N e + 4 N e_a bytes once, about 30 N FLOP and N exponentials;
    backward reads them again and writes as much. No intermediate of size N is stored.

    Source: soft-argmax and spatial moments; Siarohin et al. 2019 (First Order Motion Model) use the same keypoints.
    """
    check_tensor("logits", logits)
    check_rank("logits", logits, "(B, K, N)")
    batch, parts, cells = logits.shape
    grid = check_grid(grid, cells, "logits")
    temperature = check_positive("temperature", temperature)
    if affine is not None:
        check_tensor("affine", affine)
        check_shape("affine", affine, "(B, K, N, 2, 2)", (batch, parts, cells, 2, 2), "logits")
        check_same_device({"logits": logits, "affine": affine})
    autocast = autocast_enabled(logits.device)
    affine = _check_affine_dtype(logits, affine, autocast)
    mixed = affine is not None and affine.dtype != logits.dtype
    dtype = torch.float32 if mixed or (autocast and logits.dtype in HALF_DTYPES) else logits.dtype
    request = Request(
        logits.device, {"logits": logits, "affine": affine}, {"grid": grid, "temperature": temperature, "dtype": dtype}
    )
    backend = OPERATOR.select(request, impl)
    return PartMoments(*backend.run(logits, affine, grid, temperature, dtype))


def _check_affine_dtype(logits: torch.Tensor, affine: torch.Tensor | None, autocast: bool) -> torch.Tensor | None:
    if affine is None or affine.dtype == logits.dtype:
        return affine
    if affine.dtype == torch.float32 and logits.dtype in HALF_DTYPES:
        return affine
    if autocast and logits.dtype == torch.float32 and affine.dtype in HALF_DTYPES:
        return affine.float()
    raise TypeError(
        f"affine has dtype {dtype_name(affine.dtype)} beside logits of {dtype_name(logits.dtype)}; "
        f"supported: the logits' dtype, or float32 beside half logits"
    )


def _compute_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _fake_forward(
    logits: torch.Tensor,
    affine: torch.Tensor | None,
    height: int,
    width: int,
    temperature: float,
    dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[torch.Tensor, ...]:
    batch, parts, _ = logits.shape
    rows = (batch, parts, STATISTICS) if save_statistics else (0,)
    return (
        logits.new_empty((batch, parts, 2), dtype=dtype),
        logits.new_empty((batch, parts, 2, 2), dtype=dtype),
        logits.new_empty((batch, parts), dtype=dtype),
        logits.new_empty(rows, dtype=_compute_dtype(logits)),
    )


def _fake_backward(
    grad_keypoints: torch.Tensor,
    grad_affines: torch.Tensor,
    grad_confidence: torch.Tensor,
    logits: torch.Tensor,
    affine: torch.Tensor | None,
    statistics: torch.Tensor,
    height: int,
    width: int,
    temperature: float,
    needs_logits: bool,
    needs_affine: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_logits = torch.empty_like(logits) if needs_logits else logits.new_empty((0,))
    grad_affine = torch.empty_like(affine) if needs_affine and affine is not None else logits.new_empty((0,))
    return grad_logits, grad_affine


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        logits: torch.Tensor,
        affine: torch.Tensor | None,
        height: int,
        width: int,
        temperature: float,
        dtype: torch.dtype,
        save_statistics: bool,
    ) -> tuple[torch.Tensor, ...]:
        keypoints, affines, confidence, statistics = kernels.forward(
            logits, affine, height, width, temperature, dtype, save_statistics
        )
        ctx.save_for_backward(logits, affine, statistics)
        ctx.kernels, ctx.height, ctx.width, ctx.temperature = kernels, height, width, temperature
        return keypoints, affines, confidence

    @staticmethod
    def backward(
        ctx: Any,
        grad_keypoints: torch.Tensor,
        grad_affines: torch.Tensor,
        grad_confidence: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        logits, affine, statistics = ctx.saved_tensors
        needs_logits, needs_affine = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        # Gradients of the small results: rows of 7 numbers, often expanded by a sum or a mean.
        grad_logits, grad_affine = differentiable_once(
            "part_moments",
            ctx.kernels.backward,
            grad_keypoints.contiguous(),
            grad_affines.contiguous(),
            grad_confidence.contiguous(),
            logits,
            affine,
            statistics,
            ctx.height,
            ctx.width,
            ctx.temperature,
            needs_logits,
            needs_affine,
        )
        gradients = (grad_logits if needs_logits else None, grad_affine if needs_affine else None)
        return None, *gradients, None, None, None, None, None


def _run_kernels(
    kernels: Kernels,
    logits: torch.Tensor,
    affine: torch.Tensor | None,
    grid: tuple[int, int],
    temperature: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    requires_grad = logits.requires_grad or (affine is not None and affine.requires_grad)
    if not differentiating(requires_grad):
        return kernels.forward(logits, affine, *grid, temperature, dtype, False)[:3]
    return _KernelFunction.apply(kernels, logits, affine, *grid, temperature, dtype, requires_grad)


def _run_reference(
    logits: torch.Tensor,
    affine: torch.Tensor | None,
    grid: tuple[int, int],
    temperature: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    return reference(logits, affine, grid=grid, temperature=temperature, dtype=dtype)


def _example(device: torch.device) -> Request:
    logits = torch.empty(64, 8, 128, device="meta")
    affine = torch.empty(64, 8, 128, 2, 2, device="meta")
    options = {"grid": (16, 8), "temperature": 0.1, "dtype": torch.float32}
    return Request(device, {"logits": logits, "affine": affine}, options)


KERNELS = KernelFamily(
    "part_moments",
    forward=Schema(
        "(Tensor logits, Tensor? affine, SymInt height, SymInt width, float temperature, ScalarType dtype, "
        "bool save_statistics) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_forward,
    ),
    backward=Schema(
        "(Tensor grad_keypoints, Tensor grad_affines, Tensor grad_confidence, Tensor logits, Tensor? affine, "
        "Tensor statistics, SymInt height, SymInt width, float temperature, bool needs_logits, bool needs_affine) "
        "-> (Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)

OPERATOR = Operator(
    "part_moments",
    _example,
    backends=(
        KERNELS.native("cuda"),
        KERNELS.native("cpu"),
        Backend("reference", _run_reference, supports_everything),
    ),
)
