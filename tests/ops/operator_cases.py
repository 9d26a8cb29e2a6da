"""What the tests of all operators share: tensors from a seed, and the checks that every definition must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Result = torch.Tensor | tuple[torch.Tensor, ...]
Function = Callable[..., Result]
HALVES = (torch.float16, torch.bfloat16)


def normal(seed: int, dtype: torch.dtype = torch.float64) -> Callable[..., torch.Tensor]:
    """A function that draws normal numbers of a shape, one stream for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def results(function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A function's results as a tuple."""
    answer = function(*inputs)
    return tuple(answer) if isinstance(answer, tuple) else (answer,)


def check_gradients(function: Function, *inputs: torch.Tensor) -> None:
    """First derivatives against finite differences in float64, second ones along a random direction."""
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def check_half_types(function: Function, *inputs: torch.Tensor) -> None:
    """Half inputs are computed in float32: the result is the float32 one, rounded, and has the first input's dtype."""
    for dtype in HALVES:
        rounded = [tensor.to(dtype) for tensor in inputs]
        for got, wanted in zip(
            results(function, *rounded), results(function, *(tensor.float() for tensor in rounded)), strict=True
        ):
            assert got.dtype in (dtype, torch.float32)
            assert torch.equal(got, wanted.to(got.dtype))


def check_strides(function: Function, *inputs: torch.Tensor) -> None:
    """Views with other strides, broadcast ones included, give what contiguous copies give, with gradients."""
    scattered = [_scattered(tensor) for tensor in inputs]
    broadcast = [tensor.detach()[:1].expand(tensor.shape) for tensor in inputs]
    for chosen in (scattered, *([*scattered[:k], broadcast[k], *scattered[k + 1 :]] for k in range(len(inputs)))):
        views = [tensor.detach().requires_grad_() for tensor in chosen]
        copies = [tensor.detach().contiguous().requires_grad_() for tensor in chosen]
        got, wanted = (results(function, *tensors) for tensors in (views, copies))
        for one, other in zip(_with_gradients(got, views), _with_gradients(wanted, copies), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def _scattered(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of a larger tensor, with the first and last dimension swapped in memory."""
    swapped = tensor.detach().transpose(0, -1)
    return torch.repeat_interleave(swapped, 2, dim=0)[::2].transpose(0, -1)


def _with_gradients(outputs: tuple[torch.Tensor, ...], inputs: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from outputs
    generator = torch.Generator().manual_seed(9)
    used = [output for output in outputs if output.requires_grad]
    incoming = [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in used]
    yield from torch.autograd.grad(used, inputs, incoming)
