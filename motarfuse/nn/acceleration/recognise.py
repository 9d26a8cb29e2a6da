"""Modules that can run operators, found by what they consist of: attribute names and types, no library imported.

A structure nominates a module and names its parts; ``probe`` then tells whether its forward is the one expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from motarfuse.nn.acceleration import forwards
from motarfuse.nn.acceleration.forwards import (
    Accelerated,
    BlockNames,
    LinearGelu,
    MlpNames,
    PackedAttention,
    PackedNames,
    ResidualNorm,
    SplitAttention,
    SplitNames,
    TorchAttention,
)
from motarfuse.nn.acceleration.plan import activation_as_found
from motarfuse.nn.acceleration.probe import activation_of, first_line


class Nominee(NamedTuple):
    """A module's new forward, if the probe agrees.

    Attributes:
        forward: The class with the new forward.
        details: What the plan tells it.
        skipped: Names of the children that it passes over.
        width: Of the tokens.
        operator: The operator it runs.
        note: For the report.
    """

    forward: type[Accelerated]
    details: Any
    skipped: tuple[str, ...]
    width: int
    operator: str
    note: str = ""


class Unfit(Exception):  # noqa: N818 (an answer, not an error)
    """Of the kind that is looked for, and why it must be left alone."""


Recogniser = Callable[[nn.Module], "Nominee | None"]
_HEADS = ("num_heads", "num_attention_heads", "heads")
_SCALES = ("scale", "scaling")


def attention(module: nn.Module) -> Nominee | None:
    """Self-attention: torch's, with a packed projection, or with three."""
    if isinstance(module, nn.MultiheadAttention):
        return _torch_attention(module)
    if _has(module, "qkv", "proj"):
        return _packed_attention(module)
    if _has(module, "q_proj", "k_proj", "v_proj"):
        output = next((name for name in ("out_proj", "o_proj") if _has(module, name)), "out_proj")
        return _split_attention(module, ("q_proj", "k_proj", "v_proj"), output)
    if _has(module, "query", "key", "value"):
        return _split_attention(module, ("query", "key", "value"), "")
    return None


def mlp(module: nn.Module) -> Nominee | None:
    """A linear layer with an activation behind it, alone or followed by more."""
    if isinstance(module, nn.Sequential):
        names = tuple(module._modules)
        kinds = [type(child) for child in module]
        linears = [index for index, kind in enumerate(kinds) if issubclass(kind, nn.Linear)]
        if len(names) < 3 or len(linears) != 2 or linears[0] != 0 or linears[1] < 2:
            return None
        return _linear_gelu(module, names[0], names[1], None)
    for linear, activations in (("fc1", ("act", "activation_fn", "activation")), ("dense", ("intermediate_act_fn",))):
        if not _has(module, linear) or (linear == "fc1" and not _has(module, "fc2")):
            continue
        name = next((name for name in activations if getattr(module, name, None) is not None), "")
        if name:
            rest = _after_activation(module) if linear == "fc1" else ()
            return _linear_gelu(module, linear, name, rest)
    return None


def block(module: nn.Module) -> Nominee | None:
    """A pre-LN transformer block."""
    for children, names in _BLOCKS:
        if _has(module, *children, names.norm1, names.norm2):
            return _residual_norm(module, names)
    return None


# By kind of block: children that tell it, beside the norms.
_BLOCKS = (
    (
        ("attn", "mlp"),
        BlockNames("norm1", "norm2", forwards.attended_by_attn, forwards.second_by_mlp),
    ),
    (
        ("self_attention", "mlp"),
        BlockNames("ln_1", "ln_2", forwards.attended_by_self_attention, forwards.second_by_mlp, dropout="dropout"),
    ),
    (
        ("attn", "mlp"),
        BlockNames("ln_1", "ln_2", forwards.attended_by_method, forwards.second_by_mlp),
    ),
    (
        ("self_attn", "mlp"),
        BlockNames("layer_norm1", "layer_norm2", forwards.attended_by_self_attn, forwards.second_by_mlp),
    ),
    (
        ("attention", "intermediate", "output"),
        BlockNames("layernorm_before", "layernorm_after", forwards.attended_by_attention, forwards.second_by_output),
    ),
    (
        ("attention", "mlp"),
        BlockNames(
            "layernorm_before", "layernorm_after", forwards.attended_by_attention, forwards.second_by_mlp,
            dropout="dropout", drop2="dropout",
        ),
    ),
    (
        ("attention", "mlp"),
        BlockNames("norm1", "norm2", forwards.attended_by_attention, forwards.second_by_mlp),
    ),
)  # fmt: skip
_SCALED_BY = (("ls1", "ls2"), ("ls_1", "ls_2"), ("layer_scale1", "layer_scale2"))
_DROPPED_BY = (("drop_path1", "drop_path2"), ("drop_path", "drop_path"))


