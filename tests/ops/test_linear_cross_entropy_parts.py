"""Half features beside a float32 weight in linear_cross_entropy's Triton kernels: float32 numbers as sums of half ones.

bfloat16 has a GPU's tests alone; what its third part does is shown in float16.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from motarfuse.kernels import linear_cross_entropy as kernels
from motarfuse.kernels.linear_cross_entropy_kernels import in_parts, in_units, product

from tests.ops.kernel_cases import every_second, expanded_over_the_last, layout_name, misaligned, transposed
from tests.ops.linear_cross_entropy_cases import case, check, outputs_and_gradients
from tests.ops.operator_cases import normal
from tests.ops.triton_cases import DEVICE, GPU, INTERPRETER, Backend, here

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
half_types = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(*backend.values, dtype, id=f"{backend.id}-{dtype}", marks=backend.marks)
        for backend, dtype in ((INTERPRETER, HALF), (GPU, HALF), (GPU, BFLOAT))
    ],
)


@half_types
@pytest.mark.parametrize(
    ("rows", "classes", "width"), [(1, 1, 1), (1, 7, 3), (63, 64, 65), (65, 129, 33), (3, 300, 48), (129, 7, 130)]
)
def test_loss_and_gradients_keep_the_rule_of_float32(
    backend: Backend, dtype: torch.dtype, rows: int, classes: int, width: int
) -> None:
    """Loss and weight's gradient are float32, and as exact as float32 products."""
    check(backend, case(rows, classes, width, dtype, weight_dtype=FLOAT), smoothing=0.1 * (rows % 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize(
    ("rows", "classes", "width"), [(64, 751, 768), (256, 10_000, 768), (1, 1_000_000, 32), (200, 5000, 4096)]
)
def test_large_inputs_keep_the_rule_on_a_gpu(dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    check(("triton", "cuda"), case(rows, classes, width, dtype, weight_dtype=FLOAT), smoothing=0.1)


@half_types
@pytest.mark.parametrize("rows", [60, 100])
def test_tiles_of_every_gpu_keep_the_rule(
    backend: Backend, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for architecture in (80, 90, 100):
        monkeypatch.setattr(kernels, "architecture_of", lambda _, architecture=architecture: architecture)
        check(backend, case(rows, 140, 96, dtype, weight_dtype=FLOAT), smoothing=0.1)


@half_types
def test_a_program_may_go_through_many_tiles(
    backend: Backend, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BUSY", 1)
    check(backend, case(200, 300, 70, dtype, weight_dtype=FLOAT), smoothing=0.1)


@half_types
@pytest.mark.parametrize(
    ("features_exponent", "weight_exponent"), [(-14, 17), (12, -21), (0, 0)], ids=["large", "small", "apart"]
)
def test_a_weight_of_any_magnitude_keeps_its_digits(
    backend: Backend, dtype: torch.dtype, features_exponent: int, weight_exponent: int
) -> None:
    """float16 itself ends at 65504 and has few digits below 6e-5."""
    inputs = case(65, 70, 90, dtype, weight_dtype=FLOAT)
    inputs["features"] *= 2.0**features_exponent
    inputs["weight"] *= 2.0**weight_exponent
    if weight_exponent == 0:  # of classes and columns
        inputs["weight"] *= torch.logspace(-6, 0, 70)[:, None]
        inputs["weight"] *= torch.logspace(-4, 1, 90)
    check(backend, inputs, smoothing=0.1)


@half_types
def test_large_logits_and_weights_with_a_mean_keep_the_rule(backend: Backend, dtype: torch.dtype) -> None:
    check(backend, case(9, 130, 20, dtype, weight_dtype=FLOAT, spread=300.0), smoothing=0.1)
    inputs = case(66, 130, 40, dtype, weight_dtype=FLOAT)
    inputs["weight"] += 3.0
    check(backend, inputs, smoothing=0.1)


@half_types
def test_a_small_share_of_many_classes_does_not_vanish(backend: Backend, dtype: torch.dtype) -> None:
    """e / C is 1e-6, or all of the logits' gradient is small."""
    inputs = case(4, 3000, 16, dtype, weight_dtype=FLOAT, spread=0.5)
    for smoothing in (0.003, 1.0):
        check(backend, inputs, smoothing=smoothing)


@half_types
@pytest.mark.parametrize("layout", [transposed, every_second, misaligned, expanded_over_the_last], ids=layout_name)
def test_views_with_other_strides_are_taken_as_they_are(
    backend: Backend, dtype: torch.dtype, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = case(70, 66, 37, dtype, weight_dtype=FLOAT)
    for name in ("features", "weight"):
        inputs[name] = layout(inputs[name].to(backend[1]))
    check(backend, inputs, smoothing=0.1)


@here
def test_two_runs_are_bitwise_equal() -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in case(65, 70, 40, HALF, weight_dtype=FLOAT).items()}
    first, second = (outputs_and_gradients(inputs, "triton", smoothing=0.1) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "products", "parts"),
    [
        (HALF, HALF, HALF, 1), (BFLOAT, BFLOAT, BFLOAT, 1), (HALF, FLOAT, HALF, 2), (BFLOAT, FLOAT, BFLOAT, 3),
        (FLOAT, HALF, FLOAT, 1), (HALF, BFLOAT, FLOAT, 1), (FLOAT, FLOAT, FLOAT, 1),
    ],
)  # fmt: skip
def test_products_are_of_features_half_type_where_the_weight_is_float32(
    dtype: torch.dtype, weight_dtype: torch.dtype, products: torch.dtype, parts: int
) -> None:
    inputs = case(3, 4, 8, dtype, weight_dtype=weight_dtype)
    problem = kernels.Problem(*inputs.values(), 0.1, 90)
    assert (problem.dtype, problem.parts) == (products, parts)


# The pieces ----------------------------------------------------------------------------------------------------------


@triton.jit
def _parts_kernel(p_values, p_parts, DTYPE: tl.constexpr, PARTS: tl.constexpr):
    places = tl.arange(0, 256)
    first, second, third = in_parts(tl.load(p_values + places), DTYPE, PARTS)
    tl.store(p_parts + places, first)
    tl.store(p_parts + 256 + places, second)
    tl.store(p_parts + 512 + places, third)


@here
@pytest.mark.parametrize(("parts", "digits"), [(1, 11), (2, 22), (3, 24)])
def test_each_part_has_the_digits_that_those_before_it_left(parts: int, digits: int) -> None:
    values = (normal(0)(256).float() + 4.0).to(DEVICE)
    found = torch.empty(3, 256, dtype=HALF, device=DEVICE)
    _parts_kernel[(1,)](values, found, tl.float16, parts)
    rest = (values.double() - found[:parts].double().sum(0)).abs() / values
    assert rest.max() <= (2.0**-digits if digits < 24 else 0.0)
    assert torch.equal(found[0], values.half())


@triton.jit
def _product_kernel(p_parts, p_one, p_result, OF_LEFT: tl.constexpr):
    places = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    one = (tl.load(p_one + places),)
    parts = (tl.load(p_parts + places), tl.load(p_parts + 256 + places), tl.load(p_parts + 512 + places))
    if OF_LEFT:
        result = product(parts, one, 3, 1, tl.float32, "ieee")
    else:
        result = product(one, parts, 1, 3, tl.float32, "ieee")
    tl.store(p_result + places, result)


@here
@pytest.mark.parametrize("of_left", [True, False])
def test_a_product_has_all_three_parts_of_either_side(of_left: bool) -> None:
    draw = normal(0)
    parts, one = (draw(*sizes).mul(8).round().half().to(DEVICE) for sizes in ((3, 16, 16), (16, 16)))
    result = torch.empty(16, 16, device=DEVICE)
    _product_kernel[(1,)](parts, one, result, of_left)
    total = parts.double().sum(0)
    assert torch.equal(result.double(), total @ one.double() if of_left else one.double() @ total)


@triton.jit
def _units_kernel(p_values, p_scaled, p_units):
    places = tl.arange(0, 16)
    scaled, units = in_units(tl.load(p_values + places[:, None] * 4 + tl.arange(0, 4)[None, :]), 1)
    tl.store(p_scaled + places[:, None] * 4 + tl.arange(0, 4)[None, :], scaled)
    tl.store(p_units + places[:, None], units)


@here
def test_units_are_powers_of_two_that_bring_rows_into_float16() -> None:
    largest = torch.tensor([2.0**exponent for exponent in range(-126, 128, 17)] + [3.4e38], device=DEVICE)
    values = largest[:, None] * torch.tensor([1.0, -1.0, 0.5, 0.0], device=DEVICE)
    scaled, units = torch.empty(16, 4, device=DEVICE), torch.empty(16, device=DEVICE)
    _units_kernel[(1,)](values, scaled, units)
    assert torch.equal(scaled.double() * units.double()[:, None], values.double())
    assert ((units.frexp().mantissa == 0.5) & (units > 0)).all()
    assert (scaled[1:, 0] >= 1024).all()
    assert (scaled[:, 0] < 2048).all()


@here
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_shows(value: float) -> None:
    inputs: dict[str, Any] = {n: t.to(DEVICE) for n, t in case(5, 6, 7, HALF, weight_dtype=FLOAT).items()}
    inputs["weight"][2, 3] = value
    assert outputs_and_gradients(inputs, "triton")["out"].isnan()
