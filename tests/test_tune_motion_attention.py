"""The tuner where there is no GPU: what it tries and in which order, its time bound, its verdicts, its report."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from motarfuse.kernels import motion_attention_table as table
from motarfuse.kernels._launch import compiled_for
from motarfuse.kernels.motion_attention_table import Entry, ShortEntry, ShortOptions, Tiles

from benchmarks import motion_attention_candidates as candidates
from benchmarks import tune_motion_attention as tuner
from benchmarks.motion_attention_peers import Case
from benchmarks.timing import COLUMNS, Call, Timing, append_rows

OWN, FAST, SLOW = Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 2), Tiles(128, 64, 8, 2)
ENTRY = Entry(90, "backward_key", True, 64)
WORK = candidates.Work("backward_key", ENTRY, OWN, (FAST, SLOW), Case(1, 2, 9, 9, 64, 8), torch.bfloat16)
SECONDS = {OWN: 100e-6, FAST: 90e-6, SLOW: 120e-6}


class Clock:
    """Seconds that pass only where a fake spends them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def prepared(spills: int = 0, result: float = 1.0) -> tuner.Prepared:
    return tuner.Prepared(lambda _: None, {"out": torch.full((4,), result)}, 128, spills)


Fit = tuner.Prepared | tuner.UnfitError


def preparing(
    clock: Clock | None = None, fast: Fit | None = None, slow: Fit | None = None
) -> Callable[[candidates.Choice], tuner.Prepared]:
    """Takes ten seconds a choice; `fast` and `slow` are what is found of them."""

    def prepare(choice: candidates.Choice) -> tuner.Prepared:
        if clock is not None:
            clock.now += 10.0
        one = {FAST: fast, SLOW: slow}.get(choice) or prepared()
        if isinstance(one, tuner.UnfitError):
            raise one
        return one

    return prepare


def timed(seconds: Mapping[Any, float], noise: float = 0.0) -> tuner.Timer:
    by_name = {candidates.code(choice): value for choice, value in seconds.items()}

    def timer(calls: Mapping[str, Call]) -> dict[str, Timing]:
        found = {}
        for name in calls:
            value = by_name[name.removesuffix(", again")] + (noise if name.endswith(", again") else 0.0)
            found[name] = Timing(value, value, value)
        return found

    return timer


def tuned(fast: Fit | None = None, slow: Fit | None = None) -> tuner.Found:
    return tuner.tune(WORK, preparing(None, fast, slow), timed(SECONDS), end=1.0, clock=Clock())


def every_work() -> Iterator[candidates.Work]:
    for architecture in table.ARCHITECTURES:
        for dtype in (torch.bfloat16, torch.float32):
            yield from candidates.works(architecture, candidates.KERNELS, dtype, candidates.HEAD_DIMS)


def test_every_entry_of_the_table_has_a_few_candidates_that_the_launcher_can_take() -> None:
    entries = {work.entry for work in every_work() if work.kernel != "short"}
    assert entries == set(table.TABLE)
    for work in every_work():
        assert 3 <= len(work.candidates) <= 8, work.name
        assert len({work.own, *work.candidates}) == len(work.candidates) + 1, work.name
        for choice in work.candidates:
            assert choice.num_warps in (4, 8)
            if isinstance(choice, Tiles):
                assert 128 % choice.block_m == 128 % choice.block_n == 0
                assert choice.passes == 1 or work.kernel == "backward_key"


def test_the_network_s_head_dim_and_its_most_expensive_kernels_come_first() -> None:
    found = candidates.works(90, ("forward", "short", "backward_key"), torch.float16, [32, 64])
    assert [(work.kernel, work.case.width) for work in found] == [
        *[("short", 64)] * 3, ("backward_key", 64), ("forward", 64), *[("short", 32)] * 3, ("backward_key", 32),
        ("forward", 32),
    ]  # fmt: skip
    assert {work.case.queries for work in found[:3]} == {129, 211, 243}
    assert all(work.case.width * work.case.heads == 768 for work in found)


def test_the_short_path_is_tuned_where_it_is_taken() -> None:
    assert candidates.works(90, ("short",), torch.float32, [64]) == []
    assert candidates.works(90, ("short",), torch.bfloat16, [128]) == []
    assert [work.entry for work in candidates.works(80, ("short",), torch.bfloat16, [64])] == [ShortEntry(80, 64, 144)]


