"""Writing a dataset in another layout: images as market1501, folder or csv, tracklets as mars, folder or csv.

What was written is read again and compared with what it came from before it appears under its name.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from motarfuse import console
from motarfuse.data.any_dataset import AnyDataset, Record, files_of, holds_tracklets, load_any_dataset
from motarfuse.data.csv_table import load_csv
from motarfuse.data.files import is_image_name
from motarfuse.data.folder import load_folder
from motarfuse.data.identities import number_identities
from motarfuse.data.market1501 import SPLIT_FOLDERS, load_market1501
from motarfuse.data.mars import load_mars
from motarfuse.data.new_folder import new_folder
from motarfuse.data.records import DISTRACTOR_PID, SPLITS, UNKNOWN_CAMERA
from motarfuse.data.table_rows import DEFAULT_NAMES
from motarfuse.data.tracklet_folder import load_tracklet_folder
from motarfuse.data.tracklet_table import load_tracklet_table
from motarfuse.data.tracklets import Tracklet
from motarfuse.errors import DataError, OutputError

IMAGE_LAYOUTS = ("market1501", "csv", "folder")
VIDEO_LAYOUTS = ("mars", "csv", "folder")
LAYOUTS = ("market1501", "mars", "csv", "folder")
PLACEMENTS = ("copy", "hardlink", "symlink")

# A name that every file system takes and every loader lists: no separators, not hidden, no space at an end.
_PLAIN_NAME = re.compile(r"(?![\s.])[^/\\:*?\"<>|\x00-\x1f]{1,100}(?<![\s.])")


@dataclass(frozen=True)
class Conversion:
    """What `convert_dataset` wrote.

    Attributes:
        out: The new folder.
        to: Its layout.
        unit: What is counted: "images" or "tracklets".
        records: Number of each split.
        files: Number of image files.
        notes: What the layout cannot hold, and how to read it.
    """

    out: Path
    to: str
    unit: str
    records: dict[str, int]
    files: int
    notes: list[str]


@dataclass
class _Writer:
    """A folder being filled: which file came from where."""

    dataset: AnyDataset
    folder: Path
    placement: str
    notes: list[str] = field(default_factory=list)
    source_of: dict[Path, Path] = field(default_factory=dict)

    def put(self, source: Path, target: Path) -> None:
        """Copies or links one file to a path below the folder."""
        path = self.folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        place_file(source, path, self.placement)
        self.source_of[path] = source

    def records(self) -> list[tuple[str, Record]]:
        """(split, record) of every record."""
        return [(split, one) for split in SPLITS for one in self.dataset.subset(split)]


def convert_dataset(
    source: str | Path,
    out: str | Path,
    to: Literal["market1501", "mars", "csv", "folder"],
    *,
    kind: str = "auto",
    files: Literal["copy", "hardlink", "symlink"] = "copy",
    **options: Any,
) -> Conversion:
    """Writes a dataset in another layout; images stay images, tracklets stay tracklets.

    Splits, identities, cameras, files and frame numbers are the same when the result is loaded, which is checked before
    it appears. Junk and files that the loader left out are not written.

    Args:
        source: Folder or table.
        out: The folder to create; nothing is ever overwritten.
        to: "market1501", "folder" (one folder per identity) or "csv" of images; "mars", "folder" (one folder
            per identity and tracklet) or "csv" of tracklets.
        kind, options: As for `load_any_dataset`.
        files: "copy"; "hardlink" (no space, same disk; a change to one changes the other) or "symlink" (no space,
            breaks when the source moves).

    Raises:
        DataError: The source cannot be read, or the layout cannot hold its labels (cameras that nobody knows).
        OutputError: ``out`` is there already, or cannot be written.
    """
    if to not in LAYOUTS:
        raise DataError(f"unknown layout {to!r}; supported are {', '.join(LAYOUTS)}")
    if files not in PLACEMENTS:
        raise DataError(f"files is {files!r}; supported are {', '.join(PLACEMENTS)}")
    dataset = load_any_dataset(source, kind, **options)
    video = holds_tracklets(dataset)
    unit, supported = ("tracklets", VIDEO_LAYOUTS) if video else ("images", IMAGE_LAYOUTS)
    if to not in supported:
        raise DataError(
            f"{dataset.root}: is a set of {unit}, which {to} does not hold; supported are {', '.join(supported)}"
        )
    if not any(dataset.subset(split) for split in SPLITS):
        raise DataError(f"{dataset.root}: holds nothing to convert")
    with new_folder(Path(out)) as folder:
        writer = _Writer(dataset, folder, files)
        if to != "csv":
            _refuse_unlisted_files(writer, to)
        reload = (_write_tracklets if video else _write_images)(writer, to)
        _compare(writer, reload())
        count = len(writer.source_of)
    dropped = sum(dataset.junk.values())
    if dropped:
        writer.notes.append(f"{dropped:,} {unit} of junk are not written")
    if dataset.skipped:
        writer.notes.append(f"{len(dataset.skipped):,} files that the loader left out are not written")
    if getattr(dataset, "clothes", None):
        writer.notes.append("what people wear, which only the source says, is not kept")
    records = {split: len(dataset.subset(split)) for split in SPLITS}
    return Conversion(Path(out), to, unit, records, count, writer.notes)


def place_file(source: Path, target: Path, placement: str) -> None:
    """Copies or links a file.

    Raises:
        DataError: The source cannot be read.
        OutputError: The target cannot be made.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file; run `motarfuse data check` on its dataset")
    try:
        if placement == "copy":
            shutil.copyfile(source, target)
        elif placement == "hardlink":
            os.link(source.resolve(), target)
        else:
            target.symlink_to(source.resolve())
    except OSError as error:
        advice = "" if placement == "copy" else f"; a {placement} cannot be made here, choose copy"
        raise OutputError(f"cannot write {target}: {error.strerror or error}{advice}") from error


