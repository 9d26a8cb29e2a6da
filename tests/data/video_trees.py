"""Tiny tracklet trees: empty files under the names of each layout, and folders that list them backwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from motarfuse.data.tracklets import Tracklet, TrackletDataset


def touch(folder: Path, names: Iterable[str]) -> Path:
    """Empty files, made in shuffled order; no loader may open one."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = list(names)
    for name in Random(len(listed)).sample(listed, len(listed)):
        (folder / name).touch()
    return folder


def write(path: Path, lines: Iterable[str]) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def sizes(dataset: TrackletDataset) -> tuple[int, int, int]:
    """Tracklets of train, query and gallery."""
    return len(dataset.train), len(dataset.query), len(dataset.gallery)


def by_name(tracklets: Iterable[Tracklet]) -> dict[str, Tracklet]:
    """Tracklets by their names, which are all different."""
    listed = list(tracklets)
    found = {tracklet.name: tracklet for tracklet in listed}
    assert len(found) == len(listed)
    return found


def say(dataset: TrackletDataset) -> str:
    """All notes in one text."""
    return " | ".join(dataset.notes)


def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every folder is listed in falling order, which no file system has to avoid."""
    real: Callable[..., Any] = os.scandir

    @contextmanager
    def listing(entries: list[os.DirEntry[str]]) -> Iterator[Iterator[os.DirEntry[str]]]:
        yield iter(entries)

    def scandir(path: Any = ".") -> Any:
        with real(path) as entries:
            return listing(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path=".": sorted((e.name for e in real(path)), reverse=True))
