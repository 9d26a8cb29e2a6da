"""Gives an existing vision transformer this project's operators, in place and reversibly (``motarfuse.accelerate``)."""

from motarfuse.nn.acceleration.report import AccelerateReport, Kept, Replaced
from motarfuse.nn.acceleration.swap import accelerate, restore

__all__ = ["AccelerateReport", "Kept", "Replaced", "accelerate", "restore"]
