"""What tests of compiled kernels share: backends, layouts, and the check by the one tolerance rule."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytest
import torch

from motarfuse import _native
from motarfuse.ops import operators
from tests.ops.operator_cases import normal
from tests.tolerance import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Inputs = dict[str, torch.Tensor]
Layout = Callable[[torch.Tensor], torch.Tensor]
Incoming = Callable[[str, torch.Tensor], torch.Tensor]

needs_native = pytest.mark.skipif(
    not _native.load_operators(), reason=f"motarfuse._C is not loaded: {_native.status().operators_error}"
)
# An ``impl`` and the device it runs on.
BACKENDS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("cpu", "cpu"), id="cpu", marks=needs_native),
    pytest.param(("cuda", "cuda"), id="cuda", marks=[pytest.mark.gpu, needs_native]),
]
KERNEL_BACKENDS = BACKENDS[1:]


class NamedTensors(Protocol):
    """What operators return: a named tuple of tensors."""

    def _asdict(self) -> dict[str, torch.Tensor]: ...


def outputs_and_gradients(
    call: Callable[..., NamedTensors | torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    *,
    results: tuple[str, ...],
    dtypes: Mapping[str, torch.dtype] | None = None,
    incoming: Incoming | None = None,
) -> Inputs:
    """Results, and the gradients of ``results`` to every input; zeros where an input takes none.

    Args:
        call: The operator; takes the inputs by name. A single tensor is the result ``out``.
        inputs: Of the call; those of a float type get gradients.
        results: Those that a loss depends on; without those that no gradient can reach.
        dtypes: What the incoming gradients are rounded to; None is the results' own.
        incoming: Makes other incoming gradients of a result's name and the drawn ones.
    """
    copies = {name: tensor.detach() for name, tensor in inputs.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in copies.items() if tensor.is_floating_point()}
    answer = call(**copies)
    outputs = {"out": answer} if isinstance(answer, torch.Tensor) else answer._asdict()
    used = [name for name in results if outputs[name].requires_grad]
    draw = normal(1)
    drawn = {name: draw(*output.shape) for name, output in outputs.items()}
    drawn = {name: tensor.to(outputs[name] if dtypes is None else dtypes[name]) for name, tensor in drawn.items()}
    drawn = {name: tensor.to(outputs[name]) for name, tensor in drawn.items()}
    if incoming is not None:
        drawn = {name: incoming(name, tensor) for name, tensor in drawn.items()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in used],
        list(leaves.values()),
        [drawn[name] for name in used],
        allow_unused=True,
    )
    found = {
        f"grad_{name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    return {**{name: output.detach() for name, output in outputs.items()}, **found}


def check(run: Callable[[str, Inputs], Inputs], backend: tuple[str, str], inputs: Mapping[str, torch.Tensor]) -> None:
    """The rule of tests/tolerance.py, by name for all that ``run`` returns.

    Args:
        run: Takes an ``impl`` and inputs, and returns results and gradients.
        backend: An ``impl`` and the device it runs on.
        inputs: Of ``run``, on any device.
    """
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    exact = run("reference", {name: _double(tensor) for name, tensor in inputs.items()})
    eager = run("reference", inputs)
    result = run(impl, inputs)
    assert list(result) == list(exact)
    for name, value in result.items():
        if value.dtype == torch.float64:  # the reference is no better than the kernel there
            scale = exact[name].abs().max().item() if exact[name].numel() else 0.0
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12 * max(1.0, scale), msg=name)
        else:
            assert_close(name, value, eager[name], exact[name])


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def count_runs(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each backend of each operator runs from now on, by operator and backend."""
    counted: Counter[tuple[str, str]] = Counter()
    for name, operator in operators().items():

        def watched(operator_name: str, backend_name: str, run: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                counted[operator_name, backend_name] += 1
                return run(*arguments, **options)

            return call

        backends = {key: one._replace(run=watched(name, key, one.run)) for key, one in operator.backends.items()}
        monkeypatch.setattr(operator, "backends", backends)
    return counted


# Layouts: the same numbers, or fewer of them, elsewhere in memory ----------------------------------------------------


def every_second(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """As a (B, C, N) feature map leaves tokens, and a projection of tokens part logits."""
    return tensor.transpose(1, -1).contiguous().transpose(1, -1)


def expanded_over_the_batch(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].expand_as(tensor)


def expanded_over_the_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[..., :1].expand_as(tensor)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view_as(tensor)


def layout_name(layout: Callable[..., Any]) -> str:
    """For ids of parameters."""
    return layout.__name__.strip("_")


def check_on_older_processors(file: str, capability: str, selection: str, timeout: float = 300) -> None:
    """Runs a file's tests again with the C++ kernels compiled for an older generation of processors.

    Args:
        file: Of the tests.
        capability: avx2 or baseline.
        selection: Words in the tests' names, "a or b".
        timeout: In seconds.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider", "-k", selection],
        env={**os.environ, "MOTARFUSE_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout
