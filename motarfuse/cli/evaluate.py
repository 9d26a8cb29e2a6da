"""``motarfuse evaluate``: mAP, CMC and mINP of a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from motarfuse import console
from motarfuse.cli.arguments import add_checkpoint, add_clips, add_encoding, add_score, clips, encoding
from motarfuse.cli.train import evaluation_table
from motarfuse.engine.checkpoint import find_checkpoint
from motarfuse.engine.config import check_set_name
from motarfuse.engine.evaluator import evaluate_checkpoint
from motarfuse.engine.outputs import make_folder
from motarfuse.models.packaged import packaged_name

EXAMPLES = """
examples:
  motarfuse evaluate runs/first --data data/synthped/occluded
  motarfuse evaluate runs/second --data data/synthped/occluded --score parts
  motarfuse evaluate runs/video --data data/walks/video --frames evenly --clip-length 4
  motarfuse evaluate runs/first/checkpoints/step-00000300 --data Market-1501-v15.09.15 --kind market1501 --flip

A network with body parts gives three scores: the cosine of features, the visibility-weighted parts, and their sum. All
are printed; --score says which one the rank lists are of.

The numbers, the protocol behind them and the rank lists of 24 queries go to evaluations/NAME.json of the run, where
`motarfuse report` finds them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--data", required=True, metavar="PATH", help="dataset with a query and a gallery")
    parser.add_argument("--kind", default="auto", help="its layout, as motarfuse data check lists them (default: auto)")
    parser.add_argument("--name", help="name of the evaluation (default: that of the dataset's folder or table)")
    parser.add_argument("--metric", default="cosine", choices=("cosine", "euclidean"), help="default: cosine")
    add_score(parser)
    parser.add_argument("--protocol", default="market1501", help="junk rule (default: market1501)")
    add_encoding(parser)
    add_clips(parser)
    parser.add_argument(
        "--out",
        metavar="RUN",
        help="folder for evaluations/NAME.json (default: the checkpoint's run; runs/NAME for a packaged network)",
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    name = args.name or _name_of(Path(args.data).resolve())
    check_set_name("--name", name)
    folder = find_checkpoint(args.checkpoint)
    out = Path(args.out) if args.out else _run_of(folder)
    make_folder(out / "evaluations")  # before minutes of encoding, not after
    evaluation = evaluate_checkpoint(
        folder,
        args.data,
        kind=args.kind,
        name=name,
        protocol=args.protocol,
        metric=args.metric,
        score=args.score,
        sampling=clips(args),
        out=out,
        **encoding(args),
    )
    console.console.print(evaluation_table([evaluation]))
    console.info(f"written to {out / 'evaluations' / f'{name}.json'}")
    return 0


def _run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint's evaluations belong to."""
    packaged = packaged_name(checkpoint)
    if packaged is not None:
        return Path("runs") / packaged  # it has none, and the installation is no place for results
    # <run>/checkpoints/step-...: a checkpoint that was copied elsewhere gets its evaluations beside itself.
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _name_of(data: Path) -> str:
    """A dataset's name as a file's."""
    name = data.stem if data.suffix == ".csv" else data.name
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "test"
