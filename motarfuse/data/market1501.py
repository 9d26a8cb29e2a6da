"""Datasets in the layout of Market-1501: bounding_box_train, query, bounding_box_test; labels in the file names.

Market-1501, DukeMTMC-reID, Occluded-Duke, CUHK03-NP and SynthPed come in it. Source of the layout: Zheng et al. 2015.
"""

from __future__ import annotations

from pathlib import Path

from motarfuse.data.files import existing_folder, list_folder, name_some, parse_market_name
from motarfuse.data.layout import SEARCH_DEPTH, find_below, folders_by_name, place_of
from motarfuse.data.published import compare_with_published, find_published
from motarfuse.data.records import DISTRACTOR_PID, JUNK_PID, SPLITS, UNKNOWN_CAMERA, ImageRecord, ReIDDataset, Skipped
from motarfuse.errors import DataError

SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
EXTRA_DISTRACTORS_FOLDER = "images"


def find_market_folders(root: Path) -> list[Path]:
    """Every folder at or below the root that holds bounding_box_train or bounding_box_test, nearest first.

    A folder that does is not searched further, and none deeper than `SEARCH_DEPTH` is looked at.
    """
    return find_below(
        root, lambda folder: bool({"bounding_box_train", "bounding_box_test"} & set(folders_by_name(folder)))
    )


def is_market1501(root: Path) -> bool:
    """Whether `load_market1501` would find its folders here."""
    return root.is_dir() and bool(find_market_folders(root))


def load_market1501(root: str | Path, *, extra_distractors: bool = False) -> ReIDDataset[ImageRecord]:
    """Loads a dataset in the layout of Market-1501.

    Labels are read from the start of each base name, ``<identity>_c<camera>``; cameras become 0-based. Identity -1 is
    junk and dropped, identity 0 stays in the gallery as a distractor. Names that do not match are listed in
    ``skipped``.

    Args:
        root: The folder with bounding_box_train, query and bounding_box_test, or one up to two folders above it.
        extra_distractors: Adds the 500,000 distractors of the folder ``images`` to the gallery, as identity 0; without
            a camera in their name they have an unknown one.

    Returns:
        The dataset; a split whose folder is missing is empty and noted.

    Raises:
        DataError: if no or several such folders are found, or no image in them has a name of this form.
    """
    root = existing_folder(root)
    base = _choose(root)
    folders = {path.name.lower(): path for path in list_folder(base)[1]}
    variant = f"Market-1501 layout in {place_of(base, root)}"
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(base.name, "market1501", root, variant, [], [], [])
    missing = []
    for split, name in SPLIT_FOLDERS.items():
        if name in folders:
            _read_split(dataset, split, folders[name])
        else:
            missing.append(name)
    if missing:
        dataset.notes.append(f"no folder {' and no folder '.join(missing)}: that split is empty")
    if not any(dataset.subset(split) for split in SPLITS):
        names = name_some(skipped.path.name for skipped in dataset.skipped) or "no image at all"
        raise DataError(
            f"{base}: no image with a name like 0002_c1s1_000451_03.jpg (<identity>_c<camera from 1>...) in "
            f"{', '.join(name for name in SPLIT_FOLDERS.values() if name in folders)}; found {names}"
        )
    _name_distractors(dataset)
    dataset.published = find_published(base.resolve().parts[-2:], {name: len(dataset.subset(name)) for name in SPLITS})
    if dataset.published is not None:
        dataset.name = dataset.published.name
        dataset.notes.extend(compare_with_published(dataset))
    if extra_distractors:
        _add_extra_distractors(dataset, base, folders)
    if dataset.skipped:
        dataset.notes.append(
            f"{len(dataset.skipped)} images skipped, their names are not <identity>_c<camera from 1>...: "
            + name_some(skipped.path.name for skipped in dataset.skipped)
        )
    return dataset


def _choose(root: Path) -> Path:
    found = find_market_folders(root)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(path.relative_to(root)) for path in found)
        raise DataError(f"{root}: several datasets in the Market-1501 layout below it ({listed}); point at one of them")
    hint = f"; did you mean its parent {root.parent}?" if root.name.lower() in SPLIT_FOLDERS.values() else ""
    inside = name_some(path.name for path in list_folder(root)[1]) or "no folder"
    raise DataError(
        f"{root}: neither bounding_box_train nor bounding_box_test here or up to {SEARCH_DEPTH} folders below "
        f"(found {inside}){hint}"
    )


def _read_split(dataset: ReIDDataset[ImageRecord], split: str, folder: Path) -> None:
    images, subfolders, others = list_folder(folder)
    records = dataset.subset(split)
    for path in images:
        labels = parse_market_name(path.name)
        if labels is None:
            dataset.skipped.append(Skipped(path, "the name is not <identity>_c<camera from 1>..."))
        elif labels[0] == JUNK_PID:
            dataset.junk[split] = dataset.junk.get(split, 0) + 1
        else:
            records.append(ImageRecord(path, *labels))
    if others:
        dataset.notes.append(f"{folder.name}: {len(others)} files are no images ({name_some(p.name for p in others)})")
    if subfolders:
        dataset.notes.append(
            f"{folder.name}: {len(subfolders)} folders inside are not read ({name_some(p.name for p in subfolders)})"
        )


def _name_distractors(dataset: ReIDDataset[ImageRecord]) -> None:
    """Identity 0 is a distractor unless somebody numbers real people from 0, which train or query tell."""
    if any(record.pid == DISTRACTOR_PID for record in (*dataset.train, *dataset.query)):
        dataset.notes.append("identity 0 is in train or query: identities count from 0 here, it is no distractor")
    elif any(record.pid == DISTRACTOR_PID for record in dataset.gallery):
        dataset.distractor_pid = DISTRACTOR_PID


def _add_extra_distractors(dataset: ReIDDataset[ImageRecord], base: Path, folders: dict[str, Path]) -> None:
    folder = folders.get(EXTRA_DISTRACTORS_FOLDER)
    images = list_folder(folder)[0] if folder is not None else []
    if not images:
        raise DataError(f"{base}: extra distractors were asked for, but there are no images in {base / 'images'}")
    if any(record.pid == DISTRACTOR_PID for record in dataset.query):
        raise DataError(f"{base}: extra distractors get identity 0, which is a person of the query set here")
    for path in images:
        labels = parse_market_name(path.name)
        dataset.gallery.append(ImageRecord(path, DISTRACTOR_PID, UNKNOWN_CAMERA if labels is None else labels[1]))
    dataset.distractor_pid = DISTRACTOR_PID
    dataset.notes.append(f"{len(images):,} extra distractors of {EXTRA_DISTRACTORS_FOLDER}/ added to the gallery")
