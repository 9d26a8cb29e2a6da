"""Ranking by exact scores: float64 sums in a fixed order, with the same bits on every device, for every block size.

Matrix products in float32 find what is far from a threshold; the scores here decide the rest. A dot product over
columns i has 32 partial sums, partial j over i = j, j + 32, j + 64, ..., which are then added in halves: j and j + 16,
j and j + 8, and so on. Products are rounded before they are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 32
FORMS = ("product", "euclidean", "parts", "sum", "masked")
# Pairs whose exact scores are computed at a time, and cells of a table of thresholds and scores.
_PAIR_VALUES = 1 << 22
_TABLE_CELLS = 1 << 22


def ordered_dot(first: Tensor, second: Tensor, *, differences: bool = False) -> Tensor:
    """(m,) float64: row by row sum_i a_i b_i, or sum_i (a_i - b_i)^2, in the fixed order."""
    partial = first.new_zeros((len(first), LANES), dtype=torch.float64)
    for start in range(0, first.shape[1], LANES):
        a, b = (side[:, start : start + LANES].double() for side in (first, second))
        partial[:, : a.shape[1]] += (a - b).square() if differences else a * b
    width = LANES // 2
    while width:
        partial = partial[:, :width] + partial[:, width : 2 * width]
        width //= 2
    return partial[:, 0]


def rounded_sqrt(values: Tensor) -> Tensor:
    """Square roots rounded to nearest, as IEEE 754 and every processor have them.

    A CPU's ``torch.sqrt`` of float64 (MKL's) is one unit in the last place off in 0.8 % of cases. One step of Newton's
    with the exact remainder, from Dekker's product, rounds the rest.
    """
    root = values.sqrt()
    high = root * (2.0**27 + 1)
    high = high - (high - root)
    low = root - high
    square = root * root
    rest = (high * high - square + 2 * high * low) + low * low
    better = root + ((values - square) - rest) / (2 * root)
    return torch.where(better.isfinite(), better, root)


def unit_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, rounded once from float64, and the lengths; a row of zeros stays zero.

    Args:
        features: (n, d) floats.

    Returns:
        rows (n, d) float32, float64 from float64; norms (n,) float64, not finite where the row is not.
    """
    values = features.double()
    exponents = values.new_zeros((len(values), 1), dtype=torch.int32)
    if features.dtype == torch.float64:  # squares of the others cannot overflow
        largest = values.abs().amax(dim=1, keepdim=True)
        exponents = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent
        values = torch.ldexp(values, -exponents)
    norms = rounded_sqrt(ordered_dot(values, values))[:, None]
    rows = torch.where(norms == 0, 0.0, values / norms)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return rows.to(dtype), torch.ldexp(norms, exponents)[:, 0]


def _form(first: Tensor, second: Tensor, form: str, widths: Sequence[int], weight: float, epsilon: float) -> Tensor:
    if form == "euclidean":
        return ordered_dot(first, second, differences=True).neg()
    dots, start = [], 0
    for width in widths:
        dots.append(ordered_dot(first[:, start : start + width], second[:, start : start + width]))
        start += width
    if form == "product":
        return dots[0]
    if form == "masked":
        return torch.where(dots[1] == 0, 0.0, dots[0] / rounded_sqrt(dots[1]))
    parts = dots[1] / (dots[2] + epsilon)
    return parts if form == "parts" else dots[0] + weight * parts


