"""Similarity scores of queries against a gallery, a block of queries at a time.

Everything that ranks goes through :class:`ScoreBlocks`, so that search and evaluation cannot disagree about an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from motarfuse.retrieval.features import PersonFeatures, as_people, check_finite, check_visibility, unit_rows

METRICS = ("cosine", "euclidean")
# What is compared: the feature of the whole person, the body parts, or both added up.
SCORES = ("feature", "parts", "sum")
# Added to the weight that two people's parts have in common: they score 0, not NaN, where they share no visible part,
# and next to nothing where they hardly share one.
PART_EPSILON = 1e-6
# Of the part score in the sum: the cosines of whole features spread about twice as widely, and 3 to 10 measured alike.
PART_WEIGHT = 3.0

# Rows of one product: from 1 on, libraries switch to matrix-vector code whose sums depend on a row's place, and equal
# gallery entries would get unequal scores.
MIN_BLOCK = 8
# 32 MiB of scores: large enough for the matrix product to run at full rate, small beside the features themselves.
BLOCK_BYTES = 32 << 20
_HASHED_VALUES = 4 << 20
_PACKED_VALUES = 4 << 20


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full precision, whatever autocast or reduced-precision setting the caller is under."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def choose_score(score: str, metric: str, *, query_parts: bool, gallery_parts: bool) -> str:
    """The score that ``auto`` stands for; any other name is checked and given back.

    ``auto`` is ``sum`` for the cosine of two sides with parts, else ``feature``.

    Raises:
        ValueError: An unknown score or metric; parts wanted of a side without them, or under a metric but cosine;
            ``auto`` where one side has parts and the other has none.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, supported are {', '.join(METRICS)}")
    if score not in ("auto", *SCORES):
        raise ValueError(f"score: got {score!r}, supported are auto, {', '.join(SCORES)}")
    if score == "feature" or (score == "auto" and (metric != "cosine" or not (query_parts or gallery_parts))):
        return "feature"
    if metric != "cosine":
        raise ValueError(f"score: got {score!r} with metric {metric!r}; parts are compared by cosine only")
    bare = [name for name, parts in (("query", query_parts), ("gallery", gallery_parts)) if not parts]
    if bare:
        raise ValueError(
            f"score: got {score!r}, but the {' and the '.join(bare)} came without parts; give PersonFeatures with "
            "part_features and part_visibility on both sides, or score='feature'"
        )
    return "sum" if score == "auto" else score


