"""Which implementation an operator takes: the backends in order, the reasons against each, preferences, the registry.

``impl="name"`` is a demand: that backend or an error. ``use_backend`` and ``MOTARFUSE_BACKEND`` are preferences: an
operator without that backend, or a call that it cannot take, is served as with ``impl="auto"``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from motarfuse.errors import ConfigError

AUTO = "auto"
REFERENCE = "reference"
ENVIRONMENT_VARIABLE = "MOTARFUSE_BACKEND"


class UnknownBackendError(ConfigError, ValueError):
    """A name that no operator has a backend for."""


class Request(NamedTuple):
    """What a backend may know of a call before it takes it: everything but the data.

    Attributes:
        device: Where the call runs. Asked for here, not of the tensors: ``explain`` puts questions on meta tensors.
        tensors: Tensor arguments by name, None where one was left out.
        options: The other arguments by name.
    """

    device: torch.device
    tensors: Mapping[str, torch.Tensor | None]
    options: Mapping[str, Any]


class Backend(NamedTuple):
    """One implementation of an operator.

    Attributes:
        name: What ``impl=`` calls it.
        run: Takes the operator's validated arguments and returns its results; differentiable.
        not_supported_reasons: Every reason against serving a request, sentences without a full stop; empty if it can.
        auto_reasons: Of one that can: the reasons why ``impl="auto"`` does not take it, such as another being faster.
        auto_devices: The types of device on which ``impl="auto"`` asks it at all, None for any. The reasons say the
            same and more, but a call cannot wait for them: asking Triton would import it.
    """

    name: str
    run: Callable[..., Any]
    not_supported_reasons: Callable[[Request], list[str]]
    auto_reasons: Callable[[Request], list[str]] = lambda _: []
    auto_devices: tuple[str, ...] | None = None


def supports_everything(_: Request) -> list[str]:
    """The reference's ``not_supported_reasons``."""
    return []


class Operator:
    """A public function's backends, best first, the reference last.

    Args:
        name: The public function's name.
        example: A typical request on a device, for ``explain``.
        backends: In the order in which ``impl="auto"`` asks them.
    """

    def __init__(self, name: str, example: Callable[[torch.device], Request], backends: Sequence[Backend]) -> None:
        self.name = name
        self.example = example
        self.backends: dict[str, Backend] = {}
        for backend in backends:
            self.add(backend)
        _OPERATORS[name] = self

    def add(self, backend: Backend, *, before: str | None = None) -> None:
        """Adds a backend: at the end, or in front of the one named ``before``.

        Raises:
            ValueError: The name is taken or reserved, or ``before`` does not exist.
        """
        if backend.name == AUTO or backend.name in self.backends:
            raise ValueError(f"{self.name} cannot have another backend named {backend.name!r}")
        if before is not None and before not in self.backends:
            raise ValueError(f"{self.name} has no backend {before!r}; it has {', '.join(self.backends)}")
        ordered = []
        for other in self.backends.values():
            if other.name == before:
                ordered.append(backend)
            ordered.append(other)
        if before is None:
            ordered.append(backend)
        self.backends = {one.name: one for one in ordered}

    def select(self, request: Request, impl: str = AUTO) -> Backend:
        """The backend that serves a request.

        Raises:
            ValueError: ``impl`` or the preferred backend is a name nobody knows.
            RuntimeError: ``impl`` names a backend that cannot serve this request; the message has its reasons.
        """
        if impl != AUTO:
            return self._demanded(request, impl)
        name = preference()
        preferred = self.backends.get(name) if name is not None else None
        if preferred is not None and not preferred.not_supported_reasons(request):
            return preferred
        device_type = request.device.type
        for backend in self.backends.values():
            if backend.auto_devices is not None and device_type not in backend.auto_devices:
                continue
            if not backend.not_supported_reasons(request) and not backend.auto_reasons(request):
                return backend
        raise RuntimeError(f"{self.name}: no backend can run here: {self._all_reasons(request)}")

    def _demanded(self, request: Request, impl: str) -> Backend:
        backend = self.backends.get(impl)
        if backend is None:
            raise ValueError(f"{self.name} has no impl {impl!r}; known: {', '.join((AUTO, *self.backends))}")
        reasons = backend.not_supported_reasons(request)
        if reasons:
            raise RuntimeError(f"{self.name}: impl={impl!r} cannot run here: {'; '.join(reasons)}")
        return backend

    def _all_reasons(self, request: Request) -> str:
        return "; ".join(
            f"{one.name}: {', '.join(one.not_supported_reasons(request))}" for one in self.backends.values()
        )