def pair_scores(
    query: Tensor,
    gallery: Tensor,
    rows: Tensor,
    columns: Tensor,
    form: str,
    widths: Sequence[int],
    weight: float,
    epsilon: float,
) -> Tensor:
    """Exact scores of pairs of packed rows, larger is better.

    With A, B, C the dot products over the three segments of columns: ``product`` A; ``euclidean`` -sum (q - g)^2 over
    all columns; ``parts`` B / (C + epsilon); ``sum`` A + weight B / (C + epsilon); ``masked`` A / sqrt(B), 0 where B
    is.

    Args:
        query, gallery: (Q, W), (G, W) packed rows, float32 or float64.
        rows, columns: (m,) int64, the pairs.
        form: One of ``FORMS``.
        widths: Columns of the three segments.
        weight, epsilon: Of the form.

    Returns:
        (m,) float64.
    """
    size = max(1, _PAIR_VALUES // max(1, query.shape[1]))
    found = [
        _form(query[some], gallery[others], form, widths, weight, epsilon)
        for some, others in zip(rows.split(size), columns.split(size), strict=True)
    ]
    return torch.cat(found) if found else query.new_empty(0, dtype=torch.float64)


def row_of(starts: Tensor) -> Tensor:
    """Row of each entry of lists that begin at ``starts`` (n + 1,): 0, 0, 1, 1, 1, ..."""
    return torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())


def leave_out(scores: Tensor, first: int, starts: Tensor, left_out: Tensor) -> int:
    """Sets the scores of the tile's columns that do not count to -inf, and says how many there are."""
    entries = left_out[starts[0] : starts[-1]] - first
    inside = (entries >= 0) & (entries < scores.shape[1])
    rows = row_of(starts)[inside]
    scores[rows, entries[inside]] = -torch.inf
    return len(rows)


