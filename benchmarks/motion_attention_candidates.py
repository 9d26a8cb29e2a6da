"""What `benchmarks.tune_motion_attention` tries: candidates for each entry of the table, and shapes to time them at."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels.motion_attention_table import Entry, ShortEntry, ShortOptions, Tiles

from benchmarks.motion_attention_peers import Case

HEAD_DIMS = (64, 128, 32)
# Where training spends its time first.
KERNELS = ("short", "backward_key", "backward_query", "forward")
Choice: TypeAlias = Tiles | ShortOptions
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
        (Tiles(64, 32, 4, 3), Tiles(64, 64, 8, 2), Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 1)),
    ),
    "backward_key": (
        (Tiles(32, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 128, 8, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 4, 1)),
        (
            Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 3), Tiles(64, 64, 8, 2), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 1),
            Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2),
        ),
        (
            Tiles(32, 64, 4, 1), Tiles(64, 64, 8, 1), Tiles(32, 64, 8, 2), Tiles(32, 64, 8, 3), Tiles(64, 64, 8, 2),
        ),
    ),
}  # fmt: skip
# mma.sync keeps operands in registers, too.
_NARROW: Lists = {
    "forward": (
        (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3), Tiles(128, 32, 8, 3), Tiles(64, 64, 4, 4)),
        (Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 3), Tiles(128, 32, 4, 2)),
        (Tiles(128, 32, 8, 2), Tiles(128, 16, 8, 3), Tiles(128, 16, 8, 1), Tiles(64, 16, 8, 2)),
    ),
    "backward_query": (
        (Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 2), Tiles(128, 32, 8, 2), Tiles(128, 64, 8, 1)),
        (Tiles(64, 32, 4, 3), Tiles(128, 32, 8, 2), Tiles(64, 16, 4, 3), Tiles(64, 32, 4, 1), Tiles(64, 64, 8, 2)),
        (Tiles(64, 16, 4, 3), Tiles(64, 16, 4, 1), Tiles(64, 16, 8, 2), Tiles(32, 16, 4, 2)),
    ),
    "backward_key": (
        (Tiles(32, 64, 4, 2), Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 3), Tiles(64, 128, 8, 2), Tiles(32, 128, 8, 2)),
        (Tiles(32, 64, 4, 3), Tiles(32, 64, 4, 1), Tiles(16, 64, 4, 2), Tiles(32, 128, 8, 2), Tiles(64, 64, 8, 2)),
        (
            Tiles(16, 32, 4, 3, passes=2), Tiles(16, 32, 4, 1, passes=2), Tiles(32, 32, 8, 2, passes=2),
            Tiles(16, 64, 8, 2, passes=2),
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
# Warps, stages, registers, and programs that share a head's queries, by architecture.
_SHORT = {
    80: ((4, 1, None, 2), (8, 1, None, 1), (4, 2, None, 1), (4, 1, None, 3), (8, 1, None, 2)),
    90: ((4, 1, None, 2), (4, 2, None, 1), (4, 1, None, 3), (4, 2, None, 2), (4, 3, None, 1)),
    100: ((4, 1, None, 2), (4, 2, None, 1), (4, 1, None, 3), (8, 1, None, 1), (4, 2, None, 2)),
}  # fmt: skip
# One frame, one with its parts, and two frames: 144, 224 and 256 keys on chip.
_SHORT_LENGTHS = (129, 211, 243)


class Work(NamedTuple):
    """One entry of the table and what it is timed with.

    Attributes:
        kernel: One of `KERNELS`.
        entry: Of ``TABLE``, or of ``SHORT``.
        own: What the table has.
        candidates: Others, in the order to try them.
        case, dtype: The shape.
    """

    kernel: str
    entry: Entry | ShortEntry
    own: Choice
    candidates: tuple[Choice, ...]
    case: Case
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.case.name}"

    def overridden(self, choice: Choice) -> contextlib.AbstractContextManager[None]:
        """The table with a choice in this entry's place."""
        found: contextlib.AbstractContextManager[None]
        if self.kernel == "short":
            found = table.override({}, {self.entry: choice})
        else:
            found = table.override({self.entry: choice})
        return found


def code(choice: Choice) -> str:
    """As the table writes it."""
    defaults = choice._field_defaults
    words = [
        f"{name}={value}" if name in defaults else str(value)
        for name, value in choice._asdict().items()
        if name not in defaults or value != defaults[name]
    ]
    return f"{type(choice).__name__}({', '.join(words)})"


def works(architecture: int, kernels: Sequence[str], dtype: torch.dtype, head_dims: Sequence[int]) -> list[Work]:
    """Entries of an architecture, the network's head dim and its most expensive kernels first."""
    half = dtype in (torch.float16, torch.bfloat16)
    found = []
    for width in sorted(head_dims, key=HEAD_DIMS.index):
        heads = 768 // width
        for kernel in sorted(kernels, key=KERNELS.index):
            if kernel == "short":
                cases = [Case(64, heads, length, length, width, 10) for length in _SHORT_LENGTHS]
                found += [one for case in cases if (one := _short_work(architecture, case, dtype)) is not None]
                continue
            entry = Entry(architecture, kernel, half, width)
            lists = _FLOAT if not half else _NARROW if architecture == 80 else _WIDE
            own = table.tiles(*entry)
            others = tuple(one for one in lists[kernel][(32, 64, 128).index(width)] if one != own)
            found.append(Work(kernel, entry, own, others, Case(16, heads, 1032, 1032, width, 12), dtype))
    return found


def _short_work(architecture: int, case: Case, dtype: torch.dtype) -> Work | None:
    """None where the short path does not take the case."""
    half, programs = dtype in (torch.float16, torch.bfloat16), case.batch * case.heads
    plan = table.short_plan(architecture, half, case.width, programs, case.queries, case.keys)
    if plan is None:
        return None
    entry = ShortEntry(architecture, case.width, sum(plan.keys))
    own = table.short_options(entry)
    options = []
    for warps, stages, registers, shared_by in _SHORT[architecture]:
        busy = own.busy if shared_by == plan.programs else shared_by * programs
        options.append(ShortOptions(warps, stages, registers, busy))
    return Work("short", entry, own, tuple(one for one in options if one != own), case, dtype)
