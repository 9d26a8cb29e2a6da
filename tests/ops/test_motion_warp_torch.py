"""motion_warp inside torch's machinery: opcheck, compile, export, torch.func, autocast, direct calls."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from motarfuse import _native
from motarfuse.ops import motion_warp
from motarfuse.ops.backends import Request
from motarfuse.ops.motion_warp import KERNELS, OPERATOR, MotionWarp
from tests.ops.kernel_cases import BACKENDS, KERNEL_BACKENDS, needs_native
from tests.ops.motion_warp_cases import case

GRID = (16, 8)


@pytest.mark.parametrize("with_source_logits", [True, False])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_the_registered_operators_pass_opcheck(backend: tuple[str, str], with_source_logits: bool) -> None:
    _, device = backend
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs, and NaN is not equal to NaN
    kernels = KERNELS.native_kernels
    *given, source_logits = (tensor.to(device) for tensor in case((4, 2)).values())
    inputs = [*given, source_logits if with_source_logits else None]
    torch.library.opcheck(kernels.forward, (*inputs, 4, 2))
    incoming = [torch.randn_like(result) for result in kernels.forward(*inputs, 4, 2)]
    for needs in (0b1111111, 0b1, 0b0100010):
        torch.library.opcheck(kernels.backward, (*incoming, *inputs, 4, 2, needs))
    for k in range(3):
        some = [None if i == k else gradient for i, gradient in enumerate(incoming)]
        torch.library.opcheck(kernels.backward, (*some, *inputs, 4, 2, 0b1111111))


def _gradients(result: MotionWarp, inputs: list[torch.Tensor], *, flow_only: bool) -> tuple[torch.Tensor, ...]:
    loss = result.flow.square().sum()
    if not flow_only:
        loss = loss + result.warped.sin().sum() + result.visibility.square().sum()
    return torch.autograd.grad(loss, inputs, allow_unused=True)


@pytest.mark.parametrize("flow_only", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_takes_it_whole_and_recompiles_once_for_all_batch_sizes(
    backend: tuple[str, str], flow_only: bool
) -> None:
    impl, device = backend
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(*inputs: torch.Tensor) -> MotionWarp:
        return motion_warp(*inputs, grid=GRID, impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch in (2, 3, 4, 5):
        inputs = [tensor.to(device).requires_grad_() for tensor in case(GRID, batch=batch).values()]
        got, wanted = compiled(*inputs), function(*inputs)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        gradients = (_gradients(result, inputs, flow_only=flow_only) for result in (got, wanted))
        for one, other in zip(*gradients, strict=True):
            # Compiled, what is not used counts as zero.
            one, other = (torch.zeros(()) if tensor is None else tensor for tensor in (one, other))
            torch.testing.assert_close(one, other.expand_as(one), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


class _Module(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(motion_warp(*inputs, grid=GRID))


def test_export_keeps_it_as_one_operator_with_a_dynamic_batch() -> None:
    inputs = tuple(case(GRID).values())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_Module(), inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    if _native.load_operators():
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert torch.ops.motarfuse.motion_warp_forward.default in targets
    inputs = tuple(case(GRID, batch=7).values())
    for result, wanted in zip(program.module()(*inputs), motion_warp(*inputs, grid=GRID), strict=True):
        torch.testing.assert_close(result, wanted)


@needs_native
def test_torch_func_transforms_are_served_by_the_reference() -> None:
    source, *others = case((4, 2)).values()

    def loss(source: torch.Tensor, impl: str = "auto") -> torch.Tensor:
        return motion_warp(source, *others, grid=(4, 2), impl=impl).warped.square().sum()

    leaf = source.clone().requires_grad_()
    loss(leaf, "cpu").backward()
    torch.testing.assert_close(torch.func.grad(loss)(source), leaf.grad)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.grad(loss)(source, "cpu")


@needs_native
def test_the_second_derivative_of_the_kernel_raises() -> None:
    source, *others = case((4, 2)).values()
    source.requires_grad_()
    result = motion_warp(source, *others, grid=(4, 2), impl="cpu")
    (gradient,) = torch.autograd.grad(result.warped.square().sum(), source, create_graph=True)
    with pytest.raises(RuntimeError, match="motion_warp: compiled kernels are differentiable once; use impl='ref"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in case(GRID).items()} | {"source": case(GRID)["source"].half()}
    inputs["source"] = inputs["source"].to(device)
    expected = motion_warp(**inputs, grid=GRID, impl=impl)
    with torch.autocast(device, torch.bfloat16):
        result = motion_warp(**inputs, grid=GRID, impl=impl)
    for one, other in zip(result, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@needs_native
def test_direct_calls_of_the_operator_cannot_read_out_of_bounds() -> None:
    kernels = KERNELS.native_kernels
    inputs = list(case((4, 2)).values())
    with pytest.raises(RuntimeError, match="source has a shape that does not fit"):
        kernels.forward(*inputs, 5, 2)
    with pytest.raises(RuntimeError, match="target_affines has a shape that does not fit"):
        kernels.forward(*inputs[:4], inputs[4][:, :2], *inputs[5:], 4, 2)
    with pytest.raises(RuntimeError, match="grad_warped must have its result's shape"):
        kernels.backward(torch.zeros(2, 8, 4), None, None, *inputs, 4, 2, 127)
    with pytest.raises(RuntimeError, match="part_logits has a dtype that cannot stand beside"):
        kernels.forward(*inputs[:5], inputs[5].double(), inputs[6], 4, 2)


def test_sizes_beyond_the_cuda_kernels_are_a_reason_against_them() -> None:
    def reasons(cells: int, parts: int, dtype: torch.dtype = torch.bfloat16) -> str:
        shapes = {"source": (1, cells, 4), "source_keypoints": (1, parts, 2)}
        tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
        return "; ".join(OPERATOR.backends["cuda"].not_supported_reasons(Request(torch.device("cuda"), tensors, {})))

    assert "computing in float32 it takes up to 4096 cells, got 4160" in reasons(4160, 8)
    assert "computing in float32 it takes up to 256 parts, got 257" in reasons(128, 257)
    assert "computing in float64 it takes up to 2048 cells, got 4096" in reasons(4096, 8, torch.float64)
    assert "it takes up to" not in reasons(4096, 256) + reasons(2048, 64, torch.float64)
