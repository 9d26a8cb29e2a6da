"""add_layer_norm: the definition against its formula written out, its edges, its errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.kernel_cases import needs_native
from tests.ops.operator_cases import check_gradients, check_strides, normal


def case(*shape: int) -> dict[str, Any]:
    draw = normal(0)
    return {
        "x": draw(*shape),
        "residual": draw(*shape),
        "weight": draw(shape[-1]),
        "bias": draw(shape[-1]),
        "layer_scale": draw(shape[-1]),
        "sample_scale": draw(shape[0]),
    }


def call(*tensors: Any, impl: str = "auto") -> tuple[torch.Tensor, ...]:
    *first, layer_scale, sample_scale = tensors
    return ops.add_layer_norm(*first, layer_scale=layer_scale, sample_scale=sample_scale, impl=impl)


on_the_cpu = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_native)])


@on_the_cpu
@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 6), (2, 3, 4, 5), (2, 3, 1)], ids=str)
def test_it_is_its_formula(shape: tuple[int, ...], impl: str) -> None:
    c = case(*shape)
    normed, total = ops.add_layer_norm(**c, eps=1e-3, impl=impl)
    for b in range(shape[0]):
        expected = c["residual"][b] + c["sample_scale"][b] * (c["layer_scale"] * c["x"][b])
        torch.testing.assert_close(total[b], expected)
        mean = expected.sum(-1, keepdim=True) / shape[-1]
        variance = ((expected - mean) ** 2).sum(-1, keepdim=True) / shape[-1]
        torch.testing.assert_close(normed[b], (expected - mean) / (variance + 1e-3).sqrt() * c["weight"] + c["bias"])


@on_the_cpu
def test_without_scales_it_is_a_sum_and_a_layer_norm(impl: str) -> None:
    c = case(2, 4, 6)
    c.pop("layer_scale")
    c.pop("sample_scale")
    normed, total = ops.add_layer_norm(**c, impl=impl)
    assert torch.equal(total, c["x"] + c["residual"])
    expected = torch.nn.functional.layer_norm(total, (6,), c["weight"], c["bias"], 1e-6)
    torch.testing.assert_close(normed, expected, rtol=1e-13, atol=1e-14)


@on_the_cpu
def test_a_dropped_sample_keeps_its_residual(impl: str) -> None:
    c = case(3, 4, 6)
    c["sample_scale"] = torch.tensor([0.0, 2.0, 0.0]).double()
    total = ops.add_layer_norm(**c, impl=impl).sum
    assert torch.equal(total[0], c["residual"][0])
    assert not torch.equal(total[1], c["residual"][1])


def test_gradients() -> None:
    check_gradients(partial(call, impl="reference"), *case(2, 3, 4).values())


@on_the_cpu
def test_an_empty_batch(impl: str) -> None:
    normed, total = ops.add_layer_norm(**case(0, 4, 6), impl=impl)
    assert normed.shape == total.shape == (0, 4, 6)


@on_the_cpu
def test_other_strides_and_a_half_branch_beside_a_float32_stream(impl: str) -> None:
    check_strides(partial(call, impl=impl), *case(3, 4, 6).values())
    c = {name: tensor.float() for name, tensor in case(3, 4, 6).items()}
    c["x"] = c["x"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed, total = ops.add_layer_norm(**c, impl=impl)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    exact = ops.add_layer_norm(**{name: tensor.double() for name, tensor in c.items()})
    torch.testing.assert_close(total, exact.sum.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normed.double(), exact.normed, rtol=2.0**-8, atol=1e-6)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": None}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(6)}, ValueError, r"x must be \(B, ..., C\)"),
    ({"x": torch.zeros(2, 4, 0)}, ValueError, "at least one channel"),
    ({"residual": torch.zeros(2, 4, 5)}, ValueError, r"residual must have the shape of x, \(2, 4, 6\)"),
    ({"residual": None}, TypeError, "residual must be a torch.Tensor"),
    ({"weight": torch.zeros(5)}, ValueError, r"weight must be \(C,\) = \(6,\)"),
    ({"bias": torch.zeros(6, 1)}, ValueError, r"bias must be \(C,\), 1 dimensions"),
    ({"layer_scale": torch.zeros(1)}, ValueError, r"layer_scale must be \(C,\)"),
    ({"sample_scale": torch.zeros(3)}, ValueError, r"sample_scale must be \(B,\) = \(2,\)"),
    ({"sample_scale": 0.5}, TypeError, "sample_scale must be a torch.Tensor"),
    ({"weight": torch.zeros(6).double()}, TypeError, "float64 cannot be mixed"),
    ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias is on meta"),
    ({"eps": 0.0}, ValueError, "eps must be finite and greater than 0"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.add_layer_norm(**({name: tensor.float() for name, tensor in case(2, 4, 6).items()} | change))
