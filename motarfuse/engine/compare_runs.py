"""Doing a comparison's runs: what is there, what is missing, how long it will take, and on with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any, Literal

from motarfuse import console
from motarfuse.engine.checkpoint import list_checkpoints
from motarfuse.engine.compare import Comparison, Run
from motarfuse.engine.compare_sets import prepare_sets
from motarfuse.engine.config import config_differences, load_config
from motarfuse.engine.evaluator import evaluate_checkpoint
from motarfuse.engine.outputs import make_folder, write_json
from motarfuse.engine.run_folder import CHECKPOINTS, CONFIG, RESUMABLE
from motarfuse.engine.settings import show
from motarfuse.engine.trainer import train
from motarfuse.errors import ConfigError, TrainingError

ORIGIN = "compare.json"
# Evaluations cannot be repeated for the steps that are gone, so that their rules are a run's own as well.
FIXED = ("evaluation.protocol", "evaluation.metric", "evaluation.flip")

Status = Literal["done", "interrupted", "failed", "not run"]


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        status: ``done``: trained, and evaluated on every set.
        step: Of the latest checkpoint.
        missing: Sets without an evaluation of the final weights.
    """

    status: Status
    step: int
    missing: tuple[str, ...]


@dataclass
class Progress:
    """What one call came to.

    Attributes:
        finished: Runs done by this call.
        failed: Runs whose training diverged, with the reason.
        waiting: Runs that need another one that was not selected.
        stopped: Why runs are left that could have been done; "" if none is.
    """

    finished: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[Run] = field(default_factory=list)
    stopped: str = ""


def run_state(comparison: Comparison, run: Run) -> RunState:
    """How far a run is, from its folder alone."""
    checkpoints = list_checkpoints(run.folder / CHECKPOINTS)
    step = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    missing = tuple(
        name for name in comparison.studies[run.study].sets if _evaluated_step(run.folder, name) != run.steps
    )
    if step >= run.steps and not missing:
        return RunState("done", step, ())
    failed = any(run.folder.glob("failed-step-*.safetensors")) and step < run.steps
    return RunState("failed" if failed else "interrupted" if step else "not run", step, missing)


