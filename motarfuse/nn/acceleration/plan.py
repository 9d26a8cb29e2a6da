"""How the forward of one module is to run: found once, kept in its new class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from motarfuse.ops.backends import operators, preference

_SETTINGS = (bool, int, float, str, type(None))
# Whether an operator has a kernel on a device; found at the first call there, as a pickled model may come to another
# machine.
_HAS_KERNEL: dict[tuple[str, torch.device], bool] = {}


class Plan(NamedTuple):
    """What a new forward has to know of a module beside the module's own attributes.

    Attributes:
        argument: Name of the forward's first parameter.
        skipped: Children whose own forward is not called, with the types that they had: hooks on them, or another
            module in their place, call for the module's own forward.
        returns: 0 where the forward returns a tensor, else the length of a tuple of that tensor and ``None``s.
        operator: Name of the operator; where it has no kernel for a GPU, its reference is no gain there.
        details: What this kind of forward needs.
    """

    argument: str
    skipped: tuple[tuple[str, type], ...]
    returns: int
    operator: str
    details: Any


def operators_serve(plan: Plan, tensor: Tensor) -> bool:
    """Whether the operators take a call: on a GPU, and wherever the user prefers a backend.

    On a CPU a block of them is no faster than PyTorch's functions (docs/operators.md), and attention is PyTorch's own
    after a check of the arguments, so that the module's own forward runs, also where it stores its scores.
    """
    if tensor.is_cuda:
        serves = preference() is not None or operator_has_kernel(plan.operator, tensor.device)
    else:
        serves = preference() is not None
    return serves and not tensor.is_nested


def served_tokens(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tokens (B, N, D) of a call that the operators take; None for any other.

    They are the first argument, and the only one that is neither None nor False: no mask, nothing asked for. Whether
    operators serve at all is asked first, since that is all that a call on a CPU costs.
    """
    tokens = args[0] if args else kwargs.get(plan.argument)
    if not isinstance(tokens, Tensor) or not operators_serve(plan, tokens) or tokens.dim() != 3:
        return None
    for other in args[1:]:
        if other is not None and other is not False:
            return None
    for name, other in kwargs.items():
        if other is not None and other is not False and (args or name != plan.argument):
            return None
    return tokens


def is_untouched(module: nn.Module) -> bool:
    """Whether nothing listens to a module's calls."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or has_foreign_forward(module)
    )


def has_foreign_forward(module: nn.Module) -> bool:
    """Whether an instance has a forward of its own; not so where one was replaced, and its class's put back there."""
    found = module.__dict__.get("forward")
    if found is None:
        return False
    is_own = isinstance(found, MethodType) and found.__self__ is module and found.__func__ is type(module).forward
    return not is_own


def children_are_plain(module: nn.Module, plan: Plan) -> bool:
    """Whether the children that are passed over are as they were found, and nobody listens to them."""
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return False
    children = module._modules
    for name, kind in plan.skipped:
        child = children.get(name)
        if child is None or type(child) is not kind or not is_untouched(child):
            return False
    return True


class Activation(NamedTuple):
    """An activation that is passed over, as it was found: its values are no longer asked for.

    Attributes:
        attribute: Of the module that calls it.
        settings: Of a module, whose type `Plan.skipped` has, its attributes that are numbers, names or functions, with
            what they are; None of a function.
        function: On the instance; None where it is the class's, which need not be one that can be pickled.
    """

    attribute: str
    settings: tuple[tuple[str, Any], ...] | None
    function: Any = None


def activation_as_found(module: nn.Module, attribute: str) -> Activation:
    """What `activation_is_unchanged` compares with."""
    activation = getattr(module, attribute)
    if not isinstance(activation, nn.Module):
        return Activation(attribute, None, _identity(vars(module).get(attribute)))
    settings = tuple(
        (name, _identity(value))
        for name, value in vars(activation).items()
        if name != "training" and not name.startswith("_") and (isinstance(value, _SETTINGS) or callable(value))
    )
    return Activation(attribute, settings)


def activation_is_unchanged(module: nn.Module, found: Activation) -> bool:
    """Whether a module's activation is the function, or has the settings, that it had."""
    activation = getattr(module, found.attribute, None)
    if found.settings is not None:
        return all(_identity(getattr(activation, name, None)) == value for name, value in found.settings)
    expected = found.function
    if expected is None:
        expected = _identity(getattr(type(module), found.attribute, None))
    return bool(_identity(activation) == expected)


def _identity(value: Any) -> Any:
    """Equal for a setting and its copies: a method and a partial function are others in each copy of a module."""
    if isinstance(value, MethodType):
        return value.__func__
    if isinstance(value, partial):
        return (value.func, value.args, tuple(value.keywords.items()))
    return value


@torch.compiler.assume_constant_result
def operator_has_kernel(name: str, device: torch.device) -> bool:
    """Whether ``impl="auto"`` would take anything but the reference for a typical call on a device."""
    if (name, device) not in _HAS_KERNEL:
        operator = operators()[name]
        request = operator.example(device)
        _HAS_KERNEL[name, device] = any(
            backend.name != "reference"
            and not backend.not_supported_reasons(request)
            and not backend.auto_reasons(request)
            for backend in operator.backends.values()
        )
    return _HAS_KERNEL[name, device]
