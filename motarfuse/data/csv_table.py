"""Datasets described by a table, CSV or Parquet: the columns path and pid, and if known camera and split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from motarfuse.data.files import name_some
from motarfuse.data.identities import number_identities
from motarfuse.data.layout import Existing
from motarfuse.data.records import JUNK_PID, UNKNOWN_CAMERA, ImageRecord, ReIDDataset, Skipped
from motarfuse.data.table_rows import DEFAULT_NAMES, REQUIRED, Row, Rows, find_table, read_rows
from motarfuse.errors import DataError

BOTH = ("query", "gallery")


def is_table(root: Path) -> bool:
    """Whether `load_csv` would find a table here."""
    return find_table(root) is not None


def locate_table(root: str | Path, *needed: str) -> Path:
    """The table of a dataset.

    Args:
        root: The table, or a folder with a split.csv, a split.parquet or a single table of these columns.
        needed: Columns that it must have beside path and pid.

    Raises:
        DataError: if there is none.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    table = find_table(root, *needed)
    if table is None:
        raise DataError(
            f"{root}: no table found; expected a .csv or .parquet file, or a folder with {' or '.join(DEFAULT_NAMES)} "
            f"or with one table of the columns {', '.join((*REQUIRED, *needed))}"
        )
    return table


def load_csv(root: str | Path, *, images_root: str | Path | None = None) -> ReIDDataset[ImageRecord]:
    """Loads a dataset from a table: CSV (UTF-8 with a header line) or Parquet.

    Columns: ``path`` (relative to the table's folder, or absolute), ``pid`` or ``label`` (any text; integers are kept,
    -1 is junk), ``split`` (train, query, gallery or test; without it all is for training) or OML's ``is_query`` and
    ``is_gallery``, and optionally ``camid`` or ``cam`` (an integer from 0, taken as it is; empty, -1 or no column:
    unknown). Where there is no camera but OML's ``sequence``, that is the camera: images of one sequence are no answer
    to each other. A row that is query and gallery at once and has no camera gets one of its own, so that it is not its
    own answer. Further columns are ignored. Files that do not exist are listed in ``skipped``.

    Args:
        root: The table, or a folder with a split.csv (.parquet) or with a single table of these columns.
        images_root: The folder that relative paths start from instead of the table's.

    Raises:
        DataError: if there is no table, a column is missing, a value is wrong (named by line and column), or none of
            the files exists.
    """
    root = Path(root).expanduser()
    table = locate_table(root)
    base = table.parent if images_root is None else Path(images_root).expanduser()
    read = read_rows(table)
    notes = [*read.notes]
    rows = _with_cameras(read, notes)
    numbers, were_numbers = number_identities(row.pid for row in rows if row.splits)
    dataset: ReIDDataset[ImageRecord] = ReIDDataset(
        base.resolve().name, "csv", root, f"table {table.name}", [], [], [], notes=notes
    )
    existing = Existing()
    for row in rows:
        path = base / row.path
        if row.splits and path not in existing:
            dataset.skipped.append(Skipped(path, "no such file"))
            continue
        for split in row.splits:
            if numbers[row.pid] == JUNK_PID:
                dataset.junk[split] = dataset.junk.get(split, 0) + 1
            else:
                dataset.subset(split).append(ImageRecord(path, numbers[row.pid], row.camid))
    if len(dataset.skipped) == len(rows):
        raise DataError(
            f"{table}: none of its {len(rows)} files exists; relative paths start from {base}, e.g. "
            f"{dataset.skipped[0].path}"
        )
    if dataset.skipped:
        names = name_some(skipped.path.name for skipped in dataset.skipped)
        notes.append(f"{len(dataset.skipped)} files of the table do not exist and are skipped: {names}")
    if not were_numbers:
        dataset.identity_names = {number: name for name, number in numbers.items()}
    return dataset


def _with_cameras(read: Rows, notes: list[str]) -> list[Row]:
    rows = read.rows
    if "camid" not in read.columns and read.columns.get("track") == "sequence":
        sequences = {name: number for number, name in enumerate(sorted({row.track for row in rows if row.track}))}
        notes.append(f"no column camid: the {len(sequences)} sequences count as cameras")
        rows = [replace(row, camid=sequences.get(row.track, UNKNOWN_CAMERA)) for row in rows]
    elif "camid" not in read.columns:
        notes.append("no column camid: every camera is unknown, nothing counts as same-camera")
    unknown = sum(row.camid == UNKNOWN_CAMERA for row in rows)
    if unknown and unknown < len(rows):
        notes.append(f"{unknown} of {len(rows)} rows have no camera: unknown")
    alone = [row for row in rows if row.splits == BOTH and row.camid == UNKNOWN_CAMERA]
    if alone:
        first = 1 + max(row.camid for row in rows)
        own = {id(row): first + number for number, row in enumerate(alone)}
        rows = [replace(row, camid=own.get(id(row), row.camid)) for row in rows]
        notes.append(
            f"{len(alone)} rows are query and gallery at once and have no camera: each gets a camera of its own, so "
            "that it is not its own answer"
        )
    return rows
