"""Which gallery entries a search may find: by camera, time and identity, for all queries or relative to each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from motarfuse.retrieval.labels import as_labels
from motarfuse.retrieval.ranks import PairRules

Relation = Literal["any", "other", "same"]
RELATIONS = {"any": 0, "other": 1, "same": 2}


@dataclass(frozen=True)
class Labels:
    """What is known of the images of one side, one value a row; None where nothing is.

    Attributes:
        pids: Identities, integers; -1 is unknown.
        camids: Cameras, integers; -1 is unknown.
        times: Times in seconds from any common origin, or frame numbers; NaN is unknown.
    """

    pids: Any = None
    camids: Any = None
    times: Any = None


@dataclass(frozen=True)
class Where:
    """Conditions on gallery entries; an entry is found only if it fulfils all of them.

    Attributes:
        camids, not_camids: Cameras that entries must, or must not, be from. An unknown camera (-1) is from none of
            them.
        pids, not_pids: The same of identities.
        between: (earliest, latest) time of entries, both included; None leaves an end open. An entry of unknown time
            does not fulfil it.
        camera: ``other`` leaves out entries of the query's own camera, ``same`` all but those. Unknown is other.
        identity: The same of identities: ``other`` finds the people who look most like somebody.
        after: (earliest, latest) of t_entry - t_query, None leaves an end open: (0, 600) finds who comes by in the ten
            minutes after the query, (-600, 600) before or after.
    """

    camids: Collection[int] | None = None
    not_camids: Collection[int] | None = None
    pids: Collection[int] | None = None
    not_pids: Collection[int] | None = None
    between: tuple[float | None, float | None] | None = None
    camera: Relation = "any"
    identity: Relation = "any"
    after: tuple[float | None, float | None] | None = None

    def __post_init__(self) -> None:
        for name in ("camera", "identity"):
            if getattr(self, name) not in RELATIONS:
                raise ValueError(f"where.{name}: got {getattr(self, name)!r}, supported are {', '.join(RELATIONS)}")
        for name in ("between", "after"):
            _interval(getattr(self, name), name)
        for name in ("camids", "not_camids", "pids", "not_pids"):
            values = getattr(self, name)
            if values is not None and not (
                isinstance(values, Collection | np.ndarray)
                and not isinstance(values, str)
                and all(_is_integer(value) for value in values)
            ):
                raise TypeError(f"where.{name}: got {values!r}, supported is a collection of integers")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _interval(ends: tuple[float | None, float | None] | None, name: str) -> tuple[float, float]:
    if ends is None:
        return -np.inf, np.inf
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise TypeError(f"where.{name}: got {ends!r}, supported is a pair (earliest, latest), None for an open end")
    if not all(end is None or isinstance(end, int | float | np.integer | np.floating) for end in ends):
        raise TypeError(f"where.{name}: got {ends!r}, supported are numbers and None")
    low, high = (default if end is None else float(end) for end, default in zip(ends, (-np.inf, np.inf), strict=True))
    if not low <= high:
        raise ValueError(f"where.{name}: got {ends!r}, the earliest comes after the latest")
    return low, high


def resolve(
    where: Where, query: Labels | None, gallery: Labels | None, shape: tuple[int, int], device: torch.device
) -> tuple[np.ndarray, PairRules]:
    """What conditions mean for these images.

    Returns:
        (G,) bool, the entries that fulfil what is asked of all, and the rules that depend on the query, for the
        entries that are kept.

    Raises:
        TypeError, ValueError: Labels that a condition needs are missing, or are not what ``Labels`` says.
    """
    if not isinstance(where, Where):
        raise TypeError(f"where: got {type(where).__name__}, supported is a Where")
    for name, one in (("query_labels", query), ("gallery_labels", gallery)):
        if one is not None and not isinstance(one, Labels):
            raise TypeError(f"{name}: got {type(one).__name__}, supported is Labels")
    sides = {"query": (query or Labels(), shape[0]), "gallery": (gallery or Labels(), shape[1])}

    def labels(side: str, name: str, condition: str) -> np.ndarray:
        of, length = sides[side]
        values = getattr(of, name)
        if values is None:
            raise ValueError(f"where.{condition} needs {side}_labels with {name}")
        return (
            _as_times(values, f"{side}_labels.times", length)
            if name == "times"
            else as_labels(values, f"{side}_labels.{name}", length)
        )

    kept = np.ones(shape[1], dtype=bool)
    for name in ("camids", "pids"):
        wanted, unwanted = getattr(where, name), getattr(where, f"not_{name}")
        if wanted is not None:
            found = labels("gallery", name, name)
            kept &= np.isin(found, list(wanted)) & (found != -1)
        if unwanted is not None:
            kept &= ~np.isin(labels("gallery", name, f"not_{name}"), [one for one in unwanted if one != -1])
    if where.between is not None:
        low, high = _interval(where.between, "between")
        times = labels("gallery", "times", "between")
        kept &= (times >= low) & (times <= high)

    def pair(name: str, condition: str, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        if not wanted:
            return None, None
        of_query, of_gallery = (labels(side, name, condition) for side in ("query", "gallery"))
        return torch.from_numpy(of_query).to(device), torch.from_numpy(of_gallery[kept]).to(device)

    rules = PairRules(
        *pair("camids", "camera", where.camera != "any"),
        RELATIONS[where.camera],
        *pair("pids", "identity", where.identity != "any"),
        RELATIONS[where.identity],
        *pair("times", "after", where.after is not None),
        *_interval(where.after, "after"),
    )
    return kept, rules


def _as_times(times: Any, name: str, length: int) -> np.ndarray:
    array = times.detach().cpu().numpy() if isinstance(times, Tensor) else np.asarray(times)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: got {array.dtype} values, supported are numbers")
    if array.shape != (length,):
        raise ValueError(f"{name}: got shape {array.shape}, supported is one number a row, shape ({length},)")
    return np.ascontiguousarray(array, dtype=np.float64)
