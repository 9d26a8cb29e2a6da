"""Motion consistency: each term against loops, what has to be zero, where gradients go."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motarfuse import ops
from motarfuse.nn import CopyPair, FramePair, MotionConsistencyLoss, PartDecoder, PartLoss, PartState, part_distances
from motarfuse.nn.motion_consistency import HINGE, diversity, reconstruction
from tests.ops.operator_cases import normal
from tests.test_nn_parts import CELLS, DIM, GRID, PARTS, decoder

BATCH = 3


class Affine(NamedTuple):
    """W(u) = M u + t, one for each image."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        return points @ self.matrix.transpose(1, 2) + self.shift[:, None]

    def jacobian(self, points: Tensor) -> Tensor:
        return self.matrix[:, None].expand(*points.shape, 2)


def warp() -> Affine:
    draw = normal(5)
    return Affine(torch.eye(2).double() + 0.2 * draw(BATCH, 2, 2), 0.2 * draw(BATCH, 2))


def states(seed: int, module: PartDecoder | None = None) -> tuple[PartState, ...]:
    module = decoder() if module is None else module
    return tuple(module(normal(seed)(BATCH, 1, CELLS, DIM))[1])


def pair(**changes: Any) -> CopyPair:
    covered = torch.rand(BATCH, CELLS, generator=torch.Generator().manual_seed(0)).double()
    draw = normal(9)
    values = CopyPair(states(1), states(2), warp(), covered, draw(BATCH, DIM), draw(BATCH, DIM))
    return values._replace(**changes)


def loss(**weights: float) -> MotionConsistencyLoss:
    names = ("flow", "occ", "eq", "inv", "rec", "part", "div")
    chosen: dict[str, Any] = {name: weights.get(name, 0.0) for name in names}
    return MotionConsistencyLoss(DIM, PARTS, **chosen).double()


def term(name: str, copies: CopyPair) -> Tensor:
    total, terms = loss(**{name: 1.0})(copies.states, GRID, copies=copies)
    assert list(terms) == [name]
    torch.testing.assert_close(total, terms[name])
    return total


def cell_kinds(copies: CopyPair) -> tuple[Tensor, Tensor, Tensor]:
    """W(u) (B, N, 2), which cells are uncovered and inside, which are inside; by loops."""
    cells = ops.cell_centers(GRID, dtype=torch.float64)
    goal = torch.stack(
        [torch.stack([copies.warp.matrix[b] @ u + copies.warp.shift[b] for u in cells]) for b in range(BATCH)]  # type: ignore[attr-defined]
    )
    inside = torch.tensor([[bool(abs(x) <= 1 and abs(y) <= 1) for x, y in row.tolist()] for row in goal])
    return goal, inside & (copies.covered <= 0.5), inside


def sampled(values: Tensor, place: Tensor) -> Tensor:
    """(C,) of values (C, N) at a place, by grid_sample."""
    image = values.unflatten(1, GRID)[None]
    got = F.grid_sample(image, place.view(1, 1, 1, 2), padding_mode="border", align_corners=False)
    return got.view(-1)


def test_flow_is_the_mean_error_of_the_parts_motion_over_uncovered_cells() -> None:
    copies = pair()
    cells = ops.cell_centers(GRID, dtype=torch.float64)
    goal, seen, _ = cell_kinds(copies)
    layers = []
    for source, target in zip(copies.states, copies.copy_states, strict=True):
        errors = []
        for b in range(BATCH):
            for n in range(CELLS):
                if not seen[b, n]:
                    continue
                moved, weight = torch.zeros(2).double(), torch.zeros(()).double()
                for k in range(PARTS):
                    turn = source.affines[b, k] @ torch.linalg.inv(target.affines[b, k])
                    place = source.keypoints[b, k] + turn @ (cells[n] - target.keypoints[b, k])
                    moved = moved + target.masks[b, k + 1, n] * place
                    weight = weight + target.masks[b, k + 1, n]
                errors.append(weight * (moved / weight - goal[b, n]).norm())
        assert 5 < len(errors) < BATCH * CELLS
        layers.append(torch.stack(errors).mean())
    torch.testing.assert_close(term("flow", copies), torch.stack(layers).mean(), rtol=1e-5, atol=0)


