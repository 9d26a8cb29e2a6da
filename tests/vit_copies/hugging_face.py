"""As transformers' CLIP vision tower, ViT and DINOv2: projections of their own, tuples, masks as arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vit_copies.timm_like import DropPath
from tests.vit_copies.torch_like import QuickGELU


class Config(NamedTuple):
    hidden_size: int = 24
    num_attention_heads: int = 3
    layers: int = 2
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    implementation: str = "sdpa"
    hidden_act: str = "gelu"


class GELUActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = F.gelu

    def forward(self, input: Tensor) -> Tensor:
        return self.act(input)


def act(config: Config) -> nn.Module:
    return QuickGELU() if config.hidden_act == "quick_gelu" else GELUActivation()


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, rate: float, implementation: str
) -> tuple[Tensor, Tensor | None]:
    """(B, H, N, d) -> (B, N, H, d), and the weights where they are computed."""
    if implementation == "sdpa":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, scale=scale)
        return out.transpose(1, 2), None
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores if mask is None else scores + mask
    weights = F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), rate)
    return (weights @ v).transpose(1, 2), weights


class CLIPAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_dim, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.is_causal = False
        self.k_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.v_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.q_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batch, length, width = hidden_states.shape
        q, k, v = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = "eager" if output_attentions else self.config.implementation
        rate = self.dropout if self.training else 0.0
        out, weights = attend(q, k, v, attention_mask, self.scale, rate, implementation)
        out = self.out_proj(out.reshape(batch, length, width))
        return out, weights if output_attentions or self.config.implementation == "eager_v5" else None


class CLIPMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.activation_fn = act(config)
        self.fc1 = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.fc2 = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class CLIPEncoderLayer(nn.Module):
    """As of version 4: masks are positional, and a tuple comes back."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_dim = config.hidden_size
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, causal_attention_mask: Tensor | None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        residual = hidden_states
        hidden_states, weights = self.self_attn(
            hidden_states=self.layer_norm1(hidden_states), attention_mask=attention_mask,
            causal_attention_mask=causal_attention_mask, output_attentions=output_attentions,
        )  # fmt: skip
        hidden_states = residual + hidden_states
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return (hidden_states, weights) if output_attentions and weights is not None else (hidden_states,)


class CLIPEncoderLayerV5(CLIPEncoderLayer):
    """As of version 5: a tensor comes back."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(hidden_states, attention_mask, None, **kwargs)[0]


class ViTSelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = config.hidden_size
        self.query = nn.Linear(config.hidden_size, self.all_head_size)
        self.key = nn.Linear(config.hidden_size, self.all_head_size)
        self.value = nn.Linear(config.hidden_size, self.all_head_size)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        batch, length, width = hidden_states.shape
        q, k, v = (
            projection(hidden_states).view(batch, length, -1, self.attention_head_size).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        weights = self.dropout(F.softmax(q @ k.transpose(-1, -2) * self.attention_head_size**-0.5, dim=-1))
        weights = weights if head_mask is None else weights * head_mask
        out = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return (out, weights) if output_attentions else (out,)


class ViTSelfOutput(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(0.0)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states))


class ViTAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(config)
        self.output = ViTSelfOutput(config)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        outputs = self.attention(hidden_states, head_mask, output_attentions)
        return (self.output(outputs[0], hidden_states), *outputs[1:])


class ViTIntermediate(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.intermediate_act_fn = act(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class ViTOutput(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(0.0)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states)) + input_tensor


class ViTLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = ViTAttention(config)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        attended = self.attention(self.layernorm_before(hidden_states), head_mask, output_attentions=output_attentions)
        hidden_states = attended[0] + hidden_states
        return (self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states), *attended[1:])


class Dinov2LayerScale(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, hidden_state: Tensor) -> Tensor:
        return hidden_state * self.lambda1


class Dinov2MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.activation = act(config)
        self.fc2 = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_state)))


class Dinov2Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attention = ViTAttention(config)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.drop_path = DropPath(config.drop_path_rate) if config.drop_path_rate > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = Dinov2MLP(config)
        self.layer_scale2 = Dinov2LayerScale(config)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        attended = self.attention(self.norm1(hidden_states), head_mask, output_attentions=output_attentions)
        hidden_states = self.drop_path(self.layer_scale1(attended[0])) + hidden_states
        layer_output = self.layer_scale2(self.mlp(self.norm2(hidden_states)))
        return (self.drop_path(layer_output) + hidden_states, *attended[1:])


class ViTAttentionV5(nn.Module):
    """As of late versions 5, of ViT and of DINOv2: one module, whose last projection has another name than CLIP's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        rate = self.attention_dropout if self.training else 0.0
        out, weights = attend(q, k, v, attention_mask, self.scaling, rate, self.config.implementation)
        return self.o_proj(out.flatten(2)), weights


class ViTLayerV5(nn.Module):
    """One MLP module, and one dropout for both branches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = ViTAttentionV5(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.mlp = CLIPMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = self.dropout(attended) + hidden_states
        return self.dropout(self.mlp(self.layernorm_after(hidden_states))) + hidden_states


class Dinov2LayerV5(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attention = ViTAttentionV5(config)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.drop_path = DropPath(config.drop_path_rate) if config.drop_path_rate > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = CLIPMLP(config)
        self.layer_scale2 = Dinov2LayerScale(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = self.drop_path(self.layer_scale1(attended)) + hidden_states
        return self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states)))) + hidden_states


class Tower(nn.Module):
    def __init__(self, layer: type[nn.Module], config: Config, *masks: None) -> None:
        super().__init__()
        self.masks = masks
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, 8, 8)
        self.position_embedding = nn.Parameter(torch.randn(1, 16, config.hidden_size))
        self.layers = nn.ModuleList(layer(config) for _ in range(config.layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.position_embedding
        for layer in self.layers:
            out = layer(x, *self.masks)
            x = out if isinstance(out, Tensor) else out[0]
        return x


def clip_tower(**options: Any) -> Tower:
    return Tower(CLIPEncoderLayer, Config(hidden_act="quick_gelu", **options), None, None)


def clip_tower_v5(**options: Any) -> Tower:
    return Tower(CLIPEncoderLayerV5, Config(hidden_act="quick_gelu", **options), None)


def vit(**options: Any) -> Tower:
    return Tower(ViTLayer, Config(**options))


def dinov2(**options: Any) -> Tower:
    return Tower(Dinov2Layer, Config(**options))


def vit_v5(**options: Any) -> Tower:
    return Tower(ViTLayerV5, Config(**options))


def dinov2_v5(**options: Any) -> Tower:
    return Tower(Dinov2LayerV5, Config(**options))
