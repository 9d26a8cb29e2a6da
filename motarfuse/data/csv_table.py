"""Datasets described by a table: a CSV file with the columns path, pid, split and, if known, camid."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from motarfuse.data.files import name_some
from motarfuse.data.identities import number_identities
from motarfuse.data.records import JUNK_PID, UNKNOWN_CAMERA, ImageRecord, ReIDDataset, Skipped
from motarfuse.errors import DataError

REQUIRED = ("path", "pid", "split")
SPLIT_VALUES = {"train": "train", "query": "query", "gallery": "gallery", "test": "gallery"}
DEFAULT_NAME = "split.csv"
_CAMERA = re.compile(r"\d+|-1", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    pid: str
    camid: int
    split: str


def find_table(root: Path) -> Path | None:
    """The table of a dataset: the file itself, a folder's split.csv, or its only CSV file with the columns needed."""
    if root.is_file():
        return root if root.suffix.lower() == ".csv" else None
    if not root.is_dir():
        return None
    if (root / DEFAULT_NAME).is_file():
        return root / DEFAULT_NAME
    tables = [path for path in sorted(root.iterdir()) if path.suffix.lower() == ".csv" and _has_columns(path)]
    return tables[0] if len(tables) == 1 else None


def _has_columns(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(REQUIRED) <= {name.strip().lower() for name in header}


def is_table(root: Path) -> bool:
    """Whether `load_csv` would find a table here."""
    return find_table(root) is not None


def load_csv(root: str | Path, *, images_root: str | Path | None = None) -> ReIDDataset[ImageRecord]:
    """Loads a dataset from a CSV table, UTF-8 with a header line.

    Columns: ``path`` (relative to the table's folder, or absolute), ``pid`` (any text; integers are kept, -1 is junk),
    ``split`` (train, query, gallery or test) and optionally ``camid`` (an integer from 0, taken as it is; empty, -1 or
    no column: unknown). Further columns are ignored. Files that do not exist are listed in ``skipped``.

    Args:
        root: The table, or a folder with a split.csv or with a single CSV file of these columns.
        images_root: The folder that relative paths start from instead of the table's.

    Raises:
        DataError: if there is no table, a column is missing, a value is wrong (named by line and column), or none of
            the files exists.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    table = find_table(root)
    if table is None:
        raise DataError(
            f"{root}: no table found; give a .csv file, or a folder with {DEFAULT_NAME} or a single CSV file that has "
            f"the columns {', '.join(REQUIRED)} and optionally camid"
        )
    base = table.parent if images_root is None else Path(images_root).expanduser()
    rows, notes = _read_rows(table, base)
    numbers, were_numbers = number_identities(row.pid for row in rows)
    variant = f"table {table.name}" + ("" if images_root is None else f", paths relative to {base}")
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(base.resolve().name, "csv", root, variant, [], [], [], notes=notes)
    for row in rows:
        pid = numbers[row.pid]
        if pid == JUNK_PID:
            dataset.junk[row.split] = dataset.junk.get(row.split, 0) + 1
        elif not row.path.is_file():
            dataset.skipped.append(Skipped(row.path, "the table names it, but there is no such file"))
        else:
            dataset.subset(row.split).append(ImageRecord(row.path, pid, row.camid))
    if not (dataset.train or dataset.query or dataset.gallery):
        raise DataError(
            f"{table}: none of its {len(rows)} files exists; relative paths start from {base}, "
            f"the first is {rows[0].path}"
        )
    if dataset.skipped:
        names = name_some(str(skipped.path) for skipped in dataset.skipped)
        notes.append(f"{len(dataset.skipped)} files of the table do not exist: {names}")
    if not were_numbers:
        dataset.identity_names = {number: name for name, number in numbers.items()}
    return dataset


def _read_rows(table: Path, base: Path) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    notes: list[str] = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            columns = _columns(table, header)
            if "camid" not in columns:
                notes.append("no column camid: every camera is unknown, nothing counts as same-camera")
            rows.extend(
                _parse(f"{table}, line {reader.line_num}", columns, values, base)
                for values in reader
                if any(value.strip() for value in values)
            )
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: not a CSV table: {error}") from error
    if not rows:
        raise DataError(f"{table}: the table has no rows below its header")
    unknown = sum(row.camid == UNKNOWN_CAMERA for row in rows)
    if "camid" in columns and unknown:
        notes.append(f"{unknown} of {len(rows)} rows have no camera: unknown")
    return rows, notes


def _columns(table: Path, header: list[str]) -> dict[str, int]:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise DataError(
            f"{table}, line 1: no column {' and no column '.join(missing)}; found {', '.join(header) or 'nothing'}, "
            f"needed are {', '.join(REQUIRED)} (separated by commas) and optionally camid"
        )
    repeated = [name for name in (*REQUIRED, "camid") if header.count(name) > 1]
    if repeated:
        raise DataError(f"{table}, line 1: the column {repeated[0]} appears {header.count(repeated[0])} times")
    return {name: header.index(name) for name in (*REQUIRED, "camid") if name in header}


def _parse(place: str, columns: dict[str, int], values: list[str], base: Path) -> _Row:
    def cell(name: str) -> str:
        if name not in columns:
            return ""
        if columns[name] >= len(values):
            raise DataError(f"{place}: only {len(values)} values, the column {name} is missing")
        return values[columns[name]].strip()

    path, pid, split, camera = cell("path"), cell("pid"), cell("split").lower(), cell("camid")
    if not path or not pid:
        raise DataError(f"{place}: the column {'pid' if path else 'path'} is empty")
    if split not in SPLIT_VALUES:
        raise DataError(f"{place}: split is {split!r}; supported are {', '.join(SPLIT_VALUES)}")
    if camera and not _CAMERA.fullmatch(camera):
        raise DataError(f"{place}: camid is {camera!r}; supported are integers from 0, and -1 or nothing for unknown")
    return _Row(base / path, pid, int(camera) if camera else UNKNOWN_CAMERA, SPLIT_VALUES[split])
