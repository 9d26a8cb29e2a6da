"""Packed rows: all that a score reads of a person in one row, and the float32 rows of the products that filter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.features import PersonFeatures, as_floats, as_people, check_visibility
from motarfuse.retrieval.scores import METRICS, PART_EPSILON, PART_WEIGHT, check_pair, choose_score, part_shape

STORAGE = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_PACKED_VALUES = 4 << 20
# Half the distance of two neighbouring numbers of 1 and above; twice that of float64, in which the exact scores are
# sums with rounding errors of their own.
_UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-52}
# Columns of a product whose result is added to the scores: matrix libraries take about as many at a time anyway.
_STRIP = 392
# Largest magnitudes whose squares, and 2^-30 of them, stay in a type; otherwise rows are scaled by a power of two,
# which changes no digit.
_ORDINARY = {None: (2.0**-30, 2.0**30), "bfloat16": (2.0**-30, 2.0**30), "float16": (1.0, 2.0**14)}
# Distances below this are errors of numbers that leave float32, however small the rows.
_LEAST_REACH = 2.0**-45
# A part that is seen less counts as hidden in half storage, which does not resolve its weighted feature.
_LEAST_VISIBILITY = 2.0**-10


def check_storage(storage: str | None) -> None:
    """Raises ``ValueError`` for an unknown storage type."""
    if storage is not None and storage not in STORAGE:
        raise ValueError(f"storage: got {storage!r}, supported are None, {', '.join(STORAGE)}")


def rounding_bound(columns: int, unit: float = _UNITS[torch.float32]) -> float:
    """g with |computed - exact| <= g sum_i |a_i b_i| for the products of :func:`_multiply`.

    n u / (1 - n u), u = 2^-24 in float32, where no term goes through more than n roundings: for a sum in any order, all
    of them.
    """
    strips = _strips(columns)
    roundings = -(-columns // strips) + strips
    return roundings * unit / (1 - roundings * unit)


def _strips(columns: int) -> int:
    """How many products of fewer columns are added up: as many as are free, since the bound falls with them."""
    return max(1, -(-columns // _STRIP))


def _multiply(first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    """first second^T in strips of columns."""
    size = -(-first.shape[1] // _strips(first.shape[1]))
    torch.mm(first[:, :size], second[:, :size].T, out=out)
    for start in range(size, first.shape[1], size):
        out.addmm_(first[:, start : start + size], second[:, start : start + size].T)
    return out


class Filter(NamedTuple):
    """Rows whose products are close to the scores, and what bounds the difference; float32, or float64.

    Attributes:
        form: The exact score's form.
        sides: One matrix (n, w) a product.
        reach: (n,) or None: lengths of the rows where the bound grows with them.
        bound: Of the difference, relative to 1 or to the squared sum of both reaches.
    """

    form: str
    sides: tuple[Tensor, ...]
    reach: Tensor | None
    bound: float

    def select(self, rows: slice) -> Filter:
        """The filter of some rows."""
        reach = None if self.reach is None else self.reach[rows]
        return self._replace(sides=tuple(side[rows] for side in self.sides), reach=reach)

    def scores(self, gallery: Filter, out: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, T), in ``out`` where one product makes them, and their slack (n,)."""
        if self.form in ("product", "euclidean"):
            _multiply(self.sides[0], gallery.sides[0], out)
            if self.reach is None or gallery.reach is None:
                return out, out.new_full((len(out),), self.bound)
            return out, (self.reach + (gallery.reach.max() + _LEAST_REACH)).square_() * self.bound
        *others, last = (
            _multiply(one, other, torch.empty_like(out)) for one, other in zip(self.sides, gallery.sides, strict=True)
        )
        if self.form == "masked":
            # Where the mask leaves next to nothing of an entry, squares have left float32: only the exact score knows.
            scores = torch.where(last > 1e-25, others[0] * last.rsqrt(), torch.nan)
        else:
            scores = others[-1].div_(last.add_(PART_EPSILON))
            if self.form == "sum":
                scores = scores.mul_(PART_WEIGHT).add_(others[0])
        return scores, scores.new_full((len(scores),), self.bound)


