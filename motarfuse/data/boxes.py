"""Boxes of people in a video, read from MOTChallenge text, a CSV table or COCO-video JSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from motarfuse.data.files import natural_key
from motarfuse.data.left_out import LeftOut
from motarfuse.data.tracklets import Box
from motarfuse.errors import DataError

CSV_COLUMNS = ("frame", "track", "x", "y", "w", "h")
OPTIONAL_COLUMNS = ("visibility", "confidence", "class")
_ALIASES = {
    "track_id": "track",
    "id": "track",
    "left": "x",
    "top": "y",
    "width": "w",
    "height": "h",
    "conf": "confidence",
}
# MOTChallenge's class of a walking person; 2 sits on a vehicle, 7 is static, 8 and 12 are distractor and reflection.
MOT_PERSON = "1"
LAYOUTS = (
    "MOTChallenge text (frame,id,x,y,w,h[,conf[,class,visibility]], no header), CSV with the header "
    "frame,track,x,y,w,h, and COCO-video JSON (images with video_id and frame_id, annotations with track_id or "
    "instance_id and bbox)"
)


@dataclass(frozen=True, slots=True)
class TrackBox:
    """One person in one frame.

    Attributes:
        frame: Number of the frame, counted from 0.
        track: Name of the track as the file has it.
        box: (x, y, w, h) in pixels of the frame.
        visibility: Share of the person that can be seen, None where the file does not say.
        place: Where it stands in the file.
    """

    frame: int
    track: str
    box: Box
    visibility: float | None
    place: str


@dataclass
class BoxTable:
    """The boxes of one video.

    Attributes:
        path: The file.
        layout: What it was read as, in words.
        first_frame: Number that the file gives the video's first frame: 0 or 1.
        rows: Rows or annotations that were read, the ones left out too.
        boxes: What was kept, ordered by frame, then by track.
        left_out: What was not kept, and why.
        notes: Choices that were made.
    """

    path: Path
    layout: str
    first_frame: int
    rows: int
    boxes: list[TrackBox]
    left_out: LeftOut
    notes: list[str] = field(default_factory=list)

    @property
    def tracks(self) -> list[str]:
        """Names of the tracks, in natural order."""
        return sorted({one.track for one in self.boxes}, key=natural_key)


@dataclass(frozen=True, slots=True)
class RawBox:
    """A row as it stands in a file, nothing checked; numbers as text or as JSON has them."""

    place: str
    frame: object
    track: object
    box: tuple[object, ...]
    visibility: object = None
    confidence: object = None
    label: str | None = None
    reason: str | None = None  # why it cannot be used, where that is known already


def read_boxes(
    path: str | Path,
    *,
    first_frame: int | None = None,
    classes: Collection[str] | None = None,
    video: str | None = None,
) -> BoxTable:
    """Reads the boxes of one video; the content decides the layout.

    Rows may come in any order. What cannot be used is left out, counted and named: too few columns, something that is
    no number, NaN and infinity, a frame that is no whole number or comes before the first one, a size of zero or less,
    no track (-1), another class, confidence 0 (MOTChallenge: not to be considered) and a second box of a track in a
    frame.

    Args:
        path: Text or JSON file.
        first_frame: Number that the file gives the video's first frame. None: MOTChallenge and CSV count from 1, unless
            the file has a frame 0; COCO-video counts from 0, unless the first of the images listed is 1.
        classes: Classes to keep, as the file names or numbers them. None: in MOTChallenge files with a class column
            class 1 (a walking person), in COCO files the categories person and pedestrian, or the only one.
        video: In a COCO file of several videos, the name or the id of the one that is meant.

    Raises:
        DataError: The file cannot be read, is of no such layout, or has no box that can be used.
    """
    path = Path(path).expanduser()
    if first_frame not in (None, 0, 1):
        raise DataError(f"the first frame is {first_frame}; box files count from 0 or from 1")
    text = _read_text(path)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"{path}: the file is empty, there is no box in it; supported are {LAYOUTS}")
    notes: list[str] = []
    listed = None
    if first[0] in "{[":
        from motarfuse.data.boxes_coco import coco_boxes

        layout = "COCO-video JSON"
        raw, listed, classes = coco_boxes(path, text, classes, video)
    elif _is_number(_split(first)[0]):
        layout = "MOTChallenge text"
        raw = list(_mot_rows(path, text))
        if classes is None and any(row.label is not None for row in raw):
            classes = (MOT_PERSON,)
            notes.append("class 1 (pedestrian) is kept of MOTChallenge's classes")
    else:
        layout = "CSV table"
        raw = list(_csv_rows(path, text, first))
    if classes is not None and raw and all(row.label is None for row in raw):
        notes.append(f"{path.name} states no classes: all boxes are kept")
    if not raw:
        raise DataError(f"{path}: the file has no box (read as {layout})")
    if first_frame is None:
        first_frame, reason = _first_frame(raw, listed)
        notes.append(f"frames count from {first_frame} in {path.name}: {reason}")
    table = BoxTable(path, layout, first_frame, len(raw), [], LeftOut(), notes)
    _keep(table, raw, classes)
    if not table.boxes:
        raise DataError(f"{path}: none of its {len(raw):,} boxes can be used: {'; '.join(table.left_out.lines())}")
    return table


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, a file of boxes is needed (in a MOTChallenge sequence: gt/gt.txt)")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text (UTF-8); supported are {LAYOUTS}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _split(line: str) -> list[str]:
    pieces = line.split(",") if "," in line else line.split()
    return [piece.strip() for piece in pieces]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _mot_rows(path: Path, text: str) -> Iterator[RawBox]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        cells = _split(line)
        # 10 columns are those of trackers and of 2D MOT 2015: world coordinates where others have class and visibility.
        judged = len(cells) in (8, 9)
        label = cells[7] if judged and cells[7] not in ("-1", "-1.0", "") else None
        yield RawBox(
            f"line {number}",
            cells[0],
            cells[1] if len(cells) > 1 else None,
            tuple(cells[2:6]),
            cells[8] if len(cells) == 9 else None,
            cells[6] if len(cells) > 6 else None,
            _class_text(label),
        )


def _class_text(label: str | None) -> str | None:
    """The same class, however its number is written."""
    if label is None or not _is_number(label) or not float(label).is_integer():
        return label
    return str(int(float(label)))


def _csv_rows(path: Path, text: str, header: str) -> Iterator[RawBox]:
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    names: dict[str, int] = {}
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _columns(path, cells)
                continue
            values = {name: cells[column].strip() for name, column in names.items() if column < len(cells)}
            yield RawBox(
                f"line {reader.line_num}",
                values.get("frame"),
                values.get("track"),
                tuple(values[name] for name in ("x", "y", "w", "h") if name in values),
                values.get("visibility"),
                values.get("confidence"),
                _class_text(values.get("class")),
            )
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV: {error}") from error


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Place of each column that is known; a name of its own wins over an alias."""
    written = [name.strip().lower() for name in header]
    places: dict[str, int] = {}
    for name in (*CSV_COLUMNS, *OPTIONAL_COLUMNS):
        fitting = [
            one for one in (name, *(alias for alias, meant in _ALIASES.items() if meant == name)) if one in written
        ]
        if fitting:
            places[name] = written.index(fitting[0])
    missing = [name for name in CSV_COLUMNS if name not in places]
    if missing:
        raise DataError(
            f"{path}: the header has no column {', '.join(missing)} (found: {', '.join(written)}); supported are "
            f"{LAYOUTS}"
        )
    return places


