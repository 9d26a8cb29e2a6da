"""What a dataset is made of: identities, images or tracklets of each identity and camera, sizes and lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from motarfuse import console
from motarfuse.data.any_dataset import Record, files_of, holds_tracklets, load_any_dataset
from motarfuse.data.check import FrameCounts, frame_counts, plain_values
from motarfuse.data.distribution import Distribution
from motarfuse.data.images import FORMATS
from motarfuse.data.records import SPLITS, SplitCounts


@dataclass(frozen=True)
class SplitStats:
    """One split.

    Attributes:
        counts: Records (images or tracklets), identities, cameras, distractors, junk.
        per_identity: Records an identity, distractors apart.
        cameras_per_identity: Known cameras an identity, distractors apart.
        per_camera: Records of each camera; -1 is the unknown one.
        identities_per_camera: Identities of each camera, distractors apart.
        frames: Frames of tracklets, None of images.
        width: Pixels; of the files whose size was read.
        height: Pixels.
        sizes_read: How many files' sizes were read.
        unreadable: How many of the files looked at tell no size.
    """

    counts: SplitCounts
    per_identity: Distribution | None
    cameras_per_identity: Distribution | None
    per_camera: dict[int, int]
    identities_per_camera: dict[int, int]
    frames: FrameCounts | None
    width: Distribution | None
    height: Distribution | None
    sizes_read: int
    unreadable: int


@dataclass(frozen=True)
class DatasetStats:
    """What `dataset_stats` found.

    Attributes:
        root: The folder or table that was asked for.
        name: The dataset's name.
        kind: The loader that read it.
        variant: Which layout matched.
        unit: What is counted: "images" or "tracklets".
        splits: Each split's numbers.
        identities_in_train_and_test: Identities that are trained on and tested with.
    """

    root: Path
    name: str
    kind: str
    variant: str
    unit: str
    splits: dict[str, SplitStats]
    identities_in_train_and_test: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; paths are text."""
        plain: dict[str, Any] = plain_values(asdict(self))
        return plain


def dataset_stats(
    root: str | Path, kind: str = "auto", *, sizes: int | None = 2_000, workers: int = 2, **options: Any
) -> DatasetStats:
    """Counts what a dataset, of images or of tracklets, is made of.

    Args:
        root: Folder or table.
        kind: As for `load_any_dataset`.
        sizes: Of how many files a split the size is read (from the header; evenly chosen); None: of all.
        workers: Threads that read files.
        options: Further arguments of `load_any_dataset`.

    Raises:
        DataError: if no dataset is recognised.
    """
    dataset = load_any_dataset(root, kind, **options)
    video = holds_tracklets(dataset)
    splits = {}
    for split in SPLITS:
        records: Sequence[Record] = dataset.subset(split)
        people = [record for record in records if split != "gallery" or record.pid != dataset.distractor_pid]
        seen: dict[int, set[int]] = defaultdict(set)
        whom: dict[int, set[int]] = defaultdict(set)
        for record in people:
            whom[record.camid].add(record.pid)
            if record.camid >= 0:
                seen[record.pid].add(record.camid)
        measured = _sizes(records, sizes, workers)
        known = [size for size in measured if size is not None]
        splits[split] = SplitStats(
            counts=dataset.counts(split),
            per_identity=Distribution.of(Counter(record.pid for record in people).values()),
            cameras_per_identity=Distribution.of(len(cameras) for cameras in seen.values()),
            per_camera=dict(sorted(Counter(record.camid for record in records).items())),
            identities_per_camera={camera: len(pids) for camera, pids in sorted(whom.items())},
            frames=frame_counts(records) if video else None,
            width=Distribution.of(width for width, _ in known),
            height=Distribution.of(height for _, height in known),
            sizes_read=len(known),
            unreadable=len(measured) - len(known),
        )
    trained = {record.pid for record in dataset.train}
    tested = {record.pid for record in (*dataset.query, *dataset.gallery)}
    return DatasetStats(
        dataset.root,
        dataset.name,
        dataset.kind,
        dataset.variant,
        "tracklets" if video else "images",
        splits,
        len(trained & tested),
    )


def _sizes(records: Sequence[Record], limit: int | None, workers: int) -> list[tuple[int, int] | None]:
    """(width, height) of evenly chosen files, None of one that tells none."""
    files = [path for record in records for path in files_of(record)]
    if limit is not None and len(files) > limit:
        files = [files[place * len(files) // limit] for place in range(limit)]
    with ThreadPoolExecutor(workers) as pool:
        return list(console.track(pool.map(_size, files), "reading sizes", len(files)))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
