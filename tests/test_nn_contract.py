"""What every layer of motarfuse.nn owes to its users, one table for all (tests/nn_contract_cases.py)."""

from __future__ import annotations

import copy
import inspect
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from motarfuse import nn as layers
from tests.nn_contract_cases import LAYERS, Arguments, Layer

NAMES = sorted(LAYERS)
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


class Called(nn.Module):
    """A layer with how it is used for its forward."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self.layer, self.module = layer, module

    def forward(self, *arguments: Any) -> Any:
        return self.layer.call(self.module, *arguments)


class OfTensors(nn.Module):
    """A layer whose arguments and results are tensors alone: torch writes no graph with named tuples."""

    def __init__(self, called: Called, spec: TreeSpec) -> None:
        super().__init__()
        self.called, self.spec = called, spec

    def forward(self, *leaves: Any) -> tuple[Tensor, ...]:
        return tuple(outputs(self.called(*tree_unflatten(leaves, self.spec))))


def made(name: str, *, double: bool = True) -> Called:
    """With weights from a seed, none of them zero: what starts as the identity would hide most of the layer."""
    torch.manual_seed(0)
    module = LAYERS[name].make()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Called(LAYERS[name], module.double() if double else module)


def arguments(name: str, *, double: bool = True) -> Arguments:
    """What the layer is called with; numbers get gradients."""

    def prepared(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.detach().to(torch.float64 if double else torch.float32).requires_grad_()

    return tuple(tree_map(prepared, one) for one in LAYERS[name].arguments())


def outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def run(function: Any, module: nn.Module, inputs: Arguments) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs and the gradients of numbers and weights; what is random is drawn alike."""
    torch.manual_seed(1)
    found = outputs(function(*inputs))
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    leaves += [parameter for parameter in module.parameters() if parameter.requires_grad]
    used = [output for output in found if output.requires_grad]
    generator = torch.Generator().manual_seed(2)
    incoming = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in used]
    return found, list(torch.autograd.grad(used, leaves, incoming, allow_unused=True))


def assert_same(got: Any, wanted: Any, *, exactly: bool = False) -> None:
    """Bitwise, or to 1e-9 of the largest number of each tensor (in float64)."""
    for one, other in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        if one is None or other is None:
            # A compiled graph may give zeros for what takes no part.
            assert all(tensor is None or not tensor.any() for tensor in (one, other))
            continue
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if exactly:
            assert torch.equal(one, other)
        elif other.numel():
            size = other.detach().abs().max() if other.is_floating_point() else 0
            assert (one - other).detach().abs().max() <= 1e-9 * size


def expanded(keys: str) -> set[str]:
    """``"norm: weight bias"`` -> norm.weight, norm.bias."""
    lines = [line.strip().split(":") for line in keys.splitlines() if line.strip()]
    return {f"{prefix}.{name}".removeprefix(".") for prefix, names in lines for name in names.split()}


def test_no_exported_layer_is_missing() -> None:
    exported = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert {name for name in exported if issubclass(getattr(layers, name), nn.Module)} == set(LAYERS)


@EVERY
def test_state_dict_keys_are_pinned(name: str) -> None:
    assert set(LAYERS[name].make().state_dict()) == expanded(LAYERS[name].keys)


@EVERY
def test_repr_says_the_arguments(name: str) -> None:
    module = LAYERS[name].make()
    parameters = inspect.signature(type(module)).parameters
    taken = [one for one in parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    assert bool(taken) == bool(module.extra_repr())


@EVERY
def test_double_computes_in_double(name: str) -> None:
    called = made(name)
    for output in outputs(called(*arguments(name))):
        assert output.dtype == torch.float64 or not output.is_floating_point()
    assert all(one.dtype == torch.float64 for one in called.state_dict().values() if one.is_floating_point())


@EVERY
def test_a_compiled_layer_computes_the_same(name: str) -> None:
    called = made(name)
    twin = copy.deepcopy(called)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, twin, arguments(name)), run(called, called, arguments(name)))
    assert_same(dict(twin.state_dict()), dict(called.state_dict()))  # running statistics too