_OPERATORS: dict[str, Operator] = {}


def operators() -> dict[str, Operator]:
    """Every operator by its name."""
    return dict(_OPERATORS)


def known_backends() -> list[str]:
    """The names that ``use_backend`` and ``MOTARFUSE_BACKEND`` take: ``auto``, the kernels', ``reference``."""
    names = dict.fromkeys(name for operator in _OPERATORS.values() for name in operator.backends)
    return [AUTO, *sorted(names, key=lambda name: name == REFERENCE)]


class _Preference(threading.local):
    """A thread's own preference. No context variable: torch.compile cannot trace one, and guards a thread-local."""

    def __init__(self) -> None:  # once a thread; a class attribute would be read without a guard
        self.name: str | None = None


_PREFERENCE = _Preference()
# Read once: a process has one environment, and a compiled graph could not notice a change.
_ENVIRONMENT: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None


def preference() -> str | None:
    """The preferred backend here and now: the thread's own, else the environment's; None is ``auto``.

    Raises:
        UnknownBackendError: ``MOTARFUSE_BACKEND`` is a name that no operator has.
    """
    name = _PREFERENCE.name
    if name is None:
        name = _ENVIRONMENT
        if name is not None:
            _check_known(name, ENVIRONMENT_VARIABLE)
    return None if name == AUTO else name


def _check_known(name: str, source: str) -> None:
    known = known_backends()
    if name not in known:
        raise UnknownBackendError(f"{source}: unknown backend {name!r}; known: {', '.join(known)}")


class use_backend:  # noqa: N801 (a function to its users, as torch.no_grad is)
    """Prefers a backend from now on, or within a ``with`` block; ``use_backend("auto")`` prefers none.

    It is a preference: operators without that backend, and calls that it cannot take, choose as ever. Like
    ``torch.no_grad`` it holds for the calling thread (other threads keep theirs), and so for every task of that
    thread's event loop: do not await inside the block. ``MOTARFUSE_BACKEND`` is the same for all threads of a process.

    Example::

        motarfuse.use_backend("reference")
        with motarfuse.use_backend("cpu"):
            keypoints, affines, confidence = motarfuse.ops.part_moments(logits, grid=(16, 8))

    Raises:
        UnknownBackendError: (a ValueError) no operator has a backend of that name.
    """

    def __init__(self, name: str) -> None:
        _check_known(name, "use_backend")
        self._previous = _PREFERENCE.name
        _PREFERENCE.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _PREFERENCE.name = self._previous


@dataclass(frozen=True)
class Explanation:
    """One row of ``explain``.

    Attributes:
        operator: The operator's name.
        backend: What ``impl="auto"`` takes for a typical float32 call.
        why_not: For every other backend, the reasons against it.
        note: What is wrong with the preference, empty if nothing.
    """

    operator: str
    backend: str
    why_not: dict[str, list[str]]
    note: str = ""


def explain(device: torch.device | str) -> list[Explanation]:
    """Which backend each operator takes on a device, and why not the others. Never raises for a bad preference.

    Args:
        device: A device that need not exist.
    """
    return [_explain(operator, torch.device(device)) for operator in _OPERATORS.values()]


def _explain(operator: Operator, device: torch.device) -> Explanation:
    request = operator.example(device)
    note = ""
    try:
        preferred = preference()
    except UnknownBackendError as error:
        preferred, note = None, str(error)
    reasons = {name: backend.not_supported_reasons(request) for name, backend in operator.backends.items()}
    usable = [name for name, against in reasons.items() if not against]
    passed_over = {name: operator.backends[name].auto_reasons(request) for name in usable}
    chosen = preferred if preferred in usable else next(name for name in usable if not passed_over[name])
    why = "is preferred" if chosen == preferred else "comes first"
    why_not = {
        name: against or [f"it could run here, but {reason}" for reason in passed_over[name] or [f"{chosen} {why}"]]
        for name, against in reasons.items()
        if name != chosen
    }
    return Explanation(operator.name, chosen, why_not, note)
