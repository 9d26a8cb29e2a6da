"""Layers of motarfuse.nn compiled by torch's default backend, which makes code of a graph, compute what they do."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from tests.nn_contract_cases import LAYERS
from tests.nn_contract_runs import NAMES, arguments, assert_same, made, run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in NAMES if LAYERS[name].compiles_quickly])
def test_inductor_computes_the_same(name: str) -> None:
    called = made(name)
    twin = copy.deepcopy(called)
    # Its own generator draws other numbers for a dropped path than eager PyTorch.
    compiled = torch.compile(twin, fullgraph=True, options={"fallback_random": True})
    assert_same(run(compiled, twin, arguments(name)), run(called, called, arguments(name)))
    assert_same(dict(twin.state_dict()), dict(called.state_dict()))  # running statistics too