@pytest.mark.slow
def test_inductor_computes_the_same_block() -> None:
    called = made("Block").eval()
    compiled = torch.compile(called, fullgraph=True)
    assert_same(run(compiled, called, arguments("Block")), run(called, called, arguments("Block")))


@pytest.mark.parametrize("name", [name for name in NAMES if LAYERS[name].exports])
def test_an_exported_layer_is_written_read_and_computes_the_same(name: str) -> None:
    flat, spec = tree_flatten(arguments(name))
    leaves = tuple(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in flat)
    module = OfTensors(made(name).eval(), spec)
    file = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, leaves), file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        assert_same(loaded(*leaves), module(*leaves))


@EVERY
def test_autocast_gives_finite_results_and_gradients_of_the_weights_type(name: str) -> None:
    called, inputs = made(name, double=False), arguments(name, double=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        found = outputs(called(*inputs))
    for output in found:
        assert output.isfinite().all()
        assert output.dtype in (torch.float32, torch.bfloat16) or not output.is_floating_point()
    torch.stack([output.float().sum() for output in found if output.requires_grad]).sum().backward()
    found_gradients = [one.grad for one in called.parameters() if one.grad is not None]
    assert all(one.dtype == torch.float32 and one.isfinite().all() for one in found_gradients)


@EVERY
def test_checkpointed_gradients_are_the_same_bits(name: str) -> None:
    """In evaluation where training moves statistics: a second forward would read moved ones."""
    called = made(name).train(not LAYERS[name].moves)
    inputs = arguments(name)
    expected = run(called, called, inputs)
    assert_same(
        run(lambda *args: checkpoint(called, *args, use_reentrant=False), called, inputs), expected, exactly=True
    )


@EVERY
def test_a_copy_is_equal_and_independent(name: str) -> None:
    called = made(name).eval()
    twin = copy.deepcopy(called)
    inputs = arguments(name)
    expected = outputs(called(*inputs))
    assert_same(outputs(twin(*inputs)), expected, exactly=True)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.fill_(7)
    assert_same(outputs(called(*inputs)), expected, exactly=True)


@EVERY
def test_from_the_meta_device_with_loaded_weights_it_computes_the_same(name: str) -> None:
    """Memory that ``to_empty`` leaves undefined is NaN here; ``reset_parameters`` is called as FSDP calls it."""
    called = made(name).eval()
    with torch.device("meta"):
        empty = LAYERS[name].make()
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    empty = empty.double().to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    for module in empty.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    empty.load_state_dict(called.module.state_dict())
    inputs = arguments(name)
    assert_same(outputs(Called(LAYERS[name], empty)(*inputs)), outputs(called(*inputs)), exactly=True)


SHARED = ("Block", "VisualAdapter", "GatedFusion", "LocalAppearance", "PartHeads", "Attention")


def part_of(name: str, rank: int) -> Arguments:
    """Two samples of four."""
    return tuple(one[2 * rank : 2 * rank + 2].detach() for one in arguments(name))


def gradients(module: nn.Module, inputs: Arguments, rank: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)
    torch.stack([output.square().sum() for output in outputs(module(*inputs))]).sum().backward()
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for name in SHARED:
        wrapped = DistributedDataParallel(made(name))
        found[name] = gradients(wrapped, part_of(name, rank), rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="no torch.distributed")
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    mp.spawn(_one_process, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in SHARED:
        apart = [gradients(made(name), part_of(name, rank), rank) for rank in range(2)]
        mean = {f"module.{key}": (apart[0][key] + apart[1][key]) / 2 for key in apart[0]}
        assert_same(ranks[0][name], ranks[1][name], exactly=True)
        assert_same(ranks[0][name], mean)
