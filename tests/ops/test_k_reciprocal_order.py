"""Overlaps in the order of final distances: the functions against plain loops, and the C++ ones against their bits."""

from __future__ import annotations

import bisect
import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from motarfuse.ops.k_reciprocal import SCHEMAS
from tests.ops import emulation
from tests.ops.k_reciprocal_cases import FORMULAS, run_order, tile
from tests.ops.kernel_cases import needs_native
from tests.ops.test_k_reciprocal import NATIVE, REFERENCE, sides

NAMES = ("kth", "select", "count_earlier")
formulas = pytest.mark.parametrize(("gain", "power", "clamped"), FORMULAS)


def key_of(squared: float, largest: float, shared: float, gain: float, power: int, clamped: bool) -> float:
    jaccard = 1 - shared / (2 - shared)
    by = gain * (1 - max(jaccard, 0.0 if clamped else -1.0))
    if power < 2:
        return squared - (2 if power == 0 else largest) * by
    moved = squared**2 - largest**2 * by
    return min(math.copysign(math.sqrt(abs(moved)), moved), squared)


@sides
def test_the_kth_largest_and_what_is_not_below_it(functions: Any) -> None:
    case = tile(1)
    room, counts, columns, sums = case.shared
    found = run_order(functions, case, 1.0, 1, False)
    for place, k in enumerate((1, 4, 30, 90, 91)):
        kth, sizes, chosen, values = found[4 * place : 4 * place + 4]
        wanted = []
        for row, count in enumerate(counts.tolist()):
            some = slice(int(room[row]), int(room[row]) + count)
            least = sorted(sums[some].tolist(), reverse=True)[k - 1] if count >= k else 0.0
            assert kth[row] == least
            inside = sums[some] >= least
            assert sizes[row] == inside.sum()
            wanted += list(zip(columns[some][inside].tolist(), sums[some][inside].tolist(), strict=True))
        assert list(zip(chosen.tolist(), values.tolist(), strict=True)) == wanted


@sides
@formulas
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counted_are_pairs_whose_keys_alone_come_before(
    functions: Any, seed: int, gain: float, power: int, clamped: bool
) -> None:
    """With the exact distances of those that are left open, every rank is right."""
    case = tile(seed)
    *_, thresholds, steps, unsure = run_order(functions, case, gain, power, clamped)
    room, counts, columns, sums = case.shared
    sure = 0
    for row, count in enumerate(counts.tolist()):
        asked = thresholds[case.starts[row] : case.starts[row + 1]].tolist()
        out = case.left_out[case.left_out_starts[row] : case.left_out_starts[row + 1]].tolist()
        wanted = [0] * len(asked)
        for place in range(int(room[row]), int(room[row]) + count):
            column, shared = int(columns[place]), float(sums[place])
            in_tile = case.first <= column < case.first + case.scores.shape[1]
            jaccard = 1 - shared / (2 - shared)
            if not in_tile or column in out or jaccard >= 1:
                assert not unsure[place]
                continue
            squared = float(case.exact[row, column])
            key, last = key_of(squared, float(case.largest[row]), shared, gain, power, clamped), squared
            if power < 0:
                key, last = max(jaccard, 0.0) if clamped else jaccard, math.inf
                assert bool(unsure[place]) == (key in asked)
            if not unsure[place]:
                sure += 1
                for i in range(bisect.bisect_right(asked, key), bisect.bisect_right(asked, last)):
                    wanted[i] += 1
            elif case.slack[row] == 0 and not torch.isnan(case.scores[row, column - case.first]):
                assert key in asked or squared in asked
        assert steps[case.starts[row] : case.starts[row + 1]].cumsum(0).tolist() == wanted
    assert sure > 20
    assert not unsure[: int(room[0])].any()
    assert unsure.any()


@needs_native
@formulas
def test_cpp_gives_the_definitions_bits(gain: float, power: int, clamped: bool) -> None:
    for seed in range(4):
        case = tile(seed, rows=5 + 40 * seed)
        compare(run_order(NATIVE, case, gain, power, clamped), run_order(REFERENCE, case, gain, power, clamped))


def compare(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.cpu(), other)