def _identities(writer: _Writer, fits: Callable[[str], bool]) -> dict[int, str]:
    """How each identity is written: by its name where that gives the same numbers again, else by its number."""
    dataset = writer.dataset
    pids = {record.pid for _, record in writer.records()}
    names = {pid: dataset.identity_names.get(pid, str(pid)) for pid in pids}
    numbers, _ = number_identities(names.values())
    if dataset.identity_names and (
        not all(fits(name) for name in names.values()) or any(numbers[name] != pid for pid, name in names.items())
    ):
        writer.notes.append("identities are written as numbers: as names they would be numbered differently")
        return {pid: str(pid) for pid in pids}
    return names


def _refuse_unlisted_files(writer: _Writer, to: str) -> None:
    """Folders are listed by the endings of images; a table may name any file."""
    files = (path for _, record in writer.records() for path in files_of(record))
    wrong = next((path for path in files if not is_image_name(f"0{_suffix(path)}")), None)
    if wrong is not None:
        raise DataError(f"{wrong}: files of that ending are not found in the layout {to}; convert to csv")


def _refuse_unknown_cameras(writer: _Writer, to: str) -> None:
    unknown = sum(record.camid == UNKNOWN_CAMERA for _, record in writer.records())
    if unknown:
        raise DataError(
            f"{writer.dataset.root}: {unknown:,} records have no camera, and names of {to} need one; convert to csv"
        )


def _note_new_distractors(writer: _Writer) -> None:
    """Identity 0 of the gallery alone, which answers no query, is read as the distractors."""
    dataset = writer.dataset
    elsewhere = any(record.pid == DISTRACTOR_PID for record in (*dataset.train, *dataset.query))
    if dataset.distractor_pid is None and not elsewhere and any(one.pid == DISTRACTOR_PID for one in dataset.gallery):
        writer.notes.append(f"identity {DISTRACTOR_PID}, which is in the gallery only, counts as distractors here")


