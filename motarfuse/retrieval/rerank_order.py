"""The order of a gallery by re-ranked distances, without a queries x gallery table.

The final distance of a pair is d* = (1 - lambda) J + lambda d, with d a rising function of the squared Euclidean
distance D. Where two encodings share nothing, J = 1 and D alone decides. An entry with overlap takes its place among
those by its *key*: the squared distance, negative ones exist, at which a pair with J = 1 has the same d*. Keys rise
with D and fall with what is shared, rounding included, and none is above its D.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.k_reciprocal import Encoding
from motarfuse.retrieval.rerank_variants import RerankVariant
from motarfuse.retrieval.rows import Filter, pack_rows
from motarfuse.retrieval.scores import exact_products
from motarfuse.retrieval.tiles import CPU_TILE, GPU_TILE, ScoreTiles, Tile

# A lambda below this is far below what float64 resolves beside 1; its inverse must not overflow.
_LEAST_LAMBDA = 1e-200


class RerankedOrder:
    """What comes before what, for a gallery or some of its entries.

    With lambda = 0 keys are Jaccard distances, and all pairs without overlap have 1.

    Args:
        query, gallery: (Q, d), (G, d) features as the formula compares them.
        encoding: Of both.
        variant: The formula.
        share: Lambda.
        block: Queries a tile; None chooses.
        kept: Gallery entries that count, ascending; None takes all. Columns are places among them.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        encoding: Encoding,
        variant: RerankVariant,
        share: float,
        block: int | None,
        kept: Tensor | None = None,
    ) -> None:
        self.tiles = ScoreTiles(query, gallery, metric="euclidean", block=block)
        # Of the whole gallery, whose largest magnitude sets the scale of all squared distances.
        people = PersonFeatures(query), PersonFeatures(gallery)
        self._packed, self._other = pack_rows(*people, "euclidean", "feature", None, None)
        self._tile = GPU_TILE if self.tiles.device.type == "cuda" else CPU_TILE
        if block is not None:
            self._tile = (int(block), self._tile[1])
        self._stretches: list[tuple[Tensor, Filter]] | None = None
        self.encoding = encoding
        self.variant = variant
        self.share = share
        # What J weighs beside d.
        self.gain = (1 - share) / max(share, _LEAST_LAMBDA)
        if kept is not None and len(kept) < len(gallery):
            self.tiles.select_gallery(kept)
            self._other = self._other.select(kept)
            self.encoding = encoding.select_gallery(kept)
        self.gallery = self.tiles.shape[1]

    def codes(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One number a pair, in the order of the pairs."""
        return rows * self.gallery + columns

    def keys(self, queries: Tensor, columns: Tensor, jaccard: Tensor) -> Tensor:
        """Keys (m,) of pairs of queries (m,) and columns (m,) whose Jaccard distances are known."""
        return jaccard if self.share == 0 else self.moved(self.squared(queries, columns), queries, jaccard)

    def squared(self, queries: Tensor, columns: Tensor) -> Tensor:
        """Exact squared distances (m,) of pairs."""
        return self.tiles.pair_scores(queries, columns).neg_()

    def moved(self, squared: Tensor, queries: Tensor, jaccard: Tensor) -> Tensor:
        """Keys of pairs by their squared distances."""
        if self.share == 0:
            return jaccard
        gain = self.gain * (1 - jaccard)
        return torch.where(jaccard < 1, self.variant.earlier(squared, self.encoding.largest[queries], gain), squared)

    def final(self, squared: Tensor, jaccard: Tensor, largest: Tensor) -> Tensor:
        """d* of squared distances."""
        return (1 - self.share) * jaccard + self.share * self.variant.distance(squared, largest)

    def scored(self, queries: Tensor) -> Iterator[Tile]:
        """``ScoreTiles.tiles`` of a few queries at a time: what it makes of the gallery is kept for the next ones."""
        if self._stretches is None:
            self._stretches = [(some, self._other.filter(some)) for some in self._other.rows().split(self._tile[1])]
        source = self._packed.select(queries)
        buffer = torch.empty(
            min(self._tile[0], len(source)) * self._tile[1], dtype=torch.float32, device=queries.device
        )
        for start in range(0, len(source), self._tile[0]):
            query = source.rows(slice(start, start + self._tile[0]))
            filters, first = source.filter(query), 0
            for gallery, others in self._stretches:
                out = buffer[: len(query) * len(gallery)].view(len(query), len(gallery))
                with torch.no_grad(), exact_products(query.device):
                    scores, slack = filters.scores(others, out)
                yield Tile(slice(start, start + len(query)), first, scores, slack, query, gallery)
                first += len(gallery)


def joint_order(rows: Tensor, keys: Tensor, columns: Tensor) -> Tensor:
    """The stable order by row, then key, then column."""
    order = columns.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    return order[rows[order].argsort(stable=True)]
