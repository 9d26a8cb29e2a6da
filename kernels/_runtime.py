"""Whether Triton kernels can run here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from typing import Any

import torch


def interpreted() -> bool:
    """Whether Triton's interpreter is on (``TRITON_INTERPRET=1``), which runs kernels on CPU tensors, slowly."""
    return os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


def reasons_against_triton(device_type: str) -> list[str]:
    """Every reason why Triton kernels cannot take tensors of a device, as sentences; empty if they can.

    Args:
        device_type: ``"cpu"``, ``"cuda"`` or another type of ``torch.device``.
    """
    reasons = []
    if not sys.platform.startswith("linux"):
        reasons.append(f"Triton runs on Linux, this is {sys.platform}")
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed: pip install triton")
    elif interpreted() and _numpy_breaks_interpreter():
        reasons.append("Triton before 3.7 cannot interpret with numpy 2.4 or later: pip install 'triton>=3.7'")
    if device_type == "cpu" and not interpreted():
        reasons.append("it takes CPU tensors under TRITON_INTERPRET=1 only (for tests, and slow)")
    elif device_type == "cuda" and not torch.cuda.is_available():
        reasons.append("torch sees no CUDA device")
    elif device_type not in ("cpu", "cuda"):
        reasons.append(f"it takes cuda tensors, got {device_type}")
    return reasons


def reasons_against_call(request: Any, *names: str) -> list[str]:
    """Every reason that all kernels on floats share against a request (``motarfuse.ops.Request``).

    Args:
        request: Tensors and device.
        names: The tensors whose dtypes count; none are all of them.
    """
    reasons = reasons_against_triton(request.device.type)
    given = {name: tensor.dtype for name, tensor in request.tensors.items() if tensor is not None}
    kinds = {name: dtype for name, dtype in given.items() if not names or name in names}
    if torch.bfloat16 in kinds.values() and interpreted():
        reasons.append("Triton's interpreter cannot compute in bfloat16 (it can in float16, float32, float64)")
    if torch.float64 in kinds.values() and not interpreted():
        first = next(name for name, dtype in kinds.items() if dtype == torch.float64)
        reasons.append(f"it has no kernel for {first} of dtype float64 (it has float16, bfloat16, float32)")
    if request.device.type == "cuda" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(request.device)  # torch.compile knows this one
        if gpu.major < 8:
            reasons.append(f"it needs compute capability 8.0, {gpu.name} has {gpu.major}.{gpu.minor}")
    return reasons


@functools.cache
def _numpy_breaks_interpreter() -> bool:
    return _version("triton") < (3, 7) and _version("numpy") >= (2, 4)


def _version(package: str) -> tuple[int, int]:
    major, minor = importlib.metadata.version(package).split(".")[:2]
    return int(major), int(minor)
