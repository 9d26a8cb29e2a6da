"""``motarfuse demo``: the whole job on drawn people."""

from __future__ import annotations

import argparse
from pathlib import Path

from motarfuse import console
from motarfuse.cli.train import evaluation_table
from motarfuse.engine.demo import demo

EXAMPLES = """
examples:
  motarfuse demo
  motarfuse demo --out demos/seed1 --seed 1 train.steps=600

Draws SynthPed into OUT/synthped, trains the nano ViT on it into OUT/run, evaluates it in full view (holistic) and
behind things (occluded), and writes OUT/run/report.html. An interrupted demo goes on when it is given again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config, as of motarfuse train"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder (default: runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of people and training (default: 0)")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    result = demo(args.out, seed=args.seed, overrides=args.overrides)
    console.console.print(evaluation_table(list(result.training.evaluations.values())))
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    console.info(f"{sum(result.seconds.values()):.0f} seconds: {stages}")
    console.info(f"report: {result.report}")
    return 0
