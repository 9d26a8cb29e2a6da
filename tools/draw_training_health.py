"""Draws how the parts fared while runs were trained, a line a run, as one SVG for the docs.

python tools/draw_training_health.py runs/a runs/b runs/c --labels "seed 0,seed 1,seed 2" --out health.svg
"""

from __future__ import annotations

import argparse
import re
import sys
from html import escape
from pathlib import Path

from motarfuse.engine.logs import LOG, read_log
from motarfuse.engine.outputs import write_bytes
from motarfuse.errors import DataError, MotarfuseError
from motarfuse.viz.charts import HEIGHT, WIDTH, Series, line_chart

CHARTS = (
    ("Heat-map confidence (1/128: flat)", "health/confidence"),
    ("Mean foreground", "health/foreground"),
    ("Mean visibility", "health/visibility"),
    ("Smallest mean mask of a part", "health/mass_min"),
    ("Largest mean mask of a part", "health/mass_max"),
    ("Least determinant (0.2: the bound)", "health/det_min"),
    ("Largest determinant", "health/det_max"),
    ("L_flow", "loss_flow"),
    ("L_occ", "loss_occ"),
    ("L_eq", "loss_eq"),
    ("L_part", "loss_part"),
    ("L_div", "loss_div"),
)
COLOURS = ("#1f6fb2", "#c2571a", "#2d8659", "#7b52a6", "#6b7078", "#b03a72", "#857200", "#0b7f8c")
COLUMNS, TITLE_PX, LEGEND_PX, GAP_PX = 3, 34, 44, 16
STYLE = (
    "text { font: 13px sans-serif; fill: #4c535c; } .title { font-size: 17px; fill: #1c1f24; }"
    " .grid { stroke: #dfe3e8; } .axis { stroke: #6b7280; }"
    " .line { fill: none; stroke-width: 2; } .band { opacity: .16; }"
)


def draw(runs: dict[str, Path]) -> str:
    """The SVG.

    Args:
        runs: Folders of runs of networks with parts, by label.

    Raises:
        DataError: A run without a log, or without parts.
    """
    events = {label: training_events(folder) for label, folder in runs.items()}
    width = COLUMNS * (WIDTH + GAP_PX) + GAP_PX
    height = LEGEND_PX + -(-len(CHARTS) // COLUMNS) * (HEIGHT + TITLE_PX + GAP_PX)
    colours = "".join(
        f" path.s{i} {{ stroke: {colour}; }} .band.s{i}, .dot.s{i} {{ fill: {colour}; }}"
        for i, colour in enumerate(COLOURS)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}{colours}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, label in enumerate(runs):
        x = GAP_PX + 40 + index * 180
        parts.append(f'<path class="line s{index}" d="M{x} 24 h34"/>')
        parts.append(f'<text x="{x + 42}" y="29">{escape(label)}</text>')
    for index, (title, key) in enumerate(CHARTS):
        row, column = divmod(index, COLUMNS)
        x, y = GAP_PX + column * (WIDTH + GAP_PX), LEGEND_PX + row * (HEIGHT + TITLE_PX + GAP_PX)
        series = [
            Series(label, [float(event["step"]) for event in found], [float(event[key]) for event in found])
            for label, found in events.items()
        ]
        chart = line_chart(series, label=title, x_label="step")
        match = re.search(r"<svg[^>]*>(.*?)</svg>", chart, re.DOTALL)
        assert match is not None, title
        parts.append(f'<text class="title" x="{x + 8}" y="{y + 22}">{escape(title)}</text>')
        parts.append(f'<g transform="translate({x} {y + TITLE_PX})">{match[1]}</g>')
    return "\n".join([*parts, "</svg>\n"])


def training_events(folder: Path) -> list[dict]:
    """The training lines of a run's log.

    Raises:
        DataError: There are none, or they have nothing of parts.
    """
    found = [event for event in read_log(folder / LOG) if event["event"] == "train"]
    missing = [key for _, key in CHARTS if not found or key not in found[0]]
    if missing:
        raise DataError(f"{folder} has no log of motion consistency: {missing[0]} is missing")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--labels", metavar="A,B,...", help="their names in the legend (default: the folders' names)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    args = parser.parse_args(arguments)
    labels = args.labels.split(",") if args.labels else [str(run) for run in args.runs]
    if len(labels) != len(args.runs) or len(labels) > len(COLOURS):
        parser.error(f"one label a run and at most {len(COLOURS)} runs, got {len(labels)} and {len(args.runs)}")
    try:
        write_bytes(args.out, draw(dict(zip(labels, args.runs, strict=True))).encode())
    except MotarfuseError as error:
        print(f"draw_training_health: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
