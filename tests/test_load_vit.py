"""A weight file alone makes the network it was saved from, whichever library wrote it; a bad file is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from motarfuse.errors import CheckpointError
from motarfuse.models import build_model, load_vit
from tests.test_clip import PlainTower, alone, hugging_face, openai
from tests.test_models import Malicious, timm_state
from tests.vit_copies import timm_like

IMAGE = (32, 16)


def timm_model(image: tuple[int, int] = IMAGE, patch: int = 8) -> timm_like.VisionTransformer:
    """As wide, deep and many-headed as nano."""
    torch.manual_seed(0)
    return timm_like.VisionTransformer(96, 4, 3, image, patch).eval()


def tensors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "vit.safetensors")
    return folder / "vit.safetensors"


def as_pickle(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "vit.pth")
    return folder / "vit.pth"


def as_old_pickle(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def as_folder(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


def check_embedding(model: Any, expected: Callable[[Tensor], Tensor], image: tuple[int, int] = IMAGE) -> None:
    given = torch.randn(3, 3, *image)
    with torch.no_grad():
        wanted, found = expected(given), model.eval()(given).embedding
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("write", [as_safetensors, as_pickle, as_old_pickle, as_folder])
def test_timms_files_make_timms_network(write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    source = timm_model()
    head = {"head.weight": torch.randn(1000, 96), "head.bias": torch.randn(1000)}
    model, report = load_vit(write(tensors_of(source) | head, tmp_path), image_size=IMAGE)
    assert (model.config.size, model.config.resolved_patch, model.config.encoder) == ("nano", 8, "vit")
    assert (report.resized, report.missing, report.unexpected) == ([], [], ["head.bias", "head.weight"])
    check_embedding(model, lambda images: source(images)[:, 0])


def transreid(source: dict[str, Tensor], cameras: int) -> dict[str, Tensor]:
    """As its training saves it: the backbone as ``base``, heads and local branches beside it."""
    state = {f"base.{name}": tensor for name, tensor in source.items()}
    return state | {
        "base.sie_embed": torch.randn(cameras, 1, 96),
        "base.fc.weight": torch.randn(1000, 96),
        "classifier.weight": torch.randn(751, 96),
        "bottleneck.weight": torch.rand(96),
        "bottleneck.running_mean": torch.randn(96),
        "b1.0.norm1.weight": torch.randn(96),
        "b1.0.attn.qkv.weight": torch.randn(288, 96),
        "b2.1.weight": torch.randn(96),
        "classifier_1.weight": torch.randn(751, 96),
    }


def test_transreids_files_bring_their_camera_embeddings(tmp_path: Path) -> None:
    source = timm_model()
    state = transreid(tensors_of(source), cameras=6)
    model, report = load_vit(as_pickle(state, tmp_path), image_size=IMAGE)
    assert model.config.num_cameras == 6
    assert report.missing == []
    assert "camera_embed" in report.matched
    assert {"fc.weight", "classifier.weight", "b1.0.attn.qkv.weight"} <= set(report.unexpected)
    images, cameras = torch.randn(3, 3, *IMAGE), torch.tensor([5, 0, -1])
    side = 3 * state["base.sie_embed"][cameras.clamp(min=0)] * (cameras >= 0)[:, None, None]
    with torch.no_grad():
        patches = source.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([source.cls_token.expand(3, -1, -1), patches], 1) + source.pos_embed + side
        wanted = source.norm(source.blocks(tokens))[:, 0]
        found = model.eval()(images, cameras).embedding
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_embeddings_of_other_cameras_are_left_out(tmp_path: Path) -> None:
    path = as_pickle(transreid(tensors_of(timm_model()), cameras=6), tmp_path)
    model, report = load_vit(path, image_size=IMAGE, num_cameras=8)
    assert model.config.num_cameras == 8
    assert report.missing == ["camera_embed"]
    assert "sie_embed" in report.unexpected
    model, report = load_vit(path, image_size=IMAGE, num_cameras=0)
    assert model.backbone.camera_embed is None
    assert "sie_embed" in report.unexpected


def open_clip(tower: PlainTower) -> dict[str, Tensor]:
    """As open_clip's files of a custom text tower."""
    text = {"text.ln_final.weight": torch.ones(64), "text.positional_embedding": torch.randn(77, 64)}
    return {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()} | text


