"""Random tiles for the ranking operators, and what is right of them: from a table of all exact scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from motarfuse.reference import ranking as reference

FORMS = reference.FORMS
Form = tuple[str, list[int], float, float]


def widths_of(form: str, width: int) -> list[int]:
    """Widths of the three segments, of about ``width`` columns in all."""
    first, last = width // 2, width - width // 2
    return {
        "product": [width, 0, 0],
        "euclidean": [width, 0, 0],
        "parts": [0, first + 1, last],
        "sum": [first, last, 3],
        "masked": [first + 1, last, 0],
    }[form]


class Tiles(NamedTuple):
    """Queries and a gallery with their exact scores, and float32 scores within ``slack`` of them.

    Attributes:
        query, gallery: (n, W) and (G, W) packed rows.
        form: form, widths, weight and epsilon.
        exact: (n, G) float64.
        slack: (n,) float32.
        left_out_starts, left_out: Entries of each row that do not count, rising.
    """

    query: Tensor
    gallery: Tensor
    form: Form
    exact: Tensor
    slack: Tensor
    left_out_starts: Tensor
    left_out: Tensor

    def counts(self) -> Tensor:
        """(n, G) True where an entry is not left out."""
        counted = torch.ones(self.exact.shape, dtype=torch.bool)
        counted[reference.row_of(self.left_out_starts), self.left_out] = False
        return counted

    def scores(self, seed: int, *, unknown: float = 0.0) -> Tensor:
        """(n, G) float32: anywhere within the slack of the exact scores, and NaN in a share of the places."""
        generator = torch.Generator().manual_seed(seed)
        error = torch.rand(self.exact.shape, generator=generator, dtype=torch.float64) * 1.8 - 0.9
        scores = (self.exact + error * self.slack[:, None]).float()
        scores[torch.rand(self.exact.shape, generator=generator) < unknown] = torch.nan
        return scores

    def pieces(self, scores: Tensor, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first, scores, gallery rows) of tiles of ``size`` columns; the scores are copies with longer rows."""
        for first in range(0, self.exact.shape[1], size):
            piece = scores[:, first : first + size]
            room = torch.zeros(len(piece), piece.shape[1] + 5)[:, 2 : 2 + piece.shape[1]]
            yield first, room.copy_(piece), self.gallery[first : first + size]


def tiles(
    seed: int,
    form: str,
    dtype: torch.dtype = torch.float32,
    *,
    queries: int = 7,
    entries: int = 150,
    width: int = 40,
    slack: float = 0.05,
    alike: int = 0,
) -> Tiles:
    """Random rows; ``alike`` different ones make up the whole gallery where it is not 0."""
    generator = torch.Generator().manual_seed(seed)
    widths = widths_of(form, width)
    total = sum(widths)
    rows = torch.randn(queries + entries, total, generator=generator, dtype=torch.float64).to(dtype)
    query, gallery = rows[:queries], rows[queries:]
    if form in ("parts", "sum"):  # visibilities
        for side in (query, gallery):
            side[:, total - widths[2] :] = side[:, total - widths[2] :].abs().clamp(max=1)
    if form == "masked":
        for side in (query, gallery):
            side[:, widths[0] :] = side[:, widths[0] :].square()
        gallery[::9, widths[0] :] = 0
    if alike:
        gallery = gallery[:alike][torch.randint(alike, (entries,), generator=generator)]
    call: Form = (form, widths, 3.0, 1e-6)
    every = torch.arange(queries)[:, None].expand(queries, entries).flatten()
    exact = reference.pair_scores(query, gallery, every, torch.arange(entries).repeat(queries), *call)
    exact = exact.view(queries, entries)
    hidden = torch.rand(queries, entries, generator=generator) < 0.1
    hidden[0] = False
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), hidden.sum(1).cumsum(0)))
    return Tiles(query, gallery, call, exact, torch.full((queries,), slack), starts, hidden.nonzero(as_tuple=True)[1])


class Thresholds(NamedTuple):
    """Thresholds of each row, rising: ``starts`` (n + 1,), ``values`` (m,) float64, ``entries`` (m,) int64."""

    starts: Tensor
    values: Tensor
    entries: Tensor


def thresholds(case: Tiles, seed: int, most: int) -> Thresholds:
    """Exact scores of random entries, and numbers between; up to ``most`` a row, none in the second."""
    generator = torch.Generator().manual_seed(seed)
    values, entries, numbers = [], [], []
    for row, scores in enumerate(case.exact):
        count = 0 if row == 1 else int(torch.randint(1, most + 1, (1,), generator=generator))
        entry = torch.randint(len(scores), (count,), generator=generator)
        value = scores[entry].clone()
        value[::5] += 0.01
        value, order = value.sort(stable=True)
        values.append(value)
        entries.append(entry[order])
        numbers.append(count)
    starts = torch.tensor([0, *numbers]).cumsum(0)
    return Thresholds(starts, torch.cat(values), torch.cat(entries))


def entries_before(case: Tiles, given: Thresholds) -> Tensor:
    """(m,) how many of the gallery's entries that count come before each threshold."""
    rows = reference.row_of(given.starts)
    exact, limit = case.exact[rows], given.values[:, None]
    before = (exact > limit) | ((exact == limit) & (torch.arange(exact.shape[1]) < given.entries[:, None]))
    return (before & case.counts()[rows]).sum(1)


def best(case: Tiles, allowed: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """values (n, k), indices (n, k) and filled (n,) of the best entries that are allowed."""
    count = len(case.exact)
    values = torch.full((count, k), torch.nan, dtype=torch.float64)
    indices = torch.full((count, k), -1)
    filled = torch.zeros(count, dtype=torch.int64)
    for row in range(count):
        entries = allowed[row].nonzero().flatten()
        order = case.exact[row, entries].sort(stable=True, descending=largest).indices[:k]
        filled[row] = len(order)
        indices[row, : len(order)] = entries[order]
        values[row, : len(order)] = case.exact[row, entries[order]]
    return values, indices, filled
