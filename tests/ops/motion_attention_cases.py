"""What the tests of motion attention share: inputs, and the check of outputs and gradients by the tolerance rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from motarfuse import reference
from tests.tolerance import assert_close, max_error

NAMES = ("query", "key", "value", "motion_query", "motion_key", "motion_scale", "key_bias")
ATTENDED = NAMES[:3]
Function = Callable[..., torch.Tensor]
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A call of motion_attention.

    Attributes:
        bias: ``"head"`` is (B, H, M), ``"batch"`` (B, M), ``"none"`` without a key bias.
        shared: Motion (B, 1, N, R) instead of (B, H, N, R).
        hidden: -inf for a few keys, and for all keys of the last head (of the last batch element with ``"batch"``).
        motion_dtype: None is float32 beside half types, else the query's.
    """

    queries: int
    keys: int
    width: int = 64
    channels: int = 10
    batch: int = 1
    heads: int = 2
    bias: str = "head"
    shared: bool = True
    hidden: bool = False
    motion_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        text = f"{self.batch}x{self.heads}x{self.queries}x{self.keys}x{self.width}-R{self.channels}-{self.bias}"
        return text + ("" if self.shared else "-own") + ("-hidden" if self.hidden else "")


def square(length: int, **changes: Any) -> Shape:
    return replace(Shape(length, length), **changes)


def inputs_of(shape: Shape, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Inputs:
    """Query, key and value as slices of a packed projection where they are equally long, with motion and bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    s, b = shape, shape.batch
    if s.queries == s.keys:
        query, key, value = draw(b, s.queries, 3, s.heads, s.width).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query = draw(b, s.queries, s.heads, s.width).to(dtype).transpose(1, 2)
        key, value = draw(b, s.keys, 2, s.heads, s.width).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    found = {"query": query, "key": key, "value": value}
    motion_dtype = s.motion_dtype or (dtype if dtype == torch.float64 else torch.float32)
    if s.channels:
        heads = 1 if s.shared else s.heads
        found["motion_query"] = draw(b, heads, s.queries, s.channels).to(motion_dtype)
        found["motion_key"] = draw(b, heads, s.keys, s.channels).to(motion_dtype)
        found["motion_scale"] = (draw(s.heads).abs() + 0.1).to(motion_dtype)
    if s.bias != "none":
        bias = draw(b, s.heads, s.keys) if s.bias == "head" else draw(b, s.keys)
        if s.hidden:
            bias[..., s.keys // 3 :: 5] = -torch.inf
            bias[-1, ...] = bias[-1, ...] if s.bias == "head" else -torch.inf
            if s.bias == "head":
                bias[-1, -1] = -torch.inf
        found["key_bias"] = bias.to(motion_dtype)
    return {name: tensor.to(device) for name, tensor in found.items()}


def incoming_gradient(out: torch.Tensor) -> torch.Tensor:
    """The gradient of a (B, H, N, d) output that all tests take, as the next projection's backward leaves it."""
    batch, heads, rows, width = out.shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, rows, heads, width, generator=generator, dtype=torch.float64).transpose(1, 2).to(out)


def outputs_and_gradients(function: Function, inputs: Inputs, wanted: Sequence[str] = NAMES) -> Inputs:
    """The output and the gradients of those inputs that are wanted."""
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in inputs.items()}
    out = function(**leaves)
    names = [name for name in leaves if name in wanted]
    if not names:
        return {"out": out}
    gradients = torch.autograd.grad(out, [leaves[name] for name in names], incoming_gradient(out))
    return {"out": out.detach(), **dict(zip(names, gradients, strict=True))}


def check(function: Function, inputs: Inputs, wanted: Sequence[str] = NAMES) -> Inputs:
    """The rule of tests/tolerance.py for the output and every gradient; returns them.

    Beside half queries, gradients of float32 motion and bias are sums of products of half numbers: their rule is that
    of the query's dtype. The gradient of motion_scale adds up all pairs of a batch, and what there is to one key alone
    is zero: their scale is that of the terms before they cancel. Eager is taken with its sums in four orders, and the
    largest error counts: one order's can be small by luck.
    """
    dtype = inputs["query"].dtype
    exact_inputs = {name: tensor.double() for name, tensor in inputs.items()}
    exact = outputs_and_gradients(reference.motion_attention, exact_inputs, wanted)
    eagers = [outputs_and_gradients(one, inputs, wanted) for one in EAGERS]
    result = outputs_and_gradients(function, inputs, wanted)
    assert list(result) == list(exact)
    for name, value in result.items():
        scale = None
        if name == "motion_scale":
            scale = _scale_of_motion_scale(exact_inputs)
        elif inputs["key"].shape[2] == 1 and name not in ("out", "value"):
            scale = (inputs["value"].abs().amax() * inputs["key"].abs().amax()).item()
        eager = max((one[name] for one in eagers), key=lambda one: max_error(one, exact[name]))
        assert_close(name, value, eager, exact[name], dtype=dtype, scale=scale)
        if name != "out":
            assert value.shape == inputs[name].shape
    return result


def _reversed(*, keys: bool, channels: bool) -> Function:
    """Eager with its sums over keys and over channels in the other order: the same function, other rounding."""
    flips: dict[str, list[int]] = {name: [] for name in NAMES}
    if keys:
        flips |= {"key": [2], "value": [2], "motion_key": [2], "key_bias": [-1]}
    for name in ("query", "key", "motion_query", "motion_key") if channels else ():
        flips[name] = [*flips[name], 3]

    def function(**inputs: torch.Tensor) -> torch.Tensor:
        named: dict[str, Any] = {name: tensor.flip(flips[name]) for name, tensor in inputs.items()}
        return reference.motion_attention(**named)

    return function


EAGERS = [_reversed(keys=keys, channels=channels) for keys in (False, True) for channels in (False, True)]


def _scale_of_motion_scale(inputs: Inputs) -> float:
    """Of dlambda_h = sum_ij P_ij (dP_ij - delta_i) (m_i m_j): a row adds up sizes, rows add independently."""
    query, key, value = (inputs[name] for name in ATTENDED)
    motion = (inputs["motion_query"] @ inputs["motion_key"].mT).abs()
    scores = query @ key.mT * query.shape[-1] ** -0.5
    scores = scores + inputs["motion_scale"][:, None, None] * (inputs["motion_query"] @ inputs["motion_key"].mT)
    if "key_bias" in inputs:
        bias = inputs["key_bias"]
        scores = scores + (bias if bias.dim() == 3 else bias[:, None])[:, :, None]
    weight = torch.softmax(scores, dim=-1).nan_to_num()
    grad_weight = incoming_gradient(query) @ value.mT
    delta = (weight * grad_weight).sum(dim=-1, keepdim=True)
    rows = (weight * (grad_weight.abs() + delta.abs()) * motion).sum(dim=-1)
    return rows.square().sum(dim=(0, 2)).sqrt().max().item()
