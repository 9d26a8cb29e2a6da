"""How well learned parts agree with drawn ones: mask overlap after matching, body keypoints after a linear fit.

Everything about masks is read from one table of areas, ``areas[k, c]``: how many cells part k (0 the background) and
label c share, summed over images. Labels are SynthPed's, and `HIDDEN_BODY` for an occluder that has the body behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from motarfuse.data.synthped import KEYPOINTS, PARTS, layout
from motarfuse.errors import DataError

Array = NDArray[np.float64]

HIDDEN_BODY = len(PARTS)
NUM_LABELS = len(PARTS) + 1
_BAG = layout.PART["bag"]
BODY = tuple(range(1, layout.OCCLUDER))  # the bag is carried, so it counts as body; it belongs to no group
_OCCLUDERS = (layout.OCCLUDER, HIDDEN_BODY)

_HEAD = ("head", "hair", "hat")
_ARMS = tuple(f"{side}_{limb}" for side in ("left", "right") for limb in ("upper_arm", "lower_arm", "hand"))
_THIGHS = ("lower_garment", "left_upper_leg", "right_upper_leg")
_SHANKS = ("left_lower_leg", "right_lower_leg")
_FEET = ("left_foot", "right_foot")

# Left and right are not told apart: which side of the image the left is on changes with the view.
GROUPINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "2": {"upper body": (*_HEAD, "torso", *_ARMS), "lower body": (*_THIGHS, *_SHANKS, *_FEET)},
    "4": {"head": _HEAD, "torso and arms": ("torso", *_ARMS), "thighs": _THIGHS, "shanks and feet": (*_SHANKS, *_FEET)},
    "6": {"head": _HEAD, "torso": ("torso",), "arms": _ARMS, "thighs": _THIGHS, "shanks": _SHANKS, "feet": _FEET},
}

# A pair of sides each: (left, right) columns of the keypoints.
_PAIRS = tuple(
    (index, KEYPOINTS.index(name.replace("left_", "right_")))
    for index, name in enumerate(KEYPOINTS)
    if name.startswith("left_")
)
_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e2)
_FOLDS = 5
_LEAST_DEVIATION = 1e-4  # of a feature in [-1, 1]: less is rounding, which must not be blown up
PCK_SHARE = 0.1


def area_shares(parts: NDArray[np.uint8], amodal: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Share of each label in the area of each cell.

    Args:
        parts: (n, H, W) labels of what is seen.
        amodal: (n, H, W) labels without occluders.
        grid: (h, w) equal cells over the image; pixels on a border are divided.

    Returns:
        float32 (n, NUM_LABELS, h, w), sum 1 over the labels.
    """
    labels = torch.from_numpy(parts)
    hidden = (labels == layout.OCCLUDER) & torch.from_numpy(amodal != layout.BACKGROUND)
    labels = labels.masked_fill(hidden, HIDDEN_BODY)
    rows, columns = (_overlap(cells, pixels) for cells, pixels in zip(grid, parts.shape[1:], strict=True))
    shares = torch.empty(len(parts), NUM_LABELS, *grid)
    for label in range(NUM_LABELS):  # one at a time: all at once would take 21 floats a pixel
        shares[:, label] = rows @ ((labels == label).float() @ columns.T)
    return shares


