"""Finding a dataset's own folder at or a little below what users pass as the root, and reading the lists beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from motarfuse.data.files import list_folder, name_some, natural_key
from motarfuse.errors import DataError

# market1501/Market-1501-v15.09.15, dukemtmcreid/Occluded_Duke, cuhk03/cuhk03_release, ... all lie at most two folders
# below what users pass as the root.
SEARCH_DEPTH = 2

_LISTED: ContextVar[dict[Path, list[Path]] | None] = ContextVar("_LISTED", default=None)


@contextmanager
def remembered_listings() -> Iterator[None]:
    """Lists each folder once for all that is asked inside: every kind of dataset looks into the same folders."""
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


def subfolders_of(folder: Path) -> list[Path]:
    """Folders inside, in natural order; a folder that may not be read (lost+found, say) has none."""
    listed = _LISTED.get()
    if listed is None:
        return _subfolders(folder)
    if folder not in listed:
        listed[folder] = _subfolders(folder)
    return listed[folder]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except (PermissionError, NotADirectoryError, FileNotFoundError):
        return []
    return [folder / name for name in sorted(names, key=natural_key)]


def find_below(root: Path, fits: Callable[[Path], bool], depth: int = SEARCH_DEPTH) -> list[Path]:
    """Every folder at or below the root that fits, nearest first: all of the first level that holds one.

    Args:
        root: Where to start.
        fits: Whether a folder is the one.
        depth: How many levels below the root are looked at.
    """
    level = [root]
    for left in range(depth, -1, -1):
        found = [folder for folder in level if fits(folder)]
        if found or not left:
            return found
        level = [below for folder in level for below in subfolders_of(folder)]
    return []


def choose_one(root: Path, found: list[Path], layout: str, needed: str) -> Path:
    """The only folder that was found.

    Args:
        root: What the user passed.
        found: Candidates, from `find_below`.
        layout: Name of the layout.
        needed: What such a folder holds, for the error.

    Raises:
        DataError: if there is none, or several.
    """
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(path.relative_to(root)) for path in found)
        raise DataError(f"{root}: several datasets in the {layout} layout below it ({listed}); point at one of them")
    inside = name_some(path.name for path in list_folder(root)[1]) or "no folder"
    raise DataError(f"{root}: no {needed} here or up to {SEARCH_DEPTH} folders below (found {inside})")


def place_of(base: Path, root: Path) -> str:
    """Where a dataset's folder lies, for ``ReIDDataset.variant``."""
    relative = base.relative_to(root).as_posix()
    return "the folder itself" if relative == "." else relative


def folders_by_name(folder: Path) -> dict[str, Path]:
    """The folders inside by their names in lower case."""
    return {path.name.lower(): path for path in subfolders_of(folder)}


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, each with its number from 1.

    Raises:
        DataError: if the file cannot be read, is not text, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: the list is empty")
    return lines


class Existing:
    """Which files exist, by listing each folder once: a dataset has 100,000 files in 1,000 folders."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                with os.scandir(path.parent) as entries:
                    self._names[path.parent] = frozenset(entry.name for entry in entries)
            except OSError:
                self._names[path.parent] = frozenset()
        return path.name in self._names[path.parent]


def skipped_note(names: Iterable[str], reason: str) -> list[str]:
    """One note on files that were skipped, none where there are none."""
    names = list(names)
    return [f"{len(names):,} images skipped, {reason}: {name_some(names)}"] if names else []
