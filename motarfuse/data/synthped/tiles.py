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


def _cells(side: int, pitch: int) -> NDArray[np.float64]:
    """Each pixel takes the value of its nearest point (periodic): patches like leaves, in [-1, 1].

    One point lies anywhere in each square of ``pitch`` pixels, so that two squares away is far enough to look.
    """
    n = side // pitch
    draws = Draws(keys(0, "tile cell", np.arange(n * n)))
    px, py = (draws.uniform(name, 0.0, pitch).reshape(n, n) for name in "xy")
    stretch, value = draws.uniform("stretch", 0.5, 2.0).reshape(n, n), draws.uniform("value", -1.0, 1.0).reshape(n, n)
    pixel = np.arange(side)
    cell, inside = pixel // pitch, pixel % pitch + 0.5
    best = np.full((side, side), np.inf)
    tile = np.zeros((side, side))
    for down in range(-2, 3):
        for across in range(-2, 3):
            at = np.ix_((cell + down) % n, (cell + across) % n)
            dx, dy = px[at] + across * pitch - inside[None, :], py[at] + down * pitch - inside[:, None]
            distance = dx * dx * stretch[at] + dy * dy / stretch[at]
            nearer = distance < best
            best[nearer] = distance[nearer]
            tile[nearer] = value[at][nearer]
    return tile


@lru_cache(maxsize=1)
def tiles() -> NDArray[np.float32]:
    """(3, 256, 256) float32 in [-1, 1]: smooth (fractal), white, cells. Values are multiples of 2^-12."""
    side = layout.TILE
    smooth = np.zeros((side, side))
    for octave, share in ((8, 1.0), (16, 0.65), (32, 0.45), (64, 0.3)):
        smooth += share * _enlarge(_lattice(octave, f"smooth {octave}"), side)
    smooth /= np.abs(smooth).max()
    stack = np.stack([smooth, _lattice(side, "white"), _cells(side, 4)])
    result = (np.round(stack * 4096.0) / 4096.0).astype(np.float32)
    result.setflags(write=False)
    return result
