"""What the GPU run does for each operator. A new one joins by an entry here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """One operator's part; commands are arguments of Python, run in the repository's root.

    Attributes:
        tests: Patterns of the files with its GPU tests.
        bench: Its benchmark; ``--csv FILE`` is added.
        sanitize: A selection that ends in seconds without a sanitizer: every kernel at small and odd sizes. None for
            what is made of others' kernels.
        kernels: Parts of the names of its kernels, one for each at least; the sanitizers look at no others.
        tune: Searches launch parameters, under --tune only; ``--csv FILE`` is added. None where nothing is to be tuned.
        weight: Of its benchmark's time, relative to other operators'.
    """

    tests: tuple[str, ...]
    bench: tuple[str, ...]
    sanitize: tuple[str, ...] | None
    kernels: tuple[str, ...] = ()
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
    "add_layer_norm": Operator(
        tests=("tests/ops/test_add_layer_norm*.py",),
        bench=("-m", "benchmarks.bench_add_layer_norm", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_add_layer_norm_triton.py"),
            *("-k", "outputs_and_gradients or many_rows"),
        ),
        kernels=("add_layer_norm", "row_norm"),
    ),
    "gated_fusion": Operator(
        tests=("tests/ops/test_gated_fusion*.py",),
        bench=("-m", "benchmarks.bench_gated_fusion", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_gated_fusion_triton.py"),
            *("-k", "outputs_and_gradients or many_rows"),
        ),
        kernels=("gated_fusion", "row_norm"),
    ),
    "bias_gelu": Operator(
        tests=("tests/ops/test_bias_gelu*.py",),
        bench=("-m", "benchmarks.bench_bias_gelu", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_bias_gelu_triton.py"),
            *("-k", "result_and or views"),
        ),
        kernels=("bias_gelu", "row_norm_sum"),
    ),
    "temporal_conv": Operator(
        tests=("tests/ops/test_temporal_conv*.py",),
        bench=("-m", "benchmarks.bench_temporal_conv", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_temporal_conv_triton.py"),
            *("-k", "any_number_of or result_and or views"),
        ),
        kernels=("temporal_conv",),
    ),
    "linear_cross_entropy": Operator(
        tests=("tests/ops/test_linear_cross_entropy*.py",),
        bench=("-m", "benchmarks.bench_linear_cross_entropy", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_linear_cross_entropy_triton.py"),
            *("-k", "many_tiles or (keep_the_rule and 65-129-33)"),
        ),
        kernels=("linear_cross_entropy",),
    ),
    "batch_hard_triplet": Operator(
        tests=("tests/ops/test_batch_hard_triplet*.py",),
        bench=("-m", "benchmarks.bench_batch_hard_triplet", "--device", "cuda", "--dtypes", "float32,bfloat16"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_batch_hard_triplet_triton.py"),
            *("-k", "tiles_of_large or tiny or without_a_pair"),
        ),
        kernels=("batch_hard_triplet",),
    ),
    "ranking": Operator(
        tests=("tests/ops/test_ranking*.py", "tests/retrieval/test_*.py"),
        bench=("-m", "benchmarks.bench_retrieval", "--device", "cuda"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_ranking_gpu.py"),
            *("-k", "counts_are and 37-12 or (pairs_have or unit_rows_have) and 33 or several_rounds or begin"),
        ),
        kernels=("ranking",),
    ),
    "k_reciprocal": Operator(
        tests=("tests/ops/test_k_reciprocal*.py",),  # re-ranking itself is among the tests of retrieval
        bench=("-m", "benchmarks.bench_k_reciprocal", "--device", "cuda", "--samples", "19281", "--no-dense"),
        sanitize=(
            *("-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_k_reciprocal_gpu.py"),
            *("-k", "a_gpu_has"),
        ),
        kernels=("k_reciprocal",),
    ),
    "block": Operator(
        tests=("tests/test_nn_block.py",),
        bench=("-m", "benchmarks.bench_block", "--device", "cuda"),
        sanitize=None,
    ),
    "accelerate": Operator(
        tests=("tests/test_accelerate*.py",),
        bench=("-m", "benchmarks.bench_accelerate", "--device", "cuda"),
        sanitize=None,
    ),
}
