"""Sets of occluded or cut-off queries and whole-body galleries: Occluded-REID, Partial-REID, Partial-iLIDS, P-DukeMTMC.

All but the last are for testing only: their training split is empty. Sources: Zhuo et al. 2018 (Occluded-REID and
P-DukeMTMC-reID), Zheng et al. 2015 (Partial-REID and Partial-iLIDS).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from motarfuse.data.files import existing_folder, list_folder, name_some, parse_market_name
from motarfuse.data.layout import choose_one, find_below, folders_by_name, place_of, skipped_note
from motarfuse.data.published import OCCLUDED_REID, P_DUKE, PARTIAL_ILIDS, PARTIAL_REID, compare_with_published
from motarfuse.data.records import ImageRecord, PublishedCounts, ReIDDataset, Skipped
from motarfuse.errors import DataError

CAMERAS = ("sets", "names")
QUERY_CAMERA, GALLERY_CAMERA = 0, 1

_QUERY_FOLDERS = ("occluded_body_images", "partial_body_images", "query", "probe")
_GALLERY_FOLDERS = ("whole_body_images", "gallery")
_PAIR = re.compile(r"(\d+)_(\d+)", re.ASCII)
_STEM = re.compile(r"(\d+)(?=_|\.|$)", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)


def _labels_of_pair(path: Path) -> tuple[int, int | None] | None:
    """``001_02.tif``: identity 1, second number 2."""
    match = _PAIR.match(path.name)
    return None if match is None else (int(match.group(1)), int(match.group(2)))


def _labels_of_stem(path: Path) -> tuple[int, int | None] | None:
    """``017.jpg``: identity 17."""
    match = _STEM.match(path.name)
    return None if match is None else (int(match.group(1)), None)


def _labels_of_folder(path: Path) -> tuple[int, int | None] | None:
    """``0005/0005_c2_f0051341.jpg``: the identity is the folder's own name, the camera the file's, if it says one."""
    if _NUMBER.fullmatch(path.parent.name) is None:
        return None
    named = parse_market_name(path.name)
    return int(path.parent.name), None if named is None else named[1]


@dataclass(frozen=True)
class _Set:
    """What one of the sets looks like.

    Attributes:
        kind: Of the registry.
        published: Its name and counts.
        example: A name, for errors.
        labels: Identity and second number (a camera where ``cameras="names"``) of a file.
        own: A folder of which the queries' one of the set alone is called so.
        hint: What the name of the set's folder or of the one above holds, letters only.
    """

    kind: str
    published: PublishedCounts
    example: str
    labels: Callable[[Path], tuple[int, int | None] | None]
    own: str | None
    hint: str


_OCCLUDED_REID = _Set(
    "occluded_reid", OCCLUDED_REID, "001_01.tif", _labels_of_pair, "occluded_body_images", "occludedreid"
)
_PARTIAL_REID = _Set("partial_reid", PARTIAL_REID, "001_001.jpg", _labels_of_pair, "partial_body_images", "partialreid")
_PARTIAL_ILIDS = _Set("partial_ilids", PARTIAL_ILIDS, "001.jpg", _labels_of_stem, None, "partialilids")
_P_DUKE = _Set("p_duke", P_DUKE, "0005/0005_c2_f0051341.jpg", _labels_of_folder, "occluded_body_images", "pduke")
_SETS = (_OCCLUDED_REID, _PARTIAL_REID, _PARTIAL_ILIDS)


def _sides(folder: Path) -> tuple[Path, Path] | None:
    """The folders of queries and of the gallery."""
    folders = folders_by_name(folder)
    query = next((folders[name] for name in _QUERY_FOLDERS if name in folders), None)
    gallery = next((folders[name] for name in _GALLERY_FOLDERS if name in folders), None)
    return None if query is None or gallery is None else (query, gallery)


def _hinted(folder: Path) -> _Set | None:
    """The set that a folder is named for: by its own name or that of the folder around it."""
    resolved = folder.resolve()
    for name in (resolved.name, resolved.parent.name):
        plain = re.sub(r"[^a-z]", "", name.lower())
        for one in _SETS:
            if one.hint in plain:
                return one
    return None


def _is_test_set(folder: Path, one: _Set) -> bool:
    """Whether a folder holds the two sides of this very set."""
    sides = _sides(folder)
    if sides is None or "bounding_box_test" in folders_by_name(folder):
        return False
    named = sides[0].name.lower().endswith("_body_images")
    hinted = _hinted(folder)
    if hinted is not None:
        # Plain query and gallery with a folder for each person are a dataset of the user's own, whatever it is called.
        return hinted is one and (named or bool(list_folder(sides[0])[0]))
    # Without a name, the folders' own names decide; P-DukeMTMC has the same two inside train and test.
    return sides[0].name.lower() == one.own and folder.name.lower() not in ("train", "test")


def _is_p_duke(folder: Path) -> bool:
    folders = folders_by_name(folder)
    return any(_has_p_duke_sides(folders[split]) for split in ("train", "test") if split in folders)


def _has_p_duke_sides(folder: Path) -> bool:
    sides = _sides(folder)
    return sides is not None and sides[1].name.lower() == "whole_body_images"


def is_occluded_reid(root: Path) -> bool:
    """Whether Occluded-REID is here, in either layout."""
    return root.is_dir() and bool(find_below(root, lambda folder: _is_test_set(folder, _OCCLUDED_REID)))


def is_partial_reid(root: Path) -> bool:
    """Whether Partial-REID is here."""
    return root.is_dir() and bool(find_below(root, lambda folder: _is_test_set(folder, _PARTIAL_REID)))


def is_partial_ilids(root: Path) -> bool:
    """Whether Partial-iLIDS is here."""
    return root.is_dir() and bool(find_below(root, lambda folder: _is_test_set(folder, _PARTIAL_ILIDS)))


def is_p_duke(root: Path) -> bool:
    """Whether P-DukeMTMC-reID is here."""
    return root.is_dir() and bool(find_below(root, _is_p_duke))


def load_occluded_reid(root: str | Path, *, cameras: Literal["sets", "names"] = "sets") -> ReIDDataset[ImageRecord]:
    """Loads Occluded-REID: 200 people with 5 occluded queries and 5 whole-body gallery images each.

    Either ``{occluded,whole}_body_images/<identity>/001_01.tif`` or ``{query,gallery}/001_01.jpg``. The identity is the
    first number of the base name.

    Args:
        root: The folder with the two folders, or one up to two folders above it.
        cameras: "sets": queries are camera 0, the gallery is camera 1, so that every gallery image of a person counts.
            "names": the second number of the name is the camera, as fast-reid reads it, so that a query's namesake in
            the gallery is left out as junk; its numbers are others on the same pictures.

    Raises:
        DataError: if the folders are not found, or no name in them is of this form.
    """
    return _load_test_set(root, _OCCLUDED_REID, cameras)


def load_partial_reid(root: str | Path, *, cameras: Literal["sets", "names"] = "sets") -> ReIDDataset[ImageRecord]:
    """Loads Partial-REID: 60 people, ``{partial,whole}_body_images/001_001.jpg`` or ``{query,gallery}/``.

    Args:
        root: The folder with the two folders, or one up to two folders above it.
        cameras: As for `load_occluded_reid`.

    Raises:
        DataError: if the folders are not found, or no name in them is of this form.
    """
    return _load_test_set(root, _PARTIAL_REID, cameras)


def load_partial_ilids(root: str | Path) -> ReIDDataset[ImageRecord]:
    """Loads Partial-iLIDS: 119 people, one query and one gallery image each; the file's stem is the identity.

    Args:
        root: The folder with ``query`` (``probe``, ``partial_body_images``) and ``gallery`` (``whole_body_images``), or
            one up to two folders above it.

    Raises:
        DataError: if the folders are not found, or no name in them is of this form.
    """
    return _load_test_set(root, _PARTIAL_ILIDS, "sets")


def load_p_duke(root: str | Path, *, cameras: Literal["sets", "names"] = "sets") -> ReIDDataset[ImageRecord]:
    """Loads P-DukeMTMC-reID: ``{train,test}/{whole,occluded}_body_images/<identity>/*.jpg``.

    Training takes both folders of ``train``; queries are the occluded images of ``test``, the gallery its whole bodies.
    The identity is the name of the file's own folder.

    Args:
        root: The folder with ``train`` and ``test``, or one up to two folders above it.
        cameras: "sets": occluded is camera 0, whole is camera 1; "names": DukeMTMC's camera from the base name.

    Raises:
        DataError: if the folders are not found, or hold no image.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _is_p_duke), P_DUKE.name, "folder with test/whole_body_images")
    dataset = _empty(root, base, _P_DUKE, "train and test", cameras)
    folders = folders_by_name(base)
    for part in ("train", "test"):
        sides = _sides(folders[part]) if part in folders else None
        if sides is None:
            dataset.notes.append(f"no {part} with occluded and whole bodies: nothing of it is read")
            continue
        for folder, split, camera in zip(sides, ("query", "gallery"), (QUERY_CAMERA, GALLERY_CAMERA), strict=True):
            _read(dataset, folder, "train" if part == "train" else split, camera, _P_DUKE, cameras)
    return _finish(dataset, base, _P_DUKE)


def _load_test_set(root: str | Path, one: _Set, cameras: str) -> ReIDDataset[ImageRecord]:
    root = existing_folder(root)
    found = find_below(root, lambda folder: _is_test_set(folder, one))
    # Asked for by name, a folder with any query and gallery will do.
    found = found or find_below(root, lambda folder: _sides(folder) is not None)
    base = choose_one(root, found, one.published.name, "folder with query and gallery (or their .._body_images)")
    sides = _sides(base)
    assert sides is not None
    dataset = _empty(root, base, one, f"{sides[0].name} and {sides[1].name}", cameras)
    for folder, split, camera in zip(sides, ("query", "gallery"), (QUERY_CAMERA, GALLERY_CAMERA), strict=True):
        _read(dataset, folder, split, camera, one, cameras)
    dataset.notes.append("for testing only: there is no training split")
    return _finish(dataset, base, one)


def _empty(root: Path, base: Path, one: _Set, folders: str, cameras: str) -> ReIDDataset[ImageRecord]:
    if cameras not in CAMERAS:
        raise DataError(f"{root}: cameras is {cameras!r}; supported are {', '.join(CAMERAS)}")
    variant = f"{one.published.name} ({folders}) in {place_of(base, root)}, cameras from {cameras}"
    # Cameras read from names are none that anybody published.
    published = replace(one.published, cameras=None) if cameras == "names" else one.published
    return ReIDDataset(one.published.name, one.kind, root, variant, [], [], [], published=published)


def _read(
    dataset: ReIDDataset[ImageRecord], folder: Path, split: str, set_camera: int, one: _Set, cameras: str
) -> None:
    """Adds the images of a folder and of the identity folders in it to a split."""
    direct, people, _ = list_folder(folder)
    images = [*direct, *(path for person in people for path in list_folder(person)[0])]
    differing = []
    for path in images:
        labels = one.labels(path)
        if labels is None or (cameras == "names" and labels[1] is None):
            dataset.skipped.append(Skipped(path, f"the name is not like {one.example}"))
            continue
        pid, second = labels
        own = path.parent.name if one is not _P_DUKE else path.name.partition("_")[0]
        if path.parent != folder and _NUMBER.fullmatch(own) and int(own) != pid:
            differing.append(path)
        camera = set_camera if cameras == "sets" or second is None else second
        dataset.subset(split).append(ImageRecord(path, pid, camera))
    if differing:
        shown = name_some(f"{path.parent.name}/{path.name}" for path in differing)
        taken = "folder's" if one is _P_DUKE else "file's"
        dataset.notes.append(f"{len(differing):,} files and folders name different people, the {taken} counts: {shown}")


def _finish(dataset: ReIDDataset[ImageRecord], base: Path, one: _Set) -> ReIDDataset[ImageRecord]:
    if not (dataset.train or dataset.query or dataset.gallery):
        found = name_some(skipped.path.name for skipped in dataset.skipped) or "no image at all"
        raise DataError(f"{base}: no image with a name like {one.example}; found {found}")
    dataset.notes.extend(compare_with_published(dataset))
    dataset.notes.extend(
        skipped_note((one.path.name for one in dataset.skipped), f"their names are not like {one.example}")
    )
    return dataset
