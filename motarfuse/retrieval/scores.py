"""What is compared: the names of metrics and scores, and whether two sides of features have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from motarfuse.retrieval.features import PersonFeatures, check_finite, check_visibility

METRICS = ("cosine", "euclidean")
# What is compared: the feature of the whole person, the body parts, or both added up.
SCORES = ("feature", "parts", "sum")
# Added to the weight that two people's parts have in common: they score 0, not NaN, where they share no visible part,
# and next to nothing where they hardly share one.
PART_EPSILON = 1e-6
# Of the part score in the sum: the cosines of whole features spread about twice as widely, and 3 to 10 measured alike.
PART_WEIGHT = 3.0


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full precision, whatever autocast or reduced-precision setting the caller is under."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def choose_score(score: str, metric: str, *, query_parts: bool, gallery_parts: bool) -> str:
    """The score that ``auto`` stands for; any other name is checked and given back.

    ``auto`` is ``sum`` for the cosine of two sides with parts, else ``feature``.

    Raises:
        ValueError: An unknown score or metric; parts wanted of a side without them, or under a metric but cosine;
            ``auto`` where one side has parts and the other has none.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, supported are {', '.join(METRICS)}")
    if score not in ("auto", *SCORES):
        raise ValueError(f"score: got {score!r}, supported are auto, {', '.join(SCORES)}")
    if score == "feature" or (score == "auto" and (metric != "cosine" or not (query_parts or gallery_parts))):
        return "feature"
    if metric != "cosine":
        raise ValueError(f"score: got {score!r} with metric {metric!r}; parts are compared by cosine only")
    bare = [name for name, parts in (("query", query_parts), ("gallery", gallery_parts)) if not parts]
    if bare:
        raise ValueError(
            f"score: got {score!r}, but the {' and the '.join(bare)} came without parts; give PersonFeatures with "
            "part_features and part_visibility on both sides, or score='feature'"
        )
    return "sum" if score == "auto" else score


def part_shape(people: PersonFeatures) -> tuple[int, int]:
    """(parts, values a part)."""
    _, count, width = people.require_parts()[0].shape
    return count, width


def check_pair(query: PersonFeatures, gallery: PersonFeatures, score: str) -> None:
    """Raises for what a score reads of two sides that do not fit each other, or holds values that cannot be ranked."""
    if query.feature.shape[1] != gallery.feature.shape[1]:
        raise ValueError(
            f"query and gallery: got {query.feature.shape[1]} and {gallery.feature.shape[1]} columns; "
            "both need the same width"
        )
    if query.feature.dtype != gallery.feature.dtype:
        raise TypeError(
            f"query and gallery: got {query.feature.dtype} and {gallery.feature.dtype}; convert one of them"
        )
    if query.feature.device != gallery.feature.device:
        raise ValueError(
            f"query and gallery: got devices {query.feature.device} and {gallery.feature.device}; move one of them"
        )
    if score != "feature" and part_shape(query) != part_shape(gallery):
        raise ValueError(
            f"query and gallery: got parts of shape {part_shape(query)} and {part_shape(gallery)} "
            "(parts, values a part); both need the same"
        )
    for name, people in (("query", query), ("gallery", gallery)):
        if score != "parts":
            check_finite(people.feature, name)
        if score != "feature":
            part_features, visibility = people.require_parts()
            check_finite(part_features, f"{name}.part_features")
            check_visibility(visibility, f"{name}.part_visibility")
