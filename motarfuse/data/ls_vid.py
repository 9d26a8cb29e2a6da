"""LS-VID: lists with a prefix of file names a tracklet, in the three layouts that are in use.

Source: Li et al., "Global-Local Temporal Representations for Video Person Re-Identification", ICCV 2019.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from motarfuse.data.files import existing_folder, name_some
from motarfuse.data.layout import choose_one, find_below, place_of, read_lines
from motarfuse.data.matrix_files import read_integers
from motarfuse.data.records import UNKNOWN_CAMERA
from motarfuse.data.tracklet_files import NO_FRAME, Collector, divide_test, entry_below, list_names
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.data.video_published import (
    LS_VID,
    LS_VID_WITHOUT_QUERIES,
    compare_with_published,
    looks_like,
    note_frames,
)
from motarfuse.errors import DataError

# Where the lists lie, and where the queries are; the first that is there is taken.
LISTS = (("list_sequence",), ("info", "list_sequence"))
QUERIES = (
    ("test", "data", "info_test.mat"),
    ("info", "data", "info_test.mat"),
    ("test", "query.npy"),
    ("data", "info_test.mat"),
    ("info", "query.npy"),
)
CAMERAS = (("test", "info_test.npy"), ("info", "info_test.npy"))
# Four fields between underscores; the third is the camera, from 1, the second the frame.
CAMERA_FIELD, FRAME_FIELDS = 2, (1, 3)
OFFICIAL = "LS-VID: the gallery holds the queries; same identity and camera as the query do not count"
WITHOUT_QUERIES = "LS-VID without the queries in the gallery"


def _list(base: Path, split: str) -> Path | None:
    found = (entry_below(base, *parts, f"list_seq_{split}.txt") for parts in LISTS)
    return next((path for path in found if path is not None), None)


def _fits(folder: Path) -> bool:
    return _list(folder, "train") is not None or _list(folder, "test") is not None


def is_ls_vid(root: Path) -> bool:
    """Whether `load_ls_vid` would find its lists here."""
    return root.is_dir() and bool(find_below(root, _fits))


@dataclass(frozen=True)
class _Line:
    """A line of a list: start of the files' names relative to the base, and identity."""

    prefix: str
    pid: int


