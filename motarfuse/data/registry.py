"""The dataset kinds by name, and the one function that loads any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motarfuse.data.csv_table import is_table, load_csv
from motarfuse.data.cuhk03 import is_cuhk03, load_cuhk03
from motarfuse.data.files import list_folder, name_some
from motarfuse.data.folder import is_folder_per_identity, load_folder
from motarfuse.data.layout import remembered_listings
from motarfuse.data.market1501 import is_market1501, load_market1501
from motarfuse.data.msmt17 import is_msmt17, load_msmt17
from motarfuse.data.occluded_duke import is_occluded_duke, load_occluded_duke
from motarfuse.data.occluded_sets import (
    is_occluded_reid,
    is_p_duke,
    is_partial_ilids,
    is_partial_reid,
    load_occluded_reid,
    load_p_duke,
    load_partial_ilids,
    load_partial_reid,
)
from motarfuse.data.options import check_option_types
from motarfuse.data.records import ImageRecord, ReIDDataset
from motarfuse.errors import DataError


class UnknownLayoutError(DataError):
    """What is at a path looks like none of the kinds."""


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
            "occluded_duke",
            "train.list, query.list and gallery.list beside the images of DukeMTMC-reID (or images_root)",
            is_occluded_duke,
            load_occluded_duke,
            ("images_root",),
        ),
        DatasetKind(
            "cuhk03",
            "images_detected, images_labeled and the protocol's files, or detected and labeled ready-made",
            is_cuhk03,
            load_cuhk03,
            ("boxes", "protocol", "split"),
        ),
        DatasetKind(
            "msmt17",
            "list_train.txt, list_query.txt, list_gallery.txt beside train and test, or mask_train_v2 and mask_test_v2",
            is_msmt17,
            load_msmt17,
            ("training",),
        ),
        DatasetKind(
            "p_duke",
            "train and test with occluded_body_images and whole_body_images of P-DukeMTMC-reID",
            is_p_duke,
            load_p_duke,
            ("cameras",),
        ),
        DatasetKind(
            "occluded_reid",
            "occluded_body_images and whole_body_images of Occluded-REID, or its query and gallery",
            is_occluded_reid,
            load_occluded_reid,
            ("cameras",),
        ),
        DatasetKind(
            "partial_reid",
            "partial_body_images and whole_body_images of Partial-REID, or its query and gallery",
            is_partial_reid,
            load_partial_reid,
            ("cameras",),
        ),
        DatasetKind("partial_ilids", "query and gallery of Partial-iLIDS", is_partial_ilids, load_partial_ilids),
        DatasetKind(
            "market1501",
            "bounding_box_train, query and bounding_box_test with names like 0002_c1s1_000451_03.jpg",
            is_market1501,
            load_market1501,
            ("extra_distractors",),
        ),
        DatasetKind(
            "csv",
            "a .csv or .parquet table with the columns path, pid, split and optionally camid, or a folder with one",
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


def load_dataset(root: str | Path, kind: str = "auto", **options: Any) -> ReIDDataset[ImageRecord]:
    """Loads a dataset from a folder or a table.

    Args:
        root: Folder or table.
        kind: A name in `KINDS`, or "auto" to take the first of these that fits; options may follow it as text,
            "msmt17:training=train+val", where only a kind can be given (configs, command lines).
        options: As the kind's ``load`` takes them; None and False ask for nothing.

    Returns:
        The dataset. Splits may be empty: `ReIDDataset.require_training` and `ReIDDataset.require_evaluation` say
        whether it can be trained on and scored.

    Raises:
        DataError: if nothing is there, nothing fits, or the files contradict the layout.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    kind, written = parse_kind(kind)
    if kind != "auto" and kind not in KINDS:
        raise DataError(f"unknown dataset kind {kind!r}; supported are auto, {', '.join(KINDS)}")
    options = {
        name: value for name, value in {**written, **options}.items() if value is not None and value is not False
    }
    with remembered_listings():
        chosen = _detect(root) if kind == "auto" else KINDS[kind]
        unsupported = [name for name in options if name not in chosen.options]
        if unsupported:
            known = f"; its options are {', '.join(chosen.options)}" if chosen.options else ""
            raise DataError(
                f"{root}: {unsupported[0]} is no option of the kind {chosen.name!r}, which was read here{known}"
            )
        check_option_types(chosen.name, chosen.load, options)
        return chosen.load(root, **options)


def parse_kind(text: str) -> tuple[str, dict[str, Any]]:
    """A kind and the options written behind it: "cuhk03:boxes=labeled,protocol=classic,split=3".

    Whole numbers become integers, true and false become booleans, everything else stays text.

    Raises:
        DataError: An option that is not NAME=VALUE, or one that is given twice.
    """
    kind, colon, written = text.partition(":")
    options: dict[str, Any] = {}
    for pair in written.split(",") if colon else ():
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise DataError(f"{text!r}: {pair!r} is no option; write KIND:NAME=VALUE, e.g. cuhk03:boxes=labeled")
        if name in options:
            raise DataError(f"{text!r}: the option {name} is given twice")
        words: dict[str, Any] = {"true": True, "false": False}
        options[name] = int(value) if value.isascii() and value.isdigit() else words.get(value.lower(), value)
    return kind, options


def _detect(root: Path) -> DatasetKind:
    for kind in KINDS.values():
        if kind.detect(root):
            return kind
    supported = "; ".join(f"{kind.name}: {kind.summary}" for kind in KINDS.values())
    if root.is_file():
        found = "is a file, not a .csv table or a .parquet one"
    else:
        images, subfolders, others = list_folder(root)
        if not (images or subfolders or others):
            found = "the folder is empty"
        else:
            names = name_some(path.name for path in (*subfolders, *images, *others))
            found = f"holds {len(images)} images, {len(subfolders)} folders and {len(others)} other files ({names})"
    raise UnknownLayoutError(f"{root}: no dataset recognised: {found}. Supported: {supported}")
