"""Calls of the k-reciprocal functions on random sets of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Samples:
    """Random neighbours, and sparse rows on sets of them."""

    neighbors: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor


def samples(seed: int, count: int = 60, width: int = 9, hub: bool = False) -> Samples:
    """Neighbours of points on a line, or of many in one place; rows of V of different lengths, one of none."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, generator=generator, dtype=torch.float64)
    if hub:
        places[: count // 2] = 0.5
    neighbors = (places[:, None] - places).abs().argsort(dim=1, stable=True)[:, :width].to(torch.int32)
    chosen = torch.rand(count, count, generator=generator) < torch.rand(count, 1, generator=generator) * 0.4
    chosen[3] = False
    rows, columns = chosen.nonzero().unbind(1)
    values = torch.rand(len(rows), generator=generator, dtype=torch.float64) + 0.01
    starts = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=count).cumsum(0)])
    return Samples(neighbors, starts, columns.to(torch.int32), values)


def run(functions: Any, case: Samples, k: int, h: int, averaged: int, queries: int) -> list[Tensor]:
    """Everything that the five functions find, one after the other."""
    device = case.starts.device
    count = len(case.neighbors)
    wide, narrow = functions.neighbors(case.neighbors, k), functions.neighbors(case.neighbors, h)
    sizes = torch.full((count,), -1, device=device)
    functions.expand(wide, narrow, None, sizes)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    members = torch.full((int(starts[-1]),), -1, dtype=torch.int32, device=device)
    functions.expand(wide, narrow, starts, members)
    normal = case.values.clone()
    functions.normalize(case.starts, normal)

    rows = case.starts, case.columns, case.values
    lengths = torch.full((count,), -1, device=device)
    functions.average(*rows, case.neighbors, averaged, None, lengths, None)
    new_starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    columns = torch.full((int(new_starts[-1]),), -1, dtype=torch.int32, device=device)
    means = torch.full((len(columns),), torch.nan, dtype=torch.float64, device=device)
    functions.average(*rows, case.neighbors, averaged, new_starts, columns, means)
    return [wide, narrow, sizes, members, normal, lengths, columns, means, *overlap(functions, case, queries)]


def overlap(functions: Any, case: Samples, queries: int) -> list[Tensor]:
    """Counts, columns and sums of some queries, in another order than theirs, with room to spare between them."""
    device = case.starts.device
    gallery = len(case.starts) - 1 - queries
    inverse_starts, inverse_rows, inverse_values = by_column(case, queries)
    asked = torch.arange(queries, device=device).flip(0)[::2].contiguous()
    room = torch.arange(len(asked) + 1, device=device) * (gallery + 2)
    counts = torch.full((len(asked),), -1, device=device)
    out = torch.full((int(room[-1]),), -1, dtype=torch.int32, device=device)
    sums = torch.full((len(out),), -1.0, dtype=torch.float64, device=device)
    functions.overlap(
        case.starts, case.columns, case.values, asked, inverse_starts, inverse_rows, inverse_values, gallery, room,
        counts, out, sums,
    )  # fmt: skip
    return [asked, counts, out, sums]


def by_column(case: Samples, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows behind the queries', by column."""
    first = int(case.starts[queries])
    row = torch.repeat_interleave(torch.arange(len(case.starts) - 1, device=case.starts.device), case.starts.diff())
    columns = case.columns[first:]
    order = columns.sort(stable=True).indices
    counts = torch.bincount(columns, minlength=len(case.starts) - 1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return starts, (row[first:] - queries).to(torch.int32)[order], case.values[first:][order]