def later_copies(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that equal an earlier one, and the first row that each equals: two index tensors of one length.

    Rows are compared by a 64-bit hash first, so that the cost is one pass over them and a sort of the hashes.
    """
    integers = torch.int64 if rows.dtype == torch.float64 else torch.int32
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device) | 1
    # Adding 0 turns -0 into 0, which are equal; products wrap around, which is what a hash wants.
    size = max(1, _HASHED_VALUES // rows.shape[1])
    parts = [((part + 0.0).view(integers).long() * factors).sum(1) for part in rows.contiguous().split(size)]
    order = torch.cat(parts).argsort(stable=True)
    hashes = torch.cat(parts)[order]
    starts = torch.cat((hashes.new_ones(1, dtype=torch.bool), hashes[1:] != hashes[:-1]))
    first = order[starts][starts.cumsum(0) - 1]
    later, first = order[~starts], first[~starts]
    same = [(rows[a] == rows[b]).all(dim=1) for a, b in zip(later.split(size), first.split(size), strict=True)]
    kept = torch.cat(same)
    return later[kept], first[kept]


class ScoreBlocks:
    """Scores of query rows against the whole gallery, larger is better.

    ``cosine``: q.g / (|q| |g|), 0 where either vector is zero; in fp32 for half and single features, fp64 for double.
    ``euclidean``: -|q - g| from |q|^2 + |g|^2 - 2 q.g in fp64, because that sum cancels for vectors far from the
    origin; rounded to fp32 for half and single features. Its error stays below 1e-7 max(|q|, |g|): the resolution of
    an fp32 input.

    ``score`` says what is compared, under ``cosine``. ``parts``, with visibilities v and part features f:

        s = sum_l v_ql v_gl cos(f_ql, f_gl) / (sum_l v_ql v_gl + 1e-6)

    as two matrix products, of rows [v_1 f_1 / |f_1|, ..., v_L f_L / |f_L|] and of rows [v_1, ..., v_L]: no table has a
    side for the parts. Two people without a visible part in common score 0. ``sum`` is the features'
    cosine plus 3 times this: cosines of whole features spread more than means over parts do.

    Equal gallery rows get equal scores, bit for bit, whatever the library's products depend on. The features are
    converted once (one copy of each); a block holds ``block`` x gallery scores, twice with parts, thrice for the sum.

    Args:
        query: (Q, d) features, or ``PersonFeatures``.
        gallery: (G, d) features of the same dtype and device, or ``PersonFeatures``.
        metric: ``cosine`` or ``euclidean``.
        score: ``feature``, ``parts``, ``sum`` or ``auto`` (:func:`choose_score`).
        block: Queries a block; None takes about 32 MiB of scores.

    Raises:
        TypeError: Different or unsupported dtypes.
        ValueError: Wrong rank, unequal widths, an empty or non-finite input, visibilities outside [0, 1], different
            devices, an unknown metric or score, or one that these features do not have.
    """

    def __init__(
        self, query: Any, gallery: Any, *, metric: str = "cosine", score: str = "auto", block: int | None = None
    ) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric: got {metric!r}, supported are {', '.join(METRICS)}")
        if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise ValueError(f"block: got {block!r}, supported is None or a number of queries of at least 1")
        people = (as_people(query, "query"), as_people(gallery, "gallery"))
        self.metric = metric
        self.score = choose_score(score, metric, query_parts=people[0].has_parts, gallery_parts=people[1].has_parts)
        check_pair(*people, self.score)
        feature = people[0].feature
        self.dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
        self.width = 0 if self.score == "parts" else feature.shape[1]
        self.parts = part_shape(people[0]) if self.score != "feature" else (0, 0)
        product_dtype = torch.float64 if metric == "euclidean" else self.dtype
        # Apple's GPUs have no double precision.
        on_cpu = product_dtype == torch.float64 and feature.device.type == "mps"
        self.device = torch.device("cpu") if on_cpu else feature.device
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._query, self._gallery = (self._rows(side, product_dtype) for side in people)
            if metric == "euclidean":
                self._query_squares = self._query.square().sum(dim=1, keepdim=True)  # (Q, 1)
                self._gallery_squares = self._gallery.square().sum(dim=1)  # (G,)
                if not (self._query_squares.isfinite().all() and self._gallery_squares.isfinite().all()):
                    raise ValueError(
                        "query or gallery: squared lengths overflow double precision; scale the features down"
                    )
        tables = {"feature": 1, "parts": 2, "sum": 3}[self.score]
        automatic = BLOCK_BYTES // (len(self._gallery) * product_dtype.itemsize * tables)
        self._copies: tuple[Tensor, Tensor] | None = None
        self.rows = min(len(self._query), block if block is not None else max(MIN_BLOCK, automatic))

    def _rows(self, people: PersonFeatures, dtype: torch.dtype) -> Tensor:
        """Everything a score reads of a person in one row: feature, weighted part features, visibilities."""
        feature = people.feature.to(self.device)
        if self.metric == "euclidean":
            return feature.to(dtype)
        if self.score == "feature":
            return unit_rows(feature.to(dtype))
        part_features, part_visibility = people.require_parts()
        count, width = self.parts
        rows = torch.empty(len(people), self.width + count * width + count, dtype=dtype, device=self.device)
        # In pieces: parts are several times the features, and converting them takes more than one copy at a time.
        size = max(1, _PACKED_VALUES // rows.shape[1])
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            visibility = part_visibility[some].to(self.device, dtype)
            parts = unit_rows(part_features[some].to(self.device, dtype)).mul_(visibility[:, :, None])
            rows[some, self.width : -count] = parts.flatten(1)
            rows[some, -count:] = visibility
            if self.width:
                rows[some, : self.width] = unit_rows(feature[some].to(dtype))
        return rows

    def select_gallery(self, kept: Tensor) -> None:
        """Keeps these gallery rows only; ``kept`` holds increasing indices."""
        if len(kept) == len(self._gallery):
            return
        kept = kept.to(self.device)
        self._gallery = self._gallery[kept]
        self._copies = None
        if self.metric == "euclidean":
            self._gallery_squares = self._gallery_squares[kept]

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery entries)."""
        return len(self._query), len(self._gallery)

    def scores(self, rows: Tensor) -> Tensor:
        """Scores (n, G) of the query rows with these indices (n,)."""
        query = self._query[rows.to(self.device)]
        count = len(query)
        if count < MIN_BLOCK:
            query = torch.cat([query, query.new_zeros(MIN_BLOCK - count, query.shape[1])])
        with exact_products(self.device):
            product = self._products(query)[:count]
            if self._copies is None:
                self._copies = later_copies(self._gallery)
            later, first = self._copies
            if len(later):
                product[:, later] = product[:, first]
            if self.metric == "cosine":
                return product
            squares = product.mul_(-2).add_(self._query_squares[rows.to(self.device)]).add_(self._gallery_squares)
            return squares.clamp_(min=0).sqrt_().neg_().to(self.dtype)

    def _products(self, query: Tensor) -> Tensor:
        """(n, G): the features' products, the part score, or both added up."""
        if self.score == "feature":
            return query @ self._gallery.T
        split = (self.width, self.parts[0] * self.parts[1], self.parts[0])
        sides = zip(query.split(split, dim=1), self._gallery.split(split, dim=1), strict=True)
        (feature, features), (weighted, all_weighted), (visibility, visibilities) = sides
        scores = (weighted @ all_weighted.T).div_((visibility @ visibilities.T).add_(PART_EPSILON))
        return scores.mul_(PART_WEIGHT).add_(feature @ features.T) if self.score == "sum" else scores

    def blocks(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (query indices, scores) until all queries, or the given ones, have been seen."""
        chosen = torch.arange(len(self._query)) if queries is None else queries
        for rows in chosen.split(self.rows):
            yield rows, self.scores(rows)

    def public(self, scores: Tensor) -> Tensor:
        """Scores as users read them: similarities, or distances (smaller is better)."""
        return scores if self.metric == "cosine" else scores.neg()

    @property
    def rules(self) -> dict[str, Any]:
        """What is compared and how, as plain JSON values."""
        count, width = self.parts
        return {
            "metric": self.metric,
            "score": self.score,
            "score_dtype": str(self.dtype).removeprefix("torch."),
            "feature_width": self.width or None,
            "parts": {"count": count, "width": width, "epsilon": PART_EPSILON, "weight": PART_WEIGHT}
            if count
            else None,
        }


def part_shape(people: PersonFeatures) -> tuple[int, int]:
    """(parts, values a part)."""
    _, count, width = people.require_parts()[0].shape
    return count, width


def check_pair(query: PersonFeatures, gallery: PersonFeatures, score: str) -> None:
    """Raises for what a score reads of two sides that do not fit each other, or holds values that cannot be ranked."""
    if query.feature.shape[1] != gallery.feature.shape[1]:
        raise ValueError(
            f"query and gallery: got {query.feature.shape[1]} and {gallery.feature.shape[1]} columns; "
            "both need the same width"
        )
    if query.feature.dtype != gallery.feature.dtype:
        raise TypeError(
            f"query and gallery: got {query.feature.dtype} and {gallery.feature.dtype}; convert one of them"
        )
    if query.feature.device != gallery.feature.device:
        raise ValueError(
            f"query and gallery: got devices {query.feature.device} and {gallery.feature.device}; move one of them"
        )
    if score != "feature" and part_shape(query) != part_shape(gallery):
        raise ValueError(
            f"query and gallery: got parts of shape {part_shape(query)} and {part_shape(gallery)} "
            "(parts, values a part); both need the same"
        )
    for name, people in (("query", query), ("gallery", gallery)):
        if score != "parts":
            check_finite(people.feature, name)
        if score != "feature":
            part_features, visibility = people.require_parts()
            check_finite(part_features, f"{name}.part_features")
            check_visibility(visibility, f"{name}.part_visibility")
