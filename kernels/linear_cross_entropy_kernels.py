"""linear_cross_entropy in Triton: tiles of logits on the matrix units, used up before the next one is made.

docs/kernels/linear_cross_entropy.md has the derivation. Logits of a half type are exact products, summed in float32; in
the backward they are made again in the same order, so that a softmax meets the maximum it was made with. Their gradient
is rounded once where products are of a half type; SCALE, a power of two, keeps e / C above float16's smallest numbers.
Beside half features a float32 weight is the sum of PARTS half numbers, and so is the logits' gradient for its own.

Sums leave the matrix units after each tile, because those cut off where they should round.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(p_tensor, first, stride_n, start, stride_d):
    """The pointer of a row and a column; the program's own offsets from it are INDEX, 32 bits where they suffice."""
    return p_tensor + (tl.full((), 0, tl.int64) + first) * stride_n + (tl.full((), 0, tl.int64) + start) * stride_d


@triton.jit
def offsets(rows, stride_n, stride_d, BLOCK_D: tl.constexpr, INDEX: tl.constexpr):
    """(BLOCK, BLOCK_D) places of some rows' first columns."""
    return rows.to(INDEX)[:, None] * stride_n + tl.arange(0, BLOCK_D).to(INDEX)[None, :] * stride_d


@triton.jit
def in_units(values, AXIS: tl.constexpr):
    """float32 values over powers of two that bring the largest one along an axis to [1024, 2048); these powers.

    float16 has no exponents for float32's range.
    """
    largest = tl.max(tl.abs(values), AXIS).to(tl.int32, bitcast=True)
    # The smallest exponents are raised so that these powers and their inverses are normal numbers.
    units = tl.maximum(largest & 0x7F800000, 0x08000000) - 0x05000000
    inverse = tl.expand_dims((0x7F000000 - units).to(tl.float32, bitcast=True), AXIS)
    return values * inverse, tl.expand_dims(units.to(tl.float32, bitcast=True), AXIS)


@triton.jit
def in_parts(values, DTYPE: tl.constexpr, PARTS: tl.constexpr):
    """DTYPE's numbers that add up to values, the largest first, as far as there are PARTS of them."""
    first = values.to(DTYPE)
    second = first
    third = first
    if PARTS > 1:
        rest = values - first.to(tl.float32)
        second = rest.to(DTYPE)
        if PARTS > 2:
            third = (rest - second.to(tl.float32)).to(DTYPE)
    return first, second, third


