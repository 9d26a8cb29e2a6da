"""Motion field between two postures and the warp of a source along it."""

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
    check_grid,
    check_precisions,
    check_rank,
    check_same_device,
    check_shape,
    check_tensor,
    dtype_name,
)
from motarfuse.reference import motion_warp as reference
from motarfuse.reference.precision import compute_dtype

# Cells and parts, by the dtype computed in: what a thread block keeps of them fits into 99 KB of shared memory, which
# it has on every GPU that the kernels are compiled for.
MAX_CUDA_CELLS = {torch.float32: 4096, torch.float64: 2048}
MAX_CUDA_PARTS = {torch.float32: 256, torch.float64: 64}


class MotionWarp(NamedTuple):
    """Results of ``motion_warp``: warped (B, N, C), flow (B, N, 2), visibility (B, N)."""

    warped: torch.Tensor
    flow: torch.Tensor
    visibility: torch.Tensor


def motion_warp(
    source: torch.Tensor,
    source_keypoints: torch.Tensor,
    source_affines: torch.Tensor,
    target_keypoints: torch.Tensor,
    target_affines: torch.Tensor,
    part_logits: torch.Tensor,
    source_part_logits: torch.Tensor | None = None,
    *,
    grid: tuple[int, int],
    impl: str = AUTO,
) -> MotionWarp:
    """Where each cell of the target comes from, what the source has there, and how far it could be seen.

    With M = softmax of the target's part logits over channels (0 the background), u the cells' centres in [-1, 1]^2 and
    J_k = A_k^s (A_k^t)^-1:

    flow(u) = M_0 u + sum_k M_k (p_k^s + J_k (u - p_k^t))
    warped(u) = source sampled bilinearly at flow(u): ``F.grid_sample(padding_mode="border", align_corners=False)``
    visibility(u) = 1 - M_fg^s(u) (1 - sg M_fg^t(u)), M_fg = 1 - M_0, sg without gradient; 1 without source part logits

    The inverse is adj / det with |det| of at least 1e-8, its sign kept, so that no posture raises. ``warped`` is not
    multiplied by the visibility. Kernels compute displacements, so that an infinite posture may give NaN where the
    reference gives infinity.

    Args:
        source: (B, N, C) float16, bfloat16, float32 or float64; N = h*w cells, row-major. Any strides, as all others:
            expanded views and tokens behind a class token are taken as they lie, as are a clip's frames:
            ``clip[:, :, 1:].flatten(0, 1)`` of (B, T, 1 + N, C) is a view.
        source_keypoints: (B, K, 2), x first.
        source_affines: (B, K, 2, 2).
        target_keypoints: (B, K, 2).
        target_affines: (B, K, 2, 2).
        part_logits: (B, K + 1, N) of the target. -inf hides a channel in a cell; a cell whose channels are all hidden
            is NaN, as in a softmax.
        source_part_logits: (B, K + 1, N), or None. Likewise.
        grid: (h, w) in cells, height first.
        impl: ``"auto"``, or the backend that must run: ``"cuda"``, ``"cpu"`` or ``"reference"``.

    Returns:
        warped (B, N, C) of the source's dtype; flow (B, N, 2) of the source keypoints' dtype; visibility (B, N) of the
        part logits' dtype; computed in float32 from half types, which may be mixed with float32.

    Raises:
        TypeError: Not a tensor, a dtype that is not supported, float64 beside others, a grid of another type.
        ValueError: Wrong rank or shape, a grid that does not fit N, tensors on different devices, an unknown ``impl``.
        RuntimeError: ``impl`` names a backend that cannot run here, with the reasons.

    Gradients: to all tensors, where they require one. A flow on or beyond the centre of a border cell takes none in
    that direction, as in ``F.grid_sample``; a determinant below 1e-8 takes none; the target's part logits take none
    from the visibility. Compiled kernels are differentiable once and raise on the second derivative; the reference is
    differentiable any number of times, in forward mode too, and is what ``impl="auto"`` takes under ``torch.func``
    transforms. Results that no gradient can reach do not require one.

    Deterministic: every sum has a fixed order; two runs are bitwise equal, for any number of threads.

    Cost an image, element sizes e and e_l: reads N C e + 2 N (K + 1) e_l bytes and writes N C e and three numbers a
    cell, about 8 N C + 12 N K FLOP; backward reads source, gradients and logits and writes as much as the source and
    the logits have. No (B, K, N, 2) field and no sampling grid is stored. C = 0 asks for flow and visibility alone.

    Source: Siarohin et al. 2019 (First Order Motion Model), equations 4 and 9, with soft masks of parts.
    """
    tensors = {
        "source": source,
        "source_keypoints": source_keypoints,
        "source_affines": source_affines,
        "target_keypoints": target_keypoints,
        "target_affines": target_affines,
        "part_logits": part_logits,
    }
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    check_rank("source", source, "(B, N, C)")
    check_rank("source_keypoints", source_keypoints, "(B, K, 2)")
    batch, cells, _ = source.shape
    parts = source_keypoints.shape[1]
    grid = check_grid(grid, cells, "source")
    given_by = "source and source_keypoints"
    for name in ("source_keypoints", "target_keypoints"):
        check_shape(name, tensors[name], "(B, K, 2)", (batch, parts, 2), given_by)
    for name in ("source_affines", "target_affines"):
        check_shape(name, tensors[name], "(B, K, 2, 2)", (batch, parts, 2, 2), given_by)
    check_shape("part_logits", part_logits, "(B, K + 1, N)", (batch, parts + 1, cells), given_by)
    if source_part_logits is not None:
        check_tensor("source_part_logits", source_part_logits)
        check_shape("source_part_logits", source_part_logits, "(B, K + 1, N)", (batch, parts + 1, cells), given_by)
    everything = {**tensors, "source_part_logits": source_part_logits}
    check_precisions(everything)
    check_same_device(everything)
    request = Request(source.device, everything, {"grid": grid})
    backend = OPERATOR.select(request, impl)
    return MotionWarp(*backend.run(*everything.values(), grid=grid))


