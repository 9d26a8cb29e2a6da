"""MARS and folders in its layout: bbox_train, bbox_test, and info with what makes a tracklet and which are queries.

SynthPed's videos and the tracklets that ``motarfuse tracklets`` cuts come in it. Source of the layout and the protocol:
Zheng et al., "MARS: A Video Benchmark for Large-Scale Person Re-Identification", ECCV 2016.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from motarfuse.data.files import existing_folder, name_some, natural_key
from motarfuse.data.layout import choose_one, find_below, place_of
from motarfuse.data.mars_info import MarsInfo, SplitTables
from motarfuse.data.tracklet_files import (
    MISSING,
    NO_FRAME,
    UNREADABLE,
    Collector,
    divide_test,
    entry_below,
    holds,
    list_names,
    name_distractors,
)
from motarfuse.data.tracklet_manifest import is_tracklet_manifest, read_tracklet_manifest
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.data.video_published import (
    MARS,
    MARS_WITHOUT_QUERIES,
    compare_with_published,
    looks_like,
    note_frames,
)
from motarfuse.errors import DataError

# 0001C1T0001F001.jpg: identity, camera from 1, number of the tracklet, number of the frame. Junk is 00-1 in MARS.
MARS_NAME = re.compile(r"((0*-)?(\d+)C(\d+)T(\d+))F(\d+)\.", re.ASCII)
SPLIT_FOLDERS = {"train": "bbox_train", "test": "bbox_test"}
OFFICIAL = "MARS, official: the gallery holds the queries; same identity and camera as the query do not count"
WITHOUT_QUERIES = "MARS without the queries in the gallery: queries whose only other tracklet is a query have no answer"


def _fits(folder: Path) -> bool:
    return holds(folder, *SPLIT_FOLDERS.values())


def is_mars(root: Path) -> bool:
    """Whether `load_mars` would find its folders here."""
    return root.is_dir() and bool(find_below(root, _fits))


def parse_mars_name(name: str) -> tuple[str, int, int, int] | None:
    """Tracklet, identity, camera (from 0) and frame of a base name such as ``0001C1T0001F001.jpg``; else None."""
    match = MARS_NAME.match(name)
    if match is None:
        return None
    start, minus, pid, camera, _, frame = match.groups()
    if int(camera) == 0:
        return None
    return start, -int(pid) if minus else int(pid), int(camera) - 1, int(frame)


def _frame(name: str) -> int | None:
    parsed = parse_mars_name(name)
    return None if parsed is None else parsed[3]


class _SplitFiles:
    """The files of bbox_train or bbox_test: each identity's folder is listed once, when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listing = list_names(folder)
        self.identities = listing.folders
        self._known = set(listing.folders)
        self._listed: dict[str, set[str]] = {}
        # Some copies have all frames in one folder.
        self._flat = set(listing.images) if not listing.folders else None

    def folder_of(self, name: str) -> Path:
        """Where a file of that name lies."""
        return self.folder if self._flat is not None else self.folder / name.partition("C")[0]

    def names(self, folder: Path) -> set[str]:
        """The images in one of the folders, none if there is no such folder."""
        if self._flat is not None:
            return self._flat
        if folder.name not in self._listed:
            self._listed[folder.name] = set(list_names(folder).images) if folder.name in self._known else set()
        return self._listed[folder.name]

    def num_unused(self, used: int) -> int:
        """Files that no tracklet used, those in folders that no tracklet asked for included."""
        for identity in self.identities:
            self.names(self.folder / identity)
        return (len(self._flat) if self._flat is not None else sum(map(len, self._listed.values()))) - used


