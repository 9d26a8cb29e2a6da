"""CCVID, people who change clothes: train.txt, query.txt and gallery.txt with a tracklet a line.

Source: Gu et al., "Clothes-Changing Person Re-identification with RGB Modality Only", CVPR 2022.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from motarfuse.data.files import existing_folder, list_folder, name_some
from motarfuse.data.layout import choose_one, find_below, place_of, read_lines
from motarfuse.data.records import SPLITS, UNKNOWN_CAMERA
from motarfuse.data.tracklet_files import Collector, entries_of, entry_below, last_number, list_names
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.data.video_published import CCVID, compare_with_published, looks_like, note_frames
from motarfuse.errors import DataError

# session1/001_01: the person, and the view it was filmed from, counted from 1.
TRACKLET = re.compile(r"(\d+)_(\d+)", re.ASCII)
# Session 3 was filmed at another place: its views are other cameras than the twelve of sessions 1 and 2.
OTHER_PLACE, NUM_VIEWS = "session3", 12
LISTS = tuple(f"{split}.txt" for split in SPLITS)


@dataclass
class ClothesTrackletDataset(TrackletDataset):
    """Tracklets of people who change clothes.

    Attributes:
        clothes: What the person wears in each tracklet, by the tracklet's name; labels of one person are comparable.
    """

    clothes: dict[str, str] = field(default_factory=dict)


def _fits(folder: Path) -> bool:
    entries = entries_of(folder)
    if entries is None or not any(name in entries for name in LISTS):
        return False
    lists = [folder / entries[name] for name in LISTS if name in entries]
    return any(_is_list(path) for path in lists if path.is_file())


def _is_list(path: Path) -> bool:
    """Whether the first line is: a tracklet's folder, an identity, clothes."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            words = file.readline().split()
    except (OSError, UnicodeDecodeError):
        return False
    return len(words) == 3 and words[1].isdecimal() and TRACKLET.fullmatch(words[0].rpartition("/")[2]) is not None


def is_ccvid(root: Path) -> bool:
    """Whether `load_ccvid` would find its lists here."""
    return root.is_dir() and bool(find_below(root, _fits))


def load_ccvid(root: str | Path) -> ClothesTrackletDataset:
    """Loads CCVID.

    A line of a list is ``<session>/<person>_<view> <identity> <clothes>``. The camera is the view, from 0, plus 12 in
    session 3. Frames are ordered by the number in their names.

    Args:
        root: The folder with the lists, or one up to two folders above it.

    Returns:
        The dataset; the standard protocol leaves out what has the query's identity and camera. For the clothes-changing
        one, ``clothes`` tells which gallery tracklets show the query's clothes.

    Raises:
        DataError: No such lists, a line of another form, or none of the tracklets there.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits), "CCVID", "train.txt, query.txt and gallery.txt of three columns")
    variant = f"CCVID lists in {place_of(base, root)}"
    protocol = "CCVID, standard: same identity and camera as the query do not count; the queries are not in the gallery"
    dataset = ClothesTrackletDataset("CCVID", "ccvid", root, variant, [], [], [], protocol=protocol)
    collector = Collector(dataset)
    missing: list[str] = []
    no_view: list[str] = []
    for split, list_name in zip(SPLITS, LISTS, strict=True):
        path = entry_below(base, list_name)
        if path is None:
            dataset.notes.append(f"no {list_name}: that split is empty")
            continue
        for number, line in read_lines(path):
            place, pid, clothes = _parse(path, number, line)
            folder = base / place
            camid = _camera(place)
            if camid == UNKNOWN_CAMERA:
                no_view.append(place)
            if not folder.is_dir():
                missing.append(place)
                collector.leave_out(folder, f"{list_name} names it, but there is no such folder", place)
                continue
            tracklet = collector.build(split, place, pid, camid, folder, list_names(folder).images, last_number)
            collector.add(split, tracklet)
            if tracklet is not None:
                dataset.clothes[tracklet.name] = clothes
    if no_view:
        dataset.notes.append(f"{len(no_view)} tracklets do not say their view, camera unknown: {name_some(no_view)}")
    if not any(dataset.subset(split) for split in SPLITS):
        inside = name_some(path.name for path in list_folder(base)[1]) or "no folder"
        raise DataError(
            f"{base}: none of the {len(missing)} folders of the lists is there ({name_some(missing)}); found {inside}"
        )
    collector.report()
    if looks_like(dataset, CCVID, base.resolve().parts[-1:], "ccvid"):
        compare_with_published(dataset, CCVID)
    else:
        dataset.name = base.resolve().name
    note_frames(dataset)
    return dataset


def _parse(path: Path, number: int, line: str) -> tuple[str, int, str]:
    words = line.rsplit(maxsplit=2)
    if len(words) != 3 or not re.fullmatch(r"-?\d+", words[1], re.ASCII):
        raise DataError(
            f"{path}, line {number}: {line!r} is not <tracklet's folder> <identity> <clothes>, such as "
            "session1/001_01 001 u0_l0_s0_c0_a0"
        )
    return words[0].replace("\\", "/"), int(words[1]), words[2]


def _camera(place: str) -> int:
    """Camera from the last two folders of a line's path, as the list writes them."""
    parts = place.split("/")
    match = TRACKLET.fullmatch(parts[-1])
    if match is None or int(match.group(2)) == 0:
        return UNKNOWN_CAMERA
    return int(match.group(2)) - 1 + (NUM_VIEWS if OTHER_PLACE in parts[:-1] else 0)
