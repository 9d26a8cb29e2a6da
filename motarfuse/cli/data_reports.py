"""``motarfuse data check``, ``stats`` and ``convert``: what a dataset holds, in tables, and in another layout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from motarfuse.cli.arguments import positive_integer
from motarfuse.console import console, info, warn
from motarfuse.data.check import DatasetReport, check_dataset
from motarfuse.data.convert import LAYOUTS, PLACEMENTS, convert_dataset
from motarfuse.data.cuhk03_mat import extract_cuhk03
from motarfuse.data.distribution import QUANTILES
from motarfuse.data.records import SPLITS
from motarfuse.data.registry import KINDS
from motarfuse.data.stats import DatasetStats, dataset_stats
from motarfuse.data.video_registry import VIDEO_KINDS
from motarfuse.errors import DataError

CUHK03 = "cuhk03"
_LISTED = 10

CHECK_EPILOG = """\
layouts of images:
{kinds}

layouts of tracklets:
{video_kinds}

A kind can be given options: --kind msmt17:training=train+val, --kind cuhk03:boxes=labeled,protocol=classic,split=3.

The exit status is 0 when every split that is there can be used (images that are left out are listed, they do not
matter to it), 1 when training or evaluation is impossible, 2 when no dataset is recognised.

examples:
  motarfuse data check ~/datasets/market1501
  motarfuse data check ~/datasets/MARS --no-decode
  motarfuse data check crops.csv --json > report.json
"""

STATS_EPILOG = """\
Below the counts: the least, what 10, 25, 50, 75 and 90 % are at most, the most, and the mean.

examples:
  motarfuse data stats ~/datasets/market1501
  motarfuse data stats ~/datasets/MSMT17 --kind msmt17:training=train+val --json
"""

CONVERT_EPILOG = """\
Images become market1501, csv or folder (one folder per identity); tracklets become mars, csv or folder. OUT must not
be there yet: nothing is overwritten. What was written is read again and compared before it appears.

CUHK03's images are inside cuhk-03.mat; --to cuhk03 takes them out once (detected and labeled boxes, and the test sets
of the classic protocol).

examples:
  motarfuse data convert ~/datasets/MSMT17 msmt17-market --to market1501 --files hardlink
  motarfuse data convert tracks.csv tracks-mars --to mars
  motarfuse data convert cuhk03_release/cuhk-03.mat cuhk03 --to cuhk03
"""


def add_source(parser: argparse.ArgumentParser) -> None:
    """The dataset and how it is read."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a dataset folder, or a table (.csv, .parquet)")
    parser.add_argument(
        "--kind", default="auto", metavar="KIND[:OPTION=VALUE,...]", help="the layout; auto: the one that fits"
    )
    parser.add_argument("--extra-distractors", action="store_true", help="market1501: count the folder images/ too")
    parser.add_argument("--images-root", metavar="DIR", type=Path, help="csv: where relative paths start from")


def configure_check(check: argparse.ArgumentParser) -> None:
    kinds, video_kinds = (
        "\n".join(f"  {kind.name}: {kind.summary}" for kind in known.values()) for known in (KINDS, VIDEO_KINDS)
    )
    check.epilog = CHECK_EPILOG.format(kinds=kinds, video_kinds=video_kinds)
    add_source(check)
    check.add_argument(
        "--no-decode", action="store_true", help="do not decode the images: quicker, finds only empty files"
    )
    check.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read files (default 2)")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")


def configure_stats(stats: argparse.ArgumentParser) -> None:
    stats.epilog = STATS_EPILOG
    add_source(stats)
    stats.add_argument(
        "--sizes", type=positive_integer, default=2_000, metavar="N", help="images a split to measure (default 2000)"
    )
    stats.add_argument("--all-sizes", action="store_true", help="measure every image")
    stats.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read files (default 2)")
    stats.add_argument("--json", action="store_true", help="print everything as JSON")


def configure_convert(convert: argparse.ArgumentParser) -> None:
    convert.epilog = CONVERT_EPILOG
    add_source(convert)
    convert.add_argument("out", metavar="OUT", type=Path, help="the folder to create")
    convert.add_argument("--to", required=True, choices=(*LAYOUTS, CUHK03), help="the layout to write")
    convert.add_argument("--files", choices=PLACEMENTS, default="copy", help="how images get there (default copy)")


def run_check(args: argparse.Namespace) -> int:
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
        _print_check(report)
    return 0 if report.usable else 1


