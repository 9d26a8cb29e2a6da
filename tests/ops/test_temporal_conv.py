"""temporal_conv: the definition against loops and F.conv1d, held and missing frames, its errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from motarfuse import ops
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal


def case(frames: int = 5, width: int = 3, batch: int = 2) -> dict[str, Any]:
    draw = normal(0)
    return {"x": draw(batch, frames, 3, 4), "weight": draw(4, width), "bias": draw(4)}


def by_loops(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor, missing: str
) -> torch.Tensor:
    out = torch.zeros_like(x)
    frames, radius = x.shape[1], weight.shape[1] // 2
    for b in range(x.shape[0]):
        for t in range(frames):
            if not mask[b, t]:
                continue
            total = bias.expand_as(x[b, t]).clone()
            for j in range(-radius, radius + 1):
                there = 0 <= t + j < frames and mask[b, t + j]
                instead = x[b, t] if missing == "hold" else torch.zeros_like(x[b, t])
                total += weight[:, j + radius] * (x[b, t + j] if there else instead)
            out[b, t] = total * 0.5 * (1 + torch.erf(total / 2**0.5))
    return out


def masked(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, missing: str = "hold") -> torch.Tensor:
    return ops.temporal_conv(x, weight, bias, MASK, missing=missing)


MASK = torch.tensor([[True, True, False, True, True], [False, True, True, False, False]])


@pytest.mark.parametrize("missing", ["hold", "zero"])
@pytest.mark.parametrize("width", [1, 3, 5, 13])
@pytest.mark.parametrize("holes", [True, False])
def test_it_is_what_loops_over_frames_compute(width: int, missing: str, holes: bool) -> None:
    c = case(width=width)
    mask = MASK if holes else torch.ones_like(MASK)
    got = ops.temporal_conv(**c, frame_mask=mask if holes else None, missing=missing)
    torch.testing.assert_close(got, by_loops(**c, mask=mask, missing=missing), rtol=1e-12, atol=1e-12)


def test_with_zeros_for_missing_frames_it_is_conv1d() -> None:
    c = case()
    rows = c["x"].permute(0, 2, 3, 1).flatten(0, 1)
    expected = F.gelu(F.conv1d(rows, c["weight"][:, None], c["bias"], padding=1, groups=4))
    got = ops.temporal_conv(**c, missing="zero").permute(0, 2, 3, 1).flatten(0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_static_clip_gives_in_each_frame_what_its_image_gives() -> None:
    c = case(width=5)
    image = c["x"][:, :1]
    single = ops.temporal_conv(image, c["weight"], c["bias"])
    clip = ops.temporal_conv(image.expand(-1, 5, -1, -1), c["weight"], c["bias"], MASK)
    torch.testing.assert_close(clip[MASK], single.expand(-1, 5, -1, -1)[MASK], rtol=1e-12, atol=1e-12)


def test_what_a_masked_frame_holds_is_never_read() -> None:
    c = case()
    spoilt = c["x"].masked_fill(~MASK[..., None, None], torch.nan)
    inputs = [tensor.clone().requires_grad_() for tensor in (spoilt, c["weight"], c["bias"])]
    got = masked(*inputs)
    assert torch.equal(got, ops.temporal_conv(**c, frame_mask=MASK))
    assert torch.equal(got[~MASK], torch.zeros_like(got[~MASK]))
    got.square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert inputs[0].grad is not None
    assert torch.equal(inputs[0].grad[~MASK], torch.zeros_like(inputs[0].grad[~MASK]))


@pytest.mark.parametrize("missing", ["hold", "zero"])
def test_gradients(missing: str) -> None:
    check_gradients(partial(masked, missing=missing), *case().values())


@pytest.mark.parametrize(("batch", "frames"), [(0, 3), (2, 0), (2, 1), (2, 2)])
def test_short_and_empty_clips(batch: int, frames: int) -> None:
    c = case(frames, 5, batch)
    mask = torch.ones(batch, frames, dtype=torch.bool)
    torch.testing.assert_close(ops.temporal_conv(**c), by_loops(**c, mask=mask, missing="hold"))


def test_other_strides_half_types_and_no_bias() -> None:
    c = case()
    check_strides(masked, *c.values())
    check_half_types(masked, *c.values())
    zero = torch.zeros(4).double()
    assert torch.equal(ops.temporal_conv(c["x"], c["weight"]), ops.temporal_conv(c["x"], c["weight"], zero))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(2, 5, 4)}, ValueError, r"x must be \(B, T, N, C\)"),
    ({"weight": torch.zeros(4, 1, 3)}, ValueError, r"weight must be \(C, k\), 2 dimensions"),
    ({"weight": torch.zeros(5, 3)}, ValueError, r"weight must be \(C, k\) = \(4, 3\)"),
    ({"weight": torch.zeros(4, 2)}, ValueError, "k odd"),
    ({"weight": torch.zeros(4, 0)}, ValueError, "k odd"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias must be \(C,\) = \(4,\)"),
    ({"bias": torch.zeros(4).double()}, TypeError, "float64 cannot be mixed"),
    ({"frame_mask": torch.ones(2, 5)}, TypeError, "frame_mask has dtype float32; supported: bool"),
    ({"frame_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"frame_mask must be \(B, T\) = \(2, 5\)"),
    ({"frame_mask": torch.ones(2, 5, dtype=torch.bool, device="meta")}, ValueError, "frame_mask is on meta"),
    ({"missing": "repeat"}, ValueError, "missing must be one of hold, zero, got 'repeat'"),
    ({"impl": "x"}, ValueError, "no impl 'x'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_call_says_what_was_got_and_what_is_supported(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.temporal_conv(**({name: tensor.float() for name, tensor in case().items()} | change))
