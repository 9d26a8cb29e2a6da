"""One self-contained HTML page of a run: numbers, curves, rank lists, the protocol and the config behind them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from motarfuse import __version__
from motarfuse.engine.outputs import make_folder, write_bytes
from motarfuse.viz.charts import Series, format_percent, line_chart
from motarfuse.viz.page import page
from motarfuse.viz.part_section import part_section
from motarfuse.viz.rank_section import rank_section
from motarfuse.viz.run_folder import Evaluation, RunFolder, number, read_run

HEADLINES = (
    ("mAP", "mAP", "big"),
    ("rank1", "Rank-1", "big"),
    ("rank5", "Rank-5", ""),
    ("rank10", "Rank-10", ""),
    ("mINP", "mINP", ""),
)

CMC_TABLE = (1, 5, 10, 20, 50)

LOSSES = (
    ("loss", "total"),
    ("loss_id", "identity"),
    ("loss_triplet", "triplet"),
    ("loss_class", "identity of the class token"),
)
MOTION_LOSSES = (
    ("loss_motion", "weighted sum"),
    ("loss_flow", "flow"),
    ("loss_occ", "occluded copy"),
    ("loss_eq", "equivariance"),
    ("loss_inv", "invariance"),
    ("loss_rec", "reconstruction"),
    ("loss_part", "parts"),
    ("loss_div", "diversity"),
)


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run, finished or not.

    The page needs no other file and asks for nothing from a network: pictures are embedded, charts are inline SVG,
    there is no script. It adapts to a phone, to a dark screen and to a printer.

    Args:
        run_dir: Folder with ``config.yaml``, ``log.jsonl`` and ``evaluations/``, or a part of these.
        out: The page; None writes ``report.html`` into the run.

    Returns:
        Path of the page.

    Raises:
        DataError: Not a run folder.
        OutputError: The page cannot be written; an older page stays as it was.
    """
    run = read_run(run_dir)
    target = Path(out) if out is not None else run.path / "report.html"
    text = render_report(run)
    make_folder(target.parent)
    write_bytes(target, text.encode(errors="replace"))  # a file name may hold what UTF-8 has no code for
    return target


def render_report(run: RunFolder) -> str:
    """The page as text."""
    sections = [
        ("results", "Results", _results(run)),
        ("cmc", "CMC curves", _cmc(run)),
        ("training", "Training", _training(run)),
        ("parts", "Parts and motion", part_section(run)),
        ("rank-lists", "Rank lists", rank_section(run.evaluations)),
        ("protocol", "Protocol", _protocols(run)),
        ("config", "Config", _config(run)),
        ("files", "Files", _files(run)),
    ]
    footer = f"<p>Made by motarfuse {escape(__version__)}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.</p>"
    return page(f"{_name(run)} - motarfuse report", _header(run), sections, footer)


def _name(run: RunFolder) -> str:
    return run.path.resolve().name


def _header(run: RunFolder) -> str:
    parts = [
        '<p class="over">motarfuse run</p>',
        f"<h1>{escape(_name(run))}</h1>",
        f'<p class="lead">{_progress(run)}</p>',
    ]
    if run.notes:
        notes = "".join(f"<p>{escape(note)}</p>" for note in run.notes)
        parts.append(f'<div class="notes" role="note">{notes}</div>')
    return "".join(parts)


def _progress(run: RunFolder) -> str:
    if not run.training:
        return (
            "No training step has been logged."
            if not run.evaluations
            else "Evaluated; this folder has no training log."
        )
    step, total = run.last_step, run.total_steps
    seconds = number(run.training[-1], "seconds", 0.0)
    spent = f", {_duration(seconds)}" if seconds > 0 else ""
    if total is None:
        return f"{step:,} training steps{spent}."
    if step < total:
        return f"In progress or interrupted: step {step:,} of {total:,}{spent}."
    return f"Finished: {step:,} training steps{spent}."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _results(run: RunFolder) -> str:
    if not run.evaluations:
        return '<p class="empty">Nothing has been evaluated yet.</p>'
    return f'<div class="cards">{"".join(_card(evaluation) for evaluation in run.evaluations)}</div>'


