"""batch_hard_triplet in Triton: the mining of pairs, the loss of what was mined, the gradient of the features.

Distances are sums of squared differences, in the same order for every pair: duplicates tie exactly and near neighbours
keep their digits, which a product of matrices gives neither. docs/kernels/batch_hard_triplet.md derives the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOBODY = tl.constexpr(2147483647)  # above all indices, so that the lowest of equals is a minimum


@triton.jit
def batch_hard_triplet_norm_kernel(
    p_features,  # (B, D)
    p_inverse, p_short,  # (B,), (B,)
    features_b, features_d,
    DIM: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes a row: 1 / max(|x|, 1e-12), or 0 where x times that is zero; 1 - |y|^2 where |x| < 1e-12."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    p_row = p_features + row * features_b
    squares, largest = tl.zeros((BLOCK_D,), COMPUTE), tl.zeros((BLOCK_D,), COMPUTE)
    for start in range(0, DIM, BLOCK_D):
        places = start + columns
        x = tl.load(p_row + places.to(tl.int64) * features_d, mask=places < DIM, other=0.0).to(COMPUTE)
        squares += x * x
        largest = tl.maximum(largest, tl.abs(x))
    norm = tl.sqrt(tl.sum(squares, 0))
    is_short = norm < 1e-12
    inverse = tl.where(is_short, 1e12, 1.0 / tl.where(is_short, 1.0, norm))
    length = norm * inverse
    scaled = tl.max(largest, 0) * inverse  # NaN where an infinity meets 1 / infinity
    tl.store(p_inverse + row, tl.where(scaled == 0.0, 0.0, tl.where(scaled != scaled, scaled, inverse)))
    tl.store(p_short + row, tl.where(is_short, 1.0 - length * length, 0.0))


@triton.jit(do_not_specialize=("batch", "num_splits", "tiles_each"))
def batch_hard_triplet_mine_kernel(
    p_features, p_labels,  # (B, D), (B,)
    p_inverse, p_short,  # (B,), (B,) of the cosine, or null
    p_keys, p_indices,  # (2, splits, B), (2, splits, B): of positives and of negatives
    batch, num_splits, tiles_each, features_b, features_d, labels_b,
    DIM: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M anchors past its share of the others: each one's farthest positive, nearest negative.

    Keys are squared Euclidean distances or 1 - cosine, an anchor without such an other has the index NOBODY. A NaN is
    the farthest and the nearest of all, as it is to argmax and argmin: keys inf and -inf.
    """
    split = tl.program_id(0) % num_splits
    anchors = tl.program_id(0) // num_splits * BLOCK_M + tl.arange(0, BLOCK_M)
    is_anchor = anchors < batch
    columns = tl.arange(0, BLOCK_D)
    anchor_labels = tl.load(p_labels + anchors.to(tl.int64) * labels_b, mask=is_anchor, other=0)
    p_anchors = p_features + anchors.to(tl.int64)[:, None] * features_b
    if p_inverse is not None:
        anchor_inverse = tl.load(p_inverse + anchors, mask=is_anchor, other=0.0)
        anchor_short = tl.load(p_short + anchors, mask=is_anchor, other=0.0)
    far = tl.full((BLOCK_M,), -float("inf"), COMPUTE)
    near = tl.full((BLOCK_M,), float("inf"), COMPUTE)
    farthest, nearest = tl.full((BLOCK_M,), NOBODY, tl.int32), tl.full((BLOCK_M,), NOBODY, tl.int32)
    first = split * tiles_each * BLOCK_N
    for begin in range(first, tl.minimum(first + tiles_each * BLOCK_N, batch), BLOCK_N):
        others = begin + tl.arange(0, BLOCK_N)
        is_other = others < batch
        p_others = p_features + others.to(tl.int64)[:, None] * features_b
        if p_inverse is not None:
            other_inverse = tl.load(p_inverse + others, mask=is_other, other=0.0)
            other_short = tl.load(p_short + others, mask=is_other, other=0.0)
        # Summed over columns once a tile: that takes shuffles.
        squares = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_D), COMPUTE)
        for start in tl.range(0, DIM, BLOCK_D, num_stages=3):  # without products only this asks for copies ahead
            has_column = (start + columns < DIM)[None, :]
            offsets = (start + columns).to(tl.int64)[None, :] * features_d
            a = tl.load(p_anchors + offsets, mask=is_anchor[:, None] & has_column, other=0.0).to(COMPUTE)
            b = tl.load(p_others + offsets, mask=is_other[:, None] & has_column, other=0.0).to(COMPUTE)
            if p_inverse is not None:
                a *= anchor_inverse[:, None]
                b *= other_inverse[:, None]
            difference = a[:, None, :] - b[None, :, :]
            squares += difference * difference
        distance = tl.sum(squares, 2)  # (BLOCK_M, BLOCK_N)
        if p_inverse is not None:
            distance = 0.5 * (distance + (anchor_short[:, None] + other_short[None, :]))
            is_zero = (anchor_inverse == 0.0)[:, None] | (other_inverse == 0.0)[None, :]
            distance = tl.where(is_zero, 1.0, distance)
        unknown = distance != distance
        other_labels = tl.load(p_labels + others.to(tl.int64) * labels_b, mask=is_other, other=0)
        same = anchor_labels[:, None] == other_labels[None, :]

        is_positive = same & is_other[None, :] & (anchors[:, None] != others[None, :])
        keys = tl.where(is_positive, tl.where(unknown, float("inf"), distance), -float("inf"))
        best = tl.max(keys, 1)
        index = tl.min(tl.where(is_positive & (keys == best[:, None]), others[None, :], NOBODY), 1)
        better = (best > far) | (farthest == NOBODY)  # at equal keys the earlier tile has the lower index
        far, farthest = tl.where(better, best, far), tl.where(better, index, farthest)

        is_negative = (same == 0) & is_other[None, :]
        keys = tl.where(is_negative, tl.where(unknown, -float("inf"), distance), float("inf"))
        best = tl.min(keys, 1)
        index = tl.min(tl.where(is_negative & (keys == best[:, None]), others[None, :], NOBODY), 1)
        better = (best < near) | (nearest == NOBODY)
        near, nearest = tl.where(better, best, near), tl.where(better, index, nearest)
    place = split.to(tl.int64) * batch + anchors
    tl.store(p_keys + place, far, mask=is_anchor)
    tl.store(p_indices + place, farthest, mask=is_anchor)
    place += num_splits.to(tl.int64) * batch
    tl.store(p_keys + place, near, mask=is_anchor)
    tl.store(p_indices + place, nearest, mask=is_anchor)


