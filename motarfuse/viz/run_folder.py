"""Reads a run folder for a report: finished, still going or cut off in the middle of a line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from motarfuse.errors import DataError

_MASS = re.compile(r"health/mass_(\d+)")


@dataclass
class Evaluation:
    """One file of ``evaluations/``; ``values`` is its content."""

    name: str
    path: Path
    values: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Those metrics that are numbers."""
        found = self.values.get("metrics")
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if _is_number(value)}

    @property
    def cmc(self) -> list[float]:
        """The CMC curve, or nothing where it is not a list of numbers."""
        found = self.values.get("cmc")
        return found if isinstance(found, list) and all(_is_number(value) for value in found) else []

    @property
    def rank_lists(self) -> list[dict[str, Any]]:
        """Rank lists by rising average precision."""
        found = self.values.get("rank_lists")
        lists = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        return sorted(lists, key=lambda entry: number(entry, "average_precision", 0.0))

    def locate(self, path: Any) -> Path:
        """An image's place: absolute, or relative to the dataset's root."""
        root = self.values.get("root")
        return Path(root if isinstance(root, str) else "", str(path))


@dataclass
class RunFolder:
    """What a run has written so far.

    Attributes:
        path: The folder.
        config_text: ``config.yaml`` as it is, empty when absent.
        total_steps: Steps the run is to take, None when the config does not tell.
        training: ``train`` lines of the log, one a step, increasing.
        history: ``evaluation`` lines by set name, one a step, increasing.
        evaluations: Files of ``evaluations/`` by name.
        notes: What could not be read, for the reader of the report.
    """

    path: Path
    config_text: str = ""
    total_steps: int | None = None
    training: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 before the first."""
        return int(self.training[-1]["step"]) if self.training else 0

    @property
    def has_parts(self) -> bool:
        """Whether the log tells of a network with parts."""
        return any(key.startswith("health/") for event in self.training for key in event)

    @property
    def logged_parts(self) -> list[int]:
        """Parts, from 0, whose mask mass the log tells."""
        found = {match[1] for event in self.training for key in event if (match := _MASS.fullmatch(key))}
        return sorted(map(int, found))


def number(values: dict[str, Any], key: str, default: float) -> float:
    """A number from a file, or the default where it is missing or something else."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def read_run(path: str | Path) -> RunFolder:
    """Reads a run folder; a broken file becomes a note, so that the rest can be shown.

    Raises:
        DataError: No such folder, or nothing of a run in it.
    """
    run = RunFolder(Path(path))
    if not run.path.is_dir():
        raise DataError(f"{run.path} is not a folder; give the folder that `motarfuse train` wrote")
    names = ("config.yaml", "log.jsonl", "evaluations")
    if not any((run.path / name).exists() for name in names):
        raise DataError(f"{run.path} is not a run: it has none of {', '.join(names)}")
    try:
        _read_config(run)
        _read_log(run)
        _read_evaluations(run)
    except OSError as error:
        raise DataError(f"{error.filename or run.path} cannot be read: {error.strerror or error}") from error
    return run


def _read_config(run: RunFolder) -> None:
    file = run.path / "config.yaml"
    if not file.is_file():
        return
    run.config_text = file.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(run.config_text)
    except yaml.YAMLError as error:
        run.notes.append(f"config.yaml is not valid YAML: {' '.join(str(error).split())}")
        return
    steps = (
        config.get("train", {}).get("steps")
        if isinstance(config, dict) and isinstance(config.get("train"), dict)
        else None
    )
    run.total_steps = steps if isinstance(steps, int) else None


def _read_log(run: RunFolder) -> None:
    file = run.path / "log.jsonl"
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    # The last piece is empty when the file ends with a line break; otherwise a writer was cut off, or is at work.
    broken = 0
    training: dict[float, dict[str, Any]] = {}
    history: dict[str, dict[float, dict[str, Any]]] = {}
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            broken += index < len(lines) - 1
            continue
        if not isinstance(event, dict) or not _is_number(event.get("step")):
            broken += 1
        elif event.get("event") == "train":
            # After a resumed run a step can be there twice; the later line is the one that was continued from.
            training[event["step"]] = event
        elif event.get("event") == "evaluation":
            history.setdefault(str(event.get("name", "")), {})[event["step"]] = event
    if broken:
        run.notes.append(f"{broken} lines of log.jsonl cannot be read and are left out")
    run.training = [training[step] for step in sorted(training)]
    run.history = {name: [events[step] for step in sorted(events)] for name, events in history.items()}


def _read_evaluations(run: RunFolder) -> None:
    for file in sorted((run.path / "evaluations").glob("*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            run.notes.append(f"evaluations/{file.name} is not valid JSON: {error}")
            continue
        if not isinstance(values, dict):
            run.notes.append(f"evaluations/{file.name} holds no evaluation")
            continue
        run.evaluations.append(Evaluation(str(values.get("name", file.stem)), file, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