def _print_check(report: DatasetReport) -> None:
    info(f"{report.name}: {report.variant}")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split")
    for title in (report.unit, "identities", "cameras", "distractors", "junk dropped"):
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
    if report.frames is not None:
        for split, frames in report.frames.items():
            if frames.lengths is not None:
                gaps = f"{frames.missing:,} missing in {frames.with_gaps:,} tracklets" if frames.missing else "no gap"
                info(f"{split}: {frames.frames:,} frames, {gaps}; frames a tracklet {frames.lengths} ({QUANTILES})")
    for note in report.notes:
        info(f"note: {note}")
    _list("skipped", [f"{skipped.path}: {skipped.reason}" for skipped in report.skipped])
    _list("cannot be read", [f"{skipped.path}: {skipped.reason}" for skipped in report.unreadable])
    _list(
        "same content",
        [
            f"{', '.join(str(path) for path in found.paths)}: {found.unfair}"
            + (f" ({found.frames:,} frames)" if found.frames > 1 else "")
            for found in report.duplicates
        ],
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


def run_stats(args: argparse.Namespace) -> int:
    stats = dataset_stats(
        args.path,
        args.kind,
        sizes=None if args.all_sizes else args.sizes,
        workers=args.workers,
        extra_distractors=args.extra_distractors,
        images_root=args.images_root,
    )
    if args.json:
        print(json.dumps(stats.to_dict(), indent=2))
    else:
        _print_stats(stats)
    return 0


def _print_stats(stats: DatasetStats) -> None:
    info(f"{stats.name}: {stats.variant}")
    console.print(_counts_table(stats))
    console.print(_distributions_table(stats))
    measured = ", ".join(f"{split} {one.sizes_read:,}" for split, one in stats.splits.items())
    unreadable = sum(one.unreadable for one in stats.splits.values())
    info(f"sizes of: {measured} files" + (f"; {unreadable:,} others cannot be read" if unreadable else ""))
    if stats.identities_in_train_and_test:
        info(f"note: {stats.identities_in_train_and_test:,} identities are in train and in query or gallery")


def _counts_table(stats: DatasetStats) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    splits = [stats.splits[split] for split in SPLITS]
    table.add_row(stats.unit, *(f"{one.counts.images:,}" for one in splits))
    table.add_row("identities", *(f"{one.counts.identities:,}" for one in splits))
    table.add_row("cameras", *(str(one.counts.cameras) for one in splits))
    frames = [one.frames for one in splits if one.frames is not None]
    if frames:
        table.add_row("frames", *(f"{one.frames:,}" for one in frames))
        table.add_row("frames missing", *(f"{one.missing:,}" for one in frames))
        table.add_row("tracklets with gaps", *(f"{one.with_gaps:,}" for one in frames))
    for camera in sorted({camera for one in splits for camera in one.per_camera}):
        cells = []
        for one in splits:
            people = one.identities_per_camera.get(camera, 0)
            cells.append(f"{one.per_camera[camera]:,} of {people:,} people" if camera in one.per_camera else "-")
        table.add_row("no camera" if camera < 0 else f"camid {camera}", *cells)
    return table


def _distributions_table(stats: DatasetStats) -> Table:
    """A row for each measure and split that has it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("split")
    for title in ("least", "10 %", "25 %", "50 %", "75 %", "90 %", "most", "mean"):
        table.add_column(title, justify="right")
    for title, of in (
        (f"{stats.unit} / identity", lambda one: one.per_identity),
        ("cameras / identity", lambda one: one.cameras_per_identity),
        ("frames / tracklet", lambda one: None if one.frames is None else one.frames.lengths),
        ("height (px)", lambda one: one.height),
        ("width (px)", lambda one: one.width),
    ):
        for split in SPLITS:
            found = of(stats.splits[split])
            if found is not None:
                table.add_row(title, split, *(f"{value:,}" for value in found.quantiles), f"{found.mean:,.1f}")
                title = ""
    return table


def run_convert(args: argparse.Namespace) -> int:
    if args.to == CUHK03:
        if not args.path.is_file():
            raise DataError(f"{args.path}: --to {CUHK03} takes the images out of a file, give the path of cuhk-03.mat")
        counts = extract_cuhk03(args.path, args.out)
        info(f"written to {args.out}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        return 0
    done = convert_dataset(
        args.path,
        args.out,
        args.to,
        kind=args.kind,
        files=args.files,
        extra_distractors=args.extra_distractors,
        images_root=args.images_root,
    )
    numbers = ", ".join(f"{split} {count:,}" for split, count in done.records.items())
    info(f"written to {done.out} as {done.to}: {numbers} {done.unit} ({done.files:,} files, {args.files})")
    for note in done.notes:
        info(f"note: {note}")
    return 0
