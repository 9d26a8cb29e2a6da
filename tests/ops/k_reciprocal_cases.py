"""Calls of the k-reciprocal functions on random sets of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


@dataclass
class Tile:
    """What some rows share with gallery entries, scores of these, and keys that are asked for."""

    shared: list[Tensor]
    scores: Tensor
    slack: Tensor
    first: int
    largest: Tensor
    exact: Tensor
    starts: Tensor
    thresholds: Tensor
    left_out_starts: Tensor
    left_out: Tensor

    def to(self, device: str) -> Tile:
        """The tile on a device."""
        moved: dict[str, Any] = {name: one.to(device) for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, shared=[one.to(device) for one in self.shared], **moved)


def tile(seed: int, rows: int = 7, gallery: int = 90, columns: int = 40, first: int = 30) -> Tile:
    """Distances of some grid, so that many are equal, and scores that are wrong by up to the slack, or unknown."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    room = torch.arange(rows + 1) * (gallery + 2) + 3
    counts = (random(rows) * (gallery + 1)).long()
    counts[0], counts[1] = gallery, 0
    names = torch.full((int(room[-1]) + 4,), -1, dtype=torch.int32)
    sums = torch.full((len(names),), -1.0, dtype=torch.float64)
    for row, count in enumerate(counts.tolist()):
        some = slice(int(room[row]), int(room[row]) + count)
        names[some] = torch.randperm(gallery, generator=generator)[:count].sort().values.int()
        sums[some] = (random(count) * 12).ceil() / 10  # some are above 1, whose J is negative
        sums[some][::9] = 1e-17  # J = 1 - 1e-17 is 1
    exact = (random(rows, gallery) * 40).round() / 4
    slack = torch.tensor([0.0, 0.25, 1.5, 0.01, torch.inf])[torch.arange(rows) % 5]
    error = (random(rows, columns) * 2 - 1) * slack.clamp(max=5).double()[:, None]
    scores = (-exact[:, first : first + columns] + error).float()
    scores[:, ::7] = torch.nan
    asked = torch.tensor([5, 3, 0, 1, 30])[torch.arange(rows) % 5]
    starts = torch.cat([asked.new_zeros(1), asked.cumsum(0)])
    thresholds = torch.cat([((random(count) * 60).round() / 4 - 5).sort().values for count in asked.tolist()])
    out = random(rows, gallery) < 0.2
    out[3] = False
    left_out_starts = torch.cat([asked.new_zeros(1), out.sum(dim=1).cumsum(0)])
    wide = torch.full((rows, columns + 3), torch.nan)
    wide[:, :columns] = scores
    return Tile(
        [room, counts, names, sums], wide[:, :columns], slack, first, exact.amax(dim=1), exact, starts, thresholds,
        left_out_starts, out.nonzero()[:, 1],
    )  # fmt: skip


FORMULAS = [(0.5, 0, False), (2.0, 1, False), (0.3, 2, False), (0.5, 0, True), (1.0, -1, True), (1.0, -1, False)]


def run_order(functions: Any, case: Tile, gain: float, power: int, clamped: bool) -> list[Tensor]:
    """Everything that the functions on what rows share find."""
    device, rows = case.scores.device, len(case.scores)
    room, counts, _, sums = case.shared
    found: list[Tensor] = []
    for k in (1, 4, 30, 90, 91):
        kth = torch.full((rows,), torch.nan, dtype=torch.float64, device=device)
        functions.kth(room, counts, sums, k, kth)
        sizes = torch.full((rows,), -1, device=device)
        functions.select(*case.shared, kth, None, sizes, None)
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        columns = torch.full((int(starts[-1]),), -1, dtype=torch.int32, device=device)
        values = torch.full((len(columns),), torch.nan, dtype=torch.float64, device=device)
        functions.select(*case.shared, kth, starts, columns, values)
        found += [kth, sizes, columns, values]
    thresholds = case.thresholds
    if power < 0:  # Jaccard distances of the same grid
        thresholds = 1 - (asked := (thresholds.abs() / 10).clamp(max=1.2)) / (2 - asked)
        row = torch.repeat_interleave(torch.arange(rows, device=device), case.starts.diff())
        order = thresholds.argsort()
        thresholds = thresholds[order[row[order].argsort(stable=True)]]
    steps = torch.zeros_like(thresholds, dtype=torch.int64)
    unsure = torch.zeros_like(sums, dtype=torch.bool)
    functions.count_earlier(
        case.scores, case.slack, case.first, *case.shared, case.largest, gain, power, clamped, case.starts, thresholds,
        case.left_out_starts, case.left_out, steps, unsure,
    )  # fmt: skip
    return [*found, thresholds, steps, unsure]
