"""What bench_motion_attention times: cases and their cost, inputs, the operator's backends, and other ways to the same.

Every implementation gets strided slices of a packed projection. Peers get them as leaves of their own, and so do not
pay for putting three gradients back into one; the operator writes the packed gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.timing import REFUSALS, short_reason
from motarfuse import reference
from motarfuse.ops import motion_attention, motion_attention_packed
from motarfuse.ops.backends import Request
from motarfuse.ops.motion_attention import OPERATOR

MODES = ("fwd", "bwd", "full")
EXTRAS = ("motion_query", "motion_key", "motion_scale", "key_bias")
# Channels of a folded bias are filled up to this: flash and cuDNN take head widths that are multiples of 8.
WIDTH_MULTIPLE = 8


class Case(NamedTuple):
    """B, H, N, M, d, R; self-attention where N = M. R = 0 has no motion, and keeps the bias of keys."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    channels: int

    @property
    def name(self) -> str:
        tokens = f"{self.queries}" if self.packed else f"{self.queries}+{self.keys}"
        return f"B{self.batch} H{self.heads} N{tokens} d{self.width} R{self.channels}"

    @property
    def packed(self) -> bool:
        return self.queries == self.keys

    def flops(self, mode: str) -> int:
        """Useful FLOPs: two products of q, k, v forward and five backward; motion enters one, and three backward.

        Forward 4 B H N M d + 2 B H N M R, backward 10 B H N M d + 6 B H N M R.
        """
        pairs = self.batch * self.heads * self.queries * self.keys
        forward = pairs * (4 * self.width + 2 * self.channels)
        backward = pairs * (10 * self.width + 6 * self.channels)
        return {"fwd": forward, "bwd": backward, "full": forward + backward}[mode]

    def size_bytes(self, mode: str, dtype: torch.dtype) -> int:
        """Each input read once, each result written once; motion (shared by the heads) and biases in float32.

        Forward q, k, v, out, m_q, m_k, key bias. Backward reads those, dout and one statistic a row, and writes a
        gradient of each input.
        """
        tokens = self.batch * self.heads * self.width * dtype.itemsize * (self.queries + self.keys)
        extras = 4 * self.batch * (self.channels * (self.queries + self.keys) + self.heads * self.keys)
        statistic = 4 * self.batch * self.heads * self.queries
        forward = 2 * tokens + extras
        backward = 4 * tokens + 2 * extras + statistic
        return {"fwd": forward, "bwd": backward, "full": forward + backward + statistic}[mode]


