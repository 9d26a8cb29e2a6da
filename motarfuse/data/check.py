"""What a dataset holds and whether it can be trained on and scored: counts, broken files, gaps, duplicates."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from motarfuse import console
from motarfuse.data.any_dataset import AnyDataset, Record, files_of, holds_tracklets, load_any_dataset
from motarfuse.data.distribution import Distribution
from motarfuse.data.images import ImageReadError, read_image
from motarfuse.data.records import SPLITS, UNKNOWN_CAMERA, Skipped, SplitCounts
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.errors import DataError

T = TypeVar("T")
_Place = tuple[str, Record, Path]  # split, record, file


@dataclass(frozen=True)
class Duplicate:
    """Files of equal content that a dataset should not have.

    Attributes:
        paths: The files; of tracklets that share several frames, those of the first.
        splits: The splits they are in.
        pids: The identities they are labelled with.
        unfair: Why it distorts training or scores, in words.
        frames: How many frames these tracklets share; 1 for images.
    """

    paths: list[Path]
    splits: list[str]
    pids: list[int]
    unfair: str
    frames: int = 1


@dataclass(frozen=True)
class FrameCounts:
    """The frames of one split's tracklets.

    Attributes:
        frames: Number of frames that are there.
        missing: Steps between a tracklet's first and last frame that have none.
        with_gaps: Tracklets with such a step.
        lengths: Frames a tracklet; None without tracklets.
    """

    frames: int
    missing: int
    with_gaps: int
    lengths: Distribution | None


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        root: The folder or table that was asked for.
        name: The dataset's name.
        kind: The loader that read it.
        variant: Which layout matched.
        unit: What is counted: "images" or "tracklets".
        splits: Counts of each split, unreadable files apart.
        frames: Frames of each split, None of a set of images.
        published: Published images (or tracklets) and identities of each split, where the dataset is known.
        decoded: Whether every image was decoded.
        skipped: Files left out when the labels were read.
        unreadable: Images that cannot be decoded.
        duplicates: Files of equal content across splits or across identities.
        queries_without_match: Queries that no gallery record can answer, by their (first) file; evaluation skips them.
        notes: What the loader noticed.
        problems: What keeps the dataset from being trained on or scored.
    """

    root: Path
    name: str
    kind: str
    variant: str
    unit: str
    splits: dict[str, SplitCounts]
    frames: dict[str, FrameCounts] | None
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
        plain: dict[str, Any] = plain_values(asdict(self))
        return {**plain, "usable": self.usable}


def plain_values(value: Any) -> Any:
    """Values as JSON has them: paths become text."""
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_dataset(
    root: str | Path, kind: str = "auto", *, decode: bool = True, workers: int = 2, **options: Any
) -> DatasetReport:
    """Loads a dataset, of images or of tracklets, and examines it.

    Args:
        root: Folder or table.
        kind: As for `load_any_dataset`.
        decode: Whether to decode every image; False finds only missing and empty files.
        workers: Threads that read files.
        options: Further arguments of `load_any_dataset`.

    Returns:
        The report. A training split that cannot be trained on, or query and gallery that cannot be scored, are among
        its ``problems``; files that are merely left out are not.

    Raises:
        DataError: if no dataset is recognised at all.
    """
    dataset = load_any_dataset(root, kind, **options)
    paths = list(dict.fromkeys(path for _, record in _records(dataset) for path in files_of(record)))
    test = _decoding_failure if decode else _cheap_failure
    failures = _parallel(test, paths, "decoding images" if decode else "looking at files", workers)
    unreadable = [Skipped(path, reason) for path, reason in zip(paths, failures, strict=True) if reason is not None]
    readable = _without(dataset, {skipped.path for skipped in unreadable})
    video = holds_tracklets(dataset)
    without_match = readable.queries_without_match() if readable.gallery else []
    return DatasetReport(
        root=dataset.root,
        name=dataset.name,
        kind=dataset.kind,
        variant=dataset.variant,
        unit="tracklets" if video else "images",
        splits={split: readable.counts(split) for split in SPLITS},
        frames={split: frame_counts(readable.subset(split)) for split in SPLITS} if video else None,
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
        queries_without_match=[files_of(record)[0] for record in without_match],
        notes=[*([f"protocol: {dataset.protocol}"] if isinstance(dataset, TrackletDataset) else []), *dataset.notes],
        problems=_problems(readable),
    )


