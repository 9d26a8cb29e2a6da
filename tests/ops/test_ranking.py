"""The C++ kernels of ranking: the bits of the definitions, and ranks that no error of the filter changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from motarfuse.ops.ranking import SCHEMAS
from motarfuse.reference import ranking as reference
from tests.ops.kernel_cases import check_on_older_processors, needs_native
from tests.ops.operator_cases import normal
from tests.ops.ranking_cases import FORMS, Thresholds, Tiles, best, entries_before, thresholds, tiles, widths_of

pytestmark = needs_native
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def operator(name: str) -> Any:
    return getattr(torch.ops.motarfuse, name).default


def assert_same_bits(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    integer = torch.int64 if got.dtype == torch.float64 else torch.int32
    assert torch.equal(got.view(integer), wanted.view(integer))


# Rows and pairs ------------------------------------------------------------------------------------------------------


@forms
@dtypes
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 95, 768, 1001])
def test_scores_of_pairs_are_the_definitions_bits(form: str, dtype: torch.dtype, width: int) -> None:
    """A fused multiply-add or another order of sums would differ in almost every pair."""
    draw = normal(width, dtype)
    widths = widths_of(form, width)
    query, gallery = draw(9, sum(widths)), draw(11, sum(widths))
    if form == "masked":
        query[:, widths[0] :], gallery[::3, widths[0] :] = query[:, widths[0] :].abs(), 0
        gallery[:, widths[0] :].abs_()
    rows, columns = (torch.randint(size, (200,), generator=torch.Generator().manual_seed(1)) for size in (9, 11))
    call = (rows, columns, form, widths, 3.0, 1e-6)
    wanted = reference.pair_scores(query, gallery, *call)
    assert_same_bits(operator("pair_scores")(query, gallery, *call), wanted)
    order = rows.argsort()
    sorted_call = (rows[order], columns[order], form, widths, 3.0, 1e-6)
    assert_same_bits(operator("pair_scores")(query, gallery, *sorted_call), wanted[order])


def test_differences_of_float32_rows_are_rounded_before_they_are_squared() -> None:
    query = torch.tensor([[1.0 + 2.0**-23] * 40])
    gallery = torch.tensor([[2.0**-40 * (1 + 2.0**-20)] * 40])
    call = (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), "euclidean", [40, 0, 0], 0.0, 0.0)
    assert_same_bits(operator("pair_scores")(query, gallery, *call), reference.pair_scores(query, gallery, *call))


@dtypes
def test_rows_may_lie_apart(dtype: torch.dtype) -> None:
    draw = normal(0, dtype)
    query, gallery = draw(5, 100)[:, 3:73], draw(12, 90)[::2, :70]
    rows, columns = torch.arange(5).repeat_interleave(6), torch.arange(6).repeat(5)
    call = (rows, columns, "product", [70, 0, 0], 0.0, 0.0)
    wanted = reference.pair_scores(query, gallery, *call)
    assert_same_bits(operator("pair_scores")(query, gallery, *call), wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 31, 32, 33, 96, 770])
def test_unit_rows_are_the_definitions_bits(dtype: torch.dtype, width: int) -> None:
    features = normal(width)(40, width)
    features[3], features[5, 1:] = 0, 0
    features *= torch.logspace(-4, 4, 40, dtype=torch.float64)[:, None]
    features = features.to(dtype)
    layouts = [features, features.repeat_interleave(2, dim=1)[:, ::2], features.T.contiguous().T, features[:, :1]]
    for layout in (*layouts, features[:1].expand(3, width)):
        rows, norms = operator("unit_rows")(layout)
        wanted_rows, wanted_norms = reference.unit_rows(layout)
        assert_same_bits(rows, wanted_rows)
        assert_same_bits(norms, wanted_norms)


def test_magnitudes_at_the_ends_of_float64_have_unit_rows() -> None:
    pattern = normal(2)(8, 50)
    pattern /= pattern.abs().amax(dim=1, keepdim=True)
    wanted = reference.unit_rows(pattern)[0]
    for factor in (2.0**1020, 2.0**-900):
        rows, norms = operator("unit_rows")(pattern * factor)
        assert_same_bits(rows, wanted)
        assert torch.equal(norms / factor, reference.unit_rows(pattern)[1])
    smallest = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * 5e-324
    rows, norms = operator("unit_rows")(smallest)
    assert rows.tolist() == [[0.6, 0.8]]
    assert norms.item() == 5 * 5e-324


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_norms_say_which_rows_are_not_finite(dtype: torch.dtype, value: float) -> None:
    features = torch.ones(3, 40, dtype=dtype)
    features[1, 37] = value
    assert operator("unit_rows")(features)[1].isfinite().tolist() == [True, False, True]


# Counting ------------------------------------------------------------------------------------------------------------


def count(case: Tiles, given: Thresholds, scores: Tensor, size: int) -> Tensor:
    counts = torch.zeros(len(given.values), dtype=torch.int64)
    for first, piece, gallery in case.pieces(scores, size):
        operator("count_before")(
            piece, case.slack, case.query, gallery, first, given.starts, given.values, given.entries,
            case.left_out_starts, case.left_out, *case.form, counts,
        )  # fmt: skip
    return counts


@forms
@dtypes
@pytest.mark.parametrize(("size", "most"), [(150, 12), (37, 12), (64, 300), (1, 3)])
def test_counts_are_those_of_exact_scores(form: str, dtype: torch.dtype, size: int, most: int) -> None:
    for seed in range(3):
        case = tiles(seed, form, dtype)
        given = thresholds(case, seed, most)
        wanted = entries_before(case, given)
        for unknown in (0.0, 0.1, 1.0):
            assert torch.equal(count(case, given, case.scores(seed, unknown=unknown), size), wanted)


@pytest.mark.parametrize("most", [12, 300])
@pytest.mark.parametrize("alike", [1, 4])
def test_ties_within_and_across_tiles_are_counted_by_index(most: int, alike: int) -> None:
    case = tiles(5, "product", alike=alike)
    given = thresholds(case, 6, most)
    for size in (150, 40):
        assert torch.equal(count(case, given, case.scores(1), size), entries_before(case, given))


@pytest.mark.parametrize("most", [20, 300])
def test_no_pair_is_lost_at_the_edges_of_the_slack(most: int) -> None:
    """Scores as far from the exact ones as the slack allows, a few float32 numbers from every threshold."""
    case = tiles(3, "product", torch.float64)
    case.gallery[:] = case.gallery[:1] + 1e-8 * case.gallery
    case.exact[:] = case.query @ case.gallery.T
    every = torch.arange(len(case.exact)).repeat_interleave(case.exact.shape[1])
    case.exact[:] = reference.pair_scores(
        case.query, case.gallery, every, torch.arange(case.exact.shape[1]).repeat(len(case.exact)), *case.form
    ).view_as(case.exact)
    given = thresholds(case, 4, most)
    nearest = case.exact.float()
    up, down = (torch.nextafter(nearest, torch.tensor(sign * torch.inf)) for sign in (1, -1))
    further = (up - case.exact).abs().maximum((down - case.exact).abs()).amax(dim=1)
    case.slack[:] = torch.nextafter(further.float(), torch.tensor(torch.inf))
    for scores in (nearest, up, down, torch.where(torch.arange(150) % 2 == 0, up, down)):
        assert torch.equal(count(case, given, scores, 64), entries_before(case, given))


def test_a_slack_without_an_end_leaves_all_to_the_exact_scores() -> None:
    case = tiles(1, "euclidean")
    given = thresholds(case, 2, 9)
    garbage = normal(0, torch.float32)(*case.exact.shape)
    for slack in (torch.inf, torch.nan):
        case.slack[:] = slack
        assert torch.equal(count(case, given, garbage, 64), entries_before(case, given))


@pytest.mark.parametrize("most", [12, 300])
def test_thresholds_may_begin_anywhere_and_counts_are_added_to(most: int) -> None:
    case = tiles(2, "product")
    given = thresholds(case, 3, most)
    wanted = entries_before(case, given)
    counts = torch.full((len(wanted),), 1000)
    rows = slice(3, 6)
    operator("count_before")(
        case.scores(1)[rows], case.slack[rows], case.query[rows], case.gallery, 0, given.starts[3:7], given.values,
        given.entries, case.left_out_starts[3:7], case.left_out, *case.form, counts,
    )  # fmt: skip
    inside = torch.zeros(len(wanted), dtype=torch.bool)
    inside[given.starts[3] : given.starts[6]] = True
    assert torch.equal(counts, 1000 + torch.where(inside, wanted, 0))


# The best -----------------------------------------------------------------------------------------------------------


def collect(
    case: Tiles, scores: Tensor, size: int, k: int, largest: bool = True, **rules: Any
) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.full((len(scores), k), torch.nan, dtype=torch.float64)
    indices = torch.full((len(scores), k), -1)
    filled = torch.zeros(len(scores), dtype=torch.int64)
    of = {"camids": None, "pids": None, "times": None, **rules}
    for first, piece, gallery in case.pieces(scores, size):
        sides = {
            name: (None, None) if labels is None else (labels[0], labels[1][first : first + size])
            for name, labels in of.items()
            if name in ("camids", "pids", "times")
        }
        operator("collect_top")(
            piece, case.slack, case.query, gallery, first, case.left_out_starts, case.left_out, *case.form, largest,
            *sides["camids"], rules.get("camera_rule", 0), *sides["pids"], rules.get("pid_rule", 0), *sides["times"],
            rules.get("earliest", 0.0), rules.get("latest", 0.0), values, indices, filled,
        )  # fmt: skip
    return values, indices, filled


def assert_same_lists(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@forms
@dtypes
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("size", "k"), [(150, 10), (37, 1), (64, 100), (20, 149), (150, 200)])
def test_the_best_are_those_of_exact_scores(form: str, dtype: torch.dtype, largest: bool, size: int, k: int) -> None:
    for seed in range(2):
        case = tiles(seed, form, dtype)
        wanted = best(case, case.counts(), k, largest)
        for unknown in (0.0, 0.1, 1.0):
            got = collect(case, case.scores(seed, unknown=unknown), size, k, largest)
            assert_same_lists(got, wanted)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("alike", [1, 4])
def test_of_equal_entries_the_first_are_the_best(alike: int, largest: bool) -> None:
    case = tiles(5, "product", alike=alike)
    for size, k in ((150, 10), (40, 60)):
        assert_same_lists(collect(case, case.scores(1), size, k, largest), best(case, case.counts(), k, largest))


@pytest.mark.parametrize("rising", [True, False])
def test_the_order_of_the_gallery_does_not_matter(rising: bool) -> None:
    case = tiles(8, "product", queries=1)
    order = case.exact[0].argsort(descending=not rising)
    case.gallery[:], case.exact[:] = case.gallery[order], case.exact[:, order]
    assert_same_lists(collect(case, case.scores(1), 64, 10), best(case, case.counts(), 10, True))


@pytest.mark.parametrize("camera_rule", [0, 1, 2])
@pytest.mark.parametrize("pid_rule", [0, 1, 2])
@pytest.mark.parametrize("with_times", [False, True])
def test_every_rule_holds_inside(camera_rule: int, pid_rule: int, with_times: bool) -> None:
    case = tiles(4, "product")
    generator = torch.Generator().manual_seed(0)
    camids, pids = ([torch.randint(-1, 3, (size,), generator=generator) for size in (7, 150)] for _ in range(2))
    times = [torch.rand(size, generator=generator, dtype=torch.float64) * 10 for size in (7, 150)]
    times[0][2] = times[1][5] = torch.nan
    allowed = case.counts()
    for rule, (of_query, of_gallery) in ((camera_rule, camids), (pid_rule, pids)):
        equal = (of_query[:, None] == of_gallery) & (of_gallery != -1)
        allowed &= {0: torch.ones_like(equal), 1: ~equal, 2: equal}[rule]
    rules: dict[str, Any] = {"camids": camids, "pids": pids, "camera_rule": camera_rule, "pid_rule": pid_rule}
    if with_times:
        later = times[1] - times[0][:, None]
        later[0, 0], times[1][0] = 0.5, times[0][0] + 0.5
        later = times[1] - times[0][:, None]
        allowed &= (later >= -2) & (later <= 3)
        rules |= {"times": times, "earliest": -2.0, "latest": 3.0}
    for size in (150, 40):
        assert_same_lists(collect(case, case.scores(1), size, 12, **rules), best(case, allowed, 12, True))


@pytest.mark.parametrize("slack", [torch.inf, torch.nan])
def test_a_slack_without_an_end_finds_the_best_too(slack: float) -> None:
    case = tiles(1, "product")
    case.slack[:] = slack
    garbage = normal(0, torch.float32)(*case.exact.shape)
    garbage[:, ::7] = torch.inf
    for largest in (True, False):
        assert_same_lists(collect(case, garbage, 64, 9, largest), best(case, case.counts(), 9, largest))


# Calls --------------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_threads() -> None:
    case = tiles(9, "sum", queries=300, entries=200)
    given = thresholds(case, 1, 100)
    features = normal(1, torch.float32)(2000, 65)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            scores = case.scores(1)
            results = (*operator("unit_rows")(features), *collect(case, scores, 200, 10))
            found.append((count(case, given, scores, 200), *results))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], entries_before(case, given))
    for other in found[1:]:
        assert_same_lists(other, found[0])


def test_empty_sides_change_nothing() -> None:
    case = tiles(0, "product", queries=1)
    nothing = torch.empty(0, dtype=torch.int64)
    empty = torch.empty(1, 0)
    counts = torch.full((2,), 5)
    operator("count_before")(
        empty, case.slack, case.query, case.gallery[:0], 0, torch.tensor([0, 2]), torch.zeros(2).double(),
        torch.zeros(2).long(), torch.zeros(2).long(), nothing, *case.form, counts,
    )  # fmt: skip
    assert counts.tolist() == [5, 5]
    assert operator("pair_scores")(case.query, case.gallery, nothing, nothing, *case.form).shape == (0,)
    assert [len(result) for result in operator("unit_rows")(torch.empty(0, 4))] == [0, 0]
    assert operator("unit_rows")(torch.empty(3, 0))[1].tolist() == [0.0] * 3


def test_direct_calls_are_checked_before_memory_is_read() -> None:
    case = tiles(0, "product")
    zero = torch.zeros(1, dtype=torch.int64)
    pairs = operator("pair_scores")
    for changed, message in (
        ((case.query.double(), case.gallery, zero, zero, *case.form), "both be float32 or both float64"),
        ((case.query[:, :-1], case.gallery, zero, zero, *case.form), r"\(Q, W\) and \(G, W\)"),
        ((case.query, case.gallery.T.contiguous().T, zero, zero, *case.form), "columns .* contiguous"),
        ((case.query, case.gallery, zero + 7, zero, *case.form), "rows and columns must be those"),
        ((case.query, case.gallery, zero, zero - 1, *case.form), "rows and columns must be those"),
        ((case.query, case.gallery, zero, zero.int(), *case.form), "columns must be .* int64"),
        ((case.query, case.gallery, zero, zero, "l1", *case.form[1:]), "form is product"),
        ((case.query, case.gallery, zero, zero, "product", [39, 0, 0], 0.0, 0.0), "add up"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pairs(*changed)
    given = thresholds(case, 0, 5)
    counts = torch.zeros(len(given.values), dtype=torch.int64)
    arguments = {
        "scores": case.scores(0), "slack": case.slack, "query": case.query, "gallery": case.gallery, "first": 0,
        "starts": given.starts, "thresholds": given.values, "entries": given.entries,
        "left_out_starts": case.left_out_starts, "left_out": case.left_out, "counts": counts,
        **dict(zip(("form", "widths", "weight", "epsilon"), case.form, strict=True)),
    }  # fmt: skip
    for name, wrong, message in (
        ("scores", case.scores(0).double(), "scores must be"),
        ("scores", case.scores(0)[:, :-1], "a row for each"),
        ("slack", case.slack[:-1], "slack has 6 numbers instead of 7"),
        ("gallery", case.gallery[:-1], "a row for each"),
        ("starts", given.starts + 1, "starts must rise"),
        ("starts", given.starts.flip(0), "starts must rise"),
        ("left_out_starts", case.left_out_starts + 1, "left_out_starts must rise"),
        ("entries", given.entries[:-1], "entries has"),
        ("counts", counts.int(), "counts must be"),
        ("thresholds", given.values.float(), "thresholds must be"),
    ):
        with pytest.raises(RuntimeError, match=f"count_before: .*{message}"):
            operator("count_before")(**{**arguments, name: wrong})


def test_the_operators_pass_opcheck() -> None:
    case = tiles(0, "sum", queries=2, entries=9, width=6)
    features = normal(0, torch.float16)(4, 5)
    torch.library.opcheck(operator("unit_rows"), (features,))
    pairs = (case.query, case.gallery, torch.tensor([1, 0]), torch.tensor([3, 8]), *case.form)
    torch.library.opcheck(operator("pair_scores"), pairs)
    assert set(SCHEMAS) == {"unit_rows", "pair_scores", "count_before", "collect_top"}


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_variants_for_older_processors_agree(capability: str) -> None:
    tests = ["bits", "rounded", "counts", "slack", "equal", "best", "rule", "ties"]
    check_on_older_processors(__file__, capability, " or ".join(tests))
