"""motion_warp's CUDA kernels compiled for the host (tests/ops/emulation) keep the tolerance rule, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from motarfuse.ops import motion_warp
from motarfuse.ops.motion_warp import KERNELS, MAX_CUDA_CELLS, MAX_CUDA_PARTS, OPERATOR, _run_kernels
from tests.ops import emulation
from tests.ops import test_motion_warp_kernels as claims
from tests.ops.emulation import EMULATED
from tests.ops.kernel_cases import DTYPES, Layout, layout_name
from tests.ops.motion_warp_cases import SHAPES, case, check, outputs_and_gradients

GRID = (16, 8)


class Machines:
    """What the host code of both directions sees of a GPU."""

    def __init__(self, *libraries: ctypes.CDLL) -> None:
        self._libraries = libraries

    def set_multiprocessors(self, count: int) -> None:
        """With batches of 2: 0 lets a block do a whole item, 2 gives an item one block of each kind, 132 many."""
        for library in self._libraries:
            library.set_multiprocessors(count)

    def set_shared_memory(self, block: int, multiprocessor: int) -> None:
        for library in self._libraries:
            library.set_shared_memory(block, multiprocessor)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Machines:
    KERNELS.define("_emulated")
    libraries = []
    for name, direction in (("motion_warp", "forward"), ("motion_warp_backward", "backward")):
        entry_point = emulation.registration("motion_warp", direction)
        libraries.append(emulation.load(name, repository / "csrc", tmp_path_factory.mktemp(name), entry_point))
    return Machines(*libraries)


@pytest.fixture(autouse=True)
def emulated(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with emulation.emulated_backend(KERNELS, OPERATOR, _run_kernels, monkeypatch):
        yield
    machines.set_multiprocessors(132)
    machines.set_shared_memory(227 << 10, 228 << 10)


@pytest.fixture(params=[0, 2, 132], ids=["whole-items", "one-block-a-kind", "many-blocks"])
def plan(machines: Machines, request: pytest.FixtureRequest) -> None:
    machines.set_multiprocessors(request.param)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize(("grid", "parts", "channels"), SHAPES, ids=str)
def test_every_plan_keeps_the_rule(grid: tuple[int, int], parts: int, channels: int) -> None:
    for dtype in (*DTYPES, torch.float64):
        for spread in (0.3, 3.0):
            check(EMULATED, case(grid, dtype, parts=parts, channels=channels, spread=spread), grid)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("channels", [48, 192, 768, 1024])
def test_lanes_and_blocks_share_wide_tokens(channels: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(EMULATED, case((4, 3), dtype, parts=2, channels=channels), (4, 3))


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_batches_of_other_sizes(machines: Machines, batch: int) -> None:
    for multiprocessors in (1, 4):
        machines.set_multiprocessors(multiprocessors)
        check(EMULATED, case((9, 7), batch=batch, channels=16), (9, 7))


def test_a_machine_of_little_shared_memory_gives_items_several_blocks(machines: Machines) -> None:
    machines.set_multiprocessors(0)
    inputs = case((24, 43), channels=8)
    whole = outputs_and_gradients(inputs, (24, 43), "emulated")
    machines.set_shared_memory(99 << 10, 100 << 10)
    check(EMULATED, inputs, (24, 43))
    shared = outputs_and_gradients(inputs, (24, 43), "emulated")
    assert torch.equal(whole["grad_source"], shared["grad_source"])


@pytest.mark.parametrize("dtype", list(MAX_CUDA_CELLS), ids=str)
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_the_largest_sizes_fit_the_smallest_shared_memory(
    machines: Machines, dtype: torch.dtype, multiprocessors: int
) -> None:
    """99 KB a block: compute capabilities 8.6, 8.9 and 12.0."""
    machines.set_shared_memory(99 << 10, 100 << 10)
    machines.set_multiprocessors(multiprocessors)
    grid = (MAX_CUDA_CELLS[dtype] // 64, 64)
    check(EMULATED, case(grid, dtype, batch=1, parts=MAX_CUDA_PARTS[dtype], channels=1), grid)


def test_what_does_not_fit_says_so(machines: Machines) -> None:
    with pytest.raises(RuntimeError, match="grids of at most 4096 cells, got 4097"):
        motion_warp(**case((1, 4097), batch=1, parts=1, channels=1), grid=(1, 4097), impl="emulated")
    machines.set_shared_memory(60 << 10, 100 << 10)
    inputs = {name: tensor.requires_grad_() for name, tensor in case((64, 64), batch=1, parts=1, channels=1).items()}
    result = motion_warp(**inputs, grid=(64, 64), impl="emulated")
    with pytest.raises(RuntimeError, match="bytes of shared memory, a block of this device has 61440"):
        result.warped.sum().backward()


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("layout", claims.LAYOUTS, ids=layout_name)
def test_strides_change_nothing(layout: Layout) -> None:
    for dtype in (*DTYPES, torch.float64):
        claims.test_strides_change_nothing(EMULATED, layout, dtype)


@pytest.mark.usefixtures("plan")
def test_types_may_be_mixed() -> None:
    for source in DTYPES:
        claims.test_half_types_and_float32_may_be_mixed(EMULATED, source)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize(
    "results",
    [("warped",), ("flow",), ("visibility",), ("warped", "visibility"), ("flow", "visibility")],
    ids="+".join,
)
def test_a_loss_may_depend_on_some_of_the_results(results: tuple[str, ...]) -> None:
    claims.test_a_loss_may_depend_on_some_of_the_results(EMULATED, results)


@pytest.mark.usefixtures("plan")
def test_only_what_requires_a_gradient_gets_one() -> None:
    for wanted in claims._subsets():
        claims.test_only_what_requires_a_gradient_gets_one(EMULATED, wanted)


def test_gradients_that_nothing_flows_into_are_zero() -> None:
    """What autograd never asks for, a direct call may."""
    inputs = case((4, 2))
    gradients = torch.ops.motarfuse.motion_warp_backward_emulated(None, None, None, *inputs.values(), 4, 2, 0b1111111)
    for gradient, tensor in zip(gradients, inputs.values(), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.usefixtures("plan")
def test_the_edges_are_as_on_every_backend() -> None:
    for grid in ((1, 1), (7, 1), (1, 9), GRID):
        claims.test_a_still_posture_moves_nothing_at_all(EMULATED, grid)
    claims.test_keypoints_far_outside_read_the_border_and_take_no_gradient(EMULATED)
    for side in ("source_affines", "target_affines"):
        claims.test_singular_affines_are_as_in_the_reference(EMULATED, side)
    claims.test_a_part_without_mass_takes_no_gradient(EMULATED)
    for name in ("source_keypoints", "target_affines", "part_logits", "source", "source_part_logits"):
        claims.test_nan_shows_where_the_reference_shows_it(EMULATED, name)
    for batch, parts, channels in ((0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)):
        claims.test_empty_dimensions(EMULATED, batch, parts, channels)
    claims.test_frames_of_a_clip_are_taken_as_they_lie(EMULATED)
    claims.test_gradients_take_the_layout_of_what_they_belong_to(EMULATED)
    claims.test_float64_passes_gradcheck_through_the_compiled_code(EMULATED)


@pytest.mark.usefixtures("plan")
def test_hidden_channels_before_the_first_that_is_not() -> None:
    """More of them than a thread reads at once; a cell with nothing but hidden ones is NaN, as in the reference."""
    for dtype in (torch.float32, torch.float64):
        inputs = case(GRID, dtype, parts=12)
        for name in ("part_logits", "source_part_logits"):
            inputs[name][:, :10, ::2] = -torch.inf
        check(EMULATED, inputs, GRID)
        inputs["part_logits"][0, :, 5] = -torch.inf
        got, wanted = (outputs_and_gradients(inputs, GRID, impl) for impl in ("emulated", "reference"))
        for name, value in wanted.items():
            assert torch.equal(value.isnan(), got[name].isnan()), name


@pytest.mark.usefixtures("plan")
def test_nan_flows_on_grids_of_one_row_or_column() -> None:
    """Their samples have no second neighbour in one direction, and the first takes the NaN."""
    for grid in ((1, 1), (5, 1), (1, 5)):
        inputs = case(grid, torch.float64)
        inputs["source_keypoints"][0, 0, 0] = torch.nan
        got, wanted = (outputs_and_gradients(inputs, grid, impl) for impl in ("emulated", "reference"))
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, equal_nan=True, msg=name)


@pytest.mark.usefixtures("plan")
def test_two_runs_agree_bitwise() -> None:
    inputs = case((12, 43), parts=5, channels=24, spread=3.0)
    first, second = (outputs_and_gradients(inputs, (12, 43), "emulated") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
