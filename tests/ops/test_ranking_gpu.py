"""Ranking's CUDA kernels have the definitions' bits: on a GPU, and compiled for the host (tests/ops/emulation)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from motarfuse.ops import ranking
from motarfuse.reference import ranking as reference
from motarfuse.retrieval import evaluate, search
from tests.ops import emulation
from tests.ops import test_ranking as claims
from tests.ops.kernel_cases import needs_native
from tests.ops.operator_cases import normal
from tests.ops.ranking_cases import FORMS, Tiles, entries_before, thresholds, tiles, widths_of

NAMES = {"ranking_scores": ("unit_rows", "pair_scores"), "ranking_count": ("count_before",)}
DOUBLES = (torch.float32, torch.float64)
on_a_gpu = pytest.mark.gpu


def moved(value: Any) -> Any:
    """The same on the GPU: a tensor with its strides and offset, and so with rows that begin where they began."""
    if not isinstance(value, Tensor):
        return value
    storage = torch.UntypedStorage(value.untyped_storage().nbytes(), device="cuda").copy_(value.untyped_storage())
    empty = torch.empty(0, dtype=value.dtype, device="cuda")
    return empty.set_(storage, value.storage_offset(), value.shape, value.stride())


def on_the_gpu(name: str) -> Callable[..., Any]:
    """An operator that takes tensors of the CPU, works on the GPU and brings back what it gives and changes."""
    operator = getattr(torch.ops.motarfuse, name).default

    def call(*arguments: Any) -> Any:
        there = [moved(argument) for argument in arguments]
        results = operator(*there)
        if name == "count_before":
            arguments[-1].copy_(there[-1])
        if isinstance(results, Tensor):
            return results.cpu()
        return results and tuple(result.cpu() for result in results)

    return call


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, ctypes.CDLL]:
    libraries = {}
    for source, names in NAMES.items():
        for name in names:
            torch.library.define(f"motarfuse::{name}_emulated", ranking.SCHEMAS[name])
        entries = "".join(emulation.registration(*name.split("_")) for name in names)
        libraries[source] = emulation.load(source, repository / "csrc", tmp_path_factory.mktemp(source), entries)
    return libraries


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=[on_a_gpu, needs_native])])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the claims' operators run."""
    if request.param == "cuda":
        monkeypatch.setattr(claims, "operator", on_the_gpu)
        yield "cuda"
        return
    libraries = request.getfixturevalue("emulated")
    monkeypatch.setattr(claims, "operator", lambda name: getattr(torch.ops.motarfuse, f"{name}_emulated").default)
    yield "emulated"
    for library in libraries.values():
        library.set_multiprocessors(132)


# Rows and pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 33, 128, 260, 771])
@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_scores_of_pairs_have_the_definitions_bits(machine: str, form: str, dtype: torch.dtype, width: int) -> None:
    claims.test_scores_of_pairs_are_the_definitions_bits(form, dtype, width)


def test_pairs_of_rows_anywhere_have_them_too(machine: str) -> None:
    claims.test_differences_of_float32_rows_are_rounded_before_they_are_squared()
    for dtype in DOUBLES:
        claims.test_rows_may_lie_apart(dtype)


@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize(
    ("widths", "query_room", "gallery_room"),
    [
        *(((128, 128, 4), one, other) for one, other in ((0, 0), (1, 0), (0, 1), (0, 2), (4, 4))),
        *(((6, 6, 4), 0, 0), ((6, 8, 2), 0, 0), ((8, 7, 1), 0, 0), ((8, 4, 4), 0, 0)),
    ],
    ids=str,
)
def test_segments_and_rows_begin_at_any_number(
    machine: str, widths: tuple[int, ...], query_room: int, gallery_room: int, dtype: torch.dtype
) -> None:
    """Only where all begin at 16 bytes may they be read 16 bytes at a time."""
    draw = normal(0, dtype)
    query, gallery = draw(5, sum(widths) + query_room)[:, query_room:], draw(6, sum(widths) + gallery_room)
    call = (torch.arange(5), torch.arange(1, 6), "sum", list(widths), 3.0, 7.0)
    gallery = gallery[:, gallery_room:]
    scores = claims.operator("pair_scores")(query, gallery, *call)
    claims.assert_same_bits(scores, reference.pair_scores(query, gallery, *call))


def test_a_pair_that_is_not_there_has_no_score(machine: str) -> None:
    query, gallery = normal(0, torch.float32)(3, 40), normal(1, torch.float32)(5, 40)
    rows, columns = torch.tensor([0, 3, 1, 2, -1, 2]), torch.tensor([4, 0, 5, -1, 1, 3])
    scores = claims.operator("pair_scores")(query, gallery, rows, columns, "product", [40, 0, 0], 0.0, 0.0)
    assert scores.isnan().tolist() == [False, True, True, True, True, False]
    with pytest.raises(RuntimeError, match="pairs of no rows"):
        claims.operator("pair_scores")(query[:0], gallery, rows, columns, "product", [40, 0, 0], 0.0, 0.0)


