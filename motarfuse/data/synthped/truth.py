"""Ground truth from drawn labels: which keypoints can be seen, and how much of the body."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import layout
from motarfuse.data.synthped.layout import KEYPOINTS, PART


def _parts_at(keypoint: str) -> tuple[str, ...]:
    """The parts at whose pixels a keypoint counts as seen."""
    side, _, joint = keypoint.partition("_")
    if joint in ("", "eye", "ear"):
        return ("head", "hair")
    return {
        "shoulder": ("torso", f"{side}_upper_arm"),
        "elbow": (f"{side}_upper_arm", f"{side}_lower_arm"),
        "wrist": (f"{side}_lower_arm", f"{side}_hand"),
        "hip": ("torso", "lower_garment", f"{side}_upper_leg"),
        "knee": (f"{side}_upper_leg", f"{side}_lower_leg", "lower_garment"),
        "ankle": (f"{side}_lower_leg", f"{side}_foot"),
    }[joint]


_SEEN = np.zeros((len(KEYPOINTS), 256), bool)
for _k, _name in enumerate(KEYPOINTS):
    _SEEN[_k, [PART[part] for part in _parts_at(_name)]] = True


def visibility(
    keypoints: NDArray[np.float32], facing: NDArray[np.bool_], visible: NDArray[np.uint8], amodal: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """What can be seen of each keypoint.

    Args:
        keypoints: (n, 17, 2) pixels, x first.
        facing: (n, 17) on the near side of the body.
        visible: (n, h, w) part labels, occluders included.
        amodal: (n, h, w) part labels without occluders.

    Returns:
        (n, 17) uint8: OUT_OF_FRAME, BEHIND_OCCLUDER, BEHIND_SELF (or turned away) or VISIBLE.
    """
    n, height, width = visible.shape
    column, row = np.floor(keypoints[..., 0]).astype(np.int64), np.floor(keypoints[..., 1]).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    image = np.arange(n)[:, None]
    hidden = visible[image, row, column] == layout.OCCLUDER
    # A joint near an outline may fall on the pixel beside it, so its neighbours count too.
    seen = np.zeros(column.shape, bool)
    which = np.arange(len(KEYPOINTS))[None, :]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            label = amodal[image, np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)]
            seen |= _SEEN[which, label]
    result = np.where(seen & facing, layout.VISIBLE, layout.BEHIND_SELF)
    result = np.where(hidden, layout.BEHIND_OCCLUDER, result)
    return np.where(inside, result, layout.OUT_OF_FRAME).astype(np.uint8)


def occluded_share(visible: NDArray[np.uint8], amodal: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n,) share of the body's pixels inside the crop that an occluder hides; 0 where there is no body."""
    body = amodal != layout.BACKGROUND
    hidden = (body & (visible == layout.OCCLUDER)).sum(axis=(1, 2))
    return (hidden / np.maximum(body.sum(axis=(1, 2)), 1)).astype(np.float32)
