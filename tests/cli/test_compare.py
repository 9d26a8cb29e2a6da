"""``motarfuse compare`` from the command line, with real trainings of a few steps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from motarfuse.cli.main import main
from motarfuse.engine.trainer import Trainer
from tests.engine.people import SMALL_MODEL, write_people

FILE = """
variables:
  people: nowhere
base:
  model: {size: nano}
  train: {steps: 4, batch_size: 8, instances: 2, evaluate_every: 2, checkpoint_every: 1, device: cpu, log_every: 1}
  optim.warmup_steps: 1
  output.tensorboard: no
rows:
  slow: {optim.lr: 1e-4}
  fast: {optim.lr: 2e-3}
studies:
  first:
    data: {root: "${people}"}
    covered: {min: 0.3, max: 0.5}
    covered_curve: [0, 0.4]
  second:
    data: {root: "${people}"}
    pretrained_from: first
resamples: 200
"""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # tiny networks, for which a second thread costs more than it brings
    return write_people(tmp_path_factory.mktemp("people"), identities=6)


def command(folder: Path, people: Path, *more: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "rows.yaml").write_text(FILE)
    overrides = [argument for argument in (*SMALL_MODEL, *more) if not argument.startswith("-")]
    options = [argument for argument in more if argument.startswith("-")]
    return ["compare", str(folder / "rows.yaml"), f"people={people}", *overrides, f"--out={folder / 'out'}", *options]


def read(path: Path, *without: str) -> list[dict[str, Any]]:
    with path.open() as file:
        return [{key: value for key, value in line.items() if key not in without} for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that ran through."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(folder, people)) == 0
    return folder


def test_runs_tables_and_page_are_there(whole: Path, people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = whole / "out"
    lines = read(out / "results.csv")
    assert {(line["study"], line["set"], line["step"]) for line in lines} == {
        *(("first", name, step) for name in ("plain", "covered-30-50") for step in ("2", "4")),
        ("first", "covered-40", "4"),
        *(("second", "plain", step) for step in ("2", "4")),
    }
    assert all(0 <= float(line["value"]) <= 1 for line in lines)
    found = read(out / "differences.csv")
    assert {(line["first"], line["second"], line["identities"]) for line in found if not line["reason"]} == {
        ("slow", "fast", "6")
    }
    text = (out / "table.md").read_text()
    assert "All 4 runs are done." in text
    assert "not run" not in text
    assert "<svg" in (out / "compare.html").read_text()
    weights = out / "second/fast/0/checkpoints/step-00000004/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main(command(whole, people)) == 0
    assert weights.stat().st_mtime_ns == before
    assert "training" not in capsys.readouterr().out


def test_a_study_starts_from_the_same_rows_weights(whole: Path) -> None:
    log = (whole / "out/second/fast/0/config.yaml").read_text()
    assert f"initial: {whole}/out/first/fast/0/checkpoints/step-00000004" in log


def test_interrupted_twice_it_ends_with_the_same_numbers(
    whole: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer._train_step
    left = 0

    def interrupted(self: Trainer, batches: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    for steps in (3, 5):  # in the first run, and after its end in the second one
        left = steps
        assert main(command(tmp_path, people)) == 130
        assert "the same command goes on" in capsys.readouterr().err
    left = -1
    assert main(command(tmp_path, people, "--dry-run")) == 0
    plan = capsys.readouterr().out.splitlines()
    assert plan[0].startswith("first/slow/0   done")
    assert plan[1].startswith("first/fast/0   interrupted at step 2 of 4  about ")
    assert plan[3].endswith("from first/fast/0")
    assert plan[4].startswith("1 of 4 runs are done; the rest: about ")
    assert main(command(tmp_path, people)) == 0
    assert "first/fast/0, on from step 2" in capsys.readouterr().out
    for name in ("results.csv", "differences.csv"):
        drop = ("seconds", "first_seconds", "second_seconds")
        # Equal wall time depends on the clock.
        expected, found = (
            [line for line in read(folder / "out" / name, *drop) if line.get("basis") != "time"]
            for folder in (whole, tmp_path)
        )
        assert found == expected


def test_changed_rows_missing_data_and_wrong_keys_are_errors_in_one_line(
    whole: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (command(whole, people, "train.steps=5"), "row 'slow' has changed since"),
        (command(whole, people, "train.stepz=5"), "did you mean train.steps?"),
        (command(tmp_path, Path("/no/such")), "/no/such: no such file or folder"),
        (command(tmp_path, people, "--only=third/*"), "no run fits 'third/*'"),
        (["compare", str(tmp_path / "none.yaml")], "none.yaml: cannot be read"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error


def test_data_that_are_not_there_are_found_before_anything_is_trained(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text(FILE.replace('  second:\n    data: {root: "${people}"}', "  second:\n    data: {root: no/crops}"))
    arguments = ["compare", str(file), f"people={people}", *SMALL_MODEL, f"--out={tmp_path / 'out'}"]
    assert main(arguments) == 2
    assert "study second: no/crops: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "first").exists()
    assert main([*arguments, "--dry-run"]) == 0
    assert "study second: no/crops" in capsys.readouterr().err
    assert main([*arguments, "--only=first/*", "--dry-run"]) == 0
    assert "no/crops" not in capsys.readouterr().err


def test_reports_and_plans_train_nothing_and_plans_write_nothing(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, people, "--dry-run")) == 0
    assert "0 of 4 runs are done; the rest: 4 of unknown time" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(command(tmp_path, people, "--report-only")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("compare.html", "differences.csv", "results.csv", "table.md")
    ]
    assert "| fast | not run | not run |" in (tmp_path / "out/table.md").read_text()


def test_help_names_every_key_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for key in ("rows:", "seeds:", "studies.NAME.pretrained_from:", "studies.NAME.data.root:", "compare:", "order:"):
        assert f"  {key}" in output
    with pytest.raises(SystemExit):
        main(["compare", "file", "--minutes", "0"])
    assert "expected a number of minutes above 0" in capsys.readouterr().err
