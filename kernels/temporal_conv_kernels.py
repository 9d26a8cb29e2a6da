"""temporal_conv in Triton: a tile of tokens and channels walks through the frames of its clip.

A tile is (BLOCK_N, BLOCK_C). What a frame needs of its neighbours stays in registers, in tuples that move on by one
frame a step: each frame is read once, and again only where a long clip is cut into runs of frames. Loops over frames
are unrolled as often as there are taps, so that moving on costs nothing; not so with many taps, where it would cost
more registers than there are.

Strides of items, frames and tokens are passed divided by UNIT, because the compiler only believes in 16-byte accesses
that it sees in the arithmetic; channels have a stride of their own, which a launch specialises to 1.
"""

from __future__ import annotations

import triton
import triton.language as tl
from motarfuse.kernels.bias_gelu_math import gelu, gelu_derivative


@triton.jit
def append(items, item):
    """A tuple with one more at its end."""
    return items + (item,)  # noqa: RUF005, Triton cannot unpack one


@triton.jit
def move_on(items, item):
    """The same without its first."""
    return items[1:] + (item,)  # noqa: RUF005


@triton.jit
def place_of(task, num_frames, num_tokens, frames_each, BLOCK_N: tl.constexpr):
    """(item, first frame, first token) of a task: tokens first, then runs of frames, then items."""
    tiles, runs = tl.cdiv(num_tokens, BLOCK_N), tl.cdiv(num_frames, frames_each)
    return (task // tiles // runs).to(tl.int64), task // tiles % runs * frames_each, task % tiles * BLOCK_N


@triton.jit
def is_present(p_mask, frame, num_frames, mask_t):
    """Whether a frame is of the clip and not masked."""
    inside = (frame >= 0) & (frame < num_frames)
    if p_mask is None:
        return inside
    else:
        return tl.load(p_mask + frame.to(tl.int64) * mask_t, mask=inside, other=0) != 0


@triton.jit
def load_taps(p_weight, channels, has_channel, weight_c, weight_k, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """WIDTH tensors (1, BLOCK_C)."""
    pointers = p_weight + channels.to(tl.int64) * weight_c
    taps = (tl.load(pointers, mask=has_channel, other=0.0).to(COMPUTE)[None, :],)
    for j in tl.static_range(1, WIDTH):
        taps = append(taps, tl.load(pointers + j * weight_k, mask=has_channel, other=0.0).to(COMPUTE)[None, :])
    return taps


@triton.jit
def neighbours(window, flags, WIDTH: tl.constexpr, HOLD: tl.constexpr):
    """What the taps of the frame in the middle see: one that is not there is zero already, or the frame itself."""
    here = window[WIDTH // 2]
    seen = (tl.where(flags[0], window[0], here) if HOLD else window[0],)
    for j in tl.static_range(1, WIDTH):
        seen = append(seen, tl.where(flags[j], window[j], here) if HOLD and j != WIDTH // 2 else window[j])
    return seen


@triton.jit
def convolve(taps, seen, start, WIDTH: tl.constexpr):
    """start + sum_j taps_j seen_j."""
    total = start + taps[0] * seen[0]
    for j in tl.static_range(1, WIDTH):
        total += taps[j] * seen[j]
    return total


@triton.jit(do_not_specialize=("num_frames", "num_tokens", "frames_each", "x_b", "x_t", "x_n", "mask_b", "mask_t"))
def temporal_conv_fwd_kernel(
    p_x, p_weight, p_bias, p_mask,  # (B, T, N, C), (C, k), (C,) or null, (B, T) or null
    p_out,  # (B, T, N, C), contiguous
    num_frames, num_tokens, frames_each,  # of a clip, of a frame, of a program
    x_b, x_t, x_n, x_c, weight_c, weight_k, bias_c, mask_b, mask_t,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, HOLD: tl.constexpr, COMPUTE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes a tile through a run of frames; those beside one another take the channels of the same tokens."""
    radius: tl.constexpr = WIDTH // 2
    unroll: tl.constexpr = WIDTH if WIDTH <= 5 else 1
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    item, first, token = place_of(tl.program_id(0) // blocks, num_frames, num_tokens, frames_each, BLOCK_N)
    channels = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    tokens = token + tl.arange(0, BLOCK_N)
    has_channel = channels < CHANNELS
    inside = (tokens < num_tokens)[:, None] & has_channel[None, :]
    x_rows = (item * x_b + tokens.to(tl.int64) * x_n) * UNIT
    p_x += x_rows[:, None] + (channels.to(tl.int64) * x_c)[None, :]  # (BLOCK_N, BLOCK_C), as are all tiles below
    p_out += ((item * num_frames * num_tokens + tokens) * CHANNELS)[:, None] + channels[None, :]
    if p_mask is not None:
        p_mask += item * mask_b
    taps = load_taps(p_weight, channels, has_channel, weight_c, weight_k, WIDTH, COMPUTE)
    start = tl.zeros((1, BLOCK_C), COMPUTE)
    if p_bias is not None:
        start += tl.load(p_bias + channels.to(tl.int64) * bias_c, mask=has_channel, other=0.0).to(COMPUTE)[None, :]
    window, flags = (tl.zeros((BLOCK_N, BLOCK_C), COMPUTE),), (first < 0,)
    for j in tl.static_range(-radius, radius):
        there = is_present(p_mask, first + j, num_frames, mask_t)
        ahead = tl.load(p_x + (first + j).to(tl.int64) * x_t * UNIT, mask=inside & there, other=0.0)
        window, flags = append(window, ahead.to(COMPUTE)), append(flags, there)
    steps = tl.minimum(frames_each, num_frames - first)
    for step in tl.range(0, steps, loop_unroll_factor=unroll):
        frame = first + step
        there = is_present(p_mask, frame + radius, num_frames, mask_t)
        ahead = tl.load(p_x + (frame + radius).to(tl.int64) * x_t * UNIT, mask=inside & there, other=0.0)
        window, flags = move_on(window, ahead.to(COMPUTE)), move_on(flags, there)
        total = convolve(taps, neighbours(window, flags, WIDTH, HOLD), start, WIDTH)
        out = tl.where(flags[radius], gelu(total, "gelu"), 0.0)
        tl.store(p_out + frame.to(tl.int64) * num_tokens * CHANNELS, out.to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def correlate(taps, grads, flags, WIDTH: tl.constexpr, HOLD: tl.constexpr):
    """Gradient of the frame in the middle of ``grads``: of all taps that saw it, and of its own that held it."""
    radius: tl.constexpr = WIDTH // 2
    here = grads[radius]
    total = taps[radius] * here
    for j in tl.static_range(WIDTH):
        if j != radius:
            total += taps[j] * grads[WIDTH - 1 - j]
            if HOLD:
                total += taps[j] * tl.where(flags[j], 0.0, here)
    return tl.where(flags[radius], total, 0.0)


@triton.jit(
    do_not_specialize=(
        "num_tasks", "tasks_each", "num_frames", "num_tokens", "frames_each", "grad_out_b", "grad_out_t", "grad_out_n",
        "x_b", "x_t", "x_n", "mask_b", "mask_t",
    )
)  # fmt: skip
def temporal_conv_bwd_kernel(
    p_grad_out, p_x, p_weight, p_bias, p_mask,  # (B, T, N, C) twice, (C, k), (C,) or null, (B, T) or null
    p_grad_x,  # (B, T, N, C), contiguous; or null
    p_sums,  # (programs of a block of channels, k or 0 + bias or not, C): sums over their frames and tokens; or null
    num_tasks, tasks_each,  # tiles and runs of frames of a block of channels; of a program
    num_frames, num_tokens, frames_each,  # of a clip, of a frame, of a task
    grad_out_b, grad_out_t, grad_out_n, grad_out_c, x_b, x_t, x_n, x_c, weight_c, weight_k, bias_c, mask_b, mask_t,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, HOLD: tl.constexpr, SUM_TAPS: tl.constexpr, SUM_BIAS: tl.constexpr,
    COMPUTE: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes a block of channels through its tasks and keeps the sums of the weights' gradients in registers.

    A step computes a frame's pre-activation again and its gradient; the gradient of x follows ``radius`` frames behind.
    """
    radius: tl.constexpr = WIDTH // 2
    reach: tl.constexpr = radius if p_grad_x is not None else 0
    unroll: tl.constexpr = WIDTH if WIDTH <= 5 else 1
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    channels = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(0) // blocks
    has_channel = channels < CHANNELS
    taps = load_taps(p_weight, channels, has_channel, weight_c, weight_k, WIDTH, COMPUTE)
    start = tl.zeros((1, BLOCK_C), COMPUTE)
    if p_bias is not None:
        start += tl.load(p_bias + channels.to(tl.int64) * bias_c, mask=has_channel, other=0.0).to(COMPUTE)[None, :]
    nothing = tl.zeros((BLOCK_N, BLOCK_C), COMPUTE)
    tap_sums, bias_sum = (nothing,) * WIDTH, nothing
    for task in range(part * tasks_each, tl.minimum((part + 1) * tasks_each, num_tasks)):
        item, first, token = place_of(tl.full((), 0, tl.int32) + task, num_frames, num_tokens, frames_each, BLOCK_N)
        last = tl.minimum(first + frames_each, num_frames)
        tokens = token + tl.arange(0, BLOCK_N)
        inside = (tokens < num_tokens)[:, None] & has_channel[None, :]
        wide = tokens.to(tl.int64)
        p_frames = p_x + ((item * x_b + wide * x_n) * UNIT)[:, None] + (channels.to(tl.int64) * x_c)[None, :]
        p_grads = p_grad_out + ((item * grad_out_b + wide * grad_out_n) * UNIT)[:, None]
        p_grads += (channels.to(tl.int64) * grad_out_c)[None, :]
        p_item_mask = p_mask
        if p_mask is not None:
            p_item_mask += item * mask_b
        begin = tl.maximum(first - reach, 0)
        end = tl.minimum(last + reach, num_frames)
        # Frames from begin - radius on, their flags from begin - 2 radius on: each with a place for the first to leave.
        window, flags, grads = (nothing,), (first < 0,), (nothing,) * WIDTH
        for j in tl.static_range(-2 * radius, radius):
            there = is_present(p_item_mask, begin + j, num_frames, mask_t)
            flags = append(flags, there)
            if j >= -radius:
                ahead = tl.load(p_frames + (begin + j).to(tl.int64) * x_t * UNIT, mask=inside & there, other=0.0)
                window = append(window, ahead.to(COMPUTE))
        for step in tl.range(0, end - begin, loop_unroll_factor=unroll):
            frame = begin + step
            there = is_present(p_item_mask, frame + radius, num_frames, mask_t)
            ahead = tl.load(p_frames + (frame + radius).to(tl.int64) * x_t * UNIT, mask=inside & there, other=0.0)
            window, flags = move_on(window, ahead.to(COMPUTE)), move_on(flags, there)
            is_here = flags[2 * radius]
            incoming = tl.load(
                p_grads + frame.to(tl.int64) * grad_out_t * UNIT, mask=inside & is_here, other=0.0
            )  # fmt: skip
            seen = neighbours(window, flags[radius:], WIDTH, HOLD)
            total = convolve(taps, seen, start, WIDTH)
            grad = incoming.to(COMPUTE) * gelu_derivative(total, "gelu")  # 0 where the frame is not there
            own = tl.where((frame >= first) & (frame < last), grad, 0.0)
            if SUM_TAPS:
                added = (tap_sums[0] + own * seen[0],)
                for j in tl.static_range(1, WIDTH):
                    added = append(added, tap_sums[j] + own * seen[j])
                tap_sums = added
            if SUM_BIAS:
                bias_sum += own
            if p_grad_x is not None:
                grads = move_on(grads, grad)
                behind = frame - radius
                grad_x = correlate(taps, grads, flags, WIDTH, HOLD)
                place = ((item * num_frames + behind) * num_tokens + wide) * CHANNELS
                tl.store(
                    p_grad_x + place[:, None] + channels[None, :],
                    grad_x.to(p_grad_x.dtype.element_ty),
                    mask=inside & (behind >= first),
                )
        if p_grad_x is not None:
            for j in tl.static_range(radius):
                grads, flags = move_on(grads, nothing), move_on(flags, first < 0)
                behind = end - radius + j
                grad_x = correlate(taps, grads, flags, WIDTH, HOLD)
                place = ((item * num_frames + behind) * num_tokens + wide) * CHANNELS
                tl.store(
                    p_grad_x + place[:, None] + channels[None, :],
                    grad_x.to(p_grad_x.dtype.element_ty),
                    mask=inside & (behind >= first) & (behind < last),
                )
    if p_sums is not None:
        p_sums += part.to(tl.int64) * ((WIDTH if SUM_TAPS else 0) + (1 if SUM_BIAS else 0)) * CHANNELS + channels
        if SUM_TAPS:
            for j in tl.static_range(WIDTH):
                tl.store(p_sums + j * CHANNELS, tl.sum(tap_sums[j], 0), mask=has_channel)
            p_sums += WIDTH * CHANNELS
        if SUM_BIAS:
            tl.store(p_sums, tl.sum(bias_sum, 0), mask=has_channel)


@triton.jit(do_not_specialize=("parts",))
def temporal_conv_sum_kernel(
    p_sums,  # (parts, k or 0 + bias or not, C)
    p_grad_weight, p_grad_bias,  # (C, k), (C,), contiguous, or null
    parts,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SUM_TAPS: tl.constexpr, SUM_BIAS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program adds the parts of some channels of a tap, or of the bias, always in the same order."""
    rows: tl.constexpr = (WIDTH if SUM_TAPS else 0) + (1 if SUM_BIAS else 0)
    row = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_channel = channels < CHANNELS
    p_sums += row * CHANNELS + channels
    sums = tl.zeros((BLOCK_P, BLOCK_C), COMPUTE)
    for begin in range(0, parts, BLOCK_P):
        part = begin + tl.arange(0, BLOCK_P)
        pointers = p_sums[None, :] + (part.to(tl.int64) * rows * CHANNELS)[:, None]
        sums += tl.load(pointers, mask=(part < parts)[:, None] & has_channel[None, :], other=0.0)
    total = tl.sum(sums, 0)  # (BLOCK_C,)
    if SUM_TAPS:  # noqa: SIM102, decided by the compiler
        if row < WIDTH:
            tl.store(
                p_grad_weight + channels * WIDTH + row, total.to(p_grad_weight.dtype.element_ty), mask=has_channel
            )  # fmt: skip
    if SUM_BIAS:  # noqa: SIM102
        if row == rows - 1:
            tl.store(p_grad_bias + channels, total.to(p_grad_bias.dtype.element_ty), mask=has_channel)
