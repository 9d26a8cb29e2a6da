"""The CUDA kernels compiled for the host (tests/ops/emulation) keep the tolerance rule: their logic, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from motarfuse.ops.part_moments import KERNELS, OPERATOR, _run_kernels
from tests.ops import emulation
from tests.ops import test_part_moments as claims
from tests.ops.emulation import EMULATED
from tests.ops.kernel_cases import DTYPES, layout_name
from tests.ops.part_moments_cases import case, check


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> ctypes.CDLL:
    KERNELS.define("_emulated")
    folder = tmp_path_factory.mktemp("emulation")
    entry_points = emulation.registration("part_moments", "forward", "backward")
    return emulation.load("part_moments", repository / "csrc", folder, entry_points, optimise="-O0")


@pytest.fixture(autouse=True)
def emulated(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with emulation.emulated_backend(KERNELS, OPERATOR, _run_kernels, monkeypatch):
        yield
    library.set_multiprocessors(132)


# A machine without multiprocessors is always full, so that rows of 512 to 2047 cells are taken by warps.
@pytest.mark.parametrize("multiprocessors", [132, 0])
@pytest.mark.parametrize("grid", [(1, 1), (9, 7), (16, 8), (1, 193), (16, 33), (64, 33)], ids=str)
def test_warps_and_blocks_keep_the_rule(library: ctypes.CDLL, grid: tuple[int, int], multiprocessors: int) -> None:
    library.set_multiprocessors(multiprocessors)
    for dtype in (*DTYPES, torch.float64):
        logits, affine = case(grid, dtype, batch=1, parts=2)
        check(EMULATED, logits, affine, grid)
        check(EMULATED, logits, None, grid)
        if dtype in (torch.float16, torch.bfloat16):
            check(EMULATED, logits, affine.float(), grid)


@pytest.mark.parametrize("layout", claims.LAYOUTS, ids=layout_name)
def test_strides_change_nothing(layout: claims.Layout) -> None:
    for grid in ((16, 8), (9, 7)):
        for dtype in (torch.float32, torch.float16):
            check(EMULATED, *layout(*case(grid, dtype, batch=1, parts=3)), grid)


def test_more_rows_than_a_block_takes_are_covered() -> None:
    check(EMULATED, *case((4, 2), batch=5, parts=13), (4, 2))


def test_the_edges_are_as_on_every_backend() -> None:
    claims.test_a_peak_is_certain_and_a_flat_map_is_not(EMULATED)
    claims.test_a_hidden_cell_counts_for_nothing(EMULATED)
    claims.test_large_logits_are_stable(EMULATED)
    claims.test_gradients_take_the_layout_of_what_they_belong_to(EMULATED)
    claims.test_an_empty_batch_gives_an_empty_result(EMULATED, (0, 3, 8))
    for with_affine in (True, False):
        claims.test_a_row_of_hidden_cells_gives_zeros_and_no_gradient(EMULATED, with_affine)
    for spoiler in (torch.nan, torch.inf):
        claims.test_nan_and_infinite_logits_show_in_their_row_alone(EMULATED, spoiler)
    for requires in ((True, False), (False, True)):
        claims.test_only_what_requires_a_gradient_gets_one(EMULATED, requires)
    for dtype in DTYPES:
        claims.test_halves_keep_infinities_subnormals_and_rounding(EMULATED, dtype)
