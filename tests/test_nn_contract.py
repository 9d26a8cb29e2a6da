"""What every layer of motarfuse.nn owes to its users, one table for all (tests/nn_contract_cases.py)."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from motarfuse import nn as layers
from tests.nn_contract_cases import LAYERS
from tests.nn_contract_runs import NAMES, Called, OfTensors, arguments, assert_same, made, outputs, run

EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


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


def checkpointed(module: nn.Module) -> Callable[..., Any]:
    return lambda *inputs: checkpoint(module, *inputs, use_reentrant=False)


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in NAMES for training in (False, True) if not (training and LAYERS[name].moves)],
)
def test_checkpointed_gradients_are_the_same_bits_and_statistics_count_once(name: str, training: bool) -> None:
    called = made(name).train(training)
    twin = copy.deepcopy(called)
    inputs = arguments(name)
    assert_same(run(checkpointed(twin), twin, inputs), run(called, called, inputs), exactly=True)
    assert_same(dict(twin.state_dict()), dict(called.state_dict()), exactly=True)


@pytest.mark.parametrize("name", [name for name in NAMES if LAYERS[name].moves])
def test_statistics_that_the_forward_reads_count_twice_under_a_checkpoint(name: str) -> None:
    called = made(name)
    twin = copy.deepcopy(called)
    inputs = arguments(name)
    run(checkpointed(twin), twin, inputs)
    called(*inputs)
    assert not torch.equal(state_of(twin), state_of(called))
    called(*inputs)
    assert torch.equal(state_of(twin), state_of(called))


def state_of(module: nn.Module) -> Tensor:
    return torch.cat([one.flatten().double() for one in module.state_dict().values()])


@pytest.mark.parametrize(("compiles_the_layer", "batches"), [(False, 1), (True, 2)])
def test_a_compiled_checkpoint_counts_the_necks_batch_once_and_a_checkpointed_graph_twice(
    compiles_the_layer: bool, batches: int
) -> None:
    called, inputs = made("BNNeck"), arguments("BNNeck")

    def compiled(function: Any) -> Any:
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    run(checkpointed(compiled(called)) if compiles_the_layer else compiled(checkpointed(called)), called, inputs)
    assert called.state_dict()["module.num_batches_tracked"].item() == batches


def test_another_checkpoint_and_another_step_of_the_neck_count_as_they_do_without() -> None:
    called = made("BNNeck")
    twin = copy.deepcopy(called)
    for process in range(3):
        features = arguments("BNNeck", process=process)[0]
        checkpoint(twin, features, use_reentrant=True).square().sum().backward()
        called(features)
    assert called.state_dict()["module.num_batches_tracked"].item() == 3
    assert_same(dict(twin.state_dict()), dict(called.state_dict()), exactly=True)


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
