"""motion_attention's CUDA backward compiled for the host (tests/ops/emulation): its logic, without a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from motarfuse import reference
from tests.ops import emulation
from tests.ops.operator_cases import HALVES, normal
from tests.tolerance import assert_close

NAMES = ("query", "key", "value", "motion_query", "motion_key", "motion_scale", "key_bias")
SCHEMA = (
    "(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? motion_query, Tensor? motion_key,"
    " Tensor? motion_scale, Tensor? key_bias, Tensor out, Tensor lse, float scale, bool packed, int needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
REGISTRATION = """
#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_IMPL(motarfuse, CPU, library) {
  library.impl("motion_attention_backward_emulated", TORCH_BOX(&motarfuse::motion_attention_backward_cuda));
}

// What a warp does, from and to the registers of its lanes.
template <class T>
void multiply(const uint32_t (*a)[4], const uint32_t (*b)[2], float (*sums)[4]) {
  emulation::launch(1, 32, 0, [&] {
    const unsigned lane = threadIdx.x;
    motarfuse::multiply_add<T>(sums[lane], a[lane], b[lane][0], b[lane][1]);
  });
}
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT void emulated_product(bool half, const uint32_t (*a)[4], const uint32_t (*b)[2], float (*sums)[4]) {
  half ? multiply<motarfuse::Half>(a, b, sums) : multiply<motarfuse::BFloat16>(a, b, sums);
}
// A tile goes through store_tile into rows of `row_bytes` bytes, and back by the addresses that the lanes give.
EXPORT void emulated_matrices(const uint32_t (*stored)[4], const uint32_t* addresses, bool transposed, int row_bytes,
                              uint32_t (*loaded)[4], unsigned char* memory) {
  emulation::launch(1, 32, 16 * row_bytes, [&] {
    const unsigned lane = threadIdx.x;
    motarfuse::store_tile(0, row_bytes, stored[lane]);
    __syncthreads();
    if (transposed) {
      motarfuse::load_transposed(loaded[lane], addresses[lane]);
    } else {
      motarfuse::load_matrices(loaded[lane], addresses[lane]);
    }
    std::memcpy(memory, emulation::machine.shared.data(), 16 * row_bytes);
  });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> ctypes.CDLL:
    torch.library.define("motarfuse::motion_attention_backward_emulated", SCHEMA)
    folder = tmp_path_factory.mktemp("emulation")
    return emulation.load("motion_attention_backward", repository / "csrc", folder, REGISTRATION)


@pytest.fixture(autouse=True)
def h100(library: ctypes.CDLL) -> Iterator[None]:
    yield
    library.set_shared_memory(227 << 10, 228 << 10)


class Case(NamedTuple):
    """A call's tensors by name (None where one is not given), the gradient of its result, and its scale."""

    tensors: dict[str, Any]
    grad_out: torch.Tensor
    scale: float


def case(
    queries: int,
    keys: int,
    width: int,
    channels: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    heads: int = 2,
    shared: bool = True,
    bias: int = 3,
    hidden: bool = False,
    half_motion: bool = False,
    scaled: bool = True,
) -> Case:
    """Values and ``grad_out`` contain the motion, so that its scale's gradient is no sum that cancels.

    Args:
        bias: Dimensions of the key bias: 3, 2, or 0 for none.
        hidden: Hides some keys, and every key of the last (batch, head).
        half_motion: Motion, scale and bias in ``dtype`` and not in float32.
        scaled: With a motion scale.
    """
    draw = normal(queries * 1000 + keys * 10 + width + channels)
    motion_heads = 1 if shared else heads
    motion_query, motion_key = draw(batch, motion_heads, queries, channels), draw(batch, motion_heads, keys, channels)
    value, grad_out = draw(batch, heads, keys, width), draw(batch, heads, queries, width)
    value[..., :channels] += motion_key
    grad_out[..., :channels] += motion_query
    tensors: dict[str, Any] = dict.fromkeys(NAMES)
    tensors |= {"query": draw(batch, heads, queries, width), "key": draw(batch, heads, keys, width), "value": value}
    for name in NAMES[:3]:
        tensors[name] = tensors[name].to(dtype)
    extra = dtype if half_motion else torch.float32
    if channels:
        tensors |= {"motion_query": motion_query.to(extra), "motion_key": motion_key.to(extra)}
        if scaled:
            tensors["motion_scale"] = (draw(heads).abs() / 2 + 0.1).to(extra)
    if bias:
        key_bias = draw(*((batch, heads, keys) if bias == 3 else (batch, keys))).to(extra)
        if hidden:
            key_bias[..., 1::3] = -math.inf
            key_bias[-1, ..., :] = -math.inf if bias == 2 else key_bias[-1]
            if bias == 3:
                key_bias[-1, -1] = -math.inf
        tensors["key_bias"] = key_bias
    return Case(tensors, grad_out.to(dtype), width**-0.5)


def gradients(c: Case, convert: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The reference's result and gradients of a case's tensors after ``convert``."""
    inputs = {
        name: convert(tensor).detach().requires_grad_() for name, tensor in c.tensors.items() if tensor is not None
    }
    out = reference.motion_attention(**inputs, scale=c.scale)
    grads = torch.autograd.grad(out, list(inputs.values()), convert(c.grad_out), allow_unused=True)
    return out.detach(), dict(zip(inputs, grads, strict=True))


def log_sum(c: Case) -> torch.Tensor:
    """What the forward saves: log2 of the sum of exponentials, infinite where every key is hidden."""
    t: dict[str, Any] = {name: None if tensor is None else tensor.double() for name, tensor in c.tensors.items()}
    scores = c.scale * t["query"] @ t["key"].mT
    if t["motion_query"] is not None:
        motion = t["motion_query"] @ t["motion_key"].mT
        scores = scores + (motion if t["motion_scale"] is None else t["motion_scale"][:, None, None] * motion)
    if t["key_bias"] is not None:
        scores = scores + (t["key_bias"][:, None] if t["key_bias"].dim() == 2 else t["key_bias"])[:, :, None]
    lse = scores.logsumexp(-1) / math.log(2)
    return torch.where(lse.isneginf(), math.inf, lse).float().contiguous()


def backward(
    c: Case, out: torch.Tensor, lse: torch.Tensor, *, packed: bool = False, needs: int = 127
) -> dict[str, torch.Tensor]:
    operator = torch.ops.motarfuse.motion_attention_backward_emulated.default
    got = operator(c.grad_out, *c.tensors.values(), out, lse, c.scale, packed, needs)
    return dict(zip(NAMES, got, strict=True))


def check(c: Case, *, packed: bool = False) -> dict[str, torch.Tensor]:
    """Every gradient keeps the rule, with the query's precision for the float32 ones too; returns them."""
    _, exact = gradients(c, torch.Tensor.double)
    eager_out, eager = gradients(c, lambda tensor: tensor)
    got = backward(c, eager_out.transpose(1, 2).contiguous().transpose(1, 2), log_sum(c), packed=packed)
    results = dict(got)
    if packed:
        assert got["query"].is_contiguous()
        assert got["key"].shape == got["value"].shape == (0,)
        results |= dict(zip(NAMES[:3], got["query"].permute(2, 0, 3, 1, 4).unbind(0), strict=True))
    for name, tensor in c.tensors.items():
        if tensor is None:
            assert got[name].shape == (0,), name
        else:
            assert_close(name, results[name], eager[name], exact[name], dtype=c.grad_out.dtype)
    return got


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "channels"),
    [
        (1, 1, 16, 1),
        (7, 16, 24, 8),
        (16, 17, 72, 10),
        (17, 7, 64, 16),
        (63, 64, 64, 10),
        (64, 63, 80, 16),
        (65, 65, 128, 8),
        (129, 129, 64, 10),
        (138, 138, 64, 12),
        (211, 211, 64, 10),
        (8, 128, 64, 10),
        (5, 256, 32, 16),
        (256, 33, 96, 1),
        (129, 300, 16, 0),
    ],
)
def test_lengths_widths_and_channels_keep_the_rule(
    dtype: torch.dtype, queries: int, keys: int, width: int, channels: int
) -> None:
    check(case(queries, keys, width, channels, dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bias", [0, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [0, 10, 16])
def test_what_is_shared_by_heads_is_summed_over_them(
    dtype: torch.dtype, bias: int, shared: bool, channels: int
) -> None:
    check(case(17, 40, 32, channels, dtype, batch=2, heads=3, shared=shared, bias=bias, half_motion=bias == 2))
    check(case(40, 17, 24, channels, dtype, batch=3, heads=1, shared=shared, bias=bias, scaled=False))


def test_sums_over_many_heads_and_a_large_batch_keep_the_rule() -> None:
    for batch, heads in ((40, 2), (2, 40)):
        check(case(5, 9, 16, 3, torch.float16, batch=batch, heads=heads, bias=2))


@pytest.mark.parametrize("channels", [10, 16])
@pytest.mark.parametrize("bias", [2, 3])
def test_hidden_keys_and_rows_have_zero_gradients(bias: int, channels: int) -> None:
    for queries, keys in ((33, 50), (7, 24), (129, 129)):
        c = case(queries, keys, 64, channels, torch.float16, batch=2, bias=bias, hidden=True)
        got = check(c)
        assert torch.equal(got["query"][-1, -1], torch.zeros(queries, 64, dtype=torch.float16))
        for name in ("key", "value"):
            assert torch.equal(got[name][0, :, 1], torch.zeros(2, 64, dtype=torch.float16))
        assert got["key_bias"][..., 1].eq(0).all()


def _packed(c: Case) -> Case:
    qkv = torch.stack([c.tensors[name].transpose(1, 2) for name in NAMES[:3]], dim=2).contiguous()
    return c._replace(tensors=c.tensors | dict(zip(NAMES[:3], qkv.permute(2, 0, 3, 1, 4).unbind(0), strict=True)))


@pytest.mark.parametrize(("tokens", "width"), [(129, 64), (50, 72), (16, 24)])
def test_a_packed_projection_gets_one_packed_gradient(tokens: int, width: int) -> None:
    c = _packed(case(tokens, tokens, width, 10, torch.bfloat16, batch=2))
    packed, apart = check(c, packed=True), check(c)
    for i, name in enumerate(NAMES[:3]):
        assert torch.equal(packed["query"][:, :, i].transpose(1, 2), apart[name])
    for name in NAMES[3:]:
        assert torch.equal(packed[name], apart[name])


def _odd_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows that are not whole words of 16 bytes."""
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def _columns_apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def _one_for_all(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("layout", [_odd_rows, _columns_apart, _one_for_all], ids=lambda layout: layout.__name__[1:])
def test_strides_change_nothing(layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    c = case(35, 35, 72, 10, torch.float16, batch=2, shared=False)
    odd = {name: layout(tensor) for name, tensor in c.tensors.items() if tensor is not None and tensor.dim() > 1}
    same = {name: tensor.contiguous() for name, tensor in odd.items()}
    grad_out, out = layout(c.grad_out), layout(normal(1, torch.float16)(2, 2, 35, 72))
    lse = log_sum(c._replace(tensors=c.tensors | same))
    got = backward(Case(c.tensors | odd, grad_out, c.scale), out, lse)
    wanted = backward(Case(c.tensors | same, grad_out.contiguous(), c.scale), out.contiguous(), lse)
    for name in NAMES:
        assert torch.equal(got[name], wanted[name]), name


def _call(c: Case) -> dict[str, Any]:
    return {"out": gradients(c, lambda tensor: tensor)[0], "lse": log_sum(c)}


@pytest.mark.parametrize("channels", [0, 10, 16])
@pytest.mark.parametrize("shape", [(40, 70, 64), (8, 128, 16)], ids=str)
def test_only_what_is_wanted_is_computed_and_it_is_the_same(shape: tuple[int, int, int], channels: int) -> None:
    c = case(*shape, channels, torch.bfloat16)
    call = _call(c)
    whole = backward(c, **call)
    for bit, name in enumerate(NAMES):
        got = backward(c, **call, needs=1 << bit)
        assert torch.equal(got[name], whole[name]), name
        assert all(got[other].shape == (0,) for other in NAMES if other != name)
    assert all(tensor.shape == (0,) for tensor in backward(c, **call, needs=0).values())


def test_two_runs_are_equal_and_smaller_machines_stay_within_the_rule(library: ctypes.CDLL) -> None:
    c = case(129, 129, 64, 10, torch.float16)
    call = _call(c)
    first, second = backward(c, **call), backward(c, **call)
    for name in NAMES:
        assert torch.equal(first[name], second[name]), name
    for kib in (227, 163, 99, 75):
        library.set_shared_memory(kib << 10, (kib + 1) << 10)
        check(c)
        check(case(20, 500, 64, 10, torch.float16))


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]
)
def test_empty_dimensions_give_zeros(batch: int, heads: int, queries: int, keys: int) -> None:
    c = case(queries, keys, 16, 4, torch.float16, batch=batch, heads=heads, shared=False)
    out, lse = torch.zeros(batch, heads, queries, 16).half(), torch.full((batch, heads, queries), math.inf)
    for name, gradient in backward(c, out, lse).items():
        assert torch.equal(gradient, torch.zeros_like(c.tensors[name])), name


def test_motion_without_channels_has_empty_gradients_and_a_scale_that_does_nothing() -> None:
    c = case(9, 9, 16, 0, torch.float16)
    nothing = torch.zeros(1, 1, 9, 0)
    c = c._replace(tensors=c.tensors | {"motion_query": nothing, "motion_key": nothing, "motion_scale": torch.ones(2)})
    got = backward(c, **_call(c))
    assert got["motion_query"].shape == (1, 1, 9, 0)
    assert torch.equal(got["motion_scale"], torch.zeros(2))


def test_what_it_does_not_take_is_refused_with_the_reason(library: ctypes.CDLL) -> None:
    def refused(match: str, c: Case) -> None:
        shape = c.tensors["query"].shape
        with pytest.raises(RuntimeError, match=match):
            backward(c, torch.zeros(shape, dtype=c.grad_out.dtype), torch.zeros(shape[:3]))

    refused("float16 and bfloat16", case(4, 4, 16, 2, torch.float32))
    refused("at most 256 queries, got 257", case(257, 4, 16, 2, torch.float16))
    refused("widths of 8, 16, ... 128, got 12", case(4, 4, 12, 2, torch.float16))
    refused("widths of 8, 16, ... 128, got 136", case(4, 4, 136, 2, torch.float16))
    refused("scale other than 0", case(4, 4, 16, 2, torch.float16)._replace(scale=0.0))
    library.set_shared_memory(99 << 10, 100 << 10)
    refused("bytes of shared memory, a block of this device has 101376", case(256, 16, 128, 2, torch.float16))


@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [(1, 1, 16), (8, 128, 64), (33, 20, 32), (129, 129, 80), (211, 211, 64), (256, 9, 128)],
)
def test_the_backend_knows_how_much_shared_memory_a_call_needs(
    library: ctypes.CDLL, queries: int, keys: int, width: int
) -> None:
    shared_bytes = pytest.importorskip("motarfuse.ops.motion_attention_triton").shared_bytes
    c = case(queries, keys, width, 3, torch.float16, heads=1)
    call, least = _call(c), shared_bytes(queries, keys, width)
    library.set_shared_memory(least, 1 << 20)
    backward(c, **call)
    library.set_shared_memory(least - 1, 1 << 20)
    with pytest.raises(RuntimeError, match="bytes of shared memory"):
        backward(c, **call)


def _registers(matrix: torch.Tensor, place: Callable[[int, int], tuple[int, int]], count: int) -> torch.Tensor:
    """(32, count / 2) words: number ``i`` of lane ``l`` is the matrix's at ``place(l, i)``."""
    rows = [[matrix[place(lane, i)] for i in range(count)] for lane in range(32)]
    return torch.stack([torch.stack(row) for row in rows]).contiguous().view(torch.int32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_emulated_products_have_the_fragments_that_ptx_defines(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    draw = normal(3, dtype)
    a, b, sums = draw(16, 16), draw(16, 8), normal(4, torch.float32)(16, 8)

    def place_a(lane: int, i: int) -> tuple[int, int]:
        row = lane // 4 if 0 <= i < 2 or 4 <= i < 6 else lane // 4 + 8
        return row, lane % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)

    def place_b(lane: int, i: int) -> tuple[int, int]:
        return lane % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), lane // 4

    def place_c(lane: int, i: int) -> tuple[int, int]:
        return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)

    fragments = _registers(sums, place_c, 4).view(torch.float32)
    left, right = _registers(a, place_a, 8), _registers(b, place_b, 4)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (left, right, fragments)]
    library.emulated_product(ctypes.c_bool(dtype == torch.float16), *pointers)
    wanted = a.float() @ b.float() + sums
    torch.testing.assert_close(fragments, _registers(wanted, place_c, 4).view(torch.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_emulated_loads_and_stores_have_the_fragments_that_ptx_defines(library: ctypes.CDLL, transposed: bool) -> None:
    tile, row_bytes = torch.arange(256, dtype=torch.int16).view(16, 16), 48
    blocks = [(0, 0), (8, 0), (0, 8), (8, 8)]  # matrices 0 to 3 of a first operand

    def place(lane: int, i: int) -> tuple[int, int]:
        row, column = lane // 4, lane % 4 * 2 + i % 2
        return blocks[i // 2][0] + row, blocks[i // 2][1] + column

    def place_transposed(lane: int, i: int) -> tuple[int, int]:
        row, column = lane % 4 * 2 + i % 2, lane // 4
        return blocks[i // 2][0] + row, blocks[i // 2][1] + column

    stored, loaded = _registers(tile, place, 8), torch.empty(32, 4, dtype=torch.int32)
    addresses = [(blocks[lane // 8][0] + lane % 8) * row_bytes + 2 * blocks[lane // 8][1] for lane in range(32)]
    table, memory = torch.tensor(addresses, dtype=torch.int32), torch.zeros(16, row_bytes, dtype=torch.uint8)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (stored, table, loaded, memory)]
    library.emulated_matrices(pointers[0], pointers[1], ctypes.c_bool(transposed), row_bytes, *pointers[2:])
    assert torch.equal(memory[:, :32].contiguous().view(torch.int16), tile)
    assert torch.equal(loaded, _registers(tile, place_transposed if transposed else place, 8))
