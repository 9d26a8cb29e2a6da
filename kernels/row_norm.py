"""What launchers of kernels that normalise rows share: rows as strides, tiles, how rows are cut, sums over programs.

Tiles are chosen by what the compiler says of them (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from motarfuse.kernels._launch import TYPES, Launch, device_of
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.row_norm_kernels import row_norm_sum_kernel

MAX_CHANNELS = 4096
# Rows that one lane of a program adds up: with more of them float32 would lose what a tree of sums keeps.
MAX_CHAIN = 128
# From so many rows on they are counted in 64 bits.
WIDE_ROWS = 2**31 - 2**24
# Where a CPU interprets, as many as an H100 has.
_MULTIPROCESSORS = 132


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) whose ``x`` is (..., C)."""
    reasons = reasons_against_call(request)
    x = request.tensors["x"]
    if x.shape[-1] > MAX_CHANNELS:
        reasons.append(f"it takes up to {MAX_CHANNELS} channels, got {x.shape[-1]}")
    return reasons


class Tiles(NamedTuple):
    """Rows and channels of a tile, the warps of its program, and the channels that lie side by side in it.

    All are powers of two. ``chunk`` is for kernels that take whole rows (row_norm_kernels.py); others have none.
    """

    block_m: int
    block_c: int
    num_warps: int
    chunk: int = 0
    maxnreg: int | None = None


