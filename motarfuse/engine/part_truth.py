"""Scores the parts that a network has learned against the ground truth of SynthPed, beside simple rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from motarfuse import __version__, console
from motarfuse.data import EvalTransform, ImageRecord, ImageStore
from motarfuse.data.synthped.reading import WrittenSet, read_written_set, written_sets
from motarfuse.engine.checkpoint import describe_checkpoint, find_checkpoint, load_model
from motarfuse.engine.device import choose_device
from motarfuse.engine.part_measures import (
    BODY,
    GROUPINGS,
    PCK_SHARE,
    Array,
    KeypointRegression,
    area_shares,
    areas_of,
    by_image_side,
    fit_keypoints,
    foreground_iou,
    foreground_shares,
    group_ious,
    group_labels,
    hard_labels,
    keypoint_errors,
    match_parts,
)
from motarfuse.engine.random import WEIGHTS, isolated_randomness, seed_everything, stream_seed
from motarfuse.engine.settings import from_mapping, require_positive
from motarfuse.errors import CheckpointError, DataError
from motarfuse.models import build_model, config_class

TRAIN = "train"
MOST_TRAINING_IMAGES = 1000

# Rows of the result.
NETWORK = "network"
UNTRAINED = "untrained"
NETWORK_STRIPED = "network, striped"
STRIPES = "stripes"
MEAN_POSTURE = "mean posture"
BODY_STRIPED = "body, striped"
DRAWN = "drawn parts"
ROWS = (NETWORK, UNTRAINED, NETWORK_STRIPED, STRIPES, MEAN_POSTURE, BODY_STRIPED, DRAWN)


# Linear fits of a row with keypoints: (image sides instead of the person's own, affines as features too).
FITS = {
    "keypoints": (False, False),
    "keypoints_by_image_side": (True, False),
    "keypoints_with_affines": (False, True),
}
_FINEST = len(GROUPINGS["6"]) + 2  # channels of drawn masks: background, groups, bag


@dataclass
class _Seen:
    """What one row has collected over a set."""

    hard: Array  # areas of the hard masks
    soft: Array  # areas of the soft masks
    keypoints: list[Tensor] = field(default_factory=list)  # (b, L, 2) a batch; none where a row has no keypoints
    affines: list[Tensor] = field(default_factory=list)  # (b, L, 2, 2) a batch

    def features(self, affines: bool) -> Array | None:
        """(n, F) float64, None where the row has no such features."""
        if not self.keypoints or (affines and not self.affines):
            return None
        batches = [self.keypoints, self.affines] if affines else [self.keypoints]
        return torch.cat([torch.cat(batch).flatten(1) for batch in batches], 1).double().numpy()


@dataclass
class _Pass:
    """One pass over a set."""

    written: WrittenSet
    kept: list[int] = field(default_factory=list)  # rows of the images that could be read
    rows: dict[str, _Seen] = field(default_factory=dict)
    shares: Tensor = field(default_factory=lambda: torch.zeros(()))  # (NUM_LABELS, h, w) sum over the images
    num_parts: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        return self.shares.shape[1], self.shares.shape[2]

    @property
    def pids(self) -> NDArray[np.int64]:
        return self.written.truth.pids[self.kept]

    def add(self, name: str, labels: Tensor, soft: Tensor, shares: Tensor) -> _Seen:
        """Adds a batch to a row: hard masks (b, h, w), soft (b, L + 1, h, w), drawn shares (b, NUM_LABELS, h, w)."""
        hard, soft_areas = areas_of(_one_hot(labels, soft.shape[1]), shares), areas_of(soft, shares)
        if name in self.rows:
            self.rows[name].hard += hard
            self.rows[name].soft += soft_areas
        else:
            self.rows[name] = _Seen(hard, soft_areas)
        return self.rows[name]

    def body(self, image_side: bool) -> tuple[Array, NDArray[np.uint8]]:
        """Drawn keypoints (n, 17, 2) and their visibility (n, 17)."""
        points, visibility = self.written.truth.keypoints[self.kept], self.written.truth.visibility[self.kept]
        return by_image_side(points, visibility) if image_side else (points.astype(np.float64), visibility)

    def size(self) -> dict[str, int]:
        return {"images": len(self.kept), "identities": len(set(self.pids.tolist()))}


def score_parts(
    model: nn.Module,
    root: str | Path,
    *,
    untrained: nn.Module | None = None,
    sets: Sequence[str] | None = None,
    most: int = MOST_TRAINING_IMAGES,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    workers: int = 2,
) -> dict[str, Any]:
    """Part masks, keypoints and occluders: a network's parts against SynthPed's, beside rivals by the same code.

    Matching of parts to body groups, the linear fit of keypoints and the mean posture are made on training identities
    and read on others. A cell is a part's where M_0 < 1/2, and then the largest part's (`hard_labels`); IoUs are of
    these hard masks, shares of the foreground of the soft ones. The rows:

    - ``network`` and, where given, ``untrained``;
    - ``network, striped``: the network's foreground with its parts replaced by L equal stripes of the crop; what the
      network has above it, its parts add to foreground and height;
    - ``stripes``: L equal stripes over the whole crop; their centres are constant, so that the keypoints are the mean;
    - ``mean posture``: the mean training keypoints, and in each cell the group that is there on average;
    - ``body, striped``: the visible body, cut into L equal stripes of the crop;
    - ``drawn parts``: the drawn groups rounded to cells, close to the most that masks of this grid can reach.

    Args:
        model: A network whose output has ``part_masks``, ``keypoints`` and ``affines``; its mode is kept.
        root: The benchmark's folder, with its ground truth.
        untrained: The same network with fresh weights.
        sets: Which sets to score; None: all but the training set that are there.
        most: At most so many training images, spread evenly over the identities.
        batch_size: Images a forward pass.
        device: Where to compute.
        workers: Decoding threads.

    Returns:
        Plain values for JSON: ``grid``, ``num_parts``, ``groups``, ``pck_share``, ``train``, ``sets`` and ``rows``. A
        row is ``name``, ``matching`` (by grouping the group of each part, None for no group), ``ridge_penalty`` and
        ``sets``: by set ``iou`` (by grouping: ``mean`` and ``groups``), ``foreground_iou``, ``foreground_iou_soft``,
        ``mass`` and ``claimed`` (`foreground_shares`), ``keypoints``, ``keypoints_by_image_side`` and
        ``keypoints_with_affines`` (`keypoint_errors`); a row without keypoints lacks the last three.

    Raises:
        CheckpointError: The network has no parts, or they are not finite.
        DataError: The benchmark cannot be read, or identities are in both the training and a test set.
    """
    require_positive(batch_size=batch_size, workers=workers, most=most)
    names = _chosen_sets(root, sets)
    networks = {NETWORK: model, **({UNTRAINED: untrained} if untrained is not None else {})}
    device = torch.device(device)

    def run(written: WrittenSet) -> _Pass:
        return _run(networks, written, batch_size, device, workers)

    train = run(read_written_set(root, TRAIN, most=most))
    mean_mask = group_labels(train.shares[None] / len(train.kept))[0]
    _add_constant_rows(train, mean_mask)
    judge = _Judge(train)
    sizes, scored = {}, {}
    for name in names:
        written = read_written_set(root, name)
        both = set(written.truth.pids.tolist()) & set(train.pids.tolist())
        if both:
            raise DataError(
                f"{root}: identity {min(both)} is in the training set and in {name}; parts are scored on other people "
                "than those they are matched on"
            )
        test = run(written)
        _add_constant_rows(test, mean_mask)
        sizes[name] = test.size()
        scored[name] = judge(test)
    return {
        "grid": list(train.shares.shape[1:]),
        "num_parts": train.num_parts,
        "groups": {key: {group: list(parts) for group, parts in value.items()} for key, value in GROUPINGS.items()},
        "pck_share": PCK_SHARE,
        "train": train.size(),
        "sets": sizes,
        "rows": [
            {"name": row, **judge.fitted(row), "sets": {name: scored[name][row] for name in names}}
            for row in ROWS
            if row in train.rows
        ],
    }


def score_checkpoint_parts(
    checkpoint: str | Path,
    root: str | Path,
    *,
    untrained: bool = False,
    seed: int = 0,
    sets: Sequence[str] | None = None,
    most: int = MOST_TRAINING_IMAGES,
    batch_size: int = 128,
    device: str = "auto",
    workers: int = 2,
) -> dict[str, Any]:
    """`score_parts` of a checkpoint.

    Args:
        checkpoint: A run's folder, a checkpoint's, or the name of a packaged network.
        root, sets, most, batch_size, workers: As `score_parts` takes them.
        untrained: Whether to score the same network with fresh weights as well.
        seed: Of the fresh weights.
        device: As ``train.device`` of a config.

    Returns:
        The result of `score_parts` and where it comes from.

    Raises:
        CheckpointError, ConfigError, DataError: What cannot be used, and why.
    """
    target = choose_device(device)
    folder = find_checkpoint(checkpoint)
    model, metadata = load_model(folder, device=target)
    rival = fresh_network(metadata["model"], seed) if untrained else None
    scores = score_parts(
        model, root, untrained=rival, sets=sets, most=most, batch_size=batch_size, device=target, workers=workers
    )
    return {
        "motarfuse": __version__,
        "checkpoint": describe_checkpoint(folder, metadata["step"]),
        "model": metadata["model"],
        "untrained_seed": seed if untrained else None,
        "data": str(Path(root).expanduser().resolve()),
        **scores,
    }


def fresh_network(model: dict[str, Any], seed: int) -> nn.Module:
    """The network that a checkpoint's metadata names (``name``, ``config``) with fresh weights, in evaluation mode."""
    with isolated_randomness(torch.device("cpu")):
        seed_everything(stream_seed(seed, WEIGHTS))
        return build_model(model["name"], from_mapping(config_class(model["name"]), model["config"], "model")).eval()


