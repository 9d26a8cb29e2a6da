"""part_moments: every backend by the one tolerance rule, the definition against loops over cells, and its edges."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from motarfuse import _native, ops, reference
from motarfuse.ops import part_moments
from motarfuse.ops.part_moments import KERNELS, PartMoments
from tests.tolerance import assert_close

NAMES = ("keypoints", "affines", "confidence", "grad_logits", "grad_affine")
GRIDS = [(1, 1), (7, 1), (9, 7), (16, 4), (5, 13), (16, 8), (3, 43), (2, 69), (1, 193), (64, 32)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

needs_native = pytest.mark.skipif(
    not _native.load_operators(), reason=f"motarfuse._C is not loaded: {_native.status().operators_error}"
)
BACKENDS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu", marks=needs_native),
    pytest.param(("cuda", "cuda"), id="cuda", marks=[pytest.mark.gpu, needs_native]),
]
KERNEL_BACKENDS = BACKENDS[1:]


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Fresh memory is NaN, so that an output which a kernel does not write cannot pass."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_the_native_library_is_built_where_a_compiler_is() -> None:
    if os.environ.get("MOTARFUSE_DISABLE_NATIVE", "0") not in ("", "0") or shutil.which("c++") is None:
        pytest.skip("the native parts are switched off, or there is no C++ compiler")
    assert _native.load_operators(), _native.status().operators_error


def _case(
    grid: tuple[int, int], dtype: torch.dtype = torch.float32, *, batch: int = 2, parts: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    logits = torch.randn(batch, parts, cells, generator=generator)
    affine = torch.eye(2) + 0.4 * torch.tanh(torch.randn(batch, parts, cells, 2, 2, generator=generator))
    return logits.to(dtype), affine.to(dtype)


def _gradients_of_results(batch: int, parts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, parts, *rest, generator=generator) for rest in ((2,), (2, 2), ())]


def _outputs_and_gradients(
    function: Callable[..., PartMoments], logits: torch.Tensor, affine: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    affine = None if affine is None else affine.detach().requires_grad_()
    results = function(logits, affine)
    wanted = [logits] if affine is None else [logits, affine]
    incoming = [
        gradient.to(result) for gradient, result in zip(_gradients_of_results(*logits.shape[:2]), results, strict=True)
    ]
    gradients = torch.autograd.grad(results, wanted, incoming)
    return dict(zip(NAMES, [*results, *gradients], strict=False))


def _check(backend: tuple[str, str], logits: torch.Tensor, affine: torch.Tensor | None, grid: tuple[int, int]) -> None:
    """The rule of tests/tolerance.py for outputs and gradients, with and without affines that require gradients."""
    impl, device = backend
    logits, affine = logits.to(device), None if affine is None else affine.to(device)

    def run(impl: str) -> Callable[..., PartMoments]:
        return lambda logits, affine: part_moments(logits, affine, grid=grid, temperature=0.3, impl=impl)

    exact = _outputs_and_gradients(run("reference"), logits.double(), None if affine is None else affine.double())
    eager = _outputs_and_gradients(run("reference"), logits, affine)
    result = _outputs_and_gradients(run(impl), logits, affine)
    assert list(result) == list(exact)
    for name, value in result.items():
        if value.dtype == torch.float64:  # the reference is no better than the kernel there
            torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-13, msg=name)
        else:
            assert_close(name, value, eager[name], exact[name])


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
    logits, affine = (tensor.double() for tensor in _case(grid))
    expected = _by_loops(logits, affine, grid, 0.7)
    for result, wanted in zip(reference.part_moments(logits, affine, grid=grid, temperature=0.7), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-13, atol=1e-13)


def test_the_reference_passes_gradcheck_and_gradgradcheck_with_hidden_cells_and_rows() -> None:
    logits, affine = (tensor.double() for tensor in _case((3, 2)))
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
    logits, affine = _case(grid, dtype)
    _check(backend, logits, affine, grid)
    _check(backend, logits, None, grid)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float32_affines_beside_half_logits_give_float32_results(backend: tuple[str, str], dtype: torch.dtype) -> None:
    impl, device = backend
    logits, affine = _case((5, 13))
    logits = logits.to(dtype)
    result = part_moments(logits.to(device), affine.to(device), grid=(5, 13), impl=impl)
    assert {tensor.dtype for tensor in result} == {torch.float32}
    _check(backend, logits, affine, (5, 13))


@pytest.mark.parametrize("rows", [(1, 1), (1, 32), (512, 8), (3, 17)], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_any_number_of_rows_is_covered(backend: tuple[str, str], rows: tuple[int, int]) -> None:
    _check(backend, *_case((4, 2), batch=rows[0], parts=rows[1]), (4, 2))


def _as_a_projection_leaves_it(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.transpose(1, 2).contiguous().transpose(1, 2), affine.transpose(1, 2).contiguous().transpose(1, 2)


def _every_second(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.repeat_interleave(2, dim=2)[:, :, ::2], affine.repeat_interleave(2, dim=3)[..., ::2, :]


def _expanded_over_parts(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits[:, :1].expand_as(logits), affine[:, :1].expand_as(affine)


def _one_affine_for_all_cells(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, affine[:, :, :1].expand_as(affine)


def _transposed_matrices(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits, affine.mT


def _misaligned(logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def shift(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view_as(tensor)

    return shift(logits), shift(affine)


LAYOUTS = [
    _as_a_projection_leaves_it,
    _every_second,
    _expanded_over_parts,
    _one_affine_for_all_cells,
    _transposed_matrices,
    _misaligned,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_strides_change_nothing(
    backend: tuple[str, str], layout: Callable[..., tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype
) -> None:
    for grid in ((16, 8), (9, 7)):
        logits, affine = layout(*_case(grid, dtype))
        _check(backend, logits, affine, grid)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_gradients_take_the_layout_of_what_they_belong_to(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = _as_a_projection_leaves_it(*(tensor.to(device) for tensor in _case((16, 8))))
    logits.requires_grad_()
    affine.requires_grad_()
    sum(result.sum() for result in part_moments(logits, affine, grid=(16, 8), impl=impl)).backward()
    assert logits.grad.stride() == logits.stride()
    assert affine.grad.stride() == affine.stride()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float64_passes_gradcheck_through_the_compiled_code(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.double().to(device).requires_grad_() for tensor in _case((5, 13), batch=1, parts=2))
    assert torch.autograd.gradcheck(
        lambda *inputs: part_moments(*inputs, grid=(5, 13), temperature=0.7, impl=impl), (logits, affine), fast_mode=True
    )


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_two_runs_and_any_number_of_threads_agree_bitwise(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in _case((64, 32), batch=8, parts=10))

    def run() -> dict[str, torch.Tensor]:
        return _outputs_and_gradients(lambda *inputs: part_moments(*inputs, grid=(64, 32), impl=impl), logits, affine)

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
    inputs = [tensor.to(device).requires_grad_(need) for tensor, need in zip(_case((4, 2)), requires, strict=True)]
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
    below = part_moments(
        torch.tensor([[[0.0, -88.0, -1e30, -torch.inf]]]), grid=(2, 2), temperature=1.0, impl="cpu"
    )
    assert below.confidence.item() == 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_halves_keep_infinities_subnormals_and_rounding(backend: tuple[str, str], dtype: torch.dtype) -> None:
    """One cell: P = 1, so that affines are the input's values rounded once, and the gradient of one is the other's."""
    impl, device = backend
    values = torch.tensor([0.0, 1.0, -2.5, 1e-7, 6e-5, 6.2e-5, 65504.0, -1e-6, torch.inf, -torch.inf, torch.nan, 3.1e-8])
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
    logits, affine = (tensor.to(device) for tensor in _case((9, 7)))
    hidden = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).to(device) < 0.4
    logits = logits.masked_fill(hidden, -torch.inf)
    result = _outputs_and_gradients(lambda *inputs: part_moments(*inputs, grid=(9, 7), impl=impl), logits, affine)
    assert (result["grad_logits"][hidden] == 0).all()
    assert (result["grad_affine"][hidden] == 0).all()
    for b, k in ((0, 0), (1, 2)):
        shown = ~hidden[b, k]
        weights = torch.softmax(logits[b, k, shown].double() / 0.1, dim=0)
        expected = (weights[:, None, None] * affine[b, k, shown].double()).sum(dim=0)
        torch.testing.assert_close(result["affines"][b, k].double(), expected, rtol=1e-5, atol=1e-6)
    _check(backend, logits, affine, (9, 7))


@pytest.mark.parametrize("with_affine", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_hidden_cells_gives_zeros_and_no_gradient(backend: tuple[str, str], with_affine: bool) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in _case((16, 8)))
    logits[1, 1] = -torch.inf
    result = _outputs_and_gradients(
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
        logits, affine = (tensor.to(device) for tensor in _case((16, 8)))
        logits[0, 1, cells] = spoiler
        for result in part_moments(logits, affine, grid=(16, 8), impl=impl):
            assert result[0, 1].isnan().all()
            assert result[0, 0].isfinite().all()
            assert result[1].isfinite().all()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_large_logits_are_stable(backend: tuple[str, str]) -> None:
    logits, affine = _case((16, 8))
    _check(backend, 1e4 * logits, affine, (16, 8))
    _check(backend, 1e4 + logits, affine, (16, 8))
    _check(backend, 1e30 * logits, affine, (16, 8))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (0, 0, 8)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_an_empty_result(backend: tuple[str, str], shape: tuple[int, int, int]) -> None:
    impl, device = backend
    logits = torch.zeros(shape, device=device, requires_grad=True)
    affine = torch.zeros(*shape, 2, 2, device=device, requires_grad=True)
    result = part_moments(logits, affine, grid=(4, 2), impl=impl)
    batch, parts, _ = shape
    assert [tuple(tensor.shape) for tensor in result] == [(batch, parts, 2), (batch, parts, 2, 2), (batch, parts)]
    sum(tensor.sum() for tensor in result).backward()
    assert logits.grad.shape == logits.shape
    assert affine.grad.shape == affine.shape


@needs_native
@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["accurate_as_eager and cpu and (9x7 or 16x8)", "exponential", "halves", "strides and cpu and misaligned"]
    chosen = " or ".join(f"({test})" for test in tests)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", chosen],
        env={**os.environ, "MOTARFUSE_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


# torch's machinery ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_half_inputs_give_float32_results(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in _case((16, 8), torch.bfloat16))
    with torch.autocast(device, torch.bfloat16):
        result = part_moments(logits, affine, grid=(16, 8), impl=impl)
        mixed = part_moments(logits.float(), affine, grid=(16, 8), impl=impl)
    expected = part_moments(logits.double(), affine.double(), grid=(16, 8), impl="reference")
    for tensors in (result, mixed):
        for tensor, wanted in zip(tensors, expected, strict=True):
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_affine", [True, False])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_the_registered_operators_pass_opcheck(backend: tuple[str, str], with_affine: bool) -> None:
    _, device = backend
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    kernels = KERNELS.native_kernels
    logits, affine = (tensor.to(device) for tensor in _as_a_projection_leaves_it(*_case((4, 2))))
    inputs = (logits, affine if with_affine else None)
    torch.library.opcheck(kernels.forward, (*inputs, 4, 2, 0.1, torch.float32, False))
    torch.library.opcheck(kernels.forward, (*inputs, 4, 2, 0.1, torch.float32, True))
    statistics = kernels.forward(*inputs, 4, 2, 0.1, torch.float32, True)[3]
    incoming = [gradient.to(device) for gradient in _gradients_of_results(2, 3)]
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(kernels.backward, (*incoming, *inputs, statistics, 4, 2, 0.1, *needs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_takes_it_whole_and_recompiles_once_for_all_batch_sizes(backend: tuple[str, str]) -> None:
    impl, device = backend
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(logits: torch.Tensor, affine: torch.Tensor) -> PartMoments:
        return part_moments(logits, affine, grid=(16, 8), impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch in (2, 3, 4, 5):
        logits, affine = (tensor.to(device) for tensor in _case((16, 8), batch=batch))
        result = _outputs_and_gradients(compiled, logits, affine)
        expected = _outputs_and_gradients(function, logits, affine)
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert counter.frame_count == 2


@needs_native
def test_a_compiled_graph_notices_a_changed_preference() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        lambda logits: part_moments(logits, grid=(16, 8)).confidence, fullgraph=True, backend=counter
    )
    logits, _ = _case((16, 8))
    compiled(logits)
    kernels = KERNELS.native_kernels

    def calls_the_kernel() -> list[bool]:
        return [any(node.target is kernels.forward for node in graph.graph.nodes) for graph in counter.graphs]

    assert calls_the_kernel() == [True]
    with ops.use_backend("reference"):
        compiled(logits)
    assert calls_the_kernel() == [True, False]
    compiled(logits)
    assert counter.frame_count == 2


def test_inductor_runs_it_inside_a_larger_graph() -> None:
    torch._dynamo.reset()

    def function(logits: torch.Tensor) -> torch.Tensor:
        return part_moments(2 * logits, grid=(4, 2)).keypoints.sum(dim=1).sin()

    logits, _ = _case((4, 2))
    compiled = torch.compile(function, fullgraph=True)
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(leaf).sum().backward()
    function(other).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


class _Module(torch.nn.Module):
    def forward(self, logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part_moments(logits, affine, grid=(16, 8)))


def test_export_keeps_it_as_one_operator_with_a_dynamic_batch() -> None:
    logits, affine = _case((16, 8))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_Module(), (logits, affine), dynamic_shapes=({0: batch}, {0: batch}))
    if _native.load_operators():
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert torch.ops.motarfuse.part_moments_forward.default in targets
    logits, affine = _case((16, 8), batch=7)
    for result, wanted in zip(program.module()(logits, affine), part_moments(logits, affine, grid=(16, 8)), strict=True):
        torch.testing.assert_close(result, wanted)


@needs_native
def test_torch_func_transforms_are_served_by_the_reference() -> None:
    logits, _ = _case((4, 2))

    def loss(logits: torch.Tensor, impl: str = "auto") -> torch.Tensor:
        return part_moments(logits, grid=(4, 2), impl=impl).confidence.sum()

    leaf = logits.clone().requires_grad_()
    loss(leaf, "cpu").backward()
    torch.testing.assert_close(torch.func.grad(loss)(logits), leaf.grad)
    each = torch.func.vmap(lambda one: loss(one[None]))(logits)
    torch.testing.assert_close(each.sum(), loss(logits))
    with pytest.raises(RuntimeError, match="torch.func transforms"):
        torch.func.grad(loss)(logits, "cpu")


@needs_native
def test_the_second_derivative_of_the_kernel_raises() -> None:
    logits = _case((4, 2))[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        part_moments(logits, grid=(4, 2), impl="cpu").confidence.sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="part_moments: compiled kernels are differentiable once; use impl='ref"):
        gradient.sum().backward()


# Errors --------------------------------------------------------------------------------------------------------------

LOGITS = torch.zeros(2, 3, 8)
AFFINE = torch.zeros(2, 3, 8, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(2, 8),), {}, ValueError, r"logits must be \(B, K, N\), 3 dimensions; got 2, shape \(2, 8\)"),
        ((LOGITS, torch.zeros(2, 3, 8, 4)), {}, ValueError, r"affine must be \(B, K, N, 2, 2\), 5 dimensions; got 4"),
        (
            (LOGITS, torch.zeros(2, 3, 9, 2, 2)),
            {},
            ValueError,
            r"affine must be .* = \(2, 3, 8, 2, 2\) to fit logits; got shape \(2, 3, 9, 2, 2\)",
        ),
        ((LOGITS.int(),), {}, TypeError, "logits has dtype int32; supported: float16, bfloat16, float32, float64"),
        ((LOGITS, AFFINE.long()), {}, TypeError, "affine has dtype int64; supported"),
        ((LOGITS, AFFINE.double()), {}, TypeError, "affine has dtype float64 beside logits of float32; supported"),
        ((LOGITS, AFFINE.half()), {}, TypeError, "affine has dtype float16 beside logits of float32; supported"),
        (([[[0.0]]],), {}, TypeError, r"logits must be a torch\.Tensor, got list"),
        ((LOGITS.to_sparse(),), {}, TypeError, r"logits must be a dense tensor.*to_dense"),
        ((LOGITS, AFFINE.to("meta")), {}, ValueError, "affine is on meta but logits is on cpu; move them"),
        ((LOGITS,), {"grid": (3, 2)}, ValueError, r"grid \(3, 2\) has 6 cells, but logits has 8; N must be h\*w"),
        ((LOGITS,), {"grid": (-2, -4)}, ValueError, r"grid must be positive, got \(-2, -4\)"),
        ((LOGITS[..., :0],), {"grid": (0, 4)}, ValueError, r"grid must be positive, got \(0, 4\)"),
        ((LOGITS,), {"grid": (4.0, 2)}, TypeError, r"grid must be a pair of integers \(h, w\), got \(4.0, 2\)"),
        ((LOGITS,), {"grid": 8}, TypeError, r"grid must be a pair of integers \(h, w\), got 8"),
        ((LOGITS,), {"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0, got 0.0"),
        ((LOGITS,), {"temperature": -1}, ValueError, "temperature must be finite and greater than 0, got -1"),
        ((LOGITS,), {"temperature": math.nan}, ValueError, "temperature must be finite and greater than 0, got nan"),
        ((LOGITS,), {"temperature": math.inf}, ValueError, "temperature must be finite and greater than 0, got inf"),
        ((LOGITS,), {"temperature": torch.ones(())}, TypeError, "temperature must be a Python number, got Tensor"),
        ((LOGITS,), {"impl": "tirton"}, ValueError, "part_moments has no impl 'tirton'; known: auto, cuda, cpu, refer"),
        ((LOGITS,), {"impl": "cuda"}, RuntimeError, "impl='cuda' cannot run here: .*it takes cuda tensors, got cpu"),
    ],
)
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        part_moments(*arguments, **{"grid": (4, 2), **options})


@pytest.mark.gpu
def test_mixed_devices_are_named() -> None:
    with pytest.raises(ValueError, match="affine is on cuda:0 but logits is on cpu"):
        part_moments(LOGITS, AFFINE.cuda(), grid=(4, 2))


@needs_native
def test_direct_calls_of_the_operator_cannot_read_out_of_bounds() -> None:
    with pytest.raises(RuntimeError, match="logits has a shape that does not fit"):
        torch.ops.motarfuse.part_moments_forward(LOGITS, None, 5, 2, 0.1, torch.float32, False)
    with pytest.raises(RuntimeError, match="statistics has a shape that does not fit"):
        torch.ops.motarfuse.part_moments_backward(
            *_gradients_of_results(2, 3), LOGITS, None, torch.zeros(2, 3, 8), 4, 2, 0.1, True, False
        )
