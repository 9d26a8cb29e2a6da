"""The demo: the whole job, small, and its recipe in step with the committed config."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from motarfuse.cli.demo import SETTINGS, demo
from motarfuse.cli.main import main
from motarfuse.data.synthped import SynthPedConfig
from motarfuse.engine.config import load_config
from motarfuse.errors import OutputError

PEOPLE = SynthPedConfig(train_ids=6, test_ids=4, images_per_camera=1, distractors=4)
QUICK = ["train.steps=2", "optim.warmup_steps=1", "train.batch_size=8", "train.instances=2", "output.tensorboard=no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "with space"


def test_a_demo_draws_trains_evaluates_and_reports(folder: Path) -> None:
    result = demo(folder, people=PEOPLE, overrides=QUICK)
    assert set(result.training.evaluations) == {"holistic", "occluded"}
    assert all(0 < one.metrics["mAP"] <= 1 for one in result.training.evaluations.values())
    assert (result.training.checkpoint / "model.safetensors").is_file()
    page = result.report.read_text(encoding="utf-8")
    assert "holistic" in page
    assert "occluded" in page


def test_a_finished_demo_is_not_trained_again(folder: Path) -> None:
    first = demo(folder, people=PEOPLE, overrides=QUICK)
    weights = (first.training.checkpoint / "model.safetensors").stat().st_mtime_ns
    again = demo(folder, people=PEOPLE, overrides=QUICK)
    assert (again.training.checkpoint / "model.safetensors").stat().st_mtime_ns == weights


def test_other_people_in_the_folder_are_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(folder, people=PEOPLE, overrides=QUICK)
    with pytest.raises(OutputError, match="other settings"):
        demo(folder, people=PEOPLE.with_options(seed=5), overrides=QUICK)
    assert main(["demo", "--out", str(folder)]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_the_demo_trains_as_the_committed_config_says(repository: Path) -> None:
    committed = load_config(repository / "configs" / "synthped_nano.yaml", [])
    used = load_config(None, list(SETTINGS))
    for section in ("model", "augment", "optim", "loss", "train"):
        assert asdict(getattr(committed, section)) == asdict(getattr(used, section)), section
