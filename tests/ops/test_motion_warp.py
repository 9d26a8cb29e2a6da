"""motion_warp: the definition against loops and F.grid_sample, its edges, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from motarfuse import ops, reference
from motarfuse.reference.motion_warp import inverse_2x2, sample_bilinear
from tests.ops import motion_warp_cases as cases
from tests.ops.operator_cases import check_gradients, check_strides, normal

GRID = (4, 3)


def case(*, batch: int = 2, parts: int = 3) -> dict[str, Any]:
    return cases.case(GRID, torch.float64, batch=batch, parts=parts)


def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return ops.motion_warp(*tensors, grid=GRID, impl="reference")


def test_the_flow_is_what_loops_over_parts_and_cells_compute() -> None:
    c = case()
    result = ops.motion_warp(**c, grid=GRID)
    cells = reference.cell_centers(GRID, dtype=torch.float64)
    for b in range(2):
        for n in range(12):
            masks = torch.softmax(c["part_logits"][b, :, n], 0)
            expected = masks[0] * cells[n]
            for k in range(3):
                jacobian = c["source_affines"][b, k] @ torch.linalg.inv(c["target_affines"][b, k])
                moved = c["source_keypoints"][b, k] + jacobian @ (cells[n] - c["target_keypoints"][b, k])
                expected = expected + masks[k + 1] * moved
            torch.testing.assert_close(result.flow[b, n], expected, rtol=1e-12, atol=1e-12)
            seen = torch.softmax(c["source_part_logits"][b, :, n], 0)[0]
            torch.testing.assert_close(result.visibility[b, n], 1 - (1 - seen) * masks[0])


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("grid", [(4, 3), (1, 1), (7, 1), (1, 9), (16, 8)], ids=str)
def test_the_warp_is_grid_sample_with_its_gradients(grid: tuple[int, int], spread: float) -> None:
    source = normal(1)(2, grid[0] * grid[1], 5).requires_grad_()
    positions = (spread * normal(2)(2, 11, 2)).requires_grad_()
    image = source.detach().transpose(1, 2).unflatten(2, grid).requires_grad_()
    field = positions.detach().clone().requires_grad_()
    ours = sample_bilinear(source, positions, grid)
    theirs = F.grid_sample(image, field[:, None], padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    incoming = normal(3)(2, 11, 5)
    got = torch.autograd.grad(ours, (source, positions), incoming)
    wanted = torch.autograd.grad(theirs, (image, field), incoming)
    torch.testing.assert_close(got[0].transpose(1, 2), wanted[0].flatten(2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-11, atol=1e-11)


def test_at_the_cells_own_centres_gradients_are_those_of_grid_sample_too() -> None:
    """A still person: every flow lies exactly on a cell, and on the border's cells the gradient is zero."""
    grid = (4, 3)
    positions = reference.cell_centers(grid, dtype=torch.float64)[None].clone().requires_grad_()
    source = normal(1)(1, 12, 5)
    field = positions.detach().clone().requires_grad_()
    image = source.transpose(1, 2).unflatten(2, grid)
    sample_bilinear(source, positions, grid).sum().backward()
    F.grid_sample(image, field[:, None], padding_mode="border", align_corners=False).sum().backward()
    assert positions.grad is not None
    assert field.grad is not None
    interior = torch.zeros(4, 3, dtype=torch.bool)
    interior[1:-1, 1:-1] = True
    inside = interior.flatten()
    torch.testing.assert_close(positions.grad[0, inside], field.grad[0, inside])
    # In the corners both directions are on the border.
    corners = [0, 2, 9, 11]
    assert torch.equal(positions.grad[0, corners], torch.zeros(4, 2).double())


def test_gradients() -> None:
    *postures, source_logits = case().values()
    check_gradients(lambda *tensors: call(*tensors)[:2], *postures)
    # The visibility stops the target's gradient, which finite differences do not.
    check_gradients(lambda logits: call(*postures, logits)[2], source_logits)


def test_a_still_posture_moves_nothing() -> None:
    c = case()
    still = {name.replace("target", "source"): tensor for name, tensor in c.items() if name.startswith("target")}
    result = ops.motion_warp(**{**c, **still}, grid=GRID)
    torch.testing.assert_close(result.flow, reference.cell_centers(GRID, dtype=torch.float64).expand(2, 12, 2))
    torch.testing.assert_close(result.warped, c["source"])


def test_background_stays_and_takes_no_gradient_into_the_postures() -> None:
    c = case()
    c["part_logits"][:, 0] = 200.0
    keypoints = c["source_keypoints"].requires_grad_()
    result = ops.motion_warp(**c, grid=GRID)
    torch.testing.assert_close(result.flow, reference.cell_centers(GRID, dtype=torch.float64).expand(2, 12, 2))
    result.flow.sum().backward()
    assert keypoints.grad is not None
    assert keypoints.grad.abs().max() < 1e-80