def _chosen_sets(root: str | Path, sets: Sequence[str] | None) -> list[str]:
    there = [name for name in written_sets(root) if name != TRAIN]
    if sets is None:
        names = there
    else:
        names = list(dict.fromkeys(sets))
        absent = [name for name in names if name not in there]
        if absent:
            raise DataError(f"{root} has no test set {absent[0]!r}; there are {', '.join(there) or 'none'}")
    if not names:
        raise DataError(f"{root} has no test set with ground truth to score parts on; draw the benchmark anew")
    return names


@torch.no_grad()
def _run(
    networks: dict[str, nn.Module], written: WrittenSet, batch_size: int, device: torch.device, workers: int
) -> _Pass:
    """Runs the networks over a set and adds up all that depends on the image."""
    first = next(iter(networks.values()))
    truth = written.truth
    records = [
        ImageRecord(path, pid, camid)
        for path, pid, camid in zip(written.paths, truth.pids.tolist(), truth.camids.tolist(), strict=True)
    ]
    camids = torch.from_numpy(truth.camids)
    transform = EvalTransform()
    modes = {name: network.training for name, network in networks.items()}
    result = _Pass(written)
    try:
        for network in networks.values():
            network.to(device).eval()
        store = ImageStore(records, first.image_size, cache="disk", workers=workers, verify=False)  # type: ignore[arg-type]
        with store, console.progress(f"parts: {written.name}", len(store)) as bar:
            for indices, pixels in store.stream(batch_size):
                batch, cameras = transform(pixels.to(device)), camids[indices].to(device)
                outputs = {name: _parts_of(network, batch, cameras) for name, network in networks.items()}
                _add_batch(result, outputs, indices)
                bar.advance(bar.task_ids[0], len(indices))
    finally:
        for name, network in networks.items():
            network.train(modes[name])
    if not result.kept:
        raise DataError(f"none of the {len(written)} images of the set {written.name} can be read")
    return result


