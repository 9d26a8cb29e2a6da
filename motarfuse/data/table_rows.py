"""Tables of images or frames, CSV or Parquet: columns by name, and each row checked, named by its line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motarfuse.data.records import UNKNOWN_CAMERA
from motarfuse.errors import DataError

REQUIRED = ("path", "pid")
# The first name is this project's; the others are those of OML and of shorter hands.
NAMES = {
    "path": ("path",),
    "pid": ("pid", "label"),
    "camid": ("camid", "cam"),
    "split": ("split",),
    "track": ("track", "sequence"),
    "frame": ("frame",),
    "is_query": ("is_query",),
    "is_gallery": ("is_gallery",),
    "timestamp": ("timestamp",),
    "x": ("x",),
    "y": ("y",),
    "w": ("w",),
    "h": ("h",),
    "visibility": ("visibility",),
}
OML_BOX = ("x_1", "x_2", "y_1", "y_2")
SPLIT_VALUES = {"train": "train", "query": "query", "gallery": "gallery", "test": "gallery"}
TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
DEFAULT_NAMES = ("split.csv", "split.parquet")

_CAMERA = re.compile(r"\d+|-1", re.ASCII)
_INTEGER = re.compile(r"(-?\d+)(?:\.0)?", re.ASCII)
_FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
_NOTHING = ("", "none", "nan", "null", "<na>")


@dataclass(frozen=True, slots=True)
class Row:
    """One image or frame of a table.

    Attributes:
        place: Table and line, for messages.
        path: As the table writes it.
        pid: As the table writes it.
        camid: From 0, or -1.
        splits: Where it belongs; query and gallery at once are possible, and none at all.
        track: The tracklet's name, empty where there is none.
        frame: Frame number.
        timestamp: Seconds.
        box: (x, y, w, h) in pixels.
        visibility: Share in [0, 1].
    """

    place: str
    path: str
    pid: str
    camid: int
    splits: tuple[str, ...]
    track: str
    frame: int | None
    timestamp: float | None
    box: tuple[float, float, float, float] | None
    visibility: float | None


@dataclass(frozen=True)
class Rows:
    """A table that was read.

    Attributes:
        rows: Its rows, in order.
        columns: The header's name of each column that was used, by this project's name.
        notes: What a user should know.
    """

    rows: list[Row]
    columns: dict[str, str]
    notes: list[str]


def find_table(root: Path, *needed: str) -> Path | None:
    """The table of a dataset: the file itself, a folder's split.csv (.parquet), or its only table with the columns.

    Args:
        root: File or folder.
        needed: Columns beyond path and pid that it must have, by this project's names.
    """
    if root.is_file():
        return root if root.suffix.lower() in TABLE_SUFFIXES and (not needed or _has_columns(root, needed)) else None
    if not root.is_dir():
        return None
    for name in DEFAULT_NAMES:
        if (root / name).is_file():
            return root / name if not needed or _has_columns(root / name, needed) else None
    tables = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and _has_columns(path, needed)
    ]
    return tables[0] if len(tables) == 1 else None


def _has_columns(path: Path, needed: tuple[str, ...]) -> bool:
    try:
        header = _header(path)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError):
        return False
    except DataError:
        return True  # Parquet without pyarrow: reading it says so
    return all(any(name in header for name in NAMES[column]) for column in (*REQUIRED, *needed))


def _header(path: Path) -> list[str]:
    if path.suffix.lower() != ".csv":
        return [name.strip().lower() for name in _parquet(path).read_schema(path).names]
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [name.strip().lower() for name in next(csv.reader(file), [])]


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install motarfuse[data]") from error
    return pyarrow.parquet


def read_rows(table: Path) -> Rows:
    """Reads and checks a table.

    Raises:
        DataError: if it cannot be read, a column is missing or there twice, or a value is wrong; line and column are
            named.
    """
    source = _csv_values(table) if table.suffix.lower() == ".csv" else _parquet_values(table)
    _, header = next(source)
    columns = _columns(table, header)
    used = {name: header[place] for name, place in columns.items()}
    rows = [_parse(place, columns, values) for place, values in source]
    if not rows:
        raise DataError(f"{table}: the table has no rows below its header")
    notes = []
    if all(name in header for name in OML_BOX):
        notes.append("the boxes x_1, x_2, y_1, y_2 are not cut out: each file is taken to be one person's crop")
    unused = sum(not row.splits for row in rows)
    if unused:
        notes.append(f"{unused} of {len(rows)} rows are neither for training nor query nor gallery: not read")
    if "split" not in columns and "is_query" not in columns:
        notes.append("no column split: every row is for training")
    return Rows(rows, used, notes)


def _csv_values(table: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, values) of the header and of every line that is not empty."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            yield f"{table}, line 1", [name.strip().lower() for name in next(reader, [])]
            for values in reader:
                if any(value.strip() for value in values):
                    yield f"{table}, line {reader.line_num}", values
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: not a CSV table: {error}") from error


def _parquet_values(table: Path) -> Iterator[tuple[str, list[str]]]:
    parquet = _parquet(table)
    try:
        names = parquet.read_schema(table).names
        wanted = [name for name in names if any(name.strip().lower() in known for known in NAMES.values())]
        columns = parquet.read_table(table, columns=wanted).to_pydict()
    except (OSError, ValueError, TypeError) as error:  # pyarrow's own errors are kinds of these
        raise DataError(f"{table}: is no Parquet file that can be read: {error}") from error
    # What is not wanted keeps its name in the header and nothing below it.
    yield f"{table}, header", [name.strip().lower() for name in names]
    length = max((len(column) for column in columns.values()), default=0)
    for row in range(length):
        values = ["" if columns.get(name) is None else _text(columns[name][row]) for name in names]
        yield f"{table}, row {row + 1}", values


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # A column of integers with gaps is one of floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _columns(table: Path, header: list[str]) -> dict[str, int]:
    """Where each column is, by this project's name."""
    repeated = [name for names in NAMES.values() for name in names if header.count(name) > 1]
    if repeated:
        raise DataError(f"{table}, line 1: the column {repeated[0]} appears {header.count(repeated[0])} times")
    if "camid" in header and "cam" in header:
        raise DataError(f"{table}, line 1: there is a column camid and a column cam; keep one of them")
    found = {name: next((alias for alias in names if alias in header), None) for name, names in NAMES.items()}
    missing = [name for name in REQUIRED if found[name] is None]
    if missing:
        raise DataError(
            f"{table}, line 1: no column {' and no column '.join(missing)}; found {', '.join(header) or 'nothing'}, "
            f"needed are {', '.join(REQUIRED)} (separated by commas) and optionally camid, split, track, frame, "
            "is_query, is_gallery"
        )
    return {name: header.index(alias) for name, alias in found.items() if alias is not None}


