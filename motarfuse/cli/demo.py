"""``motarfuse demo``: the whole job on drawn people: draw, train, evaluate in full view and occluded, report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from motarfuse import console
from motarfuse.cli.train import evaluation_table
from motarfuse.data.synthped import SynthPedConfig, write_synthped
from motarfuse.data.synthped.config import VERSION
from motarfuse.engine.config import load_config
from motarfuse.engine.trainer import TrainResult, train
from motarfuse.errors import ConfigError, OutputError
from motarfuse.viz.report import write_report

PROTOCOLS = ("holistic", "occluded")
# Where the demo differs from the defaults of `motarfuse train`: from scratch in few steps at 128x64 a network needs
# gentler augmentation and an earlier peak of the learning rate. configs/synthped_nano.yaml says the same, but takes
# more steps.
STEPS = 200
SETTINGS = (
    "model.name=motar_fuse",
    "copy.share=0.5",
    "augment.pad_px=5",
    "augment.erasing_probability=0",
    "augment.color_probability=0.8",
    "optim.warmup_steps=30",
)
GIVEN = ("data.root", "evaluation.sets", "output.run_dir")
EXAMPLES = """
examples:
  motarfuse demo
  motarfuse demo --out demos/seed1 --seed 1 train.steps=600

Draws SynthPed into OUT/synthped, trains the nano MOTAR-FUSE on it into OUT/run, evaluates it in full view (holistic)
and behind things (occluded), and writes OUT/run/report.html. An interrupted demo goes on when it is given again.
"""


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


def demo(
    out: Path, *, seed: int = 0, people: SynthPedConfig | None = None, overrides: Sequence[str] = ()
) -> DemoResult:
    """Draws SynthPed, trains the ``nano`` MOTAR-FUSE on it, evaluates and writes the report.

    Args:
        out: Folder for the data (``out/synthped``, kept and reused) and the run (``out/run``, resumed when it was
            interrupted).
        seed: Seed of the people (unless ``people`` has its own) and of the training.
        people: What is drawn; SynthPed's default benchmark when None.
        overrides: ``key=value`` changes to the training's config.

    Raises:
        ConfigError: An override that the config does not have, or that the demo sets itself.
        OutputError: The folder cannot be written, or holds other people.
    """
    for override in overrides:
        if override.partition("=")[0].strip() in GIVEN:
            raise ConfigError(f"{override}: the demo sets {', '.join(GIVEN)} itself; see motarfuse train")
    config = load_config(None, [*SETTINGS, f"train.steps={STEPS}", f"train.seed={seed}", *overrides])
    data = out / "synthped"
    config.data.root = str(data / PROTOCOLS[0])
    config.evaluation.sets = {name: str(data / name) for name in PROTOCOLS}
    config.output.run_dir = str(out / "run")
    people = people or SynthPedConfig(seed=seed)

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    if data.exists():
        _check_drawn(data, people)
        console.info(f"using the people already drawn in {data}")
    else:
        console.info(f"drawing people into {data}")
        write_synthped(data, people, protocols=PROTOCOLS)
    seconds["draw"] = time.perf_counter() - start

    start = time.perf_counter()
    training = train(config)
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    report = write_report(training.run_dir)
    seconds["report"] = time.perf_counter() - start
    return DemoResult(training, report, seconds)


def _check_drawn(data: Path, people: SynthPedConfig) -> None:
    """Raises unless the folder holds exactly these people."""
    try:
        drawn = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        same = drawn["config"] == people.to_dict() and drawn["version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{data} is no drawn dataset or is damaged: delete it, or give another --out") from error
    if not same:
        raise OutputError(f"{data} holds people drawn with other settings: give another --out, or delete it")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the config, as of motarfuse train"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder (default: runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of people and training (default: 0)")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    result = demo(args.out, seed=args.seed, overrides=args.overrides)
    console.console.print(evaluation_table(list(result.training.evaluations.values())))
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    console.info(f"{sum(result.seconds.values()):.0f} seconds: {stages}")
    console.info(f"report: {result.report}")
    return 0