def test_a_choice_replaces_what_a_launch_asks_for() -> None:
    with WORK.overridden(SLOW):
        assert table.tiles(*ENTRY) == SLOW
    assert table.tiles(*ENTRY) == table.TABLE[ENTRY]
    work = candidates.works(90, ("short",), torch.bfloat16, [64])[0]
    arguments = (90, True, 64, 64 * 12, 129, 129)
    before = table.short_plan(*arguments)
    assert before is not None
    assert before.programs == 1
    programs = set()
    for choice in work.candidates:
        with work.overridden(choice):
            plan = table.short_plan(*arguments)
        assert plan is not None
        assert (plan.num_warps, plan.num_stages, plan.maxnreg) == choice[:3]
        assert plan[:3] == before[:3]
        programs.add(plan.programs)
    assert programs == {1, 2, 3}
    assert table.short_plan(*arguments) == before
    with table.override({}, {work.entry: ShortOptions(8)}):
        assert table.short_plan(90, True, 64, 768, 211, 211) == table.short_plan(90, True, 64, 768, 212, 212)


def test_the_faster_candidate_wins_if_it_beats_the_noise() -> None:
    found = tuned()
    assert found.winner == FAST
    own = candidates.code(OWN)
    assert list(found.timings) == [own, f"{own}, again", candidates.code(FAST), candidates.code(SLOW)]
    for noise, wins in ((9e-6, True), (11e-6, False), (-6e-6, False)):
        noisy = tuner.tune(WORK, preparing(), timed(SECONDS, noise), end=1.0, clock=Clock())
        assert noisy.noise == pytest.approx(abs(noise))
        assert (noisy.winner == FAST) == wins
    none = tuner.tune(WORK, preparing(), timed({**SECONDS, FAST: 101e-6}), end=1.0, clock=Clock())
    assert none.winner is None


@pytest.mark.parametrize(
    ("fast", "reason"),
    [
        (tuner.UnfitError("OutOfResources: shared memory"), "OutOfResources: shared memory"),
        (prepared(spills=3), "spills 3 words (the table's own: 0)"),
        (prepared(result=1.2), "WRONG: its out differs by 2.0e-01 (at most 5e-02)"),
        (prepared(result=float("nan")), "WRONG: its out differs by nan (at most 5e-02)"),
    ],
)
def test_a_candidate_that_is_not_fit_is_dropped_before_it_is_timed(fast: Fit, reason: str) -> None:
    found = tuned(fast=fast)
    assert found.dropped == {candidates.code(FAST): reason}
    assert candidates.code(FAST) not in found.timings
    assert candidates.code(SLOW) in found.timings
    assert found.winner is None
    assert any("dropped" in line and reason in line for line in tuner.lines(found))


def test_without_candidates_nothing_is_timed() -> None:
    found = tuned(fast=prepared(spills=1), slow=prepared(spills=1))
    assert found.timings == {}
    assert found.winner is None
    assert tuner.rows(found) == []


def test_as_many_spills_as_the_table_s_own_are_fit() -> None:
    def prepare(choice: candidates.Choice) -> tuner.Prepared:
        return prepared(spills=5 if choice == OWN else 4)

    assert tuner.tune(WORK, prepare, timed(SECONDS), end=1.0, clock=Clock()).winner == FAST


def test_a_table_s_entry_that_does_not_run_is_a_failure() -> None:
    def prepare(choice: candidates.Choice) -> tuner.Prepared:
        raise tuner.UnfitError("PTXASError: no")

    found = tuner.tune(WORK, prepare, timed(SECONDS), end=1.0, clock=Clock())
    assert found.failure == "PTXASError: no"
    assert "FAILED" in "\n".join(tuner.lines(found))


@pytest.mark.parametrize(
    ("seconds", "timings", "unreached"),
    [(100.0, [4, 4], [0, 0]), (45.0, [4, 3], [0, 1]), (30.0, [4, 0], [0, 2]), (15.0, [3, 0], [1, 2])],
)
def test_time_ends_between_candidates_and_what_was_not_reached_is_said(
    seconds: float, timings: list[int], unreached: list[int]
) -> None:
    clock = Clock()
    todo = [WORK, WORK._replace(kernel="forward")]
    found = list(tuner.tune_all(todo, lambda _: preparing(clock), timed(SECONDS), seconds, clock))
    assert [len(one.timings) for one in found] == timings
    assert [len(one.unreached) for one in found] == unreached
    for one in found:
        said = [line for line in tuner.lines(one) if "not reached" in line]
        assert len(said) == (len(one.unreached) > 0)
        assert all(candidates.code(choice) in said[0] for choice in one.unreached)


