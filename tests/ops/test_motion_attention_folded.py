"""motion_attention by SDPA and by xformers, with the bias folded into the head dimension: against float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from motarfuse import reference
from motarfuse.ops import motion_attention_folded as folded
from motarfuse.ops.backends import Request
from tests.ops.operator_cases import normal
from tests.tolerance import assert_close

NAMES = ("query", "key", "value", "motion_query", "motion_key", "motion_scale", "key_bias")
HALVES = (torch.float16, torch.bfloat16)
Case = dict[str, Any]
Run = Callable[..., Tensor]
# Of float32 gradients on a CPU: torch's kernel recomputes softmax from its log-sum, whose rounding is an error of the
# whole row, and has a fast exponential; by torch's own other path the same folding keeps the rule.
FLASH_ON_A_CPU = 6


def case(
    queries: int = 33,
    keys: int = 65,
    width: int = 32,
    channels: int = 5,
    *,
    batch: int = 2,
    heads: int = 3,
    dtype: torch.dtype = torch.float32,
    extra_dtype: torch.dtype | None = None,
    shared: bool = True,
    bias_per_head: bool = True,
) -> Case:
    """Query, key and value are slices of projections; some keys are hidden, and all keys of one head of one sample."""
    draw, rest = normal(0), extra_dtype or dtype
    key, value = draw(batch, keys, 2, heads, width).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    motion_heads = 1 if shared else heads
    bias = draw(batch, heads, keys) if bias_per_head else draw(batch, keys)
    bias[:, ..., 1::7] = -torch.inf
    bias[-1, -1] = -torch.inf
    if not bias_per_head:
        bias[-1] = -torch.inf
    return {
        "query": draw(batch, queries, heads, width).to(dtype).transpose(1, 2),
        "key": key,
        "value": value,
        "motion_query": (0.5 * draw(batch, motion_heads, queries, channels)).to(rest),
        "motion_key": (0.5 * draw(batch, motion_heads, keys, channels)).to(rest),
        "motion_scale": torch.linspace(-0.5, 3, heads, dtype=torch.float64).to(rest),
        "key_bias": bias.to(rest),
    }


def with_gradients(run: Run, tensors: Case, scale: float, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The output and all gradients, by name, of a sum with random factors; computed from copies of another dtype."""
    leaves = {
        name: tensor if tensor is None else (tensor.to(dtype) if dtype else tensor).detach().requires_grad_()
        for name, tensor in tensors.items()
    }
    out = run(**leaves, scale=scale)
    incoming = normal(5)(*out.shape).to(tensors["query"].dtype).to(out.dtype)
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(out, list(given.values()), incoming)
    return {"out": out.detach(), **dict(zip(given, gradients, strict=True))}


def check_rule(
    run: Run, tensors: Case, scale: float | None = None, *, times: float = 1, in_halves: bool = False
) -> dict[str, Tensor]:
    """Output and gradients keep the tolerance rule of the query's dtype, or a few times its bound.

    Args:
        run: A backend.
        tensors: Its arguments.
        scale: Of the scores; None is 1 / sqrt(d).
        times: How often the rule's bound is allowed.
        in_halves: Whether the gradients of what is folded were rounded to halves before they were summed.
    """
    query = tensors["query"]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    got = with_gradients(run, tensors, scale)
    eager = with_gradients(reference.motion_attention, tensors, scale)
    exact = with_gradients(reference.motion_attention, tensors, scale, torch.float64)
    for name, wanted in exact.items():
        assert got[name].dtype == eager[name].dtype, name
        if name == "motion_scale" and in_halves:
            check_sum_of_rounded(got[name], tensors, scale)
        else:
            check_one(name, got[name], eager[name], wanted, query.dtype, times)
    return got


def check_one(name: str, got: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype, times: float) -> None:
    # The error over `times` is compared, so that the rule and its message are those of all tests.
    shrunk = (exact + (got.double() - exact) / times).nan_to_num(torch.inf)
    assert_close(name, shrunk.to(dtype), eager.to(dtype), exact)


def check_rule_of_halves(tensors: Case, scale: float | None = None) -> None:
    check_rule(in_half_types, tensors, scale, in_halves=True)


