"""Reading sets of tracklets: names listed once, no file stat-ed or opened, and what was left out."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from motarfuse.data.files import is_image_name, name_some, natural_key
from motarfuse.data.records import DISTRACTOR_PID, JUNK_PID, Skipped
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.errors import DataError

# A folder with more entries holds images or identities: no layout starts there.
MOST_ENTRIES = 1_000

MISSING = "a list names it, but there is no such file"
UNREADABLE = "its name does not say which frame it is"
REPEATED = "another file has the same frame number"
NO_FRAME = "a tracklet without any frame"
_LAST_NUMBER = re.compile(r"(\d+)\D*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listing:
    """Names inside a folder, hidden ones left out.

    Attributes:
        images: Names of images, sorted as text.
        folders: Names of folders, in natural order.
        others: Names of other files, in natural order.
    """

    images: list[str]
    folders: list[str]
    others: list[str]


def list_names(folder: Path) -> Listing:
    """What a folder holds, from one pass over its entries: no file is opened or stat-ed.

    Raises:
        DataError: The folder cannot be read.
    """
    images: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                # The usual suffixes first: splitting a million names costs seconds.
                if (name.endswith((".jpg", ".png")) and name[0] != ".") or is_image_name(name):
                    images.append(name)
                elif not name.startswith("."):
                    (folders if entry.is_dir() else others).append(name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    images.sort()
    return Listing(images, sorted(folders, key=natural_key), sorted(others, key=natural_key))


def entries_of(folder: Path) -> dict[str, str] | None:
    """Real name of each entry of a small folder by its lower-case name; None of a large or unreadable one."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MOST_ENTRIES + 1)]
    except OSError:
        return None
    # Of README and readme the first in order is taken, whatever the file system lists first.
    return None if len(names) > MOST_ENTRIES else {name.lower(): name for name in sorted(names, reverse=True)}


def holds(folder: Path, *names: str) -> bool:
    """Whether a small folder has an entry of any of these lower-case names, its own in any case."""
    entries = entries_of(folder)
    return entries is not None and any(name in entries for name in names)


def last_number(name: str) -> int | None:
    """The last number of a file's base name without its suffix: 317 of ``cam1_person001_00317.png``."""
    match = _LAST_NUMBER.search(name.rpartition(".")[0] or name)
    return None if match is None else int(match.group(1))


def entry_below(folder: Path, *parts: str) -> Path | None:
    """The file or folder at a path below a folder, each part in any case; None where it is not."""
    for part in parts:
        real = (entries_of(folder) or {}).get(part.lower())
        if real is None:
            return None
        folder = folder / real
    return folder


