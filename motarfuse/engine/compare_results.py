"""What a comparison's runs came to: readings query by query, means over seeds, paired differences, equal wall time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from motarfuse.engine.bootstrap import PairedDifference, paired_bootstrap
from motarfuse.engine.compare import Comparison, Run
from motarfuse.engine.compare_runs import RunState, run_state
from motarfuse.engine.history import history_path
from motarfuse.engine.logs import read_log
from motarfuse.errors import DataError

METRICS = {"mAP": "mAP", "rank1": "Rank-1", "mINP": "mINP"}
Basis = Literal["steps", "time", "feature"]
BASES: dict[Basis, str] = {
    "steps": "equal steps",
    "time": "equal wall time",
    "feature": "equal steps, by the feature alone",
}


@dataclass(frozen=True)
class Reading:
    """One evaluation of one set.

    Attributes:
        step: Of the weights.
        seconds: Wall time of the training up to it, evaluations left out; None where it was not noted.
        queries: Score -> ``pid`` and, by metric, the value of every valid query in order.
    """

    step: int
    seconds: float | None
    queries: dict[str, dict[str, np.ndarray]]

    def value(self, score: str, metric: str) -> float:
        """Mean of a metric over the valid queries."""
        return float(self.queries[score][metric].mean())


@dataclass(frozen=True)
class RunResult:
    """A run with what its folder holds.

    Attributes:
        run, state: Which, and how far it is.
        readings: Set -> step -> reading.
    """

    run: Run
    state: RunState
    readings: dict[str, dict[int, Reading]]

    @property
    def done(self) -> bool:
        """Whether it counts in tables."""
        return self.state.status == "done"

    @property
    def score(self) -> str:
        """The score that headlines are of: ``evaluation.score``, where ``auto`` is the sum if the network has parts."""
        wanted = str(self.run.config.evaluation.score)
        given = {score for steps in self.readings.values() for reading in steps.values() for score in reading.queries}
        return wanted if wanted != "auto" else "sum" if "sum" in given else "feature"

    @property
    def seconds(self) -> float | None:
        """Wall time of the whole training."""
        found = [
            reading.seconds
            for steps in self.readings.values()
            for reading in steps.values()
            if reading.step == self.run.steps and reading.seconds is not None
        ]
        return found[0] if found else None


@dataclass(frozen=True)
class Cell:
    """A row's value on a set: the mean over its finished seeds, and what it was read from.

    Attributes:
        value: Mean over seeds, a fraction; None where nothing was run.
        per_seed: Seed -> value.
        step, seconds: Of the reading; seconds are the median over seeds.
    """

    value: float | None
    per_seed: dict[int, float] = field(default_factory=dict)
    step: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Difference:
    """A - B of two rows on a set, over the seeds that both have.

    Attributes:
        study, name, metric, basis: Where, on which set, of what, at equal steps or wall time by the rows' own scores,
            or at equal steps by the feature alone.
        first, second: A and B.
        seeds: Those that both have.
        steps, seconds: What each was read at.
        found: The interval; None where it cannot be computed.
        reason: Why there is none.
    """

    study: str
    name: str
    metric: str
    basis: Basis
    first: str
    second: str
    seeds: tuple[int, ...] = ()
    steps: tuple[int | None, int | None] = (None, None)
    seconds: tuple[float | None, float | None] = (None, None)
    found: PairedDifference | None = None
    reason: str = ""


class Results:
    """Everything that a comparison's folder holds so far.

    Args:
        comparison: Which runs there are.

    Raises:
        DataError: A file of a run is damaged, or was written without the queries' own values.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.runs = {run.name: _read(comparison, run) for run in comparison.runs}

    def of(self, study: str, row: str | None = None, *, done: bool = False) -> list[RunResult]:
        """Runs of a study, or of one of its rows, by seed; on wish the finished ones only."""
        found = [self.runs[run.name] for run in self.comparison.of(study, row)]
        return [result for result in found if result.done or not done]

    def cell(self, study: str, row: str, name: str, metric: str, *, step: int | None = None) -> Cell:
        """A row's mean over its finished seeds on a set, of the final weights or those of a step."""
        results = self.of(study, row, done=True)
        values, seconds = {}, []
        for result in results:
            reading = result.readings.get(name, {}).get(step or result.run.steps)
            if reading is not None:
                values[result.run.seed] = reading.value(result.score, metric)
                seconds += [] if reading.seconds is None else [reading.seconds]
        if not values:
            return Cell(None)
        mean = float(np.mean(list(values.values())))
        return Cell(mean, values, step or results[0].run.steps, median(seconds) if seconds else None)

    def budget(self, study: str, rows: Sequence[str], name: str) -> tuple[float, dict[str, int | None]] | None:
        """Equal wall time of some rows: the time that all of them had, and the step at which each is read on a set.

        A row's time for a step is the median over its seeds of the whole training's time over its steps. The budget is
        the whole training of the fastest row; the others are read at their last evaluation within it (None: there is
        none), so that rounding never favours the slower row.

        Returns:
            Seconds and steps by row, of the rows with a finished run; None where no times were noted.
        """
        rates: dict[str, float] = {}
        totals: dict[str, float] = {}
        for row in rows:
            results = self.of(study, row, done=True)
            times = [result.seconds for result in results if result.seconds is not None]
            if times:
                totals[row] = median(times)
                rates[row] = median(times) / results[0].run.steps
        if not totals:
            return None
        seconds = min(totals.values())
        steps: dict[str, int | None] = {}
        for row, rate in rates.items():
            results = self.of(study, row, done=True)
            common = set.intersection(*(set(result.readings[name]) for result in results))
            steps[row] = max((step for step in common if step * rate <= seconds * (1 + 1e-9)), default=None)
        return seconds, steps

    def differences(self, study: str) -> list[Difference]:
        """Every pair, set and metric: at equal steps, and for the sets evaluated while training at equal wall time.

        Pairs with a row whose own score is not the feature's are compared by the feature alone as well.
        """
        found = []
        sets = self.comparison.studies[study]
        for first, second in self.comparison.pairs:
            finished = [result for row in (first, second) for result in self.of(study, row, done=True)]
            other_scores = any(result.score != "feature" for result in finished)
            for name in sets.sets:
                timed = self.budget(study, [first, second], name) if name in sets.trained else None
                for basis in BASES:
                    if basis == "steps" or (name in sets.trained and (basis == "time" or other_scores)):
                        found += [
                            self._difference(study, name, metric, basis, first, second, timed) for metric in METRICS
                        ]
        return found

    def _difference(
        self,
        study: str,
        name: str,
        metric: str,
        basis: Basis,
        first: str,
        second: str,
        timed: tuple[float, dict[str, int | None]] | None,
    ) -> Difference:
        sides = [{result.run.seed: result for result in self.of(study, row, done=True)} for row in (first, second)]
        seeds = tuple(sorted(sides[0].keys() & sides[1].keys()))
        where = (study, name, metric, basis, first, second, seeds)
        if not seeds:
            return Difference(*where, reason="not run")
        steps: list[int | None] = [sides[0][seeds[0]].run.steps, sides[1][seeds[0]].run.steps]
        if basis == "time":
            steps = [timed[1].get(row) if timed else None for row in (first, second)]
        if None in steps:
            return Difference(*where, reason="no evaluation within the time of the faster row")
        readings = [
            [side[seed].readings.get(name, {}).get(step or 0) for seed in seeds]
            for side, step in zip(sides, steps, strict=True)
        ]
        if any(reading is None for side in readings for reading in side):
            return Difference(*where, reason="not evaluated")
        values, pids, seconds = [], [], []
        for side, results in zip(readings, sides, strict=True):
            scores = ["feature" if basis == "feature" else results[seed].score for seed in seeds]
            queries = [reading.queries[score] for reading, score in zip(side, scores, strict=True)]  # type: ignore[union-attr]
            values.append([one[metric] for one in queries])
            pids += [one["pid"] for one in queries]
            times = [reading.seconds for reading in side if reading is not None and reading.seconds is not None]
            seconds.append(median(times) if times else None)
        read = {"steps": (steps[0], steps[1]), "seconds": (seconds[0], seconds[1])}
        if any(not np.array_equal(one, pids[0]) for one in pids):
            return Difference(*where, **read, reason="the two were evaluated on different queries")  # type: ignore[arg-type]
        found = paired_bootstrap(np.stack(values[0]), np.stack(values[1]), pids[0], resamples=self.comparison.resamples)
        return Difference(*where, **read, found=found, reason=found.reason)  # type: ignore[arg-type]


