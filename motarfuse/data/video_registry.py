"""The kinds of tracklet sets by name, and the one function that loads any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motarfuse.data.ccvid import is_ccvid, load_ccvid
from motarfuse.data.duke_video import is_duke_video, load_duke_video
from motarfuse.data.ilids_vid import is_ilids_vid, load_ilids_vid
from motarfuse.data.layout import remembered_listings
from motarfuse.data.ls_vid import is_ls_vid, load_ls_vid
from motarfuse.data.mars import is_mars, load_mars
from motarfuse.data.options import check_option_types
from motarfuse.data.prid2011 import is_prid2011, load_prid2011
from motarfuse.data.tracker_crops import is_tracker_crops, load_tracker_crops
from motarfuse.data.tracklet_folder import is_tracklet_folder, load_tracklet_folder
from motarfuse.data.tracklet_table import is_tracklet_table, load_tracklet_table
from motarfuse.data.tracklets import TrackletDataset
from motarfuse.errors import DataError


@dataclass(frozen=True)
class VideoKind:
    """A way to lay out a set of tracklets.

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
    load: Callable[..., TrackletDataset]
    options: tuple[str, ...] = ()


# In the order in which "auto" tries them: the most specific first. Each kind is found by its own folders or lists; any
# folder with identities, tracklets and frames looks like tracklet-folder.
VIDEO_KINDS: dict[str, VideoKind] = {
    kind.name: kind
    for kind in (
        VideoKind(
            "mars",
            "bbox_train and bbox_test with names like 0001C1T0001F001.jpg, and info with their labels",
            is_mars,
            load_mars,
            ("queries_in_gallery",),
        ),
        VideoKind(
            "ilids-vid",
            "sequences/cam1 and sequences/cam2 with a folder a person, and train_test_splits_ilidsvid.mat",
            is_ilids_vid,
            load_ilids_vid,
            ("split", "split_seed"),
        ),
        VideoKind(
            "prid2011",
            "multi_shot/cam_a and multi_shot/cam_b with a folder a person, and splits_prid2011.json",
            is_prid2011,
            load_prid2011,
            ("split", "split_seed"),
        ),
        VideoKind(
            "ls-vid",
            "list_sequence/list_seq_train.txt and list_seq_test.txt with the start of the files' names a tracklet",
            is_ls_vid,
            load_ls_vid,
            ("queries_in_gallery",),
        ),
        VideoKind(
            "ccvid",
            "train.txt, query.txt and gallery.txt with <session>/<person>_<view> <identity> <clothes> a line",
            is_ccvid,
            load_ccvid,
        ),
        VideoKind(
            "dukemtmc-video",
            "train, query and gallery with <identity>/<tracklet>/0001_C6_F0099_X30823.jpg",
            is_duke_video,
            load_duke_video,
            ("queries_in_gallery",),
        ),
        VideoKind(
            "tracker-crops",
            "imgs/<sequence>_<track>/000000.jpg, and meta with train_80.txt and val_20.txt",
            is_tracker_crops,
            load_tracker_crops,
            ("length", "gap"),
        ),
        VideoKind(
            "table",
            "a table (CSV or Parquet) with the columns path, pid, split and track, one row a frame",
            is_tracklet_table,
            load_tracklet_table,
            ("images_root",),
        ),
        VideoKind(
            "tracklet-folder",
            "<split>/<identity>/<tracklet>/*.jpg (by name also <identity>/<tracklet>/*.jpg, for training)",
            is_tracklet_folder,
            load_tracklet_folder,
        ),
    )
}


def is_video_dataset(root: Path) -> bool:
    """Whether `load_video_dataset` would recognise what is here."""
    return _detect(root) is not None


def _detect(root: Path) -> VideoKind | None:
    with remembered_listings():
        return next((kind for kind in VIDEO_KINDS.values() if kind.detect(root)), None)


def load_video_dataset(root: str | Path, kind: str = "auto", **options: Any) -> TrackletDataset:
    """Loads a set of tracklets from a folder or a table.

    Args:
        root: Folder or file.
        kind: A name in `VIDEO_KINDS`, or "auto" to take the first that fits.
        options: As the kind's ``load`` takes them.

    Raises:
        DataError: if nothing is there, nothing fits, or the files contradict the layout.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if kind != "auto" and kind not in VIDEO_KINDS:
        raise DataError(f"unknown kind of tracklets {kind!r}; supported are auto, {', '.join(VIDEO_KINDS)}")
    found = _detect(root) if kind == "auto" else VIDEO_KINDS[kind]
    if found is None:
        supported = "; ".join(f"{one.name}: {one.summary}" for one in VIDEO_KINDS.values())
        raise DataError(f"{root}: no set of tracklets recognised. Supported: {supported}")
    unsupported = [name for name in options if name not in found.options]
    if unsupported:
        raise DataError(f"{root}: {unsupported[0]} is no option of the kind {found.name!r}, which was read here")
    check_option_types(found.name, found.load, options)
    return found.load(root, **options)
