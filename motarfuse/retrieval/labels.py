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
        junk: (n,) True where the pair does not count (same identity and camera).
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

    def positives(self) -> np.ndarray:
        """Number of positives of each query, (Q,)."""
        queries = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return np.bincount(queries[~self.junk], minlength=len(self.starts) - 1)


def match_pairs(
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    protocol: Protocol,
) -> Pairs:
    """Finds all pairs of equal identity in O(Q log G + pairs), without a queries x gallery table.

    Raises:
        ValueError: The protocol drops every gallery entry.
    """
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
    return Pairs(kept, starts, columns, junk)


def as_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
