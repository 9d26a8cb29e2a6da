"""Whether Triton kernels can run here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys

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


@functools.cache
def _numpy_breaks_interpreter() -> bool:
    return _version("triton") < (3, 7) and _version("numpy") >= (2, 4)


def _version(package: str) -> tuple[int, int]:
    major, minor = importlib.metadata.version(package).split(".")[:2]
    return int(major), int(minor)
