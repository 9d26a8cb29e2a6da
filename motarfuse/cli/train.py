"""``motarfuse train``: trains a model from a config."""

from __future__ import annotations

import argparse
import shlex

from rich import box
from rich.table import Table

from motarfuse import console
from motarfuse.engine.config import describe_config, dump_config, load_config
from motarfuse.engine.evaluator import Evaluation
from motarfuse.engine.trainer import train

EXAMPLES = """
examples:
  motarfuse train --config configs/synthped_nano.yaml output.run_dir=runs/first
  motarfuse train data.root=path/to/dataset model.size=tiny train.steps=600 optim.lr=1e-3
  motarfuse train --config configs/market1501.yaml --show-config

A run that was interrupted goes on where it stopped when the same command is given again.

Every key of a config file or an override, as  key = default    (type):

"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config, e.g. optim.lr=1e-3")
    parser.add_argument("--config", metavar="FILE", help="YAML file; without one the defaults hold")
    parser.add_argument(
        "--new", action="store_true", help="an error instead of resuming where output.run_dir holds a run already"
    )
    parser.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    parser.epilog = EXAMPLES + describe_config()


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    if args.show_config:
        print(dump_config(config), end="")
        return 0
    result = train(config, resume=not args.new)
    if result.evaluations:
        console.console.print(evaluation_table(list(result.evaluations.values())))
    console.info(f"checkpoint: {result.checkpoint}")
    console.info(f"report: motarfuse report {shlex.quote(str(result.run_dir))}")
    return 0


def evaluation_table(evaluations: list[Evaluation]) -> Table:
    """The metrics of evaluations in per cent: a row each, or one for each score of a network with parts."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)  # with scores, 80 columns are few
    table.add_column("set")
    several = any(len(evaluation.scores) > 1 for evaluation in evaluations)
    if several:
        table.add_column("score")
    for title in ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "queries", "gallery"):
        table.add_column(title, justify="right")
    for evaluation in evaluations:
        for score, metrics in evaluation.scores.items():
            shares = [f"{100 * metrics[key]:.1f}" for key in ("mAP", "rank1", "rank5", "rank10", "mINP")]
            queries = f"{metrics['num_valid']:,}"
            if metrics["num_valid"] != metrics["num_query"]:
                queries += f" of {metrics['num_query']:,}"
            name = evaluation.name if score == evaluation.score else ""
            cells = [name, score] if several else [name]
            table.add_row(*cells, *shares, queries, f"{metrics['num_gallery']:,}")
    return table
