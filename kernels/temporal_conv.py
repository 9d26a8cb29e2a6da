"""temporal_conv in Triton: what a call launches, with which tiles. The kernels are in temporal_conv_kernels.py.

Tiles are chosen by what the compiler says of them (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from motarfuse.kernels import bias_gelu
from motarfuse.kernels._launch import TYPES, Launch
from motarfuse.kernels.bias_gelu import channel_block
from motarfuse.kernels.row_norm import multiprocessors_of, run
from motarfuse.kernels.temporal_conv_kernels import (
    temporal_conv_bwd_kernel,
    temporal_conv_fwd_kernel,
    temporal_conv_sum_kernel,
)

Tensor = torch.Tensor
MAX_WIDTH = 15
# Frames of a run: longer clips are cut, and a run reads k - 1 frames of its neighbours again, twice that backward.
RUN = 16
# Frames that one lane of a program adds up: with more of them float32 would lose what a tree of sums keeps.
MAX_CHAIN = 128


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of temporal_conv."""
    reasons = bias_gelu.not_supported_reasons(request)
    width = request.tensors["weight"].shape[1]
    if width > MAX_WIDTH:
        reasons.append(f"it takes up to {MAX_WIDTH} taps, got {width}")
    return reasons


class Tiles(NamedTuple):
    """Tokens and channels of a tile, powers of two, and the warps of its program."""

    block_n: int
    block_c: int
    num_warps: int = 4


