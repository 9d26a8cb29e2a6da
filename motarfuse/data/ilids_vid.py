"""iLIDS-VID: sequences/cam1 and cam2 with a folder a person, and ten splits of the people in a MATLAB file.

Source: Wang et al., "Person Re-Identification by Video Ranking", ECCV 2014.
"""

from __future__ import annotations

from pathlib import Path

from motarfuse.data.files import existing_folder, natural_key
from motarfuse.data.layout import choose_one, find_below, place_of
from motarfuse.data.matrix_files import read_integers
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
from motarfuse.data.tracklet_files import Collector, entry_below
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.data.video_published import ILIDS_VID, compare_with_published, note_frames
from motarfuse.errors import DataError

SPLIT_FILE = "train_test_splits_ilidsvid.mat"
SPLIT_FOLDERS = ("train-test people splits", "train_test_people_splits", "train_test_people_split", "info", "splits")
DEPTH = 3  # one toolkit keeps it a folder deeper than the others


def _camera(folder: Path, name: str) -> Path | None:
    return entry_below(folder, "sequences", name)


def _fits(folder: Path) -> bool:
    return None not in (_camera(folder, "cam1"), _camera(folder, "cam2"))


def is_ilids_vid(root: Path) -> bool:
    """Whether `load_ilids_vid` would find its folders here."""
    return root.is_dir() and bool(find_below(root, _fits, DEPTH))


def load_ilids_vid(root: str | Path, *, split: int = 0, split_seed: int | None = None) -> TrackletDataset:
    """Loads one of the splits of iLIDS-VID.

    ``train_test_splits_ilidsvid.mat`` (its variable ``ls_set``: a split a row, people counted from 1 in the natural
    order of their folders, the first half tests) lies beside ``i-LIDS-VID``, in it, or in "train-test people splits";
    a ``splits.json`` (`read_splits`) is taken where there is none. Query is camera 1, gallery camera 2.

    Args:
        root: The folder with ``sequences``, or one up to three folders above it.
        split: Which of the splits, from 0.
        split_seed: Generates the splits (`generate_splits`) instead of reading a file; such a split is nobody else's.

    Raises:
        DataError: No such folders, no file with splits, one that does not fit the folders, or no such split.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits, DEPTH), "iLIDS-VID", "sequences/cam1 and sequences/cam2")
    cameras = list_cameras(_camera(base, "cam1"), _camera(base, "cam2"))
    variant = f"iLIDS-VID layout in {place_of(base, root)}"
    dataset = TrackletDataset("iLIDS-VID", "ilids-vid", root, variant, [], [], [])
    if split_seed is None:
        path = _find_splits(base, root)
        splits = _read_matlab(path, cameras) if path.suffix.lower() == ".mat" else read_splits(path)
        source = path.name
    else:
        path, source = base, f"splits generated from seed {split_seed}"
        splits = [PeopleSplit(**one) for one in generate_splits(cameras.in_both, split_seed)]
        dataset.notes.append(f"{source}: results do not compare with published ones")
    dataset.protocol = (
        f"split {split} of {len(splits)} ({source}): query from camera 1, gallery from camera 2; results are published "
        f"as the mean over all {NUM_SPLITS}"
    )
    collector = Collector(dataset)
    add_people(collector, cameras, pick_split(splits, split, path), source)
    collector.report()
    if not (dataset.train or dataset.query):
        raise DataError(f"{base}: none of the people in {source} has a folder with images in sequences/cam1 and cam2")
    compare_with_published(dataset, ILIDS_VID)
    note_frames(dataset)
    return dataset


def _find_splits(base: Path, root: Path) -> Path:
    for name in (SPLIT_FILE, "splits.json"):
        for place in (base, base.parent):
            for parts in ((name,), *((folder, name) for folder in SPLIT_FOLDERS)):
                path = entry_below(place, *parts)
                if path is not None:
                    return path
    raise DataError(
        f"{root}: no {SPLIT_FILE} beside {base.name}, in it or in '{SPLIT_FOLDERS[0]}'; add the file of the dataset's "
        "archive, or a splits.json, or generate splits of your own with split_seed=0"
    )


def _read_matlab(path: Path, cameras: Cameras) -> list[PeopleSplit]:
    people = sorted({*cameras.people[0], *cameras.people[1]}, key=natural_key)
    rows = read_integers(path, "ls_set")
    splits = []
    for number, row in enumerate(rows.tolist()):
        if sorted(row) != list(range(1, len(people) + 1)):
            raise DataError(
                f"{path}, split {number}: orders {len(row)} people numbered {min(row)} to {max(row)}, but "
                f"{len(people)} people have a folder; the numbers count folders, so that all of them have to be there"
            )
        half = len(row) // 2
        names = [people[place - 1] for place in row]
        splits.append(PeopleSplit(names[half:], names[:half]))
    return splits