def test_occlusion_is_the_sum_of_its_four_terms() -> None:
    copies = pair()
    goal, seen, inside = cell_kinds(copies)
    layers = []
    for source, target in zip(copies.states, copies.copy_states, strict=True):
        background, divergences, visibilities, places = [], [], [], []
        for b in range(BATCH):
            share = torch.zeros(PARTS).double()
            total = torch.zeros(PARTS).double()
            for n in range(CELLS):
                expected = sampled(source.masks[b], goal[b, n])
                if copies.covered[b, n] > 0.5:
                    background.append(-target.masks[b, 0, n].log())
                if seen[b, n]:
                    divergences.append((expected * (expected / target.masks[b, :, n]).log()).sum())
                    share += expected[1:].detach()
                if inside[b, n]:
                    total += expected[1:].detach()
            visibilities.append((target.visibility[b] - source.visibility[b] * share / total).abs())
            moved = copies.warp(target.keypoints)[b]
            places += [(moved[k] - source.keypoints[b, k]).norm() for k in range(PARTS)]
        means = [torch.stack(values).mean() for values in (background, divergences, visibilities, places)]
        layers.append(torch.stack(means).sum())
    torch.testing.assert_close(term("occ", copies), torch.stack(layers).mean(), rtol=1e-5, atol=0)


def test_invariance_is_one_minus_the_cosine_of_the_two_features() -> None:
    copies = pair()
    cosine = torch.stack([F.cosine_similarity(copies.feature[b], copies.copy_feature[b], 0) for b in range(BATCH)])
    torch.testing.assert_close(term("inv", copies), (1 - cosine).mean())


def test_equivariance_holds_parts_of_which_half_is_seen() -> None:
    copies = pair()
    goal, seen, inside = cell_kinds(copies)
    layers = []
    for source, target in zip(copies.states, copies.copy_states, strict=True):
        errors = []
        for b in range(BATCH):
            expected = torch.stack([sampled(source.masks[b], goal[b, n]) for n in range(CELLS)], 1)[1:]
            share = (expected * seen[b]).sum(1) / (expected * inside[b]).sum(1)
            for k in range(PARTS):
                if share[k] < 0.5:
                    continue
                place = copies.warp.matrix[b] @ target.keypoints[b, k] + copies.warp.shift[b]  # type: ignore[attr-defined]
                product = torch.linalg.inv(source.affines[b, k]) @ copies.warp.matrix[b] @ target.affines[b, k]  # type: ignore[attr-defined]
                errors.append((source.keypoints[b, k] - place).norm() + (torch.eye(2).double() - product).norm())
        assert 0 < len(errors) < BATCH * PARTS
        layers.append(torch.stack(errors).mean())
    torch.testing.assert_close(term("eq", copies), torch.stack(layers).mean(), rtol=1e-5, atol=0)


def test_parts_that_moved_as_the_image_did_cost_nothing() -> None:
    copies = pair(covered=torch.zeros(BATCH, CELLS).double())
    # p = W p~ and A = J A~ exactly; then every part's motion is W itself.
    moved = tuple(
        target._replace(
            keypoints=copies.warp(target.keypoints),
            affines=copies.warp.jacobian(target.keypoints) @ target.affines,
        )
        for target in copies.copy_states
    )
    assert term("flow", copies._replace(states=moved)) < 1e-6
    assert term("eq", copies._replace(states=moved)) < 1e-5  # two lengths with a floor of 1e-6 each
    assert term("flow", copies) > 0.01
    assert term("eq", copies) > 0.1


def test_an_unchanged_copy_of_an_uncovered_image_costs_nothing() -> None:
    same = states(1)
    still = Affine(torch.eye(2).double().expand(BATCH, 2, 2), torch.zeros(BATCH, 2).double())
    feature = normal(0)(BATCH, DIM)
    copies = CopyPair(same, same, still, torch.zeros(BATCH, CELLS).double(), feature, 3 * feature)
    for name in ("flow", "occ", "eq", "inv"):
        assert term(name, copies).abs() < 1e-5, name


def test_the_originals_teach_and_are_not_taught_by_occlusion() -> None:
    module = decoder()
    source, target = states(1, module), states(2, module)
    feature, copy_feature = (normal(s)(BATCH, DIM).requires_grad_() for s in (3, 4))
    for group in (source, target):
        for state in group:
            for value in (state.masks, state.part_logits, state.keypoints, state.visibility):
                value.retain_grad()
    copies = pair(states=source, copy_states=target, feature=feature, copy_feature=copy_feature)
    (term("occ", copies) + term("inv", copies)).backward()
    assert feature.grad is None
    assert copy_feature.grad is not None
    for state in source:
        assert state.keypoints.grad is None or not state.keypoints.grad.any()
        assert state.visibility.grad is None
    for state in target:
        assert state.keypoints.grad is not None
        assert state.keypoints.grad.any()


