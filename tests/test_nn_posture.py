"""The canonical posture: its running mean, the alignment, the motion towards it."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from motarfuse import ops
from motarfuse.nn import CanonicalPosture
from motarfuse.nn.canonical_posture import AlignedPosture
from motarfuse.reference import cell_centers
from tests.ops.operator_cases import normal

START = torch.tensor([[0.0, -0.8], [0.0, 0.0], [-0.3, 0.7], [0.3, 0.7]])


def trained(momentum: float = 0.9) -> CanonicalPosture:
    """A posture that has seen something, in float64."""
    posture = CanonicalPosture(START, momentum=momentum).double()
    posture.affines += 0.2 * torch.tanh(normal(5)(4, 2, 2))
    return posture


def people(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    draw = normal(0)
    keypoints = START.double() + 0.2 * draw(batch, 4, 2)
    affines = torch.eye(2).double() + 0.3 * torch.tanh(draw(batch, 4, 2, 2))
    return keypoints, affines, torch.sigmoid(draw(batch, 4))


def test_it_starts_where_it_is_told_and_with_identities() -> None:
    posture = CanonicalPosture(START)
    assert torch.equal(posture.keypoints, START)
    assert torch.equal(posture.affines, torch.eye(2).expand(4, 2, 2))
    assert not list(posture.parameters())
    assert set(posture.state_dict()) == {"keypoints", "affines"}


def test_a_batch_moves_it_by_its_weighted_mean() -> None:
    posture, (keypoints, affines, visibility) = trained(momentum=0.75), people()
    before = posture.keypoints.clone(), posture.affines.clone()
    posture.update(keypoints, affines, visibility)
    for k in range(4):
        weights = visibility[:, k] / visibility[:, k].sum()
        mean = sum(w * p for w, p in zip(weights, keypoints[:, k], strict=True))
        torch.testing.assert_close(posture.keypoints[k], 0.75 * before[0][k] + 0.25 * mean)
        mean = sum(w * a for w, a in zip(weights, affines[:, k], strict=True))
        torch.testing.assert_close(posture.affines[k], 0.75 * before[1][k] + 0.25 * mean)


def test_it_converges_to_what_it_sees_and_evaluation_changes_nothing() -> None:
    posture, (keypoints, affines, visibility) = trained(), people(1)
    for _ in range(300):
        posture.update(keypoints, affines, visibility)
    torch.testing.assert_close(posture.keypoints, keypoints[0])
    torch.testing.assert_close(posture.affines, affines[0])
    posture.eval().update(keypoints + 1, affines, visibility)
    torch.testing.assert_close(posture.keypoints, keypoints[0])


@pytest.mark.parametrize("spoiler", [math.nan, math.inf])
def test_unseen_and_spoilt_parts_stay(spoiler: float) -> None:
    posture, (keypoints, affines, visibility) = trained(), people()
    before = posture.keypoints.clone()
    visibility[:, 1] = 0
    keypoints[0, 2, 0] = spoiler
    posture.update(keypoints, affines, visibility)
    assert torch.equal(posture.keypoints[1:3], before[1:3])
    assert not torch.equal(posture.keypoints[[0, 3]], before[[0, 3]])
    assert posture.affines.isfinite().all()


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    posture, batch = trained(), people(6)
    part = slice(0, 2) if rank == 0 else slice(2, 6)
    posture.update(*(tensor[part] for tensor in batch))
    torch.save(posture.state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="no torch.distributed")
def test_two_processes_agree_with_one_that_sees_all() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_process, args=(folder,), nprocs=2)
        states = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = trained()
    alone.update(*people(6))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], tensor)


def test_a_shifted_and_scaled_posture_is_aligned_onto_the_canonical_one() -> None:
    posture, visibility = trained(), torch.full((2, 4), 0.7).double()
    shift, scale = torch.tensor([[0.3, -0.2], [-0.1, 0.4]]).double(), torch.tensor([0.8, 1.25]).double()
    keypoints = shift[:, None] + scale[:, None, None] * posture.keypoints
    affines = scale[:, None, None, None] * posture.affines
    aligned = posture.align(keypoints, affines, visibility)
    # The floors of radius and weight leave a little.
    torch.testing.assert_close(aligned.keypoints, posture.keypoints.expand(2, 4, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(aligned.scale, 1 / scale, rtol=1e-3, atol=0)
    torch.testing.assert_close(aligned.alignment[:, 2], -scale.log(), rtol=0, atol=1e-3)
    centre = posture.keypoints.mean(0)
    torch.testing.assert_close(aligned.alignment[:, :2], centre - (shift + scale[:, None] * centre), rtol=0, atol=1e-4)
    moved = posture.displacement(normal(2)(2, 5, 12), keypoints, affines, aligned, grid=(4, 3))
    assert moved.abs().max() < 1e-3
    assert posture.log_determinants(aligned).abs().max() < 1e-3


def test_hidden_parts_do_not_disturb_the_alignment() -> None:
    posture = trained()
    keypoints, affines, visibility = people()
    visibility[:, 3] = 0
    aligned = posture.align(keypoints, affines, visibility)
    elsewhere = keypoints.clone()
    elsewhere[:, 3] += 5
    for name in ("centre", "target", "scale"):
        assert torch.equal(getattr(posture.align(elsewhere, affines, visibility), name), getattr(aligned, name)), name


def test_nothing_visible_is_finite_and_scales_are_bounded() -> None:
    posture = trained()
    keypoints, affines, _ = (tensor.requires_grad_() for tensor in people())
    aligned = posture.align(keypoints, affines, torch.zeros(3, 4).double())
    assert all(tensor.isfinite().all() for tensor in aligned)
    aligned.keypoints.sum().backward()
    assert keypoints.grad is not None
    assert keypoints.grad.isfinite().all()
    for factor, scale in ((100.0, 0.5), (0.0, 2.0)):
        found = posture.align(factor * keypoints.detach(), affines.detach(), torch.ones(3, 4).double())
        torch.testing.assert_close(found.scale, torch.full((3,), scale).double())


def test_the_displacement_is_what_loops_over_parts_and_points_compute() -> None:
    posture, (keypoints, affines, visibility) = trained(), people()
    aligned = posture.align(keypoints, affines, visibility)
    cells = cell_centers((4, 3), dtype=torch.float64)
    logits = normal(2)(3, 5, 12)
    background, masks = torch.softmax(logits, 1).split((1, 4), dim=1)
    got = posture.displacement(logits, keypoints, affines, aligned, grid=(4, 3))
    given = posture.displacement(logits, keypoints, affines, aligned, grid=(4, 3), foreground=1 - background.squeeze(1))
    assert torch.equal(given, got)
    for b in range(3):
        for n in range(12):
            u = aligned.target[b] + aligned.scale[b] * (cells[n] - aligned.centre[b])
            expected = torch.zeros(2).double()
            for k in range(4):
                jacobian = posture.affines[k] @ torch.linalg.inv(aligned.affines[b, k])
                goal = posture.keypoints[k] + jacobian @ (u - aligned.keypoints[b, k])
                expected += masks[b, k, n] * (goal - u)
            torch.testing.assert_close(got[b, n], expected, rtol=1e-10, atol=1e-12)


def test_without_a_shift_and_a_scale_it_is_the_flow_of_motion_warp_from_the_canonical_posture() -> None:
    posture, (keypoints, affines, _) = trained(), people()
    cells = cell_centers((4, 3), dtype=torch.float64)
    zero = torch.zeros(3, 2).double()
    still = AlignedPosture(keypoints, affines, zero, zero, torch.ones(3).double())
    logits = normal(2)(3, 5, 12)
    flow = ops.motion_warp(
        torch.zeros(3, 12, 1).double(), posture.keypoints.expand(3, 4, 2), posture.affines.expand(3, 4, 2, 2),
        keypoints, affines, logits, grid=(4, 3), impl="reference",
    ).flow  # fmt: skip
    got = posture.displacement(logits, keypoints, affines, still, grid=(4, 3))
    torch.testing.assert_close(got, flow - cells, rtol=1e-10, atol=1e-12)


def test_log_determinants_and_gradients() -> None:
    posture, (keypoints, affines, visibility) = trained(), people(2)
    aligned = posture.align(keypoints, affines, visibility)
    expected = (torch.linalg.det(posture.affines) / torch.linalg.det(aligned.affines)).log()
    torch.testing.assert_close(posture.log_determinants(aligned), expected)
    logits = normal(2)(2, 5, 4)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        keypoints, affines, visibility, logits = tensors
        found = posture.align(keypoints, affines, visibility)
        moved = posture.displacement(logits, keypoints, affines, found, grid=(2, 2))
        return moved, posture.log_determinants(found), found.alignment

    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in (keypoints, affines, visibility, logits))
    assert torch.autograd.gradcheck(function, inputs)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keypoints must be \(L, 2\)"):
        CanonicalPosture(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="momentum must lie in"):
        CanonicalPosture(START, momentum=1.5)