def _read(comparison: Comparison, run: Run) -> RunResult:
    readings: dict[str, dict[int, Reading]] = {name: {} for name in comparison.studies[run.study].sets}
    path = history_path(run.folder)
    for event in read_log(path):
        if event.get("name") in readings:
            readings[event["name"]][int(event["step"])] = _reading(event, path)
    for name, steps in readings.items():
        path = run.folder / "evaluations" / f"{name}.json"
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{path} is damaged ({error}); delete it, and it is evaluated again") from error
            steps.setdefault(int(record["step"]), _reading(record, path))
    return RunResult(run, run_state(comparison, run), readings)


def _reading(record: Mapping[str, Any], path: Path) -> Reading:
    """A reading from a line of the history or from an evaluation's file."""
    try:
        queries = {
            score: {
                "pid": np.asarray(values["pid"], dtype=np.int64),
                "mAP": np.asarray(values["average_precision"], dtype=np.float64),
                "rank1": (np.asarray(values["first_rank"]) == 1).astype(np.float64),
                "mINP": np.asarray(values["inp"], dtype=np.float64),
            }
            for score, values in record["queries"].items()
        }
        return Reading(int(record["step"]), record.get("seconds"), queries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} holds no values of single queries, which intervals need (missing: {error}); delete the file, and "
            "the run is evaluated again"
        ) from error