def _torch_attention(module: nn.MultiheadAttention) -> Nominee:
    if module.in_proj_weight is None:
        raise Unfit("keys and values have widths of their own")
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        raise Unfit("it attends to a key of its own (add_bias_kv, add_zero_attn)")
    note = _dropout_note(module.dropout)
    return Nominee(TorchAttention, None, (), module.embed_dim, "motion_attention_packed", note)


def _packed_attention(module: nn.Module) -> Nominee | None:
    qkv, heads = module._modules["qkv"], _heads_of(module)
    if not isinstance(qkv, nn.Linear):
        return None  # of a convolutional network
    if qkv.out_features != 3 * qkv.in_features:
        raise Unfit(f"qkv maps {qkv.in_features} to {qkv.out_features} channels, not to three times as many")
    identities = _identities(module, {"q_norm": "query norm", "k_norm": "key norm", "norm": "norm"})
    drop = _first_attribute(module, ("attn_drop",))
    out_drop = _first_attribute(module, ("proj_drop",))
    known = {"qkv", "proj", "q_norm", "k_norm", "norm", drop, out_drop}
    _check_nothing_else(module, known)
    names = PackedNames(heads, _scale_of(module), drop, out_drop)
    skipped = (*identities, *((drop,) if drop in module._modules else ()))
    note = _dropout_note(getattr(module, drop, None))
    return Nominee(PackedAttention, names, skipped, qkv.in_features, "motion_attention_packed", note)


def _split_attention(module: nn.Module, projections: tuple[str, str, str], output: str) -> Nominee:
    query, key, value = projections
    linears = [module._modules[name] for name in projections]
    widths = {(one.in_features, one.out_features) for one in linears if isinstance(one, nn.Linear)}
    if len(widths) != 1 or any(not isinstance(one, nn.Linear) for one in linears):
        raise Unfit("query, key and value are not three linear layers of the same widths")
    if output and not _has(module, output):
        raise Unfit(f"it has no {output}")
    drop = _first_attribute(module, ("dropout", "dropout_prob", "attention_dropout"))
    _check_nothing_else(module, {*projections, output, drop})
    names = SplitNames(query, key, value, output, _heads_of(module), _scale_of(module), drop)
    skipped = (drop,) if drop in module._modules else ()
    note = _dropout_note(getattr(module, drop, None))
    return Nominee(SplitAttention, names, skipped, widths.pop()[0], "motion_attention", note)


def _linear_gelu(module: nn.Module, linear: str, activate: str, rest: tuple[str, ...] | None) -> Nominee:
    layer, activation = module._modules[linear], getattr(module, activate)
    if not isinstance(layer, nn.Linear):
        raise Unfit(f"{linear} is {type(layer).__name__}, not nn.Linear")
    if layer.bias is None:
        raise Unfit(f"{linear} has no bias to fuse")
    if not callable(activation):
        raise Unfit(f"{activate} is neither a module nor a function: {activation!r}")
    is_module = isinstance(activation, nn.Module)
    name = "" if is_module and any(True for _ in activation.parameters()) else activation_of(activation)
    if not name:
        kind = type(activation).__name__ if is_module else getattr(activation, "__name__", repr(activation))
        raise Unfit(f"its activation, {kind}, is none of gelu, gelu_tanh and quick_gelu")
    skipped = (linear, activate) if is_module else (linear,)
    names = MlpNames(linear, name, activation_as_found(module, activate), rest)
    try:
        hash(names)
    except TypeError as error:
        raise Unfit(f"its activation could not be told from another later: {first_line(error)}") from error
    return Nominee(LinearGelu, names, skipped, layer.in_features, f"bias_gelu ({name})")


