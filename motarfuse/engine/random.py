"""Random streams: every draw of a training step is a function of the run's seed and the step's number.

Nothing has to be saved for resuming, and an evaluation or a checkpoint in between changes no later draw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# Keys of the streams: two purposes never share one.
WEIGHTS = 0
STEP = 1
AUGMENTATION = 2
COPIES = 3
CLIPS = 4
PAIRS = 5


def stream_seed(seed: int, *key: int) -> int:
    """A 63-bit seed for the stream ``key`` of a run's ``seed``; streams are independent of each other."""
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(2, np.uint32)
    return (int(words[0]) << 32 | int(words[1])) >> 1


def seed_everything(value: int) -> None:
    """Seeds torch (all devices), numpy's legacy generator and Python's."""
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the generator that other people's modules draw from
    random.seed(value)


@contextmanager
def isolated_randomness(device: torch.device) -> Iterator[None]:
    """Gives the caller's generators back as they were, whatever was seeded and drawn inside."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - likewise
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002 - likewise
            random.setstate(python_state)
