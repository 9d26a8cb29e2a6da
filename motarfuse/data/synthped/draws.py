"""Random numbers that depend on what they are for and on nothing else.

A draw is a hash of (key of the row, name of the field, position): no generator state, so that images can be drawn in
any order, by any number of workers and with any version of numpy, and a new field never moves the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]


def _mix(x: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection, each output bit depends on all input bits."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4096)
def _name_hash(name: str) -> int:
    return (zlib.crc32(name.encode()) * _GOLDEN) & _MASK


def keys(seed: int, name: str, *indices: NDArray[np.int64] | int) -> Keys:
    """One 64-bit key per row: a hash of the seed, a name and integer columns, which broadcast together."""
    start = np.asarray([(seed * _GOLDEN + _name_hash(name)) & _MASK], dtype=np.uint64)
    value = _mix(start)
    for column in indices:
        value = _mix((value + np.uint64(_GOLDEN)) ^ _mix(np.atleast_1d(np.asarray(column)).astype(np.uint64)))
    return value


class Draws:
    """Named draws for n rows, each an array whose first axis has length n."""

    def __init__(self, row_keys: Keys) -> None:
        self.keys = row_keys

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Draws:
        """The same draws for some of the rows."""
        return Draws(self.keys[rows])

    def fork(self, name: str) -> Draws:
        """Independent draws for the same rows."""
        return Draws(_mix(self.keys ^ np.uint64(_name_hash("fork " + name))))

    def uniform(
        self, name: str, low: float | Floats = 0.0, high: float | Floats = 1.0, columns: int | None = None
    ) -> Floats:
        """Uniform in [low, high); shape (n,), or (n, columns)."""
        base = self.keys + np.uint64(_name_hash(name))
        if columns is None:
            bits = _mix(base)
        else:
            bits = _mix(base[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
        unit = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + unit * (high - low)

    def normal(self, name: str, mean: float | Floats = 0.0, std: float | Floats = 1.0) -> Floats:
        """Bell-shaped with the given mean and deviation, never beyond 3.5 of it: an exact sum of four uniforms."""
        total = self.uniform(name, columns=4).sum(axis=1)
        return mean + (total - 2.0) * np.sqrt(3.0) * std

    def integer(self, name: str, count: int) -> NDArray[np.int64]:
        """Uniform integers in [0, count)."""
        return np.minimum((self.uniform(name) * count).astype(np.int64), count - 1)

    def chance(self, name: str, probability: float | Floats) -> NDArray[np.bool_]:
        """True with the given probability."""
        return self.uniform(name) < probability

    def choice(self, name: str, weights: Sequence[float]) -> NDArray[np.int64]:
        """An index into ``weights``, drawn in proportion to them."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        return np.minimum(np.searchsorted(edges, self.uniform(name) * edges[-1], side="right"), len(edges) - 1).astype(
            np.int64
        )
