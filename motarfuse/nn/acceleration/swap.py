"""``accelerate`` and ``restore``: a module's class is swapped for a subclass of it with a forward that runs operators.

A class, not a ``forward`` bound to the instance: it holds nothing of the instance, so that copies are accelerated by
themselves and nothing keeps the original alive; ``isinstance``, hooks, parameters and their names stay as they are; and
torch.compile sees a type that it can guard.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from motarfuse.nn.acceleration import probe, recognise
from motarfuse.nn.acceleration.forwards import Accelerated
from motarfuse.nn.acceleration.plan import Plan, has_foreign_forward, is_untouched
from motarfuse.nn.acceleration.recognise import Nominee, Unfit
from motarfuse.nn.acceleration.report import AccelerateReport, Kept, Replaced

_CLASSES: dict[tuple[type, type, Plan], type[nn.Module]] = {}


def accelerate(model: nn.Module, *, attention: bool = True, norms: bool = True, mlp: bool = True) -> AccelerateReport:
    """Lets a vision transformer run this project's operators, in place; ``restore`` takes it back.

    Parameters stay the same objects under the same names, so that optimizers, ``state_dict`` and ``load_state_dict``
    notice nothing. Outputs and gradients are those of the model, up to rounding; they can be differentiated once where
    a kernel runs. Known are the blocks of timm's, torchvision's, Hugging Face's (ViT, DINOv2, CLIP), TransReID's,
    OpenAI's, open_clip's and this project's vision transformers, found by their structure and then compared with their
    replacement on random parameters: what computes anything else is left alone.

    A call with a mask, or one that asks for attention weights, runs the module's own forward; so does training with a
    dropout of attention weights, and a module passed over whose hooks must run. On a CPU that is so wherever the
    operators are not faster; `motarfuse.use_backend` overrules it.

    Args:
        model: Changed in place; any mode, device and dtype. Before ``torch.compile`` or a wrapper for several devices.
        attention: Whether attention is to become ``motion_attention``, without a motion.
        norms: Whether a block's residual addition and the layer norm after it are to become ``add_layer_norm``.
        mlp: Whether a linear layer's bias and the GELU behind it are to become ``bias_gelu``.

    Returns:
        What was replaced, and what was left with the reasons.

    Raises:
        TypeError: ``model`` is no module.

    Cost: one comparison, on ten and on 577 tokens in float64, for each kind of module that the model has; 3 s on one
        core for a ViT-B.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    wanted = [
        recogniser
        for is_wanted, recogniser in (
            (attention, recognise.attention), (mlp, recognise.mlp), (norms, recognise.block)
        )
        if is_wanted
    ]  # fmt: skip
    replaced, left, swaps = [], [], []
    judge = _Judge()
    # The comparison is one of float64 numbers on the CPU, whatever context the caller is in.
    with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.inference_mode(False):
        for name, module in model.named_modules():
            for recogniser in wanted:
                kind = type(module).__name__
                try:
                    judged = judge(module, recogniser)
                except Unfit as reason:
                    left.append(Kept(name, kind, str(reason)))
                    break
                if judged is not None:
                    nominee, new_class = judged
                    swaps.append((module, new_class))
                    replaced.append(Replaced(name, kind, nominee.operator, nominee.note))
                    break
    for module, new_class in swaps:  # after all are found, so that each is compared as it was
        vars(module).pop("forward", None)  # its class's own, which would hide the new one
        module.__class__ = new_class
    return AccelerateReport(replaced, left)


def restore(model: nn.Module) -> list[str]:
    """Takes ``accelerate`` back: every module gets the class that it had.

    Args:
        model: Changed in place; one that was not accelerated stays as it is.

    Returns:
        The qualified names of the modules that were restored.

    Raises:
        RuntimeError: Something else gave a module a class derived from the accelerated one, as ``fully_shard`` and
            ``register_parametrization`` do; nothing is restored then.
    """
    found: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, Accelerated)
    ]
    for name, module in found:
        if "motarfuse_plan" not in vars(type(module)):
            raise RuntimeError(
                f"{name or 'the model'} cannot be restored: it got another class, {type(module).__name__}, after "
                "accelerate, as fully_shard and register_parametrization give one; restore before that, or take it "
                "back first (remove_parametrizations)"
            )
    for _, module in found:
        new_class = type(module)
        original = module.motarfuse_original
        module.__class__ = original
        for attribute, value in list(vars(module).items()):  # as what replaced a forward for a while leaves it behind
            if isinstance(value, MethodType) and value.__func__ is new_class.forward:
                if attribute == "forward":
                    del module.__dict__[attribute]
                else:
                    module.__dict__[attribute] = MethodType(original.forward, value.__self__)
    return [name for name, _ in found]


