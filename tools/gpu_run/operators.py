"""What the GPU run does for each operator. A new one joins by an entry here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """One operator's part; commands are arguments of Python, run in the repository's root.

    Attributes:
        tests: Patterns of the files with its GPU tests.
        bench: Its benchmark; ``--csv FILE`` is added.
        sanitize: A selection that ends in seconds without a sanitizer: every kernel at small and odd sizes.
        kernels: Parts of the names of its kernels, one for each at least; the sanitizers look at no others.
        tune: Searches launch parameters, under --tune only; ``--csv FILE`` is added. None where nothing is to be tuned.
        weight: Of its benchmark's time, relative to other operators'.
    """

    tests: tuple[str, ...]
    bench: tuple[str, ...]
    sanitize: tuple[str, ...]
    kernels: tuple[str, ...]
    tune: tuple[str, ...] | None = None
    weight: float = 1.0


OPERATORS = {
    "motion_attention": Operator(
        tests=("tests/ops/test_motion_attention*.py",),
        bench=("-m", "benchmarks.bench_motion_attention", "--device", "cuda"),
        sanitize=("-m", "benchmarks.bench_motion_attention", "--device", "cuda", "--check"),
        kernels=("motion_attention", "sum_heads_kernel"),
        tune=("-m", "benchmarks.tune_motion_attention"),
        weight=3.0,
    ),
    "part_moments": Operator(
        tests=("tests/ops/test_part_moments*.py",),
        bench=("-m", "benchmarks.bench_part_moments", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_part_moments.py"),
            *("-k", "rows_is_covered or hidden or float32_affines"),
        ),
        kernels=("part_moments",),
    ),
    "motion_warp": Operator(
        tests=("tests/ops/test_motion_warp*.py",),
        bench=("-m", "benchmarks.bench_motion_warp", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_motion_warp_kernels.py"),
            "-k",
            "(accurate and (9x7 or 5x13 or 1x1)) or block_each or some_of_the_results or without_mass or empty",
        ),
        kernels=("motion_warp",),
        weight=1.5,
    ),
    "part_pool": Operator(
        tests=("tests/ops/test_part_pool*.py",),
        bench=("-m", "benchmarks.bench_part_pool", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_part_pool.py", "tests/ops/test_part_pool_triton.py"),
            *("-k", "accurate or empty or keep_the_rule and (1-3-5 or 65-4-1) or all_channels_or_all_cells"),
        ),
        kernels=("part_pool",),
        weight=1.5,
    ),
}
