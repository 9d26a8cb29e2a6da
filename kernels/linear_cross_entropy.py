"""linear_cross_entropy in Triton: what a call launches, with which tiles; linear_cross_entropy_kernels.py has kernels.

Tiles are chosen by what the compiler says of them: no spilled registers for half types, most of a tile's products for
each number loaded (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from motarfuse.kernels._launch import TYPES, Launch, architecture_of, device_of
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.linear_cross_entropy_kernels import (
    linear_cross_entropy_bwd_kernel,
    linear_cross_entropy_combine_kernel,
    linear_cross_entropy_fwd_kernel,
    linear_cross_entropy_reduce_kernel,
)

# Programs that keep a large GPU busy: two on each of 132 multiprocessors.
BUSY = 264
FAR = 2**31
# More groups of columns than this make the same logits again for little.
MOST_GROUPS = 4
# Half numbers that are a float32 one: 2 x 11 bits are within its own rounding, bfloat16 takes 3 x 8.
_PARTS = {torch.float16: 2, torch.bfloat16: 3}
_REDUCED = 1024


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of linear_cross_entropy."""
    return reasons_against_call(request, "features", "weight")


class Tiles(NamedTuple):
    """Rows and classes of a tile of logits, columns that are read for it at a time, columns of a gradient's product."""

    block_b: int
    block_c: int
    block_d: int
    block_g: int
    num_warps: int
    num_stages: int


# Of float32, and of rows that are not aligned, whose pointers take registers.
_SMALL = Tiles(64, 64, 32, 32, 4, 2)


def forward_tiles(p: Problem) -> Tiles:
    """Of the forward."""
    if not (p.half and p.aligned):
        return _SMALL
    if p.parts > 1:
        return Tiles(64 if p.rows <= 64 or p.architecture == 80 else 128, 128, 64, 0, 8, 2)
    stages = 2 if p.architecture == 80 else 3
    return Tiles(64, 128, 64, 0, 4, stages) if p.rows <= 64 else Tiles(128, 128, 64, 0, 8, stages)


def backward_tiles(p: Problem, of_classes: bool) -> Tiles:
    """Of a gradient, the weight's (``of_classes``) or features'. 128 rows of 128 classes spill but on Hopper."""
    if not (p.half and p.aligned):
        return _SMALL
    if p.parts > 1:
        return _backward_tiles_of_parts(p, of_classes)
    return Tiles(128 if p.rows > 64 and p.architecture == 90 else 64, 128, 64, 64, 8, 2)


def _backward_tiles_of_parts(p: Problem, of_classes: bool) -> Tiles:
    """Each number of the weight, or of the logits' gradient, takes the registers of its parts as well."""
    if of_classes:
        return Tiles(64, 128, 32, 32, 8, 2) if p.architecture == 100 else Tiles(64, 128, 64, 64, 8, 2)
    if p.architecture == 100:
        return Tiles(64, 128, 64, 64, 8, 2)
    if p.architecture == 90:
        return Tiles(64, 128, 32, 64, 8, 2) if p.rows <= 64 else Tiles(128, 128, 64, 32, 8, 2)
    return Tiles(64, 128, 32, 32, 8, 2) if p.rows <= 64 else Tiles(128, 64, 32, 32, 8, 2)


class Cut(NamedTuple):
    """A loop over tiles in ranges of about the same length, one a program."""

    splits: int
    tiles_each: int


