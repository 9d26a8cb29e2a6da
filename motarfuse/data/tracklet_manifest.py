"""The manifest of tracklets cut from a video: everything a `Tracklet` holds, written beside the crops and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from motarfuse.data.records import Skipped
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.errors import DataError

MANIFEST = "manifest.json"
FORMAT = "motarfuse tracklets"
VERSION = 1


def tracklet_entry(tracklet: Tracklet, root: Path) -> dict[str, Any]:
    """A tracklet as the manifest has it, its folder relative to the root."""
    return {
        "name": tracklet.name,
        "pid": tracklet.pid,
        "camid": tracklet.camid,
        "folder": tracklet.folder.relative_to(root).as_posix(),
        "files": list(tracklet.files),
        "frame_index": list(tracklet.frame_index),
        "timestamps": None if tracklet.timestamps is None else list(tracklet.timestamps),
        "boxes": None if tracklet.boxes is None else [list(box) for box in tracklet.boxes],
        "visibility": None if tracklet.visibility is None else list(tracklet.visibility),
    }


def is_tracklet_manifest(folder: Path) -> bool:
    """Whether a folder holds tracklets that were cut from a video by this project."""
    try:
        return _load(folder).get("format") == FORMAT
    except DataError:
        return False


def read_tracklet_manifest(folder: str | Path) -> TrackletDataset:
    """Reads tracklets back with all their attributes; no picture is opened.

    Files that are no longer there are left out of their tracklet and listed in ``skipped``.

    Args:
        folder: What `extract_tracklets` or ``motarfuse tracklets`` wrote, or its manifest.json.

    Returns:
        The tracklets as the gallery or, where they were written as such, as the training split; one camera alone has
        no queries. ``identity_names`` says which track of the
        video each identity is.

    Raises:
        DataError: No manifest, one of another kind or version, one that is damaged, or no file that is left.
    """
    folder = Path(folder).expanduser()
    if folder.name == MANIFEST and folder.is_file():
        folder = folder.parent
    path = folder / MANIFEST
    content = _load(folder)
    if content.get("format") != FORMAT:
        raise DataError(f"{path}: is no manifest of tracklets (format: {content.get('format')!r})")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: version {content.get('version')!r}, supported is {VERSION}; cut the tracklets again")
    skipped: list[Skipped] = []
    try:
        read = [_tracklet(entry, folder, skipped) for entry in content["tracklets"]]
        kept = [tracklet for tracklet in read if tracklet is not None]
        train = content["settings"]["split"] == "train"
        names = {int(pid): str(track) for pid, track in content["identities"].items()}
        dataset = TrackletDataset(
            name=Path(str(content["video"]["name"])).stem,
            kind="video",
            root=folder,
            variant=f"tracklets cut from {content['video']['name']} ({content['mode']['name']})",
            train=kept if train else [],
            query=[],
            gallery=[] if train else kept,
            notes=[*map(str, content["notes"])],
            skipped=skipped,
            identity_names=names,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}); cut the tracklets again") from error
    if not kept:
        raise DataError(f"{path}: none of the {len(read)} tracklets has a file that is still there")
    return dataset


def _load(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {MANIFEST}, so that these are no tracklets cut from a video") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # JSON and UTF-8
        raise DataError(f"{path}: is no JSON, or cut off: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no JSON object")
    return content


def _tracklet(entry: dict[str, Any], root: Path, skipped: list[Skipped]) -> Tracklet | None:
    """A tracklet of the files that are there, None without any."""
    inside = Path(entry["folder"])
    if inside.is_absolute() or ".." in inside.parts or any(Path(name).name != name for name in entry["files"]):
        raise ValueError(f"tracklet {entry['name']} lies outside the folder")
    times, boxes, visibility = entry["timestamps"], entry["boxes"], entry["visibility"]
    whole = Tracklet(
        name=str(entry["name"]),
        pid=int(entry["pid"]),
        camid=int(entry["camid"]),
        folder=root / inside,
        files=tuple(map(str, entry["files"])),
        frame_index=tuple(map(int, entry["frame_index"])),
        timestamps=None if times is None else tuple(map(float, times)),
        boxes=None if boxes is None else tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in boxes),
        visibility=None if visibility is None else tuple(map(float, visibility)),
    )
    there = [place for place, path in enumerate(whole.paths) if path.is_file()]
    if len(there) == len(whole):
        return whole
    kept = set(there)
    skipped.extend(
        Skipped(path, "named in the manifest, but not there")
        for place, path in enumerate(whole.paths)
        if place not in kept
    )
    return whole.select(there) if there else None
