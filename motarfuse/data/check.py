"""What a dataset folder holds and whether it can be trained on and scored: counts, broken files, duplicates."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from motarfuse import console
from motarfuse.data.images import ImageReadError, read_image
from motarfuse.data.records import SPLITS, UNKNOWN_CAMERA, ImageRecord, ReIDDataset, Skipped, SplitCounts
from motarfuse.data.registry import load_dataset
from motarfuse.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Duplicate:
    """Files of equal content that a dataset should not have.

    Attributes:
        paths: The files.
        splits: The splits they are in.
        pids: The identities they are labelled with.
        unfair: Why it distorts training or scores, in words.
    """

    paths: list[Path]
    splits: list[str]
    pids: list[int]
    unfair: str


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        root: The folder or table that was asked for.
        name: The dataset's name.
        kind: The loader that read it.
        variant: Which layout matched.
        splits: Counts of each split, unreadable images apart.
        published: Published images and identities of each split, where the dataset is known.
        decoded: Whether every image was decoded.
        skipped: Files left out when the labels were read.
        unreadable: Images that cannot be decoded.
        duplicates: Files of equal content across splits or across identities.
        queries_without_match: Queries that no gallery image can answer; evaluation skips them.
        notes: What the loader noticed.
        problems: What keeps the dataset from being trained on or scored.
    """

    root: Path
    name: str
    kind: str
    variant: str
    splits: dict[str, SplitCounts]
    published: dict[str, dict[str, int]] | None
    decoded: bool
    skipped: list[Skipped]
    unreadable: list[Skipped]
    duplicates: list[Duplicate]
    queries_without_match: list[Path]
    notes: list[str]
    problems: list[str]

    @property
    def usable(self) -> bool:
        """Whether every split that is there can be used."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; paths are text."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {**plain, "usable": self.usable}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_dataset(
    root: str | Path, kind: str = "auto", *, decode: bool = True, workers: int = 2, **options: Any
) -> DatasetReport:
    """Loads a dataset and examines it.

    Args:
        root: Folder or CSV file.
        kind: As for `load_dataset`.
        decode: Whether to decode every image; False finds only missing and empty files.
        workers: Threads that read files.
        options: Further arguments of `load_dataset`.

    Returns:
        The report. A training split that cannot be trained on, or query and gallery that cannot be scored, are among
        its ``problems``; files that are merely left out are not.

    Raises:
        DataError: if no dataset is recognised at all.
    """
    dataset = load_dataset(root, kind, **options)
    records = {record.path: record for split in SPLITS for record in dataset.subset(split)}
    paths = list(records)
    test = _decoding_failure if decode else _cheap_failure
    failures = _parallel(test, paths, "decoding images" if decode else "looking at files", workers)
    unreadable = [Skipped(path, reason) for path, reason in zip(paths, failures, strict=True) if reason is not None]
    readable = _without(dataset, {skipped.path for skipped in unreadable})
    return DatasetReport(
        root=dataset.root,
        name=dataset.name,
        kind=dataset.kind,
        variant=dataset.variant,
        splits={split: readable.counts(split) for split in SPLITS},
        published=None
        if dataset.published is None
        else {
            split: {"images": dataset.published.images[split], "identities": dataset.published.identities[split]}
            for split in SPLITS
        },
        decoded=decode,
        skipped=dataset.skipped,
        unreadable=unreadable,
        duplicates=find_duplicates(readable, workers=workers),
        queries_without_match=[record.path for record in readable.queries_without_match()] if readable.gallery else [],
        notes=dataset.notes,
        problems=_problems(readable),
    )


def _decoding_failure(path: Path) -> str | None:
    try:
        read_image(path)
    except ImageReadError as error:
        return error.reason
    return None


def _cheap_failure(path: Path) -> str | None:
    try:
        return None if path.stat().st_size else "the file is empty (0 bytes)"
    except OSError as error:
        return error.strerror or str(error)


def _parallel(function: Callable[[Path], T], paths: Sequence[Path], description: str, workers: int) -> list[T]:
    with ThreadPoolExecutor(workers) as pool:
        return list(console.track(pool.map(function, paths), description, len(paths)))


def _without(dataset: ReIDDataset[ImageRecord], unreadable: set[Path]) -> ReIDDataset[ImageRecord]:
    splits = {split: [record for record in dataset.subset(split) if record.path not in unreadable] for split in SPLITS}
    return replace(dataset, **splits)  # type: ignore[arg-type]


def _problems(dataset: ReIDDataset[ImageRecord]) -> list[str]:
    problems = []
    try:
        if dataset.train or not (dataset.query or dataset.gallery):
            dataset.require_training()
    except DataError as error:
        problems.append(str(error))
    try:
        if dataset.query or dataset.gallery:
            dataset.require_evaluation()
    except DataError as error:
        problems.append(str(error))
    return problems


def find_duplicates(dataset: ReIDDataset[ImageRecord], *, workers: int = 2) -> list[Duplicate]:
    """Files of equal content that lie in different splits, or carry different identities.

    A file of the query and its copy in the gallery under the same known camera do no harm, evaluation leaves that pair
    out, and are not listed.

    Args:
        dataset: What to look through.
        workers: Threads that read files.
    """
    places = [(split, record) for split in SPLITS for record in dataset.subset(split)]
    by_size: dict[int, list[tuple[str, ImageRecord]]] = defaultdict(list)
    for place in places:
        by_size[place[1].path.stat().st_size].append(place)
    candidates = [place for group in by_size.values() if len(group) > 1 for place in group]
    digests = _parallel(_digest, [record.path for _, record in candidates], "comparing files", workers)
    by_content: dict[bytes, list[tuple[str, ImageRecord]]] = defaultdict(list)
    for digest, place in zip(digests, candidates, strict=True):
        by_content[digest].append(place)
    found = []
    for group in by_content.values():
        reason = _unfair(group)
        if reason is not None:
            found.append(
                Duplicate(
                    [record.path for _, record in group],
                    sorted({split for split, _ in group}, key=SPLITS.index),
                    sorted({record.pid for _, record in group}),
                    reason,
                )
            )
    return found


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _unfair(group: list[tuple[str, ImageRecord]]) -> str | None:
    splits = {split for split, _ in group}
    if len({record.pid for _, record in group}) > 1:
        return "one picture under different identities"
    if "train" in splits and len(splits) > 1:
        return "trained on and tested with"
    if splits == {"query", "gallery"}:
        cameras = {record.camid for _, record in group}
        if len(cameras) > 1 or UNKNOWN_CAMERA in cameras:
            return "the query itself is among its right answers"
    return None
