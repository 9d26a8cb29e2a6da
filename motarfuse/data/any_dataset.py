"""One function for a set of images or of tracklets, whichever a path holds, and the files behind a record of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motarfuse.data.market1501 import find_market_folders
from motarfuse.data.records import ImageRecord, ReIDDataset
from motarfuse.data.registry import KINDS, UnknownLayoutError, load_dataset, parse_kind
from motarfuse.data.tracklets import Tracklet
from motarfuse.data.video_registry import VIDEO_KINDS, is_video_dataset, load_video_dataset
from motarfuse.errors import DataError

Record = ImageRecord | Tracklet
AnyDataset = ReIDDataset[ImageRecord] | ReIDDataset[Tracklet]


def load_any_dataset(root: str | Path, kind: str = "auto", **options: Any) -> AnyDataset:
    """A dataset of tracklets where the layout is one of video, else of images.

    Args:
        root: Folder or table.
        kind: A name of `KINDS` or of `VIDEO_KINDS`, or "auto"; options may follow it as text, as for `load_dataset`.
        options: As the kind's ``load`` takes them; None and False ask for nothing.

    Raises:
        DataError: Nothing is there, nothing fits, or the files contradict the layout.
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    name, written = parse_kind(kind)
    if name != "auto" and name not in KINDS and name not in VIDEO_KINDS:
        raise DataError(f"unknown dataset kind {name!r}; supported are auto, {', '.join([*KINDS, *VIDEO_KINDS])}")
    is_video = (name in VIDEO_KINDS and name not in KINDS) or (name == "auto" and is_video_dataset(path))
    if is_video and name == "auto" and path.is_dir() and (images := find_market_folders(path)):
        listed = ", ".join(str(folder.relative_to(path)) for folder in images)
        raise DataError(
            f"{path}: holds tracklets, and images beside them ({listed}); point at one of them, or give its kind"
        )
    if not is_video:
        try:
            return load_dataset(path, kind, **options)
        except UnknownLayoutError as error:
            kinds = "; ".join(f"{one.name}: {one.summary}" for one in VIDEO_KINDS.values())
            raise UnknownLayoutError(f"{error}. Of tracklets: {kinds}") from error
    given = {key: value for key, value in {**written, **options}.items() if value is not None}
    # False asks for nothing only where nothing is the default: queries_in_gallery=False is written by name.
    given = {key: value for key, value in given.items() if value is not False or key in written}
    return load_video_dataset(path, name, **given)


def holds_tracklets(dataset: AnyDataset) -> bool:
    """Whether a dataset is one of tracklets."""
    records = [*dataset.train[:1], *dataset.query[:1], *dataset.gallery[:1]]
    return any(isinstance(record, Tracklet) for record in records)


def files_of(record: Record) -> list[Path]:
    """The image, or the frames in the order of time."""
    return record.paths if isinstance(record, Tracklet) else [record.path]
