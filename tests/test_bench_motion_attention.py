"""The benchmark's own correctness: its cost formulas, its peers, and that nothing wrong is timed."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_motion_attention as bench
from benchmarks import motion_attention_peers as peers
from benchmarks.motion_attention_peers import Case, Inputs, Variant
from benchmarks.timing import COLUMNS, Ceilings, Timing, measure, peak_memory
from motarfuse.ops.backends import Backend

CPU = torch.device("cpu")
SMALL = Case(1, 2, 9, 9, 8, 3)
SECOND = Timing(1.0, 1.0, 1.0)
CEILING = Ceilings(copy=(SECOND, 10**12), product=(SECOND, 10**15))


@pytest.mark.parametrize(
    ("case", "gflop", "mbytes"),
    [
        (Case(64, 12, 129, 129, 64, 0), 3.27, 50.7),
        (Case(128, 12, 129, 129, 64, 0), 6.54, 101),
        (Case(64, 12, 211, 211, 64, 0), 8.75, 82.9),
        (Case(16, 12, 1032, 1032, 64, 0), 52.4, 101),
    ],
)
def test_useful_work_is_two_products_and_each_tensor_once(case: Case, gflop: float, mbytes: float) -> None:
    assert case.flops("fwd") / 1e9 == pytest.approx(gflop, rel=2e-3)
    assert case.flops("bwd") == 2.5 * case.flops("fwd")
    # The biases of keys are 1/64 of a tensor of tokens here.
    assert case.size_bytes("fwd", torch.bfloat16) / 1e6 == pytest.approx(mbytes, rel=2e-2)
    assert case.size_bytes("bwd", torch.bfloat16) / 1e6 == pytest.approx(2 * mbytes, rel=3e-2)
    assert case._replace(channels=8).flops("full") == case.flops("full") + 8 * 8 * case.flops("fwd") // (4 * 64)


def test_the_ceiling_is_the_slower_of_memory_and_matrix_units() -> None:
    assert CEILING.least_seconds(2e12, 1e15) == 2.0
    assert CEILING.least_seconds(1e12, 3e15) == 3.0


@pytest.mark.parametrize("case", [SMALL, SMALL._replace(channels=0), Case(2, 2, 3, 7, 8, 4)])
def test_everything_that_is_timed_computes_the_same(case: Case) -> None:
    one = bench.Bench(case, torch.float32, CPU)
    assert {"SDPA, bias materialised", "SDPA, bias folded", "SDPA, bias folded, no concat"} <= set(one.variants)
    assert max(error for error, _ in one.errors.values()) < 1e-5
    assert list(one.variants)[1] == f"{next(iter(one.variants))}, again"
    assert "FlexAttention, bias captured" in one.left_out


def test_cudnn_gets_a_value_that_is_not_widened_and_flash_three_equal_widths() -> None:
    inputs = peers.draw(Case(1, 2, 9, 9, 64, 8), torch.float32, CPU, 0)
    assert [tensor.shape[-1] for tensor in peers.fold(inputs, pad=False)] == [80, 80, 64]
    assert [tensor.shape[-1] for tensor in peers.fold(inputs, pad=True)] == [80, 80, 80]


def test_inputs_are_slices_of_one_packed_projection() -> None:
    inputs = peers.draw(SMALL, torch.float32, CPU, 0)
    storage = inputs.packed.untyped_storage().data_ptr()
    for tensor in (inputs.query, inputs.key, inputs.value):
        assert tensor.untyped_storage().data_ptr() == storage
        assert tensor.is_leaf
        assert tensor.stride() == (9 * 3 * 2 * 8, 8, 3 * 2 * 8, 1)


def wrong_backend(**_: Any) -> Backend:
    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        return 1.001 * peers.reference.motion_attention(query, key, value, **options)

    return Backend("wrong", run, lambda _: [])


def test_a_wrong_operator_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers.OPERATOR, "backends", {"wrong": wrong_backend()})
    with pytest.raises(bench.WrongResultError, match=r"wrong is wrong: .* by 1\.0e-03"):
        bench.Bench(SMALL, torch.float32, CPU)
    monkeypatch.setattr(bench, "CHECK_CASES", (SMALL,))
    assert bench.main(["--check"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_wrong_peer_and_one_that_cannot_run_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Inputs) -> torch.Tensor:
        raise RuntimeError("no kernel for this")

    def forward_only(inputs: Inputs) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradient of a bias")
        return peers._materialised(inputs, None)

    found = {
        "refusing": Variant(refuse, ("query",), "peer"),
        "wrong": Variant(lambda one: one.value * 2, ("value",), "peer"),
        "forward": Variant(forward_only, ("query",), "peer"),
    }
    monkeypatch.setattr(bench, "peers", lambda device, flex: (found, {}))
    one = bench.Bench(SMALL, torch.float32, CPU)
    assert "forward" in one.variants
    assert {"refusing", "wrong"}.isdisjoint(one.variants)
    assert one.left_out["refusing"] == "RuntimeError: no kernel for this"
    assert one.left_out["wrong"].startswith("its ")
    assert one.left_out["forward (gradients)"] == "RuntimeError: no gradient of a bias"
    assert "forward" in one.timings("fwd", turns=2)
    assert "forward" not in one.timings("full", turns=2)


def test_rows_have_every_column_and_the_ratio_is_to_the_best_biased_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "CPU_CASES", (SMALL, SMALL._replace(channels=0)))
    monkeypatch.setattr(bench, "ceilings", lambda device, clock: CEILING)
    threads = torch.get_num_threads()
    try:
        assert bench.main(["--csv", str(tmp_path / "rows.csv"), "--only", "R3", "--turns", "2"]) == 0
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["mode"] for row in rows} == {"fwd", "bwd", "full", "memory"}
    assert {row["shape"] for row in rows} == {SMALL.name}
    for mode in ("fwd", "bwd", "full", "memory"):
        ratios = {row["implementation"]: float(row["ratio_to_best_peer"]) for row in rows if row["mode"] == mode}
        best = max(ratios["SDPA, bias materialised"], ratios["SDPA, bias folded"])
        assert best == 1.0, mode


def test_a_case_is_chosen_by_the_words_of_its_name() -> None:
    cases = [SMALL, Case(2, 2, 3, 7, 8, 4)]
    assert bench.selected(cases, "") == cases
    assert bench.selected(cases, "N3+7") == [cases[1]]
    assert bench.selected(cases, "R3, R4") == cases
    with pytest.raises(SystemExit, match="no case matches 'R5'"):
        next(bench.run(argparse.Namespace(device="cpu", dtype=None, cpu_time=False, check=False, only="R5")))


def test_peak_memory_is_of_what_is_held_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1000)
        second = first + 1
        del first
        return second * 2

    assert 8000 <= peak_memory(call, CPU) < 8100  # and a few numbers of four bytes


def test_a_variant_that_cannot_be_timed_is_left_out_if_that_is_asked_for() -> None:
    def fails(_: int) -> None:
        raise ValueError("not here\nand more")

    left_out: dict[str, str] = {}
    assert list(measure({"works": lambda _: None, "fails": fails}, CPU, turns=2, left_out=left_out)) == ["works"]
    assert left_out == {"fails": "ValueError: not here"}
    with pytest.raises(ValueError, match="not here"):
        measure({"fails": fails}, CPU, turns=2)


def test_unknown_modes_and_a_missing_gpu_are_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--modes", "fwd,forward"])
    assert "unknown modes forward; known: fwd, bwd, full, memory" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["--device", "cuda"]) == 3
        assert "needs an NVIDIA GPU" in capsys.readouterr().out
