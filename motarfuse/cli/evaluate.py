"""``motarfuse evaluate``: mAP, CMC and mINP of a checkpoint on a dataset."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from motarfuse import console
from motarfuse.cli.arguments import add_checkpoint, add_clips, add_encoding, add_score, clips, encoding
from motarfuse.cli.evaluation_tables import detail_tables, splits_table
from motarfuse.cli.train import evaluation_table
from motarfuse.engine.checkpoint import find_checkpoint
from motarfuse.engine.config import check_set_name
from motarfuse.engine.evaluation_details import BREAKDOWNS, Details
from motarfuse.engine.evaluator import Evaluation, evaluate_checkpoint
from motarfuse.engine.outputs import make_folder
from motarfuse.engine.protocol_choice import AUTO
from motarfuse.engine.split_evaluations import evaluate_splits, with_split
from motarfuse.errors import ConfigError
from motarfuse.models.packaged import packaged_name
from motarfuse.retrieval.rerank_variants import VARIANTS

EXAMPLES = """
examples:
  motarfuse evaluate runs/first --data data/synthped/occluded
  motarfuse evaluate runs/second --data data/synthped/occluded --score parts
  motarfuse evaluate runs/video --data data/walks/video --frames evenly --clip-length 4
  motarfuse evaluate runs/first --data data/synthped/occluded --by occlusion --confidence --roc
  motarfuse evaluate runs/first --data data/synthped/occluded --rerank
  motarfuse evaluate runs/video --data prid2011 --kind prid2011 --split all
  motarfuse evaluate runs/first/checkpoints/step-00000300 --data Market-1501-v15.09.15 --kind market1501 --flip

A network with body parts gives three scores: the cosine of features, the visibility-weighted parts, and their sum. All
are printed; --score says which one the rank lists are of.

--protocol auto takes the protocol of the dataset's kind and says which. --split all gives the mean over a dataset's
random splits; it is the published kind of number only of a network that was trained on none of its people.

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
    parser.add_argument(
        "--protocol",
        default=AUTO,
        metavar="NAME",
        help="what is counted: auto (default) as is usual for the dataset's kind, or market1501, mars-torchreid, ...",
    )
    parser.add_argument(
        "--average-precision",
        choices=("step", "trapezoid"),
        help="the mAP of Python toolkits (step, the protocols' own), or of the MATLAB evaluators (trapezoid)",
    )
    parser.add_argument("--split", metavar="N|all", help="of iLIDS-VID, PRID2011, CUHK03 classic: which, or the mean")
    parser.add_argument(
        "--by",
        action="append",
        choices=BREAKDOWNS,
        default=[],
        help="numbers by pair of cameras, or by the hidden share of queries; may be given twice",
    )
    parser.add_argument(
        "--confidence",
        nargs="?",
        type=float,
        const=0.95,
        metavar="LEVEL",
        help="bootstrap intervals over identities (level: 0.95)",
    )
    parser.add_argument(
        "--roc", action="store_true", help="TPR and thresholds at false positive rates: is this pair one person?"
    )
    parser.add_argument(
        "--rerank",
        nargs="?",
        const="zhong2017",
        choices=VARIANTS,
        metavar="VARIANT",
        help="the numbers after k-reciprocal re-ranking of the features too: zhong2017 (default), the published "
        f"formula, or {', '.join(name for name in VARIANTS if name != 'zhong2017')}, those of toolkits",
    )
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
    options = {
        "name": name,
        "protocol": args.protocol,
        "metric": args.metric,
        "score": args.score,
        "sampling": clips(args),
        "details": Details(tuple(args.by), args.roc, args.confidence, args.average_precision, args.rerank),
        "out": out,
        **encoding(args),
    }
    if args.split == "all":
        found = evaluate_splits(folder, args.data, kind=args.kind, **options)
        _say_protocol(found.evaluations[0], args.protocol)
        console.console.print(evaluation_table(list(found.evaluations)))
        console.console.print(splits_table(found.means))
        for evaluation in found.evaluations:
            _say_reranked(evaluation)
    else:
        kind = args.kind if args.split is None else with_split(args.kind, _split(args.split))
        evaluation = evaluate_checkpoint(folder, args.data, kind=kind, **options)
        _say_protocol(evaluation, args.protocol)
        console.console.print(evaluation_table([evaluation]))
        _say_reranked(evaluation)
        for table in detail_tables(evaluation.record):
            console.console.print(table)
    console.info(f"written to {out / 'evaluations' / f'{name}.json'}")
    return 0


def _split(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"--split must be all or a number from 0, got {text!r}")
    return int(text)


def _say_protocol(evaluation: Evaluation, asked: str) -> None:
    """Which protocol was taken, and how its counts compare with the published ones."""
    dataset = evaluation.record["manifest"]["dataset"]
    why = f" (auto, kind {dataset['kind']})" if asked == AUTO else ""
    console.info(f"protocol {evaluation.protocol}{why}")
    for note in evaluation.record["notes"]:
        console.info(note)


def _say_reranked(evaluation: Evaluation) -> None:
    """The numbers after re-ranking, beside those of the feature before."""
    found = evaluation.record.get("rerank")
    if found is None:
        return
    before, after = evaluation.record["scores"]["feature"], found["metrics"]
    numbers = ", ".join(
        f"{title} {100 * before[key]:.1f} -> {100 * after[key]:.1f}"
        for key, title in (("mAP", "mAP"), ("rank1", "Rank-1"), ("rank5", "Rank-5"), ("mINP", "mINP"))
    )
    console.info(
        f"{evaluation.name}, re-ranked by {found['variant']} (k1 {found['k1']}, k2 {found['k2']}, lambda "
        f"{found['lambda']:g}): {numbers}"
    )


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
