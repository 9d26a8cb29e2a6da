"""PRID2011, multi-shot: cam_a and cam_b with a folder a person, and splits of the people in a JSON file.

Sources: Hirzer et al., "Person Re-Identification by Descriptive and Discriminative Classification", SCIA 2011; the
protocol of Wang et al., ECCV 2014.
"""

from __future__ import annotations

import re
from pathlib import Path

from motarfuse.data.files import existing_folder, name_some
from motarfuse.data.layout import choose_one, find_below, place_of
from motarfuse.data.people_splits import (
    NUM_SPLITS,
    Cameras,
    PeopleSplit,
    add_people,
    generate_splits,
    list_cameras,
    pick_split,
    read_splits,
)
from motarfuse.data.tracklet_files import Collector, entry_below, list_names
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.data.video_published import PRID2011, compare_with_published, note_frames
from motarfuse.errors import DataError

SPLIT_FILE = "splits_prid2011.json"
# Only the first 200 people were seen by both cameras: from 201 on, a number means two different people.
NUM_SHARED = 200
MIN_FRAMES = 22
"""Wang et al. use the people with more than 21 frames under both cameras."""
_NUMBER = re.compile(r"person_?(\d+)", re.ASCII | re.IGNORECASE)


def _camera(folder: Path, name: str) -> Path | None:
    return entry_below(folder, "multi_shot", name)


def _fits(folder: Path) -> bool:
    return None not in (_camera(folder, "cam_a"), _camera(folder, "cam_b"))


def _find(root: Path) -> tuple[Path, Cameras]:
    base = choose_one(root, find_below(root, _fits), "PRID2011", "multi_shot/cam_a and multi_shot/cam_b")
    return base, list_cameras(_camera(base, "cam_a"), _camera(base, "cam_b"))


def is_prid2011(root: Path) -> bool:
    """Whether `load_prid2011` would find its folders here."""
    return root.is_dir() and bool(find_below(root, _fits))


def load_prid2011(root: str | Path, *, split: int = 0, split_seed: int | None = None) -> TrackletDataset:
    """Loads one of the splits of PRID2011.

    ``splits_prid2011.json`` (`motarfuse.data.people_splits.read_splits`) lies in the folder with ``multi_shot``, in the
    one above, or in ``info`` of either. It is not part of the dataset's archive: without it, splits have to be asked
    for with ``split_seed``. Query is camera A, gallery camera B.

    Args:
        root: The folder with ``multi_shot``, or one up to two folders above it.
        split: Which of the splits, from 0.
        split_seed: Generates ten splits (`generate_prid2011_splits`) instead of reading a file; such a split is nobody
            else's, and a note says so.

    Raises:
        DataError: No such folders, no file with splits and no seed, a wrong file, or no such split.
    """
    root = existing_folder(root)
    base, cameras = _find(root)
    variant = f"PRID2011 layout (multi-shot) in {place_of(base, root)}"
    dataset = TrackletDataset("PRID2011", "prid2011", root, variant, [], [], [])
    if split_seed is None:
        path = _find_splits(base, root)
        splits = read_splits(path)
        source = path.name
    else:
        path, source = base, f"splits generated from seed {split_seed}"
        people = _long_enough(cameras)
        splits = [PeopleSplit(**one) for one in generate_splits(people, split_seed)]
        dataset.notes.append(
            f"{source} over the {len(people)} people with at least {MIN_FRAMES} frames under both cameras: results do "
            "not compare with published ones"
        )
    dataset.protocol = (
        f"split {split} of {len(splits)} ({source}): query from camera A, gallery from camera B; results are published "
        f"as the mean over all {NUM_SPLITS}"
    )
    collector = Collector(dataset)
    chosen = pick_split(splits, split, path)
    _check_shared(chosen, path)
    add_people(collector, cameras, chosen, source)
    collector.report()
    if not (dataset.train or dataset.query):
        raise DataError(f"{base}: none of the people in {source} has a folder with images in cam_a and cam_b")
    compare_with_published(dataset, PRID2011)
    note_frames(dataset)
    return dataset


def generate_prid2011_splits(root: str | Path, seed: int) -> list[dict[str, list[str]]]:
    """Ten splits in the form of ``splits_prid2011.json``, of the people that the published protocol uses.

    These are people 1 to 200 with at least 22 frames under both cameras; `generate_splits` documents the order.

    Args:
        root: As of `load_prid2011`.
        seed: Any integer.
    """
    return generate_splits(_long_enough(_find(existing_folder(root))[1]), seed)


def _number(name: str) -> int | None:
    match = _NUMBER.fullmatch(name)
    return None if match is None else int(match.group(1))


def _long_enough(cameras: Cameras) -> list[str]:
    shared = [name for name in cameras.in_both if 1 <= (_number(name) or 0) <= NUM_SHARED]
    people = [
        name
        for name in shared
        if all(len(list_names(folder / name).images) >= MIN_FRAMES for folder in cameras.folders)
    ]
    if len(people) < 2:
        raise DataError(
            f"{cameras.folders[0].parent}: {len(people)} of person_0001 to person_{NUM_SHARED:04d} have at least "
            f"{MIN_FRAMES} frames under both cameras; at least 2 are needed for a split"
        )
    return people


def _check_shared(split: PeopleSplit, path: Path) -> None:
    wrong = [name for name in (*split.train, *split.test) if (_number(name) or 0) > NUM_SHARED]
    if wrong:
        raise DataError(
            f"{path}: names {name_some(wrong)}; from person_{NUM_SHARED + 1:04d} on, a number stands for one person in "
            "cam_a and for another in cam_b"
        )


def _find_splits(base: Path, root: Path) -> Path:
    for place in (base, base.parent):
        for parts in ((SPLIT_FILE,), ("info", SPLIT_FILE)):
            path = entry_below(place, *parts)
            if path is not None:
                return path
    raise DataError(
        f"{root}: no {SPLIT_FILE} beside multi_shot, one folder above or in info; it is not part of the dataset's "
        "archive. Add it, or generate splits of your own with split_seed=0"
    )
