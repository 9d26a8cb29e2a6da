"""Training MOTAR-FUSE: copies, terms and health in the log, bit-exact resume, the ramp, starting weights, history."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from motarfuse.data import CopiedBatch, OccludedCopy
from motarfuse.engine.config import LossConfig, load_config
from motarfuse.engine.criterion import ReIDCriterion, part_health
from motarfuse.engine.device import flushed_denormals
from motarfuse.engine.history import history_path
from motarfuse.engine.logs import read_log
from motarfuse.engine.trainer import train
from motarfuse.errors import CheckpointError, ConfigError, TrainingError
from motarfuse.models import MotarFuse, MotarFuseConfig, MotarFuseOutput
from motarfuse.nn import CopyPair, MotionConsistencyLoss
from tests.engine.people import small_config, write_people
from tests.engine.test_trainer import assert_equal_runs, last_step, start_training, timeless, weights

MOTION = ("model.name=motar_fuse", "model.num_parts=3", "copy.share=0.5", "loss.inv_weight=1")
TERMS = {"loss_class", "loss_motion", "loss_flow", "loss_occ", "loss_eq", "loss_inv", "loss_part", "loss_div"}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def logged(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [event for event in read_log(run_dir / "log.jsonl") if event["event"] == kind]


def test_the_log_has_every_term_and_the_parts_health(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "run", *MOTION, "train.steps=3"))
    for event in logged(tmp_path / "run"):
        assert event.keys() >= TERMS
        terms = {key: event[f"loss_{key}"] for key in ("flow", "occ", "eq", "inv", "part", "div")}
        total = sum(getattr(LossConfig(), f"{name}_weight") * value for name, value in terms.items())
        total += terms["inv"]  # of weight 1 here, 0 by default
        assert event["loss_motion"] == pytest.approx(total, rel=1e-4)
        masses = [event[f"health/mass_{part}"] for part in range(3)]
        assert event["health/mass_min"] == pytest.approx(min(masses))
        assert event["health/mass_max"] == pytest.approx(max(masses))
        assert sum(masses) == pytest.approx(event["health/foreground"], abs=1e-5)
        assert 1 / 8 - 1e-6 <= event["health/confidence"] <= 1
        assert 0.2 <= event["health/det_min"] <= event["health/det_max"]


def test_health_names_what_it_measures() -> None:
    torch.manual_seed(0)
    model = MotarFuse(MotarFuseConfig(size="nano", image_size=(32, 16), num_parts=2)).train()
    state = model(torch.randn(3, 3, 32, 16)).states[-1]
    health = part_health(state)
    assert health["health/foreground"] == pytest.approx((1 - state.masks[:, 0].mean()).item())
    assert health["health/confidence"] == pytest.approx(state.confidence.mean().item())
    determinants = [torch.linalg.det(matrix).item() for matrix in state.affines.flatten(0, 1)]
    assert health["health/det_min"] == pytest.approx(min(determinants), rel=1e-4)
    assert health["health/det_max"] == pytest.approx(max(determinants), rel=1e-4)


def test_the_weight_of_motion_consistency_grows_over_its_ramp(people: Path, tmp_path: Path) -> None:
    options = ("train.steps=4", "loss.motion_ramp=0.5", "loss.motion_weight=2", "loss.triplet_weight=0")
    train(small_config(people, tmp_path / "run", *MOTION, *options))
    for event in logged(tmp_path / "run"):
        weight = (event["loss"] - event["loss_id"] - event["loss_class"]) / event["loss_motion"]
        assert weight == pytest.approx(2 * min((event["step"] - 1) / 4 / 0.5, 1), abs=1e-4)


def test_without_a_ramp_the_weight_holds_from_the_first_step(people: Path, tmp_path: Path) -> None:
    options = ("train.steps=1", "loss.motion_ramp=0", "loss.motion_weight=0.5", "loss.triplet_weight=0")
    train(small_config(people, tmp_path / "run", *MOTION, *options))
    (event,) = logged(tmp_path / "run")
    total = event["loss_id"] + event["loss_class"] + 0.5 * event["loss_motion"]
    assert event["loss"] == pytest.approx(total, rel=1e-5)


def test_copies_learn_their_identity_and_are_known_to_the_loss(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Any]] = []
    real = ReIDCriterion.forward

    def watched(self: ReIDCriterion, output: Any, labels: Tensor, copies: Any = None, *rest: Any) -> Any:
        seen.append((labels, copies))
        return real(self, output, labels, copies, *rest)

    monkeypatch.setattr(ReIDCriterion, "forward", watched)
    for name in ("motar_fuse", "vit_reid"):
        seen.clear()
        train(small_config(people, tmp_path / name, f"model.name={name}", "copy.share=0.5", "train.steps=2"))
        (labels, copies), (_, later) = seen
        assert len(labels) == 8 + 4
        assert torch.equal(labels[8:], labels[:8][copies.originals])
        assert not torch.equal(copies.originals, later.originals)


def test_each_copy_stands_beside_its_original_and_leaves_the_posture_alone(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[CopiedBatch] = []
    sources: list[Tensor] = []
    counted: list[Tensor] = []
    outputs: list[MotarFuseOutput] = []
    given: list[CopyPair] = []
    make, look, judge = OccludedCopy.__call__, MotarFuse.forward, MotionConsistencyLoss.forward

    def made(self: OccludedCopy, images: Tensor, *rest: Any) -> CopiedBatch:
        sources.append(images)
        copied.append(make(self, images, *rest))
        return copied[-1]

    def looked(self: MotarFuse, images: Tensor, *rest: Any, **options: Any) -> MotarFuseOutput:
        assert torch.equal(images[8:], copied[-1].images)
        counted.append(options["counted"])
        outputs.append(look(self, images, *rest, **options))
        originals.extend(int((images[:8] == source).flatten(1).all(1).nonzero()[0, 0]) for source in sources[-1])
        return outputs[-1]

    def judged(self: MotionConsistencyLoss, *rest: Any, **options: Any) -> Any:
        given.append(options["copies"])
        return judge(self, *rest, **options)

    originals: list[int] = []
    monkeypatch.setattr(OccludedCopy, "__call__", made)
    monkeypatch.setattr(MotarFuse, "forward", looked)
    monkeypatch.setattr(MotionConsistencyLoss, "forward", judged)
    options = ("train.steps=1", "evaluation.sets={}", "train.checkpoint_every=0")
    monkeypatch.setattr("motarfuse.engine.trainer.Trainer._evaluate", lambda self: None)
    train(small_config(people, tmp_path / "run", *MOTION, *options))
    assert counted[0].tolist() == [True] * 8 + [False] * 4
    assert len(set(originals)) == 4
    (copies,), state = given, outputs[0].states[-1]
    assert torch.equal(copies.states[-1].keypoints, state.keypoints[originals])
    assert torch.equal(copies.copy_states[-1].keypoints, state.keypoints[8:])
    assert torch.equal(copies.feature, outputs[0].feature[originals])
    assert torch.equal(copies.copy_feature, outputs[0].feature[8:])
    assert torch.equal(copies.covered, copied[0].covered_share_of_cells((4, 2)))
    assert copies.warp is copied[0].warp


def test_a_share_that_is_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"copy\.share 0\.01 of a batch of 8 is no image; give at least 0\.125"):
        load_config(None, ["copy.share=0.01", "train.batch_size=8"])


def test_without_copies_nothing_needs_them(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OccludedCopy, "__call__", lambda *_: pytest.fail("a copy was made"))
    train(small_config(people, tmp_path / "run", *MOTION, "copy.share=0", "train.steps=2"))
    event = logged(tmp_path / "run")[-1]
    assert {"loss_part", "loss_div"} <= event.keys()
    assert not {"loss_flow", "loss_occ", "loss_eq", "loss_inv"} & event.keys()


@pytest.mark.parametrize(
    ("override", "gone"),
    [
        ("loss.motion_weight=0", TERMS - {"loss_class"}),
        ("loss.class_weight=0", {"loss_class"}),
        ("model.fusion_encoder=no", {"loss_class"}),
        ("loss.flow_weight=0", {"loss_flow"}),
        ("loss.occ_weight=0", {"loss_occ"}),
        ("loss.eq_weight=0", {"loss_eq"}),
        ("loss.inv_weight=0", {"loss_inv"}),
        ("loss.part_weight=0", {"loss_part"}),
        ("model.parts=no", {"loss_part"}),
        ("loss.div_weight=0", {"loss_div"}),
    ],
)
def test_each_term_can_be_switched_off(people: Path, tmp_path: Path, override: str, gone: set[str]) -> None:
    train(small_config(people, tmp_path / "run", *MOTION, override, "train.steps=1"))
    assert logged(tmp_path / "run")[0].keys() & TERMS == TERMS - gone


MOTION_RESUME = (*MOTION, "train.steps=12", "train.checkpoint_every=3", "train.evaluate_every=6", "train.ema=0.9")


def test_a_killed_run_ends_bit_for_bit_as_the_uninterrupted_one(people: Path, tmp_path: Path) -> None:
    assert start_training(people, tmp_path / "whole", MOTION_RESUME).wait() == 0
    process = start_training(people, tmp_path / "killed", MOTION_RESUME)
    while last_step(tmp_path / "killed") < 6 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    assert start_training(people, tmp_path / "killed", MOTION_RESUME).wait() == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    for run in ("whole", "killed"):
        lines = read_log(history_path(tmp_path / run))
        assert [line["step"] for line in lines] == [6, 12]


def test_the_history_has_every_query_of_every_evaluation_and_each_step_once(people: Path, tmp_path: Path) -> None:
    config = small_config(people, tmp_path / "run", *MOTION, "train.steps=4", "train.evaluate_every=2")
    train(config)
    path = history_path(tmp_path / "run")
    lines = read_log(path)
    assert [(line["step"], line["name"]) for line in lines] == [(2, "test"), (4, "test")]
    assert lines[0]["seconds"] < lines[1]["seconds"]
    final = json.loads((tmp_path / "run/evaluations/test.json").read_text())
    assert lines[-1]["metrics"] == final["metrics"]
    for score in ("feature", "parts", "sum"):
        found = lines[-1]["queries"][score]
        assert sum(found["average_precision"]) / len(found["pid"]) == pytest.approx(
            final["scores"][score]["mAP"], abs=1e-5
        )
    # What a killed process had written beyond the checkpoint it goes on from is dropped.
    with path.open("a") as file:
        file.write(json.dumps({**lines[-1], "step": 99}) + "\n")
    (tmp_path / "run/evaluations/test.json").unlink()
    train(config)
    assert [line["step"] for line in read_log(path)] == [2, 4]


def test_training_goes_on_from_all_weights_of_the_same_network(people: Path, tmp_path: Path) -> None:
    train(small_config(people, tmp_path / "first", *MOTION, "train.steps=2"))
    start = (f"train.initial={tmp_path / 'first'}", "train.steps=1", "optim.lr=1e-12", "train.seed=3")
    train(small_config(people, tmp_path / "second", *MOTION, *start))
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name in ("decoder.queries", "fusion.hybrid", "backbone.adapters.1.down.weight", "neck.weight"):
        torch.testing.assert_close(after[name], before[name])
    classifier = "training/criterion/identity.weight"
    assert not torch.allclose(after[classifier], before[classifier])
    with pytest.raises(CheckpointError, match=r"lacks the tensor|does not have"):
        train(small_config(people, tmp_path / "third", f"train.initial={tmp_path / 'first'}"))
    with pytest.raises(ConfigError, match=r"train\.initial and train\.pretrained are both set"):
        load_config(None, ["train.initial=a", "train.pretrained=b"])


def test_a_term_that_is_not_finite_keeps_its_batch(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MotionConsistencyLoss.forward
    calls = []

    def poisoned(self: MotionConsistencyLoss, *args: Any, **options: Any) -> Any:
        total, terms = real(self, *args, **options)
        calls.append(1)
        if len(calls) == 2:
            terms["flow"] = terms["flow"] * math.nan
        return total, terms

    monkeypatch.setattr(MotionConsistencyLoss, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step 2 .*loss_flow nan"):
        train(small_config(people, tmp_path / "run", *MOTION))
    saved = load_file(tmp_path / "run/failed-step-00000002.safetensors")
    assert saved["images"].shape == (8, 3, 32, 16)


def test_weights_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss\.flow_weight must be 0 or more, got -1"):
        load_config(None, ["loss.flow_weight=-1"])
    with pytest.raises(ConfigError, match=r"loss\.motion_ramp must be in \[0, 1\]"):
        load_config(None, ["loss.motion_ramp=2"])


def test_a_plain_network_has_no_motion_to_be_consistent_about() -> None:
    from motarfuse.models import build_model

    criterion = ReIDCriterion(build_model("vit_reid"), 4, LossConfig())
    assert criterion.motion is None
    assert criterion.class_identity is None


def test_denormals_are_flushed_inside_and_only_there() -> None:
    tiny = torch.full((64,), 1e-20)
    with flushed_denormals():
        assert not (tiny * tiny).any()
        with flushed_denormals():
            pass
        assert not (tiny * tiny).any()
    assert (tiny * tiny).all()
