"""``motarfuse train``, ``evaluate`` and ``extract`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from motarfuse.cli.main import main
from motarfuse.engine.config import load_config
from tests.engine.people import SMALL_MODEL, write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # tiny networks, for which a second thread costs more than it brings
    return write_people(tmp_path_factory.mktemp("people"))


def overrides(people: Path, run_dir: Path) -> list[str]:
    return [
        f"data.root={people}",
        f"output.run_dir={run_dir}",
        "output.tensorboard=no",
        "train.batch_size=8",
        "train.instances=2",
        "train.steps=2",
        "train.device=cpu",
        *SMALL_MODEL,
    ]


def test_train_evaluate_and_extract_work_in_a_row(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *overrides(people, run)]) == 0
    output = capsys.readouterr().out
    assert "step 2/2" in output
    assert "mAP" in output
    assert "step-00000002" in output
    assert main(["evaluate", str(run), "--data", str(people), "--name", "again", "--flip", "--device", "cpu"]) == 0
    assert "again" in capsys.readouterr().out
    record = json.loads((run / "evaluations/again.json").read_text())
    assert record["manifest"]["features"]["flip"] is True
    out = tmp_path / "features"
    assert main(["extract", str(run), str(people / "query"), str(out), "--device", "cpu"]) == 0
    assert "6 images in" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["features.safetensors", "manifest.json", "table.csv"]


def test_errors_are_one_line_and_exit_status_2(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("train", "optim.lrr=1"): "did you mean optim.lr?",
        ("train", "--config", str(tmp_path / "none.yaml")): "cannot read the config",
        ("train",): "data.root is not set",
        ("train", *overrides(people, tmp_path / "run"), "evaluation.sets={far: /no/such}"): (
            "evaluation.sets, far: /no/such: no such"
        ),
        ("evaluate", str(tmp_path), "--data", str(people)): "holds no checkpoint",
        ("extract", str(tmp_path), str(people), str(tmp_path / "out")): "holds no checkpoint",
    }
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error


def test_help_explains_every_field_and_gives_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "motarfuse train --config configs/synthped_nano.yaml" in output
    assert "optim.layer_decay = 1.0    (number)" in output
    assert "30 % of all for one_cycle" in output
    for verb in ("evaluate", "extract"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert f"examples:\n  motarfuse {verb} runs/first" in capsys.readouterr().out


def test_show_config_prints_what_reads_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show-config", "model.size=tiny", "loss.margin=0.3"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "c.yaml") == load_config(None, ["model.size=tiny", "loss.margin=0.3"])


def test_a_new_run_refuses_an_old_folder(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *overrides(people, tmp_path / "run")]
    assert main(arguments) == 0
    assert main([*arguments, "--new"]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["2/2", "x/2", "1"])
def test_shards_out_of_range_are_refused(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["extract", "run", "crops", "out", "--shard", shard])
    assert stop.value.code == 2
    assert "I/N" in capsys.readouterr().err
