"""Identities and cameras of queries and gallery, and which pairs of them are positives or do not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.protocols import Protocol


def as_labels(labels: Any, name: str, length: int) -> np.ndarray:
    """Validates integer labels of one per row; -1 stands for unknown (camera) or junk (identity).

    Returns:
        (length,) int64.

    Raises:
        TypeError: Values that are not integers: above 2048 a half float no longer tells identities apart.
        ValueError: Another shape or length, or a value below -1.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {array.dtype} values, supported are integers")
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}, supported is one integer a row, shape ({length},)")
    if len(array) != length:
        raise ValueError(f"{name}: got {len(array)} values for {length} rows of features")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: got {array.max()}, supported are values below 2^63")
    array = array.astype(np.int64)
    if array.min() < -1:
        raise ValueError(
            f"{name}: got {array.min()} at row {int(array.argmin())}, supported are -1 and values from 0 on"
        )
    return array


@dataclass(frozen=True)
class Pairs:
    """Every (query, gallery entry) of equal identity, ordered by query and then by gallery index.

    Attributes:
        kept: (G',) indices of the gallery entries that take part; the columns below count in these.
        starts: (Q + 1,) where each query's pairs begin.
        columns: (n,) gallery columns.
        junk: (n,) True where the pair does not count (same identity and camera, or the query itself).
    """

    kept: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    junk: np.ndarray

    def of(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of these queries: (position within ``queries``, gallery column, junk), in order."""
        counts = self.starts[queries + 1] - self.starts[queries]
        offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        index = np.repeat(self.starts[queries], counts) + offsets
        return np.repeat(np.arange(len(queries)), counts), self.columns[index], self.junk[index]

    @property
    def queries(self) -> np.ndarray:
        """(n,) query of each pair."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def positives(self) -> np.ndarray:
        """Number of positives of each query, (Q,)."""
        return np.bincount(self.queries[~self.junk], minlength=len(self.starts) - 1)

    def left_out(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gallery columns that do not count for these queries, rising, after where each query's begin."""
        row, column, junk = self.of(queries)
        counts = np.bincount(row[junk], minlength=len(queries))
        return np.concatenate([[0], counts.cumsum()]), column[junk]

    def restrict(self, columns: np.ndarray) -> Pairs:
        """The pairs with some of the gallery columns, rising, which are renumbered from 0."""
        place = np.full(len(self.kept), -1)
        place[columns] = np.arange(len(columns))
        inside = place[self.columns] >= 0
        counts = np.bincount(self.queries[inside], minlength=len(self.starts) - 1)
        starts = np.concatenate([[0], counts.cumsum()])
        return Pairs(self.kept[columns], starts, place[self.columns[inside]], self.junk[inside])


def match_pairs(
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    protocol: Protocol,
) -> Pairs:
    """Finds all pairs of equal identity in O(Q log G + pairs), without a queries x gallery table.

    Raises:
        ValueError: The protocol drops every gallery entry, or expects other relations of query and gallery.
    """
    if protocol.gallery_is_query and not (
        np.array_equal(query_pids, gallery_pids) and np.array_equal(query_camids, gallery_camids)
    ):
        raise ValueError(
            f"protocol {protocol.name} compares a set with itself: query and gallery need the same rows with the same "
            f"labels, got {len(query_pids)} queries and {len(gallery_pids)} gallery entries with others"
        )
    kept = np.flatnonzero(~np.isin(gallery_pids, protocol.ignored_pids))
    if len(kept) == 0:
        raise ValueError(
            f"gallery_pids: nothing left, protocol {protocol.name} ignores identities {list(protocol.ignored_pids)}"
        )
    gallery_pids, gallery_camids = gallery_pids[kept], gallery_camids[kept]
    by_pid = np.argsort(gallery_pids, kind="stable")
    first = np.searchsorted(gallery_pids[by_pid], query_pids, side="left")
    counts = np.searchsorted(gallery_pids[by_pid], query_pids, side="right") - first
    starts = np.concatenate([[0], counts.cumsum()])
    columns = by_pid[np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)]
    junk = np.zeros(len(columns), dtype=bool)
    if protocol.remove_same_camera:
        cameras = np.repeat(query_camids, counts)
        junk = (cameras == gallery_camids[columns]) & (cameras != -1)
    if protocol.gallery_is_query:
        junk |= kept[columns] == np.repeat(np.arange(len(query_pids)), counts)
    pairs = Pairs(kept, starts, columns, junk)
    if protocol.queries_in_gallery:
        _require_queries(pairs, query_pids, protocol)
    return pairs


def _require_queries(pairs: Pairs, query_pids: np.ndarray, protocol: Protocol) -> None:
    """Raises where a query has no entry of its own camera, though the gallery is to hold the queries."""
    own = np.bincount(pairs.queries[pairs.junk], minlength=len(query_pids))
    without = np.flatnonzero((own == 0) & ~np.isin(query_pids, protocol.ignored_pids))
    if len(without):
        raise ValueError(
            f"protocol {protocol.name} expects the queries in the gallery, but {len(without)} of {len(query_pids)} "
            f"queries (the first is row {without[0]}) have no gallery entry of their identity and camera: load the "
            "gallery with its queries, or evaluate by mars-torchreid or market1501"
        )


@dataclass(frozen=True)
class PairLabels:
    """Checked labels of both sides, (Q,) and (G,) int64 each."""

    query_pids: np.ndarray
    gallery_pids: np.ndarray
    query_camids: np.ndarray
    gallery_camids: np.ndarray

    @classmethod
    def of(
        cls, shape: tuple[int, int], query_pids: Any, gallery_pids: Any, query_camids: Any, gallery_camids: Any
    ) -> PairLabels:
        """Validates them (:func:`as_labels`) for ``shape`` = (queries, gallery entries)."""
        return cls(
            as_labels(query_pids, "query_pids", shape[0]),
            as_labels(gallery_pids, "gallery_pids", shape[1]),
            as_labels(query_camids, "query_camids", shape[0]),
            as_labels(gallery_camids, "gallery_camids", shape[1]),
        )

    def pairs(self, protocol: Protocol) -> Pairs:
        """:func:`match_pairs` of them."""
        return match_pairs(self.query_pids, self.gallery_pids, self.query_camids, self.gallery_camids, protocol)


def as_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