def count_before(
    scores: Tensor,
    slack: Tensor,
    query: Tensor,
    gallery: Tensor,
    first: int,
    starts: Tensor,
    thresholds: Tensor,
    entries: Tensor,
    left_out_starts: Tensor,
    left_out: Tensor,
    form: str,
    widths: Sequence[int],
    weight: float,
    epsilon: float,
    counts: Tensor,
) -> None:
    """Adds to ``counts`` how many entries of a tile come before each threshold.

    Entry g comes before entry p with threshold t where s_g > t, or s_g = t and g < p.

    Args:
        scores: (n, T) float32 scores of the tile, overwritten; NaN is unknown.
        slack: (n,) float32, |score - exact score| at most.
        query, gallery: (n, W), (T, W) packed rows of the tile.
        first: Gallery index of the tile's first column.
        starts: (n + 1,) where each row's thresholds begin.
        thresholds: (m,) float64 exact scores, rising within a row.
        entries: (m,) int64 p, the gallery index that a tie is decided by.
        left_out_starts, left_out: Gallery indices of each row that do not count, rising.
        form, widths, weight, epsilon: As in :func:`pair_scores`.
        counts: (m,) int64, changed in place.
    """
    leave_out(scores, first, left_out_starts, left_out)
    offset, total = int(starts[0]), int(starts[-1])
    rows = row_of(starts)
    values, band = scores.double(), slack.double()
    size = max(1, _TABLE_CELLS // max(1, scores.shape[1]))
    for some in torch.arange(total - offset, device=scores.device).split(size):
        row, limit, entry = rows[some], thresholds[offset + some, None], entries[offset + some]
        table, wide = values[row], band[row, None]
        above = table > limit + wide
        near, column = (~above & ~(table < limit - wide) & (table != -torch.inf)).nonzero(as_tuple=True)
        exact = pair_scores(query, gallery, row[near], column, form, widths, weight, epsilon)
        target = thresholds[offset + some[near]]
        before = (exact > target) | ((exact == target) & (column + first < entry[near]))
        counts[offset + some] += above.sum(1) + torch.bincount(near[before], minlength=len(some))


def allowed_pairs(
    camera_rule: int,
    pid_rule: int,
    query_camids: Tensor | None,
    gallery_camids: Tensor | None,
    query_pids: Tensor | None,
    gallery_pids: Tensor | None,
    query_times: Tensor | None,
    gallery_times: Tensor | None,
    earliest: float,
    latest: float,
) -> Tensor | None:
    """(n, T) True where a pair fulfils every rule; None without a rule. 1: must differ (-1 does), 2: must be equal."""
    allowed: Tensor | None = None
    sides = ((camera_rule, query_camids, gallery_camids), (pid_rule, query_pids, gallery_pids))
    for rule, of_query, of_gallery in sides:
        if rule and of_query is not None and of_gallery is not None:
            same = (of_query[:, None] == of_gallery) & (of_query[:, None] != -1)
            passed = same if rule == 2 else ~same
            allowed = passed if allowed is None else allowed & passed
    if query_times is not None and gallery_times is not None:
        later = gallery_times - query_times[:, None]
        passed = (later >= earliest) & (later <= latest)
        allowed = passed if allowed is None else allowed & passed
    return allowed


def collect_top(
    scores: Tensor,
    slack: Tensor,
    query: Tensor,
    gallery: Tensor,
    first: int,
    left_out_starts: Tensor,
    left_out: Tensor,
    form: str,
    widths: Sequence[int],
    weight: float,
    epsilon: float,
    largest: bool,
    query_camids: Tensor | None,
    gallery_camids: Tensor | None,
    camera_rule: int,
    query_pids: Tensor | None,
    gallery_pids: Tensor | None,
    pid_rule: int,
    query_times: Tensor | None,
    gallery_times: Tensor | None,
    earliest: float,
    latest: float,
    values: Tensor,
    indices: Tensor,
    filled: Tensor,
) -> None:
    """Merges a tile's entries into each row's best k so far: exact scores, best first, ties by the lower index.

    Args:
        scores, slack, query, gallery, first, left_out_starts, left_out, form, widths, weight, epsilon: As in
            :func:`count_before`.
        largest: False collects the smallest scores.
        query_camids, gallery_camids, camera_rule, query_pids, gallery_pids, pid_rule: (n,) and (T,) int64 and a rule:
            0 none, 1 must differ, 2 must be equal; -1 is unknown and differs from everything.
        query_times, gallery_times, earliest, latest: (n,) and (T,) float64: earliest <= t_g - t_q <= latest.
        values, indices, filled: (n, k) float64, (n, k) int64, (n,) int64, changed in place.
    """
    count, size = scores.shape
    k = values.shape[1]
    if not count or not size:
        return
    leave_out(scores, first, left_out_starts, left_out)
    allowed = allowed_pairs(
        camera_rule, pid_rule, query_camids, gallery_camids, query_pids, gallery_pids, query_times, gallery_times,
        earliest, latest,
    )  # fmt: skip
    sign = 1.0 if largest else -1.0
    passed = scores != -torch.inf if allowed is None else (scores != -torch.inf) & allowed
    signed = torch.where(passed, scores.double() * sign, -torch.inf)
    wide = slack.double()[:, None]
    last = torch.where(filled == k, sign * values[:, k - 1], -torch.inf)[:, None]
    known = torch.where(signed.isnan(), -torch.inf, signed)
    kth = torch.topk(known, min(k, size), dim=1).values[:, -1:] if k <= size else torch.full_like(last, -torch.inf)
    candidate = passed & ~(signed < torch.maximum(last - wide, kth - 2 * wide))
    row, column = candidate.nonzero(as_tuple=True)
    exact = pair_scores(query, gallery, row, column, form, widths, weight, epsilon)
    # The state comes first, and the candidates by index: stable sorts keep that order among equals.
    kept = torch.arange(k, device=scores.device) < filled[:, None]
    rows = torch.cat((kept.nonzero(as_tuple=True)[0], row))
    found = torch.cat((values[kept], exact))
    entries = torch.cat((indices[kept], column + first))
    order = found.sort(stable=True, descending=largest).indices
    order = order[rows[order].sort(stable=True).indices]
    numbers = torch.bincount(rows, minlength=count)
    place = torch.arange(len(rows), device=rows.device) - (numbers.cumsum(0) - numbers)[rows[order]]
    best = place < k
    target = (rows[order][best], place[best])
    values[target], indices[target] = found[order][best], entries[order][best]
    filled.copy_(numbers.clamp(max=k))
