"""Attention layers taken over from timm and torch, and motion attention inside torch's machinery."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import motarfuse.nn.motion_attention as layers
from motarfuse import ops
from motarfuse.nn import MotionAttention, MotionCrossAttention, TokenMotion
from tests.ops.operator_cases import normal

DIM, HEADS = 24, 3


class LikeTimm(nn.Module):
    """Plain attention whose attributes have the names of timm's."""

    def __init__(
        self, dim: int = DIM, num_heads: int = HEADS, qkv_bias: bool = True, proj_bias: bool = True, out: int = DIM
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.proj = nn.Linear(dim, out, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        width = self.qkv.in_features // self.num_heads
        q, k, v = (part.unflatten(-1, (self.num_heads, width)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (self.scale * q @ k.transpose(-1, -2)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def torch_attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(DIM, HEADS, **{"batch_first": True, **options})
    for name, parameter in attention.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)  # torch starts them at zero
    return attention


def some_motion(batch: int, length: int, dtype: torch.dtype = torch.float32) -> TokenMotion:
    draw = normal(3, dtype)
    return TokenMotion(draw(batch, length, 8), (draw(batch, length) > 0).to(dtype), draw(batch, length).sigmoid())


def assert_taken_over(layer: nn.Module, given: nn.Module) -> None:
    """Same dtype, device and mode, storage of its own, and a state that a layer built by hand takes back."""
    pointers = {parameter.untyped_storage().data_ptr() for parameter in given.parameters()}
    parameter = next(given.parameters())
    for own in layer.parameters():
        assert own.untyped_storage().data_ptr() not in pointers
        assert (own.dtype, own.device) == (parameter.dtype, parameter.device)
    assert layer.training == given.training
    again = copy.deepcopy(layer)
    for own in again.parameters():
        nn.init.zeros_(own)
    again.load_state_dict(layer.state_dict())
    for name, value in layer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


# timm -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("proj_bias", [True, False])
def test_a_layer_of_timm_keeps_its_outputs_and_takes_motion(qkv_bias: bool, proj_bias: bool) -> None:
    torch.manual_seed(0)
    given = LikeTimm(qkv_bias=qkv_bias, proj_bias=proj_bias).eval()
    layer = MotionAttention.from_timm(given)
    tokens = torch.randn(2, 7, DIM)
    torch.testing.assert_close(layer(tokens), given(tokens))
    assert not torch.allclose(layer(tokens, some_motion(2, 7)), given(tokens), atol=1e-3)
    assert_taken_over(layer, given)
    with torch.no_grad():
        given.qkv.weight.zero_()
    assert layer.qkv.weight.abs().max() > 0
    names = {name for name in layer.state_dict() if not name.startswith("motion_bias.")}
    assert names == set(given.state_dict())
    if proj_bias:
        by_hand = MotionAttention(DIM, HEADS, qkv_bias=qkv_bias)
        by_hand.load_state_dict(layer.state_dict())
        assert torch.equal(by_hand(tokens), layer(tokens))


def test_gradients_reach_a_copied_layer_as_they_reached_the_given_one() -> None:
    torch.manual_seed(0)
    given = LikeTimm()
    given.qkv.weight.requires_grad_(False)
    given.proj.bias.requires_grad_(False)
    layer = MotionAttention.from_timm(given, motion=False)
    tokens = torch.randn(2, 7, DIM)
    for module in (given, layer):
        module(tokens).square().sum().backward()
    for name, parameter in given.named_parameters():
        own = layer.get_parameter(name)
        assert own.requires_grad == parameter.requires_grad, name
        if parameter.grad is None:
            assert own.grad is None, name
        else:
            torch.testing.assert_close(own.grad, parameter.grad)


def test_options_dtype_and_random_numbers() -> None:
    given = LikeTimm().to(torch.bfloat16).eval()
    state = torch.get_rng_state()
    layer = MotionAttention.from_timm(given, over_time=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.motion_bias is not None
    assert layer.motion_bias.raw_time is not None
    assert MotionAttention.from_timm(given, motion=False).motion_bias is None
    assert_taken_over(layer, given)
    tokens = torch.randn(2, 7, DIM, dtype=torch.bfloat16)
    assert layer(tokens, some_motion(2, 7)).dtype == torch.bfloat16
    torch.testing.assert_close(layer(tokens), given(tokens), rtol=0.02, atol=0.02)
    doubled = MotionAttention.from_timm(LikeTimm().double())
    assert doubled(tokens.double(), some_motion(2, 7, torch.float64)).dtype == torch.float64


def spoilt(**changes: Any) -> LikeTimm:
    given = LikeTimm()
    for name, value in changes.items():
        if hasattr(given, name):
            delattr(given, name)  # a module may then become a number
        setattr(given, name, value)
    return given


class _Sub(MotionAttention):
    pass


def test_a_subclass_makes_its_own() -> None:
    assert type(_Sub.from_timm(LikeTimm())) is _Sub
    assert type(_Sub.from_torch(torch_attention())) is _Sub


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoilt(q_norm=nn.LayerNorm(8)), "q_norm is LayerNorm"),
        (spoilt(k_norm=nn.RMSNorm(8)), "k_norm is RMSNorm"),
        (spoilt(norm=nn.LayerNorm(DIM)), "norm is LayerNorm"),
        (spoilt(attn_drop=nn.Dropout(0.1)), "attn_drop is a dropout of 0.1"),
        (spoilt(proj_drop=0.2), "proj_drop is a dropout of 0.2"),
        (spoilt(scale=0.5), "scale is 0.5; supported"),
        (spoilt(scale=nn.Parameter(torch.ones(()))), "scale is"),
        (LikeTimm(out=30), "proj maps 24 to 30; supported: 24 to 24"),
        (spoilt(qkv=nn.Linear(DIM, 96)), "qkv maps 24 to 96; supported: 24 to 72"),
        (spoilt(qkv=nn.Conv1d(DIM, 72, 1)), "qkv is Conv1d"),
        (nn.Identity(), "qkv is missing"),
        (spoilt(num_heads=5), "heads must divide dim"),
        (spoilt(num_heads=None), "num_heads must be an integer, got None"),
        (spoilt(gate=nn.Linear(DIM, DIM)), r"gate\.weight, gate\.bias: parameters"),
    ],
)
def test_what_a_layer_of_timm_has_beyond_plain_attention_is_named(given: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionAttention.from_timm(given)


def test_timms_own_attention() -> None:
    attention = pytest.importorskip("timm.layers.attention")
    torch.manual_seed(0)
    given = attention.Attention(DIM, num_heads=HEADS, qkv_bias=True).eval()
    tokens = torch.randn(2, 7, DIM)
    torch.testing.assert_close(MotionAttention.from_timm(given)(tokens), given(tokens))
    normed = attention.Attention(DIM, num_heads=HEADS, qk_norm=True, norm_layer=nn.LayerNorm)
    with pytest.raises(ValueError, match="q_norm is LayerNorm"):
        MotionAttention.from_timm(normed)


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_of_torch_keeps_its_outputs(bias: bool) -> None:
    given = torch_attention(bias=bias).eval()
    tokens = torch.randn(2, 7, DIM)
    layer = MotionAttention.from_torch(given, over_time=True)
    torch.testing.assert_close(layer(tokens), given(tokens, tokens, tokens, need_weights=False)[0])
    assert (layer.qkv.bias is not None) == (layer.proj.bias is not None) == bias
    assert_taken_over(layer, given)
    half = copy.deepcopy(given).bfloat16()
    assert MotionAttention.from_torch(half)(tokens.bfloat16(), some_motion(2, 7)).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [DIM, 10])
def test_cross_attention_of_torch_keeps_its_outputs(bias: bool, width: int) -> None:
    given = torch_attention(bias=bias, kdim=width, vdim=width).eval()
    tokens, context = torch.randn(2, 7, DIM), torch.randn(2, 5, width)
    layer = MotionCrossAttention.from_torch(given)
    torch.testing.assert_close(layer(tokens, context), given(tokens, context, context, need_weights=False)[0])
    assert_taken_over(layer, given)
    without = MotionCrossAttention.from_torch(given, affinity=False).motion_bias
    assert without is not None
    assert without.raw_affinity is None
    assert MotionCrossAttention.from_torch(given, motion=False).motion_bias is None


def test_frozen_projections_of_torch_stay_frozen() -> None:
    given = torch_attention(kdim=10, vdim=10)
    given.q_proj_weight.requires_grad_(False)
    given.in_proj_bias.requires_grad_(False)
    layer = MotionCrossAttention.from_torch(given)
    learned = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert learned & {"q.weight", "kv.weight", "q.bias", "kv.bias", "proj.weight"} == {"kv.weight", "proj.weight"}
    assert layer.training


@pytest.mark.parametrize("kind", [MotionAttention, MotionCrossAttention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_first": False}, "batch_first is False"),
        ({"dropout": 0.1}, "dropout is a dropout of 0.1"),
        ({"add_bias_kv": True}, "bias_k and bias_v"),
        ({"add_zero_attn": True}, "add_zero_attn is True"),
        ({"kdim": 10, "vdim": 12}, "kdim is 10 and vdim 12"),
    ],
)
def test_what_attention_of_torch_has_beyond_is_named(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_torch(torch_attention(**options))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.MultiheadAttention, got Linear"):
        kind.from_torch(nn.Linear(2, 2))


def test_self_attention_refuses_a_context_of_another_width() -> None:
    with pytest.raises(ValueError, match="kdim is 10 and vdim 10; supported: embed_dim, 24"):
        MotionAttention.from_torch(torch_attention(kdim=10, vdim=10))


# Autocast and torch.compile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 1.0, 4.0, 16.0])
def test_under_autocast_the_affinity_is_accurate_to_float32(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax weights of motion alone, of what the layer hands its operator under bfloat16 autocast."""
    torch.manual_seed(0)
    layer = MotionAttention(DIM, HEADS)
    assert layer.motion_bias is not None
    assert layer.motion_bias.raw_affinity is not None
    with torch.no_grad():
        layer.motion_bias.raw_affinity.copy_(torch.tensor(strength, dtype=torch.float64).expm1().log() / 20)
    draw, length = normal(4), 129
    # Groups that move alike, around what the camera does; the first token has no motion.
    motion = 1 + draw(2, 8, 8).repeat_interleave(17, 1)[:, :length] + 0.3 * draw(2, length, 8)
    moving = torch.ones(2, length)
    moving[:, 0] = 0
    handed: dict[str, Any] = {}

    def listen(qkv: Tensor, **bias: Any) -> Tensor:
        handed.update(bias, qkv=qkv)
        return ops.motion_attention_packed(qkv, **bias)

    monkeypatch.setattr(layers, "motion_attention_packed", listen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(2, length, DIM), TokenMotion(motion.float(), moving))
    assert out.dtype == handed.pop("qkv").dtype == torch.bfloat16

    rounded = motion.float().double()
    affinity = -0.5 * (rounded[:, :, None] - rounded[:, None]).square().sum(-1) * (moving[:, :, None] * moving[:, None])
    exact = (strength * affinity).softmax(-1)[:, None]
    silent, identity = torch.zeros(2, HEADS, length, length), torch.eye(length).expand(2, HEADS, length, length)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = ops.motion_attention(silent, silent, identity, **handed)
        halves = ops.motion_attention(silent.bfloat16(), silent.bfloat16(), identity.bfloat16(), **handed)
    assert weights.dtype == torch.float32

    def error(got: Tensor) -> float:
        return (got.double() - exact).abs().max().item()

    product = handed["motion_query"].bfloat16().double() @ handed["motion_key"].bfloat16().double().mT
    in_bfloat16 = (strength * product).softmax(-1)
    # A few roundings of the largest term, strength |m|^2 / 2, in float32.
    bound = 4 * torch.finfo(torch.float32).eps * (1 + strength * 0.5 * motion.square().sum(-1).max().item())
    assert error(weights) <= bound
    assert error(in_bfloat16) > 100 * bound
    # Beside half query, key and value: one rounding of the weights, which are the outputs here.
    assert ((halves.double() - exact).abs() <= 2.0**-8 * exact + bound).all()
    if strength >= 1:
        assert not ((in_bfloat16 - exact).abs() <= 2.0**-8 * exact + bound).all()
    if strength >= 4:
        assert error(in_bfloat16) > 0.02


@pytest.mark.parametrize("with_time", [False, True])
def test_compile_takes_motion_attention_whole_and_recompiles_once_for_all_lengths(with_time: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = MotionAttention(DIM, HEADS, over_time=with_time)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch, length in ((2, 9), (3, 12), (4, 17), (5, 10), (6, 33)):
        motion = some_motion(batch, length)._replace(visible=torch.rand(batch, length) > 0.2)
        if with_time:
            motion = motion._replace(time=torch.arange(float(length)).expand(batch, length))
        tokens = torch.randn(batch, length, DIM)
        results = []
        for module in (compiled, layer):
            layer.zero_grad()
            out = module(tokens, motion)
            out.square().sum().backward()
            results.append([out.detach(), *(one.grad.clone() for one in layer.parameters() if one.grad is not None)])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


def test_a_layer_taken_over_compiles_whole() -> None:
    torch._dynamo.reset()
    given = torch_attention().eval()
    layer = MotionAttention.from_torch(given)
    tokens = torch.randn(2, 7, DIM)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), given(tokens, tokens, tokens)[0])
    torch.testing.assert_close(compiled(tokens, some_motion(2, 7)), layer(tokens, some_motion(2, 7)))


def test_a_layer_taken_over_is_scaled_dot_product_attention() -> None:
    """Not only equal to what it came from: its projections are in the order query, key, value."""
    given = torch_attention()
    layer = MotionAttention.from_torch(given, motion=False)
    tokens = torch.randn(2, 7, DIM)
    query, key, value = (
        F.linear(tokens, weight, bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for weight, bias in zip(given.in_proj_weight.chunk(3), given.in_proj_bias.chunk(3), strict=True)
    )
    expected = given.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), expected)


def test_inference_exports_with_a_dynamic_batch_and_compiles_once_for_all_batches() -> None:
    """The backend that auto takes without gradients must not depend on sizes that are symbols."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = MotionAttention(DIM, HEADS).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    descriptor, foreground = torch.randn(6, 129, 8), torch.rand(6, 129)
    with torch.no_grad():
        example = (torch.randn(2, 129, DIM), TokenMotion(descriptor[:2], foreground=foreground[:2]))
        sizes: Any = {0: torch.export.Dim("batch", min=1, max=512)}  # in the places of the tensors
        shapes = (sizes, TokenMotion(sizes, None, sizes, None, None))
        exported = torch.export.export(layer, example, dynamic_shapes=shapes, strict=False).module()
        for size in (2, 6, 3, 5, 4):
            tokens, motion = torch.randn(size, 129, DIM), TokenMotion(descriptor[:size], foreground=foreground[:size])
            for run in (exported, compiled):
                torch.testing.assert_close(run(tokens, motion), layer(tokens, motion), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
