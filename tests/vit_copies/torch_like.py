"""Models around ``nn.MultiheadAttention``: torchvision's, OpenAI's CLIP and open_clip's visual towers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vit_copies.timm_like import LayerScale


class MLPBlock(nn.Sequential):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )


class EncoderBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, attention_dropout: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, dropout=attention_dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 4 * dim, dropout)

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.dim() == 3, f"expected 3 dimensions, got {input.shape}")
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    def __init__(self, dim: int = 24, depth: int = 2, num_heads: int = 3, **options: Any) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, dim, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 17, dim))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers.update((f"encoder_layer_{i}", EncoderBlock(dim, num_heads, **options)) for i in range(depth))
        self.encoder.layers = nn.Sequential(layers)
        self.encoder.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).permute(0, 2, 1)
        encoder: Any = self.encoder
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + encoder.pos_embedding
        return encoder.ln(encoder.layers(x))


class LayerNorm(nn.LayerNorm):
    """CLIP's: in float32, whatever the tokens are."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.type(torch.float32)
        return super().forward(wide).type(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def clip_mlp(dim: int, act_layer: type[nn.Module]) -> nn.Sequential:
    children = [("c_fc", nn.Linear(dim, 4 * dim)), ("gelu", act_layer()), ("c_proj", nn.Linear(4 * dim, dim))]
    return nn.Sequential(OrderedDict(children))


class ResidualAttentionBlock(nn.Module):
    """OpenAI's, (N, B, D)."""

    def __init__(self, dim: int, n_head: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, n_head)
        self.ln_1 = LayerNorm(dim)
        self.mlp = clip_mlp(dim, QuickGELU)
        self.ln_2 = LayerNorm(dim)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        mask = self.attn_mask.to(dtype=x.dtype, device=x.device) if self.attn_mask is not None else None
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenResidualAttentionBlock(nn.Module):
    """open_clip's, with layer scale, (B, N, D) in its later versions."""

    def __init__(self, dim: int, n_head: int, ls_init_value: float | None = None) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, n_head, batch_first=True)
        self.ls_1 = LayerScale(dim, ls_init_value) if ls_init_value is not None else nn.Identity()
        self.ln_2 = LayerNorm(dim)
        self.mlp = clip_mlp(dim, nn.GELU)
        self.ls_2 = LayerScale(dim, ls_init_value) if ls_init_value is not None else nn.Identity()

    def attention(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        k_x, v_x = k_x if k_x is not None else q_x, v_x if v_x is not None else q_x
        return self.attn(q_x, k_x, v_x, need_weights=False, attn_mask=attn_mask)[0]

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        x = q_x + self.ls_1(self.attention(self.ln_1(q_x), k_x, v_x, attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Tower(nn.Module):
    def __init__(self, block: type[nn.Module], sequence_first: bool, dim: int, depth: int, heads: int, **options: Any):
        super().__init__()
        self.sequence_first = sequence_first
        self.conv1 = nn.Conv2d(3, dim, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(dim))
        self.positional_embedding = nn.Parameter(torch.randn(17, dim))
        self.ln_pre = LayerNorm(dim)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(block(dim, heads, **options) for _ in range(depth)))
        self.ln_post = LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        transformer: Any = self.transformer
        x = (
            transformer.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)
            if self.sequence_first
            else transformer.resblocks(x)
        )
        return F.normalize(self.ln_post(x), dim=-1)


def openai_tower(dim: int = 24, depth: int = 2, heads: int = 3, **options: Any) -> Tower:
    return Tower(ResidualAttentionBlock, True, dim, depth, heads, **options)


def open_clip_tower(dim: int = 24, depth: int = 2, heads: int = 3, **options: Any) -> Tower:
    return Tower(OpenResidualAttentionBlock, False, dim, depth, heads, **options)
