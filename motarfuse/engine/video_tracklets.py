"""From a video and boxes, or a fixed camera's video alone, to a folder of tracklets."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

from motarfuse import __version__, console
from motarfuse.data.association import Associator
from motarfuse.data.background import METHOD, Background, BackgroundConfig, areas
from motarfuse.data.boxes import BoxTable, TrackBox, read_boxes
from motarfuse.data.left_out import LeftOut
from motarfuse.data.tracklet_manifest import FORMAT, MANIFEST, VERSION, is_tracklet_manifest, tracklet_entry
from motarfuse.data.tracklet_writer import CropConfig, TrackletWriter
from motarfuse.data.tracklets import Tracklet
from motarfuse.data.video import Video, VideoFrame, VideoInfo, open_video
from motarfuse.engine.outputs import atomic_folder, output_errors, write_json, write_synced
from motarfuse.errors import ConfigError, DataError, OutputError

# A track of the built-in mode that is shorter is a flicker more often than a person.
LEAST_WITHOUT_BOXES = 8
_FPS_WHERE_UNKNOWN = 25.0


@dataclass(frozen=True)
class TrackletExtraction:
    """What was cut from a video.

    Attributes:
        out: The folder.
        tracklets: What it holds.
        identities: Name of the track that each identity is.
        crops: Pictures written.
        video: What is known of the video, its damage among the notes.
        left_out: Boxes, frames and tracks that are not in the result, by reason.
        notes: What a user should know.
        seconds: That decoding, cropping and writing took.
    """

    out: Path
    tracklets: list[Tracklet]
    identities: dict[int, str]
    crops: int
    video: VideoInfo
    left_out: LeftOut
    notes: list[str]
    seconds: float


def extract_tracklets(
    video: str | Path,
    out: str | Path,
    boxes: str | Path | None = None,
    *,
    split: str = "test",
    size: tuple[int, int] | None = None,
    image_format: str = "jpg",
    quality: int = 95,
    camera: int = 1,
    min_length: int | None = None,
    min_visibility: float = 0.0,
    decoder: str = "pyav",
    rotate: bool = True,
    first_frame: int | None = None,
    classes: Collection[str] | None = None,
    coco_video: str | None = None,
    background: BackgroundConfig | None = None,
    overwrite: bool = False,
    workers: int = 2,
) -> TrackletExtraction:
    """Cuts the people of a video out as tracklets in the layout of MARS.

    The video is decoded once, up to the last frame that is needed. Frames are numbered in the order in which they are
    shown, from 0, and a tracklet's ``frame_index`` is that number, gaps included. A box is clipped to its frame; the
    share of it inside, times the visibility that the boxes' file states, is the crop's visibility. A track is an
    identity: tracks are numbered from 1 in the natural order of their names. Nothing is left of a run that fails.

    Args:
        video: A video file.
        out: Folder to create: bbox_test or bbox_train, info and manifest.json, which `read_tracklet_manifest` reads.
        boxes: As `read_boxes` takes them. None: the built-in mode for fixed cameras, which has no detector (see
            `Background`); its tracks are whatever moved, and their visibility is not known.
        split: "test" or "train", the half of MARS' layout to write.
        size: (height, width) of every crop; None keeps the boxes' sizes.
        image_format: "jpg" or "png".
        quality: Of JPEG, 1 to 100.
        camera: Number in the file names, 1 to 9; ``camid`` is one less.
        min_length: Least number of crops of a tracklet; None: 1 with boxes, 8 without.
        min_visibility: Least visibility of a crop.
        decoder: "pyav" or "torchcodec".
        rotate: Turn frames upright as the file says.
        first_frame: Number that the boxes' file gives the first frame, None to detect it.
        classes: Classes of boxes to keep.
        coco_video: Which video of a COCO-video file.
        background: Settings of the built-in mode.
        overwrite: Replace an earlier extraction; nothing else is ever replaced.
        workers: Threads that encode and write.

    Raises:
        DataError: The video or the boxes cannot be used, the camera moves, or no crop is left.
        ConfigError: A setting out of range.
        OutputError: The folder cannot be written, or there is something in it.
    """
    if boxes is not None and background is not None:
        raise ConfigError("settings of the built-in mode are given, but boxes too; give one of them")
    if min_length is None:
        min_length = 1 if boxes is not None else LEAST_WITHOUT_BOXES
    crops = CropConfig(split, size, image_format, quality, camera, min_visibility, min_length, workers)
    out = Path(out).expanduser()
    _check_target(out, overwrite)
    start = time.perf_counter()
    with open_video(video, decoder, rotate=rotate) as opened:
        table = None
        if boxes is not None:
            table = read_boxes(boxes, first_frame=first_frame, classes=classes, video=coco_video)
        settings = background or BackgroundConfig()
        mode = _mode(table, settings)
        with atomic_folder(out) as partial:
            pids = None if table is None else {track: pid for pid, track in enumerate(table.tracks, 1)}
            with TrackletWriter(partial, crops, write_synced, pids, _longest(table, opened.info)) as writer:
                if table is None:
                    _by_background(opened, settings, writer)
                else:
                    _by_boxes(opened, table, writer)
                tracklets, identities = writer.finish(visibility_known=table is not None)
            left_out = _all_left_out(opened, table, writer)
            notes = [*([] if table is None else table.notes), *opened.info.notes]
            if not tracklets:
                why = "; ".join(left_out.lines()) or "nothing moved"
                raise DataError(f"{opened.path}: no tracklet is left ({why})")
            manifest: dict[str, Any] = {
                "format": FORMAT,
                "version": VERSION,
                "motarfuse": __version__,
                "video": {key: value for key, value in asdict(opened.info).items() if key != "notes"},
                "mode": mode,
                "settings": {**asdict(crops), "rotate": rotate, "frame_index_counts_from": 0},
                "notes": notes,
                "left_out": left_out.to_list(),
                "identities": {str(pid): track for pid, track in identities.items()},
                "tracklets": [tracklet_entry(tracklet, partial) for tracklet in tracklets],
            }
            write_json(partial / MANIFEST, manifest)
    moved = [replace(one, folder=out / one.folder.relative_to(partial)) for one in tracklets]
    seconds = time.perf_counter() - start
    return TrackletExtraction(out, moved, identities, writer.crops, opened.info, left_out, notes, seconds)


def _check_target(out: Path, overwrite: bool) -> None:
    """Nothing but an earlier extraction may be replaced, and that only if it is asked for."""
    with output_errors(out):
        if not out.is_dir() or not any(out.iterdir()):
            return
    if not is_tracklet_manifest(out):
        raise OutputError(f"{out} is not empty and holds no tracklets cut from a video; choose another folder")
    if not overwrite:
        raise OutputError(f"{out} holds tracklets already; choose another folder, or replace them (--overwrite)")


def _mode(table: BoxTable | None, settings: BackgroundConfig) -> dict[str, Any]:
    if table is None:
        return {"name": "fixed camera without boxes", "method": METHOD, "settings": asdict(settings)}
    return {
        "name": "boxes",
        "file": table.path.name,
        "layout": table.layout,
        "first_frame": table.first_frame,
        "rows": table.rows,
        "kept": len(table.boxes),
    }


def _longest(table: BoxTable | None, info: VideoInfo) -> int:
    """Most frames that a tracklet can span."""
    if table is None:
        return info.declared_frames or 99_999
    first: dict[str, int] = {}
    longest = 1
    for one in table.boxes:
        longest = max(longest, one.frame - first.setdefault(one.track, one.frame) + 1)
    return min(longest, info.declared_frames or longest)


@contextmanager
def _bar(total: int | None) -> Iterator[Progress]:
    with console.progress("frames", total) as bar:
        yield bar


def _by_boxes(video: Video, table: BoxTable, writer: TrackletWriter) -> None:
    of_frame: dict[int, list[TrackBox]] = defaultdict(list)
    for one in table.boxes:
        of_frame[one.frame].append(one)
    with _bar(min(max(of_frame) + 1, video.info.declared_frames or max(of_frame) + 1)) as bar:
        for frame in video.frames(frozenset(of_frame)):
            writer.add(frame, of_frame.pop(frame.index))
            bar.update(TaskID(0), completed=frame.index + 1)
    count = video.info.frames
    for frame_number in sorted(of_frame):
        for one in of_frame[frame_number]:
            place = f"{one.place}: frame {frame_number + table.first_frame}"
            if frame_number >= count:
                writer.left_out.add(f"the video has no such frame (it has {count:,})", place)
            else:
                writer.left_out.add("a box on a frame that cannot be decoded or is damaged", place)


def _by_background(video: Video, config: BackgroundConfig, writer: TrackletWriter) -> None:
    background = Background(config, video.info.fps or _FPS_WHERE_UNKNOWN)
    associator = Associator(config.iou, config.max_gap)
    first: list[np.ndarray] = []
    learnt = False
    with _bar(video.info.declared_frames) as bar:
        for frame in video.frames():
            small = frame.reduced(_reduced_size(video.info, config))
            bar.advance(TaskID(0))
            if not learnt:
                first.append(small)
                if len(first) == background.frames_to_learn:
                    background.learn(first)
                    learnt = True
                continue
            found = areas(background.foreground(small, f"frame {frame.index}"), _size(video.info), config)
            if found:
                numbers = associator.update(frame.index, found)
                writer.add(frame, _track_boxes(frame, numbers, found))
    if not learnt:
        raise DataError(
            f"{video.path}: ends after {len(first)} frames, while the background was still learnt from the first "
            f"{background.frames_to_learn}; lower learn_seconds, or give boxes"
        )
    video.info.notes.append(
        f"no tracklets in the first {background.frames_to_learn} frames, from which the background was learnt"
    )


def _track_boxes(
    frame: VideoFrame, numbers: list[int], found: list[tuple[float, float, float, float]]
) -> list[TrackBox]:
    return [
        TrackBox(frame.index, str(number + 1), box, None, f"track {number + 1}, frame {frame.index}")
        for number, box in zip(numbers, found, strict=True)
    ]


def _size(info: VideoInfo) -> tuple[int, int]:
    return info.height, info.width


def _reduced_size(info: VideoInfo, config: BackgroundConfig) -> tuple[int, int]:
    width = min(config.width, info.width)
    return max(1, round(info.height * width / info.width)), width


def _all_left_out(video: Video, table: BoxTable | None, writer: TrackletWriter) -> LeftOut:
    left_out = LeftOut()
    if table is not None:
        left_out.update(table.left_out)
    left_out.update(video.left_out)
    left_out.update(writer.left_out)
    return left_out
