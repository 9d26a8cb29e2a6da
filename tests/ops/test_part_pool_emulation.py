"""part_pool's CUDA kernels compiled for the host (tests/ops/emulation) keep the tolerance rule: their logic, no GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from motarfuse.ops import part_pool
from motarfuse.ops.part_pool import KERNELS, MAX_CUDA_PARTS, OPERATOR, _run_kernels
from tests.ops import emulation
from tests.ops.emulation import EMULATED
from tests.ops.kernel_cases import DTYPES, Inputs, every_second, layout_name, misaligned
from tests.ops.operator_cases import HALVES, normal
from tests.ops.part_pool_cases import as_a_feature_map, case, check, outputs_and_gradients

MIXED = [(half, torch.float32) for half in HALVES] + [(torch.float32, torch.float16), (torch.float16, torch.bfloat16)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> ctypes.CDLL:
    KERNELS.define("_emulated")
    folder = tmp_path_factory.mktemp("emulation")
    entry_points = emulation.registration("part_pool", "forward", "backward")
    return emulation.load("part_pool", repository / "csrc", folder, entry_points)


@pytest.fixture(autouse=True)
def emulated(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with emulation.emulated_backend(KERNELS, OPERATOR, _run_kernels, monkeypatch):
        yield
    library.set_multiprocessors(132)
    library.set_shared_memory(227 << 10, 228 << 10)


# Cells around a tile of masks and no whole fours, parts that are no whole eights and more than a block takes, channels
# that are no whole 16 bytes. One multiprocessor gets other tiles and chunks than a machine that is never full.
@pytest.mark.parametrize("multiprocessors", [132, 1])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("cells", "parts", "channels"),
    [
        (1, 1, 1),
        (1, 3, 8),
        (7, 2, 5),
        (8, 8, 64),
        (17, 9, 24),
        (63, 3, 65),
        (64, 16, 32),
        (65, 17, 16),
        (128, 8, 384),
        (129, 10, 40),
        (138, 32, 24),
        (193, 33, 8),
        (211, 70, 16),
        (516, 4, 16),
    ],
)
def test_shapes_and_types_keep_the_rule(
    library: ctypes.CDLL, cells: int, parts: int, channels: int, dtype: torch.dtype, multiprocessors: int
) -> None:
    library.set_multiprocessors(multiprocessors)
    check(EMULATED, case(cells, dtype, batch=1 if cells > 100 else 2, parts=parts, channels=channels))


@pytest.mark.parametrize(("tokens", "logits"), MIXED, ids=str)
@pytest.mark.parametrize(("cells", "parts", "channels"), [(19, 3, 9), (130, 8, 768), (40, 32, 136)])
def test_logits_of_another_type_keep_their_own_precision(
    cells: int, parts: int, channels: int, tokens: torch.dtype, logits: torch.dtype
) -> None:
    inputs = case(cells, batch=1, parts=parts, channels=channels)
    check(EMULATED, {"tokens": inputs["tokens"].to(tokens), "part_logits": inputs["part_logits"].to(logits)})


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("cells", [17, 64, 128, 250, 700])
def test_many_items_on_a_small_machine_keep_the_rule(library: ctypes.CDLL, cells: int, dtype: torch.dtype) -> None:
    library.set_multiprocessors(1)
    check(EMULATED, case(cells, dtype, batch=8, parts=3, channels=72))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_a_warp_of_channels_beside_more_parts_than_sixteen_keeps_the_rule(
    library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    library.set_multiprocessors(1)  # 32 vectors of channels and four groups of parts leave one group of cells
    check(EMULATED, case(30, dtype, batch=8, parts=20, channels=512 // dtype.itemsize))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("kib", [5, 8, 16, 48, 99])
def test_channels_are_taken_in_chunks_where_shared_memory_is_small(
    library: ctypes.CDLL, kib: int, dtype: torch.dtype
) -> None:
    library.set_shared_memory(kib << 10, (kib + 1) << 10)
    check(EMULATED, case(70, dtype, batch=2, parts=3, channels=777))
    if kib > 16:
        check(EMULATED, case(40, dtype, batch=1, parts=32, channels=200))


@pytest.mark.parametrize("dtype", list(MAX_CUDA_PARTS), ids=str)
@pytest.mark.parametrize("cells", [1, 4, 8, 17])
def test_the_most_parts_fit_the_smallest_shared_memory(library: ctypes.CDLL, cells: int, dtype: torch.dtype) -> None:
    """99 KB a block: compute capabilities 8.6, 8.9 and 12.0. Few cells are shared out in slices of the channels."""
    library.set_shared_memory(99 << 10, 100 << 10)
    check(EMULATED, case(cells, dtype, batch=1, parts=MAX_CUDA_PARTS[dtype], channels=1024))


def _misaligned(inputs: Inputs) -> Inputs:
    return {name: misaligned(tensor) for name, tensor in inputs.items()}


def _every_second(inputs: Inputs) -> Inputs:
    return {name: every_second(tensor) for name, tensor in inputs.items()}


def _odd_rows(inputs: Inputs) -> Inputs:
    """Rows of channels apart by no whole 16 bytes, with aligned beginnings."""
    return {name: torch.cat([tensor, tensor[..., :1]], dim=-1)[..., :-1] for name, tensor in inputs.items()}


def _odd_items(inputs: Inputs) -> Inputs:
    """Items apart by no whole 16 bytes, with rows that are."""

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.flatten(1)
        return torch.cat([flat, flat[:, :1]], dim=1)[:, :-1].unflatten(1, tensor.shape[1:])

    return {name: spread(tensor) for name, tensor in inputs.items()}


def _within_larger_ones(inputs: Inputs) -> Inputs:
    """Some cells of an image and some channels of a wider projection, whole words that lie apart."""
    tokens, logits = inputs.values()
    wide = torch.cat([tokens, tokens], dim=-1)
    return {
        "tokens": torch.cat([wide[:, :1], wide], dim=1)[:, 1:, : tokens.shape[-1]],
        "part_logits": torch.cat([logits, logits], dim=1)[:, : logits.shape[1]],
    }


def _one_image(inputs: Inputs) -> Inputs:
    return {name: tensor[:1].expand_as(tensor) for name, tensor in inputs.items()}


def _one_cell(inputs: Inputs) -> Inputs:
    return {"tokens": inputs["tokens"][:, :1].expand_as(inputs["tokens"]), "part_logits": inputs["part_logits"]}


def _one_number(inputs: Inputs) -> Inputs:
    return {
        "tokens": inputs["tokens"][..., :1].expand_as(inputs["tokens"]),
        "part_logits": inputs["part_logits"][:, :1].expand_as(inputs["part_logits"]),
    }


LAYOUTS: list[Callable[[Inputs], Inputs]] = [
    as_a_feature_map,
    _misaligned,
    _every_second,
    _odd_rows,
    _odd_items,
    _within_larger_ones,
    _one_image,
    _one_cell,
    _one_number,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_strides_change_nothing(layout: Callable[[Inputs], Inputs], dtype: torch.dtype) -> None:
    for cells, channels in ((24, 48), (21, 48), (21, 37)):
        odd = layout(case(cells, dtype, parts=9, channels=channels))
        check(EMULATED, odd)
        got = outputs_and_gradients(odd, "emulated")
        same = outputs_and_gradients({name: tensor.contiguous() for name, tensor in odd.items()}, "emulated")
        for name, tensor in got.items():
            assert torch.equal(tensor, same[name]), name


def test_gradients_take_the_strides_of_their_inputs() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in as_a_feature_map(case(21, channels=48)).items()}
    pooled, mass = part_pool(**inputs, impl="emulated")
    (pooled.sum() + mass.sum()).backward()
    for tensor in inputs.values():
        assert tensor.grad is not None
        assert tensor.grad.stride() == tensor.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("results", [("pooled",), ("mass",)], ids=str)
def test_a_result_that_nothing_depends_on_needs_no_gradient(results: tuple[str, ...], dtype: torch.dtype) -> None:
    check(EMULATED, case(35, dtype, parts=9, channels=40), results=results)


def _backward(
    inputs: Inputs, grads: list[torch.Tensor | None], needs_tokens: bool = True, needs_logits: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, logits = inputs.values()
    pooled, _, total, exact = torch.ops.motarfuse.part_pool_forward_emulated(tokens, logits, True)
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.motarfuse.part_pool_backward_emulated(
        *grads, tokens, logits, exact if exact.numel() else pooled, total, needs_tokens, needs_logits
    )
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_only_what_is_wanted_is_computed_and_it_is_the_same(dtype: torch.dtype) -> None:
    inputs, draw = case(35, dtype, parts=9, channels=40), normal(5, dtype)
    grads: list[torch.Tensor | None] = [draw(2, 9, 40), draw(2, 9)]
    whole = _backward(inputs, grads)
    nothing = torch.empty(0, dtype=dtype)
    for needs_tokens in (True, False):
        for needs_logits in (True, False):
            tokens, logits = _backward(inputs, grads, needs_tokens, needs_logits)
            assert torch.equal(tokens, whole[0] if needs_tokens else nothing)
            assert torch.equal(logits, whole[1] if needs_logits else nothing)
    for gradient in _backward(inputs, [None, None]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_statistics_are_kept_only_where_they_are_asked_for() -> None:
    for dtype in (torch.float32, torch.float16):
        forward = partial(torch.ops.motarfuse.part_pool_forward_emulated, *case(35, dtype, channels=40).values())
        for kept, dropped in zip(forward(True)[:2], forward(False)[:2], strict=True):
            assert torch.equal(kept, dropped)
        assert [tensor.shape for tensor in forward(False)[2:]] == [(0,), (0,)]


def test_two_runs_are_bitwise_equal() -> None:
    for dtype in DTYPES:
        first, second = (outputs_and_gradients(case(129, dtype, parts=9, channels=72), "emulated") for _ in range(2))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("batch", "cells", "parts", "channels"), [(0, 7, 3, 16), (2, 0, 3, 16), (2, 7, 0, 16), (2, 7, 3, 0), (2, 0, 0, 0)]
)
def test_empty_dimensions_give_zeros_where_there_is_anything(
    batch: int, cells: int, parts: int, channels: int, dtype: torch.dtype
) -> None:
    inputs = case(cells, dtype, batch=batch, parts=parts, channels=channels)
    check(EMULATED, inputs)
    if cells == 0:
        for tensor in torch.ops.motarfuse.part_pool_forward_emulated(*inputs.values(), True):
            assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_parts_have_no_mass_and_no_gradient(dtype: torch.dtype) -> None:
    inputs = case(35, dtype, parts=9, channels=40)
    inputs["part_logits"][:, 3] = -math.inf
    inputs["part_logits"][0, 1:, 7] = -math.inf
    check(EMULATED, inputs)
    found = outputs_and_gradients(inputs, "emulated")
    assert found["pooled"][:, 2].eq(0).all()
    assert found["mass"][:, 2].eq(0).all()
    assert found["grad_part_logits"][:, 3].eq(0).all()
    assert all(tensor.isfinite().all() for tensor in found.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_hardly_any_mass_keep_the_rule(dtype: torch.dtype) -> None:
    inputs = case(35, dtype, parts=9, channels=40)
    inputs["part_logits"][:, 1:4] -= 17
    check(EMULATED, inputs)


@pytest.mark.parametrize("spoiler", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_shows_where_the_reference_shows_it(dtype: torch.dtype, spoiler: float) -> None:
    for name in ("tokens", "part_logits"):
        inputs = case(35, dtype, parts=9, channels=40)
        inputs[name][0, 5, 7] = spoiler
        check(EMULATED, inputs)
    inputs = case(35, dtype, parts=9, channels=40)
    inputs["part_logits"][0, :, 7] = spoiler
    check(EMULATED, inputs)


def test_what_does_not_fit_is_refused_with_the_reason(library: ctypes.CDLL) -> None:
    inputs = case(20, parts=40, channels=8)
    grad_pooled = torch.zeros(2, 40, 8)
    with pytest.raises(RuntimeError, match="a grad_pooled of the tokens' dtype"):
        _backward(inputs, [grad_pooled.half(), None])
    library.set_shared_memory(4 << 10, 5 << 10)
    with pytest.raises(RuntimeError, match="gradients of 40 parts do not fit"):
        _backward(inputs, [grad_pooled, None])