@pytest.mark.parametrize("width", [1, 32, 33, 260])
@pytest.mark.parametrize("dtype", claims.FLOATS, ids=str)
def test_unit_rows_have_the_definitions_bits(machine: str, dtype: torch.dtype, width: int) -> None:
    claims.test_unit_rows_are_the_definitions_bits(dtype, width)


def test_unit_rows_keep_the_ends_of_their_types(machine: str) -> None:
    claims.test_magnitudes_at_the_ends_of_float64_have_unit_rows()
    largest = normal(2)(4, 50).abs() * -(2.0**1000)
    claims.assert_same_bits(claims.operator("unit_rows")(largest)[0], reference.unit_rows(largest)[0])
    for dtype in claims.FLOATS:
        for value in (torch.nan, torch.inf, -torch.inf):
            claims.test_norms_say_which_rows_are_not_finite(dtype, value)


def test_empty_calls_change_nothing(machine: str) -> None:
    claims.test_empty_sides_change_nothing()


# Counting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "most"), [(150, 12), (37, 12), (64, 300), (1, 3)])
@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_those_of_exact_scores(machine: str, form: str, dtype: torch.dtype, size: int, most: int) -> None:
    case = tiles(most, form, dtype)
    given = thresholds(case, size, most)
    for unknown in (0.0, 0.1):
        scores = case.scores(size, unknown=unknown)
        assert torch.equal(claims.count(case, given, scores, size), entries_before(case, given))


def test_counts_hold_at_ties_and_at_the_edges_of_the_slack(machine: str) -> None:
    for most in (12, 300):
        for alike in (1, 4):
            claims.test_ties_within_and_across_tiles_are_counted_by_index(most, alike)
        claims.test_no_pair_is_lost_at_the_edges_of_the_slack(most)
        claims.test_thresholds_may_begin_anywhere_and_counts_are_added_to(most)
    claims.test_a_slack_without_an_end_leaves_all_to_the_exact_scores()


@pytest.mark.parametrize(("score", "entry", "wanted"), [(0.75, 0, 0), (0.75, 9, 3), (0.25, 0, 0), (0.25, 9, 3)])
def test_a_score_at_the_very_edge_of_its_slack_is_looked_at(
    machine: str, score: float, entry: int, wanted: int
) -> None:
    """All exact scores equal the threshold, and the float32 ones are as wrong as they may be: the index decides."""
    counts = torch.zeros(1, dtype=torch.int64)
    claims.operator("count_before")(
        torch.full((1, 3), score), torch.tensor([0.25]), torch.ones(1, 1), torch.full((3, 1), 0.5), 4,
        torch.tensor([0, 1]), torch.tensor([0.5]).double(), torch.tensor([entry]), torch.tensor([0, 0]),
        torch.empty(0, dtype=torch.int64), "product", [1, 0, 0], 0.0, 0.0, counts,
    )  # fmt: skip
    assert counts.tolist() == [wanted]


