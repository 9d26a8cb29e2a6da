"""Parameter groups, optimizers and learning-rate schedules of a config."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from motarfuse.engine.config import OptimConfig

# Embeddings that are matrices by shape and vectors by nature: one row a position, nothing that decay would regularise.
_EMBEDDINGS = ("cls_token", "pos_embed", "camera_embed", "queries", "anchors", "types")


def named_trainable(model: nn.Module, criterion: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters as ``model.<name>`` and ``criterion.<name>``."""
    for prefix, module in (("model", model), ("criterion", criterion)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{prefix}.{name}", parameter


def parameter_groups(model: nn.Module, criterion: nn.Module, config: OptimConfig) -> list[dict]:
    """Groups of parameters with one learning rate and weight decay each, which the schedule scales.

    lr of a parameter = lr * layer_decay^(layers above it) * bias_lr_factor for biases.
    Weight decay applies to matrices, ``vector_weight_decay`` to biases, norms and embeddings.

    Returns:
        Dicts with ``params``, ``names``, ``lr``, ``base_lr`` and ``weight_decay``, in a fixed order.
    """
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named_trainable(model, criterion):
        owner, short = name.split(".", 1)
        layers_above = model.num_layers - 1 - model.layer_of(short) if owner == "model" else 0  # type: ignore[operator]
        lr = config.lr * config.layer_decay**layers_above
        if name.endswith(".bias"):
            lr *= config.bias_lr_factor
        vector = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in _EMBEDDINGS
        decay = config.vector_weight_decay if vector else config.weight_decay
        group = groups.setdefault(
            (lr, decay), {"params": [], "names": [], "lr": lr, "base_lr": lr, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that the config names."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=(config.momentum, config.beta2))


def lr_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of a step over the highest one: a pure function, so that resuming needs no state.

    Warm-up over W steps from a = warmup_factor: a + (1 - a) * ramp(step / W), ramp being linear, or (1 - cos(pi x)) / 2
    for one_cycle. Then, with x = (step - W) / (steps - W) and f = final_factor: f + (1 - f) (1 + cos(pi x)) / 2 for
    one_cycle and cosine; gamma^(milestones passed) for step; 1 for constant.

    Args:
        config: Schedule and its numbers.
        step: From 0 to steps - 1.
        steps: Steps of the whole training.

    Source: Loshchilov and Hutter 2017 (cosine); Smith and Topin 2019 (one cycle).
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = int(0.3 * steps) if config.schedule == "one_cycle" else 0
    if step < warmup:
        ramp = step / warmup
        if config.schedule == "one_cycle":
            ramp = (1 - math.cos(math.pi * ramp)) / 2
        return config.warmup_factor + (1 - config.warmup_factor) * ramp
    if config.schedule in ("one_cycle", "cosine"):
        progress = (step - warmup) / (steps - warmup)
        return config.final_factor + (1 - config.final_factor) * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "step":
        return config.gamma ** sum(step >= milestone for milestone in config.milestones)
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to ``factor`` times its own highest one."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: ``<parameter>/<key>``."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}/{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the state that :func:`optimizer_tensors` gave.

    Raises:
        KeyError: A tensor belongs to a parameter that the optimizer does not have.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        # Adam counts its steps on the CPU, whatever the device of the parameter.
        device = torch.device("cpu") if key == "step" else parameter.device
        optimizer.state[parameter][key] = tensor.to(device, copy=True)
