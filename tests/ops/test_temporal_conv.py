"""temporal_conv: the definition against loops and F.conv1d, held and missing frames, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from motarfuse import ops
from tests.ops.operator_cases import check_gradients, check_half_types, check_strides, normal
from tests.tolerance import assert_close


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_what_a_masked_frame_holds_is_never_read(width: int, dtype: torch.dtype) -> None:
    c = {name: tensor.to(dtype) for name, tensor in case(width=width).items()}
    absent = ~MASK[..., None, None]
    results = []
    for hidden in (0.0, torch.nan, torch.inf):
        leaves = [
            tensor.clone().requires_grad_() for tensor in (c["x"].masked_fill(absent, hidden), c["weight"], c["bias"])
        ]
        got = masked(*leaves)
        assert torch.equal(got[~MASK], torch.zeros_like(got[~MASK]))
        incoming = torch.ones_like(got).masked_fill(absent, hidden)
        gradients = torch.autograd.grad(got, leaves, incoming)
        assert torch.equal(gradients[0][~MASK], torch.zeros_like(gradients[0][~MASK]))
        results.append([got.detach(), *gradients])
    for spoilt in results[1:]:
        for one, clean in zip(spoilt, results[0], strict=True):
            assert torch.equal(one, clean)


def holes(frames: int) -> torch.Tensor:
    """A mask for two clips: the first has holes, the second only a frame in the middle."""
    return torch.stack([torch.arange(frames) % 3 != 2, torch.arange(frames) == frames // 2])


@pytest.mark.parametrize("missing", ["hold", "zero"])
@pytest.mark.parametrize("with_holes", [True, False])
@pytest.mark.parametrize(("frames", "width"), [(1, 3), (5, 1), (5, 3), (2, 5)])
def test_gradients_of_both_orders(frames: int, width: int, with_holes: bool, missing: str) -> None:
    mask = holes(frames) if with_holes else None

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.temporal_conv(x, weight, bias, mask, missing=missing)

    check_gradients(call, *case(frames, width).values())


def derivatives(x: torch.Tensor, *others: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
    """The result, a tangent, gradients, and gradients of the sum of the gradients' squares."""
    leaves = [x, *others]
    names = ["x", "weight", "bias"][: len(leaves)]
    draw = normal(1, x.dtype)
    tangents, incoming = [draw(*leaf.shape) for leaf in leaves], draw(*x.shape)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf, tangent) for leaf, tangent in zip(leaves, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(ops.temporal_conv(*duals, **options)).tangent
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = ops.temporal_conv(*leaves, **options)
    first = torch.autograd.grad(out, leaves, incoming, create_graph=True)
    second = torch.autograd.grad([one.square().sum() for one in first], leaves)
    found = {"out": out.detach(), "tangent": tangent}
    found |= {f"grad_{name}": one.detach() for name, one in zip(names, first, strict=True)}
    return found | {f"second_{name}": one for name, one in zip(names, second, strict=True)}


@pytest.mark.parametrize("missing", ["hold", "zero"])
@pytest.mark.parametrize("with_holes", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("frames", "width"), [(1, 3), (5, 1), (2, 3), (5, 3), (2, 5), (7, 5)])
def test_float32_on_a_cpu_keeps_the_definition_at_every_order(
    frames: int, width: int, with_bias: bool, with_holes: bool, missing: str
) -> None:
    """It is PyTorch's convolution there; sums over taps are another way, which torch.func transforms take."""
    inputs = [tensor.float() for tensor in case(frames, width).values()][: 3 if with_bias else 2]
    mask = holes(frames) if with_holes else None
    options: dict[str, Any] = {"frame_mask": mask, "missing": missing, "impl": "reference"}
    exact = derivatives(*(tensor.double() for tensor in inputs), **options)
    # Gradients are sums of many numbers that cancel. No float32 result is the eager one: the exact one, rounded, is.
    for name, value in derivatives(*inputs, **options).items():
        assert_close(name, value, exact[name].float(), exact[name], scale=16 * exact[name].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_holes", [True, False])
def test_func_transforms_see_through_it(with_holes: bool, dtype: torch.dtype) -> None:
    inputs = tuple(tensor.to(dtype) for tensor in case().values())

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.temporal_conv(x, weight, bias, MASK if with_holes else None)

    for k, one in enumerate(inputs):
        batched = torch.func.vmap(call, tuple(0 if k == other else None for other in range(3)))
        got = batched(*(torch.stack([one, 2 * one]) if k == other else kept for other, kept in enumerate(inputs)))
        for item, factor in enumerate((1, 2)):
            torch.testing.assert_close(
                got[item], call(*(factor * one if k == other else kept for other, kept in enumerate(inputs)))
            )
        torch.testing.assert_close(torch.func.jacfwd(call, k)(*inputs), torch.func.jacrev(call, k)(*inputs))
    masks = torch.stack([MASK, ~MASK])
    x, weight, bias = inputs
    got = torch.func.vmap(lambda mask: ops.temporal_conv(x, weight, bias, mask))(masks)
    torch.testing.assert_close(got[1], ops.temporal_conv(x, weight, bias, ~MASK))


@pytest.mark.parametrize("with_holes", [True, False])
@pytest.mark.parametrize("frames", [1, 5])
def test_it_compiles_and_exports_for_any_batch(frames: int, with_holes: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return call(*given)

    def call(*given: torch.Tensor) -> torch.Tensor:
        return ops.temporal_conv(*given, impl="reference")

    def given(batch: int) -> tuple[torch.Tensor, ...]:
        tensors = [tensor.float() for tensor in case(frames, batch=batch).values()]
        return (*tensors, holes(frames).repeat(batch, 1)[:batch]) if with_holes else tuple(tensors)

    batch = torch.export.Dim("batch", min=2)
    sizes = ({0: batch}, None, None, {0: batch})[: len(given(2))]
    program = torch.export.export(Module(), given(3), dynamic_shapes=(sizes,))
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (2, 5):
        tensors = given(size)
        leaves = [[tensor.clone().requires_grad_() for tensor in tensors[:3]] for _ in range(2)]
        expected = call(*leaves[0], *tensors[3:])
        got = compiled(*leaves[1], *tensors[3:])
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(program.module()(*tensors), expected)
        found = [torch.autograd.grad(out.square().sum(), one) for out, one in zip((expected, got), leaves, strict=True)]
        torch.testing.assert_close(found[1], found[0])
    # Not a convolution, which a GPU rounds to TF32 if the graph is moved there.
    assert not any("conv" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [1, 5])
def test_an_adapter_that_starts_changes_nothing_before_gelu(frames: int, dtype: torch.dtype) -> None:
    """Bit for bit: side taps zero, the middle one 1, bias zero."""
    x = case(frames)["x"].to(dtype)
    weight = torch.tensor([0.0, 1.0, 0.0], dtype=dtype).expand(4, 3)
    for mask in (None, holes(frames)):
        got = ops.temporal_conv(x, weight, torch.zeros(4, dtype=dtype), mask)
        there = torch.ones(2, frames, dtype=torch.bool) if mask is None else mask
        assert torch.equal(got, torch.where(there[..., None, None], ops.bias_gelu(x, None), 0.0))


@pytest.mark.parametrize("missing", ["hold", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "frames"), [(0, 3), (2, 0), (2, 1), (2, 2)])
def test_short_and_empty_clips(batch: int, frames: int, dtype: torch.dtype, missing: str) -> None:
    c = {name: tensor.to(dtype).requires_grad_() for name, tensor in case(frames, 5, batch).items()}
    mask = torch.ones(batch, frames, dtype=torch.bool)
    got = ops.temporal_conv(**c, missing=missing)
    torch.testing.assert_close(got, by_loops(**c, mask=mask, missing=missing))
    for gradient in torch.autograd.grad(got.sum(), list(c.values())):
        assert gradient.isfinite().all()


def test_other_strides_half_types_and_no_bias() -> None:
    c = case()
    check_strides(masked, *c.values())
    check_strides(ops.temporal_conv, *c.values())
    check_half_types(masked, *c.values())
    check_half_types(ops.temporal_conv, *c.values())
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