def _after_activation(module: nn.Module) -> tuple[str, ...]:
    """Children behind the activation of an MLP with fc1 and fc2, in the order in which they run."""
    if "drop1" in module._modules:
        return tuple(name for name in ("drop1", "norm", "fc2", "drop2") if name in module._modules)
    return ("drop", "fc2", "drop") if "drop" in module._modules else ("fc2",)


def _residual_norm(module: nn.Module, names: BlockNames) -> Nominee:
    norm = module._modules[names.norm2]
    if not isinstance(norm, nn.LayerNorm):
        raise Unfit(f"{names.norm2} is {type(norm).__name__}, not nn.LayerNorm")
    if norm.weight is None or norm.bias is None or len(norm.normalized_shape) != 1:
        raise Unfit(f"{names.norm2} has no weight, no bias, or more than one dimension")
    width = norm.normalized_shape[0]
    skipped = [names.norm2]
    if names.dropout and names.dropout not in module._modules:
        names = names._replace(dropout="", drop2="")
    for scale1, scale2 in _SCALED_BY:
        if _has(module, scale1, scale2):
            skipped.append(scale1)
            names = names._replace(scale2=scale2)  # called, be it the identity now: another may come to its place
            if not isinstance(module._modules[scale1], nn.Identity):
                gamma = _vector_of(module._modules[scale1], scale1, width)
                names = names._replace(scale1=scale1, gamma1=gamma)
            break
    for drop1, drop2 in _DROPPED_BY:
        if _has(module, drop1, drop2):
            skipped.append(drop1)
            names = names._replace(drop2=drop2)
            if not isinstance(module._modules[drop1], nn.Identity):
                names = names._replace(drop1=drop1)
            break
    return Nominee(ResidualNorm, names, tuple(skipped), width, f"add_layer_norm ({names.norm2})")


def _vector_of(scale: nn.Module | None, name: str, width: int) -> str:
    """The name of the one vector that a layer scale multiplies with."""
    held = [] if scale is None else list(scale.named_parameters())
    if len(held) != 1 or tuple(held[0][1].shape) != (width,) or "." in held[0][0]:
        raise Unfit(f"{name} is {type(scale).__name__}, not one factor for each channel")
    return held[0][0]


def _has(module: nn.Module, *names: str) -> bool:
    return all(isinstance(module._modules.get(name), nn.Module) for name in names)


def _heads_of(module: nn.Module) -> str:
    name = _first_attribute(module, _HEADS)
    if not isinstance(getattr(module, name, None), int):
        raise Unfit("it does not say how many heads it has")
    return name


def _scale_of(module: nn.Module) -> str:
    """The attribute with the factor of the scores; without one, and with None, it is 1 / sqrt(d)."""
    name = _first_attribute(module, _SCALES)
    if name and not isinstance(getattr(module, name), float):
        raise Unfit(f"{name} is no number: {type(getattr(module, name)).__name__}")
    return name


def _first_attribute(module: nn.Module, names: tuple[str, ...]) -> str:
    return next((name for name in names if getattr(module, name, None) is not None), "")


def _identities(module: nn.Module, names: dict[str, str]) -> list[str]:
    """Children that must be the identity."""
    there = [name for name in names if module._modules.get(name) is not None]
    for name in there:
        if not isinstance(module._modules[name], nn.Identity):
            raise Unfit(f"it has a {names[name]} ({name} is {type(module._modules[name]).__name__})")
    return there


def _check_nothing_else(module: nn.Module, known: set[str]) -> None:
    others = list(_others(module, known))
    if others:
        raise Unfit(f"it has more than plain attention: {', '.join(others[:4])}")


def _others(module: nn.Module, known: set[str]) -> Iterator[str]:
    yield from (name for name, tensor in module._parameters.items() if tensor is not None)
    yield from (name for name, tensor in module._buffers.items() if tensor is not None)
    yield from (
        name
        for name, child in module._modules.items()
        if name not in known and child is not None and not isinstance(child, nn.Identity)
    )


def _dropout_note(drop: Any) -> str:
    rate = forwards.rate_of(drop)
    return f"its own forward while training, for its dropout of {rate:g}" if rate else ""
