"""``motarfuse extract``: features of a folder of person crops."""

from __future__ import annotations

import argparse
from pathlib import Path

from motarfuse import console
from motarfuse.cli.arguments import add_checkpoint, add_clips, add_encoding, clips, encoding
from motarfuse.data import KINDS, VIDEO_KINDS
from motarfuse.engine.extractor import FEATURES, TABLE, extract
from motarfuse.engine.shards import merge_shards, shard_folder

EXAMPLES = """
examples:
  motarfuse extract runs/first crops/ features/
  motarfuse extract runs/first Market-1501-v15.09.15 gallery/ --split gallery
  motarfuse extract runs/first crops/ features/ --shard 0/2
  motarfuse extract runs/first crops/ features/ --shard 1/2
  motarfuse extract runs/first crops/ features/ --merge

Writes features.safetensors (tensor `feature`: a row an image, float32; of a network with body parts also
`part_features` and `part_visibility`), table.csv (path, pid, camid; a line an image) and manifest.json. A set of
tracklets gives a row a tracklet: its path is the frame in the middle, `tracklet` and `frames` say what that stands for.
`motarfuse search` finds a query image in them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("source", metavar="SOURCE", help="folder of crops (subfolders too), CSV table, or dataset")
    parser.add_argument("out", metavar="OUT", help="folder to write; an earlier extraction there is replaced")
    parser.add_argument(
        "--kind",
        default="auto",
        choices=list(dict.fromkeys(("auto", "images", *KINDS, *VIDEO_KINDS))),
        help="images: every image below SOURCE, without labels; auto (default): a dataset where one is recognised",
    )
    parser.add_argument("--split", choices=("train", "query", "gallery"), help="of a dataset (default: all three)")
    add_encoding(parser)
    add_clips(parser)
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only the I-th of N equal parts of the images, from 0, into OUT.shard-I-of-N",
    )
    parser.add_argument("--merge", action="store_true", help="extract nothing; join the parts that lie beside OUT")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if args.merge:
        merged = merge_shards(out)
        console.info(f"{merged.count:,} images joined in {merged.out}")
        return 0
    result = extract(
        args.checkpoint,
        args.source,
        shard_folder(out, *args.shard) if args.shard else out,
        kind=args.kind,
        split=args.split,
        shard=args.shard or (0, 1),
        sampling=clips(args),
        **encoding(args),
    )
    rate = result.num_images / max(result.seconds, 1e-9)
    what = f"{result.count:,} tracklets, " if result.has_tracklets else ""
    console.info(f"{what}{result.num_images:,} images in {result.seconds:.1f} s ({rate:,.0f} images/s)")
    if result.skipped:
        console.warn(f"{len(result.skipped)} files could not be read; manifest.json names them")
    console.info(f"written to {result.out}: {FEATURES}, {TABLE}, manifest.json")
    return 0


def _shard(text: str) -> tuple[int, int]:
    part, separator, parts = text.partition("/")
    if not separator or not (part.isdigit() and parts.isdigit()) or int(part) >= int(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 0 <= I < N")
    return int(part), int(parts)
