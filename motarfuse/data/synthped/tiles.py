"""Three periodic noise textures, computed once: every rough surface, leaf and sensor grain is cut from them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.draws import Draws, keys


def _lattice(side: int, name: str) -> NDArray[np.float64]:
    cells = np.arange(side * side)
    return Draws(keys(0, "tile " + name, cells)).uniform("value", -1.0, 1.0).reshape(side, side)


def _enlarge(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Periodic interpolation with a smooth step, so that no lattice lines show."""
    cells = values.shape[0]
    position = np.arange(side) * (cells / side)
    low = position.astype(np.int64)
    x = position - low
    weight = x * x * (3.0 - 2.0 * x)
    high = (low + 1) % cells
    rows = values[low] * (1.0 - weight)[:, None] + values[high] * weight[:, None]
    return rows[:, low] * (1.0 - weight)[None, :] + rows[:, high] * weight[None, :]


def _cells(side: int, points: int) -> NDArray[np.float64]:
    """Each pixel takes the value of its nearest point (periodic): patches like leaves, in [-1, 1]."""
    draws = Draws(keys(0, "tile cell", np.arange(points)))
    px, py = draws.uniform("x", 0.0, side), draws.uniform("y", 0.0, side)
    stretch, value = draws.uniform("stretch", 0.5, 2.0), draws.uniform("value", -1.0, 1.0)
    best = np.full((side, side), np.inf)
    tile = np.zeros((side, side))
    axis = np.arange(side) + 0.5
    for x, y, s, v in zip(px, py, stretch, value, strict=True):
        dx = np.abs(axis - x)
        dy = np.abs(axis - y)
        distance = (np.minimum(dx, side - dx) ** 2 * s)[None, :] + (np.minimum(dy, side - dy) ** 2 / s)[:, None]
        nearer = distance < best
        best[nearer] = distance[nearer]
        tile[nearer] = v
    return tile


@lru_cache(maxsize=1)
def tiles() -> NDArray[np.float32]:
    """(3, 256, 256) float32 in [-1, 1]: smooth (fractal), white, cells. Values are multiples of 2^-12."""
    side = layout.TILE
    smooth = np.zeros((side, side))
    for octave, share in ((8, 1.0), (16, 0.65), (32, 0.45), (64, 0.3)):
        smooth += share * _enlarge(_lattice(octave, f"smooth {octave}"), side)
    smooth /= np.abs(smooth).max()
    stack = np.stack([smooth, _lattice(side, "white"), _cells(side, 4096)])
    result = (np.round(stack * 4096.0) / 4096.0).astype(np.float32)
    result.setflags(write=False)
    return result
