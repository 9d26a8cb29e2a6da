"""Folders of a comparison's runs as training leaves them, with numbers drawn at random instead of trained."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from motarfuse.engine.compare import Comparison, Run
from motarfuse.engine.config import dump_config

FILE = """
base:
  train: {steps: 300}
rows:
  tuned: {optim.lr: 2e-3}
  default: {}
  wide: {model.size: tiny, seeds: [0]}
seeds: [0, 1]
studies:
  drawn:
    data: {root: people}
  real:
    data: {root: crops.csv, kind: csv}
    covered: {min: 0.3, max: 0.5}
    covered_curve: [0, 0.2, 0.4]
"""


def write_file(folder: Path, text: str = FILE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.yaml"
    path.write_text(text)
    return path


def queries(quality: float, seed: int, *, identities: int = 12, each: int = 8) -> dict[str, list[Any]]:
    """Scores of queries: how hard a person is depends on the person alone, so that rows can be paired."""
    pids = np.repeat(np.arange(identities), each)
    difficulty = np.random.default_rng(7).normal(0, 0.15, identities)[pids]
    precision = np.clip(quality + difficulty + np.random.default_rng(seed).normal(0, 0.03, len(pids)), 0.01, 1)
    ranks = np.where(precision > 0.4, 1, 5)
    return {
        "pid": pids.tolist(),
        "average_precision": precision.tolist(),
        "inp": (0.7 * precision).tolist(),
        "first_rank": ranks.tolist(),
    }


def finish(
    comparison: Comparison,
    run: Run,
    *,
    quality: float = 0.6,
    seconds_per_step: float = 0.5,
    scores: Mapping[str, float] | None = None,
    step: int | None = None,
    identities: int = 12,
) -> None:
    """Makes a run look trained, to ``step`` or to its end; ``scores`` adds to the quality of each score."""
    last = step or run.steps
    (run.folder / "checkpoints" / f"step-{last:08d}").mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    study = comparison.studies[run.study]
    origin = {"split": study.split, "initial": run.source.name if run.source else None}
    if last == run.steps:
        origin["seconds_per_step"] = 1.25 * seconds_per_step  # type: ignore[assignment]
    (run.folder / "compare.json").write_text(json.dumps(origin))
    evaluations = run.folder / "evaluations"
    evaluations.mkdir()
    lines = []
    for at in range(50, last + 1, 50):
        for place, name in enumerate(study.sets):
            level = (quality - 0.08 * place) * (1 - math.exp(-at / 120))
            seed = zlib.crc32(f"{run.name}/{name}/{at}".encode())
            record = {
                "step": at,
                "name": name,
                "queries": {
                    score: queries(level + more, seed, identities=identities)
                    for score, more in (scores or {"feature": 0.0}).items()
                },
            }
            if name in study.trained:
                lines.append(json.dumps({**record, "seconds": at * seconds_per_step}))
            if at == run.steps:
                (evaluations / f"{name}.json").write_text(json.dumps(record))
    (evaluations / "history.jsonl").write_text("".join(line + "\n" for line in lines))
