"""A comparison's results as tables: CSV for machines, Markdown for pages, and what both show."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motarfuse.engine.compare_results import BASES, METRICS, Basis, Cell, Difference, Results
from motarfuse.engine.outputs import make_folder, write_bytes
from motarfuse.retrieval.bootstrap import CONFIDENCE

NOT_RUN = "not run"

RESULTS_HEADER = ("study", "set", "row", "seed", "step", "seconds", "score", "metric", "value")
DIFFERENCES_HEADER = (
    *("study", "set", "metric", "basis", "first", "second", "seeds", "first_step", "second_step", "first_seconds"),
    *("second_seconds", "difference", "low", "high", "verdict", "identities", "queries", "per_seed", "reason"),
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: What it shows.
        note: How to read it; "" for nothing.
        header: Column titles; the first column names the row.
        rows: As many cells each.
    """

    caption: str
    note: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, its caption in bold above."""
        lines = [f"**{self.caption}.** {self.note}".rstrip(), ""]
        cells = [self.header, ["---"] * len(self.header), *self.rows]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join(lines) + "\n"


def percent(value: float | None) -> str:
    """A fraction in per cent, ``not run`` for nothing."""
    return NOT_RUN if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * value:+.1f}"


def describe_difference(difference: Difference) -> str:
    """The difference, its interval and what that means."""
    found = difference.found
    if found is None:
        return difference.reason
    if found.low is None or found.high is None:
        return f"{signed(found.difference)} ({found.verdict}: {difference.reason})"
    return f"{signed(found.difference)} [{signed(found.low)}, {signed(found.high)}] {found.verdict}"


def seeds_text(results: Results, study: str, row: str) -> str:
    """The seeds that a row's means are over, and those that are missing, e.g. "0, 1 (2 not run)"."""
    by_status: dict[str, list[str]] = {}
    for result in results.of(study, row):
        by_status.setdefault(result.state.status, []).append(str(result.run.seed))
    if list(by_status) == [NOT_RUN]:
        return NOT_RUN
    done = ", ".join(by_status.pop("done", []))
    missing = "; ".join(f"{', '.join(seeds)} {status}" for status, seeds in by_status.items())
    return f"{done} ({missing})" if done and missing else done or missing


def score_table(results: Results, study: str, names: Sequence[str], caption: str) -> Table:
    """Rows by sets and metrics, of the final weights."""
    several = len(names) > 1
    header = [f"{name} {METRICS[metric]}" if several else METRICS[metric] for name in names for metric in METRICS]
    rows = [
        [
            row,
            *(percent(results.cell(study, row, name, metric).value) for name in names for metric in METRICS),
            seeds_text(results, study, row),
        ]
        for row in results.comparison.rows
    ]
    return Table(caption, "", ["row", *header, "seeds"], rows)


def time_table(results: Results, study: str, names: Sequence[str]) -> Table | None:
    """Rows by sets at equal wall time; None where nothing is finished."""
    timed = {name: results.budget(study, results.comparison.rows, name) for name in names}
    steps = {name: found[1] for name, found in timed.items() if found is not None}
    if not steps:
        return None
    seconds = next(found[0] for found in timed.values() if found is not None)
    rows = []
    for row in results.comparison.rows:
        read = [steps.get(name, {}).get(row) for name in names]
        cells = [
            results.cell(study, row, name, "mAP", step=step) if step else Cell(None)
            for name, step in zip(names, read, strict=True)
        ]
        values = [
            percent(cell.value) if step or row not in steps.get(name, {}) else "none in time"
            for name, step, cell in zip(names, read, cells, strict=True)
        ]
        # One step for all sets, unless a set joined later and has the final weights alone.
        at = " and ".join(dict.fromkeys(str(step) for step in read if step))
        spent = [f"{value:.0f}" for value in dict.fromkeys(cell.seconds for cell in cells) if value is not None]
        rows.append([row, *values, at, " and ".join(spent)])
    note = (
        f"Every row at its last evaluation within {seconds:.0f} s of training, the whole training of the fastest row; "
        "mAP in per cent."
    )
    return Table("Equal wall time", note, ["row", *names, "step", "seconds"], rows)


def difference_table(results: Results, study: str, differences: Iterable[Difference], basis: Basis) -> Table:
    """Pairs and sets by metrics, on one basis; sets of the curve alone are left to the CSV."""
    grouped: dict[tuple[str, str, str], dict[str, Difference]] = {}
    left: dict[str, None] = {}
    for one in differences:
        if one.basis != basis or one.name not in results.comparison.studies[study].trained:
            continue
        if one.reason == NOT_RUN:
            left[f"{one.first} - {one.second}"] = None
        else:
            grouped.setdefault((one.first, one.second, one.name), {})[one.metric] = one
    rows = []
    for (first, second, name), by_metric in grouped.items():
        one = next(iter(by_metric.values()))
        read = "" if None in one.steps else " and ".join(dict.fromkeys(str(step) for step in one.steps))
        cells = [describe_difference(by_metric[metric]) for metric in METRICS]
        rows.append([first, second, name, *cells, ", ".join(map(str, one.seeds)) or "none", read])
    note = (
        f"A - B in points, with the {100 * CONFIDENCE:g} % bootstrap interval over identities; better: the interval "
        "lies above zero."
    )
    if left:
        note += f" {NOT_RUN.capitalize()}: {', '.join(left)}."
    header = ["A", "B", "set", *METRICS.values(), "seeds", "step"]
    return Table(f"Differences at {BASES[basis]}", note, header, rows)