def test_a_singular_affine_does_not_raise_and_small_determinants_keep_their_sign() -> None:
    singular = torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[1e-5, 0.0], [0.0, -1e-5]], [[0.0, 0.0], [0.0, 0.0]]]).double()
    inverse = inverse_2x2(singular)
    torch.testing.assert_close(inverse[0], torch.tensor([[4.0, -2.0], [-2.0, 1.0]]).double() / 1e-8)
    torch.testing.assert_close(inverse[1], torch.tensor([[-1e-5, 0.0], [0.0, 1e-5]]).double() / -1e-8)
    assert torch.equal(inverse[2], torch.zeros(2, 2).double())
    c = {name: tensor.requires_grad_() for name, tensor in case(parts=3).items()}
    result = ops.motion_warp(**{**c, "target_affines": singular.expand(2, 3, 2, 2).clone().requires_grad_()}, grid=GRID)
    (result.warped.sum() + result.flow.sum()).backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in c.values())


def test_without_source_logits_everything_was_visible() -> None:
    c = case()
    c.pop("source_part_logits")
    assert torch.equal(ops.motion_warp(**c, grid=GRID).visibility, torch.ones(2, 12).double())


def test_the_targets_masks_take_no_gradient_from_the_visibility() -> None:
    c = {name: tensor.requires_grad_() for name, tensor in case().items()}
    ops.motion_warp(**c, grid=GRID).visibility.sum().backward()
    assert c["part_logits"].grad is None
    assert c["source_part_logits"].grad is not None
    assert c["source_part_logits"].grad.abs().max() > 0


@pytest.mark.parametrize(("batch", "parts"), [(0, 3), (2, 0)])
def test_empty_batches_and_no_parts(batch: int, parts: int) -> None:
    c = case(batch=batch, parts=parts)
    result = ops.motion_warp(**c, grid=GRID)
    assert result.warped.shape == (batch, 12, 5)
    if parts == 0:
        torch.testing.assert_close(result.warped, c["source"])


def test_other_strides_and_mixed_precisions() -> None:
    c = case()
    check_strides(call, *c.values())
    halves = {"source", "part_logits", "source_part_logits"}
    mixed = {name: tensor.half() if name in halves else tensor.float() for name, tensor in c.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ops.motion_warp(**mixed, grid=GRID)
    assert [tensor.dtype for tensor in result] == [torch.float16, torch.float32, torch.float16]
    exact = ops.motion_warp(**{name: tensor.double() for name, tensor in mixed.items()}, grid=GRID)
    torch.testing.assert_close(result.flow.double(), exact.flow, rtol=0, atol=1e-6)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"source": None}, TypeError, "source must be a torch.Tensor"),
    ({"source": torch.zeros(2, 12)}, ValueError, r"source must be \(B, N, C\)"),
    ({"grid": (4, 4)}, ValueError, r"grid \(4, 4\) has 16 cells, but source has 12"),
    ({"grid": 12}, TypeError, "grid must be a pair"),
    ({"source_keypoints": torch.zeros(2, 3)}, ValueError, r"source_keypoints must be \(B, K, 2\), 3 dimensions"),
    ({"source_keypoints": torch.zeros(2, 3, 3)}, ValueError, r"source_keypoints must be \(B, K, 2\) = \(2, 3, 2\)"),
    ({"target_keypoints": torch.zeros(2, 4, 2)}, ValueError, "target_keypoints must be"),
    ({"source_affines": torch.zeros(2, 3, 2, 3)}, ValueError, "source_affines must be"),
    ({"target_affines": torch.zeros(1, 3, 2, 2)}, ValueError, "target_affines must be"),
    ({"part_logits": torch.zeros(2, 3, 12)}, ValueError, r"part_logits must be \(B, K \+ 1, N\) = \(2, 4, 12\)"),
    ({"source_part_logits": torch.zeros(2, 4, 11)}, ValueError, "source_part_logits must be"),
    ({"part_logits": torch.zeros(2, 4, 12).double()}, TypeError, "float64 cannot be mixed"),
    ({"part_logits": torch.zeros(2, 4, 12).long()}, TypeError, "part_logits has dtype int64"),
    ({"target_affines": torch.zeros(2, 3, 2, 2, device="meta")}, ValueError, "target_affines is on meta"),
    ({"impl": "metal"}, ValueError, "no impl 'metal'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {name: tensor.float() for name, tensor in case().items()} | {"grid": GRID} | change
    with pytest.raises(error, match=message):
        ops.motion_warp(**arguments)
