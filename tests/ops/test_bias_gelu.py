"""bias_gelu: the definition against its formulas written out, its edges, its errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.bias_gelu_cases import ACTIVATIONS
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal

activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def case(*shape: int) -> dict[str, Any]:
    draw = normal(0)
    return {"x": draw(*shape), "bias": draw(shape[-1])}


def by_formula(u: float, activation: str) -> float:
    if activation == "gelu":
        return u * 0.5 * math.erfc(-u / math.sqrt(2))
    if activation == "gelu_tanh":
        return 0.5 * u * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return u / (1 + math.exp(-1.702 * u))


@activations
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 4, 5)], ids=str)
def test_it_is_its_formula(activation: str, shape: tuple[int, ...]) -> None:
    c = case(*shape)
    expected = (c["x"] + c["bias"]).apply_(partial(by_formula, activation=activation))
    torch.testing.assert_close(ops.bias_gelu(**c, activation=activation), expected, rtol=1e-12, atol=1e-12)


@activations
def test_no_bias_is_a_bias_of_zeros(activation: str) -> None:
    x = case(3, 5)["x"]
    zeros = torch.zeros(5).double()
    expected = ops.bias_gelu(x, zeros, activation=activation)
    assert torch.equal(ops.bias_gelu(x, None, activation=activation), expected)


def test_the_default_is_the_exact_one() -> None:
    c = case(3, 5)
    assert torch.equal(ops.bias_gelu(**c), ops.bias_gelu(**c, activation="gelu"))
    assert not torch.equal(ops.bias_gelu(**c), ops.bias_gelu(**c, activation="gelu_tanh"))


@activations
def test_gradients(activation: str) -> None:
    check_gradients(partial(ops.bias_gelu, activation=activation), *case(2, 3, 4).values())
    check_gradients(lambda x: ops.bias_gelu(x, None, activation=activation), case(2, 3)["x"])


@activations
def test_an_empty_batch_other_strides_half_types_and_autocast(activation: str) -> None:
    call = partial(ops.bias_gelu, activation=activation)
    assert call(**case(0, 4, 6)).shape == (0, 4, 6)
    assert call(**case(4, 0)).shape == (4, 0)
    check_strides(call, *case(3, 4, 6).values())
    check_half_types(call, *case(3, 4, 6).values())
    c = {name: tensor.float() for name, tensor in case(3, 4, 6).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(**c), call(*c.values()))
        assert call(**{**c, "x": c["x"].bfloat16()}).dtype == torch.bfloat16


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.tensor(1.0)}, ValueError, r"x must be \(..., C\), one dimension at least"),
    ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
    ({"x": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, "x has dtype int64"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias must be \(C,\) = \(6,\)"),
    ({"bias": torch.zeros(1, 6)}, ValueError, r"bias must be \(C,\), 1 dimensions"),
    ({"bias": torch.zeros(6).double()}, TypeError, "float64 cannot be mixed"),
    ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias is on meta"),
    ({"activation": "relu"}, ValueError, "activation must be one of gelu, gelu_tanh, quick_gelu, got 'relu'"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.bias_gelu(**({name: tensor.float() for name, tensor in case(2, 4, 6).items()} | change))