def test_rows_are_of_the_common_format_and_the_table_s_own_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    append_rows(file, tuner.rows(tuned()))
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["median"] for row in rows] == ["100.0", "100.0", "90.0", "120.0"]
    assert [row["ratio_to_best_peer"] for row in rows] == ["0.90", "0.90", "1.11", "0.75"]
    assert {(row["operator"], row["mode"], row["dtype"]) for row in rows} == {
        ("motion_attention", "backward_key", "bfloat16")
    }


def test_replacements_are_lines_of_the_table() -> None:
    wide = WORK._replace(entry=ENTRY._replace(block_d=128), candidates=(Tiles(32, 64, 4, 2, 168, passes=2),))
    short = candidates.works(90, ("short",), torch.bfloat16, [64])[0]._replace(candidates=(ShortOptions(busy=1536),))
    wins = [tuned()]
    for work in (wide, short):
        speeds = {work.own: 100e-6, work.candidates[0]: 50e-6}
        wins.append(tuner.tune(work, preparing(), timed(speeds), end=1.0, clock=Clock()))
    lost = WORK._replace(entry=ENTRY._replace(kernel="forward"))
    loss = tuner.tune(lost, preparing(), timed(SECONDS, noise=1.0), end=1.0, clock=Clock())
    first, second = tuner.replacements([*wins, loss])
    own = candidates.code(table.TABLE[ENTRY._replace(block_d=32)])
    replacement = f"backward_key=({own}, Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 2, maxnreg=168, passes=2)),"
    assert first.split(": ")[1] == replacement
    assert first.strip().startswith("_rows(90, True, ...)")
    assert second.strip() == "SHORT: ShortEntry(90, 64, 144): ShortOptions(busy=1536),"
    names = {"Tiles": Tiles, "ShortOptions": ShortOptions}
    for work in every_work():
        assert all(eval(candidates.code(choice), names) == choice for choice in (work.own, *work.candidates))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuner.main([]) == 3
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--head-dims", "48"], ["--head-dims", "x"], ["--kernel", "sideways"], ["--seconds", "0"]]
)
def test_a_wrong_call_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        tuner.main(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize("kernel", candidates.KERNELS)
def test_a_choice_is_launched_by_the_real_launcher(kernel: str) -> None:
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half, length = kernel == "short", 17 if kernel == "short" else 33
    dtype = torch.float16 if half else torch.float32  # the interpreter knows no bfloat16 constants
    case = Case(1, 2, length, length, 16, 3)
    architecture = 90 if device.type == "cpu" else compiled_for(torch.cuda.get_device_capability())
    entry: Entry | ShortEntry = Entry(architecture, kernel, half, 32)
    own, other = Tiles(64, 32, 4, 1), Tiles(32, 64, 4, 1, passes=2 if kernel == "backward_key" else 1)
    if kernel == "short":
        entry, own, other = ShortEntry(architecture, 32, 32), ShortOptions(), ShortOptions(num_warps=8)
    work = candidates.Work(kernel, entry, own, (other,), case, dtype)
    launcher = tuner.Launcher(work, device)
    calls: dict[str, Call] = {}

    def timer(given: Mapping[str, Call]) -> dict[str, Timing]:
        calls.update(given)
        return dict.fromkeys(given, Timing(1.0, 1.0, 1.0))

    found = tuner.tune(work, launcher.prepare, timer, end=1.0, clock=Clock())
    assert (found.failure, found.dropped) == ("", {})
    assert list(calls) == [candidates.code(own), f"{candidates.code(own)}, again", candidates.code(other)]
    first, second = (launcher.prepare(choice).results for choice in (own, other))
    names = {"out", "lse"} if kernel in ("forward", "short") else {"query", "key", "value", "motion_scale"}
    assert names <= set(first)
    assert tuner.difference(first, second)[0] < 1e-2
    for tensor in second.values():
        tensor.fill_(float("nan"))
    assert tuner.difference(first, launcher.prepare(other).results)[0] < 1e-2


def test_only_what_the_compiler_refuses_drops_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    launcher = object.__new__(tuner.Launcher)
    launcher.work = WORK
    refusals = [errors.OutOfResources(300000, 232448, "shared memory"), errors.PTXASError("ptxas died")]
    refusals.append(RuntimeError("PassManager::run failed"))

    def failing(error: Exception) -> Callable[[], tuner.Prepared]:
        def prepare() -> tuner.Prepared:
            raise error

        return prepare

    for error in refusals:
        monkeypatch.setattr(launcher, "_prepare", failing(error))
        with pytest.raises(tuner.UnfitError, match=type(error).__name__):
            launcher.prepare(FAST)
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), KeyError("query")):
        monkeypatch.setattr(launcher, "_prepare", failing(error))
        with pytest.raises(type(error)):
            launcher.prepare(FAST)
