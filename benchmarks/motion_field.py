"""Sizes of the operators that turn heat maps and part logits into motion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldShape:
    """One problem. Attributes: batch B, parts K, grid (h, w), channels C (0 where the operator has none)."""

    batch: int
    parts: int
    grid: tuple[int, int]
    channels: int = 0

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    def __str__(self) -> str:
        sizes = [self.batch, self.parts, *self.grid] + ([self.channels] if self.channels else [])
        return "x".join(map(str, sizes))
