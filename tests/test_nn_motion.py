"""The layers that use motion: attention, adapter, gated fusion, part pooling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motarfuse.nn import (
    Block,
    GatedFusion,
    MotionAttention,
    MotionCrossAttention,
    PartPool,
    TokenMotion,
    VisualAdapter,
    motion_channels,
)
from motarfuse.ops import part_pool
from tests.ops.operator_cases import normal

MOVING = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 1, 1]]).double()


def affinity(motion: Tensor, moving: Tensor) -> Tensor:
    """-|m_i - m_j|^2 / 2 between moving tokens, 0 otherwise, pair by pair."""
    batch, length, _ = motion.shape
    bias = torch.zeros(batch, length, length, dtype=motion.dtype)
    for b in range(batch):
        for i in range(length):
            for j in range(length):
                if moving[b, i] and moving[b, j]:
                    bias[b, i, j] = -0.5 * (motion[b, i] - motion[b, j]).square().sum()
    return bias


def test_motion_channels_are_the_gaussian_affinity_and_neutral_for_class_tokens() -> None:
    motion = normal(0)(2, 6, 8)
    query, key = motion_channels(motion, MOVING)
    assert query.shape == key.shape == (2, 6, 10)
    product = query @ key.transpose(1, 2)
    constant = 0.5 * MOVING * motion.square().sum(-1)
    torch.testing.assert_close(product - constant[..., None], affinity(motion, MOVING), rtol=1e-12, atol=1e-12)
    # A token without motion gives every key the same score, to the last bit: zero.
    assert torch.equal(product[0, 0], torch.zeros(6).double())


def test_times_add_their_own_affinity_for_all_tokens() -> None:
    motion, time = normal(0)(2, 6, 8), torch.tensor([-1.5, -1.5, 0.0, 0.5, 1.0, 1.5]).double().expand(2, 6)
    query, key = motion_channels(motion, MOVING, time, 0.7)
    assert query.shape == (2, 6, 12)
    scores = query @ key.transpose(1, 2)
    expected = affinity(motion, MOVING) - 0.5 * 0.49 * (time[:, :, None] - time[:, None]).square()
    torch.testing.assert_close(scores.softmax(-1), expected.softmax(-1), rtol=1e-12, atol=1e-12)


def dense_attention(layer: MotionAttention, tokens: Tensor, bias: Tensor) -> Tensor:
    """The layer written out with a dense (B, H, N, N) bias."""
    q, k, v = (part.transpose(1, 2) for part in layer.qkv(tokens).unflatten(-1, (3, layer.heads, -1)).unbind(2))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return layer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def set_strengths(layer: MotionAttention, affinity: float, damping: float) -> None:
    assert layer.motion_bias is not None
    with torch.no_grad():
        for raw, value in ((layer.motion_bias.raw_affinity, affinity), (layer.motion_bias.raw_damping, damping)):
            assert raw is not None
            raw.copy_(torch.tensor(value, dtype=torch.float64).expm1().log() / 20)


@pytest.mark.parametrize("strength", [0.1, 1.0, 16.0])
def test_attention_has_exactly_that_bias(strength: float) -> None:
    torch.manual_seed(0)
    layer = MotionAttention(12, 3).double()
    set_strengths(layer, strength, 0.5)
    motion, foreground, tokens = normal(0)(2, 6, 8), torch.rand(2, 6).double(), normal(1)(2, 6, 12)
    foreground = torch.where(MOVING == 0, 1.0, foreground)
    out = layer(tokens, TokenMotion(motion, MOVING, foreground))
    damping = 0.5 * ((0.01 + foreground) / 1.01).log()
    bias = strength * affinity(motion, MOVING) + damping[:, None]
    torch.testing.assert_close(out, dense_attention(layer, tokens, bias[:, None]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strength", [0.1, 1.0, 4.0, 16.0])
def test_under_autocast_the_affinity_stays_as_accurate_as_the_values(strength: float) -> None:
    """Query and key are silenced, so that only the motion decides; half products would err by 0.3 at 16."""
    torch.manual_seed(0)
    layer = MotionAttention(12, 3)
    set_strengths(layer, strength, 0.5)
    with torch.no_grad():
        layer.qkv.weight[:24] = 0
        layer.qkv.bias[:24] = 0
        layer.qkv.weight[24:] = torch.eye(12)
        layer.qkv.bias[24:] = 0
        layer.proj.weight.copy_(torch.eye(12))
        layer.proj.bias.zero_()
    motion = normal(0)(2, 6, 8)
    tokens = torch.eye(6, 12).expand(2, 6, 12)  # the outputs are the weights themselves
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(tokens, TokenMotion(motion.float(), MOVING.float()))
    weights = (strength * affinity(motion, MOVING)).softmax(-1)
    expected = torch.cat((weights[..., :6], torch.zeros(2, 6, 6)), -1)
    assert out.dtype == torch.bfloat16
    # Two roundings to bfloat16 (the attention's result and the projection's), nothing else.
    torch.testing.assert_close(out.double(), expected, rtol=2.0**-7, atol=1e-6)


def test_without_motion_it_is_the_blocks_attention() -> None:
    torch.manual_seed(0)
    plain, layer = Block(12, 3).attn, MotionAttention(12, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    tokens = torch.randn(2, 6, 12)
    torch.testing.assert_close(layer(tokens), plain(tokens))
    still = TokenMotion(torch.zeros(2, 6, 8), torch.zeros(2, 6), torch.ones(2, 6))
    torch.testing.assert_close(layer(tokens, still), plain(tokens))


def test_invisible_tokens_change_nothing_and_everyone_else_is_as_without_them() -> None:
    torch.manual_seed(0)
    layer = MotionAttention(12, 3)
    tokens, motion = torch.randn(2, 6, 12), torch.randn(2, 6, 8)
    visible = torch.tensor([True, True, True, True, False, False]).expand(2, 6)
    for foreground in (None, torch.rand(2, 6)):
        with_hidden = layer(tokens, TokenMotion(motion, foreground=foreground, visible=visible))
        fewer = TokenMotion(motion[:, :4], foreground=None if foreground is None else foreground[:, :4])
        torch.testing.assert_close(with_hidden[:, :4], layer(tokens[:, :4], fewer))


def test_cross_attention_of_a_sequence_with_itself_is_self_attention() -> None:
    torch.manual_seed(0)
    layer, cross = MotionAttention(12, 3), MotionCrossAttention(12, 3)
    with torch.no_grad():
        cross.q.weight.copy_(layer.qkv.weight[:12])
        cross.q.bias.copy_(layer.qkv.bias[:12])
        cross.kv.weight.copy_(layer.qkv.weight[12:])
        cross.kv.bias.copy_(layer.qkv.bias[12:])
        cross.proj.load_state_dict(layer.proj.state_dict())
    tokens = torch.randn(2, 6, 12)
    motion = TokenMotion(torch.randn(2, 6, 8), MOVING.float(), torch.rand(2, 6))
    torch.testing.assert_close(cross(tokens, tokens, motion, motion), layer(tokens, motion))
    torch.testing.assert_close(cross(tokens, tokens), layer(tokens))


def test_all_strengths_learn_and_contradictions_are_refused() -> None:
    torch.manual_seed(0)
    layer = MotionCrossAttention(12, 3, context_dim=5, over_time=True)
    time = torch.arange(4.0).expand(2, 4)
    queries = TokenMotion(torch.randn(2, 4, 8), time=time)
    keys = TokenMotion(torch.randn(2, 4, 8), foreground=torch.rand(2, 4), time=time)
    layer(torch.randn(2, 4, 12), torch.randn(2, 4, 5), queries, keys).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert layer.motion_bias is not None
    assert layer.motion_bias.raw_affinity is not None
    assert F.softplus(20 * layer.motion_bias.raw_affinity).tolist() == pytest.approx([0.1] * 3)
    tokens, context = torch.randn(2, 4, 12), torch.randn(2, 4, 5)
    with pytest.raises(ValueError, match="both have a descriptor or neither"):
        layer(tokens, context, queries, TokenMotion())
    with pytest.raises(ValueError, match="over_time=True"):
        MotionAttention(12, 3)(tokens, queries)
    with pytest.raises(ValueError, match="times need a descriptor"):
        layer(tokens, context, TokenMotion(time=time), TokenMotion(time=time))
    with pytest.raises(ValueError, match="heads must divide dim"):
        MotionAttention(12, 5)


# The adapter ---------------------------------------------------------------------------------------------------------


def trained_adapter(dim: int = 8) -> VisualAdapter:
    torch.manual_seed(0)
    adapter = VisualAdapter(dim, kernel_size=5).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


def test_a_new_adapter_changes_nothing_and_has_no_random_taps() -> None:
    adapter = VisualAdapter(8)
    tokens = torch.randn(2, 3, 5, 8)
    assert torch.equal(adapter(tokens), tokens)
    assert adapter.conv_weight.tolist() == [[0, 1, 0]] * 2


def test_image_static_clip_and_padded_clip_agree() -> None:
    adapter = trained_adapter()
    image = normal(0)(2, 5, 8)
    expected = adapter(image)
    torch.testing.assert_close(adapter(image[:, None])[:, 0], expected)
    clip = image[:, None].repeat(1, 4, 1, 1)
    torch.testing.assert_close(adapter(clip), expected[:, None].expand_as(clip))
    mask = torch.tensor([[True, False, True, False], [True, True, True, False]])
    spoilt = torch.where(mask[..., None, None], clip, 1e3 * normal(1)(*clip.shape))
    torch.testing.assert_close(adapter(spoilt, mask)[mask], expected[:, None].expand_as(clip)[mask])


def test_the_adapter_is_its_formula() -> None:
    adapter = trained_adapter()
    clip = normal(0)(2, 4, 5, 8)
    hidden = adapter.down(adapter.norm(clip))
    padded = [[hidden[:, t + j] if 0 <= t + j < 4 else hidden[:, t] for j in range(-2, 3)] for t in range(4)]
    mixed = torch.stack([sum(adapter.conv_weight[:, j] * padded[t][j] for j in range(5)) for t in range(4)], 1)
    expected = clip + adapter.up(F.gelu(mixed + adapter.conv_bias))
    torch.testing.assert_close(adapter(clip), expected)


@pytest.mark.parametrize(("arguments", "message"), [({"kernel_size": 2}, "odd"), ({"bottleneck": 0}, "positive")])
def test_an_adapter_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualAdapter(8, **arguments)


# Fusion and pooling --------------------------------------------------------------------------------------------------


def test_gated_fusion_starts_as_a_layer_norm_and_then_follows_its_formula() -> None:
    torch.manual_seed(0)
    layer = GatedFusion(6, 8).double()
    tokens, motion = normal(0)(2, 5, 6), normal(1)(2, 5, 8)
    assert torch.equal(layer(tokens, motion), layer.norm(tokens))
    torch.nn.init.normal_(layer.motion.weight)
    embedded = layer.embed(motion)
    gate = torch.sigmoid(layer.gate(torch.cat((tokens, embedded), -1)))
    torch.testing.assert_close(layer(tokens, motion), layer.norm(tokens + gate * layer.motion(embedded)))


def test_gated_fusion_learns_from_its_start() -> None:
    layer = GatedFusion(6, 8)
    layer(torch.randn(2, 5, 6), torch.randn(2, 5, 8)).square()[..., 0].sum().backward()
    assert layer.motion.weight.grad is not None
    assert layer.motion.weight.grad.abs().max() > 0


def test_gated_fusion_under_autocast() -> None:
    layer = GatedFusion(6, 8)
    torch.nn.init.normal_(layer.motion.weight)
    tokens, motion = torch.randn(2, 5, 6), torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(tokens, motion)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, layer(tokens, motion), rtol=0.1, atol=0.1)


def test_part_pool_is_its_operator() -> None:
    tokens, logits = torch.randn(2, 7, 5), torch.randn(2, 4, 7)
    for got, wanted in zip(PartPool()(tokens, logits), part_pool(tokens, logits), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "given", [torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)], ids=["descriptor", "mask"]
)
def test_a_tensor_in_the_place_of_motion_is_refused_with_what_to_give(given: torch.Tensor) -> None:
    tokens = torch.zeros(2, 5, 16)
    calls: list[Any] = [
        lambda: MotionAttention(16, 2)(tokens, given),
        lambda: MotionAttention(16, 2, motion=False)(tokens, given),
        lambda: MotionCrossAttention(16, 2)(tokens, tokens, None, given),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="motion must be a TokenMotion, got Tensor"):
            call()
