"""Every benchmark under `pytest benchmarks/ --benchmark-only`; not among the tests, whose folder is tests/.

pytest-benchmark times calls as a program makes them, host included (on a GPU with a synchronisation after each). The
comparison is in its extra_info: medians of all implementations that took turns, as `benchmarks.timing` measures them.
Numbers to commit come from `python -m benchmarks.bench_<op> --csv`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks import (
    bench_add_layer_norm,
    bench_batch_hard_triplet,
    bench_bias_gelu,
    bench_block,
    bench_gated_fusion,
    bench_linear_cross_entropy,
    bench_motion_attention,
    bench_motion_warp,
    bench_part_moments,
    bench_part_pool,
    bench_retrieval,
    bench_temporal_conv,
    operator_bench,
)
from benchmarks.motion_attention_peers import MODES, Case
from benchmarks.timing import Call, Ceilings, Timing

ROUNDS = 20
OPERATORS = (
    bench_part_moments.OPERATOR,
    bench_motion_warp.OPERATOR,
    bench_part_pool.OPERATOR,
    bench_add_layer_norm.OPERATOR,
    bench_gated_fusion.OPERATOR,
    bench_bias_gelu.OPERATOR,
    bench_temporal_conv.OPERATOR,
    bench_linear_cross_entropy.OPERATOR,
    bench_batch_hard_triplet.OPERATOR,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Shapes depend on the device."""
    gpu = metafunc.config.getoption("--device") != "cpu"
    if "case" in metafunc.fixturenames:
        cases = bench_motion_attention.GPU_CASES if gpu else bench_motion_attention.CPU_CASES
        metafunc.parametrize("case", cases, ids=[case.name.replace(" ", "-") for case in cases], scope="module")
    if "block" in metafunc.fixturenames:
        blocks = bench_block.GPU_SHAPES if gpu else bench_block.SHAPES
        metafunc.parametrize("block", blocks, ids=[str(one).replace(" ", "-") for one in blocks], scope="module")
    if "problem" in metafunc.fixturenames:
        problems = [(one, shape) for one in OPERATORS for shape in (one.gpu_shapes if gpu else one.shapes)]
        metafunc.parametrize(
            "problem", problems, ids=[f"{one.name}-{shape}" for one, shape in problems], scope="module"
        )


@lru_cache(maxsize=1)
def prepared(case: Case, device: torch.device, ceiling: Ceilings) -> bench_motion_attention.Bench:
    """Once for the modes of a case."""
    dtype = getattr(torch, bench_motion_attention.default_dtype(device))
    flex = device.type == "cuda" and case in bench_motion_attention.FLEX_CASES
    return bench_motion_attention.Bench(case, dtype, device, ceiling, flex=flex)


@pytest.mark.parametrize("mode", MODES)
def test_motion_attention(case: Case, mode: str, benchmark: Any, device: torch.device, ceiling: Ceilings) -> None:
    bench = prepared(case, device, ceiling)
    name = next(iter(bench.variants))
    found = bench.timings(mode, turns=11)
    ratio = bench.ratio(found, name)
    extra = summary(name, found, ratio, bench.fraction(mode, found[name]))
    if mode == "full":
        extra["peak_memory_mb"] = {other: size.median / 1e6 for other, size in bench.memory().items()}
    extra["left_out"] = dict(bench.left_out)
    time_calls(benchmark, bench.call(bench.variants[name], mode), device, extra, f"motion_attention {case.name}")


Problem = tuple[operator_bench.BenchedOperator, Any]


@lru_cache(maxsize=1)
def prepared_problem(problem: Problem, device: torch.device) -> operator_bench.Bench:
    """Once for the modes of a shape."""
    return operator_bench.Bench(*problem, torch.float32, device)


@pytest.mark.parametrize("mode", operator_bench.TIMED_MODES)
def test_operator(problem: Problem, mode: str, benchmark: Any, device: torch.device, ceiling: Ceilings) -> None:
    bench = prepared_problem(problem, device)
    found = bench.timings(mode, turns=11)
    fraction = bench.fraction(mode, found[bench.native], ceiling.bandwidth)
    extra = summary(bench.native, found, bench.ratio(found, bench.native), fraction)
    memory = bench.timings("memory fwd" if mode == "fwd" else "memory full")
    extra["extra_memory_mb"] = {name: size.median / 1e6 for name, size in memory.items()}
    time_calls(benchmark, bench.call(bench.native, mode), device, extra, problem[0].name)


@lru_cache(maxsize=1)
def prepared_block(shape: bench_block.BlockShape, device: torch.device) -> bench_block.Bench:
    """Once for the modes of a shape, in the dtype of the ceiling."""
    return bench_block.Bench(shape, torch.bfloat16 if device.type == "cuda" else torch.float32, device)


@pytest.mark.parametrize("mode", bench_block.MODES)
def test_block(
    block: bench_block.BlockShape, mode: str, benchmark: Any, device: torch.device, ceiling: Ceilings
) -> None:
    bench = prepared_block(block, device)
    found = bench.timings(mode, turns=11)
    name = bench_block.FUSED
    extra = summary(name, found, bench.ratio(found, name), bench.fraction(mode, found[name], ceiling))
    time_calls(benchmark, bench.call(name, mode), device, extra, str(block))


def test_retrieval(benchmark: Any, device: torch.device) -> None:
    calls, made = bench_retrieval.prepare(bench_retrieval.read_labels(None), device=device)
    found = bench_retrieval.timings(calls, made.queries, turns=3)
    name = "evaluate cosine"
    ratio = found["per-query numpy"].median / found[name].median
    extra = summary(name, found, ratio, found["matrix product alone"].median / found[name].median)
    time_calls(benchmark, calls[name], device, extra, "retrieval", rounds=3)


def summary(name: str, found: dict[str, Timing], ratio: float | None, fraction: float | None) -> dict[str, Any]:
    medians = {other: timing.median * 1e6 for other, timing in found.items()}
    return {
        "implementation": name, "ratio_to_best_peer": ratio, "fraction_of_ceiling": fraction, "medians_us": medians
    }  # fmt: skip


def time_calls(
    benchmark: Any, call: Call, device: torch.device, extra: dict[str, Any], group: str, rounds: int = ROUNDS
) -> None:
    benchmark.group = group
    benchmark.extra_info.update(extra)
    benchmark.pedantic(synchronised(call, device), rounds=rounds, warmup_rounds=1)


def synchronised(call: Call, device: torch.device) -> Callable[[], None]:
    turn = iter(range(1 << 30))

    def run() -> None:
        call(next(turn))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
