"""A call of motion attention as its kernels see it: sizes, strides, constants, where results lie."""

from __future__ import annotations

from typing import Any

import torch
import triton
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import TYPES, Launch, architecture_of
from motarfuse.kernels._runtime import interpreted

# Rows of the extra channels are written in whole tiles of any size in the table.
PADDING = 128


class Problem:
    """A call's tensors with what all of its kernels want to know of them."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        motion_query: torch.Tensor | None,
        motion_key: torch.Tensor | None,
        motion_scale: torch.Tensor | None,
        key_bias: torch.Tensor | None,
        scale: float,
        architecture: int | None = None,
    ) -> None:
        self.query, self.key, self.value = query, key, value
        if motion_query is None or motion_key is None or motion_query.shape[3] == 0:
            motion_query = motion_key = motion_scale = None
        self.motion_query, self.motion_key = motion_query, motion_key
        self.motion_scale = None if motion_scale is None else motion_scale.contiguous()
        self.key_bias, self.scale = key_bias, float(scale)
        self.batch, self.heads, self.queries, self.width = query.shape
        self.keys = key.shape[2]
        self.motion = 0 if motion_query is None else motion_query.shape[3]
        self.half = query.dtype in (torch.float16, torch.bfloat16)
        self.dtype = query.dtype
        self.compute = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.block_d = max(16, triton.next_power_of_2(self.width))
        # Three channels for the key bias.
        self.block_r = 16 if self.motion + 3 <= 16 else 32
        self.has_extra = motion_query is not None or key_bias is not None
        per_head = (motion_key is not None and motion_key.shape[1] > 1) or (
            key_bias is not None and key_bias.dim() == 3
        )
        self.extra_heads = self.heads if per_head else 1
        self.aligned = all(is_aligned(tensor) for tensor in (query, key, value))
        self.packed = all(_is_packed(tensor) for tensor in (motion_query, motion_key) if tensor is not None)
        self.padded_queries, self.padded_keys = (-(-n // PADDING) * PADDING for n in (self.queries, self.keys))
        self.architecture = architecture_of(query.device) if architecture is None else architecture

    @property
    def sizes(self) -> dict[str, Any]:
        return {
            "num_heads": self.heads, "num_queries": self.queries, "num_keys": self.keys,
            "num_padded_queries": self.padded_queries, "num_padded_keys": self.padded_keys, "scale": self.scale,
        }  # fmt: skip

    @property
    def strides(self) -> dict[str, int]:
        """Of query, key, value, in units of 8 elements where aligned; of motion and key bias."""
        found: dict[str, int] = {}
        for name, tensor in (("query", self.query), ("key", self.key), ("value", self.value)):
            found |= strides_of(name, tensor, self.aligned)
            found[f"{name}_d"] = tensor.stride(3)
        for name, motion in (("motion_query", self.motion_query), ("motion_key", self.motion_key)):
            shape = (0, 0, 0, 1) if motion is None else _head_strides(motion)
            found |= {f"{name}_{axis}": stride for axis, stride in zip("bhnr", shape, strict=True)}
        bias = self.key_bias
        bias_strides = (0, 0, 1)
        if bias is not None:
            bias_strides = (bias.stride(0), bias.stride(1) if bias.dim() == 3 else 0, bias.stride(-1))
        return found | {f"key_bias_{axis}": stride for axis, stride in zip("bhm", bias_strides, strict=True)}

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "DTYPE": TYPES[self.dtype], "COMPUTE": TYPES[self.compute],
            # Plain TF32 would lose half of float32's digits; three products keep them (test_kernel_report reads SASS).
            "PRECISION": "tf32x3" if self.dtype == torch.float32 else "ieee",
            "ALIGNED": self.aligned, "PACKED": self.packed, "EXTRA_PER_HEAD": self.extra_heads > 1,
            "HEAD_DIM": self.width, "BLOCK_D": self.block_d, "MOTION": self.motion, "BLOCK_R": self.block_r,
        }  # fmt: skip

    def tiles(self, kernel: str) -> table.Tiles:
        return table.tiles(self.architecture, kernel, self.half, self.block_d)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], tiles: Any, **constants: Any
    ) -> Launch:
        """A launch of a kernel that finds its arguments and constants by name."""
        known = {**self.sizes, **self.strides, **arguments}
        known_constants = {**self.constants, **constants}
        options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        if tiles.maxnreg is not None and not interpreted():
            options["maxnreg"] = tiles.maxnreg
        return Launch(
            kernel,
            grid,
            {name: known[name] for name in kernel.arg_names if name in known},
            {name: known_constants[name] for name in kernel.arg_names if name in known_constants},
            options,
        )


def statistics_shape(query: torch.Tensor) -> tuple[int, ...]:
    """(B, H, N) for half types: log2 of the row sums of exp(S); (B, H, 2, N) for others: row maximum, 1 / row sum."""
    batch, heads, rows = query.shape[:3]
    return (batch, heads, rows) if query.dtype in (torch.float16, torch.bfloat16) else (batch, heads, 2, rows)


def rows_first(like: torch.Tensor, rows: int) -> torch.Tensor:
    """An empty (B, H, rows, d) that lies in memory as (B, rows, H, d), which the next projection takes as it is."""
    batch, heads, _, width = like.shape
    return like.new_empty((batch, rows, heads, width)).transpose(1, 2)


def strides_of(name: str, tensor: torch.Tensor | None, aligned: bool) -> dict[str, int]:
    """Strides of batch, head and row, in units of 8 elements where ``aligned``."""
    if tensor is None:
        return {f"{name}_{axis}": 0 for axis in "bhn"}
    unit = 8 if aligned else 1
    sizes = zip(tensor.shape, tensor.stride(), "bhn", strict=False)
    return {f"{name}_{axis}": stride // unit if size > 1 else 0 for size, stride, axis in sizes}


def _head_strides(motion: torch.Tensor) -> tuple[int, ...]:
    strides = motion.stride()
    return (strides[0], strides[1] if motion.shape[1] > 1 else 0, *strides[2:])


def is_aligned(tensor: torch.Tensor) -> bool:
    """Rows of 16-byte words: channels side by side, other strides multiples of 8 elements that leave 32 bits alone."""
    if tensor.stride(3) != 1 or (not tensor.is_meta and tensor.data_ptr() % 16):
        return False
    strides = [stride for size, stride in zip(tensor.shape[:3], tensor.stride(), strict=False) if size > 1]
    return all(stride % 8 == 0 for stride in strides) and tensor.stride(2) < 1 << 22


def _is_packed(motion: torch.Tensor) -> bool:
    return motion.stride(3) == 1 and motion.stride(2) == motion.shape[3]
