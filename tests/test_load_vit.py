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
from motarfuse.models.pretrained import _grid_of
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
    """As its training saves it without JPM: the backbone as ``base``, a head beside it."""
    state = {f"base.{name}": tensor for name, tensor in source.items()}
    return state | {
        "base.sie_embed": torch.randn(cameras, 1, 96),
        "base.fc.weight": torch.randn(1000, 96),
        "classifier.weight": torch.randn(751, 96),
        "bottleneck.weight": torch.rand(96),
        "bottleneck.running_mean": torch.randn(96),
    }


def with_branches(state: dict[str, Tensor], branch: torch.nn.Module) -> dict[str, Tensor]:
    """As saved with JPM: a block and a norm for each of two branches, of which the first is the global one."""
    given = {f"b1.{name}": tensor for name, tensor in branch.state_dict().items()}
    other = {f"b2.{name}": torch.randn_like(tensor) for name, tensor in branch.state_dict().items()}
    return state | given | other | {"classifier_1.weight": torch.randn(751, 96)}


def test_transreids_files_bring_their_camera_embeddings(tmp_path: Path) -> None:
    source = timm_model()
    state = transreid(tensors_of(source), cameras=6)
    model, report = load_vit(as_pickle(state, tmp_path), image_size=IMAGE)
    assert model.config.num_cameras == 6
    assert report.missing == []
    assert "camera_embed" in report.matched
    assert {"fc.weight", "classifier.weight"} <= set(report.unexpected)
    assert report.moved == []
    images, cameras = torch.randn(3, 3, *IMAGE), torch.tensor([5, 0, -1])
    side = 3 * state["base.sie_embed"][cameras.clamp(min=0)] * (cameras >= 0)[:, None, None]
    with torch.no_grad():
        patches = source.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([source.cls_token.expand(3, -1, -1), patches], 1) + source.pos_embed + side
        wanted = source.norm(source.blocks(tokens))[:, 0]
        found = model.eval()(images, cameras).embedding
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_transreids_global_branch_ends_with_its_own_block_and_norm(wrapper: str, tmp_path: Path) -> None:
    source: Any = timm_model()
    torch.manual_seed(1)
    branch: Any = torch.nn.Sequential(timm_like.Block(96, 3), torch.nn.LayerNorm(96, eps=1e-6)).eval()
    with torch.no_grad():
        branch[1].bias.normal_()
    state = with_branches({f"base.{name}": tensor for name, tensor in tensors_of(source).items()}, branch)
    path = as_pickle({wrapper + name: tensor for name, tensor in state.items()}, tmp_path)
    model, report = load_vit(path, image_size=IMAGE)

    def global_feature(images: Tensor) -> Tensor:
        patches = source.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([source.cls_token.expand(len(images), -1, -1), patches], 1) + source.pos_embed
        return branch(source.blocks[:-1](tokens))[:, 0]

    check_embedding(model, global_feature)
    assert report.missing == []
    assert report.moved == ["b1.0 -> blocks.3", "b1.1 -> norm"]
    assert "2 moved (b1.0 -> blocks.3, b1.1 -> norm)" in str(report)
    left = {"base.blocks.3.attn.qkv.weight", "base.norm.bias", "b2.0.attn.qkv.weight", "classifier_1.weight"}
    assert left <= set(report.unexpected)
    assert not any(name.startswith("b1.") for name in report.unexpected)


def test_half_a_global_branch_is_named(tmp_path: Path) -> None:
    branch = torch.nn.Sequential(timm_like.Block(96, 3), torch.nn.LayerNorm(96))
    whole = with_branches({f"base.{name}": tensor for name, tensor in tensors_of(timm_model()).items()}, branch)
    for lost in ("b1.0.norm1.bias", "b1.1.weight"):
        path = as_pickle({name: tensor for name, tensor in whole.items() if name != lost}, tmp_path)
        with pytest.raises(CheckpointError, match=rf"JPM.* differ by {lost.split('.', 2)[2]}"):
            load_vit(path, image_size=IMAGE)


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


@pytest.mark.parametrize(("side", "image"), [(15, (128, 64)), (15, (120, 120)), (14, (128, 64)), (9, (32, 16))])
def test_positions_without_the_class_tokens_fit_a_grid(side: int, image: tuple[int, int], tmp_path: Path) -> None:
    # As timm's flexivit, whose class token has no position.
    state = timm_state(grid=(side, side))
    state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    path = as_safetensors(state, tmp_path)
    grid = (image[0] // 8, image[1] // 8)
    for given in (None, (side, side)):
        model, report = load_vit(path, image_size=image, source_grid=given)
        change = f"{side}x{side} without a class token's position -> {grid[0]}x{grid[1]}"
        assert report.resized == [f"pos_embed: {change}"]
        assert not model.backbone.pos_embed[:, 0].any()
        cells = state["pos_embed"].transpose(1, 2).unflatten(2, (side, side))
        expected = cells if (side, side) == grid else F.interpolate(cells, grid, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model.backbone.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))


