"""The k-reciprocal functions against sets and dense rows, and the C++ ones against the definitions' bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from motarfuse.ops.k_reciprocal import OPERATOR, SCHEMAS, Functions
from tests.ops.k_reciprocal_cases import Samples, by_column, overlap, run, samples
from tests.ops.kernel_cases import needs_native

REFERENCE = Functions(())
NATIVE = Functions(list(SCHEMAS))
sides = pytest.mark.parametrize(
    "functions", [pytest.param(REFERENCE, id="reference"), pytest.param(NATIVE, id="cpu", marks=needs_native)]
)
CASES = [(0, 9, 5, 3, 20), (1, 1, 1, 1, 1), (2, 9, 9, 9, 59), (3, 4, 3, 2, 30)]
cases = pytest.mark.parametrize(("seed", "k", "h", "averaged", "queries"), CASES)


def dense(case: Samples) -> Tensor:
    table = torch.zeros(len(case.starts) - 1, len(case.starts) - 1, dtype=torch.float64)
    row = torch.repeat_interleave(torch.arange(len(table)), case.starts.diff())
    table[row, case.columns.long()] = case.values
    return table


def reciprocal(case: Samples, sample: int, k: int) -> set[int]:
    nearest = case.neighbors[:, :k].tolist()
    return {other for other in nearest[sample] if sample in nearest[other]}


@sides
@cases
@pytest.mark.parametrize("hub", [False, True])
def test_sets_means_and_overlaps_are_what_they_are_called(
    functions: Functions, seed: int, k: int, h: int, averaged: int, queries: int, hub: bool
) -> None:
    case = samples(seed, hub=hub)
    wide, _, sizes, members, normal, lengths, columns, means, asked, counts, out, sums = run(
        functions, case, k, h, averaged, queries
    )
    table = dense(case)
    starts, mean_starts = (torch.cat([one.new_zeros(1), one.cumsum(0)]).tolist() for one in (sizes, lengths))
    for i in range(60):
        own = reciprocal(case, i, k)
        assert wide[i].tolist() == sorted(own) + [60] * (k - len(own))
        wanted = set(own)
        for candidate in own:
            theirs = reciprocal(case, candidate, h)
            if len(theirs & own) > 2.0 / 3 * len(theirs):
                wanted |= theirs
        assert members[starts[i] : starts[i + 1]].tolist() == sorted(wanted)
        row = normal[case.starts[i] : case.starts[i + 1]]
        torch.testing.assert_close(row, table[i][table[i] > 0] / table[i].sum(), rtol=1e-14, atol=0)
        mean = table[case.neighbors[i, :averaged].long()].mean(dim=0)
        found = torch.zeros(60, dtype=torch.float64)
        some = slice(mean_starts[i], mean_starts[i + 1])
        assert columns[some].tolist() == mean.nonzero().flatten().tolist()
        found[columns[some].long()] = means[some]
        torch.testing.assert_close(found, mean, rtol=1e-14, atol=0)
    gallery = 60 - queries
    for place, query in enumerate(asked.tolist()):
        shared = torch.minimum(table[query], table[queries:]).sum(dim=1)
        first = place * (gallery + 2)
        some = slice(first, first + int(counts[place]))
        assert out[some].tolist() == shared.nonzero().flatten().tolist()
        torch.testing.assert_close(sums[some], shared[shared > 0], rtol=1e-14, atol=0)
        assert (out[some.stop : first + gallery + 2] == -1).all()


@needs_native
@cases
@pytest.mark.parametrize("hub", [False, True])
def test_cpp_gives_the_definitions_bits(seed: int, k: int, h: int, averaged: int, queries: int, hub: bool) -> None:
    for count in (60, 300):
        case = samples(seed, count, hub=hub)
        for one, other in zip(
            run(NATIVE, case, k, h, averaged, queries), run(REFERENCE, case, k, h, averaged, queries), strict=True
        ):
            assert torch.equal(one, other)


@sides
def test_a_set_is_added_where_more_than_two_thirds_are_shared(functions: Functions) -> None:
    """Of three, two are not enough; of four, three are."""
    none = 9
    wide = torch.full((9, 4), none, dtype=torch.int32)
    narrow = torch.full((9, 4), none, dtype=torch.int32)
    wide[0] = torch.tensor([0, 1, 2, 3])
    narrow[1, :3], narrow[2] = torch.tensor([1, 2, 7]), torch.tensor([0, 1, 2, 8])
    sizes = torch.zeros(9, dtype=torch.int64)
    functions.expand(wide, narrow, None, sizes)
    assert sizes.tolist() == [5, *[0] * 8]
    members = torch.zeros(5, dtype=torch.int32)
    functions.expand(wide, narrow, torch.tensor([0, *[5] * 9]), members)
    assert members.tolist() == [0, 1, 2, 3, 8]


@needs_native
def test_threads_change_nothing() -> None:
    case = samples(5, 400)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(NATIVE, case, 9, 5, 4, 150))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@sides
def test_a_large_gallery_with_few_overlaps(functions: Functions) -> None:
    """Where sorting what was met is less work than a look at every entry."""
    case = samples(6, 40)
    count = 4000
    starts = torch.cat([case.starts, case.starts[-1:].expand(count - 40)])
    case = replace(case, starts=starts)
    _, counts, out, sums = overlap(functions, case, 5)
    assert counts.tolist() == [int((row > 0).sum()) for row in shared_by(case, 5).flip(0)[::2]]
    for row, found in zip(shared_by(case, 5).flip(0)[::2], out.split(count - 5 + 2), strict=True):
        assert found[found >= 0].tolist() == row.nonzero().flatten().tolist()
    assert (sums[out >= 0] > 0).all()


def shared_by(case: Samples, queries: int) -> Tensor:
    table = dense(case)
    return torch.stack([torch.minimum(row, table[queries:]).sum(dim=1) for row in table[:queries]])


@sides
def test_no_samples_and_no_queries_are_no_error(functions: Functions) -> None:
    case = samples(0)
    inverse = by_column(case, 60)
    nothing = torch.zeros(0, dtype=torch.int64)
    functions.overlap(
        case.starts, case.columns, case.values, nothing, *inverse, 0, torch.zeros(1, dtype=torch.int64), nothing,
        torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.float64),
    )  # fmt: skip


@needs_native
def test_direct_calls_are_checked_before_memory_is_read() -> None:
    case = samples(0)
    rows = case.starts, case.columns, case.values
    sizes = torch.zeros(60, dtype=torch.int64)
    wide = NATIVE.neighbors(case.neighbors, 9)
    with pytest.raises(RuntimeError, match="k must be 1 to the length"):
        NATIVE.neighbors(case.neighbors, 10)
    with pytest.raises(RuntimeError, match="contiguous matrix of int32"):
        NATIVE.neighbors(case.neighbors.long(), 3)
    with pytest.raises(RuntimeError, match="0 to the number of samples"):
        NATIVE.neighbors(case.neighbors + 1, 3)
    with pytest.raises(RuntimeError, match="one int64 a row"):
        NATIVE.expand(wide, wide, None, sizes[1:])
    with pytest.raises(RuntimeError, match="of the same samples"):
        NATIVE.expand(wide, wide[1:], None, sizes)
    with pytest.raises(RuntimeError, match="0 to the number of samples"):
        NATIVE.expand(wide - 1, wide, None, sizes)
    with pytest.raises(RuntimeError, match="float64 values"):
        NATIVE.normalize(case.starts, case.values.float())
    with pytest.raises(RuntimeError, match="starts must rise"):
        NATIVE.normalize(case.starts + 1, case.values.clone())
    with pytest.raises(RuntimeError, match="one row a sample"):
        NATIVE.average(*rows, case.neighbors[1:], 3, None, sizes[1:], None)
    inverse = by_column(case, 20)
    asked, room = torch.arange(2), torch.tensor([0, 40, 80])
    tail = torch.zeros(2, dtype=torch.int64), torch.zeros(80, dtype=torch.int32), torch.zeros(80, dtype=torch.float64)
    for changed, message in (
        ((*rows, asked + 59, *inverse, 40, room, *tail), "queries must be those of the rows"),
        ((*rows, asked, *inverse, 39, room, *tail), "gallery's"),
        ((*rows, asked, *inverse, 40, room - 1, *tail), "starts must rise"),
        ((*rows, asked, *inverse, 40, room, tail[0], tail[1].long(), tail[2]), "int32 columns"),
        ((*rows, asked, inverse[0][:-1], *inverse[1:], 40, room, *tail), "starts must rise|columns must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            NATIVE.overlap(*changed)


def test_the_operator_is_listed() -> None:
    assert list(OPERATOR.backends) == ["cuda", "cpu", "reference"]
