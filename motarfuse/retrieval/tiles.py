"""Scores of queries against a gallery in tiles: float32 scores with a proven bound, and the exact ones that decide.

Everything that ranks goes through :class:`ScoreTiles`, so that search, evaluation and re-ranking cannot disagree about
an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from motarfuse.ops.ranking import ranking_functions
from motarfuse.retrieval.memory import available_bytes
from motarfuse.retrieval.rows import PackedRows, check_storage, pack_rows
from motarfuse.retrieval.scores import PART_EPSILON, PART_WEIGHT, exact_products

# Queries and gallery entries of a tile. On a CPU 8 MiB of scores: the matrix product runs as fast as on a whole table;
# smaller tiles lose more to starting it than the cache gives back. On a GPU it takes many to fill the machine.
CPU_TILE = (2048, 1024)
GPU_TILE = (4096, 16384)
# Of the memory that is free, the share that packed rows of the gallery may take; beyond it they are packed piece by
# piece, again for every pass.
_SHARE = 0.25
_PIECE_BYTES = 256 << 20
_QUERY_BYTES = 64 << 20
# Scores of a tile that any machine has room for.
_LEAST_TILE = 1 << 16


class Tile(NamedTuple):
    """A block of queries against a stretch of the gallery.

    Attributes:
        queries: Places of the tile's queries among the chosen ones.
        first: Gallery index of the first column.
        scores: (n, T) float32, or float64 where asked for; larger is better; NaN is unknown. The receiver may write
            over them, and the next tile does.
        slack: (n,), |score - exact score| at most.
        query, gallery: (n, W) and (T, W) packed rows.
    """

    queries: slice
    first: int
    scores: Tensor
    slack: Tensor
    query: Tensor
    gallery: Tensor


class ScoreTiles:
    """Scores of every query with every gallery entry, larger is better, never all at once.

    The exact score of a pair is a float64 sum over packed float32 rows (float64 rows for float64 features) in a fixed
    order (``motarfuse.reference.ranking``): it does not depend on the device, the block size or the threads, and equal
    rows have equal scores.

    ``cosine``: rows x / |x|, rounded once; s = q.g. ``euclidean``: s = -|q - g|^2 of the features as given.
    ``parts``, with visibilities v and part features f:

        s = sum_l v_ql v_gl cos(f_ql, f_gl) / (sum_l v_ql v_gl + 1e-6)

    from rows [v_1 f_1 / |f_1|, ..., v_L f_L / |f_L|] and [v_1, ..., v_L]: no table has a side for the parts. Two people
    without a visible part in common score 0. ``sum`` is the features' cosine plus 3 times this. ``mask`` (Q, d) is a
    query's own weighting of the gallery's features, s = cos(q, m * g), as DPM compares (Tan et al. 2022).

    The tiles' scores come from float32 matrix products, ``slack`` bounds what they miss: rounding errors of a product
    over n columns are at most n u / (1 - n u) times the product of the rows' lengths, u = 2^-24 (Higham 2002, 3.1).

    Args:
        query: (Q, d) features, or ``PersonFeatures``.
        gallery: (G, d) features of the same dtype and device, or ``PersonFeatures``.
        metric: ``cosine`` or ``euclidean``.
        score: ``feature``, ``parts``, ``sum`` or ``auto``.
        mask: (Q, d), values in [0, 1]; cosine of the features only.
        storage: ``float16`` or ``bfloat16`` keeps packed rows in that type and ranks what is kept; None keeps float32.
        block: Queries a tile; None chooses.

    Raises:
        TypeError: Different or unsupported dtypes.
        ValueError: Wrong rank, unequal widths, an empty or non-finite input, visibilities or masks outside [0, 1],
            different devices, an unknown metric, score or storage, or one that these features do not have.
    """

    def __init__(
        self,
        query: Any,
        gallery: Any,
        *,
        metric: str = "cosine",
        score: str = "auto",
        mask: Any = None,
        storage: str | None = None,
        block: int | None = None,
    ) -> None:
        if block is not None and (isinstance(block, bool) or not isinstance(block, int | np.integer) or block < 1):
            raise ValueError(f"block: got {block!r}, supported is None or a number of queries of at least 1")
        check_storage(storage)
        with torch.no_grad():
            self._query, self._gallery = pack_rows(query, gallery, metric, score, mask, storage)
        self.metric = metric
        self.score = self._query.score
        self.storage = storage
        self.device = self._query.device
        self.dtype = self._query.dtype
        self.functions = ranking_functions(self.device)
        self._tile = GPU_TILE if self.device.type == "cuda" else CPU_TILE
        if block is not None:
            self._tile = (int(block), self._tile[1])
        self._kept_rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery entries)."""
        return len(self._query), len(self._gallery)

    @property
    def form(self) -> tuple[str, list[int], float, float]:
        """What the functions of ``motarfuse.ops.ranking`` call the exact score: form, widths, weight, epsilon."""
        return self._query.form, self._query.widths, PART_WEIGHT, PART_EPSILON

    def select_gallery(self, kept: Tensor) -> None:
        """Keeps these gallery entries only; ``kept`` holds increasing indices."""
        if len(kept) != len(self._gallery):
            self._gallery = self._gallery.select(kept.to(self._gallery.device))
            self._kept_rows = None

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(first index, packed rows) of the whole gallery, in one piece where that fits."""
        if self._kept_rows is None:
            width = self._gallery.width * self._gallery.stored_bytes
            if len(self._gallery) * width <= _SHARE * available_bytes(self.device):
                self._kept_rows = self._gallery.rows()
            else:
                size = max(self._tile[1], _PIECE_BYTES // width // self._tile[1] * self._tile[1])
                for first in range(0, len(self._gallery), size):
                    yield first, self._gallery.rows(slice(first, first + size))
                return
        yield 0, self._kept_rows

    def tiles(self, queries: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Iterator[Tile]:
        """Yields tiles until all queries, or those with these indices, have met the whole gallery, in its order.

        ``dtype`` float64 makes scores so close to the exact ones that hardly a pair is undecided, at twice the cost.
        """
        if not len(self._gallery):
            return
        source = self._query if queries is None else self._query.select(queries.to(self.device))
        height, width = self._tile_size(len(source), dtype)
        buffer = torch.empty(height * width, dtype=dtype, device=self.device)
        for start, query in self._query_pieces(source):
            query_filter = source.filter(query, dtype)
            for first, piece in self._pieces():
                for stretch in piece.split(width):
                    gallery = stretch.to(self.dtype)
                    gallery_filter = self._gallery.filter(gallery, dtype)
                    for i in range(0, len(query), height):
                        some = slice(i, min(i + height, len(query)))
                        count = some.stop - i
                        out = buffer[: count * len(gallery)].view(count, len(gallery))
                        with torch.no_grad(), exact_products(self.device):
                            scores, slack = query_filter.select(some).scores(gallery_filter, out)
                        yield Tile(slice(start + i, start + some.stop), first, scores, slack, query[some], gallery)
                    first += len(gallery)

    def _tile_size(self, queries: int, dtype: torch.dtype) -> tuple[int, int]:
        """Queries and gallery entries of a tile: the device's best, or what an eighth of the free memory holds."""
        height, width = min(self._tile[0], max(1, queries)), min(self._tile[1], len(self._gallery))
        tables = {"product": 1, "euclidean": 1, "parts": 3, "sum": 4, "masked": 4}[self._query.form]
        most = available_bytes(self.device) // 8 // (tables * dtype.itemsize)
        while height * width > max(most, _LEAST_TILE):
            height, width = (-(-height // 2), width) if height >= width else (height, -(-width // 2))
        return height, width

    def _query_pieces(self, source: PackedRows) -> Iterator[tuple[int, Tensor]]:
        """(first index, packed rows) of some queries, as many at a time as are small beside the features."""
        size = max(1, _QUERY_BYTES // (source.width * self.dtype.itemsize))
        for start in range(0, len(source), size):
            yield start, source.rows(slice(start, start + size)).to(self.dtype)

    def pair_scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Exact scores (m,) float64 of the pairs of query ``rows`` and gallery ``columns``, int64 each."""
        rows, columns = (places.to(self.device).contiguous() for places in (rows, columns))
        found = torch.empty(len(rows), dtype=torch.float64, device=self.device)
        for start, query in self._query_pieces(self._query):
            for first, piece in self._pieces():
                if (len(query), len(piece)) == self.shape:
                    return self._exact(query, piece, rows, columns)
                inside = (rows >= start) & (rows < start + len(query))
                inside &= (columns >= first) & (columns < first + len(piece))
                chosen = inside.nonzero().flatten()
                found[chosen] = self._exact(query, piece, rows[chosen] - start, columns[chosen] - first)
        return found

    def _exact(self, query: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if gallery.dtype != self.dtype:  # rows kept in half types: only those that are asked for become float32
            used, columns = columns.unique(return_inverse=True)
            gallery = gallery[used].to(self.dtype)
        return self.functions.pair_scores(query, gallery, rows, columns, *self.form)

    def public(self, scores: Tensor) -> Tensor:
        """Exact scores as users read them, float32 (float64 of float64 features): similarities, or distances."""
        if self.metric == "euclidean":
            scores = scores.neg().clamp(min=0).sqrt() / self._query.scale
        return scores.to(self.dtype)

    @property
    def rules(self) -> dict[str, Any]:
        """What is compared and how, as plain JSON values."""
        return self._query.rules(self.metric, self.storage)