def load_mars(root: str | Path, *, queries_in_gallery: bool = True) -> TrackletDataset:
    """Loads MARS or a dataset in its layout.

    With ``info`` (see docs/data_video.md) its tables say which files make a tracklet, its identity and camera, and the
    labels in the names have to agree. Without them, files are grouped by the start of their names, up to F. Frames are
    ordered by the number after F. Identity -1 is junk and dropped, identity 0 a distractor of the gallery. No image is
    opened.

    Args:
        root: The folder with bbox_train and bbox_test, or one up to two folders above it.
        queries_in_gallery: The official protocol. False takes the queries out of the gallery, as several toolkits do:
            in MARS, 140 of 1,980 queries then have no right answer and are not scored. Notes state both counts.

    Returns:
        The dataset. Files that a list names and that are not there, or whose name cannot be read, are left out of their
        tracklet, and named in ``skipped``.

    Raises:
        DataError: No such folders, tables that contradict each other or the names, or no tracklet at all.
    """
    root = existing_folder(root)
    base = choose_one(root, find_below(root, _fits), "MARS", "bbox_train or bbox_test")
    info = MarsInfo(base)
    variant = f"MARS layout in {place_of(base, root)}"
    dataset = TrackletDataset(base.resolve().name, "mars", root, variant, [], [], [])
    tracklets: dict[str, list[Tracklet | None]] = {"train": [], "test": []}
    collector = Collector(dataset)
    how: list[str] = []
    by_rows = False
    for split, name in SPLIT_FOLDERS.items():
        folder = entry_below(base, name)
        if folder is None:
            dataset.notes.append(f"no folder {name}: that split is empty")
            continue
        files = _SplitFiles(folder)
        tables = info.tables(split)
        by_rows = tables is not None  # of the last split, the test's
        how.append(f"{name} by {'its names' if tables is None else tables.rows_file.name}")
        if tables is None:
            tracklets[split] = _grouped(files, split, collector)
        else:
            tracklets[split] = _tabled(files, tables, split, collector)
    dataset.variant += f" ({', '.join(how)})"
    dataset.notes.extend(info.notes)
    for split in tracklets:
        tracklets[split] = _with_manifest(base, tracklets[split], dataset)
    for tracklet in tracklets["train"]:
        collector.add("train", tracklet)
    places = _query_places(dataset, tracklets["test"], info, by_rows) if tracklets["test"] else []
    divide_test(dataset, tracklets["test"], places, queries_in_gallery)
    dataset.protocol = OFFICIAL if queries_in_gallery else WITHOUT_QUERIES
    collector.report()
    if not (dataset.train or dataset.query or dataset.gallery):
        names = name_some(skipped.path.name for skipped in dataset.skipped) or "no image at all"
        raise DataError(
            f"{base}: no tracklet with files like 0001C1T0001F001.jpg (<identity>C<camera>T<tracklet>F<frame>) in "
            f"bbox_train or bbox_test; found {names}"
        )
    name_distractors(dataset)
    known = MARS if queries_in_gallery else MARS_WITHOUT_QUERIES
    if looks_like(dataset, known, base.resolve().parts[-1:], "mars"):
        compare_with_published(dataset, known)
    note_frames(dataset)
    return dataset


