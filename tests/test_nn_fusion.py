"""The fusion encoder: its sequence, the agreement of images and clips in both scopes, its switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from motarfuse.nn import (
    FusedTokens,
    FusionEncoder,
    GatedFusion,
    MotionAttention,
    PartDecoder,
    PartState,
    TokenMotion,
)
from tests.ops.operator_cases import normal
from tests.test_nn_parts import CELLS, DIM, PARTS, decoder, stirred

SCOPES = ("frame", "clip")


def encoder(**options: Any) -> FusionEncoder:
    torch.manual_seed(1)
    module = stirred(FusionEncoder(DIM, 3, **options))
    assert isinstance(module, FusionEncoder)
    return module


def fused(
    module: FusionEncoder,
    parts_of: PartDecoder,
    tokens: Tensor,
    mask: Tensor | None = None,
    index: Tensor | None = None,
) -> FusedTokens:
    """The decoder's parts and the class tokens (the mean of the cells here) through the encoder."""
    parts, states = parts_of(tokens, mask, index)
    return module(tokens, tokens.mean(2), parts, states[-1], mask, index)


@pytest.mark.parametrize("scope", SCOPES)
def test_image_one_frame_static_and_padded_clip_agree(scope: str) -> None:
    module, parts_of = encoder(scope=scope).eval(), decoder().eval()
    image = normal(2)(2, 1, CELLS, DIM)
    expected = fused(module, parts_of, image)
    static = image.expand(-1, 3, -1, -1)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    padded = torch.where(mask[..., None, None], static, 10 * normal(3)(2, 3, CELLS, DIM))
    index = torch.tensor([[0, 4, 5], [2, 3, 7]])
    everything = torch.ones(2, 3, dtype=torch.bool)
    for clip, there, when in ((static, everything, None), (padded, mask, index), (static, everything, index)):
        result = fused(module, parts_of, clip, there, when)
        torch.testing.assert_close(result.hybrid[there], expected.hybrid.expand(-1, 3, -1)[there])
        torch.testing.assert_close(result.tokens[there], expected.tokens.expand(-1, 3, -1, -1)[there])


def test_frames_see_each_other_in_a_clip_and_only_there() -> None:
    parts_of = decoder(motion=False, num_layers=1).eval()
    clip = normal(2)(1, 2, CELLS, DIM)
    other = clip.clone()
    other[:, 1] += 1
    for scope, same in (("frame", True), ("clip", False)):
        # Without motion, which looks at neighbours by itself.
        module = encoder(scope=scope, motion=False, gated=False).eval()
        first, second = (fused(module, parts_of, frames).hybrid[:, 0] for frames in (clip, other))
        assert torch.equal(first, second) is same


def test_time_decides_how_much_frames_see_of_each_other() -> None:
    module, parts_of = encoder(scope="clip").eval(), decoder().eval()
    clip = normal(2)(1, 2, CELLS, DIM)
    parts, states = parts_of(clip)
    near, far, shifted = (
        module(clip, clip.mean(2), parts, states[-1], None, torch.tensor([index])).hybrid
        for index in ([0, 1], [0, 30], [7, 8])
    )
    assert (near - far).abs().max() > 1e-6
    torch.testing.assert_close(near, shifted)


@pytest.mark.parametrize("scope", SCOPES)
def test_every_parameter_learns(scope: str) -> None:
    module, parts_of = encoder(scope=scope), decoder()
    result = fused(module, parts_of, normal(2)(2, 2, CELLS, DIM))
    (result.hybrid.square().sum() + result.tokens[..., 0].sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_sequence_is_hybrid_class_parts_and_gated_tokens_with_their_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    module, parts_of = encoder().eval(), decoder().eval()
    tokens = normal(2)(2, 1, CELLS, DIM)
    parts, states = parts_of(tokens)
    state: PartState = states[-1]
    seen: list[tuple[Tensor, Any]] = []

    def watched(sequence: Tensor, motion: Any) -> Tensor:
        seen.append((sequence, motion))
        return sequence

    monkeypatch.setattr(module.blocks[0], "forward", watched)
    result = module(tokens, tokens.mean(2), parts, state)
    sequence, motion = seen[0]
    assert sequence.shape == (2, 2 + PARTS + CELLS, DIM)
    assert isinstance(module.gate, GatedFusion)
    gated = module.gate(tokens[:, 0], state.descriptor)
    torch.testing.assert_close(result.tokens[:, 0], gated)
    torch.testing.assert_close(sequence[:, 0], (module.hybrid + module.types[0]).expand(2, DIM))
    torch.testing.assert_close(sequence[:, 1], tokens.mean(2)[:, 0] + module.types[1])
    torch.testing.assert_close(sequence[:, 2 : 2 + PARTS], parts[:, 0] + module.types[2])
    torch.testing.assert_close(sequence[:, 2 + PARTS :], gated + module.types[3])
    assert torch.equal(motion.moving, torch.tensor([0.0] * 2 + [1.0] * (PARTS + CELLS)).double().expand(2, -1))
    assert torch.equal(motion.foreground[:, :2], torch.ones(2, 2).double())
    assert torch.equal(motion.foreground[:, 2 + PARTS :], state.foreground)
    assert torch.equal(motion.descriptor[:, 2 : 2 + PARTS], state.part_descriptor)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_last_block_is_a_whole_block_of_which_the_hybrid_tokens_are_taken(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as self-attention with the whole motion: hybrid tokens come out the same."""
    module, parts_of = encoder(scope=scope, depth=1).eval(), decoder().eval()
    clip = normal(2)(2, 2, CELLS, DIM)
    parts, states = parts_of(clip)
    got = module(clip, clip.mean(2), parts, states[-1]).hybrid
    last = module.last
    assert last.attn.motion_bias is not None
    whole = MotionAttention(DIM, 3, over_time=scope == "clip").double()
    with torch.no_grad():
        whole.qkv.weight.copy_(torch.cat((last.attn.q.weight, last.attn.kv.weight)))
        whole.qkv.bias.copy_(torch.cat((last.attn.q.bias, last.attn.kv.bias)))
        whole.proj.load_state_dict(last.attn.proj.state_dict())
        assert whole.motion_bias is not None
        whole.motion_bias.load_state_dict(last.attn.motion_bias.state_dict(), strict=False)

    def forward(tokens: Tensor, motion: TokenMotion, length: int) -> Tensor:
        tokens = tokens + whole(last.norm1(tokens), motion)
        return (tokens + last.mlp(last.norm2(tokens)))[:, ::length]

    monkeypatch.setattr(last, "forward", forward)
    torch.testing.assert_close(got, module(clip, clip.mean(2), parts, states[-1]).hybrid)


def test_without_motion_the_descriptor_is_not_read() -> None:
    module, parts_of = encoder(motion=False, gated=False).eval(), decoder().eval()
    tokens = normal(2)(2, 1, CELLS, DIM)
    parts, states = parts_of(tokens)
    spoilt = states[-1]._replace(descriptor=torch.full_like(states[-1].descriptor, torch.nan))
    expected = module(tokens, tokens.mean(2), parts, states[-1])
    assert torch.equal(module(tokens, tokens.mean(2), parts, spoilt).hybrid, expected.hybrid)
    assert not any("motion" in name for name, _ in module.named_parameters())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="scope must be one of frame, clip, got 'video'"):
        FusionEncoder(DIM, 3, scope="video")
    with pytest.raises(ValueError, match="depth must be positive"):
        FusionEncoder(DIM, 3, depth=0)
