"""Occluded-Duke from its lists: train.list, query.list, gallery.list beside the images of DukeMTMC-reID.

The ready-made folders (bounding_box_train, query, bounding_box_test) without lists are the layout of Market-1501. The
images themselves were withdrawn by their authors: whoever has them points at them. Source: Miao et al. 2019.
"""

from __future__ import annotations

from pathlib import Path

from motarfuse.data.files import existing_folder, list_folder, name_some, parse_market_name
from motarfuse.data.layout import choose_one, find_below, folders_by_name, place_of, read_lines, skipped_note
from motarfuse.data.market1501 import SPLIT_FOLDERS, find_market_folders
from motarfuse.data.published import OCCLUDED_DUKE, compare_with_published
from motarfuse.data.records import SPLITS, ImageRecord, ReIDDataset, Skipped
from motarfuse.errors import DataError

LISTS = {split: f"{split}.list" for split in SPLITS}


def _fits(folder: Path) -> bool:
    return all((folder / name).is_file() for name in LISTS.values())


def is_occluded_duke(root: Path) -> bool:
    """Whether the three lists are here."""
    return root.is_dir() and bool(find_below(root, _fits))


def load_occluded_duke(root: str | Path, *, images_root: str | Path | None = None) -> ReIDDataset[ImageRecord]:
    """Loads the lists of Occluded-Duke over the images of DukeMTMC-reID or of Occluded-Duke.

    A line of a list is a file's name. It is looked for in the split's own folder first and then in the other two: the
    queries of Occluded-Duke are gallery images of DukeMTMC-reID. Names are labels, ``<identity>_c<camera>``.

    Args:
        root: The folder with the three lists, or one up to two folders above it.
        images_root: Where the images are (a folder with bounding_box_train, or one up to two folders above it); None
            looks in ``root``.

    Returns:
        The dataset; files of the lists that do not exist are in ``skipped``.

    Raises:
        DataError: if the lists or the images are not found, a name is no label, or one is
            in the training list and another, or twice in one.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits), "Occluded-Duke", f"folder with {', '.join(LISTS.values())}")
    place = root if images_root is None else existing_folder(images_root)
    images = find_market_folders(base) if images_root is None else []
    images = images or find_market_folders(place)
    if not images:
        raise DataError(
            f"{base}: the lists of Occluded-Duke are here, but not the images: no bounding_box_train in {place}; "
            "say with images_root where DukeMTMC-reID is"
        )
    source = choose_one(place, images, "Market-1501", "folder bounding_box_train")
    by_folder = {
        name: {path.name: path for path in list_folder(folder)[0]}
        for name, folder in folders_by_name(source).items()
        if name in SPLIT_FOLDERS.values()
    }
    variant = f"lists of Occluded-Duke in {place_of(base, root)} over the images of {source.name}"
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(
        "Occluded-Duke", "occluded_duke", root, variant, [], [], [], published=OCCLUDED_DUKE
    )
    used: dict[str, str] = {}
    for split, file in LISTS.items():
        own = SPLIT_FOLDERS[split]
        order = [own, *(name for name in SPLIT_FOLDERS.values() if name != own)]
        for number, name in read_lines(base / file):
            labels = parse_market_name(name)
            if labels is None:
                raise DataError(f"{base / file}, line {number}: {name!r} is not <identity>_c<camera from 1>...")
            # Most queries are gallery images as well; under the same camera, no query is its own answer.
            before = used.get(name)
            if before is not None and (before, split) != ("query", "gallery"):
                raise DataError(f"{base / file}, line {number}: {name} is in {LISTS[before]} already")
            used[name] = split
            path = next((by_folder[folder][name] for folder in order if name in by_folder.get(folder, {})), None)
            if path is None:
                dataset.skipped.append(Skipped(source / own / name, f"{file} names it, but it does not exist"))
            else:
                dataset.subset(split).append(ImageRecord(path, *labels))
    if not (dataset.train or dataset.query or dataset.gallery):
        raise DataError(f"{source}: none of the {len(used):,} listed files exists, e.g. {dataset.skipped[0].path.name}")
    unlisted = sorted({name for names in by_folder.values() for name in names} - set(used))
    if unlisted:
        dataset.notes.append(f"{len(unlisted):,} images are in no list and not read: {name_some(unlisted)}")
    dataset.notes.extend(compare_with_published(dataset))
    dataset.notes.extend(skipped_note((one.path.name for one in dataset.skipped), "named by a list but not there"))
    return dataset
