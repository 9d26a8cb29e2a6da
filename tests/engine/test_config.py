"""Configs: files, overrides, contradictions, and every committed recipe."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from motarfuse.engine.config import (
    Config,
    config_differences,
    config_from_dict,
    describe_config,
    dump_config,
    load_config,
)
from motarfuse.errors import ConfigError
from motarfuse.models import build_model, config_class, model_names

# compare_*.yaml are lists of runs, which tests/engine/test_compare.py reads.
RECIPES = [
    path for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")) if "compare" not in path.stem
]


def test_overrides_change_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {size: tiny}\noptim:\n  lr: 1e-4\ntrain: {steps: 20}\n")
    config = load_config(path, ["optim.lr=3e-4", "model.image_size=[64, 32]", "train.cross_camera=no"])
    assert (config.model.size, config.model.image_size) == ("tiny", (64, 32))
    assert (config.optim.lr, config.train.steps, config.train.cross_camera) == (3e-4, 20, False)


def test_evaluation_sets_are_given_as_a_mapping_or_one_by_one() -> None:
    config = load_config(None, ["evaluation.sets={a: x/y, b: z}", "evaluation.flip=yes"])
    assert config.evaluation.sets == {"a": "x/y", "b": "z"}
    with pytest.raises(ConfigError, match=r"no name for a file"):
        load_config(None, ["evaluation.sets={../a: x}"])


def test_a_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "model.stride=4",
            "optim.milestones=[10, 20]",
            "optim.schedule=step",
            "loss.margin=0.3",
            "evaluation.sets={a: 'x: y', b: \"no\"}",
            "data.root=1e5",
        ],
    )
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config
    assert config_from_dict(config.to_dict()) == config
    assert config.data.root == "1e5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key optim\.lrr; did you mean optim\.lr\? \(keys of optim: .*weight_decay"),
        (
            "optimizer.lr=1",
            r"unknown key optimizer; .*\(sections: augment, clip, copy, data, evaluation, loss, model, optim",
        ),
        ("model.sise=tiny", r"did you mean model\.size\? \(keys of model: name, "),
        ("model.name=resnet", "one of motar_fuse, vit_reid, got 'resnet'"),
        ("model.size=large", "one of nano, tiny, small, base"),
        ("train.steps=many", r"train\.steps: expected integer, got 'many'"),
        ("train.cross_camera=perhaps", r"train\.cross_camera: expected yes or no"),
        ("train.batch_size=10", r"multiple of train\.instances .*10 and 4"),
        ("train.steps=0", r"train\.steps must be at least 1"),
        ("model.image_size=[130, 64]", "not divisible by patch 8"),
        ("optim.warmup_steps=300", r"optim\.warmup_steps must be less than train\.steps"),
        ("optim.schedule=step", r"optim\.milestones is empty"),
        ("augment.flip_probability=2", "augment: flip_probability"),
        ("train.ema=1", r"train\.ema must be in \[0, 1\)"),
        ("lr", "looks like optim.lr=1e-3, got 'lr'"),
        ("optim.lr.x=1", "optim"),
        ("optim=3", "optim must be a section"),
    ],
)
def test_wrong_overrides_say_what_exists(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_losses_cannot_both_be_off() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        load_config(None, ["loss.id_weight=0", "loss.triplet_weight=0"])


def test_a_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="must hold sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == load_config()


def test_every_field_is_explained() -> None:
    text = describe_config()
    for section in fields(Config):
        settings = getattr(Config(), section.name)
        for item in fields(settings):
            assert item.metadata.get("help"), f"{section.name}.{item.name} has no help"
            assert f"  {section.name}.{item.name} = " in text
    for name in model_names():
        for item in fields(config_class(name)):
            assert item.metadata.get("help"), f"model.{item.name} of {name} has no help"
            assert f"  model.{item.name} = " in text
    assert "model.name = vit_reid" in text


def test_differences_are_dotted_keys() -> None:
    old, new = load_config().to_dict(), load_config(None, ["optim.lr=1", "evaluation.sets={a: b}"]).to_dict()
    assert config_differences(old, new) == {
        "optim.lr": (1e-3, 1.0),
        "evaluation.sets": ({}, None),
        "evaluation.sets.a": (None, "b"),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_build_their_network(path: Path) -> None:
    import torch

    config = load_config(path)
    with torch.device("meta"):
        model = build_model(config.model_name, config.model)
    assert model.image_size == config.model.resolved_image_size


def test_published_recipes_say_what_was_published() -> None:
    assert {"market1501", "msmt17", "occluded_duke"} <= {path.stem for path in RECIPES}
    for path in RECIPES:
        if path.stem in ("market1501", "msmt17", "occluded_duke"):
            config = load_config(path)
            assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("sgd", 0.008, "cosine")
            assert (config.train.batch_size, config.train.instances) == (64, 4)
            assert config.model.resolved_image_size == (256, 128)
            assert config.model.drop_path == 0.1
            assert config.optim.layer_decay < 1
            assert (config.loss.id_weight, config.loss.triplet_weight, config.loss.margin) == (1, 1, None)
            assert config.train.pretrained is not None
            assert config.model.stride == (11 if path.stem == "occluded_duke" else 12)
