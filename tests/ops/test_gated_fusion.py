"""gated_fusion: the definition against its formula written out, its edges, its errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from motarfuse import ops
from tests.ops.kernel_cases import needs_native
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal


def case(*shape: int) -> dict[str, Any]:
    draw = normal(0)
    return {
        "x": draw(*shape),
        "motion": draw(*shape),
        "gate_logits": 3 * draw(*shape),
        "weight": draw(shape[-1]),
        "bias": draw(shape[-1]),
    }


on_the_cpu = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_native)])


@on_the_cpu
@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 6), (2, 3, 4, 5)], ids=str)
def test_it_is_its_formula(shape: tuple[int, ...], impl: str) -> None:
    c = case(*shape)
    total = c["x"] + c["motion"] / (1 + (-c["gate_logits"]).exp())
    mean = total.mean(-1, keepdim=True)
    variance = total.square().mean(-1, keepdim=True) - mean.square()
    expected = (total - mean) / (variance + 1e-3).sqrt() * c["weight"] + c["bias"]
    torch.testing.assert_close(ops.gated_fusion(**c, eps=1e-3, impl=impl), expected, rtol=1e-10, atol=1e-10)


@on_the_cpu
def test_a_closed_gate_and_no_motion_leave_a_layer_norm(impl: str) -> None:
    c = case(2, 4, 6)
    plain = torch.nn.functional.layer_norm(c["x"], (6,), c["weight"], c["bias"], 1e-6)
    closed = torch.full_like(c["x"], -1e4)
    for change in ({"gate_logits": closed}, {"motion": torch.zeros_like(c["x"])}):
        torch.testing.assert_close(ops.gated_fusion(**(c | change), impl=impl), plain, rtol=1e-13, atol=1e-14)


def test_gradients() -> None:
    check_gradients(partial(ops.gated_fusion, impl="reference"), *case(2, 3, 4).values())


@on_the_cpu
def test_gradients_of_saturated_gates_are_finite(impl: str) -> None:
    c = {name: tensor.float().requires_grad_() for name, tensor in case(2, 3, 4).items()}
    ops.gated_fusion(**{**c, "gate_logits": c["gate_logits"] * 1e4}, impl=impl).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in c.values())


@on_the_cpu
def test_an_empty_batch_other_strides_and_half_types(impl: str) -> None:
    call = partial(ops.gated_fusion, impl=impl)
    assert call(**case(0, 4, 6)).shape == (0, 4, 6)
    check_strides(call, *case(3, 4, 6).values())
    check_half_types(call, *case(3, 4, 6).values())
    c = {name: tensor.float() for name, tensor in case(3, 4, 6).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(**c), call(*c.values()))
        assert call(**{**c, "motion": c["motion"].bfloat16()}).dtype == torch.float32


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(6)}, ValueError, r"x must be \(B, ..., C\)"),
    ({"motion": torch.zeros(2, 1, 6)}, ValueError, r"motion must have the shape of x, \(2, 4, 6\); got \(2, 1, 6\)"),
    ({"gate_logits": torch.zeros(2, 4)}, ValueError, "gate_logits must have the shape of x"),
    ({"gate_logits": None}, TypeError, "gate_logits must be a torch.Tensor"),
    ({"weight": torch.zeros(5)}, ValueError, r"weight must be \(C,\) = \(6,\)"),
    ({"bias": torch.zeros(6).double()}, TypeError, "float64 cannot be mixed"),
    ({"bias": torch.zeros(6, device="meta")}, ValueError, "bias is on meta"),
    ({"eps": -1.0}, ValueError, "eps must be finite and greater than 0"),
    ({"eps": "1"}, TypeError, "eps must be a Python number"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.gated_fusion(**({name: tensor.float() for name, tensor in case(2, 4, 6).items()} | change))