@pytest.mark.parametrize(("encoder", "quick"), [("clip_quickgelu", True), ("clip", False)])
@pytest.mark.parametrize("naming", [openai, open_clip, hugging_face, alone])
def test_clips_files_make_clips_tower(naming: Any, encoder: Any, quick: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tower = PlainTower((4, 2), quick)
    state = {name: tensor.contiguous() for name, tensor in naming(tower).items()}
    path = as_safetensors(state, tmp_path)
    model, report = load_vit(path, image_size=IMAGE, encoder=encoder)
    assert report.missing == []
    check_embedding(model, tower)
    with pytest.raises(CheckpointError, match=r"do not tell the activation.*'clip_quickgelu'.*'clip'"):
        load_vit(path, image_size=IMAGE)


def test_the_activation_is_read_where_it_is_written(tmp_path: Path) -> None:
    torch.manual_seed(1)
    quick, plain = PlainTower((4, 2), True), PlainTower((4, 2), False)
    marked = openai(quick) | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    model, _ = load_vit(as_pickle(marked, tmp_path), image_size=IMAGE)
    check_embedding(model, quick)
    for name, content, tower in (
        ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}, quick),
        ("config.json", {"hidden_act": "gelu"}, plain),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, quick),
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 512}}, plain),
    ):
        folder = tmp_path / f"{name}-{tower.quick}"
        folder.mkdir()
        as_folder({key: tensor.contiguous() for key, tensor in hugging_face(tower).items()}, folder)
        (folder / name).write_text(json.dumps(content))
        model, _ = load_vit(folder, image_size=IMAGE)
        check_embedding(model, tower)
    (folder / name).write_text("{")
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json is no JSON"):
        load_vit(folder, image_size=IMAGE)


def test_this_projects_files_make_the_network_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source: Any = build_model("vit_reid", size="nano", image_size=IMAGE, num_cameras=2).eval()
    model: Any
    model, report = load_vit(as_safetensors(tensors_of(source), tmp_path), image_size=IMAGE)
    assert report.missing == []
    check_embedding(model, lambda images: source(images).embedding)
    assert torch.equal(model.backbone.camera_embed, source.backbone.camera_embed)


@pytest.mark.parametrize(
    ("stride", "image_size", "grid"),
    [
        (None, None, (8, 4)),
        (16, (256, 128), (16, 8)),
        (12, (256, 128), (21, 10)),
        (11, (256, 128), (22, 11)),
        (12, (384, 128), (31, 10)),
        (16, (64, 256), (4, 16)),
    ],
)
@pytest.mark.parametrize("source", [(14, 14), (16, 8), (21, 10)])
def test_positions_fit_any_grid_and_stride(
    source: tuple[int, int],
    stride: int | None,
    image_size: tuple[int, int] | None,
    grid: tuple[int, int],
    tmp_path: Path,
) -> None:
    state = timm_state(grid=source, patch=16)
    path = as_safetensors(state, tmp_path)
    is_guessed = source == (14, 14) or grid[0] == 2 * grid[1]  # 210 patches are 30x7 as well
    model, report = load_vit(path, stride=stride, image_size=image_size, source_grid=None if is_guessed else source)
    assert model.backbone.grid == grid
    same = source == grid
    assert report.resized == ([] if same else [f"pos_embed: {source[0]}x{source[1]} -> {grid[0]}x{grid[1]}"])
    cells = state["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, source)
    expected = cells if same else F.interpolate(cells, grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.backbone.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(model.backbone.pos_embed[:, :1], state["pos_embed"][:, :1])
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, *model.image_size)).feature.isfinite().all()


