"""Which frames of a tracklet a network sees: the sampling policies by name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

TRAIN_POLICIES = ("random", "dense", "evenly")
EVAL_POLICIES = ("all", "evenly", "dense")


@dataclass(frozen=True)
class ClipSampling:
    """How clips are cut from a tracklet of n frames. A clip never repeats a frame: short tracklets give short clips.

    - ``random`` (restricted random): n frames in ``frames`` equal segments, one drawn from each.
    - ``dense``: ``frames`` frames, ``stride`` apart, from a drawn start; without a generator from the middle. A shorter
      tracklet takes the largest stride that fits.
    - ``evenly``: the middles of ``frames`` equal segments.
    - ``all``: every frame, in consecutive clips of ``frames`` or, so that none is much shorter, fewer.

    Attributes:
        policy: One of these names.
        frames: T, frames of a clip.
        stride: Steps between the frames of ``dense``.

    Raises:
        ValueError: An unknown name, or a number below 1.

    Source: restricted random sampling, Li et al. 2018 (diversity regularized spatiotemporal attention).
    """

    policy: Literal["random", "dense", "evenly", "all"] = "all"
    frames: int = 8
    stride: int = 1

    def __post_init__(self) -> None:
        known = dict.fromkeys((*TRAIN_POLICIES, *EVAL_POLICIES))
        if self.policy not in known:
            raise ValueError(f"policy must be one of {', '.join(known)}, got {self.policy!r}")
        for name in ("frames", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def clips(self, length: int, random: np.random.Generator | None = None) -> list[list[int]]:
        """Positions of the frames of each clip, increasing.

        Args:
            length: n, frames of the tracklet, at least 1.
            random: Where drawn positions come from; None takes the middle of what could be drawn.

        Returns:
            One clip; several where the policy is ``all`` and the tracklet longer than a clip.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        count = min(self.frames, length)
        if self.policy == "all":
            return [part.tolist() for part in np.array_split(np.arange(length), -(-length // self.frames))]
        if self.policy == "dense":
            stride = max(1, min(self.stride, (length - 1) // (count - 1))) if count > 1 else 1
            free = length - 1 - (count - 1) * stride
            start = free // 2 if random is None else int(random.integers(free + 1))
            return [list(range(start, start + (count - 1) * stride + 1, stride))]
        if self.policy == "random" and random is not None:
            edges = np.arange(count + 1) * length // count
            return [[int(random.integers(first, last)) for first, last in pairwise(edges)]]
        return [((2 * np.arange(count) + 1) * length // (2 * count)).tolist()]

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of it."""
        values: dict[str, Any] = {"policy": self.policy, "frames": self.frames}
        return {**values, "stride": self.stride} if self.policy == "dense" else values
