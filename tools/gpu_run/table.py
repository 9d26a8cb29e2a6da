"""The short table at the end of a GPU run: stages, and what was measured for each shape."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.gpu_run.stages import Outcome


def stages_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A line for each stage."""
    for one in outcomes:
        yield f"{one.stage:26} {one.status:11} {one.seconds:5.0f} s  {one.note}".rstrip()


def measurements(folder: Path, known: Mapping[Path, int]) -> Iterator[str]:
    """A line for each operator, shape and dtype measured in this run, its modes side by side.

    The first implementation of each is the operator's own. Shown: time, speed-up over the best peer, fraction of the
    ceiling.

    Args:
        folder: With the CSV files.
        known: Lines that a file had before this run.
    """
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for file in sorted(folder.glob("*.csv")):
        for row in _new_rows(file, known.get(file, 0)):
            modes = lines.setdefault((row["operator"], row["shape"], row["dtype"]), {})
            if row["operator"] == "ceiling":
                modes.setdefault(row["implementation"], f"{row['implementation']} {row['median']} {row['unit']}")
                continue
            ratio = f" {row['ratio_to_best_peer']}x" if row["ratio_to_best_peer"] else ""
            fraction = f" ({row['fraction_of_ceiling']})" if row["fraction_of_ceiling"] else ""
            modes.setdefault(row["mode"], f"{row['mode']} {row['median']} {row['unit']}{ratio}{fraction}")
    if lines:
        yield "time, speed-up over the best peer, (fraction of the ceiling):"
    for (operator, shape, dtype), modes in lines.items():
        yield f"{operator:18} {shape:26} {dtype:9} {'  '.join(modes.values())}"


def _new_rows(file: Path, known: int) -> list[dict[str, str]]:
    """Rows below the first ``known`` lines. A last line that was cut short by the end of its writer is left out."""
    lines = file.read_text().splitlines()
    header = lines[:1]
    rows = csv.DictReader([*header, *lines[max(known, 1) :]])
    return [row for row in rows if None not in row.values()]
