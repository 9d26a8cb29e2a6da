"""The training loop: deterministic, resumable after a kill, and clear about what went wrong."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from motarfuse.engine.checkpoint import MODEL, TRAINING, list_checkpoints, load_model
from motarfuse.engine.config import load_config
from motarfuse.engine.criterion import ReIDCriterion
from motarfuse.engine.logs import read_log
from motarfuse.engine.trainer import train
from motarfuse.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from tests.engine.people import small_config, write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def weights(run_dir: Path) -> dict[str, Tensor]:
    """Everything that a run's last checkpoint holds."""
    last = list_checkpoints(run_dir / "checkpoints")[-1]
    return load_file(last / MODEL) | {f"training/{k}": v for k, v in load_file(last / TRAINING).items()}


def assert_equal_runs(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different


def timeless(run_dir: Path) -> list[dict[str, Any]]:
    """The log without the clock's numbers."""
    return [
        {key: value for key, value in event.items() if key not in ("seconds", "images_per_second")}
        for event in read_log(run_dir / "log.jsonl")
    ]


def test_a_run_leaves_what_the_readers_expect(people: Path, tmp_path: Path) -> None:
    config = small_config(people, tmp_path / "run", "train.evaluate_every=3")
    result = train(config)
    assert result.step == 6
    assert result.checkpoint == tmp_path / "run/checkpoints/step-00000006"
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == ["step-00000004", "step-00000006"]
    assert load_config(tmp_path / "run/config.yaml") == config
    events = read_log(tmp_path / "run/log.jsonl")
    assert [event["step"] for event in events if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [3, 6]
    expected = {"loss", "loss_id", "loss_triplet", "lr", "images_per_second", "seconds", "grad_norm", "triplet_skipped"}
    assert expected <= events[0].keys()
    evaluation = json.loads((tmp_path / "run/evaluations/test.json").read_text())
    assert evaluation["metrics"] == result.evaluations["test"].metrics
    assert evaluation["step"] == 6
    assert len(evaluation["cmc"]) == 50
    model, _ = load_model(tmp_path / "run")
    assert model.image_size == (32, 16)


def test_training_lowers_the_loss(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "run", "train.steps=30", "train.checkpoint_every=0"))
    events = [event for event in read_log(tmp_path / "run/log.jsonl") if event["event"] == "train"]
    first, last = (sum(event["loss"] for event in part) / 5 for part in (events[:5], events[-5:]))
    assert last < 0.75 * first


def test_equal_configs_give_equal_weights_and_another_seed_does_not(people: Path, tmp_path: Path) -> None:
    overrides = ("model.drop_path=0.2", "train.ema=0.9", "train.accumulate=2", "train.steps=3")
    train(small_config(people, tmp_path / "a", *overrides))
    # Evaluations, checkpoints and other people's draws in between must not matter.
    torch.manual_seed(99)
    random.seed(99)
    train(small_config(people, tmp_path / "b", *overrides, "train.evaluate_every=1", "train.checkpoint_every=1"))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    train(small_config(people, tmp_path / "c", *overrides, "train.seed=1"))
    assert not torch.equal(weights(tmp_path / "a")["backbone.cls_token"], weights(tmp_path / "c")["backbone.cls_token"])


def test_the_callers_random_state_is_untouched(people: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the state that must survive
    random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    train(small_config(people, tmp_path / "run", "train.steps=1"))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected  # noqa: NPY002


RESUME_OVERRIDES = (
    "train.steps=24",
    "train.checkpoint_every=5",
    "train.evaluate_every=10",
    "train.log_every=3",
    "model.drop_path=0.2",
    "train.ema=0.9",
)


def start_training(
    people: Path, run_dir: Path, overrides: tuple[str, ...] = RESUME_OVERRIDES
) -> subprocess.Popen[bytes]:
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from motarfuse.engine.trainer import train\n"
        "from tests.engine.people import small_config\n"
        f"train(small_config(Path(sys.argv[1]), Path(sys.argv[2]), *{overrides!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(people), str(run_dir)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
    )


def last_step(run_dir: Path) -> int:
    found = list_checkpoints(run_dir / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def test_a_run_killed_twice_ends_bit_for_bit_as_the_uninterrupted_one(people: Path, tmp_path: Path) -> None:
    assert start_training(people, tmp_path / "whole").wait() == 0
    for wanted in (5, 15):
        process = start_training(people, tmp_path / "killed")
        while last_step(tmp_path / "killed") < wanted and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
        assert wanted <= last_step(tmp_path / "killed") < 24
    assert start_training(people, tmp_path / "killed").wait() == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    steps = [event["step"] for event in timeless(tmp_path / "killed") if event["event"] == "train"]
    assert steps == [*range(3, 25, 3)]


def test_an_evaluation_that_fails_costs_no_training(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("none of the images can be read")

    config = small_config(people, tmp_path / "run", "train.steps=2")
    with monkeypatch.context() as broken:
        broken.setattr("motarfuse.engine.trainer.evaluate_model", fail)
        with pytest.raises(DataError, match="none of the images"):
            train(config)
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == ["step-00000002"]
    result = train(config)
    assert result.step == 2
    assert set(result.evaluations) == {"test"}


def test_a_finished_run_is_not_trained_again(people: Path, tmp_path: Path) -> None:
    config = small_config(people, tmp_path / "run", "train.steps=2")
    first = train(config)
    log = (tmp_path / "run/log.jsonl").read_bytes()
    stamp = (first.checkpoint / MODEL).stat().st_mtime_ns
    second = train(config)
    assert second.evaluations["test"].metrics == first.evaluations["test"].metrics
    assert (tmp_path / "run/log.jsonl").read_bytes() == log
    assert (first.checkpoint / MODEL).stat().st_mtime_ns == stamp


def test_resuming_with_another_config_names_the_keys(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "run", "train.steps=2"))
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.001, now 0\.01; train\.steps was 2, now 4"):
        train(small_config(people, tmp_path / "run", "train.steps=4", "optim.lr=0.01"))
    # What does not change the weights may differ.
    train(small_config(people, tmp_path / "run", "train.steps=2", "train.log_every=5", "evaluation.flip=yes"))


def test_resuming_on_other_data_is_refused(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "run", "train.steps=2"))
    other = write_people(tmp_path / "other", identities=7)
    before = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(DataError, match="is not the data that the run"):
        train(small_config(other, tmp_path / "run", "train.steps=2"))
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_a_new_run_does_not_touch_an_old_one(people: Path, tmp_path: Path) -> None:
    config = small_config(people, tmp_path / "run", "train.steps=1")
    train(config)
    with pytest.raises(OutputError, match="holds a run already"):
        train(config, resume=False)


def test_a_truncated_checkpoint_is_named_with_the_intact_one(people: Path, tmp_path: Path) -> None:
    config = small_config(people, tmp_path / "run", "train.steps=4")
    path = train(config).checkpoint / TRAINING
    path.write_bytes(path.read_bytes()[:1000])
    message = r"training\.safetensors is truncated.*step-00000002 beside it is intact"
    with pytest.raises(CheckpointError, match=message):
        train(config)


def test_a_loss_that_is_not_finite_keeps_its_batch(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReIDCriterion.forward
    calls = []

    def poisoned(self: ReIDCriterion, output: Any, labels: Tensor, *rest: Any) -> Any:
        loss, terms = real(self, output, labels, *rest)
        calls.append(labels)
        if len(calls) == 4:
            terms["loss_id"] = terms["loss_id"] * math.nan
            loss = loss * math.nan
        return loss, terms

    monkeypatch.setattr(ReIDCriterion, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"not finite at step 4 \(loss nan, loss_id nan, loss_triplet 0\.\d+"):
        train(small_config(people, tmp_path / "run"))
    failed = tmp_path / "run/failed-step-00000004.safetensors"
    saved = load_file(failed)
    assert saved["images"].dtype == torch.uint8
    assert saved["images"].shape == (8, 3, 32, 16)
    assert torch.equal(saved["labels"], calls[3])
    with safe_open(failed, "pt") as file:
        paths = file.metadata()["paths"].split("\n")
    assert len(paths) == 8
    assert all(Path(path).is_file() for path in paths)
    assert last_step(tmp_path / "run") == 2
    monkeypatch.undo()
    assert train(small_config(people, tmp_path / "run")).step == 6


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * math.nan

    real = ReIDCriterion.forward

    def poisoned(self: ReIDCriterion, output: Any, labels: Tensor, *rest: Any) -> Any:
        loss, terms = real(self, output, labels, *rest)
        return BadGradient.apply(loss), terms

    monkeypatch.setattr(ReIDCriterion, "forward", poisoned)
    with pytest.raises(TrainingError, match="the gradient is not finite at step 1"):
        train(small_config(people, tmp_path / "run"))
    assert (tmp_path / "run/failed-step-00000001.safetensors").is_file()


def test_a_full_disk_at_a_checkpoint_loses_no_earlier_one(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from motarfuse.engine import checkpoint

    real = checkpoint.write_synced

    def full(path: Path, content: bytes) -> None:
        if "step-00000004" in str(path) and path.name == TRAINING:
            path.write_bytes(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(OutputError, match="step-00000004: the disk is full"):
        train(small_config(people, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert train(small_config(people, tmp_path / "run")).step == 6


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    # In a process of its own, which can give up a root's right to write everywhere.
    folder = tmp_path / "ro"
    folder.mkdir(mode=0o555)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from motarfuse.engine.outputs import make_folder\n"
        "from motarfuse.errors import OutputError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: make_folder(Path(sys.argv[1]) / 'run')\n"
        "except OutputError as error: print(error)\n"
    )
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == Path.home().owner() and parent.name.startswith(("pytest", "test_")):
            parent.chmod(0o755)
    process = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert "no permission to write there; choose another folder" in process.stdout
    assert not list(folder.iterdir())


def test_a_file_in_the_way_of_the_run_is_named_and_kept(people: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(OutputError, match="file of that name is in the way"):
        train(small_config(people, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("data.root=none",), ConfigError, r"data\.root is not set"),
        (("data.root=/nonexistent",), DataError, "no such file or folder"),
        (("train.device=cuda:7",), ConfigError, "torch sees"),
        (("train.device=abacus",), ConfigError, "unknown device 'abacus'"),
        (("train.precision=fp16",), ConfigError, "fp16 needs a GPU"),
        (("evaluation.protocol=magic",), ConfigError, r"evaluation\.protocol must be one of .*market1501"),
        (("train.pretrained=/nonexistent.pth",), CheckpointError, r"no weight file at /nonexistent\.pth"),
        (
            ("train.batch_size=64",),
            DataError,
            r"train\.batch_size / train\.instances = 32 identities a batch, the data has 6: "
            r"set train\.batch_size to at most 12",
        ),
    ],
)
def test_what_cannot_be_used_is_named_before_training(
    people: Path, tmp_path: Path, overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(small_config(people, tmp_path / "new/run", *overrides))
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_before_its_first_step_removes_only_what_it_made(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine")
    # As many identities as a batch holds, one of them without a readable image.
    for path in (people / "bounding_box_train").glob("0001_*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"= 6 identities a batch, the data has 5: set train\.batch_size to at most 10"):
        train(small_config(people, run_dir, "train.batch_size=12"))
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]
    for path in (people / "bounding_box_train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 24 images can be read"):
        train(small_config(people, tmp_path / "a/b"))
    assert not (tmp_path / "a").exists()


def test_a_second_training_in_the_same_folder_is_refused(people: Path, tmp_path: Path) -> None:
    import fcntl

    run_dir = tmp_path / "run"
    config = small_config(people, run_dir, "train.steps=1")
    run_dir.mkdir()
    (run_dir / ".partial-of-the-other").write_text("x")
    with (run_dir / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=f"another training is writing to {run_dir}"):
            train(config)
        assert sorted(path.name for path in run_dir.iterdir()) == [".lock", ".partial-of-the-other"]
    assert train(config).step == 1
    assert train(config).step == 1  # the lock was released


def test_one_identity_and_an_unmatched_query_are_refused(people: Path, tmp_path: Path) -> None:
    one = write_people(tmp_path / "one", identities=1)
    with pytest.raises(DataError, match="one identity"):
        train(small_config(one, tmp_path / "run"))
    unmatched = write_people(tmp_path / "unmatched", cameras=1)
    config = small_config(people, tmp_path / "run", f"evaluation.sets={{far: {unmatched}}}")
    with pytest.raises(DataError, match="none of the 6 queries has a gallery image"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_an_empty_training_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        train(small_config(tmp_path / "empty", tmp_path / "run"))


def test_a_corrupt_training_image_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_people(tmp_path / "people")
    first = next((people / "bounding_box_train").iterdir())
    first.write_bytes(b"")
    assert train(small_config(people, tmp_path / "run", "train.steps=2")).step == 2
    assert first.name in capsys.readouterr().err


def test_training_starts_from_pretrained_weights(people: Path, tmp_path: Path) -> None:
    source = train(small_config(people, tmp_path / "first", "train.steps=2")).checkpoint
    config = small_config(
        people, tmp_path / "second", f"train.pretrained={source}", "train.steps=1", "optim.lr=1e-12", "train.seed=3"
    )
    train(config)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    torch.testing.assert_close(after["backbone.cls_token"], before["backbone.cls_token"])


def test_bf16_autocast_trains_on_a_cpu(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "run", "train.precision=bf16", "train.steps=2"))
    assert weights(tmp_path / "run")["backbone.cls_token"].dtype == torch.float32


def test_tensorboard_events_are_written(people: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(small_config(people, tmp_path / "run", "train.steps=1", "output.tensorboard=yes"))
    assert list((tmp_path / "run/tensorboard").glob("events.out.tfevents*"))


def test_missing_tensorboard_is_said_once(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(small_config(people, tmp_path / "run", "train.steps=2", "output.tensorboard=yes"))
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1
