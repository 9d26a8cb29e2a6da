"""``motarfuse report``: one self-contained HTML page of a run."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from motarfuse.console import info, warn
from motarfuse.viz.report import write_report

EPILOG = """\
The page holds everything itself (crops, charts, style) and asks for nothing from a network: it can be sent by mail,
opened on a phone and printed. It can be made while the run is still going.

Of a network that finds parts it also shows these: the latest checkpoint is run over a few of the evaluation's images,
on the CPU, for masks, keypoints, motion and what matches between people.

The crops in it are the dataset's own. Where these are real people, treat the page as you treat the dataset.

example:
  motarfuse report runs/demo/run --open
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder that `motarfuse train` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default RUN_DIR/report.html)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run(args: argparse.Namespace) -> int:
    page = write_report(args.run_dir, args.out)
    info(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        warn("no browser was found; open the page by hand")
    return 0
