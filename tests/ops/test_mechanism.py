"""Backends: how one is chosen, what a preference may do, and what adding one takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from motarfuse import ops
from motarfuse.ops import backends
from motarfuse.ops import kernels as kernels_module
from motarfuse.ops.backends import Backend, Operator, Request, supports_everything
from motarfuse.ops.kernels import KernelFamily, Kernels, Schema, differentiable_once

CPU = torch.device("cpu")


def _double_forward(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


def _double_backward(grad: torch.Tensor, factor: float) -> torch.Tensor:
    return grad * factor


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, x: torch.Tensor, factor: float) -> Any:
        ctx.kernels, ctx.factor = kernels, factor
        return kernels.forward(x, factor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return None, differentiable_once("toy", ctx.kernels.backward, grad, ctx.factor), None


FAMILY = KernelFamily(
    "toy_scale",
    forward=Schema("(Tensor x, float factor) -> Tensor", lambda x, factor: torch.empty_like(x)),
    backward=Schema("(Tensor grad, float factor) -> Tensor", lambda grad, factor: torch.empty_like(grad)),
    run=lambda kernels, x, factor: _Scale.apply(kernels, x, factor),
)


def _half_only(request: Request) -> list[str]:
    tensor = request.tensors["x"]
    return [] if tensor is not None and tensor.dtype == torch.float16 else ["it takes float16 only"]


# What a Triton file exposes; `calls` shows that it ran.
calls: list[str] = []


def _counted(x: torch.Tensor, factor: float) -> torch.Tensor:
    calls.append("toy")
    return _double_forward(x, factor)


LAUNCHERS = SimpleNamespace(
    forward=_counted, backward=_double_backward, not_supported_reasons=lambda request: _half_only(request)
)
TOY_KERNEL = FAMILY.python("toy", lambda: LAUNCHERS)


def _request(dtype: torch.dtype = torch.float32) -> Request:
    return Request(CPU, {"x": torch.ones(3, dtype=dtype)}, {"factor": 2.0})


@pytest.fixture
def operator() -> Iterator[Operator]:
    registry = dict(backends._OPERATORS)
    yield Operator(
        "toy_scale",
        lambda device: _request(),
        (Backend("reference", lambda x, factor: x * factor, supports_everything),),
    )
    backends._OPERATORS.clear()
    backends._OPERATORS.update(registry)


@pytest.fixture(autouse=True)
def no_preference() -> Iterator[None]:
    previous = backends._PREFERENCE.name
    yield
    backends._PREFERENCE.name = previous


def test_a_backend_is_added_with_one_line_and_comes_first_where_it_can_run(operator: Operator) -> None:
    operator.add(TOY_KERNEL, before="reference")
    assert list(operator.backends) == ["toy", "reference"]
    assert operator.select(_request(torch.float16)).name == "toy"
    assert operator.select(_request(torch.float32)).name == "reference"


def test_auto_does_not_ask_a_backend_of_other_devices_and_a_demand_does(operator: Operator) -> None:
    asked = []

    def reasons(request: Request) -> list[str]:
        asked.append(request.device.type)
        return []

    operator.add(Backend("gpu", _double_forward, reasons, auto_devices=("cuda",)), before="reference")
    assert operator.select(_request()).name == "reference"
    assert asked == []
    assert operator.select(_request()._replace(device=torch.device("cuda"))).name == "gpu"
    assert operator.select(_request(), "gpu").name == "gpu"


def test_a_call_on_a_cpu_does_not_import_triton_launchers() -> None:
    code = (
        "import sys, torch, motarfuse; x = torch.ones(2, 8); w = torch.ones(8); "
        "motarfuse.ops.add_layer_norm(x, x, w, w); motarfuse.ops.linear_cross_entropy(x, x, torch.tensor([0, 1])); "
        "print([name for name in sys.modules if name.startswith('motarfuse.kernels.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "[]"


def test_a_python_kernel_runs_on_cpu_tensors_through_torch_library_with_gradients(operator: Operator) -> None:
    operator.add(TOY_KERNEL, before="reference")
    calls.clear()
    x = torch.arange(3, dtype=torch.float16, requires_grad=True)
    y = operator.select(_request(torch.float16), "toy").run(x, 3.0)
    y.sum().backward()
    assert calls == ["toy"]
    assert torch.equal(y, 3 * x)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 3))


def test_a_python_kernel_passes_opcheck_and_compiles_into_one_graph() -> None:
    x = torch.randn(5)
    torch.library.opcheck(torch.ops.motarfuse.toy_scale_forward_toy.default, (x, 2.0))
    run = torch.compile(lambda x: TOY_KERNEL.run(x, 2.0), fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x), 2 * x)


def _import_late_kernels() -> Any:
    import late_kernels  # type: ignore[import-not-found]

    return late_kernels


def test_a_kernel_module_is_imported_at_its_first_use_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_kernels.py").write_text(
        "def forward(x, factor):\n    return x * factor\n"
        "def backward(grad, factor):\n    return grad * factor\n"
        "def not_supported_reasons(request):\n    return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    backend = FAMILY.python("late", _import_late_kernels)
    assert "late_kernels" not in sys.modules
    assert backend.not_supported_reasons(_request()) == []
    assert torch.equal(backend.run(torch.ones(2), 4.0), torch.full((2,), 4.0))
    assert "late_kernels" in sys.modules


def test_a_backend_whose_package_is_missing_says_what_to_install() -> None:
    backend = FAMILY.python("missing", _import_late_kernels, requires=("a_package_nobody_has",))
    assert backend.not_supported_reasons(_request()) == [
        "it needs a_package_nobody_has: pip install a_package_nobody_has"
    ]


def test_a_kernel_missing_from_the_native_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module._native, "load_operators", lambda: True)
    reasons = FAMILY.native("cuda").not_supported_reasons(_request())
    assert "built without CUDA" in reasons[0]
    assert reasons[1] == "it takes cuda tensors, got cpu"


def test_a_gpu_that_the_native_library_has_no_code_for_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(capability: tuple[int, int]) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return kernels_module.no_machine_code(torch.device("cuda", 0))

    monkeypatch.setattr(kernels_module, "_no_machine_code", kernels_module._no_machine_code.__wrapped__)
    info = SimpleNamespace(operators_info={"architectures": ["8.0", "9.0a"]})
    monkeypatch.setattr(kernels_module._native, "status", lambda: info)
    assert reason((7, 5)) == ""  # a GPU that is not there
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert reason((9, 0)) == ""
    assert "built for compute capabilities 8.0, 9.0a, this GPU has 7.5; run `TORCH_CUDA_ARCH_LIST=7.5" in reason((7, 5))
    request = Request(torch.device("cuda", 0), {}, {})
    assert FAMILY.native("cuda").not_supported_reasons(request)[-1] == reason((7, 5))


def test_impl_is_a_demand_and_never_falls_back(operator: Operator) -> None:
    operator.add(TOY_KERNEL, before="reference")
    with pytest.raises(RuntimeError, match=r"toy_scale: impl='toy' cannot run here: it takes float16 only"):
        operator.select(_request(), "toy")


def test_an_unknown_impl_lists_the_known_ones(operator: Operator) -> None:
    with pytest.raises(ValueError, match=r"toy_scale has no impl 'tirton'; known: auto, reference"):
        operator.select(_request(), "tirton")


def test_a_preference_is_taken_where_it_can_run_and_is_no_error_elsewhere(operator: Operator) -> None:
    operator.add(TOY_KERNEL)
    assert operator.select(_request(torch.float16)).name == "reference"
    with ops.use_backend("toy"):
        assert operator.select(_request(torch.float16)).name == "toy"
        assert operator.select(_request(torch.float32)).name == "reference"
        assert operator.select(_request(torch.float16), "reference").name == "reference"
        with ops.use_backend("auto"):
            assert operator.select(_request(torch.float16)).name == "reference"
        assert operator.select(_request(torch.float16)).name == "toy"
        # An operator that has no such backend is not disturbed.
        ops.part_moments(torch.zeros(1, 1, 4), grid=(2, 2))
    assert operator.select(_request(torch.float16)).name == "reference"


def test_use_backend_is_a_function_too_and_holds_for_its_thread(operator: Operator) -> None:
    operator.add(TOY_KERNEL)
    ops.use_backend("toy")
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(operator.select(_request(torch.float16)).name))
    thread.start()
    thread.join()
    assert operator.select(_request(torch.float16)).name == "toy"
    assert seen == ["reference"]


def test_a_preference_survives_an_exception_inside_the_block_as_it_was() -> None:
    with pytest.raises(KeyError), ops.use_backend("reference"):
        raise KeyError
    assert backends.preference() is None


def test_an_unknown_preference_lists_the_known_backends() -> None:
    with pytest.raises(
        ValueError,
        match=r"use_backend: unknown backend 'gpu'; known: auto, cpu, triton, sdpa, xformers, cuda, reference",
    ):
        ops.use_backend("gpu")


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_the_environment_prefers_a_backend_and_an_unknown_one_is_one_clear_error() -> None:
    code = (
        "import torch\n"
        "from motarfuse import ops\n"
        "print(ops.explain('cpu')[0].backend, '|', ops.explain('cpu')[0].note)\n"
        "ops.part_moments(torch.zeros(1, 1, 4), grid=(2, 2))\n"
    )
    good = _python(code, MOTARFUSE_BACKEND="reference")
    assert good.returncode == 0, good.stderr
    assert good.stdout.split("|")[0].strip() == "reference"
    bad = _python(code, MOTARFUSE_BACKEND="tirton")
    message = "MOTARFUSE_BACKEND: unknown backend 'tirton'; known: auto, cpu, triton, sdpa, xformers, cuda, reference"
    assert bad.returncode == 1
    assert bad.stderr.strip().endswith(message)
    assert message in bad.stdout  # explain, and so the doctor, answers nevertheless


def test_without_the_native_library_everything_runs_on_the_reference() -> None:
    code = (
        "import torch\n"
        "from motarfuse import ops\n"
        "row = ops.explain('cpu')[0]\n"
        "print(row.backend, ops.part_moments(torch.zeros(1, 1, 4), grid=(2, 2)).confidence.item())\n"
        "try:\n    ops.part_moments(torch.zeros(1, 1, 4), grid=(2, 2), impl='cpu')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    result = _python(code, MOTARFUSE_DISABLE_NATIVE="1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "reference 0.25"
    assert lines[1].startswith("part_moments: impl='cpu' cannot run here: motarfuse._C is not loaded: ")
    assert lines[1].endswith("MOTARFUSE_DISABLE_NATIVE; unset it")


def test_explain_names_the_choice_and_a_reason_for_every_other_backend(operator: Operator) -> None:
    operator.add(TOY_KERNEL, before="reference")
    rows = {row.operator: row for row in ops.explain("cpu")}
    assert set(rows) == set(ops.operators())
    assert rows["toy_scale"].backend == "reference"
    assert rows["toy_scale"].why_not == {"toy": ["it takes float16 only"]}
    for row in rows.values():
        assert set(row.why_not) == set(ops.operators()[row.operator].backends) - {row.backend}
        assert all(reasons and all(reasons) for reasons in row.why_not.values())


def test_explain_answers_for_a_device_that_is_not_there() -> None:
    row = next(row for row in ops.explain("cuda:7") if row.operator == "part_moments")
    assert any("it takes cpu tensors, got cuda" in reason for reason in row.why_not["cpu"])


def test_a_taken_name_and_an_unknown_neighbour_are_refused(operator: Operator) -> None:
    with pytest.raises(ValueError, match="cannot have another backend named 'reference'"):
        operator.add(Backend("reference", _double_forward, supports_everything))
    with pytest.raises(ValueError, match="has no backend 'nobody'"):
        operator.add(TOY_KERNEL, before="nobody")


def test_the_second_derivative_of_a_kernel_raises_and_names_the_way_out() -> None:
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    scale = torch.ones(2, dtype=torch.float16, requires_grad=True)
    (first,) = torch.autograd.grad(TOY_KERNEL.run(x, 2.0), x, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once; use impl='reference'"):
        torch.autograd.grad(first.sum(), scale)


def test_forward_mode_through_a_kernel_raises_instead_of_losing_the_tangent() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with pytest.raises(NotImplementedError, match="jvp"):
            TOY_KERNEL.run(dual, 2.0)
