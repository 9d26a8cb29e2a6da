"""Two-camera tracklet sets whose splits are lists of people: one tracklet a person and camera."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motarfuse.data.files import name_some, natural_key
from motarfuse.data.identities import number_identities
from motarfuse.data.tracklet_files import Collector, last_number, list_names
from motarfuse.errors import DataError

NUM_SPLITS = 10
# The folder's own name, person001 or person_0001; nothing of the path above it counts.
_PERSON = re.compile(r"person_?(\d+)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class PeopleSplit:
    """Names of the people's folders that train, and of those that test."""

    train: list[str]
    test: list[str]


@dataclass(frozen=True)
class Cameras:
    """The folders of two cameras, and the people in them in natural order."""

    folders: tuple[Path, Path]
    people: tuple[list[str], list[str]]

    @property
    def in_both(self) -> list[str]:
        """People under both cameras, in natural order."""
        return [name for name in self.people[0] if name in set(self.people[1])]


def list_cameras(first: Path | None, second: Path | None) -> Cameras:
    """The people of two cameras' folders.

    Raises:
        DataError: A folder that is not there, cannot be listed, or has no person's folder.
    """
    if first is None or second is None:
        raise DataError(f"{first or second or 'dataset'}: the folder of the other camera is not there")
    people = (list_names(first).folders, list_names(second).folders)
    for folder, names in zip((first, second), people, strict=True):
        if not names:
            raise DataError(f"{folder}: no folders of people inside")
    return Cameras((first, second), people)


def read_splits(path: Path) -> list[PeopleSplit]:
    """Splits from JSON: ``[{"train": ["person_0001", ...], "test": [...]}, ...]``; keys besides these are ignored.

    Raises:
        DataError: The file is not of that form.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable JSON: {error}") from error
    splits = []
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        lists = [value.get(key) if isinstance(value, dict) else None for key in ("train", "test")]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            raise DataError(
                f'{path}, split {number}: needed are two lists of folder names, {{"train": [...], "test": [...]}}'
            )
        splits.append(PeopleSplit(value["train"], value["test"]))
    return splits


def pick_split(splits: Sequence[PeopleSplit], index: int, path: Path) -> PeopleSplit:
    """One of the splits of a file.

    Raises:
        DataError: There is no such split, or a person is in both of its lists.
    """
    if not 0 <= index < len(splits):
        raise DataError(f"{path}: there is no split {index}; splits 0 to {len(splits) - 1} are in it")
    both = sorted(set(splits[index].train) & set(splits[index].test), key=natural_key)
    if both:
        raise DataError(f"{path}, split {index}: trains and tests with the same people: {name_some(both)}")
    return splits[index]


def generate_splits(people: Sequence[str], seed: int, count: int = NUM_SPLITS) -> list[dict[str, list[str]]]:
    """Splits into two halves that depend on the names and the seed alone.

    In split i the people are ordered by the SHA-256 digest of the text ``<seed>/<i>/<name>``; the first half (the
    smaller one of an odd number) tests, the rest trains, each in natural order.

    Args:
        people: Folder names.
        seed: Any integer.
        count: How many splits.

    Returns:
        What ``json.dump`` writes as a split file.
    """

    splits = []
    for index in range(count):
        digests = {name: hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest() for name in people}
        order = sorted(people, key=digests.__getitem__)
        half = len(order) // 2
        splits.append({"train": sorted(order[half:], key=natural_key), "test": sorted(order[:half], key=natural_key)})
    return splits


def add_people(collector: Collector, cameras: Cameras, split: PeopleSplit, source: str) -> None:
    """Adds the tracklets of a split: train from both cameras, query from the first, gallery from the second.

    Args:
        collector: What is filled.
        cameras: Where the tracklets lie.
        split: Who is in it.
        source: Where the split comes from, for the note on people without a folder.
    """
    numbers = _number_people([*cameras.people[0], *cameras.people[1], *split.train, *split.test])
    dataset = collector.dataset
    lost: list[str] = []
    for names, places in ((split.train, (("train", 0), ("train", 1))), (split.test, (("query", 0), ("gallery", 1)))):
        for target, camid in places:
            known = set(cameras.people[camid])
            for name in sorted(names, key=natural_key):
                if name not in known:
                    lost.append(f"{cameras.folders[camid].name}/{name}")
                    continue
                folder = cameras.folders[camid] / name
                files = list_names(folder).images
                title = f"{cameras.folders[camid].name}/{name}"
                collector.add(target, collector.build(target, title, numbers[name], camid, folder, files, last_number))
    if lost:
        dataset.notes.append(f"{len(lost)} folders that {source} names are not there: {name_some(lost)}")
    if not all(_PERSON.fullmatch(name) for name in numbers):
        dataset.identity_names = {number: name for name, number in numbers.items()}


def _number_people(names: Sequence[str]) -> dict[str, int]:
    """The number in person001 or person_0001; other names are numbered in natural order."""
    distinct = set(names)
    found = {name: _PERSON.fullmatch(name) for name in distinct}
    numbers = {name: int(match.group(1)) for name, match in found.items() if match is not None}
    if len(numbers) == len(distinct) == len(set(numbers.values())):
        return numbers
    return number_identities(distinct)[0]