class _Judge:
    """Recognises modules, and compares one of each kind with its replacement."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Nominee, type[nn.Module]] | str] = {}

    def __call__(
        self, module: nn.Module, recogniser: Callable[[nn.Module], Nominee | None]
    ) -> tuple[Nominee, type[nn.Module]] | None:
        """What a module is to become; None where it is not of this kind.

        Raises:
            Unfit: It is of this kind, but must be left alone.
        """
        if isinstance(module, Accelerated):
            raise Unfit("it is accelerated already")
        nominee = recogniser(module)
        if nominee is None:
            return None
        if type(module).__module__.startswith("motarfuse."):
            raise Unfit("it runs operators by itself")
        if isinstance(module, torch.jit.ScriptModule):
            raise Unfit("it is a TorchScript module, whose code is fixed")
        if has_foreign_forward(module):
            raise Unfit("its forward was replaced on the instance")
        for name in nominee.skipped:
            child = module._modules[name]
            if child is not None and not is_untouched(child):
                raise Unfit(f"{name} has hooks or another forward, and would be passed over")
        key = (recogniser, nominee, _signature(module))
        if key not in self._known:
            self._known[key] = _judged(module, nominee)
        judged = self._known[key]
        if isinstance(judged, str):
            raise Unfit(judged)
        return judged


def _judged(module: nn.Module, nominee: Nominee) -> tuple[Nominee, type[nn.Module]] | str:
    try:
        copy = probe.stand_in(module)
    except Exception as error:  # noqa: BLE001 (a module's own __deepcopy__ may raise anything: FSDP's an AssertionError)
        return f"it cannot be copied to be compared: {probe.first_line(error)}"
    returns = probe.returned(copy, nominee.width, nominee.skipped)
    if isinstance(returns, str):
        return returns
    operator = nominee.operator.split(" ")[0].removesuffix("_packed")
    plan = Plan(
        probe.first_parameter(module),
        tuple((name, type(module._modules[name])) for name in nominee.skipped),
        returns,
        operator,
        nominee.details,
    )
    try:
        new_class = accelerated_class(type(module), nominee.forward, plan)
    except Exception as error:  # noqa: BLE001 (__init_subclass__ and metaclasses are anybody's code)
        return f"its class lets none be derived from it: {probe.first_line(error)}"
    reason = probe.disagreement(copy, new_class, nominee.width)
    return reason or (nominee, new_class)


def accelerated_class(original: type[nn.Module], forward: type[Accelerated], plan: Plan) -> type[nn.Module]:
    """The subclass of a module's class that runs ``forward``; the same one for the same plan."""
    key = (original, forward, plan)
    if key not in _CLASSES:
        # The original comes first: an instance may only change to a class whose layout starts from its own.
        members = {
            "__module__": __name__,
            "__doc__": f"{original.__name__} with a forward that runs operators (motarfuse.accelerate).",
            "forward": forward.forward,  # type: ignore[attr-defined]
            "motarfuse_original": original,
            "motarfuse_plan": plan,
        }
        new_class: Any = type(f"Accelerated{original.__name__}", (original, forward), members)
        new_class.__reduce_ex__ = _reducer(new_class, key)
        _CLASSES[key] = new_class
    return _CLASSES[key]


def _reducer(new_class: Any, parts: tuple[type, type, Plan]) -> Callable[[Any, Any], Any]:
    """For pickle, which finds a class by its name: the class's parts instead. Copies take the same way."""

    def reduce(self: Any, protocol: Any) -> Any:
        # Not type(self), which may be derived from it. Older protocols than 2 have another form, which names the class.
        reduced = super(new_class, self).__reduce_ex__(max(protocol, 2))
        is_plain = isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__  # type: ignore[attr-defined]
        return (_new, parts, *reduced[2:]) if is_plain and type(self) is new_class else reduced

    return reduce


def _new(original: type[nn.Module], forward: type[Accelerated], plan: Plan) -> nn.Module:
    cls = accelerated_class(original, forward, plan)
    return cls.__new__(cls)


def _signature(module: nn.Module) -> Any:
    """Equal for modules that compute the same with other parameters: types, shapes and what else they hold."""
    parts: list[Any] = []
    for name, each in module.named_modules():
        is_bare = not each._modules and not each._parameters
        held: dict[str, Any] = {}
        for key, value in vars(each).items():
            if isinstance(value, (bool, int, str, type(None))):
                held[key] = value
            elif isinstance(value, float):
                held[key] = bool(value) if is_bare else value  # rates of dropout grow over the blocks
            elif not isinstance(value, (dict, set)):
                held[key] = repr(value) if isinstance(value, (tuple, list)) else id(value)
        held.pop("training", None)
        held.pop("forward", None)
        shapes = [
            (key, tuple(tensor.shape))
            for key, tensor in (*each._parameters.items(), *each._buffers.items())
            if tensor is not None
        ]
        parts.append((name, type(each), tuple(sorted(held.items(), key=str)), tuple(shapes)))
    return tuple(parts)