def test_no_copies_and_nothing_to_count_give_zero_and_zero_gradients() -> None:
    copies = pair()
    empty = torch.arange(0)
    none = CopyPair(
        tuple(state.take(empty) for state in copies.states),
        tuple(state.take(empty) for state in copies.copy_states),
        Affine(copies.warp.matrix[:0], copies.warp.shift[:0]),  # type: ignore[attr-defined]
        copies.covered[:0],
        copies.feature[:0],
        copies.copy_feature[:0],
    )
    total, terms = loss(flow=1.0, occ=1.0, eq=1.0, inv=1.0)(copies.states, GRID, copies=none)
    assert total == 0
    assert terms == {}
    hidden = pair(covered=torch.ones(BATCH, CELLS).double())
    for name in ("flow", "eq"):
        value = term(name, hidden)
        assert value == 0
        gradient = torch.autograd.grad(value, hidden.copy_states[-1].part_logits, allow_unused=True)[0]
        assert gradient is None or not gradient.any()


def test_diversity_is_its_formula() -> None:
    state = states(1)[-1]
    cells = ops.cell_centers(GRID, dtype=torch.float64)
    own = state.masks[:, 1:]
    overlaps, spreads = [], []
    for b in range(BATCH):
        for k in range(PARTS):
            mass = own[b, k].sum()
            centre = (own[b, k, :, None] * cells).sum(0) / mass
            spreads.append((own[b, k] * (cells - centre).square().sum(1)).sum() / mass)
            overlaps += [F.cosine_similarity(own[b, k], own[b, j], 0) for j in range(PARTS) if j != k]
    foreground = 1 - state.masks[:, 0].mean()
    low = [F.relu(0.25 / (PARTS + 1) - own[:, k].mean()) * (PARTS + 1) for k in range(PARTS)]
    hinges = F.relu(0.25 - foreground) + F.relu(foreground - 0.7)
    expected = torch.stack(overlaps).mean() + torch.stack(spreads).mean() + HINGE * (hinges + torch.stack(low).mean())
    torch.testing.assert_close(diversity(state, GRID), expected, rtol=1e-5, atol=1e-8)


def test_reconstruction_falls_when_the_parts_follow_the_person() -> None:
    # A smooth picture, and the same moved by W: states whose motion is W reconstruct it, still ones do not.
    height, width = 64, 48
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    field = torch.stack((x, y), -1).double()[None].expand(BATCH, -1, -1, -1)
    still = warp()
    waves = normal(7)(3, 2)

    def picture(points: Tensor) -> Tensor:
        return torch.stack([torch.sin(3 * (points @ wave)) for wave in waves], 1)

    source = picture(field)
    moved = still(field.flatten(1, 2)).unflatten(1, (height, width))
    target = picture(moved)
    state = states(2)[-1]._replace(part_logits=torch.zeros(BATCH, PARTS + 1, CELLS).double())
    state = state._replace(part_logits=torch.cat((state.part_logits[:, :1] - 9, state.part_logits[:, 1:]), 1))
    follows = state._replace(keypoints=still(state.keypoints), affines=still.jacobian(state.keypoints) @ state.affines)
    good = reconstruction(FramePair(source, target, follows, state), GRID)
    bad = reconstruction(FramePair(source, target, state, state), GRID)
    assert good < 0.35 * bad
    brighter = reconstruction(FramePair(source, 0.5 * target + 3, follows, state), GRID)
    torch.testing.assert_close(brighter, good, rtol=1e-4, atol=1e-6)


def test_reconstruction_is_its_formula() -> None:
    draw = normal(4)
    images, targets = draw(BATCH, 3, 16, 12), draw(BATCH, 3, 16, 12)
    source, target = states(1)[-1], states(2)[-1]
    fine = (2 * GRID[0], 2 * GRID[1])
    cells = ops.cell_centers(fine, dtype=torch.float64)
    total, weights = torch.zeros(()).double(), torch.zeros(()).double()
    for b in range(BATCH):
        seen, wanted = (F.adaptive_avg_pool2d(picture[b], fine) for picture in (images, targets))
        seen, wanted = ((picture - picture.mean()) / picture.std(unbiased=False) for picture in (seen, wanted))
        masks, source_masks = (
            F.interpolate(state.part_logits[b : b + 1].unflatten(2, GRID), fine, mode="bilinear")[0].softmax(0)
            for state in (target, source)
        )
        for n, u in enumerate(cells):
            row, column = divmod(n, fine[1])
            place = masks[0, row, column] * u
            for k in range(PARTS):
                turn = source.affines[b, k] @ torch.linalg.inv(target.affines[b, k])
                moved = source.keypoints[b, k] + turn @ (u - target.keypoints[b, k])
                place = place + masks[k + 1, row, column] * moved
            both = torch.cat((seen, 1 - source_masks[:1]))[None]
            got = F.grid_sample(both, place.view(1, 1, 1, 2), padding_mode="border", align_corners=False).view(-1)
            weight = (1 - masks[0, row, column]) * got[3]
            total = total + weight * (got[:3] - wanted[:, row, column]).square().mean()
            weights = weights + weight
    got = reconstruction(FramePair(images, targets, source, target), GRID)
    torch.testing.assert_close(got, total / weights, rtol=1e-5, atol=0)


