"""``motarfuse data``: draws a dataset, or says what a dataset folder holds."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from rich import box
from rich.markup import escape
from rich.table import Table

from motarfuse.console import console, info, warn
from motarfuse.data.check import DatasetReport, check_dataset
from motarfuse.data.records import SPLITS
from motarfuse.data.registry import KINDS
from motarfuse.data.synthped import PROTOCOLS, SynthPedConfig, write_synthped
from motarfuse.engine.settings import convert, describe
from motarfuse.errors import ConfigError

_LISTED = 10

EPILOG = """\
examples:
  motarfuse data synth data/synthped
  motarfuse data synth data/tiny seed=3 train_ids=40 test_ids=20
  motarfuse data check data/synthped/holistic
  motarfuse data check ~/datasets/market1501

`motarfuse data synth --help` explains every setting, `motarfuse data check --help` the layouts that are read.
"""

CHECK_EPILOG = """\
layouts:
{kinds}

The exit status is 0 when every split that is there can be used (images that are left out are listed, they do not
matter to it), 1 when training or evaluation is impossible, 2 when no dataset is recognised.

examples:
  motarfuse data check ~/datasets/market1501
  motarfuse data check crops.csv --json > report.json
"""

SYNTH_EPILOG = """\
settings, given as key=value:
{settings}

The drawn people lie in OUT/holistic, OUT/occluded and OUT/partial, each in the layout of Market-1501; masks, keypoints
and visibility of the body parts lie beside them.

examples:
  motarfuse data synth data/synthped
  motarfuse data synth data/tiny seed=3 train_ids=40 test_ids=20 size=[128,64]
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    kinds = "\n".join(f"  {kind.name}: {kind.summary}" for kind in KINDS.values())
    check = actions.add_parser(
        "check",
        help="say what a dataset folder holds",
        description="Says which layout matched, counts images, identities and cameras, and finds broken files,\n"
        "duplicates across splits and queries without a match.",
        epilog=CHECK_EPILOG.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("path", metavar="PATH", type=Path, help="a dataset folder, or a .csv table")
    check.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="the layout; auto: the one that fits")
    check.add_argument(
        "--no-decode", action="store_true", help="do not decode the images: quicker, finds only empty files"
    )
    check.add_argument("--extra-distractors", action="store_true", help="market1501: count the folder images/ too")
    check.add_argument("--images-root", metavar="DIR", type=Path, help="csv: where relative paths start from")
    check.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read files (default 2)")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")
    synth = actions.add_parser(
        "synth",
        help="draw a dataset of synthetic pedestrians",
        description="Draws SynthPed: articulated people with clothes, bags and occluders, seen by several cameras.",
        epilog=SYNTH_EPILOG.format(settings=_describe_settings()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    synth.add_argument("out", metavar="OUT", type=Path, help="the folder to create")
    synth.add_argument("settings", metavar="key=value", nargs="*", default=[], help="a setting of the list below")
    synth.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="what to write (default: all three)"
    )
    synth.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the images (default jpg)")
    synth.add_argument("--no-ground-truth", action="store_true", help="leave out masks, keypoints and visibility")
    synth.add_argument("--overwrite", action="store_true", help="replace a benchmark drawn before")
    synth.add_argument("--workers", type=int, default=2, metavar="N", help="processes that draw (default 2)")


def _describe_settings() -> str:
    # The settings have no section here, so that the dot behind its empty name goes.
    return re.sub(r"^(\s+)\.", r"\1", describe(SynthPedConfig, ""), flags=re.MULTILINE)


def run(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise ConfigError(f"--workers is {args.workers}; at least 1 is needed")
    return _synth(args) if args.action == "synth" else _check(args)


def _synth(args: argparse.Namespace) -> int:
    root = write_synthped(
        args.out,
        _parse_settings(args.settings),
        protocols=args.protocols,
        image_format=args.format,
        workers=args.workers,
        overwrite=args.overwrite,
        ground_truth=not args.no_ground_truth,
    )
    info(f"drawn into {root}")
    for folder in sorted(path.parent for path in root.glob("*/bounding_box_test")):
        info(f"  motarfuse data check {shlex.quote(str(folder))}")
    return 0


def _parse_settings(texts: Sequence[str]) -> SynthPedConfig:
    hints = get_type_hints(SynthPedConfig)
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{text!r} is no setting; write key=value, for example seed=3")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown setting {key}{hint} (settings: {', '.join(sorted(hints))})")
        if key in values:
            raise ConfigError(f"the setting {key} is given twice")
        values[key] = convert(value, hints[key], key)
    return SynthPedConfig(**values)


def _check(args: argparse.Namespace) -> int:
    report = check_dataset(
        args.path,
        args.kind,
        decode=not args.no_decode,
        workers=args.workers,
        extra_distractors=args.extra_distractors,
        images_root=args.images_root,
    )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)
    return 0 if report.usable else 1


def _print(report: DatasetReport) -> None:
    info(f"{report.name}: {report.variant}")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split")
    for title in ("images", "identities", "cameras", "distractors", "junk dropped"):
        table.add_column(title, justify="right")
    for split in SPLITS:
        counts = report.splits[split]
        known = {} if report.published is None else report.published[split]
        table.add_row(
            split,
            _compared(counts.images, known.get("images")),
            _compared(counts.identities, known.get("identities")),
            str(counts.cameras),
            f"{counts.distractors:,}",
            f"{counts.junk:,}",
        )
        if known:
            table.add_row("  published", f"{known['images']:,}", f"{known['identities']:,}", style="dim")
    console.print(table)
    for note in report.notes:
        info(f"note: {note}")
    _list("skipped", [f"{skipped.path}: {skipped.reason}" for skipped in report.skipped])
    _list("cannot be read", [f"{skipped.path}: {skipped.reason}" for skipped in report.unreadable])
    _list(
        "same content",
        [f"{', '.join(str(path) for path in found.paths)}: {found.unfair}" for found in report.duplicates],
    )
    _list("queries without a match, left out of every score", [str(path) for path in report.queries_without_match])
    if report.usable:
        decoded = "every image was decoded" if report.decoded else "images were not decoded"
        console.print(f"[green]usable[/green]; {escape(decoded)}")
    for problem in report.problems:
        warn(f"not usable: {problem}")


def _compared(found: int, published: int | None) -> str:
    return f"{found:,}" if published in (None, found) else f"[yellow]{found:,}[/yellow]"


def _list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    info(f"{title}: {len(lines):,}")
    for line in lines[:_LISTED]:
        info(f"  {line}")
    if len(lines) > _LISTED:
        info(f"  and {len(lines) - _LISTED:,} more; --json lists all")
