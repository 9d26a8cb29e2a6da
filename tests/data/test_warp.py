"""The warp of occluded copies: its formula, its Jacobian, and that it never folds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from motarfuse.data import OccludedCopy, OccludedCopyConfig, Warp
from motarfuse.data.warp import control_points

SIZE = (128, 64)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bent(count: int = 4, seed: int = 0, bend: float = 0.05) -> Warp:
    """A warp with everything in it."""
    g = _seeded(seed)
    return Warp.compose(
        SIZE,
        angle=torch.rand(count, generator=g, dtype=torch.float64) - 0.5,
        scale=0.8 + 0.4 * torch.rand(count, generator=g, dtype=torch.float64),
        shift=0.3 * torch.rand(count, 2, generator=g, dtype=torch.float64) - 0.15,
        displacements=bend * torch.randn(count, 15, 2, generator=g, dtype=torch.float64),
    )


def _similarity(angle: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Warp:
    return Warp.compose(SIZE, angle=torch.tensor([angle]), scale=torch.tensor([scale]), shift=torch.tensor([shift]))


def _points(count: int, number: int = 40, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    return torch.rand(count, number, 2, generator=_seeded(seed), dtype=dtype) * 2.4 - 1.2


def _differences(warp: Warp, points: Tensor, step: float) -> Tensor:
    columns = []
    for axis in range(2):
        move = torch.zeros(2, dtype=torch.float64)
        move[axis] = step
        columns.append((warp(points + move) - warp(points - move)) / (2 * step))
    return torch.stack(columns, -1)


def _pixel_centers(size: tuple[int, int]) -> Tensor:
    y, x = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in size)
    return torch.cartesian_prod(y, x).flip(1)


def test_bend_is_the_spline_that_a_plain_solution_of_its_equations_gives() -> None:
    displacements = 0.03 * torch.randn(1, 15, 2, generator=_seeded(0), dtype=torch.float64)
    one = torch.ones(1)
    warp = Warp.compose(SIZE, angle=0 * one, scale=one, shift=torch.zeros(1, 2), displacements=displacements)
    controls = [(x, y) for y in (-1, -0.5, 0, 0.5, 1) for x in (-1, 0, 1)]

    def kernel(u: tuple[float, float], c: tuple[float, float]) -> float:
        r = math.hypot((u[0] - c[0]) / 2, u[1] - c[1])  # 64 pixels wide, 128 high
        return 0.0 if r == 0 else 2 * r * r * math.log(r)

    system = np.zeros((18, 18))
    for row, c in enumerate(controls):
        system[row, :15] = [kernel(c, other) for other in controls]
        system[row, 15:] = system[15:, row] = [1, *c]
    solved = np.linalg.solve(system, np.concatenate([displacements[0].numpy(), np.zeros((3, 2))]))
    points = _points(1)
    for u, got in zip(points[0].tolist(), warp(points)[0].tolist(), strict=True):
        functions = np.array([*(kernel((u[0], u[1]), c) for c in controls), 1, *u])
        assert got == pytest.approx(np.array(u) + functions @ solved, abs=1e-12)
    assert torch.equal(control_points(), torch.tensor(controls, dtype=torch.float64))


def test_bend_moves_control_points_by_their_displacements_and_the_similarity_follows() -> None:
    displacements = 0.03 * torch.randn(1, 15, 2, generator=_seeded(1), dtype=torch.float64)
    warp = Warp.compose(
        SIZE,
        angle=torch.tensor([0.3]),
        scale=torch.tensor([1.2]),
        shift=torch.tensor([[0.1, -0.05]]),
        displacements=displacements,
    )
    moved = (control_points() + displacements[0]) * torch.tensor([32, 64])  # pixels from the middle
    cos, sin = 1.2 * math.cos(np.float32(0.3)), 1.2 * math.sin(np.float32(0.3))
    turned = torch.stack([cos * moved[:, 0] - sin * moved[:, 1], sin * moved[:, 0] + cos * moved[:, 1]], 1)
    expected = turned / torch.tensor([32, 64]) + torch.tensor([0.1, -0.05])
    assert (warp(control_points()[None])[0] - expected).abs().max() < 1e-6  # 1.2 and 0.1 came as float32


def test_rotation_keeps_distances_in_pixels_and_scale_multiplies_them() -> None:
    warp = _similarity(angle=0.6, scale=1.25)
    points = _points(1, 20)
    half = torch.tensor([32.0, 64.0], dtype=torch.float64)
    before, after = (torch.cdist(p * half, p * half) for p in (points, warp(points)))
    assert (after - 1.25 * before).abs().max() < 1e-9


def test_jacobian_is_what_central_differences_and_automatic_differentiation_give() -> None:
    warp, points = _bent(), _points(4)
    got = warp.jacobian(points)
    assert (got - _differences(warp, points, 1e-5)).abs().max() < 1e-8
    for index in range(2):
        one = warp[torch.tensor([index])]
        automatic = torch.func.vmap(torch.func.jacrev(lambda u, one=one: one(u[None, None])[0, 0]))(points[index])
        assert (got[index] - automatic).abs().max() < 1e-12


def test_value_and_jacobian_are_exact_and_gradients_finite_at_the_control_points() -> None:
    warp = _bent()
    points = control_points().expand(4, -1, -1).clone().requires_grad_()
    # The second derivatives grow like log r there, so that differences converge like h log h only.
    assert (warp.jacobian(points) - _differences(warp, points, 1e-7)).abs().max() < 1e-5
    for dtype in (torch.float32, torch.float64):
        at = points.detach().to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad((warp(at)[..., 0]).sum(), at)
        assert (gradient - warp.jacobian(at)[..., 0, :]).abs().max() < 1e-5
        (second,) = torch.autograd.grad(warp.jacobian(at).sum(), at)
        assert second.isfinite().all()


def test_gradients_reach_the_points_through_values_and_through_the_jacobian() -> None:
    warp, points = _bent(2), _points(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(warp, (points,))
    assert torch.autograd.gradcheck(warp.jacobian, (points,))


def test_single_precision_and_autocast_stay_near_double() -> None:
    warp, points = _bent(), _points(4)
    with torch.autocast("cpu", torch.bfloat16):
        value, slope = warp(points.float()), warp.jacobian(points.float())
    assert value.dtype == slope.dtype == torch.float32
    assert (value - warp(points)).abs().max() < 3e-6
    assert (slope - warp.jacobian(points)).abs().max() < 2e-5


def test_pixels_and_points_see_the_same_warp() -> None:
    warp = _bent()
    got = warp.on_pixels(SIZE).flatten(1, 2)
    assert (got - warp(_pixel_centers(SIZE).expand(4, -1, -1))).abs().max() < 2e-7


def test_a_subset_of_the_batch_keeps_its_warps() -> None:
    warp, points = _bent(), _points(4)
    index = torch.tensor([2, 0])
    assert torch.equal(warp[index](points[index]), warp(points)[index])
    mask = torch.tensor([False, True, False, True])
    assert torch.equal(warp[mask].jacobian(points[mask]), warp.jacobian(points)[mask])
    assert len(warp[1:]) == 3


@pytest.mark.parametrize("bend", [0.05, 0.1])
def test_no_warp_folds(bend: float) -> None:
    # Twice as dense as what is checked when a warp is built.
    dense = torch.cartesian_prod(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 65)).double()[None]
    maker = OccludedCopy(OccludedCopyConfig(bend=bend, occluder_probability=0))
    smallest = []
    for seed in range(500):
        warp = maker(torch.zeros(1, 3, *SIZE), _seeded(seed)).warp
        smallest.append(torch.linalg.det(warp.jacobian(dense)).min())
    found = torch.stack(smallest)
    assert found.min() > 0.15  # 0.3 of the bend times 0.64 of the smallest scale, less what lies between the points
    assert found.max() < 1.5  # and they do bend


def test_a_bend_that_would_fold_is_weakened_as_little_as_needed_and_others_are_left_alone() -> None:
    g, one = _seeded(0), torch.ones(1)
    gentle = 0.02 * torch.randn(1, 15, 2, generator=g, dtype=torch.float64)
    wild = 0.5 * torch.randn(1, 15, 2, generator=g, dtype=torch.float64)
    dense = torch.cartesian_prod(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 129)).double()[None]
    factors = []
    for displacements in (gentle, wild):
        warp = Warp.compose(SIZE, angle=0 * one, scale=one, shift=torch.zeros(1, 2), displacements=displacements)
        ratio = (warp(control_points()[None]) - control_points()) / displacements
        assert (ratio - ratio.mean()).abs().max() < 1e-9
        factors.append(float(ratio.mean()))
        least = float(torch.linalg.det(warp.jacobian(dense)).min())
    assert factors[0] == pytest.approx(1, abs=1e-12)
    assert 0.02 < factors[1] < 0.9
    assert 0.2 < least < 0.32


def test_wrong_points_and_parameters_are_refused() -> None:
    warp = _bent()
    with pytest.raises(TypeError, match=r"points must be float32 or float64, got torch\.float16"):
        warp(torch.zeros(4, 2, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"points must be \(4, P, 2\), got \(3, 2, 2\)"):
        warp.jacobian(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"shift must have the shape \(1, 2\), got \(1,\)"):
        Warp.compose(SIZE, angle=torch.zeros(1), scale=torch.ones(1), shift=torch.zeros(1))
    with pytest.raises(ValueError, match=r"coefficients must be \(B, 18, 2\)"):
        Warp(torch.zeros(3, 2), (0.5, 1.0))
