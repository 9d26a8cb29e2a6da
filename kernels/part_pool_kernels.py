"""part_pool in Triton: masks by a softmax, then products of masks and tokens on the matrix units.

The mathematics is csrc/part_pool.h's. Half tokens meet the masks as half numbers: SCALE, a power of two, keeps masks
above float16's smallest numbers, and where one rounding is too much they are a sum of half numbers.

- The gradient of tokens has their dtype: one rounding of M / D stays within.
- The gradient of logits is a difference of <g, x>, exact products of half numbers, and <g, pooled>, which cancel where
  a part has one cell: pooled takes two half numbers a mask, and three of bfloat16 where the logits are float32.

Sums leave the matrix units after each tile, because those cut off where they should round.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_masks(
    p_logits, logits_k, logits_n, cells_left, PARTS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_K) masks of the parts and (BLOCK_N,) of the background, from a cell on.

    The background is apart, because 33 channels would be padded to 64. Parts are 0 from PARTS and from cells_left on.
    """
    cells, parts = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    inside = cells < cells_left
    p_cells = p_logits + cells.to(tl.int64) * logits_n
    background = tl.load(p_cells, mask=inside, other=0.0).to(COMPUTE)
    pointers = p_cells[:, None] + (parts + 1).to(tl.int64)[None, :] * logits_k
    logits = tl.load(pointers, mask=inside[:, None] & (parts < PARTS)[None, :], other=-float("inf")).to(COMPUTE)
    top = tl.maximum(tl.max(logits, 1), background)
    weights = tl.exp2((logits - top[:, None]) * 1.4426950408889634)
    background = tl.exp2((background - top) * 1.4426950408889634)
    inverse = 1.0 / (tl.sum(weights, 1) + background)
    return weights * inverse[:, None], background * inverse