def tiles_of(tokens: int, channels: int, each: int) -> Tiles:
    """Of ``each`` numbers a thread."""
    size = 128 * each
    block_c = channel_block(channels, min(512, size))
    return Tiles(max(1, min(size // block_c, triton.next_power_of_2(tokens))), block_c)


def forward_tiles(tokens: int, channels: int, width: int, itemsize: int) -> Tiles:
    """One load of 16 bytes a thread and frame, of 8 where many taps keep many frames in registers."""
    return tiles_of(tokens, channels, (16 if width <= 7 else 8) // itemsize)


def backward_tiles(tokens: int, channels: int, width: int, itemsize: int) -> Tiles:
    """The same; there are gradients and sums beside the frames."""
    return tiles_of(tokens, channels, (16 if width <= 3 else 8 if width <= 7 else 4) // itemsize)


class Problem:
    """A call's tensors with what its kernels want to know of them; x and incoming gradient by their strides."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, frame_mask: Tensor | None, missing: str,
        grad_out: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.x, self.weight, self.bias, self.grad_out, self.missing = x, weight, bias, grad_out, missing
        self.mask = None if frame_mask is None else frame_mask.view(torch.uint8)
        self.batch, self.frames, self.tokens, self.channels = x.shape
        self.width = weight.shape[1]
        self.compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        runs = -(-self.frames // RUN)
        self.frames_each = -(-self.frames // runs)
        self.runs = -(-self.frames // self.frames_each)

    def tasks(self, tiles: Tiles) -> int:
        """Tiles of all items and runs of frames, for each block of channels."""
        return self.batch * self.runs * -(-self.tokens // tiles.block_n)

    def launch(
        self, kernel: Any, programs: int, tiles: Tiles, arguments: Mapping[str, Any], **constants: Any
    ) -> Launch:
        """A launch of a kernel that finds its arguments and constants by name."""
        views = {"x": self.x} if self.grad_out is None else {"x": self.x, "grad_out": self.grad_out}
        # The strides of a dimension of one index are anything.
        strides = {
            name: [stride if size > 1 else 0 for size, stride in zip(one.shape, one.stride()[:3], strict=False)]
            for name, one in views.items()
        }
        unit = math.gcd(8, *(stride for of_one in strides.values() for stride in of_one))
        known: dict[str, Any] = {
            "num_frames": self.frames, "num_tokens": self.tokens, "frames_each": self.frames_each,
            "p_weight": self.weight, "p_bias": self.bias, "p_mask": self.mask, **arguments,
            "bias_c": 1 if self.bias is None else self.bias.stride(0),
        }  # fmt: skip
        known["weight_c"], known["weight_k"] = self.weight.stride()
        known["mask_b"], known["mask_t"] = (0, 0) if self.mask is None else self.mask.stride()
        for name, one in views.items():
            known[f"p_{name}"] = one
            known |= {f"{name}_{axis}": stride // unit for axis, stride in zip("btn", strides[name], strict=True)}
            known[f"{name}_c"] = one.stride(3) if self.channels > 1 else 1
        return Launch(
            kernel,
            (programs,),
            {name: known[name] for name in kernel.arg_names if name in known},
            {
                "CHANNELS": self.channels, "WIDTH": self.width, "HOLD": self.missing == "hold",
                "COMPUTE": TYPES[self.compute], "UNIT": unit, "BLOCK_N": tiles.block_n, "BLOCK_C": tiles.block_c,
                **constants,
            },
            {"num_warps": tiles.num_warps, "num_stages": 1},
        )  # fmt: skip


def forward_launch(p: Problem, out: Tensor) -> Launch:
    """What a forward launches."""
    tiles = forward_tiles(p.tokens, p.channels, p.width, p.x.element_size())
    programs = p.tasks(tiles) * -(-p.channels // tiles.block_c)
    return p.launch(temporal_conv_fwd_kernel, programs, tiles, {"p_out": out})


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, frame_mask: Tensor | None, missing: str) -> Tensor:
    """GELU of the convolution over frames, contiguous."""
    out = x.new_empty(x.shape)
    if x.numel():
        run(x, forward_launch(Problem(x, weight, bias, frame_mask, missing), out))
    return out


def backward_launches(
    p: Problem, grad_x: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None, multiprocessors: int
) -> list[Launch]:
    """What a backward launches: gradients that are wanted."""
    tiles = backward_tiles(p.tokens, p.channels, p.width, p.x.element_size())
    blocks, tasks = -(-p.channels // tiles.block_c), p.tasks(tiles)
    rows = (0 if grad_weight is None else p.width) + (0 if grad_bias is None else 1)
    each = 1
    if rows:
        each = min(max(1, MAX_CHAIN // p.frames_each), -(-tasks // max(1, 4 * multiprocessors // blocks)))
    parts = -(-tasks // each)
    sums = p.x.new_empty((parts, rows, p.channels), dtype=p.compute) if rows else None
    arguments = {"p_grad_x": grad_x, "p_sums": sums, "num_tasks": tasks, "tasks_each": each}
    wanted = {"SUM_TAPS": grad_weight is not None, "SUM_BIAS": grad_bias is not None}
    launches = [p.launch(temporal_conv_bwd_kernel, parts * blocks, tiles, arguments, **wanted)]
    if rows:
        block_p, block_c = 64, 32
        launches.append(
            Launch(
                temporal_conv_sum_kernel,
                (-(-p.channels // block_c), rows),
                {"p_sums": sums, "p_grad_weight": grad_weight, "p_grad_bias": grad_bias, "parts": parts},
                {
                    "CHANNELS": p.channels, "WIDTH": p.width, "COMPUTE": TYPES[p.compute], "BLOCK_P": block_p,
                    "BLOCK_C": block_c, **wanted,
                },
                {"num_warps": 4, "num_stages": 1},
            )
        )  # fmt: skip
    return launches


def backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frame_mask: Tensor | None,
    missing: str,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, (0,) where not needed."""
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    grad_weight = weight.new_empty(weight.shape if needs_weight else (0,))
    grad_bias = (weight if bias is None else bias).new_empty(weight.shape[:1] if needs_bias else (0,))
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    if needs_x or needs_weight or needs_bias:
        launches = backward_launches(
            Problem(x, weight, bias, frame_mask, missing, grad_out),
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            multiprocessors_of(x.device),
        )
        run(x, *launches)
    return grad_x, grad_weight, grad_bias
