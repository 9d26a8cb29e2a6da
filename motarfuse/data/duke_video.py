"""DukeMTMC-VideoReID: train, query and gallery with a folder an identity and, inside, a folder a tracklet.

The dataset was withdrawn by its authors; nothing here downloads it. Source: Wu et al., "Exploit the Unknown Gradually:
One-Shot Video-Based Person Re-Identification by Stepwise Learning", CVPR 2018.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from motarfuse.data.files import existing_folder, name_some
from motarfuse.data.layout import choose_one, find_below, place_of
from motarfuse.data.records import JUNK_PID, SPLITS
from motarfuse.data.tracklet_files import Collector, entry_below, holds, list_names, note_galleries
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.data.video_published import DUKE_VIDEO, compare_with_published, looks_like, note_frames
from motarfuse.errors import DataError

# 0001_C6_F0099_X30823.jpg, in older copies 0001C6F0099X30823.jpg: identity, camera from 1, frame of the tracklet, frame
# of the camera's video.
DUKE_NAME = re.compile(r"(-?\d+)_?C(\d+)_?F(\d+)_?X(\d+)", re.ASCII)
OTHER_LABELS = "its name says another identity or camera than its tracklet"
OFFICIAL = "DukeMTMC-VideoReID: queries are part of the gallery; same identity and camera as the query do not count"


def parse_duke_name(name: str) -> tuple[int, int, int] | None:
    """Identity, camera (from 0) and frame of the tracklet of a base name; None where it is no such name."""
    match = DUKE_NAME.match(name)
    if match is None or int(match.group(2)) == 0:
        return None
    return int(match.group(1)), int(match.group(2)) - 1, int(match.group(3))


def _frame(name: str) -> int | None:
    parsed = parse_duke_name(name)
    return None if parsed is None else parsed[2]


def _fits(folder: Path) -> bool:
    if not holds(folder, *SPLITS):
        return False
    splits = [path for split in SPLITS if (path := entry_below(folder, split)) is not None and path.is_dir()]
    return any(_first_name(split) is not None for split in splits)


def _first_name(split: Path) -> str | None:
    """A file of DukeMTMC-VideoReID's naming in the first tracklet of the first identities of a split."""
    for identity in list_names(split).folders[:3]:
        for tracklet in list_names(split / identity).folders[:1]:
            names = list_names(split / identity / tracklet).images
            found = next((name for name in names if parse_duke_name(name) is not None), None)
            if found is not None:
                return found
    return None


def is_duke_video(root: Path) -> bool:
    """Whether `load_duke_video` would find its folders here."""
    return root.is_dir() and bool(find_below(root, _fits))


def load_duke_video(root: str | Path, *, queries_in_gallery: bool = True) -> TrackletDataset:
    """Loads DukeMTMC-VideoReID.

    The folder of an identity is the label; the camera is the one that most names of a tracklet say. Files whose name
    says another identity or camera are left out and named. Frames are ordered by the number after F, which counts
    within the tracklet.

    Args:
        root: The folder with train, query and gallery, or one up to two folders above it.
        queries_in_gallery: As the files come: the gallery folder holds the queries. False takes them out.

    Raises:
        DataError: No such folders, or no tracklet with such names.
    """
    root = existing_folder(root)
    needed = "train, query or gallery with <identity>/<tracklet>/0001_C6_F0099_X30823.jpg"
    base = choose_one(root, find_below(root, _fits), "DukeMTMC-VideoReID", needed)
    variant = f"DukeMTMC-VideoReID layout in {place_of(base, root)}"
    dataset = TrackletDataset(base.resolve().name, "dukemtmc-video", root, variant, [], [], [], protocol=OFFICIAL)
    collector = Collector(dataset)
    patterns: Counter[str] = Counter()
    for split in SPLITS:
        folder = entry_below(base, split)
        if folder is None:
            dataset.notes.append(f"no folder {split}: that split is empty")
        else:
            _read_split(collector, split, folder, patterns)
    dataset.variant += f", names like {' and '.join(sorted(patterns))}"
    if not any(dataset.subset(split) for split in SPLITS):
        names = name_some(skipped.path.name for skipped in dataset.skipped) or "no image at all"
        raise DataError(f"{base}: no tracklet with files like 0001_C6_F0099_X30823.jpg; found {names}")
    _choose_gallery(dataset, queries_in_gallery)
    collector.report()
    if looks_like(dataset, DUKE_VIDEO, base.resolve().parts[-2:], "dukemtmc"):
        compare_with_published(dataset, DUKE_VIDEO)
    note_frames(dataset)
    return dataset


def _read_split(collector: Collector, split: str, folder: Path, patterns: Counter[str]) -> None:
    dataset = collector.dataset
    odd: list[str] = []
    for identity in list_names(folder).folders:
        if not re.fullmatch(r"-?\d+", identity, re.ASCII):
            odd.append(identity)
            continue
        pid = int(identity)
        inside = list_names(folder / identity)
        if pid == JUNK_PID:
            dataset.junk[split] = dataset.junk.get(split, 0) + len(inside.folders)
            continue
        for file in inside.images:
            collector.leave_out(folder / identity / file, "it lies outside any tracklet's folder", identity)
        for tracklet in inside.folders:
            collector.add(split, _tracklet(collector, split, pid, folder / identity / tracklet, patterns))
    if odd:
        dataset.notes.append(f"{folder.name}: {len(odd)} folders are no identities and not read: {name_some(odd)}")


def _tracklet(collector: Collector, split: str, pid: int, folder: Path, patterns: Counter[str]) -> Tracklet | None:
    title = f"{folder.parent.name}/{folder.name}"
    names = list_names(folder).images
    parsed = {name: parse_duke_name(name) for name in names}
    votes = Counter(one[1] for one in parsed.values() if one is not None and one[0] == pid)
    if not votes:
        for name in names:
            collector.leave_out(folder / name, OTHER_LABELS if parsed[name] else "its name is of another form", title)
        return collector.build(split, title, pid, 0, folder, [], _frame)
    camid = max(votes, key=lambda camera: (votes[camera], -camera))
    kept = []
    for name in names:
        one = parsed[name]
        if one is not None and one[:2] != (pid, camid):
            collector.leave_out(folder / name, OTHER_LABELS, title)
        else:
            kept.append(name)
            if one is not None:
                patterns["0001_C6_F0099_X30823" if "_" in name.partition("X")[0] else "0001C6F0099X30823"] += 1
    return collector.build(split, title, pid, camid, folder, kept, _frame)


def _choose_gallery(dataset: TrackletDataset, queries_in_gallery: bool) -> None:
    names = {tracklet.name for tracklet in dataset.query}
    everything = dataset.gallery
    without = [tracklet for tracklet in everything if tracklet.name not in names]
    missing = len(names) - (len(everything) - len(without))
    if dataset.query and everything:
        note_galleries(dataset, everything, without)
        if missing:
            dataset.notes.append(f"{missing:,} of {len(names):,} queries are not in the gallery folder")
    if not queries_in_gallery:
        dataset.gallery = without
        dataset.protocol = "DukeMTMC-VideoReID without the queries in the gallery"
