"""What a dataset is: labelled images in three splits, with everything that was left out counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from motarfuse.errors import DataError

UNKNOWN_CAMERA = -1
"""Camera of an image whose camera nobody wrote down; it never counts as the same camera as another image's."""

JUNK_PID = -1
"""Identity of a detection that shows no person worth ranking; dropped when a dataset is loaded."""

DISTRACTOR_PID = 0
"""Identity of Market-1501's distractors: kept in the gallery, never a right answer."""

SPLITS = ("train", "query", "gallery")


class Labelled(Protocol):
    """Anything with an identity and a camera: an image, or a tracklet of images."""

    @property
    def pid(self) -> int: ...

    @property
    def camid(self) -> int: ...


RecordT = TypeVar("RecordT", bound=Labelled)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image file and its labels.

    Attributes:
        path: The file.
        pid: Identity as the files number it (0 is a distractor in Market-1501's numbering).
        camid: Camera, counted from 0; `UNKNOWN_CAMERA` (-1) when unknown.
    """

    path: Path
    pid: int
    camid: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Size of one split.

    Attributes:
        images: Images kept.
        identities: Identities among them, distractors apart.
        cameras: Known cameras.
        distractors: Images of the distractor identity (gallery only).
        junk: Images dropped because their identity is -1.
    """

    images: int
    identities: int
    cameras: int
    distractors: int = 0
    junk: int = 0


@dataclass(frozen=True)
class PublishedCounts:
    """What the authors of a dataset say it holds, per split; images and identities after the junk is dropped.

    Attributes:
        name: Of the dataset.
        images: Number of each split (of tracklets, where the dataset is one of these).
        identities: Number of each split.
        cameras: Number over all splits; None where none was published.
    """

    name: str
    images: dict[str, int]
    identities: dict[str, int]
    cameras: int | None


@dataclass
class ReIDDataset(Generic[RecordT]):
    """A loaded dataset: three lists of records and what was found on the way.

    Attributes:
        name: Short name, e.g. "Market-1501" when the folder looks like it, else the folder's own name.
        kind: The loader that read it: "market1501", "folder" or "csv".
        root: The folder or file that was asked for.
        variant: Which layout matched, in words.
        train: Training records.
        query: Query records.
        gallery: Gallery records, distractors included, junk dropped.
        notes: What a user should know: counts that differ from the published ones, choices that were made.
        skipped: Files left out at loading, each with its reason.
        junk: Dropped junk images per split.
        distractor_pid: The identity that stands for "nobody in the query set", None where the numbering has none.
        identity_names: Name of each identity where the files name them by something else than a number.
        published: The published counts of the dataset it looks like.
    """

    name: str
    kind: str
    root: Path
    variant: str
    train: list[RecordT]
    query: list[RecordT]
    gallery: list[RecordT]
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    junk: dict[str, int] = field(default_factory=dict)
    distractor_pid: int | None = None
    identity_names: dict[int, str] = field(default_factory=dict)
    published: PublishedCounts | None = None

    def subset(self, name: str) -> list[RecordT]:
        """The records of the split "train", "query" or "gallery".

        Raises:
            DataError: for another name.
        """
        if name not in SPLITS:
            raise DataError(f"there is no split {name!r}; the splits are {', '.join(SPLITS)}")
        records: list[RecordT] = getattr(self, name)
        return records

    @property
    def num_train_ids(self) -> int:
        """Number of identities of the training split."""
        return len({record.pid for record in self.train})

    def train_labels(self) -> list[int]:
        """Class of each training record: 0..C-1, in the order of the sorted identities."""
        return contiguous_labels(self.train)

    def counts(self, name: str) -> SplitCounts:
        """Images, identities, cameras, distractors and dropped junk of one split."""
        records = self.subset(name)
        distractor = self.distractor_pid if name == "gallery" else None
        pids = {record.pid for record in records}
        return SplitCounts(
            images=len(records),
            identities=len(pids - {distractor}),
            cameras=len({record.camid for record in records} - {UNKNOWN_CAMERA}),
            distractors=sum(record.pid == distractor for record in records),
            junk=self.junk.get(name, 0),
        )

    def queries_without_match(self) -> list[RecordT]:
        """Queries that no gallery record can answer: none of the same identity under another (or an unknown) camera."""
        cameras: dict[int, set[int]] = {}
        for record in self.gallery:
            cameras.setdefault(record.pid, set()).add(record.camid)
        return [record for record in self.query if not _has_match(record, cameras.get(record.pid, set()))]

    def require_training(self) -> None:
        """Checks that the training split can train a ReID model.

        Raises:
            DataError: if it is empty or holds one identity only: neither a classifier nor a triplet can be learned.
        """
        if not self.train:
            raise DataError(
                f"{self.root}: no training images (found {self._found()}, layout: {self.variant}); "
                "add a training split or choose a dataset that has one"
            )
        if self.num_train_ids < 2:
            raise DataError(
                f"{self.root}: the training split holds one identity only (pid {self.train[0].pid}, "
                f"{len(self.train)} images); training needs at least two, a classifier and a triplet compare people"
            )

    def require_evaluation(self) -> None:
        """Checks that query and gallery can be scored.

        Raises:
            DataError: if either is empty, or if no query has a gallery image of its identity from another camera.
        """
        if not self.query or not self.gallery:
            missing = " and ".join(name for name in ("query", "gallery") if not self.subset(name))
            raise DataError(
                f"{self.root}: no {missing} images (found {self._found()}, layout: {self.variant}); "
                "evaluation needs both a query and a gallery split"
            )
        if len(self.queries_without_match()) == len(self.query):
            raise DataError(
                f"{self.root}: none of the {len(self.query)} queries has a gallery image of the same identity from "
                f"another camera ({len({r.pid for r in self.query} & {r.pid for r in self.gallery})} identities are in "
                "both splits); check the identities, and the camera labels: images of one person under one camera do "
                "not count as a match"
            )

    def _found(self) -> str:
        return ", ".join(f"{name} {len(self.subset(name))}" for name in SPLITS)


def _has_match(query: Labelled, cameras: set[int]) -> bool:
    if query.camid == UNKNOWN_CAMERA:
        return bool(cameras)
    return bool(cameras - {query.camid})


def contiguous_labels(records: Sequence[Labelled]) -> list[int]:
    """Class of each record: 0..C-1, in the order of the sorted identities.

    Args:
        records: Anything with a ``pid``.
    """
    order = {pid: label for label, pid in enumerate(sorted({record.pid for record in records}))}
    return [order[record.pid] for record in records]