@dataclass(frozen=True)
class PackedRows:
    """One side of a comparison: features, and how their rows are packed.

    Attributes:
        people: The features.
        score: ``feature``, ``parts`` or ``sum``.
        form: What ``motarfuse.ops.ranking`` calls the score.
        widths: Columns of the row's segments.
        dtype: Of the exact rows: float32, float64 of float64 features.
        is_query: Which side this is; the sides of some forms differ.
        mask: (n, d) of the query where it is masked.
        storage: Type in which rows are kept.
        scale: Power of two that features are multiplied by (``euclidean``).
        centre: (d,) subtracted in the filter (``euclidean``): distances stay, rounding errors shrink.
    """

    people: PersonFeatures
    score: str
    form: str
    widths: list[int]
    dtype: torch.dtype
    is_query: bool
    mask: Tensor | None = None
    storage: str | None = None
    scale: float = 1.0
    centre: Tensor | None = None

    def __len__(self) -> int:
        return len(self.people)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.people.feature.device

    @property
    def width(self) -> int:
        """Columns of a packed row."""
        return sum(self.widths)

    @property
    def stored_bytes(self) -> int:
        """Bytes of a number as it is kept."""
        return 2 if self.storage is not None else self.dtype.itemsize

    def select(self, kept: Tensor) -> PackedRows:
        """Some of the people."""
        mask = None if self.mask is None else self.mask[kept]
        return replace(self, people=self.people.select(kept), mask=mask)

    def rows(self, some: slice = slice(None)) -> Tensor:
        """(n, W) packed rows of some people, in the type in which they are kept."""
        kept = self.dtype if self.storage is None else STORAGE[self.storage]
        if self.form == "euclidean":
            feature = self.people.feature[some].to(self.dtype)
            if self.scale != 1:  # a power of two beyond float32's own, where features are tiny
                feature = (feature.double() * self.scale).to(self.dtype)
            return feature.to(kept).contiguous()
        unit_rows = ranking_functions(self.device).unit_rows
        if self.form == "product" and self.storage is None:
            return unit_rows(self.people.feature[some])[0]
        start, stop, _ = some.indices(len(self))
        rows = torch.empty(stop - start, self.width, dtype=kept, device=self.device)
        # In pieces: parts are several times the features, and converting them takes more than one copy at a time.
        size = max(1, _PACKED_VALUES // self.width)
        for first in range(start, stop, size):
            piece = slice(first, min(first + size, stop))
            target = rows[first - start : piece.stop - start]
            if self.score != "parts":
                unit = unit_rows(self.people.feature[piece])[0]
                if self.form == "masked":
                    square = unit
                    if self.mask is not None:
                        square = self.mask[piece].to(self.dtype)
                        unit = unit * square
                    target[:, self.widths[0] :] = square.square()
                target[:, : self.widths[0]] = unit
            if self.score != "feature":
                features, visibility = self.people.require_parts()
                seen = visibility[piece].to(self.dtype)
                if self.storage is not None:
                    seen = seen * (seen >= _LEAST_VISIBILITY)
                unit = unit_rows(features[piece].flatten(0, 1))[0].view(*features[piece].shape)
                target[:, self.widths[0] : -self.widths[2]] = unit.mul_(seen[:, :, None]).flatten(1)
                target[:, -self.widths[2] :] = seen
        return rows

    def filter(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Filter:
        """Rows for the products, float32 or float64, of packed rows."""
        unit = _UNITS[dtype]
        if self.form == "euclidean":
            return self._distances(rows, dtype)
        # Rows of float64 are rounded once more to float32, and those of half types are only nearly of length 1.
        slack = 1.01 if self.storage is None else 1.05
        extra = 4 * unit if self.dtype == torch.float64 else 0.0
        bounds = [rounding_bound(width, unit) + extra for width in self.widths]
        sides = tuple(side.to(dtype) for side in rows.split(self.widths, dim=1) if side.shape[1])
        if self.form == "product":
            return Filter(self.form, sides, None, slack * (bounds[0] + 4 * unit))
        if self.form == "masked":
            return Filter(self.form, sides, None, slack * (2 * bounds[0] + 8 * unit))
        parts = bounds[1] + bounds[2] + 8 * unit
        bound = parts if self.form == "parts" else bounds[0] + PART_WEIGHT * (parts + 4 * unit)
        return Filter(self.form, sides, None, slack * bound)

    def _distances(self, rows: Tensor, dtype: torch.dtype) -> Filter:
        """-|q - g|^2 = 2 q.g - |q|^2 - |g|^2 as one product, of rows whose common centre is taken away."""
        assert self.centre is not None
        wider = rows.dtype if dtype == torch.float32 else dtype
        near = (rows.to(wider) - self.centre.to(wider)).to(dtype)
        lengths = torch.linalg.vector_norm(near, dim=1, dtype=torch.float64)
        squares = lengths.square().to(dtype)[:, None]
        ones = near.new_ones((len(near), 1))
        columns = (near * 2, -squares, -ones) if self.is_query else (near, ones, squares)
        # Besides the product's own error: each coordinate and each square was rounded, by _LEAST_REACH^2 where it left
        # the type's normal numbers.
        bound = 1.01 * (rounding_bound(near.shape[1] + 2, _UNITS[dtype]) + 8 * _UNITS[dtype])
        return Filter(self.form, (torch.cat(columns, dim=1),), (lengths * 1.0001).to(dtype), bound)

    def rules(self, metric: str, storage: str | None) -> dict[str, Any]:
        """What is compared and how, as plain JSON values."""
        count, width = part_shape(self.people) if self.score != "feature" else (0, 0)
        parts = {"count": count, "width": width, "epsilon": PART_EPSILON, "weight": PART_WEIGHT} if count else None
        rules: dict[str, Any] = {
            "metric": metric,
            "score": self.score,
            "score_dtype": "float64 sums of " + str(self.dtype).removeprefix("torch."),
            "feature_width": self.people.feature.shape[1] if self.score != "parts" else None,
            "parts": parts,
        }
        if storage is not None:
            rules["storage"] = storage
        if self.form == "masked":
            rules["mask"] = "the query's, on the gallery's features"
        return rules


def pack_rows(
    query: Any, gallery: Any, metric: str, score: str, mask: Any, storage: str | None
) -> tuple[PackedRows, PackedRows]:
    """Both sides, validated; what it raises for is in ``ScoreTiles``."""
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, supported are {', '.join(METRICS)}")
    people = (as_people(query, "query"), as_people(gallery, "gallery"))
    if mask is not None and score == "auto":
        score = "feature"
    score = choose_score(score, metric, query_parts=people[0].has_parts, gallery_parts=people[1].has_parts)
    check_pair(*people, score)
    if people[0].feature.device.type == "mps":  # Apple's GPUs have no double precision
        people = (people[0].to("cpu"), people[1].to("cpu"))
    width = people[0].feature.shape[1]
    count, part_width = part_shape(people[0]) if score != "feature" else (0, 0)
    form, widths = {
        "feature": ("product", [width, 0, 0]),
        "parts": ("parts", [0, count * part_width, count]),
        "sum": ("sum", [width, count * part_width, count]),
    }[score]
    if metric == "euclidean":
        form = "euclidean"
    if mask is not None:
        form, widths = "masked", [width, width, 0]
        mask = _check_mask(mask, people[0], metric, score)
        if storage is not None:
            raise ValueError(f"storage: got {storage!r} with a mask, whose squares half types do not hold; use None")
    dtype = torch.float64 if people[0].feature.dtype == torch.float64 else torch.float32
    sides = [
        PackedRows(side, score, form, widths, dtype, is_query, mask if is_query else None, storage)
        for side, is_query in zip(people, (True, False), strict=True)
    ]
    if form == "euclidean":
        scale = _power_of_two(people, storage)
        # Near the features' middle; any vector is right.
        centre = people[0].feature[:256].double().mul(scale).mean(dim=0).to(dtype)
        sides = [replace(side, scale=scale, centre=centre) for side in sides]
    return sides[0], sides[1]


def _check_mask(mask: Any, query: PersonFeatures, metric: str, score: str) -> Tensor:
    if metric != "cosine" or score != "feature":
        raise ValueError(
            f"mask: got metric {metric!r} and score {score!r}; masked features are compared by cosine only"
        )
    mask = as_floats(mask, "mask", 2)
    if mask.shape != query.feature.shape:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, {tuple(query.feature.shape)} is needed: that of the query"
        )
    if mask.dtype != query.feature.dtype:
        raise TypeError(f"mask: got {mask.dtype}, the query is {query.feature.dtype}; convert one of them")
    mask = mask.to(query.feature.device)
    check_visibility(mask, "mask", "a mask weighs features from 0 to 1")
    return mask


def _power_of_two(people: tuple[PersonFeatures, PersonFeatures], storage: str | None) -> float:
    """What brings the features' magnitudes near 1, as a power of two; 1 where they are ordinary."""
    largest = max(abs(float(end)) for side in people for end in torch.aminmax(side.feature))
    low, high = _ORDINARY[storage]
    if low <= largest <= high or largest == 0:
        return 1.0
    return 2.0 ** -max(-1000, min(1000, math.frexp(largest)[1]))  # neither it nor its inverse overflows