@sides
def test_no_rows_are_no_error(functions: Any) -> None:
    case = tile(0, rows=5)
    nothing = torch.zeros(0, dtype=torch.float64)
    room, counts = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    functions.kth(room, counts, nothing, 3, nothing)
    functions.select(room, counts, torch.zeros(0, dtype=torch.int32), nothing, nothing, None, counts, None)
    functions.count_earlier(
        case.scores[:0], case.slack[:0], 0, room, counts, torch.zeros(0, dtype=torch.int32), nothing, nothing, 1.0, 1,
        False, room, nothing, room, counts, counts, torch.zeros(0, dtype=torch.bool),
    )  # fmt: skip


@needs_native
def test_direct_calls_are_checked_before_memory_is_read() -> None:
    case = tile(0, rows=5)
    room, counts, columns, sums = case.shared
    out, sizes = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="k must be at least 1"):
        NATIVE.kth(room, counts, sums, 0, out)
    with pytest.raises(RuntimeError, match="one float64 a row"):
        NATIVE.kth(room, counts, sums, 1, out[1:])
    with pytest.raises(RuntimeError, match="must lie in its room"):
        NATIVE.kth(room, counts + 500, sums, 1, out)
    with pytest.raises(RuntimeError, match="where its room begins"):
        NATIVE.kth(room[1:], counts, sums, 1, out)
    with pytest.raises(RuntimeError, match="as many float64 sums"):
        NATIVE.select(room, counts, columns[1:], sums, out, None, sizes, None)
    with pytest.raises(RuntimeError, match="where the rows' starts are given"):
        NATIVE.select(room, counts, columns, sums, out, room, columns, None)
    good = [
        case.scores, case.slack, case.first, *case.shared, case.largest, 1.0, 1, False, case.starts, case.thresholds,
        case.left_out_starts, case.left_out, torch.zeros(len(case.thresholds), dtype=torch.int64),
        torch.zeros(len(sums), dtype=torch.bool),
    ]  # fmt: skip
    for place, value, message in (
        (0, case.scores.double(), "float32 scores"),
        (0, case.scores[1:], "float32 scores"),
        (1, case.slack[1:], "slack"),
        (4, counts + 500, "must lie in its room"),
        (7, case.largest.float(), "largest distance must be"),
        (9, 3, "power must be"),
        (11, case.starts + 1, "starts must rise"),
        (13, case.left_out_starts + 1000, "starts must rise"),
        (15, sizes[:1], "thresholds"),
        (16, torch.zeros(3, dtype=torch.bool), "one bool"),
    ):
        arguments = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match=message):
            NATIVE.count_earlier(*arguments)


class Emulated:
    """The functions compiled for the host."""

    def __init__(self) -> None:
        for name in NAMES:
            setattr(self, name, getattr(torch.ops.motarfuse, f"k_reciprocal_{name}_emulated").default)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> ctypes.CDLL:
    for name in NAMES:
        torch.library.define(f"motarfuse::k_reciprocal_{name}_emulated", SCHEMAS[f"k_reciprocal_{name}"])
    entries = emulation.registration("k_reciprocal", *NAMES)
    return emulation.load("k_reciprocal_order", repository / "csrc", tmp_path_factory.mktemp("emulation"), entries)


# 0: a single block walks over everything.
@pytest.fixture(params=[132, 0])
def emulated(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[Any]:
    library.set_multiprocessors(request.param)
    yield Emulated()
    library.set_multiprocessors(132)


@formulas
def test_emulated_kernels_have_the_definitions_bits(emulated: Any, gain: float, power: int, clamped: bool) -> None:
    case = tile(1)
    compare(run_order(emulated, case, gain, power, clamped), run_order(REFERENCE, case, gain, power, clamped))


@pytest.mark.gpu
@needs_native
@formulas
def test_a_gpu_has_the_definitions_bits(gain: float, power: int, clamped: bool) -> None:
    for seed, gallery in ((1, 90), (2, 5000)):
        case = tile(seed, rows=300, gallery=gallery, columns=gallery // 2)
        wanted = run_order(REFERENCE, case, gain, power, clamped)
        compare(run_order(NATIVE, case.to("cuda"), gain, power, clamped), wanted)
