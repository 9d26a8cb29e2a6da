"""``motarfuse data``: draws a dataset, says what one holds, or writes one in another layout."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from motarfuse.cli.data_reports import (
    configure_check,
    configure_convert,
    configure_stats,
    run_check,
    run_convert,
    run_stats,
)
from motarfuse.console import info
from motarfuse.data.synthped import ALL_PROTOCOLS, PROTOCOLS, SynthPedConfig, write_synthped
from motarfuse.engine.settings import convert, describe
from motarfuse.errors import ConfigError

EPILOG = """\
examples:
  motarfuse data synth data/synthped
  motarfuse data synth data/tiny seed=3 train_ids=40 test_ids=20
  motarfuse data check data/synthped/holistic
  motarfuse data check ~/datasets/market1501
  motarfuse data stats ~/datasets/MARS
  motarfuse data convert ~/datasets/MSMT17 msmt17-market --to market1501 --files hardlink

`motarfuse data synth --help` explains every setting, `motarfuse data check --help` the layouts that are read.
"""

SYNTH_EPILOG = """\
settings, given as key=value:
{settings}

The drawn people lie in OUT/holistic, OUT/occluded and OUT/partial, each in the layout of Market-1501; masks, keypoints
and visibility of the body parts lie beside them. With `--protocols video` OUT/video has tracklets of other drawn people
in the layout of MARS.

examples:
  motarfuse data synth data/synthped
  motarfuse data synth data/tiny seed=3 train_ids=40 test_ids=20 size=[128,64]
  motarfuse data synth data/walks --protocols video
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary, description, add_arguments in (
        (
            "check",
            "say what a dataset holds",
            "Says which layout matched, counts images or tracklets, identities and cameras, and finds broken files,\n"
            "gaps in tracklets, duplicates across splits and queries without a match.",
            configure_check,
        ),
        (
            "stats",
            "count what a dataset is made of",
            "Images or tracklets of each identity and camera, sizes of images, lengths of tracklets.",
            configure_stats,
        ),
        (
            "convert",
            "write a dataset in another layout",
            "Writes a dataset, of any kind that can be read, in another layout; nothing is ever overwritten.",
            configure_convert,
        ),
    ):
        action = actions.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_arguments(action)
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
        "--protocols",
        nargs="+",
        choices=ALL_PROTOCOLS,
        default=PROTOCOLS,
        help="what to write (default: holistic occluded partial); video, tracklets of people who walk, takes longer to "
        "draw and is written only when it is named",
    )
    synth.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the images (default jpg)")
    synth.add_argument("--no-ground-truth", action="store_true", help="leave out masks, keypoints and visibility")
    synth.add_argument("--overwrite", action="store_true", help="replace a benchmark drawn before")
    synth.add_argument("--workers", type=int, default=2, metavar="N", help="processes that draw (default 2)")


def _describe_settings() -> str:
    # The settings have no section here, so that the dot behind its empty name goes.
    return re.sub(r"^(\s+)\.", r"\1", describe(SynthPedConfig, ""), flags=re.MULTILINE)


def run(args: argparse.Namespace) -> int:
    if getattr(args, "workers", 1) < 1:
        raise ConfigError(f"--workers is {args.workers}; at least 1 is needed")
    actions = {"synth": _synth, "check": run_check, "stats": run_stats, "convert": run_convert}
    return actions[args.action](args)


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
    for folder in sorted(path.parent for name in ("bounding_box_test", "bbox_test") for path in root.glob(f"*/{name}")):
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
