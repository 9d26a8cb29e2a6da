"""How the forward of one module is to run: found once, kept in its new class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from motarfuse.ops.backends import operators, preference


class Plan(NamedTuple):
    """What a new forward has to know of a module beside the module's own attributes.

    Attributes:
        argument: Name of the forward's first parameter.
        skipped: Children whose own forward is not called, with the types that they had: hooks on them, or another
            module in their place, call for the module's own forward.
        returns: 0 where the forward returns a tensor, else the length of a tuple of that tensor and ``None``s.
        has_kernel: Whether the operator has a kernel for CUDA tensors here; without one its reference is no gain.
        details: What this kind of forward needs.
    """

    argument: str
    skipped: tuple[tuple[str, type], ...]
    returns: int
    has_kernel: bool
    details: Any


def operators_serve(plan: Plan, tensor: Tensor) -> bool:
    """Whether the operators take a call: on a GPU, and wherever the user prefers a backend.

    Elsewhere they are what PyTorch does anyway, after a check of the arguments, so that the module's own forward is
    faster, also that of an attention which stores its scores.
    """
    return (plan.has_kernel and tensor.is_cuda) or preference() is not None


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
        or "forward" in module.__dict__
    )


def children_are_plain(module: nn.Module, plan: Plan) -> bool:
    """Whether the children that are passed over are as they were found, and nobody listens to them."""
    children = module._modules
    for name, kind in plan.skipped:
        child = children.get(name)
        if child is None or type(child) is not kind or not is_untouched(child):
            return False
    return True


def operator_has_kernel(name: str) -> bool:
    """Whether ``impl="auto"`` would take anything but the reference for a typical call on a GPU."""
    operator = operators()[name]
    request = operator.example(torch.device("cuda"))
    return any(
        backend.name != "reference" and not backend.not_supported_reasons(request) and not backend.auto_reasons(request)
        for backend in operator.backends.values()
    )
