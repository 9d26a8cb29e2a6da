"""The part decoder: its heads against loops, its motion, the agreement of images and clips, its statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motarfuse import ops
from motarfuse.nn import MotionScale, PartDecoder, PartHeads, PartState
from motarfuse.nn.part_decoder import spread_over_body
from tests.ops.operator_cases import normal

GRID, DIM, PARTS = (4, 3), 12, 4
CELLS = GRID[0] * GRID[1]


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """All parameters and statistics away from their special starts, in float64."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.rpartition(".")[2] in ("keypoints", "affines", "mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return module


def decoder(**options: Any) -> PartDecoder:
    torch.manual_seed(0)
    module = stirred(PartDecoder(DIM, 3, GRID, PARTS, **options))
    assert isinstance(module, PartDecoder)
    return module


def frames_of(states: list[PartState], batch: int) -> dict[str, Tensor]:
    last = states[-1]
    return {
        name: value.unflatten(0, (batch, -1))
        for name, value in last._asdict().items()
        if isinstance(value, Tensor) and name != "posture"
    }


def test_the_heads_are_their_formulas() -> None:
    heads = stirred(PartHeads(DIM, GRID, PARTS))
    assert isinstance(heads, PartHeads)
    parts, tokens = normal(0)(2, PARTS, DIM), normal(1)(2, CELLS, DIM)
    keypoints, affines, confidence, logits, masks, visibility = heads(parts, tokens)
    tokens = tokens - tokens.mean(1, keepdim=True)
    cells = ops.cell_centers(GRID, dtype=torch.float64)
    field = heads.affine(tokens.transpose(1, 2).unflatten(2, GRID)).flatten(2)
    for f in range(2):
        for k in range(PARTS):
            z = parts[f, k]
            heat = []
            for n in range(CELLS):
                v = tokens[f, n]
                cosine = F.cosine_similarity(heads.part_of_keypoint(z), heads.token_of_keypoint(v), 0)
                beta = math.log1p(math.exp(heads.raw_beta[k].item()))
                heat.append(cosine - beta * (cells[n] - heads.anchors[k]).square().sum() / 2)
            share = torch.softmax(torch.stack(heat) / 0.1, 0)
            point = sum(share[n] * cells[n] for n in range(CELLS))
            torch.testing.assert_close(keypoints[f, k], point)
            torch.testing.assert_close(confidence[f, k], share.square().sum())
            matrix = sum(
                share[n] * (torch.eye(2).double() + 0.4 * torch.tanh(field[f, 4 * k : 4 * k + 4, n].view(2, 2)))
                for n in range(CELLS)
            )
            torch.testing.assert_close(affines[f, k], matrix)
            for n in range(CELLS):
                cosine = F.cosine_similarity(heads.part_of_mask(z), heads.token_of_mask(tokens[f, n]), 0)
                eta = math.log1p(math.exp(heads.raw_eta[k].item()))
                local = torch.linalg.solve(matrix, cells[n] - point)
                torch.testing.assert_close(logits[f, k + 1, n], 10 * cosine - eta * local.square().sum())
    cosine = F.cosine_similarity(heads.background.expand(2, CELLS, DIM), heads.token_of_mask(tokens), dim=-1)
    torch.testing.assert_close(logits[:, 0], 10 * cosine)
    torch.testing.assert_close(masks, logits.softmax(1))
    own = masks[:, 1:]
    torch.testing.assert_close(visibility, own.square().sum(-1) / (own.sum(-1) + 1e-6))


def test_affines_start_as_the_identity_and_stay_invertible() -> None:
    heads = PartHeads(DIM, GRID, PARTS)
    parts, tokens = torch.randn(2, PARTS, DIM), torch.randn(2, CELLS, DIM)
    torch.testing.assert_close(heads(parts, tokens)[1], torch.eye(2).expand(2, PARTS, 2, 2))
    torch.nn.init.normal_(heads.affine.weight, std=100.0)
    assert torch.linalg.det(heads(parts, tokens)[1]).min() >= 0.2 - 1e-6


