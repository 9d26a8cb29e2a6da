"""part_pool inside torch's machinery (autocast, opcheck, compile, export, torch.func)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from motarfuse import _native, ops
from motarfuse.ops import part_pool
from motarfuse.ops.backends import Request
from motarfuse.ops.part_pool import KERNELS, OPERATOR, PartPool
from tests.ops.kernel_cases import BACKENDS, KERNEL_BACKENDS, needs_native
from tests.ops.operator_cases import normal
from tests.ops.part_pool_cases import as_a_feature_map, case

Tensors = tuple[torch.Tensor, ...]


def tensors(cells: int = 8, dtype: torch.dtype = torch.float32, *, batch: int = 2, device: str = "cpu") -> Tensors:
    """Tokens of 5 channels and the logits of 3 parts."""
    return tuple(tensor.to(device) for tensor in case(cells, dtype, batch=batch).values())


def with_gradients(function: Callable[..., Tensors], inputs: Tensors) -> Tensors:
    """Results of a function and the gradients of both inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    draw = normal(1)
    incoming = [draw(*result.shape).to(result) for result in results]
    return (*results, *torch.autograd.grad(results, leaves, incoming))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: tuple[str, str]) -> None:
    impl, device = backend
    for dtype in (torch.bfloat16, torch.float32):
        inputs = tensors(65, dtype, device=device)
        expected = part_pool(*inputs, impl=impl)
        with torch.autocast(device, torch.bfloat16):
            found = part_pool(*inputs, impl=impl)
        for value, wanted in zip(found, expected, strict=True):
            assert value.dtype == dtype
            assert torch.equal(value, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_the_registered_operators_pass_opcheck(backend: tuple[str, str], dtype: torch.dtype) -> None:
    _, device = backend
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    kernels = KERNELS.native_kernels
    inputs = tuple(tensor.to(device) for tensor in as_a_feature_map(case(8, dtype)).values())
    torch.library.opcheck(kernels.forward, (*inputs, False))
    torch.library.opcheck(kernels.forward, (*inputs, True))
    pooled, mass, total, exact = kernels.forward(*inputs, True)
    saved = (pooled if dtype == total.dtype else exact, total)
    draw = normal(1)
    grad_pooled, grad_mass = draw(*pooled.shape).to(pooled), draw(*mass.shape).to(mass)
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(kernels.backward, (grad_pooled, grad_mass, *inputs, *saved, *needs))
        torch.library.opcheck(kernels.backward, (None, grad_mass, *inputs, *saved, *needs))
        torch.library.opcheck(kernels.backward, (grad_pooled, None, *inputs, *saved, *needs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_takes_it_whole_and_recompiles_once_for_all_sizes(backend: tuple[str, str]) -> None:
    impl, device = backend
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(tokens: torch.Tensor, part_logits: torch.Tensor) -> PartPool:
        return part_pool(tokens, part_logits, impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, cells in ((2, 65), (3, 66), (4, 130), (5, 64)):
        inputs = tensors(cells, batch=batch, device=device)
        for value, wanted in zip(with_gradients(compiled, inputs), with_gradients(function, inputs), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2


@needs_native
def test_a_compiled_graph_notices_a_changed_preference() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda *inputs: part_pool(*inputs).mass, fullgraph=True, backend=counter)
    inputs = tensors()
    compiled(*inputs)
    kernels = KERNELS.native_kernels

    def calls_the_kernel() -> list[bool]:
        return [any(node.target is kernels.forward for node in graph.graph.nodes) for graph in counter.graphs]

    assert calls_the_kernel() == [True]
    with ops.use_backend("reference"):
        compiled(*inputs)
    assert calls_the_kernel() == [True, False]
    compiled(*inputs)
    assert counter.frame_count == 2


def test_inductor_runs_it_inside_a_larger_graph() -> None:
    torch._dynamo.reset()

    def function(tokens: torch.Tensor, part_logits: torch.Tensor) -> Tensors:
        pooled, mass = part_pool(2 * tokens, part_logits)
        return pooled.sin(), mass

    compiled = torch.compile(function, fullgraph=True)
    inputs = tensors()
    for value, wanted in zip(with_gradients(compiled, inputs), with_gradients(function, inputs), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


class _Module(torch.nn.Module):
    def forward(self, tokens: torch.Tensor, part_logits: torch.Tensor) -> Tensors:
        return tuple(part_pool(tokens, part_logits))


def test_export_keeps_it_as_one_operator_with_dynamic_sizes() -> None:
    batch, cells = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("cells", min=2, max=4096)
    program = torch.export.export(_Module(), tensors(), dynamic_shapes=({0: batch, 1: cells}, {0: batch, 2: cells}))
    if _native.load_operators():
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert torch.ops.motarfuse.part_pool_forward.default in targets
    inputs = tensors(65, batch=7)
    for result, wanted in zip(program.module()(*inputs), part_pool(*inputs), strict=True):
        torch.testing.assert_close(result, wanted)


@needs_native
def test_torch_func_transforms_are_served_by_the_reference() -> None:
    tokens, part_logits = tensors()

    def loss(tokens: torch.Tensor, part_logits: torch.Tensor, impl: str = "auto") -> torch.Tensor:
        return part_pool(tokens, part_logits, impl=impl).pooled.square().sum()

    leaf = tokens.clone().requires_grad_()
    loss(leaf, part_logits, "cpu").backward()
    torch.testing.assert_close(torch.func.grad(loss)(tokens, part_logits), leaf.grad)
    each = torch.func.vmap(lambda *one: loss(*(tensor[None] for tensor in one)))(tokens, part_logits)
    torch.testing.assert_close(each.sum(), loss(tokens, part_logits))
    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.grad(loss)(tokens, part_logits, "cpu")


@needs_native
def test_the_second_derivative_of_the_kernel_raises() -> None:
    tokens, part_logits = tensors()
    part_logits.requires_grad_()
    (gradient,) = torch.autograd.grad(
        part_pool(tokens, part_logits, impl="cpu").mass.sum(), part_logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="part_pool: compiled kernels are differentiable once; use impl='reference'"):
        gradient.sum().backward()


@needs_native
def test_direct_calls_of_the_operator_cannot_read_out_of_bounds() -> None:
    tokens, part_logits = tensors()
    forward, backward = torch.ops.motarfuse.part_pool_forward, torch.ops.motarfuse.part_pool_backward
    with pytest.raises(RuntimeError, match="part_logits do not fit the tokens"):
        forward(tokens, part_logits[..., :-1], False)
    with pytest.raises(RuntimeError, match="must be of half types and float32, or both of float64"):
        forward(tokens, part_logits.double(), False)
    pooled, mass, total, _ = forward(tokens, part_logits, True)
    with pytest.raises(RuntimeError, match="grad_pooled must be contiguous"):
        backward(pooled[:, :-1], mass, tokens, part_logits, pooled, total, True, True)
    with pytest.raises(RuntimeError, match="total must be contiguous"):
        backward(pooled, mass, tokens, part_logits, pooled, total[:, :-1], True, True)


@needs_native
def test_auto_takes_the_reference_where_tokens_lie_channel_by_channel_and_learn() -> None:
    """There it is faster on a CPU; without gradients, and with channels side by side, the kernel is."""

    def chosen(tokens: torch.Tensor) -> str:
        request = Request(tokens.device, {"tokens": tokens, "part_logits": torch.zeros(2, 4, 7)}, {})
        return OPERATOR.select(request).name

    tokens = torch.zeros(2, 5, 7).transpose(1, 2)
    assert chosen(tokens) == "cpu"
    assert chosen(tokens.requires_grad_()) == "reference"
    assert chosen(tokens.detach().contiguous().requires_grad_()) == "cpu"
    with torch.no_grad():
        assert chosen(tokens) == "cpu"
