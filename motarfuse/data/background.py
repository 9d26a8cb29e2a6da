"""What moves before a fixed camera: a running median of each pixel, and the connected areas that differ from it.

No detector and no network: whatever moves is found, a person or not, and people who overlap are one area.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from motarfuse.data.tracklets import Box
from motarfuse.errors import ConfigError, DataError

METHOD = (
    "no detector: a running median and deviation of each pixel, the connected areas that differ from it, and their "
    "association from frame to frame by intersection over union; made for fixed cameras; finds whatever moves, a "
    "person or not, and takes people who overlap for one"
)
_LEAST_FRAMES = 5


def _setting(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BackgroundConfig:
    """Settings of the built-in mode for fixed cameras."""

    width: int = _setting(192, "width in pixels at which frames are compared; wider frames are reduced to it")
    learn_seconds: float = _setting(4.0, "start of the video that the background is learnt from; best without people")
    absorb_seconds: float = _setting(120.0, "what stays unchanged for so long becomes background")
    threshold: float = _setting(4.0, "deviations by which a pixel must differ")
    least_difference: float = _setting(22.0, "grey levels by which a pixel must differ at least")
    most_changed: float = _setting(0.5, "share of the frame that may differ; more for a second is no fixed camera")
    min_height: float = _setting(0.12, "least height of an area, as a share of the frame's height")
    min_area: float = _setting(0.003, "least size of an area, as a share of the frame")
    max_aspect: float = _setting(1.5, "most width of an area, as a multiple of its height")
    iou: float = _setting(0.2, "least intersection over union of one person's areas in successive frames")
    max_gap: int = _setting(10, "frames without an area after which a track ends")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"{one.name} is {value}; a finite number of at least 0 is needed")
        if self.width < 16:
            raise ConfigError(f"width is {self.width}; at least 16 pixels are needed")
        if not 0 < self.most_changed <= 1 or not 0 < self.iou <= 1:
            raise ConfigError("most_changed and iou are shares above 0 and up to 1")


class Background:
    """Background of a fixed camera, and which pixels of a frame do not belong to it.

    The start is the median of the first frames and 1.48 times the median absolute deviation from it. From then on both
    follow in small steps where a pixel is background: the median by one grey level towards the pixel, the deviation
    towards 1.48 times the difference's median likewise. A pixel differs where any channel, after the median change of
    all background pixels (exposure) is taken off, is more than ``threshold`` deviations and more than
    ``least_difference`` grey levels away. A pixel that differs and keeps its value for ``absorb_seconds`` becomes
    background.

    Deterministic; about 40 operations a pixel of the reduced frame.

    Args:
        config: Settings.
        fps: Frames a second, for the settings in seconds.
    """

    def __init__(self, config: BackgroundConfig, fps: float) -> None:
        self._config = config
        self._learn = max(_LEAST_FRAMES, round(config.learn_seconds * fps))
        self._absorb = max(1, round(config.absorb_seconds * fps))
        self._patience = max(_LEAST_FRAMES, round(fps))
        self._unsteady: deque[bool] = deque(maxlen=self._patience)
        self._median: np.ndarray | None = None

    @property
    def frames_to_learn(self) -> int:
        """Frames from the start that the background is learnt from."""
        return self._learn

    def learn(self, frames: list[np.ndarray]) -> None:
        """Learns the background from the start of a video.

        Args:
            frames: uint8 (H, W, 3) each, reduced.

        Raises:
            DataError: Fewer than 5 frames, or more of the picture changes than a fixed camera shows.
        """
        if len(frames) < _LEAST_FRAMES:
            raise DataError(
                f"{len(frames)} frames are too few to learn a background from ({_LEAST_FRAMES} are needed); give boxes"
            )
        stack = np.stack(frames).astype(np.float32)
        median = np.median(stack, axis=0)
        distances = np.abs(stack - median)
        # The share of pixels, frame by frame, that are not where they mostly are; light may change as a whole.
        shift = np.median(stack - median, axis=(1, 2), keepdims=True)
        unsettled = (np.abs(stack - median - shift) > self._config.least_difference).any(axis=3).mean(axis=(1, 2))
        if np.median(unsettled) > self._config.most_changed:
            raise _moving_camera(f"{np.median(unsettled):.0%} of it changes", "the first frames")
        self._median = median
        self._deviation = np.clip(1.48 * np.median(distances, axis=0), 1.0, 8.0).astype(np.float32)
        self._candidate = self._median.copy()
        self._still = np.zeros(self._median.shape[:2], dtype=np.int32)
        self._settled = np.ones(self._median.shape[:2], dtype=bool)

    def foreground(self, frame: np.ndarray, place: str) -> np.ndarray:
        """Which pixels differ from the background, which then follows.

        Args:
            frame: uint8 (H, W, 3), reduced.
            place: Which frame it is, for the error.

        Returns:
            bool (H, W).

        Raises:
            DataError: In most frames of the last second, more than the allowed share differed, or the picture was
                shifted as a whole: the camera moves.
        """
        config = self._config
        if self._median is None:
            raise ValueError("the background has not been learnt")
        pixels = frame.astype(np.float32)
        change = pixels - self._median
        exposure = np.median(change[self._settled], axis=0) if self._settled.any() else np.zeros(3, np.float32)
        difference = np.abs(change - exposure)
        limit = np.maximum(config.threshold * self._deviation, config.least_difference)
        differs: np.ndarray = (difference > limit).any(axis=2)
        share = float(differs.mean())
        moved = picture_shift(pixels.mean(axis=2), self._median.mean(axis=2)) != (0, 0)
        self._unsteady.append(moved or share > config.most_changed)
        if len(self._unsteady) == self._patience and sum(self._unsteady) > 0.6 * self._patience:
            raise _moving_camera("the picture is shifted as a whole" if moved else f"{share:.0%} of it changes", place)
        self._follow(pixels, change, difference, differs)
        return differs

    def _follow(self, pixels: np.ndarray, change: np.ndarray, difference: np.ndarray, differs: np.ndarray) -> None:
        assert self._median is not None
        settled = ~differs[..., None]
        self._median += np.sign(change) * settled
        self._deviation += 0.05 * np.sign(1.48 * difference - self._deviation) * settled
        np.clip(self._deviation, 1.0, 8.0, out=self._deviation)
        still = (np.abs(pixels - self._candidate) < self._config.least_difference).all(axis=2) & differs
        self._still = np.where(still, self._still + 1, 0)
        self._candidate = np.where(still[..., None], self._candidate + np.sign(pixels - self._candidate), pixels)
        absorbed = self._still >= self._absorb
        self._median[absorbed] = self._candidate[absorbed]
        self._still[absorbed] = 0
        self._settled = ~differs


def _moving_camera(what: str, place: str) -> DataError:
    return DataError(
        f"too much of the picture changes at {place} ({what}): the camera moves, the picture cuts, or somebody stands "
        "right before it. The mode without boxes is for fixed cameras; give boxes (--boxes)"
    )


def picture_shift(frame: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """By how many whole pixels a picture is shifted as a whole, by phase correlation.

    Args:
        frame, reference: (H, W) grey levels.

    Returns:
        (down, right); (0, 0) too where no shift stands out: its peak is at least 7 / sqrt(HW), which one picture of
        noise in fifty reaches, and half as much again as the peak of no shift.
    """
    height, width = frame.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    first, second = (np.fft.rfft2((one - one.mean()) * window) for one in (frame, reference))
    product = first * second.conj()
    peaks = np.fft.irfft2(product / (np.abs(product) + 1e-3), s=frame.shape)
    row, column = (int(place) for place in np.unravel_index(peaks.argmax(), peaks.shape))
    if peaks[row, column] < max(7 / math.sqrt(frame.size), 1.5 * peaks[0, 0]):
        return 0, 0
    return (row + height // 2) % height - height // 2, (column + width // 2) % width - width // 2


def areas(mask: np.ndarray, size: tuple[int, int], config: BackgroundConfig) -> list[Box]:
    """Boxes of the connected areas of a mask, cleaned of specks and gaps.

    Args:
        mask: bool (h, w).
        size: (height, width) of the frame in pixels.
        config: Least height and area, greatest width.

    Returns:
        Boxes (x, y, w, h) in pixels of the frame, from the largest area to the smallest.
    """
    clean = _sum_around(mask, 1, 1) >= 5
    # A gap of a belt's height, or between an arm and the body, is closed.
    closed = _sum_around(_sum_around(clean, 4, 2) > 0, 4, 2) == 9 * 5
    labels = _components(closed | clean)
    height, width = mask.shape
    counts = np.bincount(labels[clean].ravel(), minlength=int(labels.max()) + 1)
    found = []
    for label in np.flatnonzero(counts):
        if label == 0 or counts[label] < config.min_area * mask.size:
            continue
        rows, columns = np.nonzero((labels == label) & clean)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        if bottom - top < config.min_height * height:
            continue
        box = (
            float(left * size[1] / width),
            float(top * size[0] / height),
            float((right - left) * size[1] / width),
            float((bottom - top) * size[0] / height),
        )
        if box[2] <= config.max_aspect * box[3]:
            found.append((int(counts[label]), box))
    return [box for _, box in sorted(found, reverse=True)]


def _sum_around(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Set pixels in the window of (2 rows + 1) x (2 columns + 1) around each; outside repeats the edge."""
    padded = np.pad(mask.astype(np.int32), ((rows + 1, rows), (columns + 1, columns)), mode="edge")
    padded[0] = 0
    padded[:, 0] = 0
    table = padded.cumsum(0).cumsum(1)
    high, wide = 2 * rows + 1, 2 * columns + 1
    result: np.ndarray = table[high:, wide:] - table[:-high, wide:] - table[high:, :-wide] + table[:-high, :-wide]
    return result


def _components(mask: np.ndarray) -> np.ndarray:
    """Label of the 8-connected component of each pixel, 0 outside: runs of each row, joined where they touch."""
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row_of, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]
    parent = list(range(len(start)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_of_row = np.searchsorted(row_of, np.arange(height + 1)).tolist()
    starts, stops = start.tolist(), stop.tolist()
    for row in range(1, height):
        above, here = first_of_row[row - 1], first_of_row[row]
        last_above, last_here = here, first_of_row[row + 1]
        while above < last_above and here < last_here:
            if starts[above] <= stops[here] and starts[here] <= stops[above]:
                parent[root(here)] = root(above)
            if stops[above] < stops[here]:
                above += 1
            else:
                here += 1
    labels = np.zeros((height, width), dtype=np.int32)
    numbers: dict[int, int] = {}
    for run, row in enumerate(row_of.tolist()):
        labels[row, starts[run] : stops[run]] = numbers.setdefault(root(run), len(numbers) + 1)
    return labels