def _first_frame(raw: list[RawBox], listed: list[int] | None) -> tuple[int, str]:
    if listed is not None:
        least = min(listed, default=0)
        return (1, "the first image listed is 1") if least == 1 else (0, f"the first image listed is {least}")
    if any(_number(row.frame) == 0 for row in raw):
        return 0, "it has a frame 0"
    return 1, "it has no frame 0, and such files count from 1 (--first-frame 0 says otherwise)"


def _number(value: object) -> float | None:
    """A number, NaN and infinity among them; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _keep(table: BoxTable, raw: list[RawBox], classes: Collection[str] | None) -> None:
    """Checks the rows one by one and fills the table."""
    unknown_visibility = 0
    kept: list[TrackBox] = []
    wanted = None if classes is None else {str(one).strip().lower() for one in classes}
    for row in raw:
        found = _checked(row, table.first_frame, wanted)
        if isinstance(found, str):
            table.left_out.add(found, row.place)
            continue
        visibility = _number(row.visibility)
        if visibility is not None and not 0 <= visibility <= 1:  # NaN too; -1 is MOTChallenge's "not known"
            visibility = None
            unknown_visibility += 1
        frame, track, box = found
        kept.append(TrackBox(frame, track, box, visibility, row.place))
    if unknown_visibility:
        table.notes.append(f"{unknown_visibility:,} visibilities outside [0, 1] are taken as not known")
    seen: dict[tuple[int, str], str] = {}
    for one in kept:
        earlier = seen.setdefault((one.frame, one.track), one.place)
        if earlier != one.place:
            table.left_out.add("a second box of the track in the frame", f"{one.place} (the first: {earlier})")
        else:
            table.boxes.append(one)
    table.boxes.sort(key=lambda one: (one.frame, natural_key(one.track)))


def _checked(row: RawBox, first_frame: int, wanted: set[str] | None) -> tuple[int, str, Box] | str:
    """Frame from 0, track and box of a row, or why it cannot be used."""
    if row.reason is not None:
        return row.reason
    if len(row.box) < 4:
        return "the box has fewer than four numbers"
    numbers = [_number(value) for value in (row.frame, *row.box[:4])]
    if any(number is None for number in numbers):
        return "frame or box is no number"
    frame, x, y, w, h = (number for number in numbers if number is not None)
    if not all(math.isfinite(number) for number in (frame, x, y, w, h)):
        return "NaN or infinite"
    if not frame.is_integer():
        return "the frame number is no whole number"
    if frame < first_frame:
        return f"the frame comes before the first one ({first_frame})"
    if w <= 0 or h <= 0:
        return "the box has no size"
    if wanted is not None and row.label is not None and row.label.lower() not in wanted:
        return f"another class ({row.label})"
    if _number(row.confidence) == 0:
        return "confidence 0, not to be considered"
    track = _track_name(row.track)
    if track is None:
        return "no track (-1 or empty): a detection that nobody has tracked"
    return int(frame) - first_frame, track, (x, y, w, h)


def _track_name(value: object) -> str | None:
    """Name of a track; 3, 3.0 and "3" are one. None: no track."""
    number = _number(value)
    if number is not None and math.isfinite(number) and number.is_integer():
        return None if number == -1 else str(int(number))
    if number is not None and not math.isfinite(number):
        return None
    return str(value).strip() or None if isinstance(value, (str, float)) else None
