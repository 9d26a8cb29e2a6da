"""Which device and which autocast type a run computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from motarfuse.errors import ConfigError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that a name means; "auto" is a GPU where torch sees one.

    Raises:
        ConfigError: The name is no device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}; supported are auto, cpu, cuda and cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name} is not there: torch sees {count} GPUs; use cpu or auto")
    return device


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Takes numbers below the smallest normal one for 0 on the CPU, which computes with them many times slower.

    Sharp heat maps and their gradients are full of them. Threads that torch starts inside behave likewise.
    """
    before = torch.tensor(1e-39) + 0 == 0  # torch has no question for it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(before))


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context of "fp32", "bf16" or "fp16".

    Raises:
        ConfigError: fp16 on a CPU, which has no gradient scaling.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    return torch.autocast(device.type, dtype=_TYPES[precision])
