"""Person re-identification from images and video with motion-aware fusion.

``motarfuse.ops`` holds the operators, ``motarfuse.nn`` the layers and losses, ``motarfuse.models`` the networks,
``motarfuse.data`` the datasets, ``motarfuse.retrieval`` search and metrics, ``motarfuse.engine`` training and features.
Submodules are imported on first use, so that ``motarfuse doctor`` answers even where torch cannot be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = ("data", "engine", "models", "nn", "ops", "reference", "retrieval", "viz")

if TYPE_CHECKING:
    from motarfuse import data, engine, models, nn, ops, reference, retrieval, viz
    from motarfuse.nn.acceleration import AccelerateReport, accelerate, restore
    from motarfuse.ops import use_backend

# Functions and classes that live in a submodule and are used without its name.
_EXPORTS = {
    "AccelerateReport": "motarfuse.nn.acceleration",
    "accelerate": "motarfuse.nn.acceleration",
    "restore": "motarfuse.nn.acceleration",
    "use_backend": "motarfuse.ops",
}

__all__ = [
    "AccelerateReport",
    "__version__",
    "accelerate",
    "data",
    "engine",
    "models",
    "nn",
    "ops",
    "reference",
    "restore",
    "retrieval",
    "use_backend",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"motarfuse.{name}")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'motarfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