def _write_images(writer: _Writer, to: str) -> Callable[[], AnyDataset]:
    if to == "market1501":
        _refuse_unknown_cameras(writer, to)
        _note_new_distractors(writer)
        if writer.dataset.identity_names:
            writer.notes.append("identities are written as numbers, their names are not kept")
        for number, (split, record) in _tracked(writer):
            (path,) = files_of(record)
            name = f"{record.pid:04d}_c{record.camid + 1}s1_{number:06d}_00{_suffix(path)}"
            writer.put(path, Path(SPLIT_FOLDERS[split], name))
        return lambda: load_market1501(writer.folder)
    if writer.dataset.distractor_pid is not None:
        writer.notes.append(f"identity {DISTRACTOR_PID}, the distractors, counts as an identity in this layout")
    if to == "folder":
        identity = _identities(writer, lambda name: _PLAIN_NAME.fullmatch(name) is not None)
        for number, (split, record) in _tracked(writer):
            (path,) = files_of(record)
            camera = "" if record.camid == UNKNOWN_CAMERA else f"c{record.camid + 1}_"
            writer.put(path, Path(split, identity[record.pid], f"{camera}{number:06d}{_suffix(path)}"))
        return lambda: load_folder(writer.folder)
    identity = _identities(writer, bool)
    placed: dict[Path, Path] = {}
    rows: list[Sequence[object]] = [("path", "pid", "camid", "split")]
    for number, (split, record) in _tracked(writer):
        (path,) = files_of(record)
        if path not in placed:  # one picture may be query and gallery
            placed[path] = Path("images", split, f"{number:06d}{_suffix(path)}")
            writer.put(path, placed[path])
        rows.append((placed[path].as_posix(), identity[record.pid], record.camid, split))
    _write_table(writer, rows)
    return lambda: load_csv(writer.folder)


def _write_tracklets(writer: _Writer, to: str) -> Callable[[], AnyDataset]:
    if to == "mars":
        return _write_mars(writer)
    if to == "folder":
        return _write_tracklet_folders(writer)
    identity = _identities(writer, bool)
    tracklets = [(split, one) for split, one in writer.records() if isinstance(one, Tracklet)]
    has_times, has_boxes, has_shares = (
        any(getattr(one, name) is not None for _, one in tracklets) for name in ("timestamps", "boxes", "visibility")
    )
    header = ["path", "pid", "camid", "split", "track", "frame"]
    header += ["timestamp"] * has_times + ["x", "y", "w", "h"] * has_boxes + ["visibility"] * has_shares
    rows: list[Sequence[object]] = [header]
    placed: dict[Path, Path] = {}
    for number, (split, one) in _tracked(writer):
        assert isinstance(one, Tracklet)
        for place, path in enumerate(one.paths):
            if path not in placed:
                placed[path] = Path("images", split, f"{number:06d}", f"{one.frame_index[place]:06d}{_suffix(path)}")
                writer.put(path, placed[path])
            row: list[object] = [placed[path].as_posix(), identity[one.pid], one.camid, split, one.name]
            row.append(one.frame_index[place])
            if has_times:
                row.append("" if one.timestamps is None else one.timestamps[place])
            if has_boxes:
                row.extend([""] * 4 if one.boxes is None else one.boxes[place])
            if has_shares:
                row.append("" if one.visibility is None else one.visibility[place])
            rows.append(row)
    _write_table(writer, rows)
    return lambda: load_tracklet_table(writer.folder)


def _write_tracklet_folders(writer: _Writer) -> Callable[[], AnyDataset]:
    identity = _identities(writer, lambda name: _PLAIN_NAME.fullmatch(name) is not None)
    tracklets = [(split, one) for split, one in writer.records() if isinstance(one, Tracklet)]
    _refuse_negative_frames(writer, [one for _, one in tracklets])
    _note_lost(writer, [one for _, one in tracklets])
    for number, (split, one) in enumerate(console.track(tracklets, "writing", len(tracklets)), start=1):
        camera = "t" if one.camid == UNKNOWN_CAMERA else f"c{one.camid + 1}_t"
        folder = Path(split, identity[one.pid], f"{camera}{number:06d}")
        for path, frame in zip(one.paths, one.frame_index, strict=True):
            writer.put(path, folder / f"f{frame:06d}{_suffix(path)}")
    return lambda: load_tracklet_folder(writer.folder)


