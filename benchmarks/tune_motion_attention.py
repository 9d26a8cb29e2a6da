"""Times other tiles than the table's for motion_attention's Triton kernels on the GPU at hand.

Run: python -m benchmarks.tune_motion_attention [--kernel backward_key] [--dtype bfloat16] [--head-dims 32,64,128]
     [--seconds 300] [--csv FILE]

Each entry of `motarfuse.kernels.motion_attention_table` meets the candidates that are listed here, at a shape of the
network. A candidate is what the launcher launches while the table is overridden. It is dropped, and the reason said,
where it does not compile, asks for more than the GPU has, spills more than the table's own, or has another result. The
rest take turns with the table's, which runs twice: what the two differ by is noise. Times are of the kernel alone.

Where a candidate wins by more than the noise, the line that replaces the table's comes last, ready to paste. Entries
and candidates come in the order of what is expected of them, and what --seconds does not suffice for is said.

Exit status: 0; 1 where an entry of the table does not run; 2 for a wrong call; 3 where there is no GPU for it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels.motion_attention_table import Entry, ShortEntry, ShortOptions, Tiles

from benchmarks.bench_motion_attention import PEER_TOLERANCE
from benchmarks.motion_attention_peers import EXTRAS, Case, draw
from benchmarks.timing import Call, Timing, append_rows, environment, input_copies, measure, row, short_reason

FAILED, NO_GPU = 1, 3
DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (64, 128, 32)
# Where training spends its time first.
KERNELS = ("short", "backward_key", "backward_query", "forward")
Choice = Tiles | ShortOptions
Lists = Mapping[str, tuple[tuple[Tiles, ...], tuple[Tiles, ...], tuple[Tiles, ...]]]

# For head dims up to 32, 64 and 128, in the order to try them; the table's own is passed over.
# wgmma and tcgen05 take 64 rows a warp group and find operands in shared memory.
_WIDE: Lists = {
    "forward": (
        (Tiles(128, 64, 8, 3), Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 2), Tiles(64, 128, 4, 2), Tiles(64, 64, 4, 4)),
        (
            Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3, maxnreg=128), Tiles(128, 128, 8, 2),
            Tiles(64, 64, 4, 2), Tiles(64, 128, 4, 2), Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 4),
        ),
        (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 3)),
    ),
    "backward_query": (
        (Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3), Tiles(64, 128, 4, 2)),
        (
            Tiles(64, 32, 4, 2), Tiles(64, 64, 4, 2, maxnreg=168), Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 3),
            Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 1), Tiles(128, 32, 8, 2),
        ),
        (Tiles(64, 32, 4, 3), Tiles(64, 64, 8, 2), Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 1), Tiles(64, 64, 4, 1)),
    ),
    "backward_key": (
        (Tiles(32, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 128, 8, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 1)),
        (
            Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 8, 2), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 1),
            Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2),
        ),
        (
            Tiles(32, 64, 4, 1), Tiles(64, 64, 8, 1), Tiles(32, 64, 8, 2), Tiles(64, 128, 8, 1),
            Tiles(64, 64, 4, 1, passes=2), Tiles(64, 64, 4, 2, passes=2),
        ),
    ),
}  # fmt: skip
# mma.sync keeps operands in registers, too.
_NARROW: Lists = {
    "forward": (
        (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3), Tiles(128, 32, 4, 3), Tiles(64, 64, 4, 4)),
        (Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 3), Tiles(128, 32, 4, 2)),
        (Tiles(64, 32, 4, 2), Tiles(64, 16, 4, 3), Tiles(128, 32, 8, 2), Tiles(128, 16, 8, 3), Tiles(64, 16, 4, 2)),
    ),
    "backward_query": (
        (Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 2), Tiles(128, 32, 8, 2), Tiles(128, 64, 8, 1)),
        (Tiles(64, 32, 4, 3), Tiles(128, 32, 8, 2), Tiles(64, 16, 4, 3), Tiles(64, 32, 4, 1), Tiles(64, 64, 8, 2)),
        (Tiles(64, 16, 4, 3), Tiles(64, 32, 8, 2), Tiles(128, 16, 8, 2), Tiles(64, 16, 4, 1), Tiles(32, 32, 4, 2)),
    ),
    "backward_key": (
        (Tiles(32, 64, 4, 2), Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 3), Tiles(64, 128, 8, 2), Tiles(32, 128, 8, 2)),
        (Tiles(32, 64, 4, 3), Tiles(32, 64, 4, 1), Tiles(16, 64, 4, 2), Tiles(32, 128, 8, 2), Tiles(64, 64, 8, 2)),
        (
            Tiles(16, 64, 4, 2, passes=2), Tiles(16, 64, 8, 2), Tiles(32, 64, 8, 2), Tiles(32, 32, 4, 2, passes=2),
            Tiles(16, 32, 4, 2),
        ),
    ),
}  # fmt: skip
# Three TF32 products a number: registers decide everywhere.
_FLOAT: Lists = {
    "forward": (
        (Tiles(64, 32, 4, 1), Tiles(32, 32, 4, 2), Tiles(64, 16, 4, 2), Tiles(64, 32, 4, 3), Tiles(128, 32, 8, 2)),
        (Tiles(64, 16, 4, 1), Tiles(32, 32, 4, 2), Tiles(64, 32, 8, 2), Tiles(64, 32, 8, 1), Tiles(32, 16, 4, 2)),
        (Tiles(16, 32, 4, 1), Tiles(64, 16, 8, 1), Tiles(32, 32, 8, 1), Tiles(64, 32, 8, 1), Tiles(32, 16, 4, 1)),
    ),
    "backward_query": (
        (Tiles(32, 32, 4, 1), Tiles(64, 32, 8, 1), Tiles(64, 16, 4, 1), Tiles(64, 32, 8, 2), Tiles(32, 32, 4, 2)),
        (Tiles(64, 16, 8, 1), Tiles(64, 16, 4, 1), Tiles(32, 32, 8, 1), Tiles(32, 16, 4, 1), Tiles(64, 16, 8, 2)),
        (Tiles(32, 16, 8, 1), Tiles(64, 16, 8, 1), Tiles(32, 16, 4, 1), Tiles(16, 16, 4, 1)),
    ),
    "backward_key": (
        (Tiles(64, 64, 8, 1), Tiles(32, 32, 4, 1), Tiles(32, 64, 8, 2), Tiles(16, 64, 4, 1), Tiles(32, 64, 8, 1)),
        (
            Tiles(16, 64, 8, 1), Tiles(16, 64, 4, 1), Tiles(16, 32, 4, 1), Tiles(32, 32, 8, 1),
            Tiles(16, 32, 8, 1, passes=2), Tiles(16, 64, 8, 1, passes=2),
        ),
        (
            Tiles(16, 32, 8, 1, passes=2), Tiles(16, 64, 8, 1), Tiles(16, 32, 8, 1), Tiles(16, 64, 8, 1, passes=2),
            Tiles(32, 32, 8, 1, passes=2),
        ),
    ),
}  # fmt: skip
# Warps, stages, registers, and programs that share a head's queries.
_SHORT = ((4, 1, None, 2), (8, 1, None, 1), (8, 1, None, 2), (4, 2, None, 1), (4, 1, 168, 1), (4, 1, None, 3))
# One frame, one with its parts, and two frames: 144, 224 and 256 keys on chip.
_SHORT_LENGTHS = (129, 211, 243)