@dataclass
class Collector:
    """Adds tracklets to a dataset and remembers what it had to leave out.

    Attributes:
        dataset: What is filled.
    """

    dataset: TrackletDataset
    _names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _concerned: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _unnumbered: list[str] = field(default_factory=list)

    def leave_out(self, path: Path, reason: str, tracklet: str) -> None:
        """Names a file, or a tracklet's folder, that is not used."""
        self.dataset.skipped.append(Skipped(path, reason))
        self._left_out[reason].append(path.name)
        self._concerned[reason].add(tracklet)

    def build(
        self,
        split: str,
        name: str,
        pid: int,
        camid: int,
        folder: Path,
        files: Iterable[str],
        frame_of: Callable[[str], int | None],
    ) -> Tracklet | None:
        """A tracklet of files in any order; None if no file can be used.

        Files without a frame number, and all but the first of several with the same one, are left out and named. Where
        no file has a number, frames count from 0 in the natural order of their names.

        Args:
            split: Where its name has to be unique; it gets a number at its end if it is not.
            name, pid, camid, folder: As of `Tracklet`.
            files: Names relative to the folder.
            frame_of: The frame number in a file's name, None where it has none.
        """
        numbered: list[tuple[int, str]] = []
        without: list[str] = []
        for file in files:
            number = frame_of(file)
            if number is None:
                without.append(file)
            else:
                numbered.append((number, file))
        numbered.sort()
        if without and not numbered:
            numbered = list(enumerate(sorted(without, key=natural_key)))
            without = []
            self._unnumbered.append(name)
        for file in without:
            self.leave_out(folder / file, UNREADABLE, name)
        kept: list[tuple[int, str]] = []
        for number, file in numbered:
            if kept and kept[-1][0] == number:
                self.leave_out(folder / file, REPEATED, name)
            else:
                kept.append((number, file))
        if not kept:
            self.leave_out(folder, NO_FRAME, name)
            return None
        index, ordered = zip(*kept, strict=True)
        return Tracklet(self._unique(split, name), pid, camid, folder, ordered, index)

    def _unique(self, split: str, name: str) -> str:
        taken, unique, number = self._names[split], name, 1
        while unique in taken:
            number += 1
            unique = f"{name}#{number}"
        taken.add(unique)
        return unique

    def add(self, split: str, tracklet: Tracklet | None) -> None:
        """Puts a tracklet into a split; identity -1 is junk, dropped and counted."""
        if tracklet is None:
            return
        if tracklet.pid == JUNK_PID:
            self.dataset.junk[split] = self.dataset.junk.get(split, 0) + 1
        else:
            self.dataset.subset(split).append(tracklet)

    def report(self) -> None:
        """Notes on everything that was left out, by reason, and on frames that nobody numbered."""
        if self._unnumbered:
            self.dataset.notes.append(
                f"{len(self._unnumbered):,} tracklets have no frame numbers in their files' names: frames count from 0 "
                f"in natural order ({name_some(self._unnumbered)})"
            )
        for reason, names in self._left_out.items():
            concerned = self._concerned[reason]
            what = "tracklets" if reason == NO_FRAME else f"files of {len(concerned):,} tracklets"
            who = name_some(sorted(concerned, key=natural_key))
            self.dataset.notes.append(f"{len(names):,} {what} left out ({reason}): {name_some(names)}; tracklets {who}")


def name_distractors(dataset: TrackletDataset) -> None:
    """Identity 0 is a distractor unless somebody numbers real people from 0, which train or query tell."""
    if any(tracklet.pid == DISTRACTOR_PID for tracklet in (*dataset.train, *dataset.query)):
        dataset.notes.append("identity 0 is in train or query: identities count from 0 here, it is no distractor")
    elif any(tracklet.pid == DISTRACTOR_PID for tracklet in dataset.gallery):
        dataset.distractor_pid = DISTRACTOR_PID


def divide_test(
    dataset: TrackletDataset, test: Sequence[Tracklet | None], places: Sequence[int], queries_in_gallery: bool
) -> None:
    """Fills query and gallery, and notes how many queries each of the two gallery protocols can answer.

    Args:
        dataset: What is filled.
        test: Test tracklets in the order of the labels; None where no file was found.
        places: Which of them are queries.
        queries_in_gallery: Whether the gallery holds the queries.
    """
    kept = [(place, one) for place, one in enumerate(test) if one is not None and one.pid != JUNK_PID]
    junk = sum(one is not None for one in test) - len(kept)
    if junk:
        dataset.junk["gallery"] = junk
    usable, queries = dict(kept), set(places)
    dataset.query = [usable[place] for place in places if place in usable]
    lost = len(places) - len(dataset.query)
    if lost:
        dataset.notes.append(f"{lost:,} of {len(places):,} queries have no file at all, or are junk, and are left out")
    everything = list(usable.values())
    without = [one for place, one in kept if place not in queries]
    dataset.gallery = everything if queries_in_gallery else without
    if dataset.query:
        note_galleries(dataset, everything, without)


def num_answered(dataset: TrackletDataset, gallery: Sequence[Tracklet]) -> int:
    """Queries with a tracklet of their identity under another camera in that gallery."""
    trial = TrackletDataset("", "", dataset.root, "", [], dataset.query, list(gallery))
    return len(trial.query) - len(trial.queries_without_match())


def note_galleries(dataset: TrackletDataset, with_queries: Sequence[Tracklet], without: Sequence[Tracklet]) -> None:
    """Notes how many queries each of the two gallery protocols can answer: they are easily mistaken for each other."""
    total = len(dataset.query)
    dataset.notes.append(
        f"gallery with the queries (official): {len(with_queries):,} tracklets, "
        f"{num_answered(dataset, with_queries):,} of {total:,} queries can be answered; without them: "
        f"{len(without):,} tracklets, {num_answered(dataset, without):,} of {total:,}"
    )
