"""MSMT17: folders of images and list_{train,val,query,gallery}.txt that say whose they are. Source: Wei et al. 2018."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal

from motarfuse.data.files import existing_folder, name_some
from motarfuse.data.layout import Existing, choose_one, find_below, folders_by_name, place_of, read_lines, skipped_note
from motarfuse.data.published import MSMT17, MSMT17_TRAIN_VAL, compare_with_published
from motarfuse.data.records import ImageRecord, ReIDDataset, Skipped
from motarfuse.errors import DataError

LISTS = {name: f"list_{name}.txt" for name in ("train", "val", "query", "gallery")}
# Folder of the training and of the test images: version 2 has blurred faces, version 1 and copies of it have not.
IMAGE_FOLDERS = {"V2": ("mask_train_v2", "mask_test_v2"), "V1": ("train", "test")}
TRAINING = ("train", "train+val")

# <identity>_<number>_<camera>_<day and time>_<frame>_<box>.jpg, in the base name: folders have underscores as well.
_NAME = re.compile(r"(\d+)_\d+_(\d+)_", re.ASCII)


def _fits(folder: Path) -> bool:
    if not any((folder / LISTS[name]).is_file() for name in ("train", "query", "gallery")):
        return False
    folders = folders_by_name(folder)
    return any(name in folders for pair in IMAGE_FOLDERS.values() for name in pair)


def is_msmt17(root: Path) -> bool:
    """Whether `load_msmt17` would find its lists and folders here."""
    return root.is_dir() and bool(find_below(root, _fits))


def load_msmt17(root: str | Path, *, training: Literal["train", "train+val"] = "train") -> ReIDDataset[ImageRecord]:
    """Loads MSMT17, version 1 or 2.

    A line of a list is ``<folder>/<file> <identity>``. Identities of the training lists are kept; test identities start
    at 0 again in the files, so that they are moved up by the number of training identities (over train and val,
    whatever ``training`` is). Cameras are the third number of the base name, 1..15, and become 0..14.

    Args:
        root: The folder with the lists, or one up to two folders above it.
        training: "train" (30,248 images: torchreid, fast-reid) or "train+val" (32,621: TransReID, SOLIDER). Numbers of
            papers that trained on the one cannot be compared with those of the other.

    Returns:
        The dataset; files of a list that do not exist are in ``skipped``.

    Raises:
        DataError: if no or several such folders are found, a line is not of this form, or none of the files exists.
    """
    root = existing_folder(root)
    if training not in TRAINING:
        raise DataError(f"{root}: training is {training!r}; supported are {', '.join(TRAINING)}")
    base = choose_one(root, find_below(root, _fits), "MSMT17", "folder with list_train.txt and the folders of MSMT17")
    folders = folders_by_name(base)
    version, names = next((v, pair) for v, pair in IMAGE_FOLDERS.items() if any(name in folders for name in pair))
    variant = f"MSMT17 {version} ({names[0]}, {names[1]}) in {place_of(base, root)}, trained on {training}"
    dataset: ReIDDataset[ImageRecord] = ReIDDataset("MSMT17", "msmt17", root, variant, [], [], [])
    lists = {name: _read(base / file) for name, file in LISTS.items() if (base / file).is_file()}
    missing = [LISTS[name] for name in LISTS if name not in lists]
    if missing:
        dataset.notes.append(f"no {' and no '.join(missing)}: nothing of it is read")
    if training == "train+val" and "val" not in lists:
        raise DataError(f"{base}: training on train+val was asked for, but there is no {LISTS['val']}")
    offset = 1 + max((pid for name in ("train", "val") for _, pid, _ in lists.get(name, [])), default=-1)
    if offset:
        dataset.notes.append(
            f"test identities count from 0 in the lists, as training ones do: moved up by {offset:,} here"
        )
    existing = Existing()
    wrong: list[str] = []
    for name in ("train", *(("val",) if training == "train+val" else ()), "query", "gallery"):
        test = name in ("query", "gallery")
        folder = folders.get(names[test], base / names[test])
        for relative, pid, camid in lists.get(name, []):
            path = folder / relative
            if path not in existing:
                dataset.skipped.append(Skipped(path, f"{LISTS[name]} names it, but it does not exist"))
                continue
            if int(path.name.partition("_")[0]) != pid:
                wrong.append(f"{LISTS[name]}: {relative} {pid}")
            split = "train" if name == "val" else name
            dataset.subset(split).append(ImageRecord(path, pid + offset * test, camid))
    if not (dataset.train or dataset.query or dataset.gallery):
        raise DataError(f"{base}: none of the files of the lists exists, e.g. {dataset.skipped[0].path}")
    if wrong:
        dataset.notes.append(f"{len(wrong):,} names start with another identity than their list says: {wrong[0]}")
    dataset.published = MSMT17 if training == "train" else MSMT17_TRAIN_VAL
    dataset.notes.extend(compare_with_published(dataset))
    dataset.notes.extend(skipped_note((one.path.name for one in dataset.skipped), "named by a list but not there"))
    return dataset


def _read(path: Path) -> list[tuple[PurePosixPath, int, int]]:
    """(relative path, identity as listed, camera from 0) of each line."""
    rows = []
    for number, line in read_lines(path):
        relative, _, pid = line.rpartition(" ")
        name = PurePosixPath(relative.strip())
        match = _NAME.match(name.name)
        if not pid.isascii() or not pid.isdigit() or match is None or int(match.group(2)) == 0:
            raise DataError(
                f"{path}, line {number}: {line!r} is not <folder>/<identity>_<number>_<camera from 1>_... <identity>, "
                "e.g. 0000/0000_000_01_0303morning_0008_0.jpg 0"
            )
        rows.append((name, int(pid), int(match.group(2)) - 1))
    double = [str(name) for name, count in Counter(name for name, _, _ in rows).items() if count > 1]
    if double:
        raise DataError(f"{path}: {len(double)} files are listed twice: {name_some(double)}")
    return rows
