"""``motarfuse parts``: the learned body parts against the drawn ones of SynthPed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from motarfuse import console
from motarfuse.cli.arguments import add_checkpoint, positive_integer
from motarfuse.engine.outputs import make_folder, write_json
from motarfuse.engine.part_truth import MOST_TRAINING_IMAGES, score_checkpoint_parts

EXAMPLES = """
examples:
  motarfuse parts runs/first data/synthped
  motarfuse parts runs/first data/synthped --untrained --out runs/first/parts.json
  motarfuse parts runs/first data/synthped --set query_occluded

Parts are matched to groups of drawn body parts, and the body's keypoints fitted linearly to the learned ones, on
training identities; the numbers are of other people. DATA is the folder that `motarfuse data synth` wrote, with its
ground_truth. docs/parts.md explains the rows and the columns.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("data", metavar="DATA", help="a SynthPed benchmark, as motarfuse data synth writes it")
    parser.add_argument("--untrained", action="store_true", help="also score the same network with fresh weights")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the fresh weights (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        metavar="NAME",
        help="gallery, query_holistic, query_occluded or query_partial; may be repeated (default: all that are there)",
    )
    parser.add_argument(
        "--most",
        type=positive_integer,
        default=MOST_TRAINING_IMAGES,
        metavar="N",
        help=f"training images to fit on, spread over the identities (default: {MOST_TRAINING_IMAGES})",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=128, metavar="N", help="images a forward pass (default: 128)"
    )
    parser.add_argument(
        "--workers", type=positive_integer, default=2, metavar="N", help="decoding threads (default: 2)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--out", metavar="FILE.json", help="also write everything as JSON")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    out = Path(args.out) if args.out else None
    if out is not None:
        make_folder(out.parent)
    scores = score_checkpoint_parts(
        args.checkpoint,
        args.data,
        untrained=args.untrained,
        seed=args.seed,
        sets=args.set,
        most=args.most,
        batch_size=args.batch_size,
        device=args.device,
        workers=args.workers,
    )
    train = scores["train"]
    console.info(f"matched and fitted on {train['images']:,} images of {train['identities']:,} training identities")
    for name, size in scores["sets"].items():
        console.info(f"\n{name}: {size['images']:,} images of {size['identities']:,} people, in per cent")
        console.console.print(mask_table(scores, name))
        console.console.print(keypoint_table(scores, name))
    if out is not None:
        write_json(out, scores)
        console.info(f"written to {out}")
    return 0


def mask_table(scores: dict[str, Any], name: str) -> Table:
    """IoU of the matched parts, IoU of the foreground, and where the foreground lies, a row each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("masks", no_wrap=True)
    ious = (f"IoU\n{key}" for key in (*scores["groups"], "all"))
    for title in (*ious, "on\noccl.", "claimed\noccl.", "claimed\nbody"):
        table.add_column(title, justify="right")
    for row in scores["rows"]:
        values = row["sets"][name]
        table.add_row(
            row["name"],
            *(_percent(values["iou"][key]["mean"]) for key in scores["groups"]),
            _percent(values["foreground_iou"]),
            _percent(values["mass"]["occluder"]),
            _percent(values["claimed"]["occluder"]),
            _percent(values["claimed"]["body"]),
        )
    return table


def keypoint_table(scores: dict[str, Any], name: str) -> Table:
    """Errors of the body's keypoints as shares of its height, a row for each linear fit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("keypoints", no_wrap=True)
    for title in (
        "visible",
        "behind\noccl.",
        "behind\nself",
        "PCK\nvisible",
        "PCK\noccl.",
        "image\nsides",
        "with\naffines",
    ):
        table.add_column(title, justify="right")
    for row in scores["rows"]:
        values = row["sets"][name]
        if "keypoints" not in values:
            continue
        errors = values["keypoints"]
        others = (values.get(key) for key in ("keypoints_by_image_side", "keypoints_with_affines"))
        table.add_row(
            row["name"],
            *(_percent(errors[kind]["error"]) for kind in ("visible", "behind occluder", "behind self")),
            *(_percent(errors[kind]["pck"]) for kind in ("visible", "behind occluder")),
            *(_percent(other["visible"]["error"] if other else None) for other in others),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