@pytest.mark.parametrize("number", [1, 2, 4, 8, 16])
def test_parts_start_spread_over_the_body(number: int) -> None:
    places = spread_over_body(number)
    assert places.shape == (number, 2)
    assert places.abs().max() <= 0.8
    if number > 1:
        assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.2
        assert places[:, 1].min() == pytest.approx(-0.8)
        assert places[:, 1].max() == pytest.approx(0.8)
    torch.testing.assert_close(places[:, 0].sum(), torch.zeros(()), atol=1e-6, rtol=0)


def test_image_one_frame_static_and_padded_clip_agree() -> None:
    module = decoder().eval()
    image = normal(2)(2, 1, CELLS, DIM)
    parts, states = module(image)
    expected = frames_of(states, 2)
    static = image.expand(-1, 3, -1, -1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    padded = torch.where(mask[..., None, None], static, 10 * normal(3)(2, 3, CELLS, DIM))
    for clip, there in ((static, torch.ones(2, 3, dtype=torch.bool)), (padded, mask)):
        clip_parts, clip_states = module(clip, there)
        torch.testing.assert_close(clip_parts[there], parts.expand_as(clip_parts)[there])
        for name, value in frames_of(clip_states, 2).items():
            wanted = expected[name].expand_as(value)[there]
            torch.testing.assert_close(value[there], wanted, msg=name)


def test_the_descriptor_is_made_of_its_displacements() -> None:
    module = decoder(num_layers=1).eval()
    clip = normal(2)(2, 3, CELLS, DIM)
    index = torch.tensor([[0, 2, 3], [5, 6, 10]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    state = frames_of(module(clip, mask, index)[1], 2)
    deviation = (
        (module.scale.square - F.pad(module.scale.mean[6:], (6, 0)).square()).clamp(min=0).sqrt().clamp(min=0.05)
    )
    raw = state["descriptor"] * deviation + F.pad(module.scale.mean[6:], (6, 0))
    torch.testing.assert_close(raw[..., :2], state["displacement"])
    torch.testing.assert_close(raw[..., 6], 1 - state["masks"][:, :, 0])
    cells = ops.cell_centers(GRID, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            for step, channels in ((-1, slice(2, 4)), (1, slice(4, 6))):
                other = t + step
                if not (0 <= other < 3 and mask[b, t] and mask[b, other]):
                    assert torch.equal(raw[b, t, :, channels], torch.zeros(CELLS, 2).double())
                    continue
                flow = ops.motion_warp(
                    torch.zeros(1, CELLS, 1).double(), state["keypoints"][b, other][None],
                    state["affines"][b, other][None], state["keypoints"][b, t][None], state["affines"][b, t][None],
                    state["part_logits"][b, t][None], grid=GRID,
                ).flow[0]  # fmt: skip
                gap = abs(int(index[b, other] - index[b, t]))
                torch.testing.assert_close(raw[b, t, :, channels], (flow - cells) / gap)


def test_parts_carry_the_descriptor_at_their_keypoints() -> None:
    module = decoder().eval()
    _, states = module(normal(2)(2, 1, CELLS, DIM))
    state = states[-1]
    field = torch.cat((state.descriptor, state.foreground[..., None]), -1).transpose(1, 2).unflatten(2, GRID)
    read = F.grid_sample(field, state.keypoints[:, None], padding_mode="border", align_corners=False)[:, :, 0]
    torch.testing.assert_close(state.part_descriptor, read[:, :8].transpose(1, 2))
    torch.testing.assert_close(state.part_foreground, read[:, 8])


def test_motion_steers_the_second_layer_and_the_switch_takes_it_out() -> None:
    image = normal(2)(2, 1, CELLS, DIM)
    elsewhere = 0.5 * normal(3)(PARTS, 2)
    with_motion = decoder().eval()
    before = with_motion(image)[0]
    with torch.no_grad():
        with_motion.canonical.keypoints.add_(elsewhere)
    assert (with_motion(image)[0] - before).abs().max() > 1e-4
    without = decoder(motion=False).eval()
    before = without(image)[0]
    with torch.no_grad():
        without.canonical.keypoints.add_(elsewhere)
    assert torch.equal(without(image)[0], before)
    assert not any("motion_bias" in name for name, _ in without.named_parameters())


def test_every_parameter_learns() -> None:
    module = decoder()
    parts, states = module(normal(2)(3, 2, CELLS, DIM))
    loss = parts.square().sum()
    for state in states:
        loss = loss + sum(
            value.square().sum() for value in (state.keypoints, state.affines, state.masks, state.descriptor)
        )
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_statistics_are_of_valid_cells_only_and_fixed_in_evaluation() -> None:
    scale = MotionScale(momentum=0.0).double()
    values = normal(4)(3, CELLS, 8) * torch.arange(1.0, 9.0) + 2
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[0, 2:6] = False
    spoilt = torch.where(valid[:, None], values, 0.0)
    scale.update(spoilt, valid)
    for c in range(8):
        kept = values[valid[:, c], :, c]
        torch.testing.assert_close(scale.mean[c], kept.mean())
        torch.testing.assert_close(scale.square[c], kept.square().mean())
    scaled = scale(values)
    torch.testing.assert_close(scaled[:, :, :2].square().mean((0, 1)), torch.ones(2).double())
    torch.testing.assert_close(scaled[:, :, 6:].mean((0, 1)), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert torch.equal(scale(torch.zeros(1, 8).double())[0, :6], torch.zeros(6).double())
    before = scale.mean.clone()
    scale.eval().update(values + 5, valid)
    assert torch.equal(scale.mean, before)


def test_statistics_are_those_of_all_batches_until_there_are_a_hundred() -> None:
    scale = MotionScale().double()
    batches = [normal(seed)(2, CELLS, 8) + seed for seed in range(3)]
    valid = torch.ones(2, 8, dtype=torch.bool)
    no_neighbours = valid.clone()
    no_neighbours[:, 2:6] = False
    for index, batch in enumerate(batches):
        scale.update(batch, valid if index != 1 else no_neighbours)
    for c in range(8):
        kept = torch.stack([batch[:, :, c] for k, batch in enumerate(batches) if k != 1 or not 2 <= c < 6])
        torch.testing.assert_close(scale.mean[c], kept.mean())
        torch.testing.assert_close(scale.square[c], kept.square().mean())
    scale.batches.fill_(500)
    before = scale.mean.clone()
    scale.update(batches[0], valid)
    torch.testing.assert_close(scale.mean, 0.99 * before + 0.01 * batches[0].mean((0, 1)))


def test_constant_channels_are_floored_and_none_valid_changes_nothing() -> None:
    scale = MotionScale(momentum=0.0)
    scale.update(torch.full((1, CELLS, 8), 0.3), torch.ones(1, 8, dtype=torch.bool))
    assert scale(torch.full((1, 8), 0.4))[0, 6:].tolist() == pytest.approx([2.0, 2.0], rel=1e-3)
    before = scale.square.clone()
    scale.update(torch.full((1, CELLS, 8), 9.0), torch.zeros(1, 8, dtype=torch.bool))
    assert torch.equal(scale.square, before)


def test_training_moves_the_canonical_posture_by_frames_that_are_there_and_copies_do_not() -> None:
    clip = normal(2)(2, 2, CELLS, DIM)
    mask = torch.tensor([[True, False], [True, True]])
    module, other, still = decoder(), decoder(), decoder()
    before = module.canonical.keypoints.clone()
    module(clip, mask)
    assert not torch.equal(module.canonical.keypoints, before)
    other(torch.where(mask[..., None, None], clip, -clip), mask)
    torch.testing.assert_close(other.canonical.keypoints, module.canonical.keypoints)
    torch.testing.assert_close(other.scale.square, module.scale.square)
    still(clip, mask, counted=torch.zeros(2, dtype=torch.bool))
    assert torch.equal(still.canonical.keypoints, before)


def test_under_autocast_postures_stay_in_float32() -> None:
    module = PartDecoder(DIM, 3, GRID, PARTS).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, states = module(torch.randn(2, 1, CELLS, DIM))
    for name in ("keypoints", "affines", "masks", "descriptor", "displacement"):
        assert getattr(states[-1], name).dtype == torch.float32, name


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_parts and num_layers must be positive"):
        PartDecoder(DIM, 3, GRID, 0)
    with pytest.raises(ValueError, match=r"tokens must have 12 cells, grid \(4, 3\); got 11"):
        PartDecoder(DIM, 3, GRID, PARTS)(torch.randn(2, 1, 11, DIM))
