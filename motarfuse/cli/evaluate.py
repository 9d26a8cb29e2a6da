"""``motarfuse evaluate``: mAP, CMC and mINP of a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from motarfuse import console
from motarfuse.cli.arguments import add_checkpoint, add_encoding, encoding
from motarfuse.cli.train import evaluation_table
from motarfuse.engine.checkpoint import find_checkpoint
from motarfuse.engine.config import check_set_name
from motarfuse.engine.evaluator import evaluate_checkpoint
from motarfuse.engine.outputs import make_folder

EXAMPLES = """
examples:
  motarfuse evaluate runs/first --data data/synthped/occluded
  motarfuse evaluate runs/first/checkpoints/step-00000300 --data Market-1501-v15.09.15 --kind market1501 --flip

The numbers, the protocol behind them and the rank lists of 24 queries go to evaluations/NAME.json of the run, where
`motarfuse report` finds them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--data", required=True, metavar="PATH", help="dataset with a query and a gallery")
    parser.add_argument("--kind", default="auto", help="its layout: market1501, folder, csv or auto (default)")
    parser.add_argument("--name", help="name of the evaluation (default: that of the dataset's folder or table)")
    parser.add_argument("--metric", default="cosine", choices=("cosine", "euclidean"), help="default: cosine")
    parser.add_argument("--protocol", default="market1501", help="junk rule (default: market1501)")
    add_encoding(parser)
    parser.add_argument("--out", metavar="RUN", help="folder for evaluations/NAME.json (default: the checkpoint's run)")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    name = args.name or _name_of(Path(args.data).resolve())
    check_set_name("--name", name)
    folder = find_checkpoint(args.checkpoint)
    # <run>/checkpoints/step-...: a checkpoint that was copied elsewhere gets its evaluations beside itself.
    out = Path(args.out) if args.out else folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    make_folder(out / "evaluations")  # before minutes of encoding, not after
    evaluation = evaluate_checkpoint(
        folder,
        args.data,
        kind=args.kind,
        name=name,
        protocol=args.protocol,
        metric=args.metric,
        out=out,
        **encoding(args),
    )
    console.console.print(evaluation_table([evaluation]))
    console.info(f"written to {out / 'evaluations' / f'{name}.json'}")
    return 0


def _name_of(data: Path) -> str:
    """A dataset's name as a file's."""
    name = data.stem if data.suffix == ".csv" else data.name
    return re.sub(r"[^\w.-]", "_", name).lstrip(".") or "test"
