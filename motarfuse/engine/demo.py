"""The whole job on drawn people: draw, train, evaluate holistic and occluded, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motarfuse import console
from motarfuse.data.synthped import SynthPedConfig, write_synthped
from motarfuse.engine.config import load_config
from motarfuse.engine.trainer import TrainResult, train
from motarfuse.viz.report import write_report

PROTOCOLS = ("holistic", "occluded")


@dataclass(frozen=True)
class DemoResult:
    """What a demo leaves behind.

    Attributes:
        training: The training run, with its evaluations by protocol name.
        report: The HTML page.
        seconds: Wall time by stage: ``draw``, ``train`` (with its evaluation), ``report``.
    """

    training: TrainResult
    report: Path
    seconds: dict[str, float]


def demo(out: Path, *, seed: int = 0, overrides: Sequence[str] = ()) -> DemoResult:
    """Draws SynthPed, trains the ``nano`` ViT on it, evaluates and writes the report.

    Args:
        out: Folder for the data (``out/synthped``, kept and reused) and the run (``out/run``, resumed when it was interrupted).
        seed: Seed of the data and of the training.
        overrides: ``key=value`` changes to the demo's config.

    Raises:
        OutputError: The folder cannot be written.
    """
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    data = out / "synthped"
    if (data / "manifest.json").is_file():
        console.info(f"using the people already drawn in {data}")
    else:
        console.info(f"drawing people into {data}")
        write_synthped(data, SynthPedConfig(seed=seed))
    seconds["draw"] = time.perf_counter() - start

    start = time.perf_counter()
    settings = [
        f"data.root={data / PROTOCOLS[0]}",
        "evaluation.sets={" + ", ".join(f"{name}: {data / name}" for name in PROTOCOLS) + "}",
        f"output.run_dir={out / 'run'}",
        f"train.seed={seed}",
    ]
    training = train(load_config(None, [*settings, *overrides]))
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    report = write_report(training.run_dir)
    seconds["report"] = time.perf_counter() - start
    return DemoResult(training, report, seconds)
