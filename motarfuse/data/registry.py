"""The dataset kinds by name, and the one function that loads any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from motarfuse.data.csv_table import is_table, load_csv
from motarfuse.data.files import list_folder, name_some
from motarfuse.data.folder import is_folder_per_identity, load_folder
from motarfuse.data.market1501 import is_market1501, load_market1501
from motarfuse.data.records import ImageRecord, ReIDDataset
from motarfuse.errors import DataError


@dataclass(frozen=True)
class DatasetKind:
    """A way to lay out a dataset.

    Attributes:
        name: What ``kind=`` says.
        summary: What it looks like on disk.
        detect: Whether a path looks like it.
        load: Loads it; takes the path and the options named in ``options``.
        options: Names of the keyword arguments that ``load`` takes.
    """

    name: str
    summary: str
    detect: Callable[[Path], bool]
    load: Callable[..., ReIDDataset[ImageRecord]]
    options: tuple[str, ...] = ()


# In the order in which "auto" tries them: the most specific first. A table may lie beside folders of images, and any
# folder with folders of images inside looks like one folder per identity.
KINDS = {
    kind.name: kind
    for kind in (
        DatasetKind(
            "market1501",
            "bounding_box_train, query and bounding_box_test with names like 0002_c1s1_000451_03.jpg",
            is_market1501,
            load_market1501,
            ("extra_distractors",),
        ),
        DatasetKind(
            "csv",
            "a table with the columns path, pid, split and optionally camid (a .csv file, or a folder with split.csv)",
            is_table,
            load_csv,
            ("images_root",),
        ),
        DatasetKind(
            "folder",
            "one folder per identity, on its own or inside train, query and gallery",
            is_folder_per_identity,
            load_folder,
        ),
    )
}


def load_dataset(
    root: str | Path,
    kind: str = "auto",
    *,
    extra_distractors: bool = False,
    images_root: str | Path | None = None,
) -> ReIDDataset[ImageRecord]:
    """Loads a dataset from a folder or a table.

    Args:
        root: Folder or CSV file.
        kind: "market1501", "csv", "folder", or "auto" to take the first of these that fits.
        extra_distractors: market1501 only: adds the folder ``images`` (500,000 distractors) to the gallery.
        images_root: csv only: the folder that relative paths start from.

    Returns:
        The dataset. Splits may be empty: `ReIDDataset.require_training` and `ReIDDataset.require_evaluation` say
        whether it can be trained on and scored.

    Raises:
        DataError: if nothing is there, nothing fits, or the files contradict the layout.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if kind != "auto" and kind not in KINDS:
        raise DataError(f"unknown dataset kind {kind!r}; supported are auto, {', '.join(KINDS)}")
    chosen = _detect(root) if kind == "auto" else KINDS[kind]
    given = {"extra_distractors": extra_distractors or None, "images_root": images_root}
    options = {name: value for name, value in given.items() if value is not None}
    unsupported = [name for name in options if name not in chosen.options]
    if unsupported:
        raise DataError(f"{root}: {unsupported[0]} is no option of the kind {chosen.name!r}, which was read here")
    return chosen.load(root, **options)


def _detect(root: Path) -> DatasetKind:
    for kind in KINDS.values():
        if kind.detect(root):
            return kind
    supported = "; ".join(f"{kind.name}: {kind.summary}" for kind in KINDS.values())
    if root.is_file():
        found = "is a file, not a .csv table"
    else:
        images, subfolders, others = list_folder(root)
        if not (images or subfolders or others):
            found = "the folder is empty"
        else:
            names = name_some(path.name for path in (*subfolders, *images, *others))
            found = f"holds {len(images)} images, {len(subfolders)} folders and {len(others)} other files ({names})"
    raise DataError(f"{root}: no dataset recognised: {found}. Supported: {supported}")
