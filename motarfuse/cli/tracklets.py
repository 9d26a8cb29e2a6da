"""``motarfuse tracklets``: the people of a video, cut out as tracklets."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from motarfuse import console
from motarfuse.cli.arguments import positive_integer
from motarfuse.data.background import METHOD, BackgroundConfig
from motarfuse.data.boxes import LAYOUTS
from motarfuse.data.tracklet_writer import IMAGE_FORMATS, SPLITS
from motarfuse.data.video import DECODERS
from motarfuse.engine.settings import convert, describe
from motarfuse.engine.video_tracklets import TrackletExtraction, extract_tracklets
from motarfuse.errors import ConfigError

EPILOG = """\
boxes: {layouts}.
What cannot be used - boxes outside the frame, frames that do not exist, damaged frames - is counted and named, in the
output and in manifest.json.

without --boxes: {method}.
Settings of that mode, given as --background key=value ...:
{settings}

examples:
  motarfuse tracklets walk.mp4 --boxes walk.csv
  motarfuse tracklets MOT17-02.mp4 --boxes MOT17-02-FRCNN/gt/gt.txt --out tracklets/02 --size 256 128
  motarfuse tracklets walk.mp4 --boxes cocovid.json --coco-video walk --min-visibility 0.3
  motarfuse tracklets corridor.mp4 --min-length 20
  motarfuse extract nano-synthped walk-tracklets features/

Writes bbox_test/<identity>/0001C1T0001F001.jpg and info (the layout of MARS) and manifest.json, which has each
tracklet's frame numbers, times, boxes and visibility. Tracks are identities, numbered from 1.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    settings = re.sub(r"^(\s+)\.", r"\1", describe(BackgroundConfig, ""), flags=re.MULTILINE)
    parser.epilog = EPILOG.format(layouts=LAYOUTS, method=METHOD, settings=settings)
    parser.add_argument("video", metavar="VIDEO", type=Path, help="a video file")
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        type=Path,
        help="boxes of people; without it, a fixed camera's moving areas are taken",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to create (default: VIDEO's name + -tracklets)")
    parser.add_argument("--overwrite", action="store_true", help="replace tracklets that were cut into DIR before")
    crops = parser.add_argument_group("crops")
    crops.add_argument("--split", choices=SPLITS, default="test", help="write bbox_test (default) or bbox_train")
    crops.add_argument(
        "--size", nargs=2, type=positive_integer, metavar=("H", "W"), help="resize every crop (default: as the box is)"
    )
    crops.add_argument("--format", choices=IMAGE_FORMATS, default="jpg", help="of the crops (default: jpg)")
    crops.add_argument("--quality", type=int, default=95, metavar="Q", help="of JPEG, 1 to 100 (default: 95)")
    crops.add_argument("--camera", type=int, default=1, metavar="N", help="camera in the names, 1 to 9 (default: 1)")
    crops.add_argument(
        "--min-length", type=positive_integer, metavar="N", help="least crops of a tracklet (1; without boxes 8)"
    )
    crops.add_argument(
        "--min-visibility", type=float, default=0.0, metavar="S", help="least visible share of a crop (default: 0)"
    )
    crops.add_argument("--workers", type=positive_integer, default=2, metavar="N", help="threads (default: 2)")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--decoder", choices=DECODERS, default="pyav", help="default: pyav")
    reading.add_argument("--no-rotate", action="store_true", help="keep frames as stored, not upright as the file says")
    reading.add_argument(
        "--first-frame", type=int, choices=(0, 1), help="the first frame's number in the boxes (default: detected)"
    )
    reading.add_argument(
        "--classes", nargs="+", metavar="C", help="classes of boxes to keep (default: people; MOTChallenge: 1)"
    )
    reading.add_argument("--coco-video", metavar="NAME", help="which video of a COCO-video file")
    reading.add_argument(
        "--background", nargs="+", metavar="key=value", help="settings of the mode without boxes; see below"
    )


def run(args: argparse.Namespace) -> int:
    out = args.out if args.out is not None else Path(f"{args.video.stem}-tracklets")
    if args.boxes is None:
        for name in ("first_frame", "classes", "coco_video"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} says how boxes are read, but no --boxes are given")
        console.info(f"no boxes given: {METHOD}")
    result = extract_tracklets(
        args.video,
        out,
        args.boxes,
        split=args.split,
        size=None if args.size is None else tuple(args.size),
        image_format=args.format,
        quality=args.quality,
        camera=args.camera,
        min_length=args.min_length,
        min_visibility=args.min_visibility,
        decoder=args.decoder,
        rotate=not args.no_rotate,
        first_frame=args.first_frame,
        classes=args.classes,
        coco_video=args.coco_video,
        background=None if args.background is None else _settings(args.background),
        overwrite=args.overwrite,
        workers=args.workers,
    )
    _print(result)
    return 0


def _settings(texts: Sequence[str]) -> BackgroundConfig:
    hints = get_type_hints(BackgroundConfig)
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in hints:
            raise ConfigError(
                f"{text!r} is no setting of the mode without boxes; write key=value, keys: {', '.join(hints)}"
            )
        values[key] = convert(value, hints[key], key)
    return BackgroundConfig(**values)


def _print(result: TrackletExtraction) -> None:
    video = result.video
    rate = "" if video.fps is None else f", {video.fps:g} frames/s"
    console.info(f"{video.name}: {video.width} x {video.height}{rate}, {video.frames:,} frames read ({video.decoder})")
    for note in result.notes:
        console.info(f"note: {note}")
    for line in result.left_out.lines():
        console.warn(f"left out: {line}")
    speed = f"{result.seconds:.1f} s ({video.frames / max(result.seconds, 1e-9):,.0f} frames/s)"
    console.info(f"{result.crops:,} crops in {len(result.tracklets):,} tracklets in {speed}")
    console.info(f"written to {result.out}; manifest.json names everything")
    console.info(f"  motarfuse extract nano-synthped {shlex.quote(str(result.out))} features/")
