"""The configuration of a training run: YAML files, ``key=value`` overrides, one set of typed sections."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from motarfuse.data import AugmentConfig, ClipSampling, OccludedCopyConfig
from motarfuse.engine.settings import (
    describe,
    flatten,
    from_mapping,
    join,
    parse_yaml,
    show,
    to_mapping,
    unknown_key,
)
from motarfuse.errors import ConfigError
from motarfuse.models import VitReIDConfig, config_class, model_name_of, model_names

DEFAULT_MODEL = "vit_reid"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DataConfig:
    """Where the training images are and how they are read."""

    root: str | None = _option(None, "folder or table of the dataset to train on; needed for training")
    kind: str = _option("auto", "its layout, a name that motarfuse data check --help lists; auto finds out")
    cache: Literal["auto", "memory", "disk"] = _option(
        "auto", "memory keeps the resized crops, disk decodes every batch anew, auto: memory if they fit"
    )
    memory_limit_mb: float = _option(2048.0, "largest size of the crops in memory, in MB of 10^6 bytes")
    workers: int = _option(2, "decoding threads")


@dataclass
class ClipConfig:
    """How clips are cut from tracklets; of no consequence for single images."""

    frames: int = _option(8, "frames of a clip in training")
    train_policy: Literal["random", "dense", "evenly"] = _option(
        "random",
        "random: one frame from each of as many equal segments; dense: consecutive ones, stride apart; evenly: the "
        "segments' middles",
    )
    stride: int = _option(4, "steps between the frames of a dense clip")
    image_share: float = _option(
        0.25, "share of a batch's clips that are cut to one frame, so that single images stay what the network knows"
    )
    eval_policy: Literal["all", "evenly", "dense"] = _option(
        "all", "what is evaluated of a tracklet; all: every frame, in clips whose features are averaged"
    )
    eval_frames: int = _option(8, "frames of a clip in evaluation")

    def training_sampling(self) -> ClipSampling:
        """Which frames a training step sees."""
        return ClipSampling(self.train_policy, self.frames, self.stride)

    def evaluation_sampling(self) -> ClipSampling:
        """Which frames are evaluated."""
        return ClipSampling(self.eval_policy, self.eval_frames, self.stride)


@dataclass
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adam", "sgd"] = _option("adamw", "optimizer")
    lr: float = _option(1e-3, "highest learning rate")
    weight_decay: float = _option(0.05, "weight decay of matrices")
    vector_weight_decay: float = _option(0.0, "weight decay of biases, norms, class token and position embedding")
    bias_lr_factor: float = _option(1.0, "learning rate of biases over the others'")
    momentum: float = _option(0.9, "SGD's momentum, Adam's beta1")
    beta2: float = _option(0.999, "Adam's beta2")
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = _option(
        "one_cycle",
        "one_cycle: a cosine up over warmup_steps and down over the rest; cosine, step and constant: a linear warm-up, "
        "then a cosine down, a drop at each milestone, or nothing",
    )
    warmup_steps: int | None = _option(None, "steps of the warm-up; none: 30 % of all for one_cycle, 0 otherwise")
    warmup_factor: float = _option(0.04, "learning rate at the first step of the warm-up, over lr")
    final_factor: float = _option(0.0, "learning rate that a cosine ends at, over lr")
    milestones: list[int] = field(
        default_factory=list, metadata={"help": "steps at which schedule step multiplies the rate by gamma"}
    )
    gamma: float = _option(0.1, "factor of schedule step")
    layer_decay: float = _option(
        1.0, "learning rate of a layer over that of the layer above it, in (0, 1]; for pre-trained weights"
    )
    clip_norm: float | None = _option(None, "largest norm of the gradient; none: not clipped")


@dataclass
class LossConfig:
    """Identity and triplet loss and, of networks with parts, motion consistency."""

    id_weight: float = _option(1.0, "weight of the identity loss (cross entropy after the BNNeck)")
    triplet_weight: float = _option(
        0.1,
        "weight of the batch-hard triplet loss (before the BNNeck); 1 is usual for pre-trained weights, but from "
        "scratch it draws all embeddings together before they tell people apart",
    )
    label_smoothing: float = _option(0.1, "label smoothing of the identity loss, in [0, 1)")
    margin: float | None = _option(None, "margin of the triplet loss; none: soft margin")
    metric: Literal["euclidean", "cosine"] = _option("euclidean", "distance of the triplet loss")
    class_weight: float = _option(
        1.0, "weight of the identity loss of the class token alone, beside the fused feature's"
    )
    motion_weight: float = _option(1.0, "weight of motion consistency, of which the following are parts; 0: none")
    motion_ramp: float = _option(0.1, "share of the training in which motion_weight grows from 0")
    flow_weight: float = _option(5.0, "motion between a copy and its image against the known warp")
    occ_weight: float = _option(0.3, "covered cells are background; masks, visibility and keypoints as uncovered")
    eq_weight: float = _option(1.0, "keypoints and affines follow the known warp")
    inv_weight: float = _option(
        0.0,
        "the feature of a copy is that of its image; from scratch this teaches what copies share, colours of the "
        "background above all, before the identity loss has taken hold",
    )
    rec_weight: float = _option(1.0, "a frame of a clip, moved as the parts moved, shows what another frame shows")
    part_weight: float = _option(1.0, "triplet and identity loss of part features")
    div_weight: float = _option(0.1, "parts that differ, are compact and cover a person's share of the crop")


@dataclass
class TrainConfig:
    """The training loop."""

    steps: int = _option(300, "optimizer steps")
    batch_size: int = _option(64, "images or clips a batch; a multiple of instances")
    instances: int = _option(4, "images or clips of each identity in a batch")
    cross_camera: bool = _option(True, "prefer images of an identity from different cameras within a batch")
    accumulate: int = _option(1, "batches whose gradients are averaged in one optimizer step")
    seed: int = _option(0, "of weights, batches, augmentation and stochastic depth")
    device: str = _option("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    initial: str | None = _option(
        None,
        "run, checkpoint or packaged network to start from: all weights of the same network, but no optimizer state",
    )
    precision: Literal["fp32", "bf16", "fp16"] = _option("fp32", "autocast type; fp16 needs a GPU")
    ema: float = _option(0.0, "decay of an average of the weights, which is then evaluated and saved; 0: off")
    pretrained: str | None = _option(
        None,
        "weights of the backbone to start from: a timm, TransReID or CLIP file (safetensors or .pth), a checkpoint "
        "folder, or the name of a packaged network",
    )
    evaluate_every: int = _option(0, "steps between evaluations; 0: at the end only")
    checkpoint_every: int = _option(100, "steps between checkpoints; 0: at the end only")
    keep: int = _option(2, "number of latest checkpoints that stay on disk")
    log_every: int = _option(10, "steps between log lines, which hold the means since the line before")


@dataclass
class EvaluationConfig:
    """What is evaluated during and after training."""

    sets: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "datasets by name, e.g. {holistic: data/holistic, occluded: data/occluded}; none: the query and "
            "gallery of data.root, under the name test"
        },
    )
    protocol: str = _option("auto", "what is counted; auto: the protocol of the dataset's kind")
    metric: Literal["cosine", "euclidean"] = _option("cosine", "how features are compared")
    score: Literal["auto", "feature", "parts", "sum"] = _option(
        "auto",
        "what the results are of: the person's feature, its parts, or both scores' sum; auto: the sum if it has parts",
    )
    batch_size: int = _option(128, "images a forward pass; of clips, frames")
    flip: bool = _option(False, "average the features of each image and its mirror image")


@dataclass
class OutputConfig:
    """Where the run is written."""

    run_dir: str = _option("runs/latest", "folder of the run: config, log, checkpoints, evaluations")
    tensorboard: bool = _option(True, "also write TensorBoard events, where tensorboard is installed")


@dataclass
class Config:
    """Everything that defines a training run; ``model`` is the config of the network that ``model.name`` chooses."""

    model: Any = field(default_factory=VitReIDConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    copy: OccludedCopyConfig = field(default_factory=OccludedCopyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def model_name(self) -> str:
        """Name of the network whose config ``model`` is."""
        return model_name_of(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :func:`config_from_dict` turns them back into an equal config."""
        values = to_mapping(self)
        values["model"] = {"name": self.model_name, **values["model"]}
        return values

    def validate(self) -> None:
        """Checks ranges and values that must fit each other.

        Raises:
            ConfigError: Names the keys, what was got and what is supported.
        """
        train, optim, loss = self.train, self.optim, self.loss
        if train.batch_size % train.instances if train.instances > 0 else True:
            raise ConfigError(
                "train.batch_size must be a multiple of train.instances (a batch is identities x instances), "
                f"got {train.batch_size} and {train.instances}"
            )
        ranges = [
            ("train.steps", train.steps >= 1, train.steps, "at least 1"),
            ("train.batch_size", train.batch_size >= 2, train.batch_size, "at least 2"),
            ("train.accumulate", train.accumulate >= 1, train.accumulate, "at least 1"),
            ("train.seed", 0 <= train.seed < 2**63, train.seed, "in [0, 2^63)"),
            ("train.ema", 0 <= train.ema < 1, train.ema, "in [0, 1)"),
            ("train.evaluate_every", train.evaluate_every >= 0, train.evaluate_every, "0 or more"),
            ("train.checkpoint_every", train.checkpoint_every >= 0, train.checkpoint_every, "0 or more"),
            ("train.keep", train.keep >= 1, train.keep, "at least 1"),
            ("train.log_every", train.log_every >= 1, train.log_every, "at least 1"),
            ("clip.frames", self.clip.frames >= 1, self.clip.frames, "at least 1"),
            ("clip.stride", self.clip.stride >= 1, self.clip.stride, "at least 1"),
            ("clip.image_share", 0 <= self.clip.image_share <= 1, self.clip.image_share, "in [0, 1]"),
            ("clip.eval_frames", self.clip.eval_frames >= 1, self.clip.eval_frames, "at least 1"),
            ("data.workers", self.data.workers >= 1, self.data.workers, "at least 1"),
            ("optim.lr", optim.lr > 0, optim.lr, "positive"),
            ("optim.weight_decay", optim.weight_decay >= 0, optim.weight_decay, "0 or more"),
            ("optim.vector_weight_decay", optim.vector_weight_decay >= 0, optim.vector_weight_decay, "0 or more"),
            ("optim.momentum", 0 <= optim.momentum < 1, optim.momentum, "in [0, 1)"),
            ("optim.beta2", 0 <= optim.beta2 < 1, optim.beta2, "in [0, 1)"),
            ("optim.layer_decay", 0 < optim.layer_decay <= 1, optim.layer_decay, "in (0, 1]"),
            ("optim.clip_norm", optim.clip_norm is None or optim.clip_norm > 0, optim.clip_norm, "positive or none"),
            ("optim.warmup_factor", 0 <= optim.warmup_factor <= 1, optim.warmup_factor, "in [0, 1]"),
            ("optim.final_factor", 0 <= optim.final_factor <= 1, optim.final_factor, "in [0, 1]"),
            ("loss.id_weight", loss.id_weight >= 0, loss.id_weight, "0 or more"),
            ("loss.triplet_weight", loss.triplet_weight >= 0, loss.triplet_weight, "0 or more"),
            ("loss.label_smoothing", 0 <= loss.label_smoothing < 1, loss.label_smoothing, "in [0, 1)"),
            *(
                (f"loss.{name}", getattr(loss, name) >= 0, getattr(loss, name), "0 or more")
                for name in (
                    "class_weight",
                    "motion_weight",
                    "flow_weight",
                    "occ_weight",
                    "eq_weight",
                    "inv_weight",
                    "rec_weight",
                    "part_weight",
                    "div_weight",
                )
            ),
            ("loss.motion_ramp", 0 <= loss.motion_ramp <= 1, loss.motion_ramp, "in [0, 1]"),
            ("loss.margin", loss.margin is None or loss.margin >= 0, loss.margin, "0 or more, or none"),
            ("evaluation.batch_size", self.evaluation.batch_size >= 1, self.evaluation.batch_size, "at least 1"),
        ]
        for key, fits, value, supported in ranges:
            if not fits:
                raise ConfigError(f"{key} must be {supported}, got {show(value)}")
        if loss.id_weight == 0 and loss.triplet_weight == 0:
            raise ConfigError("loss.id_weight and loss.triplet_weight are both 0: there is nothing to learn")
        if train.initial is not None and train.pretrained is not None:
            raise ConfigError("train.initial and train.pretrained are both set: give the one to start from")
        if optim.warmup_steps is not None and not 0 <= optim.warmup_steps < train.steps:
            raise ConfigError(
                f"optim.warmup_steps must be less than train.steps, got {optim.warmup_steps} and {train.steps}"
            )
        if optim.schedule == "step" and not optim.milestones:
            raise ConfigError("optim.schedule is step, but optim.milestones is empty; give the steps, e.g. [800, 1800]")
        if self.copy.share > 0 and round(self.copy.share * train.batch_size) == 0:
            raise ConfigError(
                f"copy.share {self.copy.share:g} of a batch of {train.batch_size} is no image; "
                f"give at least {1 / train.batch_size:g}, or 0 for no copies"
            )
        for name in self.evaluation.sets:
            check_set_name("evaluation.sets", name)


