"""``motarfuse compare``: trains a list of rows over seeds and data sets, and says what differs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from motarfuse import console
from motarfuse.engine.compare import Comparison, load_comparison
from motarfuse.engine.compare_file import CompareFile, StudyData, StudyFile
from motarfuse.engine.compare_results import Results
from motarfuse.engine.compare_runs import (
    Progress,
    check_unchanged,
    duration,
    estimate_seconds,
    execute,
    missing_data,
    run_state,
)
from motarfuse.engine.compare_tables import progress_text, write_tables
from motarfuse.errors import DataError
from motarfuse.viz.compare_page import write_page

EPILOG = """
examples:
  motarfuse compare configs/compare_nano.yaml pku=data/pku-reid --out runs/compare
  motarfuse compare configs/compare_nano.yaml --out runs/compare --dry-run
  motarfuse compare configs/compare_nano.yaml --out runs/compare --only 'synthped/plain ViT' --minutes 60
  motarfuse compare configs/compare_nano.yaml model.size=small train.steps=3000 --out runs/compare_small
  motarfuse compare configs/compare_nano.yaml --out runs/compare --report-only

Every run lies in OUT/<study>/<row>/<seed>, as in OUT/synthped/plain-vit/0; what was interrupted goes on, and what is
done is not repeated, when the same command is given again. OUT/results.csv, differences.csv, table.md and compare.html
are renewed after every run. The exit status is 1 when a training diverged; the other runs are done all the same.

Keys of FILE; a misspelt one is an error that names the nearest:

"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="YAML file with rows, seeds and studies")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="NAME=VALUE",
        help="value of a ${NAME} in the file, or a change to every run's config, e.g. train.steps=600",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of runs and results (default: runs/<FILE's name>)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="do the runs that fit study/row/seed, e.g. 'synthped/*/0'; may be given again",
    )
    parser.add_argument(
        "--order", action="append", default=[], metavar="PATTERN", help="do these first, before the file's own order"
    )
    parser.add_argument(
        "--minutes", type=_positive, metavar="N", help="start no run that would not be done within so much time"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="list the runs, how far each is and how long it takes")
    action.add_argument("--report-only", action="store_true", help="only make tables and page of what is there")
    parser.epilog = EPILOG + describe_keys()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    out = args.out or Path("runs") / args.file.stem
    comparison = load_comparison(args.file, out, args.arguments, args.order)
    check_unchanged(comparison)
    if args.dry_run:
        for line in plan_lines(comparison, args.only):
            console.info(line)
        for line in missing_data(comparison, args.only):
            console.warn(line)
        return 0
    progress = Progress()
    if not args.report_only:
        absent = missing_data(comparison, args.only)
        if absent:
            raise DataError(
                f"{'; '.join(absent)}. Nothing was trained; change the file, or its variable with NAME=PATH"
            )
        progress = execute(comparison, only=args.only, minutes=args.minutes, finished=lambda: write_all(comparison))
    results = write_all(comparison)
    for waiting in progress.waiting:
        assert waiting.source is not None
        console.warn(f"{waiting.name} waits for {waiting.source.name}, which is not done")
    if progress.stopped:
        console.info(progress.stopped)
    console.info(progress_text(results))
    console.info(f"table: {out / 'table.md'}")
    console.info(f"page: {out / 'compare.html'}")
    return 1 if progress.failed else 0


def write_all(comparison: Comparison) -> Results:
    """Renews tables and page from what the runs have left."""
    results = Results(comparison)
    differences = {study: results.differences(study) for study in comparison.studies}
    write_tables(results, differences)
    write_page(results, differences)
    return results


def plan_lines(comparison: Comparison, only: list[str]) -> list[str]:
    """The selected runs in order: how far each is, where it starts from, and how long the rest would take."""
    cells, total, unknown = [], 0.0, 0
    for one in comparison.select(only):
        state = run_state(comparison, one)
        needed = None if state.status == "done" else estimate_seconds(comparison, one, state)
        text: str = state.status
        if state.step >= one.steps and state.missing:
            text = f"trained; to evaluate: {', '.join(state.missing)}"
        elif state.status in ("interrupted", "failed"):
            text += f" at step {state.step} of {one.steps}"
        rest = "" if state.status == "done" else "time unknown" if needed is None else f"about {duration(needed)}"
        total += needed or 0.0
        unknown += rest == "time unknown"
        cells.append((one.name, text, rest, f"from {one.source.name}" if one.source else ""))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    done = sum(row[1] == "done" for row in cells)
    known = [f"about {duration(total)}"] * (total > 0) + [f"{unknown} of unknown time"] * (unknown > 0)
    return [*lines, f"{done} of {len(cells)} runs are done" + (f"; the rest: {' and '.join(known)}" if known else "")]


def describe_keys() -> str:
    """Every key of a comparison's file with what it means."""
    sections = (("", CompareFile), ("studies.NAME.", StudyFile), ("studies.NAME.data.", StudyData))
    return "\n".join(
        f"  {section}{key.name}: {key.metadata['help']}" for section, cls in sections for key in fields(cls)
    )
