"""The data of a comparison's studies: identity splits drawn anew, and evaluation sets with covered queries."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from motarfuse import console
from motarfuse.data import ImageReadError, ImageRecord, ReIDDataset, load_dataset, read_image
from motarfuse.data.covered import MAX_SHARE, cover, draw_share
from motarfuse.engine.outputs import atomic_folder, write_synced
from motarfuse.engine.run_folder import data_fingerprint
from motarfuse.errors import ConfigError, DataError, OutputError

TABLE = "split.csv"
MANIFEST = "manifest.json"
PLAIN = "plain"
# Raised whenever the same seed would give other splits or other pixels.
VERSION = 1


@dataclass
class CoveredRange:
    """Shares of the crop that things cover, uniform between the two."""

    min: float = field(default=0.3, metadata={"help": "smallest covered share"})
    max: float = field(default=0.5, metadata={"help": "largest covered share"})


@dataclass(frozen=True)
class CoveredSet:
    """An evaluation set whose queries are covered by a share of the crop in [low, high]."""

    name: str
    folder: Path
    low: float
    high: float


@dataclass(frozen=True)
class StudySets:
    """What a study trains on and is evaluated on.

    Attributes:
        name: The study.
        given: The data as the file names it.
        given_kind: Its layout.
        root, kind: What is trained on: ``given``, or the table of a split drawn anew.
        split: "given" or "random:SEED".
        trained: Sets that are evaluated while training, by name.
        covered: Sets with covered queries, those of the curve included.
        curve: Covered share -> name of its set, rising; share 0 is a set of ``trained``.
    """

    name: str
    given: str
    given_kind: str
    root: str
    kind: str
    split: str
    trained: dict[str, str]
    covered: list[CoveredSet]
    curve: dict[float, str]

    @property
    def sets(self) -> dict[str, str]:
        """Every evaluation set: those of ``trained``, then those of the curve alone."""
        return self.trained | {one.name: str(one.folder) for one in self.covered if one.name in self.curve.values()}


def parse_split(text: str, key: str) -> int | None:
    """The seed of ``random:SEED``, None for ``given``.

    Raises:
        ConfigError: It is neither.
    """
    if text == "given":
        return None
    match = re.fullmatch(r"random:(\d+)", text)
    if match is None:
        raise ConfigError(f"{key} must be given or random:SEED, e.g. random:1, got {text!r}")
    return int(match[1])


def plan_sets(
    name: str,
    folder: Path,
    *,
    root: str,
    kind: str,
    sets: Mapping[str, str],
    split: str,
    covered: CoveredRange | None,
    curve: Sequence[float],
) -> StudySets:
    """Names and places of a study's data; nothing is read or written.

    Args:
        name: The study.
        folder: Where what must be written will be.
        root, kind, sets, split, covered, curve: As the comparison's file has them.

    Raises:
        ConfigError: A share is out of range, or two sets would share a name.
    """
    key = f"studies.{name}"
    trained = dict(sets)
    given, given_kind = root, kind
    if parse_split(split, f"{key}.split") is not None:
        root, kind = str(folder / f"split-{split.replace(':', '-')}"), "csv"
    if not trained or ((covered or curve) and given not in trained.values()):
        _new_name(f"{key}.sets", PLAIN, trained)
        trained[PLAIN] = root
    else:
        # A set that is the training data's own query and gallery follows its split.
        trained = {one: root if place == given else place for one, place in trained.items()}
    plain = next(one for one, place in trained.items() if place == root) if covered or curve else PLAIN
    written: dict[str, CoveredSet] = {}

    def add(low: float, high: float, where: str) -> str:
        if not 0 < low <= high <= MAX_SHARE:
            raise ConfigError(f"{where} must be shares above 0, at most {MAX_SHARE}, rising; got {low:g} and {high:g}")
        one = f"covered-{100 * low:g}" + (f"-{100 * high:g}" if high > low else "")
        if one not in written:
            _new_name(f"{key}.sets", one, trained)
            written[one] = CoveredSet(one, folder / f"{split.replace(':', '-')}-{one}", low, high)
        return one

    points = {share: plain if share == 0 else add(share, share, f"{key}.covered_curve") for share in sorted(set(curve))}
    if covered is not None:
        one = add(covered.min, covered.max, f"{key}.covered")
        trained[one] = str(written[one].folder)
    return StudySets(name, given, given_kind, root, kind, split, trained, list(written.values()), points)


def _new_name(key: str, name: str, taken: Mapping[str, Any]) -> None:
    if name in taken:
        raise ConfigError(f"{key}: the name {name!r} is needed for a set that is made here; choose another")


def prepare_sets(study: StudySets) -> None:
    """Writes what a study needs and does not have yet: its split's table, and its sets with covered queries.

    Raises:
        DataError: The data cannot be read, or gives no such split.
        OutputError: It cannot be written, or a folder holds a set of other data.
    """
    dataset = load_dataset(study.given, study.given_kind)
    seed = parse_split(study.split, f"studies.{study.name}.split")
    if seed is not None:
        dataset = draw_split(dataset, seed)
        _write(Path(study.root), dataset, {"split": study.split})
    if study.covered:
        dataset.require_evaluation()
    for one in study.covered:
        _write(one.folder, dataset, {"split": study.split, "covered": [one.low, one.high]}, one)


def draw_split(dataset: ReIDDataset[ImageRecord], seed: int) -> ReIDDataset[ImageRecord]:
    """Draws training and test identities anew from all identities of a dataset.

    As many identities train as before, all their images; of the others, images from the cameras that held queries are
    queries and images from the cameras that held the gallery are the gallery. Identities are ordered by SHA-256 of seed
    and number, so that the split is the same on every machine.

    Args:
        dataset: With training images, and with queries and gallery under different cameras.
        seed: Of the split.

    Raises:
        DataError: A camera holds both queries and gallery, or a split would be empty.
    """
    cameras = {name: {record.camid for record in dataset.subset(name)} for name in ("query", "gallery")}
    both = cameras["query"] & cameras["gallery"]
    if both or not all(cameras.values()):
        found = ", ".join(map(str, sorted(both))) or "none in one of them"
        raise DataError(
            f"{dataset.root}: a random split needs cameras that hold queries only and cameras that hold the gallery "
            f"only; shared: {found}"
        )
    records = [*dataset.train, *dataset.query, *dataset.gallery]
    pids = sorted({record.pid for record in records} - {dataset.distractor_pid})
    pids.sort(key=lambda pid: hashlib.sha256(f"{seed}/{pid}".encode()).digest())
    training = set(pids[: dataset.num_train_ids])
    train = [record for record in records if record.pid in training]
    query, gallery = (
        [record for record in records if record.pid not in training and record.camid in cameras[name]]
        for name in ("query", "gallery")
    )
    variant = f"identities drawn anew, seed {seed}"
    drawn = ReIDDataset(dataset.name, "csv", dataset.root, variant, train, query, gallery)
    drawn.require_training()
    drawn.require_evaluation()
    return drawn


def _write(
    folder: Path, dataset: ReIDDataset[ImageRecord], made_by: Mapping[str, Any], covered: CoveredSet | None = None
) -> None:
    """A table with absolute paths, and PNG queries where these are covered; nothing where all of it is there."""
    root = dataset.root.resolve()
    content = {
        "version": VERSION,
        **made_by,
        "data": {name: data_fingerprint(dataset.subset(name)) for name in ("train", "query", "gallery")},
    }
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        old_root = found.pop("root")
    except (OSError, ValueError, KeyError, AttributeError):
        found = None  # absent, or cut off: it is written anew
    if found is not None and found != content:
        raise OutputError(f"{folder} was made from other data or another version; delete it, or choose another --out")
    if found is not None and old_root == str(root):
        return
    with atomic_folder(folder) as partial:
        rows = [
            (str(record.path.resolve()), record.pid, record.camid, name)
            for name in ("train", "query", "gallery")
            if covered is None or name == "gallery"
            for record in dataset.subset(name)
        ]
        if covered is not None:
            rows += _write_covered(partial, dataset.query, covered)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "pid", "camid", "split"))
        writer.writerows(rows)
        write_synced(partial / TABLE, text.getvalue().encode("utf-8", "surrogateescape"))
        write_synced(partial / MANIFEST, (json.dumps({"root": str(root), **content}, indent=2) + "\n").encode())


def _write_covered(
    folder: Path, records: Sequence[ImageRecord], covered: CoveredSet, seed: int = 0
) -> list[tuple[str, int, int, str]]:
    """Covered copies of images as PNG in ``folder/query``; returns the rows of their table, paths relative to it."""
    (folder / "query").mkdir()
    rows = []
    for index, record in enumerate(console.track(records, f"covering {covered.name}")):
        try:
            image = read_image(record.path)
        except ImageReadError as error:
            console.warn(f"{covered.name}: a query is left out: {error}")
            continue
        name = record.path.name
        pasted, _ = cover(image, draw_share(covered.low, covered.high, seed=seed, name=name), seed=seed, name=name)
        file = io.BytesIO()
        Image.fromarray(pasted).save(file, "PNG")
        place = f"query/{index:05d}_{record.path.stem}.png"
        write_synced(folder / place, file.getvalue())
        rows.append((place, record.pid, record.camid, "query"))
    return rows