def slope(value: Tensor, of: Tensor) -> Tensor:
    """The gradient, zero where there is none."""
    (gradient,) = torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)
    return torch.zeros_like(of) if gradient is None else gradient


def with_leaves(state: PartState) -> PartState:
    """The same state, of logits, keypoints and affines that have no history."""
    leaf = {
        name: getattr(state, name).detach().clone().requires_grad_() for name in ("part_logits", "keypoints", "affines")
    }
    return state._replace(**leaf, masks=leaf["part_logits"].softmax(1))


def test_flow_does_not_pay_for_a_smaller_foreground() -> None:
    # Parts that agree with each other: shrinking all of them by a common factor cannot lower the loss.
    copies = pair()
    source, target = with_leaves(copies.states[-1]), with_leaves(copies.copy_states[-1])
    alike = {
        name: getattr(target, name)[:, :1].detach().expand_as(getattr(target, name))
        for name in ("keypoints", "affines")
    }
    target = target._replace(**alike)
    first = {name: getattr(source, name)[:, :1].expand_as(getattr(source, name)) for name in ("keypoints", "affines")}
    value = term("flow", copies._replace(states=(source._replace(**first),), copy_states=(target,)))
    assert value > 0.01
    # To rounding where hardly any foreground is; with a gradient through M_fg it would be a thousand times as large.
    assert slope(value, target.part_logits).abs().max() < 1e-6


def test_equivariance_teaches_both_sides_and_reads_the_jacobian_as_a_number() -> None:
    copies = pair(covered=torch.zeros(BATCH, CELLS).double())
    source, target = with_leaves(copies.states[-1]), with_leaves(copies.copy_states[-1])

    class Bent(Affine):
        """A warp whose Jacobian depends on the place."""

        def jacobian(self, points: Tensor) -> Tensor:
            assert not points.requires_grad
            return super().jacobian(points) * (1 + points.sum(-1))[..., None, None]

    value = term("eq", copies._replace(states=(source,), copy_states=(target,), warp=Bent(*warp())))
    for state in (source, target):
        assert slope(value, state.keypoints).any()
        assert slope(value, state.affines).any()


def test_reconstruction_does_not_teach_where_to_look() -> None:
    draw = normal(6)
    images, targets = draw(BATCH, 3, 16, 12), draw(BATCH, 3, 16, 12)
    source, target = with_leaves(states(1)[-1]), with_leaves(states(2)[-1])
    value = reconstruction(FramePair(images, targets, source, target), GRID)
    assert not slope(value, source.part_logits).any()  # they weigh, and do nothing else
    assert slope(value, target.part_logits).any()  # they mix the motion
    assert slope(value, source.keypoints).any()


def test_reconstruction_weighs_cells_where_both_frames_show_the_person() -> None:
    draw = normal(3)
    source, target = draw(BATCH, 3, 16, 12), draw(BATCH, 3, 16, 12)
    state = states(1)[-1]
    shut = state._replace(part_logits=torch.cat((state.part_logits[:, :1] + 60, state.part_logits[:, 1:]), 1))
    assert reconstruction(FramePair(source, target, state, shut), GRID) < 1e-6
    assert reconstruction(FramePair(source, target, shut, state), GRID) < 1e-6
    assert reconstruction(FramePair(source, target, state, state), GRID) > 0.1


