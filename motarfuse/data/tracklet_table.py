"""Sets of tracklets described by a table: a row a frame, and a column track (or sequence) that says which belong."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from motarfuse.data.csv_table import locate_table
from motarfuse.data.files import name_some, natural_key
from motarfuse.data.identities import number_identities
from motarfuse.data.layout import Existing
from motarfuse.data.records import JUNK_PID, SPLITS, UNKNOWN_CAMERA, Skipped
from motarfuse.data.table_rows import Row, find_table, read_rows
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.errors import DataError


def is_tracklet_table(root: Path) -> bool:
    """Whether `load_tracklet_table` would find a table with a column track (or sequence) here."""
    return find_table(root, "track") is not None


def load_tracklet_table(root: str | Path, *, images_root: str | Path | None = None) -> TrackletDataset:
    """Loads tracklets from a table, CSV or Parquet: one row a frame.

    Columns: those of `load_csv`, ``track`` (or OML's ``sequence``), optionally ``frame`` (an integer; without it frames
    follow the natural order of their paths and count from 0), ``timestamp`` (seconds), ``x, y, w, h`` and
    ``visibility``. Rows of one track, identity, camera and split are one tracklet, sorted by frame.

    Args:
        root: The table, or a folder with a split.csv (.parquet) or with a single table of these columns.
        images_root: The folder that relative paths start from instead of the table's.

    Raises:
        DataError: if there is no such table, a value is wrong, a track has one frame twice or frames with and without
            numbers, or none of the files exists.
    """
    root = Path(root).expanduser()
    table = locate_table(root, "track")
    base = table.parent if images_root is None else Path(images_root).expanduser()
    read = read_rows(table)
    rows = [row for row in read.rows if row.splits]
    notes = [*read.notes]
    if "camid" not in read.columns:
        notes.append("no column camid: every camera is unknown, nothing counts as same-camera")
    if "frame" not in read.columns:
        notes.append("no column frame: frames follow the natural order of their paths, without gaps")
    numbers, were_numbers = number_identities(row.pid for row in rows)
    dataset = TrackletDataset(
        base.resolve().name, "table", root, f"tracklets of table {table.name}", [], [], [], notes=notes,
        protocol="query and gallery as the table says",
    )  # fmt: skip
    if not were_numbers:
        dataset.identity_names = {number: name for name, number in numbers.items()}
    tracks = _group(dataset, rows, base)
    _note_mixed(rows, notes)
    repeated = Counter((split, track) for split, _, _, track in tracks)
    for (split, pid, camid, track), frames in tracks.items():
        if numbers[pid] == JUNK_PID:
            dataset.junk[split] = dataset.junk.get(split, 0) + 1
            continue
        name = track if repeated[split, track] == 1 else f"{pid}/{camid}/{track}"
        dataset.subset(split).append(_tracklet(name, numbers[pid], camid, base, frames))
    if not any(dataset.subset(split) for split in SPLITS) and dataset.skipped:
        raise DataError(
            f"{table}: none of its {len(rows)} files exists; relative paths start from {base}, e.g. "
            f"{dataset.skipped[0].path}"
        )
    if dataset.skipped:
        names = name_some(skipped.path.name for skipped in dataset.skipped)
        notes.append(f"{len(dataset.skipped)} files of the table do not exist, their frames are missing: {names}")
    _part_queries(dataset)
    return dataset


def _group(dataset: TrackletDataset, rows: list[Row], base: Path) -> dict[tuple[str, str, int, str], list[Row]]:
    """The rows of each (split, identity, camera, track), in the table's order."""
    existing = Existing()
    tracks: dict[tuple[str, str, int, str], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.track:
            raise DataError(f"{row.place}: the column track is empty")
        if base / row.path not in existing:
            dataset.skipped.append(Skipped(base / row.path, "no such file"))
            continue
        for split in row.splits:
            tracks[split, row.pid, row.camid, row.track].append(row)
    return tracks


def _note_mixed(rows: list[Row], notes: list[str]) -> None:
    people: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row in rows:
        people[row.track].add((row.pid, row.camid))
    mixed = [track for track, whose in people.items() if len(whose) > 1]
    if mixed:
        notes.append(
            f"{len(mixed)} names of tracks are used for several identities or cameras, each is a tracklet of its own: "
            + name_some(mixed)
        )


def _tracklet(name: str, pid: int, camid: int, base: Path, rows: list[Row]) -> Tracklet:
    if all(row.frame is None for row in rows):
        ordered = sorted(rows, key=lambda row: natural_key(row.path))
        index = list(range(len(rows)))
    else:
        for row in rows:
            if row.frame is None:
                raise DataError(f"{row.place}: the column frame is empty, other rows of track {name} have one")
        ordered = sorted(rows, key=lambda row: (row.frame or 0, natural_key(row.path)))
        index = [row.frame or 0 for row in ordered]
    times = [row.timestamp for row in ordered if row.timestamp is not None]
    boxes = [row.box for row in ordered if row.box is not None]
    shares = [row.visibility for row in ordered if row.visibility is not None]
    try:
        return Tracklet(
            name,
            pid,
            camid,
            base,
            tuple(row.path for row in ordered),
            tuple(index),
            # A frame without the value leaves the whole tracklet without it, as nothing can be told of it.
            timestamps=tuple(times) if len(times) == len(ordered) else None,
            boxes=tuple(boxes) if len(boxes) == len(ordered) else None,
            visibility=tuple(shares) if len(shares) == len(ordered) else None,
        )
    except DataError as error:
        raise DataError(f"{ordered[0].place}: {error}") from error


def _part_queries(dataset: TrackletDataset) -> None:
    """A tracklet that is query and gallery at once is not its own answer: without a camera it gets one of its own."""
    gallery = {(one.name, one.pid, one.files): place for place, one in enumerate(dataset.gallery)}
    camera = 1 + max((one.camid for split in SPLITS for one in dataset.subset(split)), default=UNKNOWN_CAMERA)
    parted = 0
    for place, one in enumerate(dataset.query):
        other = gallery.get((one.name, one.pid, one.files))
        if one.camid == UNKNOWN_CAMERA and other is not None:
            dataset.query[place] = replace(one, camid=camera + parted)
            dataset.gallery[other] = replace(dataset.gallery[other], camid=camera + parted)
            parted += 1
    if parted:
        dataset.notes.append(
            f"{parted} tracklets are query and gallery at once and have no camera: each gets a camera of its own, so "
            "that it is not its own answer"
        )
