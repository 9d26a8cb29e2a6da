"""gather_features and the triplet loss over processes: the joined batch's result on each, and its gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from motarfuse.nn import TripletLoss, gather_features
from tests.ops.operator_cases import normal

distributed = pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="no torch.distributed")
# Labels that find their farthest positive or nearest negative on the other process.
LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1, 3])
# Where the second process's rows begin and end.
CUTS = {"even": (4, 8), "uneven": (2, 9), "nothing on the first": (0, 9)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _enter(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: work(rank) for name, work in works().items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What all of ``works`` return on each of two processes, which are started once: that takes seconds."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_enter, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def rows_of(rank: int, cut: tuple[int, int]) -> slice:
    return slice(0, cut[0]) if rank == 0 else slice(*cut)


def model() -> nn.Module:
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        layer.weight.copy_(normal(1)(5, 6))
        layer.bias.copy_(normal(2)(5))
    return layer.double()


def inputs() -> Tensor:
    return normal(0)(9, 6)


def train(rank: int, cut: tuple[int, int]) -> dict[str, Tensor]:
    """A step of DistributedDataParallel on this process's rows."""
    rows = rows_of(rank, cut)
    parallel = nn.parallel.DistributedDataParallel(model())
    loss = TripletLoss(metric="cosine", gather=True)
    value = loss(parallel(inputs()[rows]), LABELS[rows].int())
    value.backward()
    gradients = {name: p.grad for name, p in parallel.module.named_parameters() if p.grad is not None}
    return {"loss": value.detach(), "skipped": loss.skipped, **gradients}


def gather(rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Each process weighs the gathered rows differently: their gradients must meet."""
    rows = rows_of(rank, CUTS["uneven"])
    features = inputs()[rows].to(dtype).t().contiguous().t().requires_grad_()
    gathered, labels = gather_features(features, LABELS[rows].to(torch.uint8))
    (gradient,) = torch.autograd.grad(gathered, features, weights(rank, dtype))
    return {"features": gathered.detach(), "labels": labels, "gradient": gradient}


def weights(rank: int, dtype: torch.dtype) -> Tensor:
    return normal(10 + rank)(9, 6).to(dtype)


def mismatch(rank: int) -> str:
    try:
        gather_features(torch.zeros(2, 3 + rank), torch.zeros(2, dtype=torch.int64))
    except ValueError as error:
        return str(error)
    return "no error"


def empty(rank: int) -> list[tuple[int, ...]]:
    """No rows on any process, rows of no columns on one."""
    found = []
    for rows, width in ((0, 3), (2 * rank, 0)):
        features = torch.zeros(rows, width, requires_grad=True)
        gathered, labels = gather_features(features, torch.zeros(rows, dtype=torch.int64))
        gathered.sum().backward()
        assert features.grad is not None
        found += [tuple(gathered.shape), tuple(labels.shape), tuple(features.grad.shape)]
    return found


def subgroup(rank: int) -> dict[str, Tensor]:
    """A group of one process each gathers nothing."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    rows = rows_of(rank, CUTS["uneven"])
    features, labels = gather_features(inputs()[rows], LABELS[rows], group=groups[rank])
    return {"features": features, "labels": labels}


def works() -> dict[str, Callable[[int], Any]]:
    """All that the two processes do, in this order."""
    return {
        **{f"train {name}": partial(train, cut=cut) for name, cut in CUTS.items()},
        **{f"gather {dtype}": partial(gather, dtype=dtype) for dtype in DTYPES},
        "mismatch": mismatch,
        "empty": empty,
        "subgroup": subgroup,
    }


@distributed
@pytest.mark.parametrize("name", CUTS)
def test_two_processes_learn_what_one_with_the_joined_batch_does(processes: list[dict[str, Any]], name: str) -> None:
    alone, loss, count = model(), TripletLoss(metric="cosine"), CUTS[name][1]
    value = loss(alone(inputs()[:count]), LABELS[:count])
    value.backward()
    for found in processes:
        one = found[f"train {name}"]
        torch.testing.assert_close(one["loss"], value.detach(), rtol=1e-12, atol=0)
        assert torch.equal(one["skipped"], loss.skipped)
        for parameter_name, parameter in alone.named_parameters():
            torch.testing.assert_close(one[parameter_name], parameter.grad, rtol=1e-10, atol=1e-13)


@distributed
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_come_in_the_order_of_ranks_and_gradients_are_summed(
    processes: list[dict[str, Any]], dtype: torch.dtype
) -> None:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    total = (weights(0, dtype).to(exact) + weights(1, dtype).to(exact)).to(dtype)
    for rank, found in enumerate(processes):
        one = found[f"gather {dtype}"]
        assert torch.equal(one["features"], inputs().to(dtype))
        assert one["labels"].dtype == torch.int64
        assert torch.equal(one["labels"], LABELS)
        assert torch.equal(one["gradient"], total[rows_of(rank, CUTS["uneven"])])


@distributed
def test_rows_of_different_widths_are_refused_on_all_processes(processes: list[dict[str, Any]]) -> None:
    for found in processes:
        assert "3 of torch.float32, 4 of torch.float32" in found["mismatch"]


@distributed
def test_nothing_to_gather_is_gathered(processes: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(processes):
        assert found["empty"] == [(0, 3), (0,), (0, 3), (2, 0), (2,), (2 * rank, 0)]


@distributed
def test_a_group_of_one_process_gathers_nothing(processes: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(processes):
        rows = rows_of(rank, CUTS["uneven"])
        assert torch.equal(found["subgroup"]["features"], inputs()[rows])
        assert torch.equal(found["subgroup"]["labels"], LABELS[rows])


def test_without_a_process_group_nothing_changes() -> None:
    features = inputs().requires_grad_()
    gathered, labels = gather_features(features, LABELS)
    assert gathered is features
    assert labels is LABELS
    assert gather_features(features, LABELS.int())[1].dtype == torch.int64
    plain, gathering = TripletLoss(0.3), TripletLoss(0.3, gather=True)
    wanted = torch.autograd.grad(plain(features, LABELS), features)[0]
    assert torch.equal(torch.autograd.grad(gathering(features, LABELS), features)[0], wanted)
    assert torch.equal(plain.skipped, gathering.skipped)
    assert repr(gathering) == "TripletLoss(margin=0.3, metric=euclidean, gather=True)"
    assert repr(plain) == "TripletLoss(margin=0.3, metric=euclidean)"


@pytest.mark.parametrize(
    ("features", "labels"),
    [(torch.zeros(3), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(4)), (torch.zeros(3, 2).int(), torch.zeros(3))],
    ids=["rank", "length", "integers"],
)
def test_wrong_shapes_are_refused_before_anything_is_sent(features: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"features must be floating \(b, D\) and labels \(b,\)"):
        gather_features(features, labels.long())