@triton.jit
def log1p(x):
    """Of 0 <= x <= 1: the series of 2 atanh(x / (2 + x)), because the hardware's logarithm loses small numbers."""
    ratio = x / (2.0 + x)
    square = ratio * ratio
    series = square * 0.0
    for k in tl.static_range(17):
        series = series * square + 1.0 / (33 - 2 * k)
    return 2.0 * ratio * series


@triton.jit(do_not_specialize=("batch", "num_splits", "margin"))
def batch_hard_triplet_loss_kernel(
    p_keys, p_indices,  # (2, splits, B), (2, splits, B)
    p_loss, p_skipped,  # (), ()
    p_chosen, p_distances, p_weights,  # (2, B) each, or null
    batch, num_splits, margin,
    SOFT: tl.constexpr, COSINE: tl.constexpr, COMPUTE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: the best of the splits, the mean over anchors that have both, and the derivative of each distance.

    Weights are d (sum of terms) / d distance, over the distance if it is Euclidean; the backward knows the number of
    terms. An anchor without a pair has -1, 0 and 0.
    """
    splits = tl.arange(0, SPLITS)
    total, used = tl.zeros((BLOCK_M,), COMPUTE), tl.zeros((BLOCK_M,), tl.int32)
    negatives = num_splits.to(tl.int64) * batch
    for begin in range(0, batch, BLOCK_M):
        anchors = begin + tl.arange(0, BLOCK_M)
        is_anchor = anchors < batch
        inside = (splits < num_splits)[:, None] & is_anchor[None, :]
        places = splits.to(tl.int64)[:, None] * batch + anchors[None, :]
        keys = tl.load(p_keys + places, mask=inside, other=-float("inf"))  # (SPLITS, BLOCK_M)
        indices = tl.load(p_indices + places, mask=inside, other=NOBODY)
        far = tl.max(keys, 0)
        positive = tl.min(tl.where(keys == far[None, :], indices, NOBODY), 0)
        keys = tl.load(p_keys + negatives + places, mask=inside, other=float("inf"))
        indices = tl.load(p_indices + negatives + places, mask=inside, other=NOBODY)
        near = tl.min(keys, 0)
        negative = tl.min(tl.where(keys == near[None, :], indices, NOBODY), 0)
        valid = is_anchor & (positive != NOBODY) & (negative != NOBODY)
        far, near = tl.where(valid, far, 0.0), tl.where(valid, near, 0.0)
        near = tl.where(near == -float("inf"), float("nan"), near)
        if COSINE:
            far_weight, near_weight = tl.full((BLOCK_M,), 1.0, COMPUTE), tl.full((BLOCK_M,), 1.0, COMPUTE)
        else:  # NaN stays, which tl.maximum would lose
            far_apart, near_apart = (far < 1e-12) == 0, (near < 1e-12) == 0
            far = tl.where(far_apart, tl.sqrt(tl.where(far_apart, far, 1.0)), 1e-6)
            near = tl.where(near_apart, tl.sqrt(tl.where(near_apart, near, 1.0)), 1e-6)
            far_weight, near_weight = tl.where(far_apart, 1.0 / far, 0.0), tl.where(near_apart, 1.0 / near, 0.0)
        gap = far - near
        if SOFT:
            small = tl.exp(-tl.abs(gap))  # in (0, 1]
            term = tl.where(gap < 0.0, 0.0, gap) + log1p(small)
            slope = tl.where(gap < 0.0, small, 1.0) / (1.0 + small)
        else:
            gap += margin
            term = tl.where(gap < 0.0, 0.0, gap)
            slope = tl.where(gap > 0.0, 1.0, tl.where(gap <= 0.0, 0.0, gap))  # NaN stays
        total += tl.where(valid, term, 0.0)
        used += valid.to(tl.int32)
        if p_chosen is not None:
            tl.store(p_chosen + anchors, tl.where(valid, positive, -1), mask=is_anchor)
            tl.store(p_chosen + batch + anchors, tl.where(valid, negative, -1), mask=is_anchor)
            tl.store(p_distances + anchors, tl.where(valid, far, 0.0), mask=is_anchor)
            tl.store(p_distances + batch + anchors, tl.where(valid, near, 0.0), mask=is_anchor)
            tl.store(p_weights + anchors, tl.where(valid, slope * far_weight, 0.0), mask=is_anchor)
            tl.store(p_weights + batch + anchors, tl.where(valid, -slope * near_weight, 0.0), mask=is_anchor)
    count = tl.sum(used, 0)
    tl.store(p_loss, tl.sum(total, 0) / tl.maximum(count, 1).to(COMPUTE))
    tl.store(p_skipped, (batch - count).to(tl.int64))


@triton.jit(do_not_specialize=("batch",))
def batch_hard_triplet_bwd_kernel(
    p_grad_loss, p_skipped,  # (), ()
    p_features,  # (B, D)
    p_inverse, p_short,  # (B,), (B,) of the cosine, or null
    p_chosen, p_distances, p_weights,  # (2, B) each
    p_grad_features,  # (B, D)
    batch, features_b, features_d, grad_features_b, grad_features_d,
    DIM: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_D columns of a feature i: sum over its pairs of w (x_i - x_k), with unit rows y

    sum w (y_i - y_k - d y_i) / |x_i|. Its pairs are its own two, and those of anchors k that chose it, which are looked
    for in order: CHUNK anchors at a glance, of which WINDOW from the first that did are worked on at once.
    """
    blocks: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    row, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    columns = block * BLOCK_D + tl.arange(0, BLOCK_D)
    has_column = columns < DIM
    offsets = columns.to(tl.int64) * features_d
    wide_row = row.to(tl.int64)
    x = tl.load(p_features + wide_row * features_b + offsets, mask=has_column, other=0.0).to(COMPUTE)
    scale = tl.load(p_grad_loss).to(COMPUTE) / tl.maximum(batch - tl.load(p_skipped), 1).to(COMPUTE)
    if p_inverse is not None:
        inverse, short = tl.load(p_inverse + row), tl.load(p_short + row)
        x *= inverse
    gradient = tl.zeros((BLOCK_D,), COMPUTE)
    along = tl.zeros((), COMPUTE)  # what the projection takes off in the direction of y_i
    for side in tl.static_range(2):
        own = side * batch + row
        partner, weight = tl.load(p_chosen + own), tl.load(p_weights + own)
        other = tl.load(
            p_features + partner.to(tl.int64) * features_b + offsets, mask=has_column & (partner >= 0), other=0.0
        ).to(COMPUTE)
        if p_inverse is not None:
            other *= tl.load(p_inverse + partner, mask=partner >= 0, other=0.0)
            along += weight * tl.where(short > 0.0, 1.0, tl.load(p_distances + own))
        gradient += weight * (x - other)
    for begin in range(0, batch, CHUNK):
        anchors = begin + tl.arange(0, CHUNK)
        chose = tl.load(p_chosen + anchors, mask=anchors < batch, other=-1) == row
        chose |= tl.load(p_chosen + batch + anchors, mask=anchors < batch, other=-1) == row
        end = tl.minimum(begin + CHUNK, batch)
        first = tl.min(tl.where(chose, anchors, NOBODY), 0)
        while first < end:
            window = first + tl.arange(0, WINDOW)
            inside = window < end
            is_positive = tl.load(p_chosen + window, mask=inside, other=-1) == row
            is_negative = tl.load(p_chosen + batch + window, mask=inside, other=-1) == row
            place = window + tl.where(is_negative, batch, 0)
            hit = is_positive | is_negative
            weights = tl.load(p_weights + place, mask=hit, other=0.0)  # (WINDOW,)
            pointers = p_features + window.to(tl.int64)[:, None] * features_b + offsets[None, :]
            others = tl.load(pointers, mask=hit[:, None] & has_column[None, :], other=0.0).to(COMPUTE)
            if p_inverse is not None:
                others *= tl.load(p_inverse + window, mask=hit, other=0.0)[:, None]
                distances = tl.load(p_distances + place, mask=hit, other=0.0)
                along += tl.sum(weights * tl.where(short > 0.0, 1.0, distances), 0)
            gradient += tl.sum(weights[:, None] * (x[None, :] - others), 0)
            first = tl.min(tl.where(chose & (anchors >= first + WINDOW), anchors, NOBODY), 0)
    if p_inverse is not None:
        # F.normalize divides what is shorter by 1e-12 and does not project.
        gradient = (gradient - along * x) * tl.where((short > 0.0) & (inverse == 0.0), 1e12, inverse)
    pointers = p_grad_features + wide_row * grad_features_b + columns.to(tl.int64) * grad_features_d
    tl.store(pointers, (gradient * scale).to(p_grad_features.dtype.element_ty), mask=has_column)
