"""Every layer of motarfuse.nn in a distributed training: two processes, one pair of them for all layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from tests.nn_contract_cases import LAYERS, Arguments
from tests.nn_contract_runs import NAMES, Called, arguments, assert_same, made, outputs

PROCESSES = 2
STEPS = 2  # in its second DDP refuses a layer of which the first left a parameter without a gradient
Found = dict[str, dict[str, Tensor]]

pytestmark = pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="no torch.distributed")


class Fed(nn.Module):
    """A layer behind a parameter, 1, which scales its numbers: DDP wants one, and its gradient tells the numbers'."""

    def __init__(self, called: Called) -> None:
        super().__init__()
        self.called = called
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, *inputs: object) -> list[Tensor]:
        def scaled(leaf: object) -> object:
            return self.gain * leaf if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return outputs(self.called(*(tree_map(scaled, one) for one in inputs)))


def given(name: str, process: int) -> Arguments:
    """A process's part of the batch."""
    return tuple(
        tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, one)
        for one in arguments(name, process=process)
    )


def joined(name: str) -> Arguments:
    """What one process would be called with: the rows of all."""

    def of_all(*parts: object) -> object:
        rows = [one for one in parts if isinstance(one, Tensor)]
        return torch.cat(rows) if rows else parts[0]

    parts = [given(name, process) for process in range(PROCESSES)]
    return tuple(tree_map(of_all, *ones) for ones in zip(*parts, strict=True))


def learned(module: nn.Module, inputs: Arguments, process: int) -> dict[str, dict[str, Tensor]]:
    """Gradients of the last step of a mean over the batch, and what the layer keeps beside its parameters."""
    for _ in range(STEPS):
        module.zero_grad()
        torch.manual_seed(process)
        found = [one for one in module(*inputs) if one.requires_grad]
        torch.stack([one.square().mean() if one.dim() else one for one in found]).sum().backward()
    parameters = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    kept = {name: one for name, one in module.state_dict().items() if name not in dict(module.named_parameters())}
    return {
        "gradients": {name.removeprefix("module."): one for name, one in parameters.items()},
        "kept": {name.removeprefix("module."): one for name, one in kept.items()},
    }


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    found = {}
    for name in NAMES:
        found[name] = learned(DistributedDataParallel(Fed(made(name))), given(name, rank), rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_one_process, args=(str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_the_same(name: str, ranks: list[dict[str, Found]]) -> None:
    """What one process learns from the whole batch, or the mean of what they learn apart."""
    for rank in ranks[1:]:
        assert_same(rank[name]["gradients"], ranks[0][name]["gradients"], exactly=True)
    if LAYERS[name].joined:
        whole = learned(Fed(made(name)), joined(name), 0)
        for rank in ranks:
            for kind, tensors in whole.items():
                assert rank[name][kind].keys() == tensors.keys()
                assert_same(rank[name][kind], tensors)
        return
    apart = [learned(Fed(made(name)), given(name, process), process)["gradients"] for process in range(PROCESSES)]
    assert_same(ranks[0][name]["gradients"], {key: sum(one[key] for one in apart) / PROCESSES for key in apart[0]})


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_nothing_and_processes_differ(name: str) -> None:
    """Or the comparison above would hold for a layer that takes no part."""
    one, other = (learned(Fed(made(name)), given(name, process), 0)["gradients"] for process in range(PROCESSES))
    assert all(gradient.any() for gradient in one.values())
    assert not torch.equal(one["gain"], other["gain"])
