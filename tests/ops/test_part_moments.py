"""part_moments: every backend by the one tolerance rule, the definition against loops over cells, and its edges."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from motarfuse import _native, reference
from motarfuse.ops import part_moments
from tests.ops.kernel_cases import (
    BACKENDS,
    DTYPES,
    KERNEL_BACKENDS,
    check_on_older_processors,
    layout_name,
    misaligned,
    needs_native,
)
from tests.ops.part_moments_cases import GRIDS, as_a_projection_leaves_it, case, check, outputs_and_gradients


def test_the_native_library_is_built_where_a_compiler_is() -> None:
    if os.environ.get("MOTARFUSE_DISABLE_NATIVE", "0") not in ("", "0") or shutil.which("c++") is None:
        pytest.skip("the native parts are switched off, or there is no C++ compiler")
    assert _native.load_operators(), _native.status().operators_error


# The definition ------------------------------------------------------------------------------------------------------


def _by_loops(
    logits: torch.Tensor, affine: torch.Tensor, grid: tuple[int, int], temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, parts, cells = logits.shape
    keypoints, affines = torch.zeros(batch, parts, 2).double(), torch.zeros(batch, parts, 2, 2).double()
    confidence = torch.zeros(batch, parts).double()
    height, width = grid
    for b in range(batch):
        for k in range(parts):
            total = sum(math.exp(logits[b, k, n].item() / temperature) for n in range(cells))
            for row in range(height):
                for column in range(width):
                    n = row * width + column
                    p = math.exp(logits[b, k, n].item() / temperature) / total
                    keypoints[b, k, 0] += p * (-1 + (column + 0.5) * 2 / width)
                    keypoints[b, k, 1] += p * (-1 + (row + 0.5) * 2 / height)
                    affines[b, k] += p * affine[b, k, n]
                    confidence[b, k] += p**2
    return keypoints, affines, confidence


def test_the_reference_is_what_loops_over_cells_compute() -> None:
    grid = (4, 3)
    logits, affine = (tensor.double() for tensor in case(grid))
    expected = _by_loops(logits, affine, grid, 0.7)
    for result, wanted in zip(
        reference.part_moments(logits, affine, grid=grid, temperature=0.7), expected, strict=True
    ):
        torch.testing.assert_close(result, wanted, rtol=1e-13, atol=1e-13)


def test_the_reference_passes_gradcheck_and_gradgradcheck_with_hidden_cells_and_rows() -> None:
    logits, affine = (tensor.double() for tensor in case((3, 2)))
    logits[0, 0, 2] = -torch.inf
    hidden = torch.zeros(2, 3, 6, dtype=torch.bool)
    hidden[1, 2] = True

    def function(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shown = logits.masked_fill(hidden, -torch.inf)
        return reference.part_moments(shown, affine, grid=(3, 2), temperature=0.5)

    finite = logits.clamp_min(-3.0).requires_grad_()
    affine.requires_grad_()
    assert torch.autograd.gradcheck(function, (finite, affine))
    assert torch.autograd.gradgradcheck(function, (finite, affine), fast_mode=True)


def test_cell_centers_are_those_of_grid_sample() -> None:
    height, width = 3, 5
    image = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij"))[None]
    centers = reference.cell_centers((height, width), dtype=torch.float32).view(1, height, width, 2)
    sampled = torch.nn.functional.grid_sample(image, centers, align_corners=False)
    torch.testing.assert_close(sampled, image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_peak_is_certain_and_a_flat_map_is_not(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits = torch.zeros(1, 2, 128, device=device)
    logits[0, 0, 8 * 3 + 5] = 100.0
    keypoints, affines, confidence = part_moments(logits, grid=(16, 8), impl=impl)
    expected = torch.tensor([[2 * 5.5 / 8 - 1, 2 * 3.5 / 16 - 1], [0.0, 0.0]], device=device)
    torch.testing.assert_close(keypoints[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(confidence[0], torch.tensor([1.0, 1 / 128], device=device))
    torch.testing.assert_close(affines[0], torch.eye(2, device=device).expand(2, 2, 2))


# The compiled kernels by the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_kernel_is_as_accurate_as_eager(backend: tuple[str, str], grid: tuple[int, int], dtype: torch.dtype) -> None:
    logits, affine = case(grid, dtype)
    check(backend, logits, affine, grid)
    check(backend, logits, None, grid)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float32_affines_beside_half_logits_give_float32_results(backend: tuple[str, str], dtype: torch.dtype) -> None:
    impl, device = backend
    logits, affine = case((5, 13))
    logits = logits.to(dtype)
    result = part_moments(logits.to(device), affine.to(device), grid=(5, 13), impl=impl)
    assert {tensor.dtype for tensor in result} == {torch.float32}
    check(backend, logits, affine, (5, 13))


@pytest.mark.parametrize("rows", [(1, 1), (1, 32), (512, 8), (3, 17)], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_any_number_of_rows_is_covered(backend: tuple[str, str], rows: tuple[int, int]) -> None:
    check(backend, *case((4, 2), batch=rows[0], parts=rows[1]), (4, 2))


def _every_second(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.repeat_interleave(2, dim=2)[:, :, ::2], affine.repeat_interleave(2, dim=3)[..., ::2, :]


def _expanded_over_parts(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits[:, :1].expand_as(logits), affine[:, :1].expand_as(affine)


def _one_affine_for_all_cells(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, affine[:, :, :1].expand_as(affine)


def _transposed_matrices(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, affine.mT


def _misaligned(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return misaligned(logits), misaligned(affine)


Layout = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
LAYOUTS: list[Layout] = [
    as_a_projection_leaves_it,
    _every_second,
    _expanded_over_parts,
    _one_affine_for_all_cells,
    _transposed_matrices,
    _misaligned,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_strides_change_nothing(backend: tuple[str, str], layout: Layout, dtype: torch.dtype) -> None:
    for grid in ((16, 8), (9, 7)):
        logits, affine = layout(*case(grid, dtype))
        check(backend, logits, affine, grid)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_gradients_take_the_layout_of_what_they_belong_to(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = as_a_projection_leaves_it(*(tensor.to(device) for tensor in case((16, 8))))
    logits.requires_grad_()
    affine.requires_grad_()
    torch.autograd.backward([result.sum() for result in part_moments(logits, affine, grid=(16, 8), impl=impl)])
    assert logits.grad is not None
    assert affine.grad is not None
    assert logits.grad.stride() == logits.stride()
    assert affine.grad.stride() == affine.stride()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float64_passes_gradcheck_through_the_compiled_code(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.double().to(device).requires_grad_() for tensor in case((5, 13), batch=1, parts=2))
    assert torch.autograd.gradcheck(
        lambda *inputs: part_moments(*inputs, grid=(5, 13), temperature=0.7, impl=impl),
        (logits, affine),
        fast_mode=True,
    )


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_two_runs_and_any_number_of_threads_agree_bitwise(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in case((64, 32), batch=8, parts=10))

    def run() -> dict[str, torch.Tensor]:
        return outputs_and_gradients(lambda *inputs: part_moments(*inputs, grid=(64, 32), impl=impl), logits, affine)

    threads = torch.get_num_threads()
    first, second = run(), run()
    try:
        torch.set_num_threads(1)
        single = run()
    finally:
        torch.set_num_threads(threads)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, single[name]), name


@pytest.mark.parametrize("requires", [(True, False), (False, True)], ids=["logits", "affine"])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_only_what_requires_a_gradient_gets_one(backend: tuple[str, str], requires: tuple[bool, bool]) -> None:
    impl, device = backend
    inputs = [tensor.to(device).requires_grad_(need) for tensor, need in zip(case((4, 2)), requires, strict=True)]
    expected = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, requires, strict=True)]
    for tensors, name in ((inputs, impl), (expected, "reference")):
        part_moments(*tensors, grid=(4, 2), impl=name).affines.square().sum().backward()
    for tensor, wanted, need in zip(inputs, expected, requires, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, wanted.grad)


# Numbers at the edge -------------------------------------------------------------------------------------------------


@needs_native
def test_the_exponential_of_the_cpu_kernel_is_within_two_units_in_the_last_place() -> None:
    """Two cells with logits 0 and x: with the second cell's affine alone not zero, affines = e^x / (1 + e^x)."""
    x = torch.linspace(-87.25, 0.0, 200_001)
    logits = torch.stack((torch.zeros_like(x), x), dim=-1)[:, None]
    affine = torch.zeros(len(x), 1, 2, 2, 2)
    affine[:, :, 1] = 1.0
    result = part_moments(logits, affine, grid=(1, 2), temperature=1.0, impl="cpu").affines[:, 0, 0, 0]
    exponential = x.double().exp()
    expected = exponential / (1 + exponential)
    units = ((result.double() - expected) / expected).abs() / torch.finfo(torch.float32).eps
    # Two for the exponential itself, half a unit each for the sum, the reciprocal and the product.
    assert units.max() < 3.5
    below = part_moments(torch.tensor([[[0.0, -88.0, -1e30, -torch.inf]]]), grid=(2, 2), temperature=1.0, impl="cpu")
    assert below.confidence.item() == 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_halves_keep_infinities_subnormals_and_rounding(backend: tuple[str, str], dtype: torch.dtype) -> None:
    """One cell: P = 1, so that affines are the input's values rounded once, and the gradient of one is the other's."""
    impl, device = backend
    values = torch.tensor(
        [0.0, 1.0, -2.5, 1e-7, 6e-5, 6.2e-5, 65504.0, -1e-6, torch.inf, -torch.inf, torch.nan, 3.1e-8]
    )
    values = values.to(dtype).to(device)
    affine = values.view(3, 1, 1, 2, 2).clone().requires_grad_()
    logits = torch.zeros(3, 1, 1, dtype=dtype, device=device)
    affines = part_moments(logits, affine, grid=(1, 1), impl=impl).affines
    torch.testing.assert_close(affines.flatten(), values, rtol=0, atol=0, equal_nan=True)
    (gradient,) = torch.autograd.grad(affines, affine, values.view_as(affines))
    torch.testing.assert_close(gradient.flatten(), values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hidden_cell_counts_for_nothing(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in case((9, 7)))
    hidden = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).to(device) < 0.4
    logits = logits.masked_fill(hidden, -torch.inf)
    result = outputs_and_gradients(lambda *inputs: part_moments(*inputs, grid=(9, 7), impl=impl), logits, affine)
    assert (result["grad_logits"][hidden] == 0).all()
    assert (result["grad_affine"][hidden] == 0).all()
    for b, k in ((0, 0), (1, 2)):
        shown = ~hidden[b, k]
        weights = torch.softmax(logits[b, k, shown].double() / 0.1, dim=0)
        expected = (weights[:, None, None] * affine[b, k, shown].double()).sum(dim=0)
        torch.testing.assert_close(result["affines"][b, k].double(), expected, rtol=1e-5, atol=1e-6)
    check(backend, logits, affine, (9, 7))