def load_ls_vid(root: str | Path, *, queries_in_gallery: bool = True) -> TrackletDataset:
    """Loads LS-VID.

    A line of ``list_seq_train.txt`` or ``list_seq_test.txt`` is ``<start of the files' names> <identity>``; a file
    belongs to it when its name goes on with something else than a digit. Queries are numbered by lines of the test
    list, from 1. The three layouts: ``list_sequence`` with ``test/data/info_test.mat`` (HDF5, variable ``query``),
    ``info/list_sequence`` with ``info/data/info_test.mat``, and ``list_sequence`` with ``test/query.npy`` and
    ``test/info_test.npy``, whose fourth column is the camera from 1. Without the latter the camera is the third field
    of a file's name.

    Args:
        root: The folder with the lists, or one up to two folders above it.
        queries_in_gallery: The gallery is the whole test set, as published. False takes the queries out of it.

    Raises:
        DataError: No such lists, a line or a query that does not fit, or none of the files there.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits), "LS-VID", "list_sequence/list_seq_train.txt or list_seq_test.txt")
    dataset = TrackletDataset(base.resolve().name, "ls-vid", root, "", [], [], [])
    collector = Collector(dataset)
    folders: dict[Path, list[str]] = {}
    tracklets: dict[str, list[Tracklet | None]] = {}
    layout: list[str] = []
    for split in ("train", "test"):
        path = _list(base, split)
        if path is None:
            dataset.notes.append(f"no list_seq_{split}.txt: that split is empty")
            tracklets[split] = []
            continue
        layout.append(path.relative_to(base).as_posix())
        lines = [_parse(path, number, line) for number, line in read_lines(path)]
        cameras = _cameras(base, len(lines), layout) if split == "test" else None
        tracklets[split] = [
            _tracklet(collector, split, base, line, None if cameras is None else cameras[place], folders)
            for place, line in enumerate(lines)
        ]
    for tracklet in tracklets["train"]:
        collector.add("train", tracklet)
    places = _queries(base, len(tracklets["test"]), layout) if tracklets["test"] else []
    if tracklets["test"] and not places:
        dataset.notes.append("no info_test.mat or query.npy says which test tracklets are queries: that split is empty")
    divide_test(dataset, tracklets["test"], places, queries_in_gallery)
    dataset.protocol = OFFICIAL if queries_in_gallery else WITHOUT_QUERIES
    dataset.variant = f"LS-VID layout in {place_of(base, root)} ({', '.join(layout)})"
    if not (dataset.train or dataset.gallery):
        names = name_some(skipped.path.name for skipped in dataset.skipped)
        raise DataError(f"{base}: no file of any tracklet in the lists is there; they start with {names}")
    collector.report()
    known = LS_VID if queries_in_gallery else LS_VID_WITHOUT_QUERIES
    if looks_like(dataset, known, base.resolve().parts[-1:], "lsvid"):
        compare_with_published(dataset, known)
    note_frames(dataset)
    return dataset


def _parse(path: Path, number: int, line: str) -> _Line:
    words = line.rsplit(maxsplit=1)
    if len(words) != 2 or not re.fullmatch(r"-?\d+", words[1], re.ASCII):
        raise DataError(f"{path}, line {number}: {line!r} is not <start of the files' names> <identity>")
    return _Line(words[0].replace("\\", "/").removeprefix("./"), int(words[1]))


def _cameras(base: Path, number: int, layout: list[str]) -> list[int] | None:
    """Camera of each test tracklet, from 0, where a table says it."""
    path = next((path for parts in CAMERAS if (path := entry_below(base, *parts)) is not None), None)
    if path is None:
        return None
    rows = read_integers(path)
    if rows.shape[0] != number or rows.shape[1] < 4 or rows[:, 3].min() < 1:
        raise DataError(
            f"{path}: {rows.shape[0]} rows of {rows.shape[1]} columns; needed are {number}, one for each line of "
            "list_seq_test.txt, with the camera (from 1) in the fourth column"
        )
    layout.append(path.relative_to(base).as_posix())
    cameras: list[int] = (rows[:, 3] - 1).tolist()
    return cameras


def _queries(base: Path, number: int, layout: list[str]) -> list[int]:
    """Places of the queries among the test tracklets, from 0."""
    path = next((path for parts in QUERIES if (path := entry_below(base, *parts)) is not None), None)
    if path is None:
        return []
    layout.append(path.relative_to(base).as_posix())
    values = read_integers(path, "query" if path.suffix == ".mat" else None)
    places: list[int] = (values.ravel() - 1).tolist()
    wrong = next((place for place in places if not 0 <= place < number), None)
    if wrong is not None:
        raise DataError(f"{path}: tracklet {wrong + 1}, but list_seq_test.txt has {number} lines, counted from 1")
    return list(dict.fromkeys(places))


def _tracklet(
    collector: Collector, split: str, base: Path, line: _Line, camid: int | None, folders: dict[Path, list[str]]
) -> Tracklet | None:
    parent, _, start = line.prefix.rpartition("/")
    folder = base / parent if parent else base
    if folder not in folders:
        folders[folder] = list_names(folder).images if folder.is_dir() else []
    names = folders[folder]
    files = []
    for name in names[bisect_left(names, start) :]:
        if not name.startswith(start):
            break
        # 0001_1 is no start of 0001_10_...: a number that goes on is another number.
        if not (start[-1:].isdigit() and name[len(start)].isdigit()):
            files.append(name)
    if not files:
        collector.leave_out(base / line.prefix, NO_FRAME, line.prefix)
        return None
    frames, cameras = _fields(files)
    if camid is None:
        camid = cameras.pop() if len(cameras) == 1 else UNKNOWN_CAMERA
        if camid == UNKNOWN_CAMERA:
            collector.dataset.notes.append(f"{line.prefix}: its files do not name one camera, unknown")
    return collector.build(split, line.prefix, line.pid, camid, folder, files, frames.get)


def _fields(files: list[str]) -> tuple[dict[str, int], set[int]]:
    """Frame number of each file, from the first field that tells all files apart, and the cameras that they name."""
    fields = {name: name.rpartition(".")[0].split("_") for name in files}
    cameras = set()
    for values in fields.values():
        text = values[CAMERA_FIELD] if len(values) == 4 else ""
        cameras.add(int(text) - 1 if text.isdecimal() and int(text) > 0 else UNKNOWN_CAMERA)
    for place in FRAME_FIELDS:
        numbers = {
            name: int(values[place])
            for name, values in fields.items()
            if len(values) == 4 and values[place].isdecimal()
        }
        if len(set(numbers.values())) == len(files):
            return numbers, cameras
    return {}, cameras
