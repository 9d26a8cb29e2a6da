"""What every launcher shares: a launch as a value, Triton's dtypes, the architecture that tiles are chosen for."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton.language as tl

TYPES = {
    torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64
}  # fmt: skip


class Launch(NamedTuple):
    """A kernel with everything it is called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def compiled_for(capability: tuple[int, int]) -> int:
    """The architecture whose tiles a compute capability takes: 9.x has wgmma, 10.x tcgen05, all others mma.sync."""
    return {9: 90, 10: 100}.get(capability[0], 80)


def architecture_of(device: torch.device) -> int:
    """The same of a device; a CPU, where kernels are interpreted, counts as 90."""
    return compiled_for(_capability(device)) if device.type == "cuda" else 90


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def device_of(tensor: torch.Tensor) -> Any:
    """The context in which Triton launches on a tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