def test_positions_that_fit_both_ways_must_be_told(tmp_path: Path) -> None:
    state = timm_state(grid=(24, 12))  # with the class token's, as many as 17x17
    path = as_safetensors(state, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"289 positions, which are 17x17 without .* or 24x12 with one; give source"
    ):
        load_vit(path)
    assert load_vit(path, source_grid=(24, 12))[1].resized == ["pos_embed: 24x12 -> 16x8"]
    assert load_vit(path, source_grid=(17, 17))[1].resized[0].startswith("pos_embed: 17x17 without")
    assert load_vit(path, image_size=(192, 96))[1].resized == []  # the network has as many, all in their places


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


@pytest.mark.filterwarnings("ignore:.*(quantized|prototype|Sparse|TypedStorage)")
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("norm.weight", lambda: torch.ones(96).to_sparse(), "norm.weight is sparse"),
        ("pos_embed", lambda: timm_state()["pos_embed"].to_sparse(), "pos_embed is sparse"),
        ("blocks.0.attn.qkv.weight", lambda: torch.ones(288, 96).to_sparse_csr(), "is sparse"),
        ("norm.weight", lambda: torch.ones(96, device="meta"), "has no numbers, being on the device meta"),
        ("norm.weight", lambda: torch.ones(96, dtype=torch.complex64), "type torch.complex64; dense tensors"),
        (
            "norm.weight",
            lambda: torch.quantize_per_tensor(torch.ones(96), 0.1, 0, torch.qint8),
            "type torch.qint8; dense tensors",
        ),
        ("norm.weight", lambda: torch.nested.nested_tensor([torch.ones(96)]), "another layout than a plain"),
        ("norm.weight", lambda: torch.ones(96, dtype=torch.int8), "type torch.int8, as of a quantised network"),
        ("norm.weight", lambda: torch.ones(96).to(torch.float8_e4m3fn), "as of a quantised network"),
        ("pos_embed", lambda: torch.zeros(1).expand(1, 10**12 + 39, 96), "far fewer numbers in the file"),
        ("pos_embed", lambda: torch.zeros(1, 1, 96).expand(1, 10**12 + 39, 96), "far fewer numbers in the file"),
        ("cls_token", lambda: torch.zeros(1).expand(1, 1, 96), "far fewer numbers in the file"),
        ("camera_embed", lambda: torch.zeros(10**9, 0), r"cameras of shape \(1000000000, 0\); \(cameras, 96\)"),
        ("camera_embed", lambda: torch.zeros(()), r"cameras of shape \(\)"),
        ("patch_embed.proj.weight", lambda: torch.zeros(0, 3, 10**9, 10**9), "supported: square patches"),
        (f"blocks.{'9' * 5000}.norm1.weight", lambda: torch.ones(96), "a block of number 99999999"),
    ],
)
def test_tensors_that_are_none_of_a_weights_are_named(
    name: str, make: Callable[[], Tensor], message: str, tmp_path: Path
) -> None:
    path = as_pickle(timm_state() | {name: make()}, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_vit(path, image_size=IMAGE)


def test_a_names_thousand_prefixes_cost_no_time(tmp_path: Path) -> None:
    state = {"module." * 300_000 + name: tensor for name, tensor in timm_state().items() if name == "norm.weight"}
    assert load_vit(as_pickle(timm_state() | state, tmp_path), image_size=IMAGE)[1].missing == []


def test_many_positions_are_factored_in_no_time(tmp_path: Path) -> None:
    prime = 10**12 + 39
    assert _grid_of(prime + 1, (16, 8), tmp_path) == (prime, 1)


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


@pytest.mark.parametrize("pair", [224, (224,), (8.0, 4.0), "ab"])
def test_sizes_that_are_no_pairs_are_named(pair: Any, tmp_path: Path) -> None:
    path = as_safetensors(timm_state(), tmp_path)
    with pytest.raises(TypeError, match=r"image_size must be \(height, width\) in pixels, got"):
        load_vit(path, image_size=pair)
    with pytest.raises(TypeError, match=r"source_grid must be \(rows, columns\), got"):
        load_vit(path, source_grid=pair)


def test_errors_name_arguments_where_there_is_no_configuration(tmp_path: Path) -> None:
    path = as_safetensors(timm_state(), tmp_path)
    with pytest.raises(CheckpointError, match="set encoder=vit"):
        load_vit(path, image_size=IMAGE, encoder="clip")
    with pytest.raises(CheckpointError, match="choose the size and patch"):
        load_vit(path, image_size=IMAGE, size="tiny")
    tower = as_folder({name: tensor.contiguous() for name, tensor in alone(PlainTower((4, 2), True)).items()}, tmp_path)
    with pytest.raises(CheckpointError, match=r"set encoder=clip_quickgelu .*, encoder=clip for"):
        load_vit(tower, image_size=IMAGE, encoder="vit")


def test_a_configuration_of_another_form_tells_nothing(tmp_path: Path) -> None:
    tower = PlainTower((4, 2), True)
    as_folder({name: tensor.contiguous() for name, tensor in hugging_face(tower).items()}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": ["quick_gelu"]}))
    with pytest.raises(CheckpointError, match="do not tell the activation"):
        load_vit(tmp_path, image_size=IMAGE)


def test_half_and_non_finite_weights_are_kept_as_numbers(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in tensors_of(timm_model()).items()}
    model, _ = load_vit(as_safetensors(state, tmp_path), image_size=IMAGE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.isclose(model.backbone.norm.weight.sum().item(), 96, rel_tol=1e-6)