def whole_rows(channels: int, itemsize: int, each: int, num_warps: int) -> Tiles:
    """Tiles whose rows stay within a warp where they are short enough, else within two, four, ..

    Args:
        channels: Of a row.
        itemsize: Of the smallest element: a lane reads 16 bytes of it at once.
        each: Numbers of a tensor that a lane holds.
        num_warps: Of a program, more where a row takes more.
    """
    lanes = 32 * 16 // itemsize
    block_c = triton.next_power_of_2(channels)
    chunk = max(min(block_c, lanes), lanes * block_c // (32 * each))
    num_warps = max(num_warps, chunk // lanes)
    return Tiles(max(1, 32 * each * num_warps // block_c), block_c, num_warps, chunk)


def forward_tiles(channels: int, itemsize: int) -> Tiles:
    """56 to 104 registers: 16 to 36 warps on a multiprocessor."""
    return whole_rows(channels, itemsize, 32, 4)


def backward_tiles(channels: int, itemsize: int, sums: int) -> tuple[Tiles, int]:
    """Tiles, and how many of their programs a multiprocessor holds at once.

    Half as many numbers a lane, because sums of vectors' gradients over rows stay in registers beside them: up to two
    of them fit into 168 registers, which leave room for three programs, three take 180 to 202.
    """
    tiles = whole_rows(channels, itemsize, 16, 4)
    return (tiles, 2) if sums > 2 else (tiles._replace(maxnreg=168), 3)


class Cut(NamedTuple):
    """Of the rows into programs."""

    programs: int
    rows_each: int


def cut_rows(rows: int, block_m: int, multiprocessors: int, *, sums: bool, resident: int = 2) -> Cut:
    """As many programs as are resident, more where their sums would get long; a tile each where nothing is summed."""
    tiles = -(-rows // block_m)
    if sums:
        tiles_each = min(MAX_CHAIN, -(-tiles // (resident * multiprocessors)))
        return Cut(-(-tiles // tiles_each), tiles_each * block_m)
    return Cut(tiles, block_m)


def multiprocessors_of(device: torch.device) -> int:
    return _multiprocessors(device) if device.type == "cuda" else _MULTIPROCESSORS


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class Strides(NamedTuple):
    """Of one tensor's rows and channels."""

    outer: int
    inner: int
    channel: int


class Rows(NamedTuple):
    """Tensors of one shape (..., C) as rows.

    Attributes:
        tensors: By name, None where there is none; copies of those that no two strides reach all rows of.
        strides: By name.
        inner: Inner rows of an outer one; None where one stride reaches all rows of all tensors.
        unit: The largest divisor of all rows' strides, of 8, 4, 2 and 1.
    """

    tensors: dict[str, torch.Tensor | None]
    strides: dict[str, Strides]
    inner: int | None
    unit: int

    def arguments(self) -> dict[str, Any]:
        """Those of a kernel: pointers ``p_<name>``, strides of rows by the unit."""
        known: dict[str, Any] = {"rows_inner": self.inner}
        for name, tensor in self.tensors.items():
            strides = self.strides[name]
            known[f"p_{name}"] = tensor
            known[f"{name}_outer"] = strides.outer // self.unit
            known[f"{name}_inner"] = strides.inner // self.unit
            known[f"{name}_channel"] = strides.channel
        return known


def as_rows(tensors: Mapping[str, torch.Tensor | None]) -> Rows:
    """Finds two strides, or one, by which all rows of all tensors are reached where they lie.

    Leading dimensions are cut once, into outer and inner ones. A tensor of which one of the two groups has no common
    stride is copied: that takes four dimensions or more, in another order or broadcast in the middle.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    *leading, channels = next(iter(given.values())).shape
    if all(tensor.is_contiguous() for tensor in given.values()):
        return _rows(tensors, dict.fromkeys(given, (0, channels)), None, channels)
    for place in range(len(leading)):
        found = {name: _two_strides(tensor, place) for name, tensor in given.items()}
        if None not in found.values():
            break
    else:
        place = 1
        kept = {name: tensor for name, tensor in given.items() if _two_strides(tensor, place)}
        tensors = {name: kept.get(name, None if one is None else one.contiguous()) for name, one in tensors.items()}
        found = {name: _two_strides(tensor, place) for name, tensor in tensors.items() if tensor is not None}
    inner = math.prod(leading[place:]) if place else None
    return _rows(tensors, {name: pair for name, pair in found.items() if pair}, inner, channels)


def _rows(
    tensors: Mapping[str, torch.Tensor | None], pairs: dict[str, tuple[int, int]], inner: int | None, channels: int
) -> Rows:
    strides = {}
    for name, tensor in tensors.items():
        channel = 1 if tensor is None or channels == 1 else tensor.stride(-1)
        strides[name] = Strides(*pairs.get(name, (0, 0)), channel)
    unit = math.gcd(8, *(stride for pair in pairs.values() for stride in pair))
    return Rows(dict(tensors), strides, inner, unit)


def _two_strides(tensor: torch.Tensor, place: int) -> tuple[int, int] | None:
    """(outer, inner) strides if the leading dimensions are cut before ``place``; None if there are none."""
    outer = _one_stride(tensor, 0, place)
    inner = _one_stride(tensor, place, tensor.ndim - 1)
    return None if outer is None or inner is None else (outer, inner)


def _one_stride(tensor: torch.Tensor, first: int, last: int) -> int | None:
    """By which all indices of the dimensions from ``first`` to before ``last`` are reached; 0 if there is but one."""
    stride, reach = 0, None
    for axis in reversed(range(first, last)):
        size = tensor.shape[axis]
        if size == 1:
            continue
        if reach is None:
            stride, reach = tensor.stride(axis), tensor.stride(axis) * size
        elif tensor.stride(axis) != reach:
            return None
        else:
            reach *= size
    return stride


def rows_launch(
    kernel: Any, count: int, channels: int, compute: torch.dtype, rows: Rows, tiles: Tiles, programs: int,
    arguments: Mapping[str, Any],
) -> Launch:  # fmt: skip
    """A launch of a kernel over rows that finds its arguments and constants by name."""
    known = {"num_rows": count, **rows.arguments(), **arguments}
    constants = {
        "CHANNELS": channels, "COMPUTE": TYPES[compute], "UNIT": rows.unit, "BLOCK_M": tiles.block_m,
        "BLOCK_C": tiles.block_c, "CHUNK": tiles.chunk, "INDEX": tl.int64 if count >= WIDE_ROWS else tl.int32,
    }  # fmt: skip
    names = kernel.arg_names
    return Launch(
        kernel,
        (programs,),
        {name: known[name] for name in names if name in known},
        {name: constants[name] for name in names if name in constants},
        {"num_warps": tiles.num_warps, "num_stages": 1} | ({"maxnreg": tiles.maxnreg} if tiles.maxnreg else {}),
    )


def partial_sums(like: torch.Tensor, wanted: Sequence[bool], programs: int, channels: int, compute: torch.dtype) -> Any:
    """(vectors, programs, C) for the wanted ones of some vectors, and for each the part that is its own, or None."""
    terms = like.new_empty((sum(wanted), programs, channels), dtype=compute)
    parts = iter(terms.unbind(0))
    return terms, [next(parts) if one else None for one in wanted]


def sum_launch(terms: torch.Tensor, results: Sequence[torch.Tensor]) -> Launch:
    """Sums (vectors, terms, columns) with any strides into a (columns,) tensor for each of up to three vectors."""
    vectors, count, columns = terms.shape
    stride_vector, stride_term, stride_column = terms.stride()
    first, second, third = (*results, None, None, None)[:3]
    block_c = 16 if stride_column != 1 else 32 if columns <= 1024 else 128
    return Launch(
        row_norm_sum_kernel,
        (-(-columns // block_c), vectors),
        {
            "p_terms": terms, "p_first": first, "p_second": second, "p_third": third, "terms": count,
            "columns": columns, "stride_vector": stride_vector, "stride_term": stride_term,
            "stride_column": stride_column,
        },
        {"BLOCK_T": 2048 // block_c, "BLOCK_C": block_c, "COMPUTE": TYPES[terms.dtype]},
        {"num_warps": 4, "num_stages": 1},
    )  # fmt: skip


def run(tensor: torch.Tensor, *launches: Launch) -> None:
    """Launches one after the other on a tensor's device."""
    with device_of(tensor):
        for launch in launches:
            launch.run()