@triton.jit
def split(masks, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    """Masks as a sum of three numbers of a type; what is not used of them is not computed either."""
    high = masks.to(DTYPE)
    rest = masks - high.to(COMPUTE)
    middle = rest.to(DTYPE)
    low = (rest - middle.to(COMPUTE)).to(DTYPE)
    return high, middle, low


@triton.jit
def store_totals(p_mass, p_total, rows, total, num_cells, has_part):
    """mass and, where it is wanted, S_k of the parts."""
    tl.store(p_mass + rows, (total / num_cells).to(p_mass.dtype.element_ty), mask=has_part)
    if p_total is not None:
        tl.store(p_total + rows, total, mask=has_part)


@triton.jit(do_not_specialize=("blocks_each", "num_groups"))
def part_pool_short_fwd_kernel(
    p_tokens, p_logits,  # (B, N, C), (B, K + 1, N)
    p_pooled, p_mass,  # (B, K, C), (B, K)
    p_total, p_exact,  # (B, K), (B, K, C), or null
    blocks_each, num_groups,  # of BLOCK_C channels: of a program, and programs of an item
    num_cells, tokens_b, tokens_n, tokens_c, logits_b, logits_k, logits_n,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr, TERMS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """All cells of an item fit in a tile: a program makes the masks once and takes blocks of channels through them."""
    item, group = (tl.program_id(0) // num_groups).to(tl.int64), tl.program_id(0) % num_groups
    cells, parts = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    has_cell, has_part = cells < num_cells, parts < PARTS
    masks, _ = load_masks(
        p_logits + item * logits_b, logits_k, logits_n, num_cells, PARTS, BLOCK_K, BLOCK_N, COMPUTE
    )  # fmt: skip
    total = tl.sum(masks, 0)  # (BLOCK_K,)
    rows = item * PARTS + parts
    if group == 0:
        store_totals(p_mass, p_total, rows, total, num_cells, has_part)
    inverse = 1.0 / ((total + 1e-6) * SCALE)
    high, middle, low = split(tl.trans(masks) * SCALE, DTYPE, COMPUTE)  # (BLOCK_K, BLOCK_N)
    p_tokens += item * tokens_b
    token_offsets = cells.to(tl.int64)[:, None] * tokens_n
    first = group * blocks_each * BLOCK_C
    for start in range(first, tl.minimum(first + blocks_each * BLOCK_C, CHANNELS), BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        has_channel = channels < CHANNELS
        pointers = p_tokens + token_offsets + channels.to(tl.int64)[None, :] * tokens_c
        tokens = tl.load(pointers, mask=has_cell[:, None] & has_channel[None, :], other=0.0).to(DTYPE)
        sums = tl.zeros((BLOCK_K, BLOCK_C), COMPUTE)
        if TERMS > 2:
            sums = tl.dot(low, tokens, sums, input_precision=PRECISION, out_dtype=COMPUTE)
        if TERMS > 1:
            sums = tl.dot(middle, tokens, sums, input_precision=PRECISION, out_dtype=COMPUTE)
        sums = tl.dot(high, tokens, sums, input_precision=PRECISION, out_dtype=COMPUTE)
        pooled = sums * inverse[:, None]
        place = rows[:, None] * CHANNELS + channels[None, :]
        inside = has_part[:, None] & has_channel[None, :]
        tl.store(p_pooled + place, pooled.to(p_pooled.dtype.element_ty), mask=inside)
        if p_exact is not None:
            tl.store(p_exact + place, pooled, mask=inside)


@triton.jit
def part_pool_fwd_kernel(
    p_tokens, p_logits,  # (B, N, C), (B, K + 1, N)
    p_pooled, p_mass,  # (B, K, C), (B, K)
    p_total, p_exact,  # (B, K), (B, K, C), or null
    num_cells, tokens_b, tokens_n, tokens_c, logits_b, logits_k, logits_n,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr, TERMS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_C channels of an item through tiles of its cells."""
    blocks: tl.constexpr = max(1, (CHANNELS + BLOCK_C - 1) // BLOCK_C)
    item, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    cells, parts = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
    has_channel, has_part = channels < CHANNELS, parts < PARTS
    p_tokens += item * tokens_b
    p_logits += item * logits_b
    offsets = cells.to(tl.int64)[:, None] * tokens_n + channels.to(tl.int64)[None, :] * tokens_c
    sums = tl.zeros((BLOCK_C, BLOCK_K), COMPUTE)
    total = tl.zeros((BLOCK_N, BLOCK_K), COMPUTE)
    for start in range(0, num_cells, BLOCK_N):
        first, left = tl.full((), 0, tl.int64) + start, num_cells - start  # interpreted loops count in plain integers
        inside = (cells < left)[:, None] & has_channel[None, :]
        tokens = tl.load(p_tokens + first * tokens_n + offsets, mask=inside, other=0.0).to(DTYPE)  # (BLOCK_N, BLOCK_C)
        masks, _ = load_masks(p_logits + first * logits_n, logits_k, logits_n, left, PARTS, BLOCK_K, BLOCK_N, COMPUTE)
        total += masks
        high, middle, low = split(masks * SCALE, DTYPE, COMPUTE)
        # The few parts on the product's N axis, where Hopper's matrix instructions take 16.
        tile = tl.zeros((BLOCK_C, BLOCK_K), COMPUTE)
        if TERMS > 2:
            tile = tl.dot(tl.trans(tokens), low, tile, input_precision=PRECISION, out_dtype=COMPUTE)
        if TERMS > 1:
            tile = tl.dot(tl.trans(tokens), middle, tile, input_precision=PRECISION, out_dtype=COMPUTE)
        tile = tl.dot(tl.trans(tokens), high, tile, input_precision=PRECISION, out_dtype=COMPUTE)
        sums += tile * (1.0 / SCALE)
    total = tl.sum(total, 0)  # (BLOCK_K,)
    rows = item * PARTS + parts
    if block == 0:
        store_totals(p_mass, p_total, rows, total, num_cells, has_part)
    pooled = tl.trans(sums / (total + 1e-6)[None, :])  # (BLOCK_K, BLOCK_C)
    place = rows[:, None] * CHANNELS + channels[None, :]
    inside = has_part[:, None] & has_channel[None, :]
    tl.store(p_pooled + place, pooled.to(p_pooled.dtype.element_ty), mask=inside)
    if p_exact is not None:
        tl.store(p_exact + place, pooled, mask=inside)


@triton.jit
def part_pool_bwd_kernel(
    p_grad_pooled, p_grad_mass,  # (B, K, C), (B, K), or null
    p_tokens, p_logits,  # (B, N, C), (B, K + 1, N)
    p_pooled, p_total,  # (B, K, C), or null where a tile holds all cells; (B, K)
    p_grad_tokens, p_grad_logits,  # (B, N, C), (B, K + 1, N), or null
    num_cells, tokens_b, tokens_n, tokens_c, logits_b, logits_k, logits_n,
    grad_tokens_b, grad_tokens_n, grad_tokens_c, grad_logits_b, grad_logits_k, grad_logits_n,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_N cells of an item through blocks of its channels."""
    tiles = tl.cdiv(num_cells, BLOCK_N)
    item, first = (tl.program_id(0) // tiles).to(tl.int64), (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N
    cells, parts = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    left = num_cells - first
    has_cell, has_part = cells < left, parts < PARTS
    rows = item * PARTS + parts
    p_logits += item * logits_b + first * logits_n
    masks, background = load_masks(p_logits, logits_k, logits_n, left, PARTS, BLOCK_K, BLOCK_N, COMPUTE)
    inverse = 1.0 / (tl.load(p_total + rows, mask=has_part, other=1.0) + 1e-6)  # (BLOCK_K,)
    grad_masks = tl.zeros((BLOCK_N, BLOCK_K), COMPUTE)
    constant = tl.zeros((BLOCK_K,), COMPUTE)
    if p_grad_pooled is not None:
        weights = (masks * (inverse * SCALE)[None, :]).to(DTYPE)
        p_tokens += item * tokens_b + first * tokens_n
        token_offsets = cells.to(tl.int64)[:, None] * tokens_n
        if p_grad_tokens is not None:
            p_grad_tokens += item * grad_tokens_b + first * grad_tokens_n
            grad_offsets = cells.to(tl.int64)[:, None] * grad_tokens_n
        products = tl.zeros((BLOCK_K, BLOCK_C), COMPUTE)
        for start in range(0, CHANNELS, BLOCK_C):
            channels = start + tl.arange(0, BLOCK_C)
            has_channel, wide = channels < CHANNELS, channels.to(tl.int64)[None, :]
            place = rows[:, None] * CHANNELS + channels[None, :]
            has_row, inside = has_part[:, None] & has_channel[None, :], has_cell[:, None] & has_channel[None, :]
            grad_pooled = tl.load(p_grad_pooled + place, mask=has_row, other=0.0).to(DTYPE)  # (BLOCK_K, BLOCK_C)
            if p_grad_logits is not None:
                tokens = tl.load(p_tokens + token_offsets + wide * tokens_c, mask=inside, other=0.0).to(DTYPE)
                product = tl.dot(tokens, tl.trans(grad_pooled), input_precision=PRECISION, out_dtype=COMPUTE)
                grad_masks += product * inverse[None, :]
                if p_pooled is not None:
                    products += grad_pooled.to(COMPUTE) * tl.load(p_pooled + place, mask=has_row, other=0.0)
            if p_grad_tokens is not None:
                grad_tokens = tl.dot(weights, grad_pooled, input_precision=PRECISION, out_dtype=COMPUTE) * (1.0 / SCALE)
                tl.store(
                    p_grad_tokens + grad_offsets + wide * grad_tokens_c,
                    grad_tokens.to(p_grad_tokens.dtype.element_ty),
                    mask=inside,
                )
    if p_grad_logits is not None:
        if p_grad_pooled is not None:
            if CHANNELS > BLOCK_C:  # twice is cheaper than registers through a loop: another program fits beside
                masks, background = load_masks(p_logits, logits_k, logits_n, left, PARTS, BLOCK_K, BLOCK_N, COMPUTE)
            if p_pooled is not None:
                constant = tl.sum(products, 1) * inverse
            else:  # <g, pooled> is the mean of <g, x>, which is closer to them than what was rounded in between
                constant = tl.sum(masks * grad_masks, 0) * inverse
        if p_grad_mass is not None:
            constant -= tl.load(p_grad_mass + rows, mask=has_part, other=0.0).to(COMPUTE) / num_cells
        grad_masks -= constant[None, :]
        mean = tl.sum(masks * grad_masks, 1)  # (BLOCK_N,)
        grad_logits = masks * (grad_masks - mean[:, None])
        p_cells = p_grad_logits + item * grad_logits_b + (first + cells) * grad_logits_n
        tl.store(p_cells, (-background * mean).to(p_grad_logits.dtype.element_ty), mask=has_cell)
        pointers = p_cells[:, None] + (parts + 1).to(tl.int64)[None, :] * grad_logits_k
        inside = has_cell[:, None] & has_part[None, :]
        tl.store(pointers, grad_logits.to(p_grad_logits.dtype.element_ty), mask=inside)
