"""The label files of MARS and folders in its layout: which frames make a tracklet, which tracklets are queries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from motarfuse.data.files import natural_key
from motarfuse.data.layout import read_lines
from motarfuse.data.matrix_files import Integers, MissingPackageError, read_integers
from motarfuse.data.tracklet_files import entries_of, entry_below
from motarfuse.errors import DataError

# MARS calls its files tracks_train_info.mat and query_IDX.mat; other sets in its layout leave out the s.
TRACKS = ("tracks_{}_info", "track_{}_info")
QUERY_ROWS = ("query_idx",)
QUERY_NAMES = ("query.json", "query.txt", "query_name.txt")


@dataclass(frozen=True)
class SplitTables:
    """The tables of one split.

    Attributes:
        names: File names in the order that the rows count.
        rows: (n, 4): first and last name of a tracklet, counted from 1; identity; camera, counted from 1.
        names_file: Where the names came from.
        rows_file: Where the rows came from.
    """

    names: list[str]
    rows: Integers
    names_file: Path
    rows_file: Path


class MarsInfo:
    """The folder ``info`` of a dataset in the layout of MARS.

    Args:
        base: The folder with bbox_train and bbox_test.
    """

    def __init__(self, base: Path) -> None:
        self.files: dict[str, Path] = {}
        for parts in (("MARS-evaluation", "info"), ("info",)):
            folder = entry_below(base, *parts)
            if folder is not None:
                self.files.update({low: folder / name for low, name in (entries_of(folder) or {}).items()})
        self.notes: list[str] = []

    def tables(self, split: str) -> SplitTables | None:
        """The tables of "train" or "test"; None where either is missing.

        Raises:
            DataError: A row that names no files, or contradicts itself.
        """
        names_file = self.files.get(f"{split}_name.txt")
        rows_file = self._matrix([pattern.format(split) for pattern in TRACKS])
        if names_file is None or rows_file is None:
            present = names_file or rows_file
            if present is not None:
                self.notes.append(
                    f"{present.name} is of no use without {TRACKS[0].format(split)} and {split}_name.txt: tracklets of "
                    f"bbox_{split} are grouped by the names of their files"
                )
            return None
        names = [line.rpartition("/")[2] for line in _lines(names_file)]
        rows = self._read(rows_file)
        if rows.size and rows.shape[1] != 4:
            raise DataError(f"{rows_file}: {rows.shape[1]} columns, needed are four: first, last, identity, camera")
        for number, (first, last, _, camera) in enumerate(rows.tolist(), start=1):
            if not 1 <= first <= last <= len(names) or camera < 1:
                raise DataError(
                    f"{rows_file}, row {number}: names {first} to {last} under camera {camera}; {names_file} has "
                    f"{len(names)} names, counted from 1, and cameras count from 1"
                )
        return SplitTables(names, rows, names_file, rows_file)

    def query_rows(self, number: int) -> list[int] | None:
        """Rows of the test tracklets, from 0, that are queries; None where no file says so.

        Args:
            number: How many test tracklets there are.

        Raises:
            DataError: A row that does not exist, or is named twice.
        """
        path = self._matrix(list(QUERY_ROWS))
        if path is None:
            return None
        rows: list[int] = (self._read(path).ravel() - 1).tolist()
        wrong = next((row for row in rows if not 0 <= row < number), None)
        if wrong is not None:
            raise DataError(f"{path}: tracklet {wrong + 1}, but there are {number} test tracklets, counted from 1")
        if len(set(rows)) != len(rows):
            twice = next(row for place, row in enumerate(rows) if row in rows[:place])
            raise DataError(f"{path}: tracklet {twice + 1} is a query twice")
        return rows

    def query_names(self, known: dict[str, int]) -> list[int] | None:
        """Places of the test tracklets that ``query.json`` or ``query.txt`` names; None where there is none of them.

        Args:
            known: Place of each test tracklet by its name, such as ``0001C1T0001``.

        Raises:
            DataError: A name that no test tracklet has.
        """
        path = next((self.files[name] for name in QUERY_NAMES if name in self.files), None)
        if path is None:
            return None
        names = _read_json_names(path) if path.suffix.lower() == ".json" else _lines(path)
        unknown = [name for name in names if name not in known]
        if unknown:
            example = min(known, key=natural_key, default="none")
            raise DataError(f"{path}: no test tracklet is called {unknown[0]}; they are called like {example}")
        return [known[name] for name in dict.fromkeys(names)]

    def has_query_rows(self) -> bool:
        """Whether a file says by number which tracklets are queries."""
        return any(f"{name}{suffix}" in self.files for name in QUERY_ROWS for suffix in (".mat", ".txt"))

    def _matrix(self, names: list[str]) -> Path | None:
        found = (self.files.get(f"{name}{suffix}") for suffix in (".mat", ".txt") for name in names)
        return next((path for path in found if path is not None), None)

    def _read(self, path: Path) -> Integers:
        """A matrix; of a .mat and a .txt of the same name the latter where scipy is not installed."""
        try:
            return read_integers(path)
        except MissingPackageError:
            other = self.files.get(f"{path.stem}.txt".lower())
            if other is None:
                raise
            return read_integers(other)


def _lines(path: Path) -> list[str]:
    """The lines of a list; one of a single camera without queries, or without a training set, is empty."""
    return [] if path.stat().st_size == 0 else [line for _, line in read_lines(path)]


def _read_json_names(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{path}: a list of names of test tracklets is needed, such as ["0001C1T0001"]')
    return names