def test_a_grid_that_looks_square_can_be_said_not_to_be(tmp_path: Path) -> None:
    state = timm_state(grid=(18, 8))
    path = as_safetensors(state, tmp_path)
    assert load_vit(path, image_size=IMAGE)[1].resized == ["pos_embed: 12x12 -> 4x2"]
    model, report = load_vit(path, image_size=IMAGE, source_grid=(18, 8))
    assert report.resized == ["pos_embed: 18x8 -> 4x2"]
    cells = state["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (18, 8))
    expected = F.interpolate(cells, (4, 2), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.backbone.pos_embed[:, 1:], expected)
    turned = load_vit(path, image_size=(96, 96), source_grid=(18, 8))[1]  # as many patches, laid out otherwise
    assert turned.resized == ["pos_embed: 18x8 -> 12x12"]
    with pytest.raises(CheckpointError, match=r"144 patches, which are no grid of \(16, 8\)"):
        load_vit(path, image_size=IMAGE, source_grid=(16, 8))


def test_a_patch_kept_as_a_matrix_tells_its_side(tmp_path: Path) -> None:
    state = timm_state(patch=16)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    model, _ = load_vit(as_safetensors(state, tmp_path))
    assert model.config.resolved_patch == 16
    with pytest.raises(CheckpointError, match="patches of 16 pixels, not 8"):
        load_vit(tmp_path / "vit.safetensors", patch=8)


@pytest.mark.parametrize("write", [as_safetensors, as_pickle, as_old_pickle])
def test_a_file_cut_anywhere_is_named(write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    path = write(tensors_of(timm_model()), tmp_path)
    content = path.read_bytes()
    lengths = [0, 1, 7, 8, 9, 64, 1000, len(content) // 4, len(content) // 2, len(content) - 1000, len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=path.name):
            load_vit(path, image_size=IMAGE)
    path.write_bytes(content)
    load_vit(path, image_size=IMAGE)


def test_what_would_run_code_does_not(tmp_path: Path) -> None:
    state: dict[str, Any] = {**tensors_of(timm_model()), "hook": Malicious(tmp_path / "ran")}
    for zipped in (True, False):
        torch.save(state, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="more than tensors, which could run code"):
            load_vit(tmp_path / "bad.pth", image_size=IMAGE)
        assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # the file is one that does run code where it is let


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = timm_state()
    for name, tensor in tensors.items():
        key = name.replace("__", ".")
        if tensor is None:
            state.pop(key)
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(cls_token=None), "has no cls_token: it is no ViT with a class token"),
        (changed(pos_embed=None), "has no pos_embed"),
        (changed(blocks__0__norm1__weight=None), r"has no blocks\.0\.norm1\.weight"),
        (changed(blocks__2__mlp__fc1__bias=None), r"lacks 1 of the backbone's .* blocks\.2\.mlp\.fc1\.bias"),
        (changed(blocks__1__attn__qkv__weight=torch.zeros(192, 96)), r"qkv\.weight has shape \(192, 96\)"),
        (changed(norm__weight=torch.zeros(95)), r"norm\.weight has shape \(95,\)"),
        (changed(pos_embed=torch.zeros(1, 197, 95)), r"pos_embed has shape \(1, 197, 95\)"),
        (changed(pos_embed=torch.zeros(())), "pos_embed has shape"),
        (changed(patch_embed__proj__weight=torch.zeros(96, 4, 8, 8)), r"\(96, 4, 8, 8\); supported: square patches"),
        (changed(patch_embed__proj__weight=torch.zeros(96, 3, 8, 4)), "supported: square patches"),
        (changed(patch_embed__proj__weight=torch.zeros(96)), "supported: square patches"),
        (changed(cls_token=torch.zeros(())), "is 0 wide"),
        (changed(blocks__0__ls1__gamma=torch.ones(96)), "without layer scale"),
        (changed(reg_token=torch.ones(1, 4, 96)), "without layer scale, register tokens"),
        (changed(adapters__0__up__weight=torch.ones(96, 24)), "is a MOTAR-FUSE network"),
        (timm_state(dim=64), "is 64 wide and has 4 blocks; supported: nano"),
        (timm_state(depth=3), "is 96 wide and has 3 blocks"),
        ({"layer1.0.conv1.weight": torch.zeros(3)}, r"no cls_token.* such as layer1\.0\.conv1\.weight"),
    ],
)
def test_a_file_of_something_else_is_named(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_vit(as_safetensors(state, tmp_path), image_size=IMAGE)


def test_a_deeper_file_needs_the_size_to_be_asked_for(tmp_path: Path) -> None:
    path = as_safetensors(timm_state(depth=6), tmp_path)
    with pytest.raises(CheckpointError, match=r"has 6 blocks.*size='nano' takes its first 4 blocks"):
        load_vit(path, image_size=IMAGE)
    model: Any
    model, report = load_vit(path, image_size=IMAGE, size="nano")
    assert len(model.backbone.blocks) == 4
    assert "blocks.4.norm1.weight" in report.unexpected
    assert torch.equal(model.backbone.blocks[3].attn.qkv.weight, timm_state(depth=6)["blocks.3.attn.qkv.weight"])


def test_sizes_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    path = as_safetensors(timm_state(), tmp_path)
    with pytest.raises(ValueError, match="not divisible by patch 8"):
        load_vit(path, image_size=(30, 16))
    with pytest.raises(ValueError, match="stride 9 and patch 8"):
        load_vit(path, image_size=IMAGE, stride=9)


def test_half_and_non_finite_weights_are_kept_as_numbers(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in tensors_of(timm_model()).items()}
    model, _ = load_vit(as_safetensors(state, tmp_path), image_size=IMAGE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.isclose(model.backbone.norm.weight.sum().item(), 96, rel_tol=1e-6)
