"""What ``accelerate`` must leave alone, and the reason that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import motarfuse
from tests.vit_copies import hugging_face, timm_like


class PostNormBlock(timm_like.Block):
    """The same children, normalised after the branch."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class BiasedAttention(timm_like.Attention):
    """With a bias of relative positions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relative_position_bias_table = nn.Parameter(torch.randn(3, 17, 17))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return super().forward(x, self.relative_position_bias_table)


class LocalAttention(timm_like.Attention):
    """The same children; each token sees its neighbours only."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        near = torch.arange(x.shape[1])
        far = (near[:, None] - near).abs() > 1
        return super().forward(x, torch.zeros_like(far, dtype=x.dtype).masked_fill(far, -torch.inf))


class DetachedAttention(timm_like.Attention):
    """The same outputs, other gradients."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), attn_mask)


class RememberingAttention(timm_like.Attention):
    """Keeps what others may look at."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        self.last_input = x
        return super().forward(x, attn_mask)


class DeclaredAttention(timm_like.Attention):
    """Keeps what others may look at, in an attribute that it always has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn_map: Tensor | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        self.attn_map = 2 * x
        return super().forward(x, attn_mask)


class RecordingMlp(timm_like.Mlp):
    """Keeps something in training only, in a list that it always has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x)
        return super().forward(x)


class CountingAct(nn.GELU):
    """An activation with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: Tensor
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.largest.copy_(x.detach().abs().max())
        return super().forward(x)


class CentredAttention(timm_like.Attention):
    """Plain up to a number of tokens."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x - x.mean(1, keepdim=True) if x.shape[1] > 10 else x
        return super().forward(x, attn_mask)


class WindowedAttention(timm_like.Attention):
    """Among so many tokens that follow one another."""

    window = 64

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        window = torch.arange(x.shape[1]) // self.window
        apart = window[:, None] != window
        return super().forward(x, torch.zeros_like(apart, dtype=x.dtype).masked_fill(apart, -torch.inf))


class WiderWindows(WindowedAttention):
    window = 24 * 24


class WindowedBlock(timm_like.Block):
    """Whose attention is plain, and gets a window at a time."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        windows = [self.attn(each) for each in self.norm1(x).split(196, dim=1)]
        x = x + self.drop_path1(self.ls1(torch.cat(windows, dim=1)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class NamedBlock(timm_like.Block):
    """Whose subclasses must be given a name."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name  # type: ignore[attr-defined]


class UncopiedMlp(timm_like.Mlp):
    """As modules that a wrapper for several devices took over."""

    def __deepcopy__(self, memo: Any) -> None:
        raise AssertionError("use a state dict")


class NoisyMlp(timm_like.Mlp):
    """Something else in training only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class UnlikeDropPath(timm_like.Block):
    """The first branch is never dropped, as in an early DINOv2 of transformers."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class WeightsToo(timm_like.ReIDAttention):
    """As DINO's, which returns its weights."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def without_bias(mlp: timm_like.Mlp) -> timm_like.Mlp:
    mlp.fc1 = nn.Linear(24, 96, bias=False)
    return mlp


def with_norm(block: Any, norm: nn.Module) -> nn.Module:
    block.norm2 = norm
    return block


def patched(module: nn.Module) -> nn.Module:
    forward = module.forward
    module.forward = lambda x: forward(x) + 1
    return module


def hooked(module: nn.Module, child: str) -> nn.Module:
    module.get_submodule(child).register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: timm_like.Attention(24, 3, qk_norm=True), "query norm"),
        (lambda: BiasedAttention(24, 3), "more than plain attention: relative_position_bias_table"),
        (lambda: LocalAttention(24, 3), "computes something else"),
        (lambda: DetachedAttention(24, 3), "computes something else"),
        (lambda: RememberingAttention(24, 3), "keeps last_input"),
        (lambda: DeclaredAttention(24, 3), "keeps attn_map"),
        (lambda: RecordingMlp(24, 96), "keeps seen in training"),
        (lambda: timm_like.Mlp(24, 96, CountingAct), "keeps largest"),
        (lambda: CentredAttention(24, 3), "computes something else on"),
        (lambda: WindowedAttention(24, 3), "computes something else on 577 tokens, as windows do"),
        (lambda: WiderWindows(24, 3), "computes something else on 577 tokens"),
        (lambda: WindowedBlock(24, 3), "computes something else on 577 tokens"),
        (lambda: NamedBlock(24, 3), "its class lets none be derived from it: TypeError"),
        (lambda: UncopiedMlp(24, 96), "cannot be copied to be compared: AssertionError: use a state dict"),
        (lambda: WeightsToo(24, 3), "attention weights"),
        (lambda: hugging_face.CLIPAttention(hugging_face.Config(implementation="eager_v5")), "attention weights"),
        (lambda: hugging_face.ViTAttentionV5(hugging_face.Config(implementation="eager")), "attention weights"),
        (lambda: nn.MultiheadAttention(24, 3, add_bias_kv=True), "add_bias_kv"),
        (lambda: nn.MultiheadAttention(24, 3, kdim=12, vdim=12), "widths of their own"),
        (lambda: timm_like.Mlp(24, 96, Swish), "its activation, Swish"),
        (lambda: timm_like.Mlp(24, 96, nn.PReLU), "its activation, PReLU"),
        (lambda: NoisyMlp(24, 96), "something else in training"),
        (lambda: without_bias(timm_like.Mlp(24, 96)), "no bias"),
        (lambda: PostNormBlock(24, 3), "computes something else"),
        (lambda: UnlikeDropPath(24, 3, drop=0.5), "something else in training"),
        (lambda: with_norm(timm_like.Block(24, 3), nn.Identity()), "norm2 is Identity"),
        (lambda: with_norm(timm_like.Block(24, 3), nn.LayerNorm(24, bias=False)), "no bias"),
        (lambda: patched(timm_like.Mlp(24, 96)), "replaced on the instance"),
        (lambda: hooked(timm_like.Mlp(24, 96), "act"), "act has hooks"),
        (lambda: hooked(timm_like.Attention(24, 3), "attn_drop"), "attn_drop has hooks"),
        (lambda: hooked(timm_like.Block(24, 3), "norm2"), "norm2 has hooks"),
    ],
)
def test_what_is_not_understood_is_left_alone_with_the_reason(make: Callable[[], nn.Module], why: str) -> None:
    model = nn.Sequential(nn.Identity(), make())
    kind = type(model[1])
    report = motarfuse.accelerate(model)
    assert type(model[1]) is kind
    reasons = {one.name: one.why for one in report.left}
    assert why in reasons["1"]
    assert reasons["1"] in str(report)