def _refuse_negative_frames(writer: _Writer, tracklets: Sequence[Tracklet]) -> None:
    negative = next((one for one in tracklets if one.frame_index[0] < 0), None)
    if negative is not None:
        raise DataError(
            f"{writer.dataset.root}: tracklet {negative.name} starts at frame {negative.frame_index[0]}, which no name "
            "of this layout says; convert to csv"
        )


def _note_lost(writer: _Writer, tracklets: Sequence[Tracklet]) -> None:
    if any(one.timestamps or one.boxes or one.visibility for one in tracklets):
        writer.notes.append("times, boxes and visibility are not kept; csv keeps them")


def _write_mars(writer: _Writer) -> Callable[[], AnyDataset]:
    """MARS: test tracklets are the gallery's, with info/query.txt naming the queries among or beside them."""
    _refuse_unknown_cameras(writer, "mars")
    _note_new_distractors(writer)
    dataset = writer.dataset
    train, query, gallery = (
        [one for one in dataset.subset(split) if isinstance(one, Tracklet)] for split in ("train", "query", "gallery")
    )
    _refuse_negative_frames(writer, (*train, *query, *gallery))
    among = {_content(one) for one in gallery}
    inside = sum(_content(one) in among for one in query)
    if inside not in (0, len(query)):
        raise DataError(
            f"{dataset.root}: {inside:,} of {len(query):,} queries are in the gallery, which MARS cannot say; use csv"
        )
    in_gallery = inside > 0 or not query
    if query and not in_gallery:
        writer.notes.append("the queries are not in the gallery: load it with queries_in_gallery=False")
    if dataset.identity_names:
        writer.notes.append("identities are written as numbers, their names are not kept")
    _note_lost(writer, (*train, *query, *gallery))
    next_number: Counter[int] = Counter()
    names: dict[object, str] = {}
    test = gallery if in_gallery else [*query, *gallery]
    jobs = [("bbox_train", one) for one in train] + [("bbox_test", one) for one in test]
    for folder, one in console.track(jobs, "writing", len(jobs)):
        next_number[one.pid] += 1
        name = f"{one.pid:04d}C{one.camid + 1}T{next_number[one.pid]:04d}"
        names.setdefault((folder, _content(one)), name)
        for path, frame in zip(one.paths, one.frame_index, strict=True):
            writer.put(path, Path(folder, f"{one.pid:04d}", f"{name}F{frame:03d}{_suffix(path)}"))
    for folder in ("bbox_train", "bbox_test"):
        (writer.folder / folder).mkdir(exist_ok=True)
    if query:
        (writer.folder / "info").mkdir()
        lines = [names["bbox_test", _content(one)] for one in query]
        (writer.folder / "info" / "query.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lambda: load_mars(writer.folder, queries_in_gallery=in_gallery)


def _content(one: Tracklet) -> object:
    return one.pid, one.camid, tuple(one.paths)


def _tracked(writer: _Writer) -> Iterator[tuple[int, tuple[str, Record]]]:
    """(number from 1, (split, record)) of every record, with a progress bar."""
    records = list(enumerate(writer.records(), start=1))
    return console.track(records, "writing", len(records))


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _write_table(writer: _Writer, rows: list[Sequence[object]]) -> None:
    with (writer.folder / DEFAULT_NAMES[0]).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _compare(writer: _Writer, written: AnyDataset) -> None:
    """Checks that what was written is what it came from.

    Raises:
        DataError: It is not; nothing appears under the name that was asked for.
    """
    for split in SPLITS:
        expected = Counter(_key(record, None) for record in writer.dataset.subset(split))
        found = Counter(_key(record, writer.source_of) for record in written.subset(split))
        differing = (expected - found) or (found - expected)
        if differing:
            raise DataError(
                f"{writer.dataset.root}: the layout does not give back what was written, e.g. in {split} "
                f"{next(iter(differing))} ({differing.total():,} differ); this is an error of the conversion, report it"
            )


def _key(record: Record, source_of: dict[Path, Path] | None) -> object:
    files = tuple(path if source_of is None else source_of.get(path) for path in files_of(record))
    frames = record.frame_index if isinstance(record, Tracklet) else None
    return record.pid, record.camid, files, frames
