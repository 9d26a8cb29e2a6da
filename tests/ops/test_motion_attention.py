"""motion_attention: the definition against explicit loops, its edges, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from motarfuse import ops, reference
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal

NAMES = ("query", "key", "value", "motion_query", "motion_key", "motion_scale", "key_bias")


def case(
    *, heads: int = 2, queries: int = 3, keys: int = 4, width: int = 5, channels: int = 3, shared: bool = True
) -> dict[str, Any]:
    draw = normal(0)
    motion_heads = 1 if shared else heads
    return {
        "query": draw(2, heads, queries, width),
        "key": draw(2, heads, keys, width),
        "value": draw(2, heads, keys, width),
        "motion_query": draw(2, motion_heads, queries, channels),
        "motion_key": draw(2, motion_heads, keys, channels),
        "motion_scale": draw(heads).abs(),
        "key_bias": draw(2, heads, keys),
    }


def by_loops(c: dict[str, torch.Tensor]) -> torch.Tensor:
    """Row by row, with nothing but dot products and exponentials."""
    batch, heads, queries, width = c["query"].shape
    out = torch.zeros_like(c["query"])
    for b in range(batch):
        for h in range(heads):
            motion_head = h if c["motion_query"].shape[1] > 1 else 0
            for i in range(queries):
                weights = []
                for j in range(c["key"].shape[2]):
                    score = torch.dot(c["query"][b, h, i], c["key"][b, h, j]) / math.sqrt(width)
                    motion = torch.dot(c["motion_query"][b, motion_head, i], c["motion_key"][b, motion_head, j])
                    bias = c["key_bias"][b, j] if c["key_bias"].ndim == 2 else c["key_bias"][b, h, j]
                    weights.append(math.exp(score + c["motion_scale"][h] * motion + bias))
                for j, weight in enumerate(weights):
                    out[b, h, i] += weight / sum(weights) * c["value"][b, h, j]
    return out


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bias_per_head", [True, False])
def test_it_is_what_loops_over_queries_and_keys_compute(shared: bool, bias_per_head: bool) -> None:
    c = case(shared=shared)
    if not bias_per_head:
        c["key_bias"] = c["key_bias"][:, 0]
    torch.testing.assert_close(ops.motion_attention(**c), by_loops(c), rtol=1e-12, atol=1e-12)


def test_without_motion_it_is_scaled_dot_product_attention() -> None:
    c = case(queries=7, keys=9, width=16)
    q, k, v = (c[name] for name in NAMES[:3])
    torch.testing.assert_close(ops.motion_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(
        ops.motion_attention(q, k, v, scale=0.3, key_bias=c["key_bias"]),
        F.scaled_dot_product_attention(q, k, v, attn_mask=c["key_bias"][:, :, None], scale=0.3),
    )
    assert torch.equal(
        ops.motion_attention(q, k, v, motion_query=c["motion_query"], motion_key=c["motion_key"]),
        ops.motion_attention(
            q, k, v, motion_query=c["motion_query"], motion_key=c["motion_key"], motion_scale=torch.ones(2).double()
        ),
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bias_per_head", [True, False])
def test_gradients_of_all_seven(shared: bool, bias_per_head: bool) -> None:
    c = case(shared=shared)
    if not bias_per_head:
        c["key_bias"] = c["key_bias"][:, 0]
    check_gradients(lambda *tensors: ops.motion_attention(**dict(zip(NAMES, tensors, strict=True))), *c.values())


def test_hidden_keys_count_for_nothing_and_rows_without_keys_are_zero() -> None:
    c = case()
    c["key_bias"][0, 0, 1] = -torch.inf
    c["key_bias"][1, 1] = -torch.inf
    kept = [0, 2, 3]
    fewer = {
        name: tensor[:1, :1, kept] if name in ("key", "value") else tensor[:1, :1]
        for name, tensor in c.items()
        if name in ("query", "key", "value", "motion_query", "motion_key")
    }
    fewer["motion_key"] = fewer["motion_key"][:, :, kept]
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in c.items()}
    out = ops.motion_attention(**inputs)
    torch.testing.assert_close(
        out[:1, :1],
        ops.motion_attention(**fewer, motion_scale=c["motion_scale"][:1], key_bias=c["key_bias"][:1, :1, kept]),
    )
    assert torch.equal(out[1, 1], torch.zeros(3, 5).double())
    out.square().sum().backward()
    for name, tensor in inputs.items():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all(), name
    for name in ("key", "value"):
        assert torch.equal(inputs[name].grad[0, 0, 1], torch.zeros(5).double())
        assert torch.equal(inputs[name].grad[1, 1], torch.zeros(4, 5).double())
    assert torch.equal(inputs["query"].grad[1, 1], torch.zeros(3, 5).double())


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "channels"), [(2, 3, 0, 4), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 4, 0)]
)
def test_empty_dimensions(batch: int, queries: int, keys: int, channels: int) -> None:
    q, k = torch.randn(batch, 2, queries, 8, requires_grad=True), torch.randn(batch, 2, keys, 8, requires_grad=True)
    mq, mk = torch.randn(batch, 1, queries, channels), torch.randn(batch, 1, keys, channels)
    out = ops.motion_attention(q, k, k, motion_query=mq, motion_key=mk)
    assert out.shape == (batch, 2, queries, 8)
    if keys == 0:
        assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_other_strides_and_half_types() -> None:
    c = case(queries=6, keys=7, width=8)
    call = lambda *tensors: ops.motion_attention(**dict(zip(NAMES, tensors, strict=True)))  # noqa: E731
    check_strides(call, *c.values())
    check_half_types(call, *c.values())
    mixed = {name: tensor.half() if name in NAMES[:3] else tensor.float() for name, tensor in c.items()}
    assert ops.motion_attention(**mixed).dtype == torch.float16


def test_motion_is_not_computed_in_half_precision_under_autocast() -> None:
    c = {name: tensor.float() for name, tensor in case(queries=6, keys=7).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.motion_attention(**c)
    assert torch.equal(inside, ops.motion_attention(**c))


def test_the_packed_entry_takes_a_projection_as_it_is() -> None:
    draw = normal(1)
    qkv = draw(2, 6, 3, 4, 5)
    motion: dict[str, Any] = {"motion_query": draw(2, 1, 6, 3), "motion_key": draw(2, 1, 6, 3), "key_bias": draw(2, 6)}
    query, key, value = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    expected = ops.motion_attention(query, key, value, **motion).transpose(1, 2)
    got = ops.motion_attention_packed(qkv, **motion)
    assert torch.equal(got, expected)
    assert got.flatten(2).shape == (2, 6, 20)
    check_gradients(lambda packed: ops.motion_attention_packed(packed, **motion), qkv)


def test_the_gaussian_affinity_is_the_low_rank_bias() -> None:
    """-lambda/2 |m_i - m_j|^2 as a dense bias and as channels [m, 1] and [m, -|m|^2 / 2] give the same attention."""
    c = case(queries=6, keys=6)
    motion = normal(3)(2, 6, 4)
    dense = -0.5 * torch.cdist(motion, motion)[:, None].square() * c["motion_scale"][:, None, None]
    q, k, v = (c[name] for name in NAMES[:3])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    ones, half = torch.ones(2, 6, 1).double(), -0.5 * motion.square().sum(-1, keepdim=True)
    got = ops.motion_attention(
        q, k, v,
        motion_query=torch.cat((motion, ones), -1)[:, None],
        motion_key=torch.cat((motion, half), -1)[:, None],
        motion_scale=c["motion_scale"],
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


ZERO = torch.zeros
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": None}, TypeError, "query must be a torch.Tensor, got NoneType"),
    ({"query": ZERO(3, 4)}, ValueError, r"query must be \(B, H, N, d\), 4 dimensions; got 2"),
    ({"key": ZERO(2, 2, 4, 6)}, ValueError, r"key must be \(B, H, M, d\) = \(2, 2, 4, 5\)"),
    ({"value": ZERO(2, 2, 3, 5)}, ValueError, r"value must be .* = \(2, 2, 4, 5\)"),
    ({"value": ZERO(2, 2, 4, 5).half()}, TypeError, "value has dtype float16 beside query of float32"),
    ({"query": ZERO(2, 2, 3, 5).int()}, TypeError, "query has dtype int32; supported"),
    ({"motion_key": None}, ValueError, "belong together; motion_key is None"),
    ({"motion_query": None, "motion_key": None}, ValueError, "motion_scale is given without motion_query"),
    ({"motion_query": ZERO(2, 1, 3, 17), "motion_key": ZERO(2, 1, 4, 17)}, ValueError, "has 17 channels"),
    ({"motion_query": ZERO(2, 3, 3, 3)}, ValueError, r"motion_query must be .* = \(2, 2, 3, 3\)"),
    ({"motion_key": ZERO(2, 1, 4, 2)}, ValueError, r"motion_key must be .* = \(2, 1, 4, 3\)"),
    ({"motion_scale": ZERO(3)}, ValueError, r"motion_scale must be \(H,\) = \(2,\)"),
    ({"motion_scale": 2.0}, TypeError, "motion_scale must be a torch.Tensor"),
    ({"motion_scale": ZERO(2).double()}, TypeError, "float64 cannot be mixed"),
    ({"key_bias": ZERO(2, 3)}, ValueError, r"key_bias must be \(B, M\) = \(2, 4\)"),
    ({"key_bias": ZERO(2, 1, 4)}, ValueError, r"key_bias must be \(B, H, M\) = \(2, 2, 4\)"),
    ({"key_bias": ZERO(2, 2, 4, device="meta")}, ValueError, "key_bias is on meta but query is on cpu"),
    ({"scale": "1"}, TypeError, "scale must be a Python number"),
    ({"scale": math.nan}, ValueError, "scale must be finite"),
    ({"impl": "tirton"}, ValueError, "motion_attention has no impl 'tirton'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {name: tensor.float() for name, tensor in case().items()} | change
    with pytest.raises(error, match=message):
        ops.motion_attention(**arguments)


def test_a_packed_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qkv must be \(B, N, 3, H, d\)"):
        ops.motion_attention_packed(ZERO(2, 6, 4, 2, 5))


def test_the_reference_is_what_the_operator_runs_here() -> None:
    c = case()
    assert torch.equal(ops.motion_attention(**c, impl="reference"), reference.motion_attention(**c))
