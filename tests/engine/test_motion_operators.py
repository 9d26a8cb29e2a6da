"""A training step computes its motion with the compiled operators: the reference's fallback never runs.

Of `motarfuse.reference` a step calls what no operator replaces: ``cell_centers``, ``inverse_2x2``, and
``sample_bilinear`` at keypoints and of masks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from motarfuse.engine.trainer import train
from motarfuse.models import MotarFuse, MotarFuseConfig
from motarfuse.nn import MotionConsistencyLoss
from motarfuse.nn.motion_consistency import FramePair
from motarfuse.ops import motion_warp, part_moments, part_pool
from tests.engine.people import small_config, write_people
from tests.ops.kernel_cases import count_runs, needs_native

MOTION_OPERATORS = ("part_moments", "motion_warp", "part_pool")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each backend ran, by operator and backend."""
    return count_runs(monkeypatch)


def backends_of(runs: Counter[tuple[str, str]]) -> dict[str, set[str]]:
    return {name: {backend for operator, backend in runs if operator == name} for name in MOTION_OPERATORS}


@needs_native
def test_no_reference_runs_in_a_training_step(
    tmp_path: Path, runs: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motarfuse.engine.trainer.Trainer._evaluate", lambda self: None)
    options = ("model.name=motar_fuse", "model.num_parts=3", "copy.share=0.5", "evaluation.sets={}", "train.steps=2")
    train(small_config(write_people(tmp_path / "people"), tmp_path / "run", *options, "loss.motion_ramp=0"))
    assert backends_of(runs) == {name: {"cpu"} for name in MOTION_OPERATORS}
    # Two decoder layers and two steps; the flow to the canonical posture and, of copies, that of L_flow.
    assert runs["part_moments", "cpu"] == 4
    assert runs["motion_warp", "cpu"] == 8


@needs_native
def test_no_reference_runs_with_clips_and_their_reconstruction(runs: Counter[tuple[str, str]]) -> None:
    torch.manual_seed(0)
    model = MotarFuse(MotarFuseConfig(size="nano", image_size=(32, 16), num_parts=3)).train()
    clips = torch.randn(2, 3, 3, 32, 16)
    output = model(clips)
    first, second = (output.states[-1].take(torch.tensor(rows)) for rows in ([0, 3], [1, 4]))
    frames = FramePair(clips[:, 0], clips[:, 1], first, second)
    criterion = MotionConsistencyLoss(model.feature_dim, 3, part=0)
    loss, terms = criterion(output.states, model.backbone.grid, frames=frames)
    assert "rec" in terms
    (loss + output.feature.square().sum()).backward()
    assert backends_of(runs) == {name: {"cpu"} for name in MOTION_OPERATORS}
    # Two decoder layers, each with flows to the canonical posture and to both neighbours; the reconstruction.
    assert runs["motion_warp", "cpu"] == 7


def test_the_count_would_see_a_reference(runs: Counter[tuple[str, str]]) -> None:
    logits = torch.zeros(1, 3, 8)
    posture = part_moments(logits[:, 1:], grid=(4, 2), impl="reference")
    tokens = torch.zeros(1, 8, 4)
    motion_warp(tokens, *posture[:2], *posture[:2], logits, grid=(4, 2), impl="reference")
    part_pool(tokens, logits, impl="reference")
    assert backends_of(runs) == {name: {"reference"} for name in MOTION_OPERATORS}