@pytest.mark.parametrize("with_affine", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_hidden_cells_gives_zeros_and_no_gradient(backend: tuple[str, str], with_affine: bool) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in case((16, 8)))
    logits[1, 1] = -torch.inf
    result = outputs_and_gradients(
        lambda *inputs: part_moments(*inputs, grid=(16, 8), impl=impl), logits, affine if with_affine else None
    )
    for name, value in result.items():
        assert (value[1, 1] == 0).all(), name
        assert value[0, 0].isfinite().all(), name
        assert (value[0, 0] != 0).any(), name


@pytest.mark.parametrize("spoiler", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinite_logits_show_in_their_row_alone(backend: tuple[str, str], spoiler: float) -> None:
    impl, device = backend
    for cells in (slice(3, 4), slice(None)):
        logits, affine = (tensor.to(device) for tensor in case((16, 8)))
        logits[0, 1, cells] = spoiler
        for result in part_moments(logits, affine, grid=(16, 8), impl=impl):
            assert result[0, 1].isnan().all()
            assert result[0, 0].isfinite().all()
            assert result[1].isfinite().all()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_large_logits_are_stable(backend: tuple[str, str]) -> None:
    logits, affine = case((16, 8))
    check(backend, 1e4 * logits, affine, (16, 8))
    check(backend, 1e4 + logits, affine, (16, 8))
    check(backend, 1e30 * logits, affine, (16, 8))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (0, 0, 8)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_an_empty_result(backend: tuple[str, str], shape: tuple[int, int, int]) -> None:
    impl, device = backend
    logits = torch.zeros(shape, device=device, requires_grad=True)
    affine = torch.zeros(*shape, 2, 2, device=device, requires_grad=True)
    result = part_moments(logits, affine, grid=(4, 2), impl=impl)
    batch, parts, _ = shape
    assert [tuple(tensor.shape) for tensor in result] == [(batch, parts, 2), (batch, parts, 2, 2), (batch, parts)]
    torch.autograd.backward([tensor.sum() for tensor in result])
    assert logits.grad is not None
    assert affine.grad is not None
    assert logits.grad.shape == logits.shape
    assert affine.grad.shape == affine.shape


@needs_native
@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["accurate_as_eager and cpu and (9x7 or 16x8)", "exponential", "halves", "strides and cpu and misaligned"]
    chosen = " or ".join(f"({test})" for test in tests)
    check_on_older_processors(__file__, capability, chosen)


@needs_native
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="the processor has one variant only")
def test_an_empty_capability_holds_nothing_back() -> None:
    """Variants differ in the last places, by fused multiply-adds: these tell which one ran."""
    code = (
        "import torch; from motarfuse.ops import part_moments; torch.manual_seed(0);"
        "print(part_moments(torch.randn(4, 8, 128), grid=(16, 8), impl='cpu').keypoints.double().sum().item().hex())"
    )
    sums = []
    for capability in (None, "", "baseline"):
        environment = {key: value for key, value in os.environ.items() if key != "MOTARFUSE_CPU_CAPABILITY"}
        if capability is not None:
            environment["MOTARFUSE_CPU_CAPABILITY"] = capability
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        sums.append(result.stdout)
    assert sums[0] == sums[1]
    assert sums[0] != sums[2]