def check_sum_of_rounded(got: Tensor, tensors: Case, scale: float) -> None:
    """The gradient of the strengths, a sum whose terms cancel: its error is that of terms rounded to halves."""
    query, motion_query, motion_key = (tensors[name] for name in ("query", "motion_query", "motion_key"))
    heads = query.shape[1]
    own = {"motion_query": motion_query.expand(-1, heads, -1, -1), "motion_key": motion_key.expand(-1, heads, -1, -1)}
    exact = with_gradients(reference.motion_attention, tensors | own, scale, torch.float64)
    strengths = tensors["motion_scale"].double()[:, None, None]
    terms = own["motion_query"].double() * exact["motion_query"] / strengths
    typical = terms.sum(-1).square().sum((0, 2)).sqrt().max().item()
    error = (got.double() - exact["motion_scale"]).abs().max().item()
    eps = torch.finfo(query.dtype).eps
    assert error <= 2 * eps * (typical + exact["motion_scale"].abs().max().item())


def in_half_types(query: Tensor, key: Tensor, value: Tensor, *, scale: float, **extras: Tensor | None) -> Tensor:
    """What a GPU runs for half tensors, with a CPU's SDPA: three products and everything that is rounded to halves."""
    four = tuple(extras[name] for name in NAMES[3:])
    return folded._folded(folded._sdpa, query, key, value, four, scale, query.dtype, True)