def _tabled(files: _SplitFiles, tables: SplitTables, split: str, collector: Collector) -> list[Tracklet | None]:
    """One tracklet a row of the table, None where none of its files is there."""
    tracklets: list[Tracklet | None] = []
    used = 0
    several: list[str] = []
    for row, (first, last, pid, camera) in enumerate(tables.rows.tolist(), start=1):
        names = tables.names[first - 1 : last]
        parsed = [parse_mars_name(name) for name in names]
        labels = {one[1:3] for one in parsed if one is not None}
        if labels - {(pid, camera - 1)}:
            wrong = next(place for place, one in enumerate(parsed) if one is not None and one[1:3] != (pid, camera - 1))
            raise DataError(
                f"{tables.rows_file}, row {row}: identity {pid} under camera {camera}, but one of its files is "
                f"{names[wrong]}; do {tables.names_file.name} and {tables.rows_file.name} belong together?"
            )
        starts = sorted({one[0] for one in parsed if one is not None})
        name = starts[0] if starts else f"row{row}"
        frames = {file: None if one is None else one[3] for file, one in zip(names, parsed, strict=True)}
        if len(starts) > 1:
            # The numbers after F restart with each T: what is left is the order of the names.
            several.append(name)
            frames = {file: place for place, file in enumerate(sorted(frames, key=natural_key))}
        folder = files.folder_of(starts[0] if starts else names[0])
        present = files.names(folder)
        here = [file for file in names if file in present]
        used += len(here)
        if len(here) != len(names) and here:
            for file in names:
                if file not in present:
                    collector.leave_out(folder / file, MISSING, name)
        if here:
            tracklets.append(collector.build(split, name, pid, camera - 1, folder, here, frames.__getitem__))
        else:
            collector.leave_out(folder / names[0], NO_FRAME, f"{name} ({len(names)} files)")
            tracklets.append(None)
    notes = collector.dataset.notes
    if several:
        notes.append(f"{len(several):,} rows hold several T: frames are in the order of names: {name_some(several)}")
    unused = files.num_unused(used)
    if unused > 0:
        notes.append(f"{files.folder.name}: {unused:,} files belong to no tracklet of {tables.rows_file.name}")
    return tracklets


def _grouped(files: _SplitFiles, split: str, collector: Collector) -> list[Tracklet | None]:
    """Tracklets by the start of the names, in natural order."""
    groups: dict[tuple[str, Path], tuple[int, int, list[str]]] = {}
    folders = [files.folder / identity for identity in files.identities] or [files.folder]
    for folder in folders:
        for name in sorted(files.names(folder)):
            parsed = parse_mars_name(name)
            if parsed is None:
                collector.leave_out(folder / name, UNREADABLE, folder.name)
            else:
                groups.setdefault((parsed[0], folder), (parsed[1], parsed[2], []))[2].append(name)
    return [
        collector.build(split, name, pid, camid, folder, names, _frame)
        for (name, folder), (pid, camid, names) in sorted(groups.items(), key=lambda item: natural_key(item[0][0]))
    ]


def _with_manifest(base: Path, tracklets: list[Tracklet | None], dataset: TrackletDataset) -> list[Tracklet | None]:
    """Adds the times, boxes and visibility of the manifest that ``motarfuse tracklets`` writes beside its crops."""
    if not any(tracklets) or not is_tracklet_manifest(base):
        return tracklets
    manifest = read_tracklet_manifest(base)
    dataset.identity_names = manifest.identity_names
    known = {one.name: one for one in (*manifest.train, *manifest.gallery)}
    return [one if one is None else _described(one, known.get(one.name)) for one in tracklets]


def _described(tracklet: Tracklet, known: Tracklet | None) -> Tracklet:
    places = {} if known is None else {file: place for place, file in enumerate(known.files)}
    if known is None or not places.keys() >= set(tracklet.files):
        return tracklet
    whole = known.select([places[file] for file in tracklet.files])
    return replace(whole, name=tracklet.name, pid=tracklet.pid, camid=tracklet.camid, folder=tracklet.folder)


def _query_places(dataset: TrackletDataset, test: list[Tracklet | None], info: MarsInfo, by_rows: bool) -> list[int]:
    """Places of the queries among the test tracklets."""
    if info.has_query_rows() and not by_rows:
        raise DataError(
            f"{dataset.root}: query_IDX numbers the rows of tracks_test_info, which is not there; add it, or name the "
            "queries in info/query.txt"
        )
    places = info.query_rows(len(test))
    if places == []:
        dataset.notes.append("the list of queries is empty, and so is the query split")
    if places is None:
        places = info.query_names({one.name: place for place, one in enumerate(test) if one is not None})
    if places is None:
        dataset.notes.append(
            "nothing says which test tracklets are queries (info/query_IDX.mat, query_idx.txt, or query.txt with their "
            "names): the query split is empty"
        )
        return []
    return places
