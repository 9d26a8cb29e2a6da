"""Tracklets in folders: <split>/<identity>/<tracklet>/frames, or without the splits, for training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from motarfuse.data.files import existing_folder, name_some
from motarfuse.data.folder import SPLIT_NAMES
from motarfuse.data.identities import cameras_from_names, number_identities
from motarfuse.data.records import JUNK_PID
from motarfuse.data.tracklet_files import Collector, entries_of, last_number, list_names
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.data.video_published import note_frames
from motarfuse.errors import DataError

# c3, cam3, camera_3 at the start of a name or after a separator.
CAMERA = re.compile(r"(?:^|[_\-.])c(?:am(?:era)?)?[_\-]?(\d+)", re.ASCII | re.IGNORECASE)
# f0007, frame_0007; where a name says so, other numbers in it (a camera's at the end, say) do not matter.
FRAME = re.compile(r"(?:^|[_\-.])f(?:rame)?[_\-]?(\d+)", re.ASCII | re.IGNORECASE)
NUM_LOOKED_AT = 3


def frame_number(name: str) -> int | None:
    """The number after ``f`` or ``frame`` in a base name, else the last number that is no camera's; None without."""
    match = FRAME.search(name)
    if match is not None:
        return int(match.group(1))
    return last_number(CAMERA.sub("", name))


def _is_identity(folder: Path) -> bool:
    """Whether a folder holds tracklets: folders with images directly inside."""
    return any(list_names(folder / name).images for name in list_names(folder).folders[:NUM_LOOKED_AT])


def _splits(root: Path) -> dict[str, Path]:
    by_name = {name.lower(): root / name for name in list_names(root).folders}
    found = {split: next((by_name[n] for n in names if n in by_name), None) for split, names in SPLIT_NAMES.items()}
    return {split: folder for split, folder in found.items() if folder is not None}


def is_tracklet_folder(root: Path) -> bool:
    """Whether there are split folders with identities, tracklets and frames inside.

    Without split folders it has to be asked for by name: an identity's pictures in folders look the same. So do parts
    of occluded image sets, ``train/whole_body_images/<identity>/*.jpg``.
    """
    if entries_of(root) is None:
        return False
    for folder in _splits(root).values():
        identities = [name for name in list_names(folder).folders if not name.lower().endswith("body_images")]
        if any(_is_identity(folder / name) for name in identities[:NUM_LOOKED_AT]):
            return True
    return False


def load_tracklet_folder(root: str | Path) -> TrackletDataset:
    """Loads tracklets that lie in a folder each.

    With folders train, query and gallery (or train_all; probe; test) each of them holds identities; without, the root's
    subfolders are the identities of the training split. Integers stay identities, other names are numbered in natural
    order (``identity_names``); folders called -1 are junk and dropped. The camera is the ``c3``, ``cam3`` or
    ``camera_3`` in the tracklet's own name, else in its first frame's, else unknown. Frames are ordered by the number
    after ``f`` or ``frame`` in their names, else by the last number that is not the camera's.

    Args:
        root: The folder.

    Raises:
        DataError: No image in any tracklet's folder.
    """
    root = existing_folder(root)
    splits = _splits(root)
    variant = "one folder per identity and tracklet"
    dataset = TrackletDataset(root.resolve().name, "tracklet-folder", root, variant, [], [], [])
    if splits:
        dataset.variant += " in " + ", ".join(folder.name for folder in splits.values())
        missing = [split for split in SPLIT_NAMES if split not in splits]
        if missing:
            dataset.notes.append(f"no folder for {' and '.join(missing)}: that split is empty")
    else:
        splits = {"train": root}
        dataset.notes.append("no folders train, query and gallery: every identity is for training")
    collector = Collector(dataset)
    found: list[tuple[str, str, Path, list[str]]] = []
    for split, folder in splits.items():
        for identity in list_names(folder).folders:
            inside = list_names(folder / identity)
            for file in inside.images:
                collector.leave_out(folder / identity / file, "it lies outside any tracklet's folder", identity)
            paths = [folder / identity / tracklet for tracklet in inside.folders]
            found.extend((split, identity, path, list_names(path).images) for path in paths)
    if not any(names for *_, names in found):
        inside_root = name_some(list_names(root).folders) or "no folder"
        raise DataError(
            f"{root}: no images in tracklet folders (found {inside_root}); expected <identity>/<tracklet>/*.jpg, or "
            "train, query and gallery with such folders inside"
        )
    numbers, were_numbers = number_identities(identity for _, identity, _, _ in found)
    cameras, notes = cameras_from_names(_camera_text(path.name, names) for _, _, path, names in found)
    dataset.notes.extend(notes)
    for (split, identity, path, names), camid in zip(found, cameras, strict=True):
        pid = numbers[identity]
        if identity == str(JUNK_PID):
            dataset.junk[split] = dataset.junk.get(split, 0) + 1
            continue
        title = f"{identity}/{path.name}"
        collector.add(split, collector.build(split, title, pid, camid, path, names, _numbering(names)))
    if not were_numbers:
        dataset.identity_names = {number: name for name, number in numbers.items() if name != str(JUNK_PID)}
    if dataset.query:
        dataset.protocol = "the folders as they are: same identity and camera as the query do not count"
    collector.report()
    note_frames(dataset)
    return dataset


def _camera_text(tracklet: str, names: list[str]) -> str:
    """The camera in a tracklet's name, else in its first frame's, in the form that `cameras_from_names` reads."""
    for text in (tracklet, *names[:1]):
        match = CAMERA.search(text)
        if match is not None:
            return f"c{match.group(1)}"
    return ""


def _numbering(names: list[str]) -> Callable[[str], int | None]:
    """How frames are numbered: not at all where the numbers in the names do not tell the frames apart."""
    numbers = {name: frame_number(name) for name in names}
    if len(set(numbers.values())) < len(names):
        return lambda name: None
    return numbers.__getitem__