def _overlap(cells: int, pixels: int) -> Tensor:
    """(cells, pixels): which share of a cell's length each pixel covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * pixels / cells
    first = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], first)
    high = torch.minimum(edges[1:, None], first + 1)
    return ((high - low).clamp_min(0) * cells / pixels).float()


def hard_labels(masks: Tensor) -> Tensor:
    """The part of each cell: 0 where half of the cell or more is background, else the largest part.

    A plain argmax over all channels would compare the background with fractions of the foreground, and favour it the
    more the more parts there are.

    Args:
        masks: (n, L + 1, h, w), sum 1 over the channels, channel 0 the background.

    Returns:
        int64 (n, h, w) in 0..L.
    """
    return torch.where(masks[:, 0] < 0.5, masks[:, 1:].argmax(1) + 1, 0)


def group_labels(shares: Tensor, grouping: str = "6") -> Tensor:
    """The drawn labels as a part mask: 0 where half of the cell or more is no body, else the largest group, or the bag.

    Args:
        shares: (n, NUM_LABELS, h, w) as `area_shares` gives.
        grouping: Key of `GROUPINGS`.

    Returns:
        int64 (n, h, w); groups from 1 in their order, then the bag.
    """
    groups = [*_group_columns(grouping), [_BAG]]
    masks = torch.stack([shares[:, columns].sum(1) for columns in groups], 1)
    return torch.where(masks.sum(1) > 0.5, masks.argmax(1) + 1, 0)


def areas_of(masks: Tensor, shares: Tensor) -> Array:
    """The table of areas of a batch: areas[k, c] = sum over images and cells of masks[k] shares[c].

    Args:
        masks: (n, L + 1, h, w) soft or one-hot, channel 0 the background.
        shares: (n, NUM_LABELS, h, w).

    Returns:
        float64 (L + 1, NUM_LABELS). Divided by its sum it is a share of all area.
    """
    table = torch.einsum("nkp,ncp->nkc", masks.to(shares.dtype).flatten(2), shares.flatten(2))
    return table.sum(0, dtype=torch.float64).numpy()


def _group_columns(grouping: str) -> list[list[int]]:
    return [[layout.PART[name] for name in names] for names in GROUPINGS[grouping].values()]


def _group_areas(areas: Array, grouping: str) -> tuple[Array, Array, Array]:
    """(L, G) areas that parts share with groups, (L,) areas of the parts, (G,) of the groups; the bag left out."""
    counted = areas.copy()
    counted[:, _BAG] = 0.0
    table = np.stack([counted[:, columns].sum(1) for columns in _group_columns(grouping)], 1)
    return table[1:], counted[1:].sum(1), table.sum(0)


def match_parts(areas: Array, grouping: str) -> list[int]:
    """Which group each part stands for, so that the mean IoU over the groups is largest.

    Several parts may make up one group. A part that would lower every group's IoU stands for none. From three starts
    (each part's largest overlap, its largest IoU, no match) the best change of up to two parts is made until none
    raises the mean; the best end is taken. Of 1,400 random tables of 5 parts and 4 groups it missed the best match of
    all on one.

    Args:
        areas: (L + 1, NUM_LABELS), of training images.
        grouping: Key of `GROUPINGS`.

    Returns:
        For each of the L parts the group's index, -1 for none.
    """
    table, part_area, group_area = _group_areas(areas, grouping)
    groups = table.shape[1]
    alone = np.divide(table, part_area[:, None] + group_area - table, out=np.zeros_like(table), where=table > 0)
    found = []
    for start in (table, alone, np.zeros_like(table)):
        match = np.where(start.any(1), start.argmax(1), -1)
        value = -1.0
        while True:
            changed = _changes(match, groups)
            means = np.nansum(_ious(table, part_area, group_area, changed), 1) / groups
            top = int(means.argmax())
            if means[top] <= value + 1e-12:
                break
            match, value = changed[top], float(means[top])
        found.append((value, match.tolist()))
    best: list[int] = max(found, key=lambda one: one[0])[1]
    return best


def _changes(match: NDArray[np.intp], groups: int) -> NDArray[np.intp]:
    """(m, L) the match itself and every one that differs from it in one or two parts."""
    options = np.arange(-1, groups)
    count = len(match)
    changed = [match[None]]
    pairs = list(combinations(range(count), 2)) or [(0, 0)]
    for i, j in pairs:
        block = np.tile(match, (len(options) ** 2, 1))
        block[:, i], block[:, j] = np.repeat(options, len(options)), np.tile(options, len(options))
        changed.append(block)
    return np.concatenate(changed)


def _ious(table: Array, part_area: Array, group_area: Array, matches: NDArray[np.intp]) -> Array:
    """(m, G) IoU of each group with the parts that stand for it in each of (m, L) matches; NaN for 0 / 0."""
    chosen = (matches[:, :, None] == np.arange(table.shape[1])).astype(np.float64)  # (m, L, G)
    shared = (chosen * table).sum(1)
    union = part_area @ chosen + group_area - shared
    return np.divide(shared, union, out=np.full(shared.shape, np.nan), where=union > 0)


def group_ious(areas: Array, grouping: str, match: Sequence[int]) -> dict[str, float | None]:
    """IoU of each group with the parts matched to it: shared area / united area, both summed over all images.

    Cells are compared with the pixels that they cover, so that a hard mask's IoU is exactly that of the mask enlarged
    to the drawn size. Pixels of bags count neither for nor against.

    Args:
        areas: (L + 1, NUM_LABELS).
        grouping: Key of `GROUPINGS`.
        match: As `match_parts` gives.

    Returns:
        Group names to IoUs, None for a group that is neither drawn nor claimed.
    """
    ious = _ious(*_group_areas(areas, grouping), np.asarray(match)[None])[0]
    return {name: _number(iou) for name, iou in zip(GROUPINGS[grouping], ious.tolist(), strict=True)}


def foreground_iou(areas: Array) -> float | None:
    """IoU of all parts together with the body that can be seen, the bag included."""
    shared = areas[1:, BODY].sum()
    return _ratio(shared, areas[1:].sum() + areas[:, BODY].sum() - shared)


def foreground_shares(areas: Array) -> dict[str, dict[str, float | None]]:
    """Where the foreground lies.

    Returns:
        ``mass``: shares of the foreground on the visible body, on occluders and on the background (sum 1).
        ``claimed``: shares of the areas of these that are foreground, and of ``hidden body``, the occluders' area that
        has the body behind it. Who sees occluders claims little of them; who guesses a person's place claims the
        hidden body like the visible one.
    """
    kinds = {"body": BODY, "occluder": _OCCLUDERS, "background": (layout.BACKGROUND,), "hidden body": (HIDDEN_BODY,)}
    on = {name: areas[1:, columns].sum() for name, columns in kinds.items()}
    mass = {name: _ratio(on[name], areas[1:].sum()) for name in ("body", "occluder", "background")}
    claimed = {name: _ratio(on[name], areas[:, columns].sum()) for name, columns in kinds.items()}
    return {"mass": mass, "claimed": claimed}


def by_image_side(keypoints: NDArray[np.float32], visibility: NDArray[np.uint8]) -> tuple[Array, NDArray[np.uint8]]:
    """Keypoints with the two of each pair ordered from left to right in the image, and their visibility.

    Whether a person's left lies on the left depends on which way they face, which positions of parts cannot tell.

    Args:
        keypoints: (n, 17, 2) pixels, x first.
        visibility: (n, 17).
    """
    points, seen = keypoints.astype(np.float64), visibility.copy()
    for left, right in _PAIRS:
        swap = np.flatnonzero(keypoints[:, left, 0] > keypoints[:, right, 0])
        for array in (points, seen):
            array[swap, left], array[swap, right] = array[swap, right], array[swap, left]
    return points, seen


@dataclass(frozen=True)
class KeypointRegression:
    """A linear map from the learned features of an image to the body's keypoints.

    Attributes:
        mean, scale: (F,) of the features.
        weight: (17, F + 1, 2), the constant last.
        penalty: The ridge penalty that was chosen.
    """

    mean: Array
    scale: Array
    weight: Array
    penalty: float

    def __call__(self, features: Array) -> Array:
        """(n, F) features to (n, 17, 2) pixels."""
        return np.einsum("nf,kfc->nkc", _with_constant((features - self.mean) / self.scale), self.weight)


def fit_keypoints(
    features: Array, keypoints: Array, visibility: NDArray[np.uint8], pids: NDArray[np.int64]
) -> KeypointRegression:
    """Fits keypoint j = W_j [z; 1] by ridge regression, z the standardised features.

    Minimises, for each keypoint by itself, mean_i |y_ij - W_j [z_i; 1]|^2 + penalty |W_j without its constant|^2 over
    the images that have it in frame. The penalty is the one of 1e-6 ... 100 with the least squared error on identities
    that were held out, in up to five folds. Without features (F = 0) this is the mean posture.

    Args:
        features: (n, F), of training images.
        keypoints: (n, 17, 2) pixels.
        visibility: (n, 17); 0 is out of the frame.
        pids: (n,) identities, at least two.

    Raises:
        DataError: Fewer than two identities, or a keypoint that is never in the frame.
    """
    identities, identity = np.unique(pids, return_inverse=True)
    if len(identities) < 2:
        raise DataError(f"the linear fit of keypoints needs at least 2 training identities, got {len(identities)}")
    counted = (visibility != layout.OUT_OF_FRAME).astype(np.float64)
    absent = [KEYPOINTS[j] for j in np.flatnonzero(counted.sum(0) == 0)]
    if absent:
        raise DataError(f"{absent[0]} is in the frame of none of {len(features)} training images; take more of them")
    mean, scale = features.mean(0), np.maximum(features.std(0), _LEAST_DEVIATION)
    design = _with_constant((features - mean) / scale)
    errors = np.zeros(len(_PENALTIES))
    fold = identity % min(_FOLDS, len(identities))
    for held_out in np.unique(fold):
        train, test = fold != held_out, fold == held_out
        moments = _moments(design[train], keypoints[train], counted[train])
        for index, penalty in enumerate(_PENALTIES):
            residual = np.einsum("nf,kfc->nkc", design[test], _solve(*moments, penalty)) - keypoints[test]
            errors[index] += (counted[test] * (residual**2).sum(-1)).sum()
    penalty = _PENALTIES[int(errors.argmin())]
    return KeypointRegression(mean, scale, _solve(*_moments(design, keypoints, counted), penalty), penalty)


def _with_constant(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], 1)


def _moments(design: Array, keypoints: Array, counted: Array) -> tuple[Array, Array]:
    """(17, F + 1, F + 1) and (17, F + 1, 2) mean products over the images that count for each keypoint."""
    weight = counted / np.maximum(counted.sum(0), 1.0)
    weighted = weight.T[:, :, None] * design
    return weighted.transpose(0, 2, 1) @ design, weighted.transpose(0, 2, 1) @ keypoints.transpose(1, 0, 2)


def _solve(gram: Array, product: Array, penalty: float) -> Array:
    ridge = np.full(gram.shape[-1], penalty)
    # Free of penalty, but a fold may lack a keypoint, and 0 has no inverse.
    ridge[-1] = 1e-12
    return np.asarray(np.linalg.solve(gram + np.diag(ridge), product), np.float64)


def keypoint_errors(predicted: Array, keypoints: Array, visibility: NDArray[np.uint8]) -> dict[str, dict[str, Any]]:
    """Distances of predicted keypoints from the drawn ones, by what can be seen of them.

    Args:
        predicted: (n, 17, 2) pixels.
        keypoints: (n, 17, 2) pixels.
        visibility: (n, 17).

    Returns:
        For ``in frame`` (all that follow), ``visible``, ``behind occluder`` and ``behind self``: ``count``; means of
        ``error_px`` and of ``error``, the distance as a share of the image's body height, which is that of the box
        about its 17 keypoints, outside the crop too; ``pck``, the share with an error below 0.1. None where count is 0.
    """
    distance = np.linalg.norm(predicted - keypoints, axis=-1)
    height = np.maximum(np.ptp(keypoints[..., 1], axis=1), 1.0)
    kinds = {
        "in frame": visibility != layout.OUT_OF_FRAME,
        "visible": visibility == layout.VISIBLE,
        "behind occluder": visibility == layout.BEHIND_OCCLUDER,
        "behind self": visibility == layout.BEHIND_SELF,
    }
    result: dict[str, dict[str, Any]] = {}
    for name, chosen in kinds.items():
        share = (distance / height[:, None])[chosen]
        result[name] = {
            "count": int(chosen.sum()),
            "error_px": _ratio(distance[chosen].sum(), chosen.sum()),
            "error": _ratio(share.sum(), chosen.sum()),
            "pck": _ratio((share < PCK_SHARE).sum(), chosen.sum()),
        }
    return result


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
