"""Datasets with one folder per identity: root/<identity>/*.jpg, or the same below train, query and gallery."""

from __future__ import annotations

from pathlib import Path

from motarfuse.data.files import existing_folder, is_image_name, list_folder, name_some, scan_images
from motarfuse.data.identities import cameras_from_names, number_identities
from motarfuse.data.records import JUNK_PID, ImageRecord, ReIDDataset
from motarfuse.errors import DataError

# The first name that exists is the split's folder: where train_all is there, train and val are parts of it.
SPLIT_NAMES = {
    "train": ("train_all", "train"),
    "query": ("query", "probe"),
    "gallery": ("gallery", "test"),
}


def is_folder_per_identity(root: Path) -> bool:
    """Whether `load_folder` would find identities here: split folders, or folders with images directly inside."""
    if not root.is_dir():
        return False
    subfolders = list_folder(root)[1]
    if any(path.name.lower() in names for path in subfolders for names in SPLIT_NAMES.values()):
        return True
    return any(_holds_images(folder) for folder in subfolders)


def _holds_images(folder: Path) -> bool:
    return any(is_image_name(path.name) for path in list_folder(folder)[0])


def load_folder(root: str | Path) -> ReIDDataset[ImageRecord]:
    """Loads a dataset with one folder per identity.

    With folders train, query and gallery (or train_all; probe; test) each of them holds identities; without, the root's
    subfolders are the identities of the training split. Identity names may be anything: integers are kept, other names
    are numbered in natural order (`ReIDDataset.identity_names`). Cameras come from ``_c<number>`` in the base name.
    Folders called -1 are junk and dropped.

    Args:
        root: The folder.

    Raises:
        DataError: if there is no image in any identity's folder.
    """
    root = existing_folder(root)
    images, subfolders, _ = list_folder(root)
    by_name = {path.name.lower(): path for path in subfolders}
    splits = {
        split: next((by_name[name] for name in names if name in by_name), None) for split, names in SPLIT_NAMES.items()
    }
    notes: list[str] = []
    if any(splits.values()):
        used = {split: folder for split, folder in splits.items() if folder is not None}
        variant = "one folder per identity in " + ", ".join(folder.name for folder in used.values())
        missing = [split for split in splits if splits[split] is None]
        if missing:
            notes.append(f"no folder for {' and '.join(missing)}: that split is empty")
        ignored = [path.name for path in subfolders if path not in used.values()]
        if ignored:
            notes.append(f"{len(ignored)} folders are no split and not read: {name_some(ignored)}")
    else:
        used = {"train": root}
        variant = "one folder per identity"
        notes.append("no folders train, query and gallery: every identity is for training")
    if images:
        notes.append(
            f"{len(images)} images outside any identity's folder are not read: {name_some(p.name for p in images)}"
        )

    found = [(split, *pair) for split, folder in used.items() for pair in _identity_images(folder, notes)]
    if not found:
        inside = name_some(path.name for path in subfolders) or "no folder"
        raise DataError(
            f"{root}: no images in identity folders (found {inside}); "
            "expected <identity>/*.jpg, or train, query and gallery with such folders inside"
        )
    numbers, were_numbers = number_identities(identity for _, identity, _ in found)
    cameras, camera_notes = cameras_from_names(path.name for _, _, path in found)
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(
        root.resolve().name, "folder", root, variant, [], [], [], notes=[*notes, *camera_notes]
    )
    for (split, identity, path), camid in zip(found, cameras, strict=True):
        pid = numbers[identity]
        if pid == JUNK_PID:
            dataset.junk[split] = dataset.junk.get(split, 0) + 1
        else:
            dataset.subset(split).append(ImageRecord(path, pid, camid))
    if not were_numbers:
        dataset.identity_names = {number: identity for identity, number in numbers.items()}
    return dataset


def _identity_images(folder: Path, notes: list[str]) -> list[tuple[str, Path]]:
    """(identity, image) of every identity folder in a split, images of nested folders included."""
    pairs: list[tuple[str, Path]] = []
    empty: list[str] = []
    for identity in list_folder(folder)[1]:
        images = scan_images(identity) if _has_files(identity) else []
        if not images:
            empty.append(identity.name)
        pairs.extend((identity.name, path) for path in images)
    if empty:
        notes.append(f"{folder.name}: {len(empty)} folders hold no image: {name_some(empty)}")
    return pairs


def _has_files(folder: Path) -> bool:
    return any(is_image_name(path.name) for path in folder.rglob("*"))