def curve_table(results: Results, study: str) -> Table | None:
    """mAP by covered share; None for a study without a curve."""
    curve = results.comparison.studies[study].curve
    if not curve:
        return None
    rows = [
        [row, *(percent(results.cell(study, row, name, "mAP").value) for name in curve.values())]
        for row in results.comparison.rows
    ]
    header = ["row", *(f"{100 * share:g} %" for share in curve)]
    return Table("mAP against the covered share of the query", "", header, rows)


def scores_table(results: Results, study: str, names: Sequence[str]) -> Table | None:
    """mAP by each score that a network gives; None where none gives more than one."""
    rows = []
    for row in results.comparison.rows:
        done = results.of(study, row, done=True)
        given = list(done[0].readings[names[0]][done[0].run.steps].queries) if done else []
        for score in given if len(given) > 1 else []:
            values = [
                percent(sum(result.readings[name][result.run.steps].value(score, "mAP") for result in done) / len(done))
                for name in names
            ]
            rows.append([row, score + (" (the headline)" if score == done[0].score else ""), *values])
    return Table("mAP by score", "", ["row", "score", *names], rows) if rows else None


def progress_text(results: Results) -> str:
    """How many runs are done."""
    done, every = sum(result.done for result in results.runs.values()), len(results.runs)
    return f"All {every} runs are done." if done == every else f"{done} of {every} runs are done."


def overview_table(results: Results) -> Table:
    """Rows by studies: which seeds are done, and which are not."""
    rows = [
        [row, *(seeds_text(results, study, row) for study in results.comparison.studies)]
        for row in results.comparison.rows
    ]
    note = "The seeds of every row on every study."
    return Table("What was run", note, ["row", *results.comparison.studies], rows)


def study_tables(results: Results, study: str, differences: Sequence[Difference]) -> list[Table]:
    """Every table of a study, those without content left out."""
    sets = results.comparison.studies[study]
    names = list(sets.trained)
    found = [
        score_table(results, study, names, f"{study}, final weights"),
        difference_table(results, study, differences, "steps"),
        difference_table(results, study, differences, "feature"),
        time_table(results, study, names),
        difference_table(results, study, differences, "time"),
        curve_table(results, study),
        scores_table(results, study, names),
    ]
    return [table for table in found if table is not None and table.rows]


def markdown(results: Results, differences: dict[str, list[Difference]]) -> str:
    """All tables as one Markdown page."""
    parts = [f"# {results.comparison.path.stem}", progress_text(results), overview_table(results).markdown()]
    for study in results.comparison.studies:
        parts.append(f"## {study}")
        parts += [table.markdown() for table in study_tables(results, study, differences[study])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def results_csv(results: Results) -> str:
    """Every value of every evaluation, a line each; unfinished runs too."""
    lines: list[Sequence[Any]] = []
    for result in results.runs.values():
        for name, steps in result.readings.items():
            for step in sorted(steps):
                reading = steps[step]
                seconds = "" if reading.seconds is None else f"{reading.seconds:.3f}"
                run = result.run
                lines += [
                    (
                        *(run.study, name, run.row, run.seed, step, seconds, score, metric),
                        f"{reading.value(score, metric):.6f}",
                    )
                    for score in reading.queries
                    for metric in METRICS
                ]
    return _csv(RESULTS_HEADER, lines)


def differences_csv(differences: dict[str, list[Difference]]) -> str:
    """Every paired difference, a line each; those that could not be computed with the reason."""

    def text(value: float | None, digits: int = 6) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    lines: list[Sequence[Any]] = []
    for one in (one for found in differences.values() for one in found):
        start = (one.study, one.name, one.metric, one.basis, one.first, one.second, " ".join(map(str, one.seeds)))
        read = (*("" if step is None else step for step in one.steps), *(text(value, 3) for value in one.seconds))
        found = one.found
        if found is None:
            lines.append((*start, *read, "", "", "", "", "", "", "", one.reason))
            continue
        per_seed = " ".join(f"{value:.6f}" for value in found.per_seed)
        numbers = (text(found.difference), text(found.low), text(found.high), found.verdict)
        lines.append((*start, *read, *numbers, found.identities, found.queries, per_seed, one.reason))
    return _csv(DIFFERENCES_HEADER, lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def write_tables(results: Results, differences: dict[str, list[Difference]]) -> list[Path]:
    """Writes ``results.csv``, ``differences.csv`` and ``table.md`` into the comparison's folder.

    Raises:
        OutputError: One of them cannot be written.
    """
    out = make_folder(results.comparison.out)
    contents = {
        "results.csv": results_csv(results),
        "differences.csv": differences_csv(differences),
        "table.md": markdown(results, differences),
    }
    for name, text in contents.items():
        write_bytes(out / name, text.encode())
    return [out / name for name in contents]
