"""Boxes of successive frames joined to tracks by their intersection over union."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from motarfuse.data.tracklets import Box


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (x, y, w, h); 0 where they do not meet."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    meet = width * height
    return meet / (first[2] * first[3] + second[2] * second[3] - meet)


@dataclass
class _Track:
    number: int
    frame: int
    box: Box
    velocity: tuple[float, float] | None = None

    def expected(self, frame: int) -> Box:
        x, y, w, h = self.box
        steps = frame - self.frame
        across, down = self.velocity or (0.0, 0.0)
        return x + steps * across, y + steps * down, w, h


class Associator:
    """Gives the boxes of each frame numbers of tracks.

    The pair of an open track and a box with the largest intersection over union is joined first, down to ``iou``; a
    track is where it was last, moved on at the speed of its centre, or where it was, whichever fits better. Boxes that
    are left start tracks; a track without a box for more than ``max_gap`` frames ends and never continues.

    Args:
        iou: Least intersection over union.
        max_gap: Frames without a box that a track survives.
    """

    def __init__(self, iou: float, max_gap: int) -> None:
        self._iou = iou
        self._max_gap = max_gap
        self._open: list[_Track] = []
        self._started = 0

    def update(self, frame: int, boxes: list[Box]) -> list[int]:
        """Number of the track of each box, from 0 in the order of their starts.

        Args:
            frame: Number of the frame, larger than that of the call before.
            boxes: Of the frame.
        """
        self._open = [track for track in self._open if frame - track.frame - 1 <= self._max_gap]
        scores = np.zeros((len(self._open), len(boxes)))
        for row, track in enumerate(self._open):
            expected = track.expected(frame)
            scores[row] = [max(box_iou(expected, box), box_iou(track.box, box)) for box in boxes]
        numbers = [-1] * len(boxes)
        while scores.size and scores.max() >= self._iou:
            row, column = (int(place) for place in np.unravel_index(scores.argmax(), scores.shape))
            self._move(self._open[row], frame, boxes[column])
            numbers[column] = self._open[row].number
            scores[row] = -1
            scores[:, column] = -1
        for column, box in enumerate(boxes):
            if numbers[column] < 0:
                self._open.append(_Track(self._started, frame, box))
                numbers[column] = self._started
                self._started += 1
        return numbers

    @staticmethod
    def _move(track: _Track, frame: int, box: Box) -> None:
        steps = frame - track.frame
        (x0, y0), (x1, y1) = ((one[0] + one[2] / 2, one[1] + one[3] / 2) for one in (track.box, box))
        across, down = (x1 - x0) / steps, (y1 - y0) / steps
        old_across, old_down = track.velocity or (across, down)
        track.velocity = (old_across + across) / 2, (old_down + down) / 2
        track.frame, track.box = frame, box