def _parts_of(network: nn.Module, images: Tensor, camids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (n, L + 1, h, w), keypoints (n, L, 2) and affines (n, L, 2, 2) of images, on the CPU."""
    output = network(images, camids)
    values = [getattr(output, name, None) for name in ("part_masks", "keypoints", "affines")]
    if any(value is None for value in values):
        raise CheckpointError(
            f"{type(network).__name__} has no parts to score (its output lacks part_masks, keypoints or affines); "
            "give a checkpoint of motar_fuse"
        )
    masks, keypoints, affines = (value[:, 0].float().cpu() for value in values)  # type: ignore[index]
    if not all(bool(value.isfinite().all()) for value in (masks, keypoints, affines)):
        raise CheckpointError(f"{type(network).__name__} gives parts that are not finite; its weights are damaged")
    return masks, keypoints, affines


def _add_batch(result: _Pass, outputs: dict[str, tuple[Tensor, Tensor, Tensor]], indices: list[int]) -> None:
    masks = outputs[NETWORK][0]
    grid, count = (masks.shape[-2], masks.shape[-1]), masks.shape[1]
    truth = result.written.truth
    shares = area_shares(truth.parts[indices], truth.amodal[indices], grid)
    result.kept.extend(indices)
    result.shares = result.shares + shares.double().sum(0)
    result.num_parts = count - 1
    for name, (soft, keypoints, affines) in outputs.items():
        seen = result.add(name, hard_labels(soft), soft, shares)
        seen.keypoints.append(keypoints)
        seen.affines.append(affines)
    stripes = _stripes(result.num_parts, grid)
    background = masks[:, :1]
    soft = torch.cat([background, (1 - background) * _one_hot(stripes, count)[1:]], 1)
    result.add(NETWORK_STRIPED, stripes * (hard_labels(masks) > 0), soft, shares)
    body = stripes * (shares[:, BODY].sum(1) > 0.5)
    result.add(BODY_STRIPED, body, _one_hot(body, count), shares)
    drawn = group_labels(shares)
    result.add(DRAWN, drawn, _one_hot(drawn, _FINEST), shares)


def _add_constant_rows(result: _Pass, mean_mask: Tensor) -> None:
    """The rows that do not look at the image: their areas follow from the sum of the drawn shares."""
    images, count = len(result.kept), result.num_parts
    stripes = _stripes(count, result.grid)
    centres = torch.zeros(count, 2)
    centres[:, 1] = (2 * torch.arange(count) + 1) / count - 1
    for name, labels, channels, keypoints in (
        (STRIPES, stripes, count + 1, centres),
        (MEAN_POSTURE, mean_mask, _FINEST, torch.zeros(0, 2)),
    ):
        masks = _one_hot(labels[None], channels)
        result.add(name, labels[None], masks, result.shares[None]).keypoints.append(keypoints.expand(images, -1, -1))


def _stripes(count: int, grid: tuple[int, int]) -> Tensor:
    """(h, w) labels 1..count from top to bottom."""
    return (torch.arange(grid[0]) * count // grid[0] + 1)[:, None].expand(grid)


def _one_hot(labels: Tensor, channels: int) -> Tensor:
    """(..., h, w) to float (..., channels, h, w)."""
    return torch.nn.functional.one_hot(labels, channels).movedim(-1, -3).float()


class _Judge:
    """What is fitted on the training set, and what it makes of other sets."""

    def __init__(self, train: _Pass) -> None:
        self._match = {name: {key: match_parts(row.hard, key) for key in GROUPINGS} for name, row in train.rows.items()}
        self._fits: dict[str, dict[str, KeypointRegression]] = {}
        for name, row in train.rows.items():
            self._fits[name] = {}
            for fit, (image_side, affines) in FITS.items():
                features = row.features(affines)
                if features is not None:
                    self._fits[name][fit] = fit_keypoints(features, *train.body(image_side), train.pids)

    def fitted(self, name: str) -> dict[str, Any]:
        """The group that each part of a row stands for, by grouping, and the penalties of its linear fits."""
        matching = {
            key: [list(GROUPINGS[key])[group] if group >= 0 else None for group in match]
            for key, match in self._match[name].items()
        }
        return {"matching": matching, "ridge_penalty": {key: fit.penalty for key, fit in self._fits[name].items()}}

    def __call__(self, test: _Pass) -> dict[str, dict[str, Any]]:
        return {name: self._score(name, row, test) for name, row in test.rows.items()}

    def _score(self, name: str, row: _Seen, test: _Pass) -> dict[str, Any]:
        iou = {}
        for key, match in self._match[name].items():
            groups = group_ious(row.hard, key, match)
            drawn = [value for value in groups.values() if value is not None]
            iou[key] = {"mean": sum(drawn) / len(drawn) if drawn else None, "groups": groups}
        scores: dict[str, Any] = {
            "iou": iou,
            "foreground_iou": foreground_iou(row.hard),
            "foreground_iou_soft": foreground_iou(row.soft),
            **foreground_shares(row.soft),
        }
        for key, fit in self._fits[name].items():
            image_side, affines = FITS[key]
            features = row.features(affines)
            assert features is not None  # a row has the same features in every set
            scores[key] = keypoint_errors(fit(features), *test.body(image_side))
        return scores
