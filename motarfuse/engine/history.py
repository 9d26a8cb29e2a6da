"""What every evaluation of a run found, query by query: what comparisons of runs are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from motarfuse.engine.evaluator import Evaluation
from motarfuse.engine.logs import read_log
from motarfuse.engine.outputs import make_folder, write_bytes

HISTORY = "history.jsonl"


def history_path(run_dir: Path) -> Path:
    """Where a run keeps its history."""
    return run_dir / "evaluations" / HISTORY


def append_history(evaluation: Evaluation, run_dir: Path, seconds: float) -> None:
    """Adds an evaluation; what a killed process had written of this step or later is dropped.

    A line holds ``step``, ``seconds`` (wall time of the training so far, evaluations left out), ``name``, ``metrics``
    and ``queries``, the valid queries' identities, average precisions, INPs and first ranks by score.

    Raises:
        OutputError: It cannot be written; the file is as it was.
    """
    path = history_path(run_dir)
    make_folder(path.parent)
    step, name = evaluation.record["step"], evaluation.name
    kept = [
        event for event in read_log(path) if event["step"] < step or (event["step"] == step and event["name"] != name)
    ]
    event: dict[str, Any] = {
        "step": step,
        "seconds": round(seconds, 3),
        "name": name,
        "metrics": evaluation.metrics,
        "queries": evaluation.record["queries"],
    }
    lines = [json.dumps(each, allow_nan=False) + "\n" for each in [*kept, event]]
    write_bytes(path, "".join(lines).encode())
