"""Boxes of people from COCO-video JSON: images that belong to a video, and annotations that belong to a track."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from motarfuse.data.boxes import RawBox
from motarfuse.data.files import name_some
from motarfuse.errors import DataError

_TRACK_KEYS = ("instance_id", "track_id")
_FRAME_KEYS = ("frame_id", "frame_index")
_PEOPLE = ("person", "pedestrian")

_Object = dict[str, Any]


class CocoBoxes(NamedTuple):
    """The annotations of one video of a COCO-video file.

    Attributes:
        rows: The annotations, nothing checked.
        frames: Frame numbers of all images listed for the video.
        classes: Names of the categories to keep, None for all.
    """

    rows: list[RawBox]
    frames: list[int]
    classes: Collection[str] | None


def coco_boxes(path: Path, text: str, classes: Collection[str] | None, video: str | None) -> CocoBoxes:
    """Reads the annotations of one video.

    Args:
        path: The file, for messages.
        text: Its content.
        classes: Names or numbers of the categories to keep, None for people.
        video: Name or id of the video, None where the file has only one.

    Raises:
        DataError: The text is no JSON of that layout, or it is not clear which video or which categories are meant.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON, or cut off: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is a JSON list; COCO-video JSON is an object with images and annotations")
    images, annotations = (_objects(path, content, name) for name in ("images", "annotations"))
    if not images:
        youtube = bool(annotations) and "bboxes" in annotations[0]
        hint = "; this looks like YouTube-VIS, a list of boxes an annotation: convert it to CocoVID" if youtube else ""
        raise DataError(f"{path}: lists no images (found: {name_some(map(str, content), 8)}){hint}")
    chosen = _chosen_video(path, _objects(path, content, "videos"), images, video)
    elsewhere = {_text(one.get("id")) for one in images if _text(one.get("video_id")) != chosen}
    frames = _frames(path, [one for one in images if _text(one.get("video_id")) == chosen])
    categories = _objects(path, content, "categories")
    names = {_text(one.get("id")): str(one.get("name", one.get("id"))) for one in categories}
    rows = [
        _row(one, f"annotation {one.get('id', f'at place {place}')}", frames, names)
        for place, one in enumerate(annotations)
        if _text(one.get("image_id")) not in elsewhere
    ]
    return CocoBoxes(rows, list(frames.values()), _chosen_classes(path, names, rows, classes))


def _objects(path: Path, content: _Object, name: str) -> list[_Object]:
    value = content.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{path}: {name} is no list of objects, as COCO-video JSON has it")
    return value


def _text(value: object) -> str:
    """An id as a key: 1 and "1" are one."""
    return "" if value is None else str(value)


def _chosen_video(path: Path, videos: list[_Object], images: list[_Object], video: str | None) -> str:
    names = {_text(one.get("video_id")): "" for one in images}
    names.update({_text(one.get("id")): str(one.get("name", one.get("file_name", ""))) for one in videos})
    if video is None:
        if len(names) == 1:
            return next(iter(names))
        raise DataError(f"{path}: holds {len(names)} videos; say which one (--coco-video): {_listed(names)}")
    fitting = [key for key, name in names.items() if video in (key, name, Path(name).name, Path(name).stem)]
    if len(fitting) != 1:
        found = f"{len(fitting)} of its videos are" if fitting else "none of its videos is"
        raise DataError(f"{path}: {found} called {video!r}: {_listed(names)}")
    return fitting[0]


def _listed(names: dict[str, str]) -> str:
    return name_some([f"{key} ({name})" if name else key for key, name in names.items()], 8)


def _frames(path: Path, images: list[_Object]) -> dict[str, int]:
    """Frame number of each image."""
    frames = {}
    for one in images:
        number = next((one[key] for key in _FRAME_KEYS if one.get(key) is not None), None)
        if isinstance(number, bool) or not isinstance(number, int):
            raise DataError(
                f"{path}: image {one.get('id')} has no whole number as {' or '.join(_FRAME_KEYS)} (got {number!r}), so "
                "that its frame in the video is not known"
            )
        frames[_text(one.get("id"))] = number
    return frames


def _row(one: _Object, place: str, frames: dict[str, int], names: dict[str, str]) -> RawBox:
    reason = None
    if _text(one.get("image_id")) not in frames:
        reason = "the image of the annotation is not listed"
    elif one.get("iscrowd") in (1, True):
        reason = "a crowd, not one person (iscrowd)"
    elif one.get("ignore") in (1, True):
        reason = "to be ignored (ignore)"
    box = one.get("bbox")
    category = _text(one.get("category_id"))
    return RawBox(
        place,
        frames.get(_text(one.get("image_id"))),
        next((one[key] for key in _TRACK_KEYS if one.get(key) is not None), None),
        tuple(box) if isinstance(box, list) else (),
        one.get("visibility"),
        one.get("mot_conf", one.get("score")),
        names.get(category, category) or None,
        reason,
    )


def _chosen_classes(
    path: Path, names: dict[str, str], rows: list[RawBox], classes: Collection[str] | None
) -> Collection[str] | None:
    used = {row.label for row in rows if row.label is not None}
    if classes is not None:
        return {names.get(str(one), str(one)) for one in classes}
    people = {label for label in used if label.lower() in _PEOPLE}
    if people or len(used) <= 1:
        return people or None
    raise DataError(
        f"{path}: none of its categories ({name_some(sorted(used), 8)}) is called person or pedestrian; name the ones "
        "to keep (--classes)"
    )