@pytest.mark.parametrize(("shared", "bias_per_head"), [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_output_and_all_gradients_keep_the_tolerance_rule(
    dtype: torch.dtype, shared: bool, bias_per_head: bool
) -> None:
    tensors = case(dtype=dtype, shared=shared, bias_per_head=bias_per_head)
    got = check_rule(folded.run_sdpa, tensors, times=FLASH_ON_A_CPU if dtype == torch.float32 else 1)
    with sdpa_kernel(SDPBackend.MATH):
        check_rule(folded.run_sdpa, tensors)
    hidden = got["out"][-1, -1]
    assert torch.equal(hidden, torch.zeros_like(hidden))


@pytest.mark.parametrize("extra_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_three_products_of_half_types_keep_the_rule(dtype: torch.dtype, extra_dtype: torch.dtype | None) -> None:
    check_rule_of_halves(case(dtype=dtype, extra_dtype=extra_dtype))
    check_rule_of_halves(case(129, 138, 64, 10, dtype=dtype, extra_dtype=extra_dtype, shared=False))


@pytest.mark.parametrize("dtype", HALVES)
def test_float32_motion_beside_half_tensors_has_float32_gradients_on_a_cpu(dtype: torch.dtype) -> None:
    tensors = case(dtype=dtype, extra_dtype=torch.float32)
    got = with_gradients(folded.run_sdpa, tensors, 0.2)
    eager = with_gradients(reference.motion_attention, tensors, 0.2)
    exact = with_gradients(reference.motion_attention, tensors, 0.2, torch.float64)
    for name in NAMES[3:]:
        check_one(name, got[name], eager[name], exact[name], torch.float32, FLASH_ON_A_CPU)


@pytest.mark.parametrize(
    ("queries", "keys", "width", "channels"),
    [(1, 1, 1, 1), (7, 129, 72, 16), (129, 7, 80, 10), (138, 138, 32, 12), (5, 516, 20, 3), (3, 4, 8, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_widths_and_channels(dtype: torch.dtype, queries: int, keys: int, width: int, channels: int) -> None:
    times = FLASH_ON_A_CPU if dtype == torch.float32 else 1
    check_rule(folded.run_sdpa, case(queries, keys, width, channels, dtype=dtype), times=times)


def test_float64_is_the_reference() -> None:
    tensors = case(dtype=torch.float64)
    got = with_gradients(folded.run_sdpa, tensors, 0.3)
    wanted = with_gradients(reference.motion_attention, tensors, 0.3)
    for name, expected in wanted.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("left_out", [NAMES[3:], NAMES[3:6], NAMES[5:6], NAMES[6:]])
def test_each_part_of_the_bias_may_be_left_out(left_out: tuple[str, ...]) -> None:
    check_rule(folded.run_sdpa, case() | dict.fromkeys(left_out), times=FLASH_ON_A_CPU)
    check_rule_of_halves(case(dtype=torch.bfloat16) | dict.fromkeys(left_out))


@pytest.mark.parametrize("scale", [-0.3, 1 / 64, 1.0, 64.0])
def test_other_scales(scale: float) -> None:
    tensors = case()
    tensors["query"] = tensors["query"] / (20 * abs(scale))
    check_rule(folded.run_sdpa, tensors, scale, times=FLASH_ON_A_CPU)
    for dtype in HALVES:
        check_rule_of_halves({name: one.to(dtype) for name, one in tensors.items()}, scale)


def test_other_strides_and_broadcast_inputs() -> None:
    tensors = case(dtype=torch.float64)
    for name, tensor in tensors.items():
        spread = torch.repeat_interleave(tensor.transpose(0, -1), 2, dim=0)[::2].transpose(0, -1)
        for view in (spread, tensor[:1].expand(tensor.shape)):
            got = with_gradients(folded.run_sdpa, tensors | {name: view}, 0.2)
            wanted = with_gradients(reference.motion_attention, tensors | {name: view.contiguous()}, 0.2)
            for one, expected in wanted.items():
                torch.testing.assert_close(got[one], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("run", [folded.run_sdpa, in_half_types])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_hidden_keys_weigh_exactly_nothing_whatever_they_hold(dtype: torch.dtype, run: Run) -> None:
    tensors = case(dtype=dtype)
    key, value, bias = (tensors[name] for name in ("key", "value", "key_bias"))
    hidden = bias == -torch.inf
    first = with_gradients(run, tensors, 0.2)
    loud = {name: torch.where(hidden[..., None], 100 * one, one) for name, one in (("key", key), ("value", value))}
    second = with_gradients(run, tensors | loud, 0.2)
    assert torch.equal(second["out"], first["out"])
    for name in ("key", "value", "key_bias"):
        assert torch.equal(second[name][hidden], torch.zeros_like(second[name][hidden])), name
        assert torch.equal(second[name], first[name]), name
    for name in ("query", "motion_query"):
        assert second[name].isfinite().all()


@pytest.mark.parametrize("offset", [-3e4, 3e4])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_large_offset_of_the_bias_costs_no_digits_in_half_types(dtype: torch.dtype, offset: float) -> None:
    tensors = case(dtype=dtype, extra_dtype=torch.float32)
    bias = tensors["key_bias"]
    tensors["key_bias"] = (64 * bias).round() / 64 + offset  # exact in float32
    check_rule_of_halves(tensors)


def test_a_strong_motion_fits_float16_because_query_and_key_share_its_factor() -> None:
    """A strength of 200 over a scale of 1 / 8 is 1600, which 60 may not be multiplied by."""
    tensors = case(dtype=torch.float16, extra_dtype=torch.float32)
    for name, factor in (("motion_query", 60.0), ("motion_key", 1e-3)):
        tensors[name] = factor * torch.tanh(tensors[name])
    tensors["motion_scale"] = torch.tensor([200.0, -200.0, 0.0])
    for tensor in with_gradients(in_half_types, tensors, 0.125).values():
        assert tensor.isfinite().all()
    exact = reference.motion_attention(**{name: one.double() for name, one in tensors.items()}, scale=0.125)
    torch.testing.assert_close(in_half_types(**tensors, scale=0.125).double(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("strength", [1.0, 4.0, 16.0])
def test_the_folded_product_is_far_more_accurate_than_a_half_product(strength: float) -> None:
    """Softmax weights of the motion alone: at a strength of 4, one product in bfloat16 errs by more than 0.02."""
    draw = normal(7)
    motion = 1 + draw(1, 1, 8, 8).repeat_interleave(17, 2)[:, :, :129] + 0.3 * draw(1, 1, 129, 8)  # eight groups
    half_square = 0.5 * motion.square().sum(-1, keepdim=True)
    ones = torch.ones_like(half_square)
    query_motion = torch.cat((motion, ones, half_square), -1).float()
    key_motion = torch.cat((motion, -half_square, torch.zeros_like(ones)), -1).float()
    nothing = torch.zeros(1, 1, 129, 64, dtype=torch.bfloat16)
    strengths = torch.tensor([strength])
    exact = (strength * query_motion.double() @ key_motion.double().mT).softmax(-1)

    def error(scores: Tensor) -> float:
        return (scores.double().softmax(-1) - exact).abs().max().item()

    query, key, _ = folded._Fold.apply(
        nothing, nothing, nothing, query_motion, key_motion, strengths, None, 0.125, torch.bfloat16, 8, True
    )
    in_half = strength * query_motion.bfloat16().double() @ key_motion.bfloat16().double().mT
    got, plain = error(0.125 * query.double() @ key.double().mT), error(in_half)
    assert got <= 1e-4 * strength
    assert plain > 20 * got
    if strength >= 4:
        assert plain > 0.02


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "channels"), [(2, 3, 0, 4), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 4, 0)]
)
@pytest.mark.parametrize("run", [folded.run_sdpa, folded.run_xformers])
def test_empty_dimensions(run: Run, batch: int, queries: int, keys: int, channels: int) -> None:
    tensors = case(batch=2, queries=5, keys=8, channels=4)
    sizes = {"query": (batch, 3, queries, 32), "key": (batch, 3, keys, 32), "value": (batch, 3, keys, 32)}
    sizes |= {"motion_query": (batch, 1, queries, channels), "motion_key": (batch, 1, keys, channels)}
    tensors |= {name: torch.ones(size) for name, size in sizes.items()} | {"key_bias": torch.zeros(batch, keys)}
    if run is folded.run_xformers and batch * queries * keys > 0:
        return  # nothing is empty for the library
    got = with_gradients(run, tensors, 0.2)
    wanted = with_gradients(reference.motion_attention, tensors, 0.2)
    for name, expected in wanted.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-6, atol=1e-6)


def test_motion_is_not_computed_in_half_precision_under_autocast() -> None:
    tensors = case()
    for changed in (tensors, tensors | dict.fromkeys(NAMES[3:])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = with_gradients(folded.run_sdpa, changed, 0.2)
        outside = with_gradients(folded.run_sdpa, changed, 0.2)
        for name, expected in outside.items():
            assert torch.equal(inside[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    tensors = case(129, 129, 64, 10, dtype=dtype)
    first, second = (with_gradients(folded.run_sdpa, tensors, 0.125) for _ in range(2))
    for name, expected in first.items():
        assert torch.equal(second[name], expected), name


@pytest.mark.parametrize("left_out", [(), NAMES[3:]])
def test_a_second_derivative_raises_and_says_what_to_do(left_out: tuple[str, ...]) -> None:
    tensors = case(5, 6, dtype=torch.float64) | dict.fromkeys(left_out)
    leaves: Case = {name: one if one is None else one.requires_grad_() for name, one in tensors.items()}
    for leaf in leaves.values():
        if leaf is not None:
            out = folded.run_sdpa(**leaves, scale=0.2)
            (gradient,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match=r"motion_attention.*once; use impl='reference'"):
                gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_takes_it_whole_and_recompiles_once_for_all_lengths(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(**arguments: Any) -> Tensor:
        tensors = {name: one for name, one in arguments.items() if isinstance(one, Tensor)}
        request = Request(arguments["query"].device, tensors, {"scale": arguments["scale"]})
        assert folded.sdpa_reasons(request) == []
        # Both branches must be traceable; which is taken is a guard on the sizes.
        return folded.run_sdpa(**arguments) * (2.0 if folded.sdpa_is_faster(request) else 1.0)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for length in (65, 66, 67, 68):
        tensors = case(length, length, dtype=dtype, batch=length - 63)
        got, wanted = (with_gradients(one, tensors, 0.2) for one in (compiled, function))
        for name, expected in wanted.items():
            torch.testing.assert_close(got[name], expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


# What it refuses, and when it is worth it -----------------------------------------------------------------------------


def request(tensors: Case | None = None, scale: float = 0.2, device: str = "cpu") -> Request:
    return Request(torch.device(device), tensors or case(5, 6), {"scale": scale})


def test_sdpa_says_why_not() -> None:
    assert folded.sdpa_reasons(request()) == []
    assert folded.sdpa_reasons(request(device="cuda")) == []
    assert folded.sdpa_reasons(request(device="mps")) == ["it takes cpu and cuda tensors, got mps"]
    for scale in (0.0, 0.01, -100.0):
        (reason,) = folded.sdpa_reasons(request(scale=scale))
        assert f"must lie in [1/64, 64]; got {scale}" in reason
    with forward_ad.dual_level():
        assert folded.sdpa_reasons(request()) == ["forward mode sees through the reference only"]
    asked = request()

    def asks(one: Tensor) -> Tensor:
        (reason,) = folded.sdpa_reasons(asked)
        assert "torch.func transforms" in reason
        return one

    torch.func.vmap(asks)(torch.ones(2))


def test_it_is_worth_it_for_long_sequences_and_without_a_bias() -> None:
    small, long = case(17, 17, channels=4), case(138, 138, batch=8)
    no_bias = case(17, 17) | dict.fromkeys(NAMES[3:])
    assert not folded.sdpa_is_faster(request(small))
    assert folded.sdpa_is_faster(request(long))
    assert folded.sdpa_is_faster(request(no_bias))
    assert not folded.sdpa_is_faster(request(case(1, 138, batch=64)))
    assert not folded.sdpa_is_faster(request(case(138, 138, batch=8, dtype=torch.float64)))
    assert folded.sdpa_is_faster(request(small, device="cuda"))
    learning = long | {"motion_scale": torch.ones(3, requires_grad=True)}
    assert not folded.sdpa_is_faster(request(learning))
    with torch.no_grad():
        assert folded.sdpa_is_faster(request(learning))


def test_xformers_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "_MISSING_XFORMERS", ["it needs xformers: pip install xformers"])
    missing, device = "it needs xformers: pip install xformers", "it takes cuda tensors, got cpu"
    assert folded.xformers_reasons(request()) == [missing, device]
    assert folded.xformers_reasons(request(device="cuda")) == [missing]
    monkeypatch.setattr(folded, "_MISSING_XFORMERS", [])
    assert folded.xformers_reasons(request(device="cuda")) == []
    (reason,) = folded.xformers_reasons(request(case(5, 6, dtype=torch.float64), device="cuda"))
    assert "no kernel for float64 (it has float16, bfloat16, float32)" in reason
    (reason,) = folded.xformers_reasons(request(scale=0.0, device="cuda"))
    assert "[1/64, 64]" in reason


# xformers: a module with its documented signature ---------------------------------------------------------------------


def fake_attention(calls: list[tuple[tuple[int, ...], ...]]) -> Callable[..., Tensor]:
    """As documented: (B, M, H, K) and values (B, M, H, Kv); refuses what its kernels refuse."""

    def memory_efficient_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
        *,
        op: Any = None,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        assert attn_bias is None
        assert p == 0.0
        half = query.dtype in HALVES
        alignment = 8 if half else 4
        batch, _, heads, width = query.shape
        assert key.shape == (batch, key.shape[1], heads, width)
        assert value.shape == (*key.shape[:3], width if half else value.shape[3])
        for tensor in (query, key, value):
            assert tensor.dtype == query.dtype
            assert tensor.stride(-1) == 1
            assert tensor.shape[-1] % alignment == tensor.stride(-2) % alignment == 0
        calls.append((tuple(query.shape), tuple(key.shape), tuple(value.shape)))
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)

    return memory_efficient_attention


@pytest.mark.parametrize("left_out", [(), NAMES[3:6], NAMES[3:]])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_xformers_is_called_in_its_own_layout(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, left_out: tuple[str, ...]
) -> None:
    calls: list[tuple[tuple[int, ...], ...]] = []
    module = SimpleNamespace(memory_efficient_attention=fake_attention(calls))
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=module))
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    tensors = case(dtype=dtype, width=30) | dict.fromkeys(left_out)
    half = dtype in HALVES
    check_rule(folded.run_xformers, tensors, times=1 if half else FLASH_ON_A_CPU, in_halves=half)
    ((query, key, value),) = calls
    assert query[:3] == (2, 33, 3)
    assert key[:3] == value[:3] == (2, 65, 3)
    # 30, channels (5 or 3 x 5) and bias (1 or 2), to a multiple of 16 bytes
    widths = {(): (36, 48), NAMES[3:6]: (32, 32), NAMES[3:]: (32, 32)}[left_out]
    assert query[3] == widths[dtype in HALVES]
    assert value[3] == (query[3] if dtype in HALVES else 32)