def _records(dataset: AnyDataset) -> list[tuple[str, Record]]:
    """(split, record) of every record."""
    return [(split, record) for split in SPLITS for record in dataset.subset(split)]


def frame_counts(records: Iterable[Record]) -> FrameCounts:
    """Frames, gaps and lengths of tracklets."""
    tracklets = [record for record in records if isinstance(record, Tracklet)]
    lengths = [len(tracklet) for tracklet in tracklets]
    missing = [tracklet.num_missing for tracklet in tracklets]
    return FrameCounts(sum(lengths), sum(missing), sum(number > 0 for number in missing), Distribution.of(lengths))


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


def _without(dataset: AnyDataset, unreadable: set[Path]) -> AnyDataset:
    """The same without these files: images go, tracklets lose the frames, and go when they have none left."""
    if not unreadable:
        return dataset
    splits = {
        split: [left for record in dataset.subset(split) if (left := _readable(record, unreadable)) is not None]
        for split in SPLITS
    }
    return replace(dataset, **splits)  # type: ignore[arg-type]


def _readable(record: Record, unreadable: set[Path]) -> Record | None:
    places = [place for place, path in enumerate(files_of(record)) if path not in unreadable]
    if not places:
        return None
    return record.select(places) if isinstance(record, Tracklet) else record


def _problems(dataset: AnyDataset) -> list[str]:
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


def find_duplicates(dataset: AnyDataset, *, workers: int = 2) -> list[Duplicate]:
    """Files of equal content that lie in different splits, or carry different identities.

    A file of the query and its copy in the gallery under the same known camera do no harm, evaluation leaves that pair
    out, and are not listed. Tracklets that share several frames are listed once.

    Args:
        dataset: What to look through; its files are there.
        workers: Threads that read files.
    """
    by_size: dict[int, list[_Place]] = defaultdict(list)
    for split, record in _records(dataset):
        for path in files_of(record):
            by_size[path.stat().st_size].append((split, record, path))
    candidates = [place for group in by_size.values() if len(group) > 1 for place in group]
    paths = list(dict.fromkeys(path for _, _, path in candidates))
    digests = dict(zip(paths, _parallel(_digest, paths, "comparing files", workers), strict=True))
    by_content: dict[bytes, list[_Place]] = defaultdict(list)
    for place in candidates:
        by_content[digests[place[2]]].append(place)
    found: dict[object, Duplicate] = {}
    for group in by_content.values():
        reason = _unfair(group)
        if reason is None:
            continue
        # Images are what they are; tracklets are told apart by split and name.
        key = frozenset((split, record.name if isinstance(record, Tracklet) else path) for split, record, path in group)
        if key in found:
            found[key] = replace(found[key], frames=found[key].frames + 1)
        else:
            found[key] = Duplicate(
                [path for _, _, path in group],
                sorted({split for split, _, _ in group}, key=SPLITS.index),
                sorted({record.pid for _, record, _ in group}),
                reason,
            )
    return list(found.values())


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _unfair(group: list[_Place]) -> str | None:
    splits = {split for split, _, _ in group}
    if len({record.pid for _, record, _ in group}) > 1:
        return "one picture under different identities"
    if "train" in splits and len(splits) > 1:
        return "trained on and tested with"
    if splits == {"query", "gallery"}:
        cameras = {record.camid for _, record, _ in group}
        if len(cameras) > 1 or UNKNOWN_CAMERA in cameras:
            return "the query itself is among its right answers"
    return None
