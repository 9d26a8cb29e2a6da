"""motion_warp's compiled kernels: by the one tolerance rule over shapes, dtypes and layouts, and at the edges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.timing import peak_memory
from motarfuse.ops import MotionWarp, cell_centers, motion_warp
from tests.ops.kernel_cases import (
    BACKENDS,
    DTYPES,
    KERNEL_BACKENDS,
    Layout,
    check_on_older_processors,
    every_second,
    expanded_over_the_batch,
    expanded_over_the_last,
    layout_name,
    misaligned,
    needs_native,
    transposed,
)
from tests.ops.motion_warp_cases import RESULTS, SHAPES, case, check, outputs_and_gradients

GRID = (16, 8)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("grid", "parts", "channels"),
    SHAPES,
    ids=[f"{height}x{width}x{parts}x{channels}" for (height, width), parts, channels in SHAPES],
)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_kernel_is_as_accurate_as_eager(
    backend: tuple[str, str], grid: tuple[int, int], parts: int, channels: int, dtype: torch.dtype
) -> None:
    for spread in (0.3, 3.0):
        check(backend, case(grid, dtype, parts=parts, channels=channels, spread=spread), grid)


@pytest.mark.parametrize("channels", [768, 1024])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_wide_tokens(backend: tuple[str, str], channels: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(backend, case(GRID, dtype, parts=8, channels=channels), GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [8, 24, 5])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_items_that_fill_a_machine_have_a_block_each(
    backend: tuple[str, str], channels: int, dtype: torch.dtype
) -> None:
    """Two a multiprocessor: a plan of the backward that smaller batches never take on a GPU."""
    device = backend[1]
    batch = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device == "cuda" else 64
    check(backend, case((4, 2), dtype, batch=batch, channels=channels), (4, 2))


@pytest.mark.parametrize("results", [("warped",), ("flow",), ("visibility",), ("warped", "visibility")], ids="+".join)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_loss_may_depend_on_some_of_the_results(backend: tuple[str, str], results: tuple[str, ...]) -> None:
    for grid in (GRID, (9, 7)):
        check(backend, case(grid), grid, results=results)
    without = case(GRID)
    del without["source_part_logits"]
    if results != ("visibility",):
        check(backend, without, GRID, results=results)


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_half_types_and_float32_may_be_mixed(backend: tuple[str, str], source: torch.dtype) -> None:
    inputs = case(GRID)
    for k, name in enumerate(inputs):
        inputs[name] = inputs[name].to([source, torch.float32, torch.bfloat16, torch.float16][k % 4])
    check(backend, inputs, GRID)
    half = {name: tensor.to(source) if "logits" in name else tensor for name, tensor in case(GRID).items()}
    check(backend, half, GRID)


LAYOUTS: list[Layout] = [
    every_second,
    transposed,
    expanded_over_the_batch,
    expanded_over_the_last,
    misaligned,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_strides_change_nothing(backend: tuple[str, str], layout: Layout, dtype: torch.dtype) -> None:
    singular = layout is expanded_over_the_last  # an affine of two equal columns
    for grid in (GRID, (9, 7)):
        inputs = case(grid, dtype, channels=24)
        inputs = {name: tensor if singular and "affines" in name else layout(tensor) for name, tensor in inputs.items()}
        check(backend, inputs, grid, incoming=lambda _, tensor: layout(tensor))


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_frames_of_a_clip_are_taken_as_they_lie(backend: tuple[str, str]) -> None:
    """Tokens of a clip behind a class token: a view, and the results are all that a call allocates."""
    impl, device = backend
    clip = case(GRID, batch=6, channels=8)
    frames = torch.randn(2, 3, 129, 8, generator=torch.Generator().manual_seed(2), device="cpu").to(device)
    tokens = frames[:, :, 1:].flatten(0, 1)
    assert tokens.data_ptr() == frames.data_ptr() + 8 * frames.element_size()
    inputs = {name: tensor.to(device) for name, tensor in clip.items()} | {"source": tokens}
    got = motion_warp(**inputs, grid=GRID, impl=impl)
    held = peak_memory(lambda: motion_warp(**inputs, grid=GRID, impl=impl), torch.device(device))
    # An allocator of a GPU rounds each of the three up.
    assert held <= sum(result.nbytes for result in got) + (3 * 512 if device == "cuda" else 0)
    wanted = motion_warp(**{**inputs, "source": tokens.contiguous()}, grid=GRID, impl=impl)
    assert torch.equal(got.warped, wanted.warped)
    check(backend, {**clip, "source": tokens}, GRID)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_gradients_take_the_layout_of_what_they_belong_to(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = {name: transposed(tensor.to(device)).requires_grad_() for name, tensor in case(GRID).items()}
    result = motion_warp(**inputs, grid=GRID, impl=impl)
    (result.warped.sum() + result.visibility.sum()).backward()
    for name in ("source", "part_logits", "source_part_logits"):
        gradient = inputs[name].grad
        assert gradient is not None
        assert gradient.stride() == inputs[name].stride()


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_float64_passes_gradcheck_through_the_compiled_code(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = {name: tensor.to(device).requires_grad_() for name, tensor in case((4, 3), torch.float64, batch=1).items()}
    *postures, source_logits = inputs.values()

    def call(*tensors: torch.Tensor) -> MotionWarp:
        return motion_warp(*tensors, grid=(4, 3), impl=impl)

    assert torch.autograd.gradcheck(lambda *tensors: call(*tensors, source_logits.detach())[:2], postures)
    # The visibility stops the target's gradient, which finite differences do not.
    fixed = [tensor.detach() for tensor in postures]
    assert torch.autograd.gradcheck(lambda logits: call(*fixed, logits).visibility, source_logits)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_two_runs_and_any_number_of_threads_agree_bitwise(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in case((64, 32), batch=5, parts=10, channels=32).items()}

    def run() -> dict[str, torch.Tensor]:
        return outputs_and_gradients(inputs, (64, 32), impl)

    threads = torch.get_num_threads()
    first, second = run(), run()
    try:
        torch.set_num_threads(1)
        single = run()
    finally:
        torch.set_num_threads(threads)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, single[name]), name


def _subsets() -> Iterator[tuple[str, ...]]:
    names = list(case((1, 1)))
    yield from ((name,) for name in names)
    yield ("source", "part_logits")
    yield ("source_affines", "target_keypoints", "source_part_logits")


@pytest.mark.parametrize("wanted", list(_subsets()), ids="+".join)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_only_what_requires_a_gradient_gets_one(backend: tuple[str, str], wanted: tuple[str, ...]) -> None:
    impl, device = backend
    grid, found = (4, 2), {}
    for name in (impl, "reference"):
        leaves = {
            key: tensor.to(device).requires_grad_(key in wanted) for key, tensor in case(grid, torch.float64).items()
        }
        result = motion_warp(**leaves, grid=grid, impl=name)
        parts = (result.warped.square(), result.flow.square(), result.visibility.square())
        sum(part.sum() for part in parts if part.requires_grad).backward()  # type: ignore[union-attr]
        assert {key for key, leaf in leaves.items() if leaf.grad is not None} == set(wanted)
        found[name] = leaves, [output.requires_grad for output in result]
    assert found[impl][1] == found["reference"][1]
    for key in wanted:
        torch.testing.assert_close(found[impl][0][key].grad, found["reference"][0][key].grad)


# At the edge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (7, 1), (1, 9), GRID], ids=str)
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_still_posture_moves_nothing_at_all(backend: tuple[str, str], grid: tuple[int, int]) -> None:
    """Not by a rounding: displacements are computed, and that of a still posture is zero."""
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in case(grid).items()}
    inputs |= {f"source_{name}": inputs[f"target_{name}"] for name in ("keypoints", "affines")}
    assert torch.equal(motion_warp(**inputs, grid=grid, impl=impl).warped, inputs["source"])


@pytest.mark.parametrize("grid", [GRID, (1, 1)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_flows_on_the_centres_of_border_cells_take_no_gradient_outwards(
    backend: tuple[str, str], grid: tuple[int, int]
) -> None:
    """Exactly there: a part that is everywhere and stays. ``F.grid_sample`` by itself says what is right."""
    impl, device = backend
    inputs = {name: tensor.to(device) for name, tensor in case(grid, parts=1).items()}
    for side in ("source", "target"):
        inputs[f"{side}_keypoints"] = torch.zeros_like(inputs[f"{side}_keypoints"])
        inputs[f"{side}_affines"] = torch.eye(2, device=device).expand(2, 1, 2, 2).clone()
    inputs["part_logits"][:, 0] = -torch.inf
    keypoints = inputs["source_keypoints"].requires_grad_()
    (found,) = torch.autograd.grad(motion_warp(**inputs, grid=grid, impl=impl).warped.sum(), keypoints)
    at = (cell_centers(grid, device=keypoints.device, dtype=keypoints.dtype) + keypoints).unflatten(1, grid)
    image = inputs["source"].transpose(1, 2).unflatten(2, grid)
    sampled = torch.nn.functional.grid_sample(image, at, padding_mode="border", align_corners=False)
    (wanted,) = torch.autograd.grad(sampled.sum(), keypoints)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
    assert wanted.any() == (grid == GRID)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_keypoints_far_outside_read_the_border_and_take_no_gradient(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = case(GRID, parts=2)
    inputs["source_keypoints"] = inputs["target_keypoints"] + 50.0
    inputs["part_logits"][:, 0] = -torch.inf
    check(backend, inputs, GRID)
    result = outputs_and_gradients({name: tensor.to(device) for name, tensor in inputs.items()}, GRID, impl,
                                   results=("warped",))  # fmt: skip
    corner = inputs["source"][:, -1:].to(device)
    torch.testing.assert_close(result["warped"], corner.expand_as(result["warped"]))
    assert not result["grad_source_keypoints"].any()
    assert not result["grad_source"][:, :-1].any()


@pytest.mark.parametrize("side", ["source_affines", "target_affines"])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_singular_affines_are_as_in_the_reference(backend: tuple[str, str], side: str) -> None:
    singular = torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[1e-5, 0.0], [0.0, -1e-5]], [[0.0, 0.0], [0.0, 0.0]]])
    for dtype in (torch.float32, torch.float64):
        inputs = case(GRID, dtype, parts=3)
        inputs[side] = singular.to(dtype).expand(2, 3, 2, 2).clone()
        check(backend, inputs, GRID)
    almost = case(GRID, torch.float64, parts=3)
    almost[side] = (torch.eye(2) * 1.1e-4).double().expand(2, 3, 2, 2).clone()  # a determinant just above the least
    check(backend, almost, GRID)


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_a_part_without_mass_takes_no_gradient(backend: tuple[str, str]) -> None:
    impl, device = backend
    inputs = case(GRID)
    inputs["part_logits"][:, 2] = -torch.inf
    inputs["source_part_logits"][:, 1] = -torch.inf
    check(backend, inputs, GRID)
    result = outputs_and_gradients({name: tensor.to(device) for name, tensor in inputs.items()}, GRID, impl)
    for name in ("source_keypoints", "source_affines", "target_keypoints", "target_affines"):
        assert not result[f"grad_{name}"][:, 1].any()
        assert result[f"grad_{name}"][:, 0].any()
    assert not result["grad_part_logits"][:, 2].any()


@pytest.mark.parametrize("name", ["source_keypoints", "target_affines", "part_logits", "source", "source_part_logits"])
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
def test_nan_shows_where_the_reference_shows_it(backend: tuple[str, str], name: str) -> None:
    impl, device = backend
    inputs = {key: tensor.to(device) for key, tensor in case(GRID, torch.float64).items()}
    inputs[name].view(2, -1)[0, 0] = torch.nan
    got, wanted = (outputs_and_gradients(inputs, GRID, one) for one in (impl, "reference"))
    assert any(got[result].isnan().any() for result in RESULTS)
    for key, value in wanted.items():
        assert torch.equal(value.isnan(), got[key].isnan()), key
        assert got[key][1].isfinite().all(), key


@pytest.mark.parametrize(("batch", "parts", "channels"), [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_dimensions(backend: tuple[str, str], batch: int, parts: int, channels: int) -> None:
    impl, device = backend
    inputs = {
        name: tensor.to(device).requires_grad_()
        for name, tensor in case((4, 2), batch=batch, parts=parts, channels=channels).items()
    }
    result = motion_warp(**inputs, grid=(4, 2), impl=impl)
    assert [tuple(tensor.shape) for tensor in result] == [(batch, 8, channels), (batch, 8, 2), (batch, 8)]
    (result.warped.sum() + result.flow.sum() + result.visibility.sum()).backward()
    for name, leaf in inputs.items():
        if leaf.grad is not None:
            assert leaf.grad.shape == leaf.shape
            assert leaf.grad.isfinite().all(), name
    if parts == 0 and batch:
        torch.testing.assert_close(result.warped, inputs["source"])


@needs_native
@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_the_variants_for_older_processors_are_as_accurate(capability: str) -> None:
    tests = ["accurate_as_eager and cpu and (9x7 or 16x8 or 64x32)", "strides and cpu and (misaligned or transposed)"]
    chosen = " or ".join(f"({test})" for test in tests)
    check_on_older_processors(__file__, capability, chosen)