def _parse(place: str, columns: dict[str, int], values: list[str]) -> Row:
    short = [name for name, column in columns.items() if column >= len(values)]
    if short:
        raise DataError(f"{place}: only {len(values)} values, the column {' and the column '.join(short)} is missing")

    def cell(name: str) -> str:
        if name not in columns:
            return ""
        value = values[columns[name]].strip()
        return value if name in ("path", "pid") or value.lower() not in _NOTHING else ""

    def number(name: str) -> float | None:
        text = cell(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{place}: {name} is {text!r}; supported are numbers, or nothing")
        return value

    path, pid, camera, frame = cell("path"), cell("pid"), cell("camid"), cell("frame")
    if not path or not pid:
        raise DataError(f"{place}: the column {'pid' if path else 'path'} is empty")
    camera = camera.removesuffix(".0")
    if camera and not _CAMERA.fullmatch(camera):
        raise DataError(f"{place}: camid is {camera!r}; supported are integers from 0, and -1 or nothing for unknown")
    frame_number = _INTEGER.fullmatch(frame)
    if frame and frame_number is None:
        raise DataError(f"{place}: frame is {frame!r}; supported are integers, or nothing")
    x, y, w, h = (number(name) for name in "xywh")
    box = None if x is None or y is None or w is None or h is None else (x, y, w, h)
    return Row(
        place,
        path,
        pid,
        int(camera) if camera else UNKNOWN_CAMERA,
        _splits(place, columns, cell("split").lower(), cell("is_query").lower(), cell("is_gallery").lower()),
        cell("track"),
        int(frame_number.group(1)) if frame_number else None,
        number("timestamp"),
        box,
        number("visibility"),
    )


def _splits(place: str, columns: dict[str, int], split: str, query: str, gallery: str) -> tuple[str, ...]:
    flagged = "is_query" in columns or "is_gallery" in columns
    for name, text in (("is_query", query), ("is_gallery", gallery)):
        if text and text not in _FLAGS:
            raise DataError(f"{place}: {name} is {text!r}; supported are true and false, 1 and 0, or nothing")
    if flagged and split != "train" and (query or gallery):
        return tuple(name for name, text in (("query", query), ("gallery", gallery)) if _FLAGS.get(text, False))
    if "split" not in columns:
        return ("train",)
    if flagged and split in ("validation", "val"):
        return ()
    if split not in SPLIT_VALUES:
        raise DataError(f"{place}: split is {split!r}; supported are {', '.join(SPLIT_VALUES)}")
    return (SPLIT_VALUES[split],)
