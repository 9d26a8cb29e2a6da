"""Local appearance: what is said of a cell moves with the patches and does not know the cell's place."""

from __future__ import annotations

import pytest
import torch

from motarfuse.nn import LocalAppearance, PartDecoder

DIM, GRID = 12, (8, 6)


def appearance() -> LocalAppearance:
    torch.manual_seed(0)
    return LocalAppearance(DIM, GRID).double()


def patches(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, *GRID, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (2, 1)])
@torch.no_grad()
def test_what_is_said_of_a_cell_moves_with_the_image(shift: tuple[int, int]) -> None:
    module, cells = appearance(), patches()
    moved = cells.roll(shift, dims=(1, 2))
    here, there = (module(x.flatten(1, 2)).unflatten(1, GRID) for x in (cells, moved))
    # Two convolutions see two cells around; the border's replicas and what came around by rolling are left out.
    dy, dx = shift
    inner = here[:, 2 : GRID[0] - 2 - dy, 2 : GRID[1] - 2 - dx]
    torch.testing.assert_close(there[:, 2 + dy : GRID[0] - 2, 2 + dx : GRID[1] - 2], inner)
    assert (there - here).abs().max() > 0.1


@torch.no_grad()
def test_equal_patches_look_alike_everywhere_borders_included() -> None:
    output = appearance()(patches()[:, :1, :1].expand(-1, *GRID, -1).flatten(1, 2))
    torch.testing.assert_close(output, output[:, :1].expand_as(output))


@torch.no_grad()
def test_a_cell_sees_two_cells_around_it_and_no_further() -> None:
    module, cells = appearance(), patches()
    changed = cells.clone()
    changed[:, 4, 3] = changed[:, 4, 3].flip(-1)
    difference = (module(changed.flatten(1, 2)) - module(cells.flatten(1, 2))).abs().amax(2).unflatten(1, GRID)
    near = torch.zeros(GRID, dtype=torch.bool)
    near[2:7, 1:6] = True
    assert (difference[:, near] > 1e-6).all()
    assert difference[:, ~near].max() < 1e-12


def test_gradients_reach_the_patches_and_every_parameter() -> None:
    module = appearance()
    cells = patches().flatten(1, 2).requires_grad_()
    weight = torch.randn(2, GRID[0] * GRID[1], DIM, dtype=torch.float64)
    (module(cells) * weight).sum().backward()
    for name, parameter in [*module.named_parameters(), ("patches", cells)]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert torch.autograd.gradcheck(module, (cells.detach().requires_grad_(),), fast_mode=True)


def test_patches_that_do_not_fill_the_grid_are_refused() -> None:
    module = appearance()
    for shape in ((2, 47, DIM), (48, DIM)):
        with pytest.raises(ValueError, match=r"patches must be \(F, 48, D\)"):
            module(torch.zeros(shape, dtype=torch.float64))


@torch.no_grad()
def test_heads_read_it_beside_the_tokens_and_attention_does_not() -> None:
    torch.manual_seed(0)
    decoder = PartDecoder(DIM, 3, GRID, 4, num_layers=1).double().eval()
    tokens = patches().flatten(1, 2)[:, None]
    looks = appearance()(patches(2).flatten(1, 2))[:, None]
    plain_parts, plain = decoder(tokens)
    parts, states = decoder(tokens, appearance=looks)
    assert torch.equal(parts, plain_parts)
    assert (states[0].keypoints - plain[0].keypoints).abs().max() > 1e-3
    assert (states[0].masks - plain[0].masks).abs().max() > 1e-3
    torch.testing.assert_close(decoder(tokens, appearance=torch.zeros_like(tokens))[1][0].keypoints, plain[0].keypoints)
    with pytest.raises(ValueError, match="appearance must be"):
        decoder(tokens, appearance=looks[:, :, 1:])
