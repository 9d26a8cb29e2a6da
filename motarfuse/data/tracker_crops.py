"""Crops of a tracker or a MOTChallenge conversion: imgs/<sequence>_<track>/000000.jpg, and meta with the labels.

The layout is that of mmtracking's conversion (``reid/imgs``, ``reid/meta``). Such crops know no cameras.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from motarfuse.data.files import existing_folder, is_image_name, name_some, natural_key
from motarfuse.data.layout import choose_one, find_below, place_of, read_lines
from motarfuse.data.records import UNKNOWN_CAMERA
from motarfuse.data.tracklet_files import MISSING, Collector, entries_of, entry_below, last_number, list_names
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.data.video_published import note_frames
from motarfuse.errors import DataError

# train_80.txt and val_20.txt: the share of the tracks, in percent. train.txt holds all of them and is no third split.
TRAIN_LIST = re.compile(r"train_\d+\.txt", re.ASCII | re.IGNORECASE)
TEST_LIST = re.compile(r"(val|test)(_\d+)?\.txt", re.ASCII | re.IGNORECASE)
ALL_LIST = "train.txt"
TRACK_FOLDER = re.compile(r".+_\d+", re.ASCII)
NO_LABEL = "no list names it"


def _fits(folder: Path) -> bool:
    images = entry_below(folder, "imgs")
    if images is None or not images.is_dir():
        return False
    if entry_below(folder, "meta") is not None:
        return bool(_lists(folder))
    tracks = list_names(images).folders
    return bool(tracks) and all(TRACK_FOLDER.fullmatch(name) for name in tracks)


def _lists(base: Path) -> dict[str, Path]:
    """The lists by split: "train" and "test"."""
    meta = entry_below(base, "meta")
    entries = {} if meta is None else entries_of(meta) or {}
    found: dict[str, Path] = {}
    for name in sorted(entries.values(), key=natural_key):
        for split, pattern in (("train", TRAIN_LIST), ("test", TEST_LIST)):
            if pattern.fullmatch(name) and meta is not None:
                found.setdefault(split, meta / name)
    if not found and meta is not None and ALL_LIST in entries:
        found["train"] = meta / entries[ALL_LIST]
    return found


def is_tracker_crops(root: Path) -> bool:
    """Whether `load_tracker_crops` would find its folders here."""
    return root.is_dir() and bool(find_below(root, _fits))


@dataclass
class _Track:
    """Files of one label under one folder."""

    label: int | None
    files: list[str] = field(default_factory=list)


def load_tracker_crops(root: str | Path, *, length: int = 8, gap: int = 10) -> TrackletDataset:
    """Loads the crops of a tracker.

    A folder below ``imgs`` is a track, its files are ordered by the number in their names. A line of a list in ``meta``
    is ``<sequence>_<track>/<file> <label>``; labels of the training list and the validation list both count from 0, so
    that those of the latter are numbered on after the former. Without ``meta`` every track is for training.

    Nobody knows the cameras, and a track is all there is of a person, so that no tracklet could be found again. Each
    validation track is therefore halved in time: pieces of the first half are queries (camera 0), pieces of the second
    half, from ``gap`` crops later on, the gallery (camera 1). It measures whether a person is known again a little
    later, which is easier than under another camera.

    Args:
        root: The folder with ``imgs``, or one up to two folders above it.
        length: Most frames of a piece, at least 1.
        gap: Crops left out between the halves, at least 0.

    Raises:
        DataError: No such folders, a line of another form, or no file of any track there.
        ValueError: ``length`` or ``gap`` is too small.
    """
    if length < 1 or gap < 0:
        raise ValueError(f"length must be at least 1 and gap at least 0, got {length} and {gap}")
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits), "tracker crops", "imgs/<sequence>_<track>/*.jpg")
    images = entry_below(base, "imgs") or base / "imgs"
    dataset = TrackletDataset(base.resolve().name, "tracker-crops", root, "", [], [], [])
    collector = Collector(dataset)
    present = {name: list_names(images / name).images for name in list_names(images).folders}
    lists = _lists(base)
    dataset.variant = f"tracker crops in {place_of(base, root)}, " + (
        f"labels of meta/{' and meta/'.join(path.name for path in lists.values())}" if lists else "no meta"
    )
    if not lists:
        dataset.notes.append("no lists in meta: every track is for training")
        for number, (folder, names) in enumerate(present.items()):
            _add(collector, "train", images / folder, number, names)
    else:
        named: set[str] = set()
        offset = tested = 0
        for split in ("train", "test"):
            if split not in lists:
                dataset.notes.append(f"no list of the {split} tracks in meta: that split is empty")
                continue
            tracks = _read_list(collector, lists[split], images, present, named)
            labels = {label for _, label in tracks}
            for (folder, label), names in sorted(tracks.items(), key=lambda item: natural_key(item[0][0])):
                tracklet = _add(collector, split, images / folder, label + offset, names)
                if split == "test" and tracklet is not None:
                    tested += 1
                    _halve(dataset, tracklet, length, gap)
            offset += max(labels, default=-1) + 1
        unnamed = sum(len(names) for names in present.values()) - len(named)
        if unnamed:
            dataset.notes.append(f"{unnamed:,} images in imgs are in no list and not read")
        if len(lists) == 2:
            dataset.notes.append("labels of both lists count from 0: those of the test list are numbered on")
        if tested:
            _note_protocol(dataset, length, gap, tested)
    collector.report()
    if not (dataset.train or dataset.gallery):
        raise DataError(f"{base}: no crop of any track is there (imgs holds {name_some(present) or 'no folder'})")
    note_frames(dataset)
    return dataset


def _add(collector: Collector, split: str, folder: Path, pid: int, names: list[str]) -> Tracklet | None:
    """Builds a tracklet; one for training joins its split."""
    tracklet = collector.build(split, folder.name, pid, UNKNOWN_CAMERA, folder, names, last_number)
    if tracklet is not None:
        collector.dataset.identity_names.setdefault(pid, folder.name)
        if split == "train":
            collector.add(split, tracklet)
    return tracklet


def _read_list(
    collector: Collector, path: Path, images: Path, present: dict[str, list[str]], named: set[str]
) -> dict[tuple[str, int], list[str]]:
    """Files of each track and label that are there."""
    known = {folder: set(names) for folder, names in present.items()}
    tracks: dict[tuple[str, int], list[str]] = defaultdict(list)
    for number, line in read_lines(path):
        words = line.rsplit(maxsplit=1)
        folder, _, name = words[0].replace("\\", "/").rpartition("/")
        folder = folder.rpartition("/")[2]
        if len(words) != 2 or not words[1].isdecimal() or not folder or not is_image_name(name):
            raise DataError(f"{path}, line {number}: {line!r} is not <sequence>_<track>/<file> <label>")
        if name in known.get(folder, ()):
            tracks[folder, int(words[1])].append(name)
            named.add(f"{folder}/{name}")
        else:
            collector.leave_out(images / folder / name, MISSING, folder)
    return tracks


def _halve(dataset: TrackletDataset, tracklet: Tracklet, length: int, gap: int) -> None:
    """Pieces of the first half to the queries, pieces of the second half to the gallery."""
    middle = len(tracklet) // 2
    for camid, places, split in (
        (0, range(middle - gap // 2), dataset.query),
        (1, range(middle + gap - gap // 2, len(tracklet)), dataset.gallery),
    ):
        if len(places):
            half = replace(tracklet.select(places, f"{tracklet.name}/{'ab'[camid]}"), camid=camid)
            split.extend(half.cut(length))


def _note_protocol(dataset: TrackletDataset, length: int, gap: int, tested: int) -> None:
    dataset.protocol = (
        f"tracks halved in time, {gap} crops apart, in pieces of at most {length} frames: first half query (camera 0), "
        "second half gallery (camera 1)"
    )
    halved = {one.pid for one in dataset.gallery} & {one.pid for one in dataset.query}
    dataset.notes.append(
        f"{len(dataset.query):,} queries and {len(dataset.gallery):,} gallery pieces of {tested:,} test tracks, of "
        f"which {tested - len(halved):,} are too short for two halves"
    )