def _card(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    numbers = []
    for key, label, size in HEADLINES:
        value = f'{100 * metrics[key]:.1f}<span class="unit">%</span>' if key in metrics else "not given"
        numbers.append(f'<div class="{size}"><dt>{label}</dt><dd>{value}</dd></div>')
    counts = []
    if "num_valid" in metrics and "num_query" in metrics:
        counts.append(f"{int(metrics['num_valid']):,} of {int(metrics['num_query']):,} queries have a match")
    if "num_gallery" in metrics:
        counts.append(f"gallery of {int(metrics['num_gallery']):,}")
    step = evaluation.values.get("step")
    if isinstance(step, int):
        counts.append(f"step {step:,}")
    return (
        f'<article class="card"><h3>{escape(evaluation.name)}</h3>'
        f'<p class="sub">{escape(", ".join(counts))}</p><dl class="numbers">{"".join(numbers)}</dl></article>'
    )


def _figure(caption: str, note: str, chart: str) -> str:
    return f'<figure class="card"><figcaption>{escape(caption)}<span>{escape(note)}</span></figcaption>{chart}</figure>'


def _cmc(run: RunFolder) -> str:
    series = [Series(each.name, range(1, len(each.cmc) + 1), each.cmc) for each in run.evaluations if each.cmc]
    if not series:
        return ""
    lowest = min(min(line.y) for line in series)
    chart = line_chart(
        series,
        label="Cumulative matching",
        x_label="rank",
        y_format=format_percent,
        x_ticks=(1, 10, 20, 30, 40, 50),
        y_floor=int(lowest * 10) / 10,
        y_ceiling=1.0,
    )
    note = "share of queries whose first right answer is at this rank or better"
    head = "".join(f'<th scope="col">{escape(line.name)}</th>' for line in series)
    rows = "".join(
        f'<tr><th scope="row">Rank-{rank}</th>'
        + "".join(f"<td>{100 * line.y[rank - 1]:.1f} %</td>" if rank <= len(line.y) else "<td></td>" for line in series)
        + "</tr>"
        for rank in CMC_TABLE
    )
    table = (
        f'<div class="card table"><table class="values"><caption>In numbers</caption>'
        f'<thead><tr><th scope="col">Rank</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return f'<div class="charts">{_figure("Queries answered by this rank", note, chart)}{table}</div>'


def _training(run: RunFolder) -> str:
    if not run.training and not run.history:
        return ""
    figures = []
    masses = [(f"health/mass_{part}", f"part {part + 1}") for part in run.logged_parts]
    shares = [(f"health/{key}", key) for key in ("foreground", "visibility", "confidence")]
    determinants = [("health/det_max", "largest"), ("health/det_min", "smallest")]
    for caption, note, keys in (
        ("Loss", "per step; the band is the range where points are merged", LOSSES),
        (
            "Motion consistency",
            "terms before weighting, and their weighted sum before the ramp; logarithmic",
            MOTION_LOSSES,
        ),
        ("Parts: mask mass", "share of all cells that each part owns, mean over a batch", masses),
        (
            "Foreground and confidence",
            "mean foreground of the cells, visibility of the parts, sharpness of the heat maps (1: one cell)",
            shares,
        ),
        ("Determinants", "of the parts' affines in a batch; 1 is a part without deformation", determinants),
        ("Learning rate", "per step", [("lr", "learning rate")]),
        ("Throughput", "images per second", [("images_per_second", "images per second")]),
    ):
        series = [_logged(run.training, key, name) for key, name in keys if any(key in event for event in run.training)]
        if series:
            # The terms of motion consistency differ by orders of magnitude.
            axis: dict[str, Any] = {"y_log": True} if keys is MOTION_LOSSES else {"y_floor": 0.0}
            chart = line_chart(series, label=caption, x_label="step", **axis)
            figures.append(_figure(caption, note, chart))
    for key, caption in (("mAP", "mAP"), ("rank1", "Rank-1")):
        series = [
            _logged(events, key, name) for name, events in run.history.items() if any(key in event for event in events)
        ]
        # A single evaluation is no curve, and the results above have its numbers.
        if any(len(line.x) > 1 for line in series):
            chart = line_chart(series, label=caption, x_label="step", y_format=format_percent, y_floor=0.0)
            figures.append(_figure(f"{caption} while training", "each evaluation set", chart))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _logged(events: Sequence[dict[str, Any]], key: str, name: str) -> Series:
    found = [event for event in events if key in event]
    return Series(
        name, [float(event["step"]) for event in found], [number(event, key, float("nan")) for event in found]
    )


def _protocols(run: RunFolder) -> str:
    parts = []
    for evaluation in run.evaluations:
        manifest = evaluation.values.get("manifest")
        if isinstance(manifest, dict) and manifest:
            rows = "".join(_rows(manifest))
            parts.append(
                f"<details><summary>{escape(evaluation.name)}</summary>"
                f'<div class="table"><table>{rows}</table></div></details>'
            )
    if not parts:
        return ""
    return '<p class="lead">The rules and counts behind each number, as stored with it.</p>' + "".join(parts)


def _rows(values: dict[str, Any], prefix: str = "") -> list[str]:
    rows: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += _rows(value, f"{name}: ")
            continue
        shown = (
            "yes"
            if value is True
            else "no"
            if value is False
            else ", ".join(map(str, value))
            if isinstance(value, list)
            else value
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(shown))}</td></tr>')
    return rows


def _config(run: RunFolder) -> str:
    if not run.config_text:
        return ""
    return f"<details><summary>config.yaml</summary><div><pre>{escape(run.config_text)}</pre></div></details>"


def _files(run: RunFolder) -> str:
    rows = [("run folder", str(run.path.resolve()))]
    checkpoints = sorted((run.path / "checkpoints").glob("*")) if (run.path / "checkpoints").is_dir() else []
    rows += [("checkpoint", f"checkpoints/{folder.name}") for folder in checkpoints if folder.is_dir()]
    known = (("log", "log.jsonl"), ("config", "config.yaml"), ("TensorBoard", "tensorboard"))
    rows += [(name, place) for name, place in known if (run.path / place).exists()]
    rows += [(f"evaluation {each.name}", f"evaluations/{each.path.name}") for each in run.evaluations]
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(place)}</code></td></tr>' for name, place in rows
    )
    return f'<div class="table"><table>{body}</table></div>'