@dataclass
class Inputs:
    """The leaves of one call; those of a case are alike but for their numbers."""

    packed: Tensor  # (B, N, 3, H, d), the storage of the next three; empty where N differs from M
    query: Tensor
    key: Tensor
    value: Tensor
    motion_query: Tensor | None
    motion_key: Tensor | None
    motion_scale: Tensor | None
    key_bias: Tensor
    grad_out: Tensor  # (B, H, N, d), as an output projection's backward leaves it

    @property
    def scale(self) -> float:
        return float(self.query.shape[-1] ** -0.5)

    @property
    def extras(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in EXTRAS}

    @cached_property
    def folded(self) -> dict[str, Tensor]:
        names = ("folded_query", "folded_key", "folded_value")
        return {
            name: tensor.detach().requires_grad_() for name, tensor in zip(names, fold(self, pad=True), strict=True)
        }

    def leaves(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Those of the named tensors that this case has."""
        found = {name: self.folded[name] if name.startswith("folded_") else getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


class Variant(NamedTuple):
    """One implementation.

    Attributes:
        run: (B, H, N, d) from inputs.
        leaves: Names of the inputs that it has gradients for; none where it has a forward only.
        role: "ours"; "peer", the same function by other means; "ideal", a peer that is spared part of the work;
            "unbiased", attention without any bias: no peer, the line that a peer cannot cross.
    """

    run: Callable[[Inputs], Tensor]
    leaves: tuple[str, ...]
    role: str


def draw(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Random inputs: scores of unit variance, motion of about the same, biases of keys between -2 and 0."""
    batch, heads, queries, keys, width, channels = case
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    packed = torch.empty(0)
    if case.packed:
        packed = normal(batch, queries, 3, heads, width, dtype=dtype).requires_grad_()
        query, key, value = packed.detach().permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query = normal(batch, queries, heads, width, dtype=dtype).transpose(1, 2)
        key, value = normal(batch, keys, 2, heads, width, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    motion_query = motion_key = motion_scale = None
    if channels:
        strength = channels**-0.25
        motion_query = (strength * normal(batch, 1, queries, channels)).requires_grad_()
        motion_key = (strength * normal(batch, 1, keys, channels)).requires_grad_()
        motion_scale = (0.5 + torch.rand(heads, generator=generator, device=device)).requires_grad_()
    key_bias = (-2 * torch.rand(batch, heads, keys, generator=generator, device=device)).requires_grad_()
    query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
    grad_out = normal(batch, queries, heads, width, dtype=dtype).transpose(1, 2)
    return Inputs(packed, query, key, value, motion_query, motion_key, motion_scale, key_bias, grad_out)


def exact(inputs: Inputs, biased: bool, device: torch.device) -> dict[str, Tensor]:
    """Result and gradients by the float64 reference, a sample at a time: a whole batch of N x M is large."""
    extras = {name: tensor for name, tensor in inputs.extras.items() if tensor is not None and biased}
    names = ["query", "key", "value", *extras]
    found: dict[str, list[Tensor]] = {name: [] for name in ("out", *names)}
    for sample in range(len(inputs.query)):
        one = slice(sample, sample + 1)
        leaves = {}
        for name in names:
            tensor = getattr(inputs, name).detach().to(device)
            leaves[name] = (tensor if name == "motion_scale" else tensor[one]).double().requires_grad_()
        out = reference.motion_attention(**leaves)
        gradients = torch.autograd.grad(out, list(leaves.values()), inputs.grad_out[one].to(device).double())
        found["out"].append(out.detach())
        for name, gradient in zip(names, gradients, strict=True):
            found[name].append(gradient)
    return {
        name: torch.stack(parts).sum(0) if name == "motion_scale" else torch.cat(parts) for name, parts in found.items()
    }


def error_of(variant: Variant, inputs: Inputs, expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest |x - exact| / |exact| (Frobenius norms) over the result and the gradients, and of which one."""
    leaves = inputs.leaves(variant.leaves)
    with torch.set_grad_enabled(bool(leaves)):
        found = {"out": variant.run(inputs)}
    if leaves:
        gradients = torch.autograd.grad(found["out"], list(leaves.values()), inputs.grad_out)
        found |= zip(leaves, gradients, strict=True)
    if "packed" in found:
        found |= zip(("query", "key", "value"), found.pop("packed").permute(2, 0, 3, 1, 4).unbind(0), strict=True)
    width = inputs.query.shape[-1]
    errors = {}
    for name, tensor in found.items():
        wanted = expected[name.removeprefix("folded_")]
        tensor = tensor[..., :width] if name.startswith("folded_") else tensor
        errors[name] = ((tensor.to(wanted) - wanted).norm() / wanted.norm()).item()
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))  # NaN is the worst
    return errors[worst], worst


def backends(case: Case, inputs: Inputs, timed: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """The operator's backends that can run here, best first (twice if they are timed), and why the others cannot."""
    device = inputs.query.device
    tensors = {name: getattr(inputs, name) for name in ("query", "key", "value", *EXTRAS)}
    able, left_out = [], {}
    for name, backend in OPERATOR.backends.items():
        reasons = backend.not_supported_reasons(Request(device, tensors, {"scale": inputs.scale}))
        if timed and name == "triton" and device.type == "cpu":
            reasons = reasons or ["its interpreter shows what a kernel computes, not how fast"]
        if reasons:
            left_out[name] = "; ".join(reasons)
        else:
            able.append(name)

    def slices(impl: str) -> Callable[[Inputs], Tensor]:
        return lambda one: motion_attention(one.query, one.key, one.value, impl=impl, **one.extras)

    def packed(impl: str) -> Callable[[Inputs], Tensor]:
        return lambda one: motion_attention_packed(one.packed, impl=impl, **one.extras).transpose(1, 2)

    separate = ("query", "key", "value", *EXTRAS)
    found = {}
    for name in able:
        leaves = ("packed", *EXTRAS) if case.packed else separate
        variant = Variant(packed(name) if case.packed else slices(name), leaves, "ours")
        found[name] = variant
        if name == able[0] and timed:
            found[f"{name}, again"] = variant
        if name == able[0] and case.packed:
            found[f"{name}, gradients apart"] = Variant(slices(name), separate, "ours")
    return found, left_out


def peers(device: torch.device, flex: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """Other ways to the same, and why some are not there.

    Args:
        device: Where they run.
        flex: Whether to compile FlexAttention, which takes seconds for each case.
    """
    leaves, only_tokens = ("query", "key", "value", *EXTRAS), ("query", "key", "value")
    found = {"SDPA, bias materialised": Variant(lambda one: _materialised(one, None), leaves, "peer")}
    left_out = {}
    # On a CPU there is one kernel to choose, and naming it would cost microseconds.
    kernels: dict[str, SDPBackend | None] = {"SDPA": None}
    if device.type == "cuda":
        kernels = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
        cudnn = SDPBackend.CUDNN_ATTENTION
        found["SDPA cuDNN, bias materialised"] = Variant(lambda one: _materialised(one, cudnn), leaves, "peer")
    for name, kernel in kernels.items():
        found |= _folded(name, kernel)
        found[f"{name}, no bias"] = Variant(partial(_unbiased, kernel=kernel), only_tokens, "unbiased")
    flex_name, xformers_name = "FlexAttention, bias captured", "xformers, bias materialised"
    if device.type != "cuda":
        left_out[flex_name] = "it is compared on CUDA only"
    elif not flex:
        left_out[flex_name] = "not compiled for this case (--flex compiles it for all)"
    else:
        found[flex_name] = Variant(_flex(), leaves, "peer")
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]
    except REFUSALS as error:
        left_out[xformers_name] = short_reason(error)
    else:
        found[xformers_name] = Variant(lambda one: _xformers(one, memory_efficient_attention), leaves, "peer")
    return found, left_out


def fold(inputs: Inputs, *, pad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The bias as channels beside d: [q, lambda m_q / scale, 1] . [k, m_k, bias / scale] = score / scale.

    Args:
        inputs: What is folded.
        pad: Whether to widen the value too, which flash needs: its three tensors have one width.
    """
    query, key, value, scale = inputs.query, inputs.key, inputs.value, inputs.scale
    batch, heads, queries, width = query.shape
    left, right = [query], [key]
    if inputs.motion_query is not None and inputs.motion_key is not None and inputs.motion_scale is not None:
        motion = (inputs.motion_scale[:, None, None] / scale) * inputs.motion_query
        left.append(motion.to(query.dtype))
        right.append(inputs.motion_key.to(key.dtype).expand(-1, heads, -1, -1))
    left.append(query.new_ones(()).expand(batch, heads, queries, 1))
    right.append((inputs.key_bias / scale).to(key.dtype)[..., None])
    channels = sum(part.shape[-1] for part in left)
    filling = -channels % WIDTH_MULTIPLE
    if filling:
        left.append(query.new_zeros(()).expand(batch, heads, queries, filling))
        right.append(key.new_zeros(()).expand(batch, heads, key.shape[2], filling))
    if pad:
        value = F.pad(value, (0, channels + filling - width))
    return torch.cat(left, dim=-1), torch.cat(right, dim=-1), value


def _folded(name: str, kernel: SDPBackend | None) -> dict[str, Variant]:
    pad = kernel != SDPBackend.CUDNN_ATTENTION

    def with_concat(inputs: Inputs) -> Tensor:
        query, key, value = fold(inputs, pad=pad)
        return _sdpa(query, key, value, inputs.scale, kernel)[..., : inputs.value.shape[-1]]

    names = ("folded_query", "folded_key", "folded_value" if pad else "value")

    def without(inputs: Inputs) -> Tensor:
        query, key, value = inputs.leaves(names).values()
        return _sdpa(query, key, value, inputs.scale, kernel)[..., : inputs.value.shape[-1]]

    return {
        f"{name}, bias folded": Variant(with_concat, ("query", "key", "value", *EXTRAS), "peer"),
        f"{name}, bias folded, no concat": Variant(without, names, "ideal"),
    }


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: SDPBackend | None, mask: Tensor | None = None
) -> Tensor:
    if kernel is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    with sdpa_kernel([kernel]):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _unbiased(inputs: Inputs, kernel: SDPBackend | None) -> Tensor:
    return _sdpa(inputs.query, inputs.key, inputs.value, inputs.scale, kernel)


def _bias(inputs: Inputs) -> Tensor:
    """(B, H, N, M) of the query's dtype."""
    bias = inputs.key_bias[:, :, None]
    if inputs.motion_query is not None and inputs.motion_key is not None and inputs.motion_scale is not None:
        motion = inputs.motion_query @ inputs.motion_key.transpose(-1, -2)
        bias = inputs.motion_scale[:, None, None] * motion + bias
    return bias.to(inputs.query.dtype).expand(-1, -1, inputs.query.shape[2], -1)


def _materialised(inputs: Inputs, kernel: SDPBackend | None) -> Tensor:
    return _sdpa(inputs.query, inputs.key, inputs.value, inputs.scale, kernel, _bias(inputs))


def _xformers(inputs: Inputs, attention: Callable[..., Tensor]) -> Tensor:
    bias = _bias(inputs)
    # Its kernels read rows of the bias that start at multiples of 8.
    bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
    query, key, value = (tensor.transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value))
    return attention(query, key, value, attn_bias=bias, scale=inputs.scale).transpose(1, 2)


def _flex() -> Callable[[Inputs], Tensor]:
    import torch._functorch.config as functorch_config
    from torch.nn.attention.flex_attention import flex_attention

    functorch_config.donated_buffer = False  # its backward is run many times after one forward

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[b, h, i, j]

        return flex_attention(query, key, value, score_mod=add_bias, scale=scale)

    compiled = torch.compile(attend, dynamic=False, fullgraph=True)
    return lambda one: compiled(one.query, one.key, one.value, _bias(one), one.scale)