def test_scores_without_an_end_have_their_place(machine: str) -> None:
    """Products of float64 rows that overflow: inf is better than all, among its equals by index, and NaN is last."""
    big = 1e200
    query = torch.tensor([[big, big]], dtype=torch.float64)
    gallery = torch.tensor([[big, 0], [0, 1], [big, -big]], dtype=torch.float64)
    # The last two thresholds are another row's, and not to be read.
    limits = torch.tensor([0.0, 1e200, torch.inf, torch.inf, torch.inf, torch.inf], dtype=torch.float64)
    entries = torch.tensor([1, 1, 0, 1, 9, 9])
    counts = torch.zeros(6, dtype=torch.int64)
    claims.operator("count_before")(
        torch.full((1, 3), torch.nan), torch.tensor([1.0]), query, gallery, 0, torch.tensor([0, 4]), limits, entries,
        torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), "product", [2, 0, 0], 0.0, 0.0, counts,
    )  # fmt: skip
    assert counts.tolist() == [2, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("multiprocessors", [0, 132])
@pytest.mark.parametrize("most", [510, 511, 512, 1300])
def test_thresholds_of_several_rounds_and_columns_of_several_blocks(
    machine: str, request: pytest.FixtureRequest, most: int, multiprocessors: int
) -> None:
    """A block takes 511 thresholds at a time, and a machine with nothing to do more blocks a row."""
    if machine == "emulated":
        request.getfixturevalue("emulated")["ranking_count"].set_multiprocessors(multiprocessors)
    case = tiles(most, "product", queries=2, entries=1300, width=33, slack=0.02, alike=900)
    given = thresholds(case, 1, 1)
    order = torch.randint(1300, (most,), generator=torch.Generator().manual_seed(most))
    values, rising = case.exact[0, order].sort(stable=True)
    starts = torch.tensor([0, most, most])
    given = given._replace(starts=starts, values=values, entries=order[rising])
    assert torch.equal(claims.count(case, given, case.scores(1, unknown=0.01), 1300), entries_before(case, given))


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_rows_of_scores_begin_anywhere(machine: str, offset: int) -> None:
    """What lies beside the columns of a tile is not counted: it is better than all. Packed rows lie apart too."""
    case = tiles(offset, "euclidean", queries=3, entries=131)
    given = thresholds(case, 1, 9)
    draw = normal(0, torch.float32)
    query = draw(3, 44)[:, offset : offset + 40].copy_(case.query)
    gallery = draw(131, 47)[:, :40].copy_(case.gallery)
    room = torch.full((3, 139), torch.inf)
    scores = room[:, offset : offset + 131].copy_(case.scores(2))
    counts = torch.zeros(len(given.values), dtype=torch.int64)
    claims.operator("count_before")(
        scores, case.slack, query, gallery, 0, given.starts, given.values, given.entries,
        case.left_out_starts, case.left_out, *case.form, counts,
    )  # fmt: skip
    assert torch.equal(counts, entries_before(case, given))


# A GPU alone ---------------------------------------------------------------------------------------------------------


def large(seed: int, dtype: torch.dtype = torch.float32) -> Tiles:
    """Rows that fill a GPU, of unit length, with copies among them."""
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(size, 256, generator=generator, dtype=dtype) for size in (700, 20000))
    query, gallery = reference.unit_rows(query)[0], reference.unit_rows(gallery)[0]
    gallery[::7] = gallery[1].clone()
    exact = query.double() @ gallery.double().T
    nothing = torch.zeros(701, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return Tiles(query, gallery, ("product", [256, 0, 0], 0.0, 0.0), exact, torch.full((700,), 2e-5), *nothing)


@on_a_gpu
@needs_native
@pytest.mark.parametrize("dtype", DOUBLES, ids=str)
def test_large_tiles_are_counted_as_on_a_cpu_and_twice_alike(dtype: torch.dtype) -> None:
    case = large(0, dtype)
    numbers = torch.arange(700) % 40
    numbers[::100] = 1500
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), numbers.cumsum(0)))
    rows = reference.row_of(starts)
    entries = torch.randint(20000, (len(rows),), generator=torch.Generator().manual_seed(1))
    columns = (case.query, case.gallery, rows, entries, *case.form)
    values = torch.ops.motarfuse.pair_scores(*columns)
    claims.assert_same_bits(on_the_gpu("pair_scores")(*columns), values)
    order = torch.from_numpy(np.lexsort((values.numpy(), rows.numpy())))
    values, entries = values[order], entries[order]
    wanted = torch.zeros(len(rows), dtype=torch.int64)
    call = (case.slack, case.query, case.gallery, 0, starts, values, entries, case.left_out_starts, case.left_out)
    torch.ops.motarfuse.count_before(case.scores(1, unknown=1e-3), *call, *case.form, wanted)
    for _ in range(2):
        counts = torch.zeros(len(rows), dtype=torch.int64)
        on_the_gpu("count_before")(case.scores(1, unknown=1e-3), *call, *case.form, counts)
        assert torch.equal(counts, wanted)


@on_a_gpu
@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_whole_evaluation_and_search_are_the_cpus(metric: str, dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)  # which some of PyTorch's functions refuse on a GPU
    draw = normal(3, dtype)
    query, gallery = draw(300, 130) + 2, draw(20000, 130) + 2
    gallery[5000:5200] = gallery[:200]
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, high, size) for high in (60, 6) for size in (300, 20000)]
    gallery[:50], labels[1][:50] = query[:50], labels[0][:50]
    here = evaluate(query, gallery, *labels, metric=metric)
    there = evaluate(query.cuda(), gallery.cuda(), *labels, metric=metric)
    assert np.array_equal(here.first_rank, there.first_rank)
    assert np.array_equal(here.average_precision, there.average_precision, equal_nan=True)
    assert np.array_equal(here.cmc, there.cmc)
    scores, entries = search(query, gallery, 25, metric=metric)
    for block in (None, 37):
        found = search(query.cuda(), gallery.cuda(), 25, metric=metric, block=block)
        assert torch.equal(found[1].cpu(), entries)
        # Not to the bit: PyTorch's square root of distances on a CPU is not always the nearest number.
        torch.testing.assert_close(found[0].cpu(), scores, rtol=2 * torch.finfo(scores.dtype).eps, atol=0)


@on_a_gpu
@needs_native
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_float64_and_a_stream_of_its_own(form: str) -> None:
    """Work waits for what its stream has under way, not for the device's first stream."""
    draw = normal(0)
    widths = widths_of(form, 96)
    query, gallery = draw(64, sum(widths)).abs(), draw(512, sum(widths)).abs()
    rows, columns = torch.arange(64).repeat_interleave(512), torch.arange(512).repeat(64)
    wanted = reference.pair_scores(query, gallery, rows, columns, form, widths, 3.0, 1e-6)
    there = [moved(tensor) for tensor in (torch.zeros_like(query), gallery, rows, columns)]
    late = query.cuda()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        there[0].copy_(late)
        scores = torch.ops.motarfuse.pair_scores(*there, form, widths, 3.0, 1e-6)
    stream.synchronize()
    claims.assert_same_bits(scores.cpu(), wanted)
