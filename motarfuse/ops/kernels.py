"""Kernels as ``torch.library`` operators: schema, fake, implementations, and the backends made of them.

Schemas live here in Python, so that the operators exist without ``_C``; that library only registers implementations for
the dispatch keys CPU and CUDA. Kernels written in Python (Triton launchers) get operators of their own with the same
schemas. The ``autograd.Function`` stays outside, in the operator's file: no registered autograd, one boundary a call.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from motarfuse import _native
from motarfuse.ops.backends import Backend, Request, supports_everything
from motarfuse.ops.validation import FLOAT_DTYPES, dtype_name

NAMESPACE = "motarfuse"
_CPU_OR_CUDA = ("CPU", "CUDA")


class Schema(NamedTuple):
    """One direction of an operator.

    Attributes:
        signature: Arguments and results in torch's schema language, without the name.
        fake: Allocates results of the right shape, dtype and strides, with the same arguments.
    """

    signature: str
    fake: Callable[..., Any]


class Kernels(NamedTuple):
    """The registered forward and backward of one implementation."""

    forward: Any
    backward: Any


class KernelFamily:
    """All compiled implementations of one operator: same schemas, same ``autograd.Function``.

    Args:
        operator: The operator's name; native kernels are ``torch.ops.motarfuse.<operator>_forward`` and ``_backward``.
        forward, backward: Their schemas.
        run: ``run(kernels, *arguments)`` calls the kernels with the operator's validated arguments, differentiably.
    """

    def __init__(self, operator: str, *, forward: Schema, backward: Schema, run: Callable[..., Any]) -> None:
        self.operator = operator
        self._schemas = {"forward": forward, "backward": backward}
        self._run = run
        self.native_kernels = self.define("")

    def native(
        self,
        device_type: str,
        dtypes: Sequence[torch.dtype] = FLOAT_DTYPES,
        limits: Callable[[Request], list[str]] = supports_everything,
        auto_reasons: Callable[[Request], list[str]] = supports_everything,
    ) -> Backend:
        """The backend of ``_C`` for ``"cpu"`` or ``"cuda"`` tensors.

        Args:
            device_type: Which of the two.
            dtypes: What its tensors may be of.
            limits: More reasons against a request, such as sizes.
            auto_reasons: As of `Backend`.
        """
        unavailable = self._native_unavailable(device_type)

        def not_supported_reasons(request: Request) -> list[str]:
            reasons = list(unavailable)
            if request.device.type != device_type:
                reasons.append(f"it takes {device_type} tensors, got {request.device.type}")
            reasons += _dtype_reasons(request, dtypes)
            if device_type == "cuda" and (reason := no_machine_code(request.device)):
                reasons.append(reason)
            return reasons + limits(request) + transform_reasons()

        run = partial(_run_distinct, self._run, self.native_kernels)
        return Backend(device_type, run, not_supported_reasons, auto_reasons, auto_devices=(device_type,))

    def python(
        self,
        name: str,
        load: Callable[[], Any],
        requires: Sequence[str] = (),
        auto_reasons: Callable[[Request], list[str]] = supports_everything,
        auto_devices: tuple[str, ...] | None = None,
    ) -> Backend:
        """A backend whose kernels are Python functions, e.g. Triton launchers.

        Args:
            name: The backend's name; its operators are ``torch.ops.motarfuse.<operator>_forward_<name>`` and so on.
            load: Returns a module, or what looks like one, with ``forward`` and ``backward`` of this family's schemas
                and ``not_supported_reasons(request)``. Called when this backend is asked, so that an import in its body
                waits until then; a statement, because torch.compile traces that and no ``importlib``.
            requires: Packages it needs; without them the backend is there and says what is missing.
            auto_reasons, auto_devices: As of `Backend`.
        """
        missing = [package for package in requires if importlib.util.find_spec(package) is None]
        kernels = self.define(f"_{name}")

        for direction in self._schemas:
            torch.library.impl(
                f"{NAMESPACE}::{self.operator}_{direction}_{name}", _CPU_OR_CUDA, partial(_call, load, direction)
            )

        def not_supported_reasons(request: Request) -> list[str]:
            if missing:
                return [f"it needs {', '.join(missing)}: pip install {' '.join(missing)}"]
            return list(load().not_supported_reasons(request)) + transform_reasons()

        return Backend(
            name, partial(_run_distinct, self._run, kernels), not_supported_reasons, auto_reasons, auto_devices
        )

    def triton(self, load: Callable[[], Any]) -> Backend:
        """The backend of Triton kernels, as of `python`; ``auto`` takes it on a GPU alone."""
        return self.python("triton", load, ("triton",), auto_reasons=_not_interpreted, auto_devices=("cuda",))

    def kernels(self, name: str) -> Kernels:
        """The registered operators of the backend that `python` made with this name."""
        namespace = getattr(torch.ops, NAMESPACE)
        return Kernels(**{one: getattr(namespace, f"{self.operator}_{one}_{name}").default for one in self._schemas})

    def define(self, suffix: str) -> Kernels:
        """Registers schemas and fakes as ``<operator>_forward<suffix>`` and ``_backward<suffix>``, without kernels."""
        overloads = {}
        for direction, schema in self._schemas.items():
            name = f"{self.operator}_{direction}{suffix}"
            torch.library.define(f"{NAMESPACE}::{name}", schema.signature, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(f"{NAMESPACE}::{name}", schema.fake)
            overloads[direction] = getattr(getattr(torch.ops, NAMESPACE), name).default
        return Kernels(**overloads)

    def _native_unavailable(self, device_type: str) -> list[str]:
        return native_unavailable([f"{self.operator}_{direction}" for direction in self._schemas], device_type)


def native_unavailable(names: Sequence[str], device_type: str) -> list[str]:
    """Why ``_C`` lacks these operators (names without the namespace) for ``"cpu"`` or ``"cuda"``; empty if it has them.

    To be asked once, at import: neither dlopen nor the dispatcher's tables can be traced by torch.compile.
    """
    if not _native.load_operators():
        return [f"motarfuse._C is not loaded: {_native.status().operators_error}"]
    key = device_type.upper()
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key) for name in names):
        return []
    return [f"motarfuse._C was built without {key} code; run `motarfuse build` where the toolkit is installed"]


@torch.compiler.assume_constant_result
def no_machine_code(device: torch.device) -> str:
    """Why ``_C`` cannot run on a GPU: it was built for others. Empty where it can, or where there is no such GPU."""
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return ""
    return _no_machine_code(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _no_machine_code(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    architectures = _native.status().operators_info.get("architectures", [])
    if not architectures or _native.runs_on(architectures, capability):
        return ""
    own = ".".join(map(str, capability))
    return (
        f"motarfuse._C was built for compute capabilities {', '.join(architectures)}, this GPU has {own}; "
        f"run `TORCH_CUDA_ARCH_LIST={own} motarfuse build`"
    )


def _not_interpreted(request: Request) -> list[str]:
    return [] if request.device.type == "cuda" else ["Triton's interpreter is for tests, thousands of times slower"]


def _run_distinct(run: Callable[..., Any], kernels: Kernels, *arguments: Any, **options: Any) -> Any:
    """Calls ``run`` with a tensor that is given twice as two: torch.compile traces no Function with one input twice."""
    if torch.compiler.is_compiling():
        seen: list[torch.Tensor] = []
        arguments = tuple(_distinct(value, seen) for value in arguments)
        options = {name: _distinct(value, seen) for name, value in options.items()}
    return run(kernels, *arguments, **options)


def _distinct(value: Any, seen: list[torch.Tensor]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if any(value is other for other in seen):
        return value.view_as(value)
    seen.append(value)
    return value


def _call(load: Callable[[], Any], direction: str, *arguments: Any) -> Any:
    return getattr(load(), direction)(*arguments)


def _dtype_reasons(request: Request, dtypes: Sequence[torch.dtype]) -> list[str]:
    return [
        f"it has no kernel for {name} of dtype {dtype_name(tensor.dtype)} (it has {', '.join(map(dtype_name, dtypes))})"
        for name, tensor in request.tensors.items()
        if tensor is not None and tensor.dtype not in dtypes
    ]


def transform_reasons() -> list[str]:
    # An autograd.Function that torch.func can transform costs 100 us a call (it binds a Python signature each time).
    if torch._C._are_functorch_transforms_active():
        return ["torch.func transforms (grad, vmap, jvp, ...) see through the reference only"]
    return []


def differentiating(requires_grad: bool) -> bool:
    """Whether a call must go through its ``autograd.Function``, which costs 10 us: for gradients, and in forward mode.

    In forward mode the Function raises; the kernel alone would lose the tangents.
    """
    return (requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0


def keep_missing_gradients(ctx: Any) -> None:
    """Lets a backward see None where a result was not used, instead of zeros of its size.

    torch.compile cannot trace the switch; what it compiles gets zeros.
    """
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def differentiable_once(operator: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a backward kernel so that differentiating its results raises instead of giving wrong or no gradients.

    Args:
        operator: Named in the error.
        function: Takes ``arguments``, tensors or not, and returns a tuple of tensors.
    """
    if torch.is_grad_enabled():  # only with create_graph=True
        return _DifferentiableOnce.apply(operator, function, *arguments)
    return function(*arguments)


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: str, function: Callable[..., Any], *arguments: Any) -> Any:
        ctx.operator = operator
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.operator}: compiled kernels are differentiable once; "
            f"use impl='reference' for second derivatives (create_graph=True, gradgradcheck)"
        )
