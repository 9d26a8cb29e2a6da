"""part_moments inside torch's machinery (autocast, opcheck, compile, export, torch.func), and its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from motarfuse import _native, ops
from motarfuse.ops import part_moments
from motarfuse.ops.part_moments import KERNELS, PartMoments
from tests.ops.kernel_cases import BACKENDS, KERNEL_BACKENDS, needs_native
from tests.ops.part_moments_cases import as_a_projection_leaves_it, case, gradients_of_results, outputs_and_gradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_half_inputs_give_float32_results(backend: tuple[str, str]) -> None:
    impl, device = backend
    logits, affine = (tensor.to(device) for tensor in case((16, 8), torch.bfloat16))
    with torch.autocast(device, torch.bfloat16):
        result = part_moments(logits, affine, grid=(16, 8), impl=impl)
        mixed = part_moments(logits.float(), affine, grid=(16, 8), impl=impl)
    expected = part_moments(logits.double(), affine.double(), grid=(16, 8), impl="reference")
    for tensors in (result, mixed):
        for tensor, wanted in zip(tensors, expected, strict=True):
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_affine", [True, False])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_the_registered_operators_pass_opcheck(backend: tuple[str, str], with_affine: bool) -> None:
    _, device = backend
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    kernels = KERNELS.native_kernels
    logits, affine = (tensor.to(device) for tensor in as_a_projection_leaves_it(*case((4, 2))))
    inputs = (logits, affine if with_affine else None)
    torch.library.opcheck(kernels.forward, (*inputs, 4, 2, 0.1, torch.float32, False))
    torch.library.opcheck(kernels.forward, (*inputs, 4, 2, 0.1, torch.float32, True))
    statistics = kernels.forward(*inputs, 4, 2, 0.1, torch.float32, True)[3]
    incoming = [gradient.to(device) for gradient in gradients_of_results(2, 3)]
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(kernels.backward, (*incoming, *inputs, statistics, 4, 2, 0.1, *needs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_takes_it_whole_and_recompiles_once_for_all_batch_sizes(backend: tuple[str, str]) -> None:
    impl, device = backend
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(logits: torch.Tensor, affine: torch.Tensor) -> PartMoments:
        return part_moments(logits, affine, grid=(16, 8), impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch in (2, 3, 4, 5):
        logits, affine = (tensor.to(device) for tensor in case((16, 8), batch=batch))
        result = outputs_and_gradients(compiled, logits, affine)
        expected = outputs_and_gradients(function, logits, affine)
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert counter.frame_count == 2


@needs_native
def test_a_compiled_graph_notices_a_changed_preference() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        lambda logits: part_moments(logits, grid=(16, 8)).confidence, fullgraph=True, backend=counter
    )
    logits, _ = case((16, 8))
    compiled(logits)
    kernels = KERNELS.native_kernels

    def calls_the_kernel() -> list[bool]:
        return [any(node.target is kernels.forward for node in graph.graph.nodes) for graph in counter.graphs]

    assert calls_the_kernel() == [True]
    with ops.use_backend("reference"):
        compiled(logits)
    assert calls_the_kernel() == [True, False]
    compiled(logits)
    assert counter.frame_count == 2


def test_inductor_runs_it_inside_a_larger_graph() -> None:
    torch._dynamo.reset()

    def function(logits: torch.Tensor) -> torch.Tensor:
        return part_moments(2 * logits, grid=(4, 2)).keypoints.sum(dim=1).sin()

    logits, _ = case((4, 2))
    compiled = torch.compile(function, fullgraph=True)
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(leaf).sum().backward()
    function(other).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


class _Module(torch.nn.Module):
    def forward(self, logits: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part_moments(logits, affine, grid=(16, 8)))


def test_export_keeps_it_as_one_operator_with_a_dynamic_batch() -> None:
    logits, affine = case((16, 8))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_Module(), (logits, affine), dynamic_shapes=({0: batch}, {0: batch}))
    if _native.load_operators():
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert torch.ops.motarfuse.part_moments_forward.default in targets
    logits, affine = case((16, 8), batch=7)
    for result, wanted in zip(
        program.module()(logits, affine), part_moments(logits, affine, grid=(16, 8)), strict=True
    ):
        torch.testing.assert_close(result, wanted)


@needs_native
def test_torch_func_transforms_are_served_by_the_reference() -> None:
    logits, _ = case((4, 2))

    def loss(logits: torch.Tensor, impl: str = "auto") -> torch.Tensor:
        return part_moments(logits, grid=(4, 2), impl=impl).confidence.sum()

    leaf = logits.clone().requires_grad_()
    loss(leaf, "cpu").backward()
    torch.testing.assert_close(torch.func.grad(loss)(logits), leaf.grad)
    each = torch.func.vmap(lambda one: loss(one[None]))(logits)
    torch.testing.assert_close(each.sum(), loss(logits))
    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.grad(loss)(logits, "cpu")


@needs_native
def test_the_second_derivative_of_the_kernel_raises() -> None:
    logits = case((4, 2))[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        part_moments(logits, grid=(4, 2), impl="cpu").confidence.sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="part_moments: compiled kernels are differentiable once; use impl='ref"):
        gradient.sum().backward()


# Errors --------------------------------------------------------------------------------------------------------------

LOGITS = torch.zeros(2, 3, 8)
AFFINE = torch.zeros(2, 3, 8, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(2, 8),), {}, ValueError, r"logits must be \(B, K, N\), 3 dimensions; got 2, shape \(2, 8\)"),
        ((LOGITS, torch.zeros(2, 3, 8, 4)), {}, ValueError, r"affine must be \(B, K, N, 2, 2\), 5 dimensions; got 4"),
        (
            (LOGITS, torch.zeros(2, 3, 9, 2, 2)),
            {},
            ValueError,
            r"affine must be .* = \(2, 3, 8, 2, 2\) to fit logits; got shape \(2, 3, 9, 2, 2\)",
        ),
        ((LOGITS.int(),), {}, TypeError, "logits has dtype int32; supported: float16, bfloat16, float32, float64"),
        ((LOGITS, AFFINE.long()), {}, TypeError, "affine has dtype int64; supported"),
        ((LOGITS, AFFINE.double()), {}, TypeError, "affine has dtype float64 beside logits of float32; supported"),
        ((LOGITS, AFFINE.half()), {}, TypeError, "affine has dtype float16 beside logits of float32; supported"),
        (([[[0.0]]],), {}, TypeError, r"logits must be a torch\.Tensor, got list"),
        ((LOGITS.to_sparse(),), {}, TypeError, r"logits must be a dense tensor.*to_dense"),
        ((LOGITS, AFFINE.to("meta")), {}, ValueError, "affine is on meta but logits is on cpu; move them"),
        ((LOGITS,), {"grid": (3, 2)}, ValueError, r"grid \(3, 2\) has 6 cells, but logits has 8; N must be h\*w"),
        ((LOGITS,), {"grid": (-2, -4)}, ValueError, r"grid must be positive, got \(-2, -4\)"),
        ((LOGITS[..., :0],), {"grid": (0, 4)}, ValueError, r"grid must be positive, got \(0, 4\)"),
        ((LOGITS,), {"grid": (4.0, 2)}, TypeError, r"grid must be a pair of integers \(h, w\), got \(4.0, 2\)"),
        ((LOGITS,), {"grid": 8}, TypeError, r"grid must be a pair of integers \(h, w\), got 8"),
        ((LOGITS,), {"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0, got 0.0"),
        ((LOGITS,), {"temperature": -1}, ValueError, "temperature must be finite and greater than 0, got -1"),
        ((LOGITS,), {"temperature": math.nan}, ValueError, "temperature must be finite and greater than 0, got nan"),
        ((LOGITS,), {"temperature": math.inf}, ValueError, "temperature must be finite and greater than 0, got inf"),
        ((LOGITS,), {"temperature": torch.ones(())}, TypeError, "temperature must be a Python number, got Tensor"),
        ((LOGITS,), {"impl": "tirton"}, ValueError, "part_moments has no impl 'tirton'; known: auto, cuda, cpu, refer"),
        ((LOGITS,), {"impl": "cuda"}, RuntimeError, "impl='cuda' cannot run here: .*it takes cuda tensors, got cpu"),
    ],
)
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        part_moments(*arguments, **{"grid": (4, 2), **options})


@pytest.mark.gpu
def test_mixed_devices_are_named() -> None:
    with pytest.raises(ValueError, match="affine is on cuda:0 but logits is on cpu"):
        part_moments(LOGITS, AFFINE.cuda(), grid=(4, 2))


@needs_native
def test_direct_calls_of_the_operator_cannot_read_out_of_bounds() -> None:
    with pytest.raises(RuntimeError, match="logits has a shape that does not fit"):
        torch.ops.motarfuse.part_moments_forward(LOGITS, None, 5, 2, 0.1, torch.float32, False)
    with pytest.raises(RuntimeError, match="statistics has a shape that does not fit"):
        torch.ops.motarfuse.part_moments_backward(
            *gradients_of_results(2, 3), LOGITS, None, torch.zeros(2, 3, 8), 4, 2, 0.1, True, False
        )