def cut(tiles: int, blocks: int) -> Cut:
    """Ranges of ``tiles``, enough of them to keep a GPU busy with ``blocks`` programs each."""
    tiles_each = -(-tiles // max(1, min(tiles, BUSY // blocks)))
    return Cut(-(-tiles // tiles_each), tiles_each)


class Problem:
    """A call's tensors with what its kernels want to know of them.

    ``dtype`` is what products are made of: features' half type if the weight has it or is float32, whose numbers are
    then sums of ``parts`` half ones; else the type computed in.
    """

    def __init__(
        self, features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, smoothing: float,
        architecture: int | None = None,
    ) -> None:  # fmt: skip
        self.features, self.weight, self.labels, self.smoothing = features, weight, labels, smoothing
        self.rows, self.width = features.shape
        self.classes = weight.shape[0]
        self.compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.half = features.dtype in _PARTS and weight.dtype in (features.dtype, torch.float32)
        self.parts = _PARTS[features.dtype] if self.half and weight.dtype == torch.float32 else 1
        self.dtype = features.dtype if self.half else self.compute
        self.architecture = architecture_of(features.device) if architecture is None else architecture
        strides = features.stride() + weight.stride()
        # Into 16 numbers, what Triton asks for before it loads 16 bytes.
        self.aligned = all(stride == 1 or stride % 16 == 0 for stride in strides)
        # Of a tile; gradients have their tensors' strides or smaller ones.
        self.index = tl.int32 if 256 * max(strides) < FAR else tl.int64

    def launch(
        self, kernel: Any, programs: int, arguments: dict[str, Any], num_warps: int, num_stages: int = 1
    ) -> Launch:
        """A launch of a kernel, which gets by name what it takes of these arguments and of what is the same in all."""
        known = {
            "p_labels": self.labels, "labels_n": self.labels.stride(0), "num_rows": self.rows,
            "num_classes": self.classes, "smoothing": float(self.smoothing), "width": self.width, "WIDTH": self.width,
            "SMOOTHED": self.smoothing > 0, "DTYPE": TYPES[self.dtype], "COMPUTE": TYPES[self.compute],
            "INDEX": self.index, "PARTS": self.parts,
            # Plain TF32 would lose half of float32's digits; three products keep them.
            "PRECISION": "tf32x3" if self.dtype == torch.float32 else "ieee",
            "SCALE": 32768.0 if self.dtype == torch.float16 else 1.0,
            **arguments,
        }  # fmt: skip
        names = kernel.arg_names
        return Launch(
            kernel,
            (programs,),
            {name: known[name] for name in names if name in known and not name.isupper()},
            {name: known[name] for name in names if name in known and name.isupper()},
            {"num_warps": num_warps, "num_stages": num_stages},
        )

    def forward_cut(self, tiles: Tiles) -> tuple[int, Cut]:
        """Blocks of rows, and the classes' ranges."""
        blocks = -(-self.rows // tiles.block_b)
        return blocks, cut(-(-self.classes // tiles.block_c), blocks)


def _strided(name: str, tensor: torch.Tensor | None) -> dict[str, Any]:
    strides = (0, 1) if tensor is None else tensor.stride()
    return {f"p_{name}": tensor, f"{name}_n": strides[0], f"{name}_d": strides[1]}


def forward_launches(
    p: Problem, parts: torch.Tensor, loss: torch.Tensor, count: torch.Tensor, statistics: torch.Tensor,
    ignore_index: int,
) -> tuple[Launch, Launch]:  # fmt: skip
    """What a forward launches."""
    tiles = forward_tiles(p)
    blocks, (splits, tiles_each) = p.forward_cut(tiles)
    arguments = {
        **_strided("features", p.features), **_strided("weight", p.weight), "p_parts": parts,
        "row_blocks": blocks, "num_splits": splits, "tiles_each": tiles_each,
        "BLOCK_B": tiles.block_b, "BLOCK_C": tiles.block_c, "BLOCK_D": tiles.block_d,
    }  # fmt: skip
    block_s = triton.next_power_of_2(splits)
    combined = {
        "p_parts": parts, "p_loss": loss, "p_count": count, "p_statistics": statistics, "ignore_index": ignore_index,
        "num_splits": splits, "BLOCK_S": block_s,
        "BLOCK_B": max(1, min(triton.next_power_of_2(p.rows), 4096 // block_s)),
    }  # fmt: skip
    return (
        p.launch(linear_cross_entropy_fwd_kernel, blocks * splits, arguments, tiles.num_warps, tiles.num_stages),
        p.launch(linear_cross_entropy_combine_kernel, 1, combined, 8),
    )


def forward(
    features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, label_smoothing: float, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and for the backward labels that count, each row's maximum and 1 / sum of exponentials."""
    p = Problem(features, weight, labels, label_smoothing)
    loss, count = (features.new_empty((), dtype=p.compute) for _ in range(2))
    statistics = features.new_empty((2, p.rows), dtype=p.compute)
    if p.rows == 0:
        return loss.zero_(), count.fill_(1), statistics
    _, (splits, _) = p.forward_cut(forward_tiles(p))
    parts = features.new_empty((4, splits, p.rows), dtype=p.compute)
    with device_of(features):
        for launch in forward_launches(p, parts, loss, count, statistics, ignore_index):
            launch.run()
    return loss, count, statistics


class Plan(NamedTuple):
    """How the gradient of one of the two tensors is cut into programs."""

    tiles: Tiles
    own_blocks: int
    splits: int
    tiles_each: int
    groups: int
    blocks_each: int

    @classmethod
    def of(cls, p: Problem, of_classes: bool) -> Plan:
        tiles = backward_tiles(p, of_classes)
        row_blocks, class_blocks = -(-p.rows // tiles.block_b), -(-p.classes // tiles.block_c)
        blocks, others = (class_blocks, row_blocks) if of_classes else (row_blocks, class_blocks)
        splits, tiles_each = cut(others, blocks)
        columns = -(-p.width // tiles.block_g)
        each = -(-columns // max(1, min(columns, MOST_GROUPS, BUSY // (blocks * splits))))
        return cls(tiles, blocks, splits, tiles_each, -(-columns // each), each)


def backward_launches(
    p: Problem, grad_loss: torch.Tensor, count: torch.Tensor, statistics: torch.Tensor, grad: torch.Tensor,
    of_classes: bool,
) -> list[Launch]:  # fmt: skip
    """What the gradient of weight (``of_classes``) or features launches.

    Sums over tiles are added up in the gradient itself where it has their dtype, else in memory of their own.
    """
    plan = Plan.of(p, of_classes)
    tiles = plan.tiles
    sums = None
    if plan.splits > 1:
        sums = grad.new_empty((plan.splits, *grad.shape), dtype=p.compute)
    elif plan.tiles_each > 1:
        sums = grad[None] if grad.dtype == p.compute else grad.new_empty((1, *grad.shape), dtype=p.compute)
    direct = plan.splits == 1 and (sums is None or grad.dtype != p.compute)
    arguments = {
        **_strided("features", p.features), **_strided("weight", p.weight),
        **_strided("grad", grad if direct else None), **_strided("sums", None if sums is None else sums[0]),
        "p_sums": sums, "sums_s": 0 if sums is None or plan.splits == 1 else sums.stride(0),
        "p_statistics": statistics, "p_grad_loss": grad_loss, "p_count": count, "own_blocks": plan.own_blocks,
        "num_splits": plan.splits, "tiles_each": plan.tiles_each, "blocks_each": plan.blocks_each,
        "OWNS_CLASSES": of_classes, "BLOCK_B": tiles.block_b, "BLOCK_C": tiles.block_c, "BLOCK_D": tiles.block_d,
        "BLOCK_G": tiles.block_g,
    }  # fmt: skip
    programs = plan.own_blocks * plan.splits * plan.groups
    launches = [p.launch(linear_cross_entropy_bwd_kernel, programs, arguments, tiles.num_warps, tiles.num_stages)]
    if plan.splits > 1:
        reduced = {
            **_strided("grad", grad), "p_sums": sums, "num_splits": plan.splits, "size": grad.numel(),
            "BLOCK": _REDUCED,
        }  # fmt: skip
        launches.append(p.launch(linear_cross_entropy_reduce_kernel, -(-grad.numel() // _REDUCED), reduced, 4))
    return launches


def backward(
    grad_loss: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor,
    statistics: torch.Tensor,
    label_smoothing: float,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of features and weight, (0,) where not needed."""
    p = Problem(features, weight, labels, label_smoothing)
    grad_features = torch.empty_like(features) if needs_features else features.new_empty((0,))
    grad_weight = torch.empty_like(weight) if needs_weight else weight.new_empty((0,))
    if p.rows * p.width == 0:
        return grad_features.zero_(), grad_weight.zero_()
    with device_of(features):
        for needed, grad, of_classes in ((needs_features, grad_features, False), (needs_weight, grad_weight, True)):
            if needed:
                for launch in backward_launches(p, grad_loss, count, statistics, grad, of_classes):
                    launch.run()
    return grad_features, grad_weight