def _evaluated_step(folder: Path, name: str) -> int | None:
    try:
        step = json.loads((folder / "evaluations" / f"{name}.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def check_unchanged(comparison: Comparison) -> None:
    """Checks that the runs that are there are those that the file means.

    Raises:
        ConfigError: Names the run, and the keys that differ with both values.
    """
    for run in comparison.runs:
        if not list_checkpoints(run.folder / CHECKPOINTS):
            continue
        old = load_config(run.folder / CONFIG).to_dict()
        changed = {
            key: values
            for key, values in config_differences(old, run.config.to_dict()).items()
            if key in FIXED or not any(fnmatch(key, pattern) for pattern in RESUMABLE)
        }
        origin = _read_origin(run)
        for key, value in _origin(comparison, run).items():
            if origin.get(key) != value:
                changed[key] = (origin.get(key), value)
        if changed:
            listed = "; ".join(f"{key} was {show(before)}, now {show(now)}" for key, (before, now) in changed.items())
            raise ConfigError(
                f"row {run.row!r} has changed since {run.folder} was trained: {listed}. "
                "Set it back, delete that folder, give the row another name, or choose another --out"
            )


def _origin(comparison: Comparison, run: Run) -> dict[str, Any]:
    """What a run's config does not tell, or only as a path that may move."""
    return {"split": comparison.studies[run.study].split, "initial": run.source.name if run.source else None}


def _read_origin(run: Run) -> dict[str, Any]:
    try:
        origin = json.loads((run.folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def estimate_seconds(comparison: Comparison, run: Run, state: RunState) -> float | None:
    """Wall time that a run still needs, from those that were timed here: the nearest relatives' seconds a step.

    Those are other seeds of the row in this study, else the row elsewhere, else all of this study, else all.
    """
    timed = [(other, _read_origin(other).get("seconds_per_step")) for other in comparison.runs]
    rates = [(other, float(rate)) for other, rate in timed if isinstance(rate, int | float)]
    near: tuple[Callable[[Run], bool], ...] = (
        lambda other: (other.study, other.row) == (run.study, run.row),
        lambda other: other.row == run.row,
        lambda other: other.study == run.study,
        lambda other: True,
    )
    for related in near:
        found = [rate for other, rate in rates if related(other)]
        if found:
            return median(found) * (run.steps - state.step)
    return None


def missing_data(comparison: Comparison, only: Sequence[str] = ()) -> list[str]:
    """What the studies of runs that are left to do want to read and is not there, a line a study."""
    lines = []
    left = [run for run in comparison.select(only) if run_state(comparison, run).status != "done"]
    for study in dict.fromkeys(run.study for run in left):
        sets = comparison.studies[study]
        places = [sets.given, *sets.trained.values()]
        # What a comparison writes itself, splits and covered queries, comes with its first run.
        wanted = [place for place in dict.fromkeys(places) if not Path(place).is_relative_to(comparison.out)]
        absent = [place for place in wanted if not Path(place).exists()]
        if absent:
            lines.append(f"study {study}: {', '.join(absent)}: no such file or folder")
    return lines


def execute(
    comparison: Comparison,
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    finished: Callable[[], object] = lambda: None,
) -> Progress:
    """Does the runs that are missing, one after the other; one that was interrupted goes on where it was.

    Args:
        comparison: What to do.
        only: Patterns of the runs to do; none: all.
        minutes: Wall time after which no run is started, nor one whose estimate would pass it.
        finished: Called after every run.

    Raises:
        ConfigError: A run that is there was made from another config, or a pattern fits nothing.
        DataError, CheckpointError, OutputError: As of :func:`motarfuse.engine.trainer.train`.
    """
    check_unchanged(comparison)
    selected = comparison.select(only)
    start = time.perf_counter()
    progress = Progress()
    prepared: set[str] = set()
    for place, run in enumerate(selected, 1):
        state = run_state(comparison, run)
        if state.status == "done":
            continue
        if run.source is not None and run_state(comparison, run.source).status != "done":
            progress.waiting.append(run)
            continue
        needed = estimate_seconds(comparison, run, state)
        if minutes is not None:
            left = 60 * minutes - (time.perf_counter() - start)
            if left <= 0 or (needed is not None and needed > left):
                would = "" if needed is None else f", which would take about {duration(needed)}"
                left_text = f"{duration(left)} of {minutes:g} minutes are left" if left > 0 else "the time is used up"
                progress.stopped = f"stopped before {run.name}{would}: {left_text}"
                break
        about = "" if needed is None else f", about {duration(needed)}"
        where = f", on from step {state.step}" if state.step else ""
        console.info(f"[{place}/{len(selected)}] {run.name}{where}{about}")
        if run.study not in prepared:
            prepare_sets(comparison.studies[run.study])
            prepared.add(run.study)
        try:
            _do(comparison, run, state)
        except TrainingError as error:
            # A row that diverges is a result; the others still count.
            console.warn(f"{run.name}: {error}")
            progress.failed[run.name] = str(error)
        else:
            progress.finished.append(run)
        finished()
    return progress


def _do(comparison: Comparison, run: Run, state: RunState) -> None:
    start = time.perf_counter()
    make_folder(run.folder)
    origin = {**_read_origin(run), **_origin(comparison, run)}
    write_json(run.folder / ORIGIN, origin)
    result = train(run.config)
    study, evaluation = comparison.studies[run.study], run.config.evaluation
    for one in study.covered:
        # Those of `trained` are evaluated by the training; the rest of the curve needs the final weights alone.
        if one.name not in study.trained and _evaluated_step(run.folder, one.name) != run.steps:
            evaluate_checkpoint(
                result.checkpoint,
                one.folder,
                kind="csv",
                name=one.name,
                protocol=evaluation.protocol,
                metric=evaluation.metric,
                score=evaluation.score,
                batch_size=evaluation.batch_size,
                flip=evaluation.flip,
                device=run.config.train.device,
                precision=run.config.train.precision,
                workers=run.config.data.workers,
                out=run.folder,
            )
    if state.step < run.steps:
        # Of this call alone, so that a killed one before it does not make the rest look fast.
        origin["seconds_per_step"] = (time.perf_counter() - start) / (run.steps - state.step)
        write_json(run.folder / ORIGIN, origin)


def duration(seconds: float) -> str:
    """A time as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
