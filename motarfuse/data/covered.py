"""Things pasted in front of people, the same on every machine: what hides a query is a function of seed and file name.

Everything is computed in whole numbers from SHA-256 of seed and name, so that no rounding, library version or number
of threads changes a pixel. A thing is an order of the crop's pixels, in which it grows; covering a share of the crop
takes that many pixels of the order, exactly. The same name and seed give the same thing at every share, and more of it
at a larger one: a curve over the share follows one thing a query.
"""

from __future__ import annotations

import hashlib

import numpy as np

THINGS = ("counter", "wall", "pole", "box", "hedge", "figure")
PATTERNS = ("plain", "stripes", "checks", "bands", "speckle")
MAX_SHARE = 0.9


class _Draws:
    """Whole numbers from a name: PCG64's raw output, which NumPy keeps fixed, seeded with SHA-256."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        self._source = np.random.PCG64(int.from_bytes(digest, "big"))

    def below(self, count: int) -> int:
        return int(self._source.random_raw()) % count

    def between(self, low: int, high: int) -> int:
        """From low to high, both possible."""
        return low + self.below(high - low + 1)

    def field(self, shape: tuple[int, int], count: int) -> np.ndarray:
        raw = self._source.random_raw(shape[0] * shape[1]).reshape(shape)
        return (raw % np.uint64(count)).astype(np.int64)


def draw_share(low: float, high: float, *, seed: int, name: str) -> float:
    """The share of a crop to cover, uniform in [low, high].

    Args:
        low, high: Shares with 0 <= low <= high <= `MAX_SHARE`.
        seed, name: Of the paste; the share is drawn apart from the thing.

    Raises:
        ValueError: The shares are out of range or in the wrong order.
    """
    if not 0 <= low <= high <= MAX_SHARE:
        raise ValueError(f"low and high must be shares with 0 <= low <= high <= {MAX_SHARE}, got {low} and {high}")
    return low + (high - low) * _Draws(seed, f"share/{name}").below(10**6 + 1) / 10**6


def cover(image: np.ndarray, share: float, *, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pastes a thing over a crop.

    Args:
        image: (H, W, 3) uint8.
        share: Of the crop's area, in [0, `MAX_SHARE`].
        seed: Of the things.
        name: The file's base name; with the seed and the crop's size it decides the thing and its pixels.

    Returns:
        A covered copy (H, W, 3) uint8 and the covered pixels (H, W) bool, round(share H W) in number.

    Raises:
        ValueError: The image or the share is none.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if not 0 <= share <= MAX_SHARE:
        raise ValueError(f"share must be in [0, {MAX_SHARE}], got {share}")
    size = image.shape[0], image.shape[1]
    draws = _Draws(seed, name)
    growth = _growth(THINGS[draws.below(len(THINGS))], size, draws)
    colours = _paint(PATTERNS[draws.below(len(PATTERNS))], size, draws)
    order = np.argsort(growth.ravel(), kind="stable")  # ties by row and column
    count = round(share * growth.size)
    rim = order[count - count // 16 : count]
    flat = colours.reshape(-1, 3)
    flat[rim] = flat[rim] * 9 // 16  # a darker edge, as things have
    mask = np.zeros(growth.size, bool)
    mask[order[:count]] = True
    covered = image.copy()
    covered.reshape(-1, 3)[mask] = flat[mask].astype(np.uint8)
    return covered, mask.reshape(size)


def _growth(thing: str, size: tuple[int, int], draws: _Draws) -> np.ndarray:
    """(H, W) int64: pixels of smaller value are covered first."""
    height, width = size
    # In half pixels from the crop's corner, so that centres are whole numbers.
    y, x = 2 * np.arange(height)[:, None] + 1, 2 * np.arange(width)[None, :] + 1
    centre_y = draws.between(height // 2, 2 * height - height // 2)
    centre_x = draws.between(width // 2, 2 * width - width // 2)
    tilt = draws.between(-12, 12)
    if thing == "counter":  # from below
        return (2 * height - y) * 64 + x * tilt
    if thing == "wall":  # from the left or the right
        return (x if draws.below(2) else 2 * width - x) * 64 + y * tilt
    if thing == "pole":
        return np.abs((x - centre_x) * 64 + (y - height) * tilt)
    if thing == "hedge":  # from below, with tufts
        period = max(2, draws.between(width // 4, width))
        phase = np.abs((x + draws.below(2 * period)) % (2 * period) - period)
        return (2 * height - y) * 64 + phase * 24 + draws.field(size, 256)
    if thing == "figure":  # somebody else's outline: a head above a body
        head = (x - centre_x) ** 2 * 9 + (y - centre_y + height // 3) ** 2 * 4
        body = (x - centre_x) ** 2 * 4 + (y - centre_y - height // 3) ** 2
        return np.minimum(head * 3, body)
    sides = draws.between(4, 12), draws.between(4, 12)
    return np.maximum(np.abs(x - centre_x) * sides[0], np.abs(y - centre_y) * sides[1])


def _paint(pattern: str, size: tuple[int, int], draws: _Draws) -> np.ndarray:
    """(H, W, 3) int64 in 0..255: two colours in a pattern, lit from one side."""
    height, width = size
    first, second = _colour(draws), _colour(draws)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    period = max(2, draws.between(width // 12, width // 3))
    along = (x, y, x + y)[draws.below(3)] + 0 * (x + y)
    if pattern == "stripes":
        choice = along // period % 2
    elif pattern == "checks":
        choice = (x // period + y // period) % 2
    elif pattern == "bands":
        choice = (y * 3 // height % 2) + 0 * x
    elif pattern == "speckle":
        choice = (draws.field(size, 3) == 0).astype(np.int64)
    else:
        choice = 0 * (x + y)
    colours = np.where(choice[..., None] == 1, second, first)
    light = 256 + draws.between(-64, 64) * (2 * x - width) // max(width, 1)
    grain = draws.field(size, 17) - 8
    return np.clip(colours * light[..., None] // 256 + grain[..., None], 0, 255)


def _colour(draws: _Draws) -> np.ndarray:
    """(3,) int64: a grey with some colour in it, as streets and clothes have."""
    grey, strength = draws.between(40, 210), draws.between(0, 70)
    return np.clip([grey + draws.between(-strength, strength) for _ in range(3)], 0, 255)