def _fake_forward(
    source: torch.Tensor,
    source_keypoints: torch.Tensor,
    source_affines: torch.Tensor,
    target_keypoints: torch.Tensor,
    target_affines: torch.Tensor,
    part_logits: torch.Tensor,
    source_part_logits: torch.Tensor | None,
    height: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, cells, channels = source.shape
    return (
        source.new_empty((batch, cells, channels)),
        source.new_empty((batch, cells, 2), dtype=source_keypoints.dtype),
        source.new_empty((batch, cells), dtype=part_logits.dtype),
    )


def _fake_backward(
    grad_warped: torch.Tensor | None,
    grad_flow: torch.Tensor | None,
    grad_visibility: torch.Tensor | None,
    source: torch.Tensor,
    source_keypoints: torch.Tensor,
    source_affines: torch.Tensor,
    target_keypoints: torch.Tensor,
    target_affines: torch.Tensor,
    part_logits: torch.Tensor,
    source_part_logits: torch.Tensor | None,
    height: int,
    width: int,
    needs: int,
) -> tuple[torch.Tensor, ...]:
    inputs = (
        source, source_keypoints, source_affines, target_keypoints, target_affines, part_logits, source_part_logits
    )  # fmt: skip
    return tuple(
        torch.empty_like(tensor) if tensor is not None and needs & (1 << bit) else source.new_empty((0,))
        for bit, tensor in enumerate(inputs)
    )


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        source: torch.Tensor,
        source_keypoints: torch.Tensor,
        source_affines: torch.Tensor,
        target_keypoints: torch.Tensor,
        target_affines: torch.Tensor,
        part_logits: torch.Tensor,
        source_part_logits: torch.Tensor | None,
        height: int,
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = (
            source, source_keypoints, source_affines, target_keypoints, target_affines, part_logits, source_part_logits
        )  # fmt: skip
        warped, flow, visibility = kernels.forward(*inputs, height, width)
        ctx.save_for_backward(*inputs)
        ctx.kernels, ctx.height, ctx.width = kernels, height, width
        keep_missing_gradients(ctx)
        needs = ctx.needs_input_grad[1:8]
        moves = any(needs[1:6])
        differentiable = (moves or needs[0], moves, needs[6])
        results = (warped, flow, visibility)
        ctx.mark_non_differentiable(*(one for one, is_so in zip(results, differentiable, strict=True) if not is_so))
        return warped, flow, visibility

    @staticmethod
    def backward(
        ctx: Any,
        grad_warped: torch.Tensor | None,
        grad_flow: torch.Tensor | None,
        grad_visibility: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        moved = grad_warped is not None or grad_flow is not None
        used = (grad_warped is not None, *(5 * [moved]), grad_visibility is not None)
        wanted = [need and is_used for need, is_used in zip(ctx.needs_input_grad[1:8], used, strict=True)]
        needs = sum(1 << bit for bit, is_wanted in enumerate(wanted) if is_wanted)
        gradients = differentiable_once(
            "motion_warp",
            ctx.kernels.backward,
            grad_warped,
            grad_flow,
            grad_visibility,
            *ctx.saved_tensors,
            ctx.height,
            ctx.width,
            needs,
        )
        found = [gradient if is_wanted else None for gradient, is_wanted in zip(gradients, wanted, strict=True)]
        return None, *found, None, None


def _run_kernels(
    kernels: Kernels, *inputs: torch.Tensor | None, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    requires_grad = any(tensor is not None and tensor.requires_grad for tensor in inputs)
    if not differentiating(requires_grad):
        return kernels.forward(*inputs, *grid)
    return _KernelFunction.apply(kernels, *inputs, *grid)


def _example(device: torch.device) -> Request:
    shapes = {
        "source": (64, 128, 96),
        "source_keypoints": (64, 8, 2),
        "source_affines": (64, 8, 2, 2),
        "target_keypoints": (64, 8, 2),
        "target_affines": (64, 8, 2, 2),
        "part_logits": (64, 9, 128),
        "source_part_logits": (64, 9, 128),
    }
    tensors = {name: torch.empty(*shape, device="meta") for name, shape in shapes.items()}
    return Request(device, tensors, {"grid": (16, 8)})


def _too_much_for_cuda(request: Request) -> list[str]:
    source, keypoints = request.tensors["source"], request.tensors["source_keypoints"]
    assert source is not None
    assert keypoints is not None
    dtype = compute_dtype(source)
    sizes = {"cells": (source.shape[1], MAX_CUDA_CELLS[dtype]), "parts": (keypoints.shape[1], MAX_CUDA_PARTS[dtype])}
    return [
        f"computing in {dtype_name(dtype)} it takes up to {most} {name}, got {size}"
        for name, (size, most) in sizes.items()
        if size > most
    ]


_INPUTS = (
    "Tensor source, Tensor source_keypoints, Tensor source_affines, Tensor target_keypoints, Tensor target_affines, "
    "Tensor part_logits, Tensor? source_part_logits, SymInt height, SymInt width"
)
KERNELS = KernelFamily(
    "motion_warp",
    forward=Schema(f"({_INPUTS}) -> (Tensor, Tensor, Tensor)", _fake_forward),
    backward=Schema(
        f"(Tensor? grad_warped, Tensor? grad_flow, Tensor? grad_visibility, {_INPUTS}, int needs) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    run=_run_kernels,
)

OPERATOR = Operator(
    "motion_warp",
    _example,
    backends=(
        KERNELS.native("cuda", limits=_too_much_for_cuda),
        KERNELS.native("cpu"),
        Backend("reference", reference, supports_everything),
    ),
)