def test_the_total_is_the_weighted_sum_and_differentiable() -> None:
    torch.manual_seed(0)
    module = MotionConsistencyLoss(DIM, PARTS, 2, inv=0.7).double()
    draw = normal(6)
    base, other = states(1), states(2)
    labels = torch.tensor([0, 0, 1])
    embeddings, features = draw(BATCH, PARTS, DIM), draw(BATCH, PARTS, DIM)
    visibility = draw(BATCH, PARTS).sigmoid()

    def total(keypoints: Tensor, affines: Tensor, embeddings: Tensor, features: Tensor) -> Tensor:
        changed = tuple(state._replace(keypoints=keypoints, affines=affines) for state in other)
        copies = pair(states=base, copy_states=changed)
        value, terms = module(
            changed,
            GRID,
            copies=copies,
            part_embeddings=embeddings,
            part_features=features,
            part_visibility=visibility,
            labels=labels,
        )
        expected = 5 * terms["flow"] + 0.3 * terms["occ"] + terms["eq"] + 0.7 * terms["inv"] + terms["part"]
        expected = expected + 0.1 * terms["div"]
        torch.testing.assert_close(value, expected)
        return value

    # Logits and masks are left out: they also stand behind a stopped gradient, which differences do not know.
    inputs = (other[-1].keypoints, other[-1].affines, embeddings, features)
    values = tuple(value.detach().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(total, values, fast_mode=True)


def test_diversity_is_differentiable() -> None:
    state = states(2)[-1]

    def value(logits: Tensor) -> Tensor:
        return diversity(state._replace(part_logits=logits, masks=logits.softmax(1)), GRID)

    assert torch.autograd.gradcheck(value, state.part_logits.detach().requires_grad_())


def test_part_distances_are_the_visibility_weighted_sum() -> None:
    draw = normal(0)
    features, visibility = draw(4, PARTS, DIM), draw(4, PARTS).sigmoid()
    got = part_distances(features, visibility)
    for i in range(4):
        for j in range(4):
            weights = visibility[i] * visibility[j]
            distance = 1 - F.cosine_similarity(features[i], features[j], 1)
            torch.testing.assert_close(got[i, j], (weights * distance).sum() / weights.sum(), rtol=1e-5, atol=1e-7)


def test_part_distances_of_half_types_are_finite() -> None:
    features = torch.zeros(2, PARTS, DIM, dtype=torch.float16)
    features[0] = 1
    distances = part_distances(features, torch.ones(2, PARTS, dtype=torch.float16))
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), atol=1e-5, rtol=0)


def test_the_part_loss_takes_the_hardest_pairs_and_leaves_visibility_alone() -> None:
    draw = normal(1)
    features = draw(6, PARTS, DIM).requires_grad_()
    visibility = draw(6, PARTS).sigmoid().requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    distances = part_distances(features, visibility).tolist()
    gaps = []
    for i in range(5):  # the last has no positive
        positive = max(distances[i][j] for j in range(6) if j != i and labels[j] == labels[i])
        negative = min(distances[i][j] for j in range(6) if labels[j] != labels[i])
        gaps.append(math.log1p(math.exp(positive - negative)))
    module = PartLoss(DIM, PARTS, None).double()
    value = module(features, features, visibility, labels)
    assert value.item() == pytest.approx(sum(gaps) / 5)
    value.backward()
    assert visibility.grad is None
    assert features.grad is not None
    assert features.grad.any()
    assert module(features, features, visibility, torch.zeros(6).long()) == 0


def test_the_part_classifier_sees_features_by_their_visibility() -> None:
    draw = normal(2)
    embeddings, features = draw(4, PARTS, DIM), draw(4, PARTS, DIM)
    visibility, labels = draw(4, PARTS).sigmoid(), torch.tensor([0, 0, 1, 1])
    torch.manual_seed(0)
    module = PartLoss(DIM, PARTS, 2).double()
    assert module.identity is not None
    module.identity.weight.data.normal_()
    weighted = torch.stack(
        [torch.cat([visibility[i, k] / visibility[i].mean() * features[i, k] for k in range(PARTS)]) for i in range(4)]
    )
    identity = F.cross_entropy(weighted @ module.identity.weight.T, labels, label_smoothing=0.1)
    triplet = PartLoss(DIM, PARTS, None).double()(embeddings, features, visibility, labels)
    got = module(embeddings, features, visibility, labels)
    torch.testing.assert_close(got, triplet + identity, rtol=1e-5, atol=0)


def test_negative_weights_and_missing_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must be 0 or more, got flow=-1"):
        MotionConsistencyLoss(DIM, PARTS, flow=-1)
    with pytest.raises(ValueError, match="part_embeddings need part_features, part_visibility and labels"):
        loss(part=1.0)(states(1), GRID, part_embeddings=normal(0)(BATCH, PARTS, DIM))
