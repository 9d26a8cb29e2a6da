"""Schedules, parameter groups and the average of weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from motarfuse.engine.config import LossConfig, OptimConfig
from motarfuse.engine.criterion import ReIDCriterion
from motarfuse.engine.ema import WeightAverage
from motarfuse.engine.optim import (
    build_optimizer,
    load_optimizer,
    lr_factor,
    optimizer_tensors,
    parameter_groups,
    set_lr,
)
from motarfuse.models import build_model


def small() -> tuple[torch.nn.Module, ReIDCriterion]:
    torch.manual_seed(0)
    model = build_model("vit_reid", size="nano", image_size=(16, 8), num_cameras=2)
    return model, ReIDCriterion(model, 3, LossConfig())


def test_one_cycle_rises_for_three_tenths_and_falls_to_the_end() -> None:
    factors = [lr_factor(OptimConfig(), step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.04)
    assert factors[30] == 1 == max(factors)
    assert factors[15] == pytest.approx(0.52)
    assert factors[65] == pytest.approx(0.5)
    assert factors[99] < 0.001
    assert all(a < b for a, b in itertools.pairwise(factors[:31]))
    assert all(a > b for a, b in itertools.pairwise(factors[30:]))


def test_cosine_with_warm_up_is_the_published_schedule() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=5, warmup_factor=0.01, final_factor=0.002)
    factors = [lr_factor(config, step, 120) for step in range(120)]
    assert factors[:6] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0])
    expected = 0.002 + 0.998 * (1 + math.cos(math.pi * 55 / 115)) / 2
    assert factors[60] == pytest.approx(expected)


def test_step_schedule_drops_at_its_milestones() -> None:
    config = OptimConfig(schedule="step", milestones=[3, 5], gamma=0.1)
    assert [lr_factor(config, step, 7) for step in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor(OptimConfig(schedule="constant"), 5, 7) == 1


def test_every_trainable_parameter_is_in_one_group() -> None:
    model, criterion = small()
    groups = parameter_groups(model, criterion, OptimConfig(layer_decay=0.5))
    names = [name for group in groups for name in group["names"]]
    trainable = [f"model.{n}" for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(names) == sorted([*trainable, "criterion.identity.weight"])
    assert "model.neck.bias" not in names


def test_layer_decay_bias_rate_and_weight_decay_follow_the_rules() -> None:
    model, criterion = small()
    config = OptimConfig(lr=1.0, layer_decay=0.5, bias_lr_factor=2.0, weight_decay=0.1, vector_weight_decay=0.01)
    rules = {
        name: (group["base_lr"], group["weight_decay"])
        for group in parameter_groups(model, criterion, config)
        for name in group["names"]
    }
    assert rules["criterion.identity.weight"] == (1, 0.1)
    assert rules["model.neck.weight"] == (1, 0.01)
    assert rules["model.backbone.norm.bias"] == (2, 0.01)
    assert rules["model.backbone.blocks.3.mlp.fc2.weight"] == (0.5, 0.1)
    assert rules["model.backbone.blocks.0.mlp.fc2.bias"] == (2 * 0.5**4, 0.01)
    assert rules["model.backbone.patch_embed.proj.weight"] == (0.5**5, 0.1)
    for name in ("cls_token", "pos_embed", "camera_embed"):
        assert rules[f"model.backbone.{name}"] == (0.5**5, 0.01)


def test_what_is_learned_as_rows_of_vectors_is_not_decayed_as_a_matrix() -> None:
    model = build_model("motar_fuse", size="nano", image_size=(32, 16))
    config = OptimConfig(weight_decay=0.1, vector_weight_decay=0.0)
    decays = {
        name: group["weight_decay"]
        for group in parameter_groups(model, torch.nn.Module(), config)
        for name in group["names"]
    }
    for name in ("decoder.queries", "decoder.heads.anchors", "fusion.types", "fusion.hybrid", "backbone.pos_embed"):
        assert decays[f"model.{name}"] == 0, name
    assert decays["model.appearance.conv1.weight"] == decays["model.decoder.heads.part_of_mask.weight"] == 0.1


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizer_state_moves_to_a_new_optimizer_bit_for_bit(name: str) -> None:
    def trained(steps: int, state: dict[str, torch.Tensor] | None, weights: dict | None) -> tuple[dict, dict]:
        model, criterion = small()
        if weights is not None:
            model.load_state_dict(weights)
        config = OptimConfig(name=name)  # type: ignore[arg-type]
        optimizer = build_optimizer(parameter_groups(model, criterion, config), config)
        if state is not None:
            load_optimizer(optimizer, state)
        for step in range(steps):
            set_lr(optimizer, 0.5 + step)
            optimizer.zero_grad()
            model.eval()(torch.ones(2, 3, 16, 8)).embedding.square().sum().backward()
            optimizer.step()
        return optimizer_tensors(optimizer), {k: v.clone() for k, v in model.state_dict().items()}

    state, weights = trained(2, None, None)
    torch.manual_seed(1)
    first = trained(1, state, weights)
    second = trained(1, {key: value.clone() for key, value in state.items()}, weights)
    fresh = trained(1, None, weights)
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    assert not all(torch.equal(first[1][key], fresh[1][key]) for key in first[1])


def test_weight_average_follows_its_formula_and_shares_nothing() -> None:
    model: Any = torch.nn.BatchNorm1d(2)
    average: Any = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(11.0)
        model.running_mean.fill_(5.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, 0)  # d = 1 / 10
    torch.testing.assert_close(average.model.weight, torch.full((2,), 0.1 * 1 + 0.9 * 11))
    torch.testing.assert_close(average.model.running_mean, torch.full((2,), 4.5))
    assert average.model.num_batches_tracked == 7
    average.update(model, 10_000)  # d = 0.9
    torch.testing.assert_close(average.model.weight, torch.full((2,), 0.9 * 10 + 0.1 * 11))
    assert not average.model.weight.requires_grad
