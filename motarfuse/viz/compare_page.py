"""One self-contained HTML page of a comparison: tables, differences with intervals, curves; what was not run shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median

import numpy as np

from motarfuse import __version__
from motarfuse.engine.compare_file import slug_of
from motarfuse.engine.compare_results import BASES, Basis, Difference, Results
from motarfuse.engine.compare_tables import (
    NOT_RUN,
    Table,
    curve_table,
    difference_table,
    overview_table,
    progress_text,
    score_table,
    scores_table,
    time_table,
)
from motarfuse.engine.outputs import make_folder, write_bytes
from motarfuse.retrieval.bootstrap import CONFIDENCE, MIN_IDENTITIES
from motarfuse.viz.charts import DASHES, Series, format_percent, line_chart
from motarfuse.viz.interval_chart import Interval, interval_chart
from motarfuse.viz.page import page

PAGE = "compare.html"
# Names of rows break between words only, and less space is left to them on a phone than their length.
_NAME = "white-space:normal;overflow-wrap:normal;min-width:6.5em"

READING = (
    "A value is the mean over the row's finished seeds. A difference A - B is taken query by query, averaged over the "
    "seeds that both rows have, and its {confidence:g} % interval comes from resampling the query identities, all "
    "queries of a person together: <b>better</b> means that the interval lies above zero, <b>worse</b> below. It "
    "speaks of other people, not of other trainings, and is not corrected for the number of comparisons. Fewer than "
    "{least} identities give no interval. The score is the row's own: the feature's cosine, or the sum with the part "
    "score where there are parts; such rows are compared by the feature alone as well."
)
TIME = (
    "Equal wall time is read from the same runs: a row's time for a step is the median over its seeds of the whole "
    "training's time over its steps (evaluations left out); the budget is the whole training of the faster row; the "
    "slower one is read at its last evaluation within it, so that rounding never favours the slower row. It is then in "
    "the middle of its learning-rate schedule and the faster row at the end of its own, which favours the faster row "
    "further. In the table of all rows the budget is that of the fastest of them. Pre-training in another study is not "
    "counted."
)


def write_page(results: Results, differences: dict[str, list[Difference]], out: Path | None = None) -> Path:
    """Writes the page of a comparison, finished or not.

    Args:
        results: What the runs came to.
        differences: Paired differences by study.
        out: The page; None writes ``compare.html`` into the comparison's folder.

    Raises:
        OutputError: It cannot be written.
    """
    path = out or results.comparison.out / PAGE
    make_folder(path.parent)
    write_bytes(path, render_page(results, differences).encode(errors="replace"))
    return path


def render_page(results: Results, differences: dict[str, list[Difference]]) -> str:
    """The page as text."""
    comparison = results.comparison
    reading = READING.format(confidence=100 * CONFIDENCE, least=MIN_IDENTITIES)
    sections = [
        (f"study-{slug_of(study)}", study, _study(results, study, differences[study])) for study in comparison.studies
    ]
    sections.append(("reading", "How to read it", f"<p>{reading}</p><p>{TIME}</p>"))
    sections.insert(0, ("overview", "What was run", _table(overview_table(results), titled=False)))
    header = (
        f'<p class="over">motarfuse comparison</p><h1>{escape(comparison.path.stem)}</h1>'
        f'<p class="lead">{escape(_lead(results))}</p>'
    )
    footer = f"<p>Made by motarfuse {escape(__version__)}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.</p>"
    return page(f"{comparison.path.stem} - motarfuse comparison", header, sections, footer)


def _lead(results: Results) -> str:
    comparison = results.comparison
    rows, studies = len(comparison.rows), len(comparison.studies)
    return f"{rows} row{'s' * (rows > 1)} on {studies} stud{'ies' if studies > 1 else 'y'}. " + progress_text(results)


def _study(results: Results, study: str, differences: Sequence[Difference]) -> str:
    sets = results.comparison.studies[study]
    names = list(sets.trained)
    config = next(iter(results.of(study))).run.config
    facts = [f"{config.train.steps:,} steps on {sets.given}"]
    if sets.split != "given":
        facts.append(f"identities split anew ({sets.split})")
    source = next(iter(results.of(study))).run.source
    if source is not None:
        facts.append(f"each run starts from the weights of the same row and seed of {source.study}")
    parts = [f'<p class="lead">{escape("; ".join(facts))}.</p>']
    if not any(result.done for result in results.of(study)):
        return "".join(parts) + f'<p class="empty">{NOT_RUN.capitalize()} yet.</p>'
    # A narrow table for each set: a phone shows it without scrolling.
    cards = [_table(score_table(results, study, [name], f"{name}, final weights, per cent")) for name in names]
    timed, curve, scores = (
        time_table(results, study, names),
        curve_table(results, study),
        scores_table(results, study, names),
    )
    parts.append(f'<div class="charts">{"".join(cards)}</div>')
    parts.append(f'<h3>Differences in mAP</h3><div class="charts">{_intervals(differences, names)}</div>')
    for basis in BASES:
        table = difference_table(results, study, differences, basis)
        parts.append(_details(f"{table.caption} in numbers", _table(table)) if table.rows else "")
    if timed is not None:
        parts.append(f"<h3>{escape(timed.caption)}</h3>{_table(timed, titled=False)}")
    if curve is not None:
        parts.append(f'<h3>Covered queries</h3><div class="charts">{_curve(results, study)}</div>')
        parts.append(_details("The curve in numbers", _table(curve)))
    parts.append(f'<h3>While training</h3><div class="charts">{_training(results, study, names)}</div>')
    if scores is not None:
        parts.append(_details(scores.caption, _table(scores)))
    return "".join(parts)


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><div>{body}</div></details>"


def _table(table: Table, *, titled: bool = True) -> str:
    head = "".join(f'<th scope="col" style="overflow-wrap:normal">{escape(title)}</th>' for title in table.header)
    rows = "".join(
        f'<tr><th scope="row" style="{_NAME}">{escape(cells[0])}</th>'
        + "".join(f"<td{_empty(cell)}>{escape(cell)}</td>" for cell in cells[1:])
        + "</tr>"
        for cells in table.rows
    )
    note = f'<p class="sub">{escape(table.note)}</p>' if table.note else ""
    caption = f"<caption>{escape(table.caption)}</caption>" if titled else ""
    return (
        f'<div class="card table"><table class="values">{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}</div>"
    )


def _empty(cell: str) -> str:
    return ' class="empty"' if cell in (NOT_RUN, "none in time", "not evaluated") else ""


def _intervals(differences: Sequence[Difference], names: Sequence[str]) -> str:
    figures = []
    for name in names:
        for basis, title in BASES.items():
            shown = [one for one in differences if (one.name, one.basis, one.metric) == (name, basis, "mAP")]
            if any(one.seeds for one in shown):
                figures.append(_interval_figure(name, basis, title, shown))
    return "".join(figures)


def _interval_figure(name: str, basis: Basis, title: str, shown: Sequence[Difference]) -> str:
    firsts = list(dict.fromkeys(one.first for one in shown))
    single = len(firsts) == 1
    lines, left = [], []
    for one in shown:
        found = one.found
        text = one.second if single else f"{one.first} - {one.second}"
        if not one.seeds:
            left.append(text)
            continue
        if found is None:
            lines.append(Interval(text, None, note=one.reason))
            continue
        note = "" if found.low is not None else f"{found.identities} identities"
        lines.append(Interval(text, found.difference, found.low, found.high, found.verdict, note))
    caption = f"{name}, {title}"
    what = f"mAP of {firsts[0]} minus that of the row named" if single else "mAP, first minus second"
    note = f"{what}; {NOT_RUN}: {', '.join(left)}" if left else what
    return _figure(caption, note, interval_chart(lines, label=f"{caption}: {what}", x_label="points of mAP"))


def _figure(caption: str, note: str, chart: str) -> str:
    return f'<figure class="card"><figcaption>{escape(caption)}<span>{escape(note)}</span></figcaption>{chart}</figure>'


def _groups(results: Results, study: str) -> list[list[str]]:
    """Rows that have something to draw, as many a chart as there are line styles, the first row in each."""
    rows = [row for row in results.comparison.rows if results.of(study, row, done=True)]
    if len(rows) <= len(DASHES):
        return [rows]
    rest = rows[len(DASHES) :]
    size = len(DASHES) - 1
    return [rows[: len(DASHES)], *([rows[0], *rest[at : at + size]] for at in range(0, len(rest), size))]


def _curve(results: Results, study: str) -> str:
    curve = results.comparison.studies[study].curve
    figures = []
    for rows in _groups(results, study):
        series = []
        for row in rows:
            cells = [results.cell(study, row, name, "mAP") for name in curve.values()]
            values = [float("nan") if cell.value is None else cell.value for cell in cells]
            low, high = (
                [limit(cell.per_seed.values(), default=float("nan")) for cell in cells] for limit in (min, max)
            )
            series.append(Series(row, [100 * share for share in curve], values, low, high))
        ticks = [100 * share for share in curve]
        chart = line_chart(
            series,
            label="mAP against the covered share",
            x_label="covered share of the query, %",
            y_format=format_percent,
            x_ticks=ticks if len(ticks) > 1 else (),
            y_floor=0.0,
        )
        figures.append(_figure("mAP against the covered share", "final weights; the band is the range of seeds", chart))
    return "".join(figures)


def _training(results: Results, study: str, names: Sequence[str]) -> str:
    figures = []
    for name in names:
        for x_label in ("step", "seconds of training"):
            for rows in _groups(results, study):
                series = [_progress(results, study, row, name, x_label == "step") for row in rows]
                chart = line_chart(
                    [line for line in series if len(line.x)],
                    label=f"mAP on {name}",
                    x_label=x_label,
                    y_format=format_percent,
                    y_floor=0.0,
                )
                figures.append(_figure(f"{name}, mAP by {x_label}", "mean and range of the finished seeds", chart))
    return "".join(figures)


def _progress(results: Results, study: str, row: str, name: str, by_step: bool) -> Series:
    """A row's mAP at every step that all its finished seeds were evaluated at."""
    done = results.of(study, row, done=True)
    steps = sorted(set.intersection(*(set(result.readings[name]) for result in done)))
    x, mean, low, high = [], [], [], []
    for step in steps:
        readings = [result.readings[name][step] for result in done]
        times = [reading.seconds for reading in readings if reading.seconds is not None]
        if not by_step and not times:
            continue
        values = [reading.value(result.score, "mAP") for reading, result in zip(readings, done, strict=True)]
        x.append(float(step) if by_step else median(times))
        mean.append(float(np.mean(values)))
        low.append(min(values))
        high.append(max(values))
    return Series(row, x, mean, low, high)