def check_set_name(key: str, name: str) -> None:
    """Checks that an evaluation's name can be the name of its file.

    Raises:
        ConfigError: It has a path separator or the like.
    """
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise ConfigError(f"{key}: {name!r} is no name for a file; use letters, digits, '-', '_' and '.'")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file, with ``key=value`` changes on top.

    Args:
        path: YAML file with the sections as keys; None takes the defaults.
        overrides: E.g. ``["optim.lr=1e-3", "model.image_size=[256, 128]", "evaluation.sets={test: data/x}"]``.

    Raises:
        ConfigError: The file is missing or no YAML, a key does not exist (names the nearest and all that do), a value
            has the wrong type, or values contradict each other.
    """
    values: Any = {}
    if path is not None:
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot read the config {path}: {reason}") from error
        values = parse_yaml(text, str(path)) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold sections ({', '.join(section_names())}), got {values!r}")
    for override in overrides:
        _apply(values, override)
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A validated config from nested mappings of text or plain values; missing keys take their defaults.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    values = dict(copy.deepcopy(values))
    names = section_names()
    for key in values:
        if key not in names:
            raise unknown_key(key, set(names), "")
    chosen = values.get("model") or {}
    if not isinstance(chosen, Mapping):
        raise ConfigError(f"model must be a section of key: value lines, got {chosen!r}")
    chosen = dict(chosen)
    name = chosen.pop("name", DEFAULT_MODEL)
    if name not in model_names():
        raise ConfigError(f"model.name: expected one of {', '.join(model_names())}, got {name!r}")
    try:
        values["model"] = from_mapping(config_class(name), chosen, "model")
    except ConfigError as error:
        # The section's keys are the chosen network's; `name`, which chooses it, is not a field of it.
        raise ConfigError(str(error).replace("(keys of model: ", "(keys of model: name, ")) from error
    config = from_mapping(Config, values)
    config.validate()
    return config


def section_names() -> list[str]:
    """The top-level keys of a config."""
    return [section.name for section in fields(Config)]


def dump_config(config: Config) -> str:
    """The config as YAML, which :func:`load_config` reads back as an equal config."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=100)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configs in plain values: key -> (old, new)."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def describe_config() -> str:
    """Every field of every section, of every network: key, default, type and help, as plain text."""
    parts = []
    for section in fields(Config):
        if section.name == "model":
            parts += [_describe_model(name) for name in sorted(model_names(), key=lambda name: name != DEFAULT_MODEL)]
        else:
            assert isinstance(section.default_factory, type)
            cls = section.default_factory
            parts.append(f"{_headline(section.name, cls)}\n{describe(cls, section.name)}")
    return "\n\n".join(parts)


def _describe_model(name: str) -> str:
    cls = config_class(name)
    chosen = f"  model.name = {name}    (one of {', '.join(model_names())})\n      the network"
    return f"{_headline('model', cls)}\n{chosen}\n{describe(cls, 'model')}"


def _headline(title: str, cls: type) -> str:
    return f"{title}: {(cls.__doc__ or '').strip().splitlines()[0]}"


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one ``a.b=value`` in nested mappings."""
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"an override looks like optim.lr=1e-3, got {override!r}")
    *sections, name = key.split(".")
    target = values
    for depth, section in enumerate(sections):
        inner = target.get(section)
        if inner is None or inner == "":
            inner = target[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{join('.'.join(sections[:depth]), section)} is a value, not a section, in {override!r}")
        target = inner
    if not sections and name in section_names():
        target[name] = parse_yaml(text, key)
    else:
        target[name] = text
