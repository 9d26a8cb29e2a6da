"""part_pool: the definition against loops, every backend by the one tolerance rule, edges, errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops import part_pool_cases
from tests.ops.kernel_cases import (
    BACKENDS,
    DTYPES,
    KERNEL_BACKENDS,
    Inputs,
    Layout,
    check_on_older_processors,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    needs_native,
    transposed,
)
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides
from tests.ops.part_pool_cases import RESULTS, SHAPES, as_a_feature_map, check, outputs_and_gradients


def case(batch: int = 2, cells: int = 7, parts: int = 3, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = part_pool_cases.case(cells, torch.float64, batch=batch, parts=parts, channels=channels)
    return inputs["tokens"], inputs["part_logits"]


def on(backend: tuple[str, str], inputs: Mapping[str, torch.Tensor]) -> Inputs:
    return {name: tensor.to(backend[1]) for name, tensor in inputs.items()}


# The definition ------------------------------------------------------------------------------------------------------


def test_it_is_what_loops_over_cells_compute() -> None:
    tokens, logits = case()
    pooled, mass = ops.part_pool(tokens, logits)
    for b in range(2):
        for k in range(3):
            weights = [torch.softmax(logits[b, :, n], 0)[k + 1] for n in range(7)]
            total = sum(weights)
            expected = sum(weight * tokens[b, n] for n, weight in enumerate(weights)) / (total + 1e-6)
            torch.testing.assert_close(pooled[b, k], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mass[b, k], total / 7)


def test_masses_and_the_background_sum_to_one() -> None:
    tokens, logits = case()
    background = torch.softmax(logits, 1)[:, 0].mean(1)
    torch.testing.assert_close(ops.part_pool(tokens, logits).mass.sum(1) + background, torch.ones(2).double())


def test_gradients() -> None:
    with ops.use_backend("reference"):
        check_gradients(ops.part_pool, *case())


def test_other_strides_and_half_types() -> None:
    check_strides(ops.part_pool, *case())
    check_half_types(ops.part_pool, *case())
    tokens, logits = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled, mass = ops.part_pool(tokens.bfloat16(), logits.float())
    assert (pooled.dtype, mass.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(mass, ops.part_pool(tokens, logits).mass.float(), rtol=1e-6, atol=1e-7)


# The kernels by the rule ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_kernel_is_as_accurate_as_eager(
    backend: tuple[str, str], shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    cells, parts, channels = shape
    check(backend, part_pool_cases.case(cells, dtype, parts=parts, channels=channels))


@pytest.mark.parametrize("halves", [("tokens",), ("part_logits",)], ids=["tokens", "logits"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_half_types_may_be_mixed_with_float32(
    backend: tuple[str, str], dtype: torch.dtype, halves: tuple[str, ...]
) -> None:
    inputs = part_pool_cases.case(65, channels=33)
    check(backend, {name: tensor.to(dtype) if name in halves else tensor for name, tensor in inputs.items()})


@pytest.mark.parametrize("results", [("pooled",), ("mass",)], ids=["pooled", "mass"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_loss_may_use_one_of_the_results(
    backend: tuple[str, str], dtype: torch.dtype, results: tuple[str, ...]
) -> None:
    check(backend, part_pool_cases.case(129, dtype, channels=64), results=results)


@pytest.mark.parametrize("batch", [1, 3, 130])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_any_number_of_items_is_covered(backend: tuple[str, str], batch: int) -> None:
    check(backend, part_pool_cases.case(130, batch=batch, channels=20))


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_gradient_too_large_for_the_caches_is_that_of_its_items(backend: tuple[str, str]) -> None:
    inputs = on(backend, part_pool_cases.case(1030, batch=9, channels=144))
    drawn: Inputs = {}
    large = outputs_and_gradients(inputs, backend[0], incoming=drawn.setdefault)

    def of_one_item(item: int) -> dict[str, torch.Tensor]:
        one = {name: tensor[item : item + 1] for name, tensor in inputs.items()}
        return outputs_and_gradients(one, backend[0], incoming=lambda name, _: drawn[name][item : item + 1])

    for item in range(9):
        for name, value in of_one_item(item).items():
            assert torch.equal(value[0], large[name][item]), name


def _without_a_class_token(tensor: torch.Tensor) -> torch.Tensor:
    """Rows where they lie, but items further apart; for part logits the first part is left out."""
    return torch.cat((tensor[:, :1], tensor), dim=1)[:, 1:]


def _rows_of_a_wider_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, tensor), dim=2)[:, :, : tensor.shape[2]]


def _one_row_for_all(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :1].expand_as(tensor)


LAYOUTS: list[Layout] = [
    _without_a_class_token,
    every_second,
    _rows_of_a_wider_tensor,
    expanded_over_the_batch,
    _one_row_for_all,
    expanded_over_the_last,
    misaligned,
    transposed,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_strides_change_nothing(backend: tuple[str, str], layout: Layout, dtype: torch.dtype) -> None:
    for cells, channels in ((67, 37), (128, 32)):
        inputs = part_pool_cases.case(cells, dtype, channels=channels)
        check(backend, {name: layout(tensor) for name, tensor in inputs.items()})


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_gradients_take_the_layout_of_what_they_belong_to(backend: tuple[str, str]) -> None:
    inputs = on(backend, as_a_feature_map(part_pool_cases.case(128, channels=32)))
    gradients = outputs_and_gradients(inputs, backend[0])
    for name, tensor in inputs.items():
        assert gradients[f"grad_{name}"].stride() == tensor.stride() != tensor.contiguous().stride()


@pytest.mark.parametrize("cells", [7, 65])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float64_passes_gradcheck_through_the_compiled_code(backend: tuple[str, str], cells: int) -> None:
    inputs = on(backend, part_pool_cases.case(cells, torch.float64, batch=1, parts=2, channels=9))
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    assert torch.autograd.gradcheck(lambda *tensors: ops.part_pool(*tensors, impl=backend[0]), leaves, fast_mode=True)


@pytest.mark.parametrize("cells", [129, 1032])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_two_runs_and_any_number_of_threads_agree_bitwise(backend: tuple[str, str], batch: int, cells: int) -> None:
    inputs = on(backend, part_pool_cases.case(cells, batch=batch, parts=10, channels=64))
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 1, 2, 3, 8):
            torch.set_num_threads(number)
            found.append(outputs_and_gradients(inputs, backend[0]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("wanted", ["tokens", "part_logits"])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_only_what_requires_a_gradient_gets_one(backend: tuple[str, str], wanted: str) -> None:
    inputs = on(backend, part_pool_cases.case(65, channels=24))
    drawn: Inputs = {}
    both = outputs_and_gradients(inputs, backend[0], incoming=drawn.setdefault)
    leaves = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in inputs.items()}
    torch.autograd.backward(ops.part_pool(**leaves, impl=backend[0]), [drawn[name] for name in RESULTS])
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name == wanted)
        if leaf.grad is not None:
            assert torch.equal(leaf.grad, both[f"grad_{name}"])


# Numbers at the edge -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_without_mass_is_zero_and_finite(backend: tuple[str, str]) -> None:
    inputs = on(backend, part_pool_cases.case(70))
    inputs["part_logits"][:, 2] = -torch.inf
    result = outputs_and_gradients(inputs, backend[0])
    assert torch.equal(result["pooled"][:, 1], torch.zeros_like(result["pooled"][:, 1]))
    assert torch.equal(result["mass"][:, 1], torch.zeros_like(result["mass"][:, 1]))
    assert (result["grad_part_logits"][:, 2] == 0).all()
    assert result["grad_tokens"].isfinite().all()
    check(backend, inputs)


@pytest.mark.parametrize("spoiler", [-torch.inf, torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_whose_masks_are_not_numbers_spoils_its_item_alone(
    backend: tuple[str, str], channels: int, spoiler: float
) -> None:
    inputs = on(backend, part_pool_cases.case(70, batch=3, channels=channels))
    inputs["part_logits"][1, :, 66] = spoiler
    result = outputs_and_gradients(inputs, backend[0])
    for value in result.values():
        assert value[1].isnan().all()
        assert value[::2].isfinite().all()
    check(backend, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel_that_is_not_a_number_is_enough(backend: tuple[str, str]) -> None:
    for k in range(4):
        inputs = on(backend, part_pool_cases.case(9))
        inputs["part_logits"][0, k, 3] = torch.nan
        mass = ops.part_pool(**inputs, impl=backend[0]).mass
        assert mass[0].isnan().all()
        assert mass[1].isfinite().all()


@pytest.mark.parametrize("spoiler", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_is_not_finite_shows_in_its_channel_alone(backend: tuple[str, str], spoiler: float) -> None:
    inputs = on(backend, part_pool_cases.case(65))
    inputs["tokens"][0, 64, 2] = spoiler
    pooled, mass = ops.part_pool(**inputs, impl=backend[0])
    expected = torch.full_like(pooled[0, :, 2], spoiler)
    torch.testing.assert_close(pooled[0, :, 2], expected, equal_nan=True)
    assert pooled[0, :, [0, 1, 3, 4]].isfinite().all()
    assert pooled[1].isfinite().all()
    assert mass.isfinite().all()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_masses_keep_their_digits_down_to_the_smallest(backend: tuple[str, str]) -> None:
    """An image of one cell has its mask as mass: the exponential itself, far below the tolerance of a sum of many."""
    logits = torch.stack((torch.zeros(5000), torch.linspace(-87, 0, 5000)), dim=1)[..., None].to(backend[1])
    mass = ops.part_pool(torch.zeros(5000, 1, 1, device=backend[1]), logits, impl=backend[0]).mass.double()
    exact = torch.softmax(logits.double(), 1)[:, 1]
    assert ((mass - exact).abs() / exact).max() < 1e-6


@pytest.mark.parametrize("below", [12.0, 17.0, 60.0])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_parts_of_hardly_any_mass_keep_the_rule(backend: tuple[str, str], below: float) -> None:
    inputs = part_pool_cases.case(70, channels=24, spread=1.0)
    inputs["part_logits"][:, 1:] -= below
    check(backend, inputs)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_large_logits_and_tokens_are_stable(backend: tuple[str, str]) -> None:
    inputs = part_pool_cases.case(130)
    check(backend, inputs | {"part_logits": 100 * inputs["part_logits"]})
    check(backend, inputs | {"part_logits": 1e4 + inputs["part_logits"]})
    check(backend, inputs | {"part_logits": 1e30 * inputs["part_logits"]})
    check(backend, inputs | {"tokens": 1e15 * inputs["tokens"]})


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_sums_of_many_tokens_of_one_sign_keep_their_digits(backend: tuple[str, str]) -> None:
    inputs = part_pool_cases.case(6000, channels=16, spread=0.1)
    check(backend, inputs | {"tokens": inputs["tokens"].abs() + 1})


@pytest.mark.parametrize(
    ("batch", "cells", "parts", "channels"), [(0, 7, 3, 5), (2, 0, 3, 5), (2, 7, 0, 5), (2, 7, 3, 0)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_dimensions(backend: tuple[str, str], batch: int, cells: int, parts: int, channels: int) -> None:
    inputs = on(backend, part_pool_cases.case(cells, batch=batch, parts=parts, channels=channels))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    pooled, mass = ops.part_pool(**leaves, impl=backend[0])
    assert (pooled.shape, mass.shape) == ((batch, parts, channels), (batch, parts))
    if not cells:
        assert torch.equal(pooled, torch.zeros_like(pooled))
        assert torch.equal(mass, torch.zeros_like(mass))
    torch.autograd.backward([pooled.sum(), mass.sum()])
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()


@needs_native
@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = [
        "accurate_as_eager and cpu and (65x or 129x or 138x or 516x)",
        "gradcheck",
        "strides and cpu and (misaligned or transposed)",
        "spoils and cpu",
        "too_large and cpu",
        "smallest and cpu",
        "hardly_any_mass and cpu",
    ]
    chosen = " or ".join(f"({test})" for test in tests)
    check_on_older_processors(__file__, capability, chosen)


# Errors --------------------------------------------------------------------------------------------------------------


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tokens": None}, TypeError, "tokens must be a torch.Tensor"),
    ({"tokens": torch.zeros(2, 7)}, ValueError, r"tokens must be \(B, N, C\)"),
    ({"part_logits": torch.zeros(2, 7)}, ValueError, r"part_logits must be \(B, K \+ 1, N\), 3 dimensions"),
    ({"part_logits": torch.zeros(2, 0, 7)}, ValueError, "background included"),
    ({"part_logits": torch.zeros(2, 4, 8)}, ValueError, r"= \(2, 4, 7\) to fit tokens"),
    ({"part_logits": torch.zeros(2, 4, 7).double()}, TypeError, "float64 cannot be mixed"),
    ({"part_logits": torch.zeros(2, 4, 7).bool()}, TypeError, "part_logits has dtype bool"),
    ({"part_logits": torch.zeros(2, 4, 7, device="meta")}, ValueError, "part_logits is on meta"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    tokens, logits = case()
    with pytest.raises(error, match=message):
        ops.part_pool(**({"tokens": tokens.float(), "part_logits": logits.float()} | change))
