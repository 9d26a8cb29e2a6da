"""Whether a new forward computes what a module's own does, asked of a stand-in with random parameters.

A structure says what a module is likely to compute, not what its forward does with it. So both forwards run on a few
random tokens, in float64 on the CPU, in evaluation and in training mode, and outputs and gradients must agree, outputs
also on more tokens than most windows have: a subclass that adds a bias, norms after the addition or keeps its attention
weights is found out whatever it is called.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from motarfuse.ops import use_backend

# Code that computes a softmax or a norm in float32 errs by 1e-6; another formula is wrong in the first digits.
_TOLERANCE = 1e-4
_SHAPE = (2, 5)
# By mode: in training more than a window of 7x7, in evaluation the tokens of a ViT-L/14 at 336, where windows of up to
# 24x24 tokens differ from attention to all.
_LONG = {True: (1, 50), False: (1, 577)}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_CONTAINERS = (dict, list, tuple, set)
# What code that was not written for such a call may raise.
_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, NotImplementedError)


def stand_in(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of random float64 numbers on the CPU, without hooks; shares all else."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for each in module.modules():
        for name in _HOOKS:
            memo[id(getattr(each, name))] = OrderedDict()
        for value in vars(each).values():
            is_bound = isinstance(value, MethodType) and isinstance(value.__self__, nn.Module)
            if not is_bound and not isinstance(value, (*_CONTAINERS, Tensor, nn.Module)):
                memo[id(value)] = value  # configurations and functions
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_numbers(parameter.shape, generator))
    for buffer in module.buffers():
        if buffer.is_floating_point():
            memo[id(buffer)] = _numbers(buffer.shape, generator)
    return copy.deepcopy(module, memo)


def returned(module: nn.Module, width: int, skipped: tuple[str, ...]) -> int | str:
    """What `Plan.returns` is for a stand-in; a sentence where it is not known how to replace its forward.

    Args:
        module: The stand-in.
        width: Of the tokens.
        skipped: Children that would not be called any more.
    """
    watched = [module, *(each for name in skipped for each in module._modules[name].modules())]  # type: ignore[union-attr]
    forms: list[int | str] = []
    for training in (False, True):
        module.train(training)
        before = [_held(each) for each in watched]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                forms.append(_form_of(_call(module, _tokens(width))))
        except _ERRORS as error:
            return f"its forward raises on plain tokens: {first_line(error)}"
        kept = {name for each, held in zip(watched, before, strict=True) for name in _changed(held, _held(each))}
        if kept:
            return f"its forward keeps {', '.join(sorted(kept))}{' in training' if training else ''}"
    return forms[0] if forms[0] == forms[1] else "its forward returns something else in training"


def _form_of(out: Any) -> int | str:
    if isinstance(out, Tensor):
        return 0
    if isinstance(out, tuple) and out and isinstance(out[0], Tensor):
        if any(other is not None for other in out[1:]):
            return "it returns more than tokens, such as attention weights (Hugging Face: attn_implementation='sdpa')"
        return len(out)
    return f"its forward returns {type(out).__name__}"


def disagreement(module: nn.Module, swapped: type[nn.Module], width: int) -> str:
    """Why another class must not be that of a stand-in; empty where outputs and gradients are the same."""
    original = type(module)
    for training in (False, True):
        module.train(training)
        try:
            expected = _outputs_and_gradients(module, width)
            module.__class__ = swapped
            with use_backend("reference"):  # whatever the device, the operators serve
                found = _outputs_and_gradients(module, width)
        except _ERRORS as error:
            return f"it cannot be compared with its replacement: {first_line(error)}"
        finally:
            module.__class__ = original
        when = " in training" if training else ""
        # Output and gradients, each beside its own largest number.
        if not all(_same(expected[part], found[part]) for part in (slice(0, 1), slice(1, -1))):
            return f"its forward computes something else{when}"
        if not _same(expected[-1:], found[-1:]):
            return f"its forward computes something else{when} on {_LONG[training][1]} tokens, as windows do"
    return ""


def first_parameter(module: nn.Module) -> str:
    """The name of the forward's first parameter."""
    return next(iter(inspect.signature(module.forward).parameters), "")


def _held(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Attributes by name: each object itself, what a container has in it, how often a tensor was written to."""
    held = {}
    for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
        inside: tuple[Any, ...] = ()
        if isinstance(value, dict):
            inside = (*value.keys(), *value.values())
        elif isinstance(value, (list, tuple, set)):
            inside = tuple(value)
        elif isinstance(value, Tensor):
            inside = (value._version,)
        held[name] = (value, *inside)
    return held


def _changed(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    # By identity: an attribute may hold what cannot be compared.
    return [
        name
        for name, held in after.items()
        if name not in before
        or len(before[name]) != len(held)
        or any(one is not other for one, other in zip(before[name], held, strict=True))
    ]


def _call(module: nn.Module, tokens: Tensor) -> Any:
    if isinstance(module, nn.MultiheadAttention):
        return module(tokens, tokens, tokens, need_weights=False)
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return module(tokens, *(None for one in positional if one.default is one.empty))


def _outputs_and_gradients(module: nn.Module, width: int) -> list[Tensor | None]:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(1)
        tokens = _tokens(width).requires_grad_()
        out = _called(module, tokens)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        leaves = [tokens, *module.parameters()]
        gradients = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
        with torch.no_grad():
            many = _called(module, _tokens(width, _LONG[module.training]))
    return [out.detach(), *gradients, many]


def _called(module: nn.Module, tokens: Tensor) -> Tensor:
    out = _call(module, tokens)
    return out if isinstance(out, Tensor) else out[0]


def _same(expected: list[Tensor | None], found: list[Tensor | None]) -> bool:
    """Beside the largest number of all: a gradient may be zero but for rounding, as that of a key's bias."""
    largest = max((float(tensor.abs().max()) for tensor in expected if tensor is not None), default=0.0)
    for one, other in zip(expected, found, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        elif one.shape != other.shape or not float((one - other).abs().max()) <= _TOLERANCE * largest:
            return False
    return True


def activation_of(activate: Callable[[Tensor], Tensor]) -> str:
    """What ``bias_gelu`` calls an activation, by its values; empty for any other."""
    points = torch.linspace(-6, 6, 97, dtype=torch.float64)
    functional = nn.functional
    known: dict[str, Tensor] = {
        "gelu": functional.gelu(points),
        "gelu_tanh": functional.gelu(points, approximate="tanh"),
        "quick_gelu": points * torch.sigmoid(1.702 * points),
    }
    try:
        with torch.no_grad():
            found = activate(points.clone())
    except _ERRORS:
        return ""
    if not isinstance(found, Tensor) or found.shape != points.shape:
        return ""
    # erf and tanh differ by 5e-4; code in float32 errs by 1e-6.
    return next((name for name, values in known.items() if bool((values - found).abs().max() < 1e-5)), "")


def _tokens(width: int, shape: tuple[int, int] = _SHAPE) -> Tensor:
    return torch.randn(*shape, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _numbers(shape: torch.Size, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers / shape[-1] ** 0.5 if len(shape) > 1 else 0.5 + 0.3 * numbers


def first_line(error: BaseException) -> str:
    """What an error says, for a report."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