@triton.jit
def product(
    lefts, rights, LEFTS: tl.constexpr, RIGHTS: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The product of what `in_parts` gave, of which one side is in one part; the smallest products first."""
    LAST: tl.constexpr = LEFTS * RIGHTS - 1
    sums = tl.dot(
        lefts[LAST if LEFTS > 1 else 0], rights[LAST if RIGHTS > 1 else 0], input_precision=PRECISION,
        out_dtype=COMPUTE,
    )  # fmt: skip
    for done in tl.static_range(LAST):
        left, right = lefts[LAST - 1 - done if LEFTS > 1 else 0], rights[LAST - 1 - done if RIGHTS > 1 else 0]
        sums = tl.dot(left, right, sums, input_precision=PRECISION, out_dtype=COMPUTE)
    return sums


@triton.jit
def tile_of_logits(
    p_features, rows, features_n, features_d,  # from a first row on, (BLOCK_B,)
    p_weight, classes, weight_n, weight_d,  # from a first class on, (BLOCK_C,)
    width,  # WIDTH again, unknown to the compiler, which would unroll the loop
    WIDTH: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_B, BLOCK_C) logits."""
    features_offsets = offsets(rows, features_n, features_d, BLOCK_D, INDEX)
    weight_offsets = offsets(classes, weight_n, weight_d, BLOCK_D, INDEX)
    sums = tl.zeros((BLOCK_B, BLOCK_C), COMPUTE)
    for start in range(0, width, BLOCK_D):
        inside = (start + tl.arange(0, BLOCK_D) < WIDTH)[None, :]
        p_tile = place(p_features, 0, features_n, start, features_d)
        features = tl.load(p_tile + features_offsets, mask=inside, other=0.0).to(DTYPE)
        p_tile = place(p_weight, 0, weight_n, start, weight_d)
        weight = tl.trans(tl.load(p_tile + weight_offsets, mask=inside, other=0.0))
        units = 1.0
        if PARTS == 2:  # of float16
            weight, units = in_units(weight, 0)
        parts = in_parts(weight, DTYPE, PARTS)
        # Halved, so that the compiler leaves the sum of tiles outside of the products.
        sums += 0.5 * units * product((features,), parts, 1, PARTS, COMPUTE, PRECISION)
    return 2.0 * sums


@triton.jit
def load_labels(p_labels, rows, labels_n, num_classes):
    """(BLOCK_B,) labels as they are, and as 32 bits, -1 where there is no such class."""
    labels = tl.load(p_labels + rows.to(tl.int64) * labels_n).to(tl.int64)
    return labels, tl.where((labels >= 0) & (labels < num_classes), labels, -1).to(tl.int32)


@triton.jit(do_not_specialize=("width", "num_rows", "num_classes", "row_blocks", "num_splits", "tiles_each"))
def linear_cross_entropy_fwd_kernel(
    p_features, p_weight, p_labels,  # (B, D), (C, D), (B,)
    p_parts,  # (4, S, B): of a row and a range of classes maximum, sum of exponentials, sum, logit of the label
    num_rows, num_classes, width, row_blocks, num_splits, tiles_each,  # of BLOCK_C classes
    features_n, features_d, weight_n, weight_d, labels_n,
    WIDTH: tl.constexpr, SMOOTHED: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_B rows through a range of classes; programs side by side share that range's weights."""
    first_row, split = tl.program_id(0) % row_blocks * BLOCK_B, tl.program_id(0) // row_blocks
    # Rather than masks: rows and classes beyond the last one repeat it.
    rows = tl.minimum(tl.arange(0, BLOCK_B), num_rows - 1 - first_row)
    _, labels = load_labels(p_labels, first_row + rows, labels_n, num_classes)
    p_features = place(p_features, first_row, features_n, 0, features_d)
    top = tl.full((BLOCK_B,), -float("inf"), COMPUTE)
    total = tl.zeros((BLOCK_B,), COMPUTE)
    plain = tl.zeros((BLOCK_B,), COMPUTE)
    target = tl.zeros((BLOCK_B,), COMPUTE)
    first = split * tiles_each * BLOCK_C
    for start in range(first, tl.minimum(first + tiles_each * BLOCK_C, num_classes), BLOCK_C):
        logits = tile_of_logits(
            p_features, rows, features_n, features_d, place(p_weight, start, weight_n, 0, weight_d),
            tl.minimum(tl.arange(0, BLOCK_C), num_classes - 1 - start), weight_n, weight_d,
            width, WIDTH, DTYPE, COMPUTE, INDEX, PRECISION, PARTS, BLOCK_B, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        classes = start + tl.arange(0, BLOCK_C)[None, :]
        if SMOOTHED:
            plain += tl.sum(tl.where(classes < num_classes, logits, 0.0), 1)
        target += tl.sum(tl.where(classes == labels[:, None], logits, 0.0), 1)
        logits = tl.where(classes < num_classes, logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2((logits - higher[:, None]) * 1.4426950408889634)
        total = total * tl.exp2((top - higher) * 1.4426950408889634) + tl.sum(weights, 1)
        top = higher
    stride = tl.full((), 1, tl.int64) * num_splits * num_rows
    p_rows = p_parts + split.to(tl.int64) * num_rows + first_row + tl.arange(0, BLOCK_B)
    has_row = first_row + tl.arange(0, BLOCK_B) < num_rows
    tl.store(p_rows, top, mask=has_row)
    tl.store(p_rows + stride, total, mask=has_row)
    tl.store(p_rows + 2 * stride, plain, mask=has_row)
    tl.store(p_rows + 3 * stride, target, mask=has_row)


@triton.jit(do_not_specialize=("ignore_index", "num_rows", "num_classes", "num_splits"))
def linear_cross_entropy_combine_kernel(
    p_parts, p_labels,  # (4, S, B), (B,)
    p_loss, p_count, p_statistics,  # (), (), (2, B): maximum, 1 / sum of exponentials
    ignore_index, smoothing, num_rows, num_classes, num_splits, labels_n,
    SMOOTHED: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One program, so that the sum over rows has one order."""
    splits = tl.arange(0, BLOCK_S)
    stride = tl.full((), 1, tl.int64) * num_splits * num_rows
    has_split = (splits < num_splits)[:, None]
    losses = tl.zeros((BLOCK_B,), COMPUTE)
    counts = tl.zeros((BLOCK_B,), tl.int32)
    for start in range(0, num_rows, BLOCK_B):
        rows = start + tl.arange(0, BLOCK_B)
        known_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
        labels, classes = load_labels(p_labels, known_rows, labels_n, num_classes)
        pointers = p_parts + splits.to(tl.int64)[:, None] * num_rows + known_rows[None, :]  # (BLOCK_S, BLOCK_B)
        tops = tl.load(pointers, mask=has_split, other=-float("inf"))
        top = tl.max(tops, 0)
        weights = tl.exp2((tops - top[None, :]) * 1.4426950408889634)
        total = tl.sum(weights * tl.load(pointers + stride, mask=has_split, other=0.0), 0)
        target = tl.sum(tl.load(pointers + 3 * stride, mask=has_split, other=0.0), 0)
        # Differences from the maximum first: of a row that is sure of its label they are exact.
        loss = tl.log(total) + (1.0 - smoothing) * (top - target)
        if SMOOTHED:
            plain = tl.sum(tl.load(pointers + 2 * stride, mask=has_split, other=0.0), 0)
            loss += smoothing * (top - plain / num_classes)
        known = classes >= 0
        counted = labels != ignore_index
        # NaN tells of a label that is none; 0 leaves a row out, which no sum of exponentials gives.
        inverse = tl.where(counted, tl.where(known, 1.0 / total, float("nan")), 0.0)
        has_row = rows < num_rows
        tl.store(p_statistics + rows, top, mask=has_row)
        tl.store(p_statistics + num_rows + rows.to(tl.int64), inverse, mask=has_row)
        counted &= has_row
        losses += tl.where(counted, tl.where(known, loss, float("nan")), 0.0)
        counts += counted.to(tl.int32)
    count = tl.maximum(tl.sum(counts, 0), 1).to(COMPUTE)
    tl.store(p_loss, tl.sum(losses, 0) / count)
    tl.store(p_count, count)


@triton.jit(
    do_not_specialize=("num_rows", "num_classes", "width", "own_blocks", "num_splits", "tiles_each", "blocks_each")
)
def linear_cross_entropy_bwd_kernel(
    p_features, p_weight, p_labels,  # (B, D), (C, D), (B,)
    p_statistics, p_grad_loss, p_count,  # (2, B), (), ()
    p_sums, p_grad,  # (S, N, D), or null where a program has one tile; (N, D), or null where sums are the result
    smoothing, num_rows, num_classes, width, own_blocks, num_splits,
    tiles_each, blocks_each,  # of a program: tiles of the other tensor's rows, BLOCK_G columns of the result
    features_n, features_d, weight_n, weight_d, labels_n, sums_s, sums_n, sums_d, grad_n, grad_d,
    WIDTH: tl.constexpr, OWNS_CLASSES: tl.constexpr, DTYPE: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """dz weight, or dz^T features: a program owns a block of N rows of one and goes through rows of the other.

    A sum of all D columns is too much for registers: it is kept in memory, where this program alone adds to it.
    """
    pid = tl.program_id(0)
    block, split, group = pid % own_blocks, pid // own_blocks % num_splits, pid // own_blocks // num_splits
    BLOCK_OWN: tl.constexpr = BLOCK_C if OWNS_CLASSES else BLOCK_B
    BLOCK_OTHER: tl.constexpr = BLOCK_B if OWNS_CLASSES else BLOCK_C
    GRADS: tl.constexpr = PARTS if OWNS_CLASSES else 1
    # Features' gradient is of a half type itself: two parts of the weight are enough, one of the logits' gradient.
    OTHERS: tl.constexpr = 1 if OWNS_CLASSES else min(PARTS, 2)
    num_own = num_classes if OWNS_CLASSES else num_rows
    num_other = num_rows if OWNS_CLASSES else num_classes
    factor = tl.load(p_grad_loss).to(COMPUTE) / tl.load(p_count) * (1.0 / SCALE)
    others = tl.full((), smoothing, COMPUTE) / num_classes
    hot = 1.0 - smoothing + others
    first_own, first = block * BLOCK_OWN, split * tiles_each * BLOCK_OTHER
    last = tl.minimum(first + tiles_each * BLOCK_OTHER, num_other)
    first_column = group * blocks_each * BLOCK_G
    has_own = (first_own + tl.arange(0, BLOCK_OWN) < num_own)[:, None]
    if p_sums is not None:
        p_sums = place(p_sums, first_own, sums_n, 0, sums_d) + split.to(tl.int64) * sums_s
    if p_grad is not None:
        p_grad = place(p_grad, first_own, grad_n, 0, grad_d)
    for start in range(first, last, BLOCK_OTHER):
        first_row, first_class = start if OWNS_CLASSES else first_own, first_own if OWNS_CLASSES else start
        rows = tl.minimum(tl.arange(0, BLOCK_B), num_rows - 1 - first_row)
        classes = tl.minimum(tl.arange(0, BLOCK_C), num_classes - 1 - first_class)
        p_rows = place(p_features, first_row, features_n, 0, features_d)
        p_classes = place(p_weight, first_class, weight_n, 0, weight_d)
        grads = tile_of_logits(
            p_rows, rows, features_n, features_d, p_classes, classes, weight_n, weight_d,
            width, WIDTH, DTYPE, COMPUTE, INDEX, PRECISION, PARTS, BLOCK_B, BLOCK_C, BLOCK_D,
        )  # fmt: skip
        p_top = p_statistics + first_row + rows
        top, inverse = tl.load(p_top), tl.load(p_top + num_rows)
        _, labels = load_labels(p_labels, first_row + rows, labels_n, num_classes)
        grads = tl.exp2((grads - top[:, None]) * 1.4426950408889634) * inverse[:, None]
        classes = first_class + tl.arange(0, BLOCK_C)[None, :]
        grads -= tl.where(classes == labels[:, None], hot, others)
        counted = (first_row + tl.arange(0, BLOCK_B) < num_rows) & (inverse != 0.0)
        grads = tl.where(counted[:, None] & (classes < num_classes), grads * SCALE, 0.0)
        if OWNS_CLASSES:
            grads = tl.trans(grads)
        grads = in_parts(grads, DTYPE, GRADS)
        if p_sums is not None:
            tl.debug_barrier()  # sums of the last tile, written by other threads of this program
        for column in range(first_column, tl.minimum(first_column + blocks_each * BLOCK_G, WIDTH), BLOCK_G):
            has_column = (column + tl.arange(0, BLOCK_G) < WIDTH)[None, :]
            if OWNS_CLASSES:
                p_tile = place(p_rows, 0, features_n, column, features_d)
                p_tile += offsets(rows, features_n, features_d, BLOCK_G, INDEX)
            else:
                p_tile = place(p_classes, 0, weight_n, column, weight_d)
                p_tile += offsets(
                    tl.minimum(tl.arange(0, BLOCK_C), num_classes - 1 - first_class), weight_n, weight_d, BLOCK_G, INDEX
                )
            other = tl.load(p_tile, mask=has_column, other=0.0)
            units = 1.0
            if PARTS == 2 and not OWNS_CLASSES:
                other, units = in_units(other, 0)
            other = in_parts(other, DTYPE, OTHERS)
            sums = product(grads, other, GRADS, OTHERS, COMPUTE, PRECISION) * (factor * units)
            inside, own = has_own & has_column, tl.arange(0, BLOCK_OWN)
            if p_sums is not None:
                p_place = place(p_sums, 0, sums_n, column, sums_d) + offsets(own, sums_n, sums_d, BLOCK_G, INDEX)
                sums += tl.load(p_place, mask=inside & (start > first), other=0.0)
                if p_grad is None:
                    tl.store(p_place, sums, mask=inside)
                else:
                    tl.store(p_place, sums, mask=inside & (start + BLOCK_OTHER < last))
            if p_grad is not None:
                p_place = place(p_grad, 0, grad_n, column, grad_d) + offsets(own, grad_n, grad_d, BLOCK_G, INDEX)
                tl.store(
                    p_place, sums.to(p_grad.dtype.element_ty), mask=inside & (start + BLOCK_OTHER >= last)
                )  # fmt: skip


@triton.jit(do_not_specialize=("num_splits", "size"))
def linear_cross_entropy_reduce_kernel(
    p_sums, p_grad,  # (S, N, D), (N, D)
    num_splits, size, grad_n, grad_d, WIDTH: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the sums of all ranges, in their order."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    sums = tl.zeros((BLOCK,), COMPUTE)
    for split in range(num_splits):
        sums += tl.load(p_sums + (tl.full((), 0, tl.int64) + split) * size + places, mask=inside, other=0.0)
    pointers = p_grad + places // WIDTH * grad_n + places % WIDTH * grad_d
    tl.store(pointers, sums.to(p_grad.dtype.element_ty), mask=inside)
