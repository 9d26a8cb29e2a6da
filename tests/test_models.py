"""The networks: clips and images agree, weights of public formats load, wrong ones are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from motarfuse.errors import CheckpointError
from motarfuse.models import VitReID, VitReIDConfig, build_model, config_class, load_pretrained, model_names

SMALL: dict[str, Any] = {"size": "nano", "image_size": (32, 16)}


def small(**fields: Any) -> Any:
    torch.manual_seed(0)
    model: Any = build_model("vit_reid", **{**SMALL, **fields})
    with torch.no_grad():  # statistics of some training, so that the BNNeck is not the identity
        model.neck.running_mean.normal_()
        model.neck.running_var.uniform_(0.5, 2)
    return model.eval()


def timm_state(dim: int = 96, depth: int = 4, grid: tuple[int, int] = (14, 14), patch: int = 8) -> dict[str, Tensor]:
    """A state dict as timm writes one for a vision transformer with an ImageNet head."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = {
        "cls_token": random(1, 1, dim),
        "pos_embed": random(1, 1 + grid[0] * grid[1], dim),
        "patch_embed.proj.weight": random(dim, 3, patch, patch),
        "patch_embed.proj.bias": random(dim),
        "norm.weight": random(dim),
        "norm.bias": random(dim),
        "head.weight": random(1000, dim),
        "head.bias": random(1000),
    }
    for index in range(depth):
        for layer, rows, columns in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", 4 * dim, dim),
            ("mlp.fc2", dim, 4 * dim),
        ):
            state[f"blocks.{index}.{layer}.weight"] = random(rows, columns)
            state[f"blocks.{index}.{layer}.bias"] = random(rows)
        for layer in ("norm1", "norm2"):
            state[f"blocks.{index}.{layer}.weight"] = random(dim)
            state[f"blocks.{index}.{layer}.bias"] = random(dim)
    return state


@pytest.mark.parametrize(
    ("size", "tokens", "parameters_m"),
    [("nano", 128, 0.48), ("tiny", 128, 2.73), ("small", 128, 21.7), ("base", 128, 85.8)],
)
def test_sizes_have_the_widths_and_grids_of_the_design(size: str, tokens: int, parameters_m: float) -> None:
    with torch.device("meta"):
        model: Any = build_model("vit_reid", size=size)
    assert math.prod(model.backbone.grid) == tokens
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters_m, rel=0.01)


@pytest.mark.parametrize(("stride", "grid"), [(16, (16, 8)), (12, (21, 10)), (11, (22, 11))])
def test_overlapping_patches_give_transreids_grids(stride: int, grid: tuple[int, int]) -> None:
    config = VitReIDConfig(size="base", stride=stride)
    assert config.grid == grid
    with torch.device("meta"):
        model = VitReID(config)
        assert model.backbone.patch_embed(torch.empty(1, 3, 256, 128)).shape == (1, math.prod(grid), 768)


def test_the_patch_product_equals_the_convolution() -> None:
    embed = small().backbone.patch_embed
    images = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(embed(images), embed.proj(images).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_image_one_frame_clip_static_clip_and_padded_clip_agree() -> None:
    model = small()
    image = torch.randn(2, 3, 32, 16)
    feature = model(image).feature
    static = image[:, None].expand(-1, 4, -1, -1, -1)
    padded = torch.cat([static[:, :2], torch.full((2, 2, 3, 32, 16), math.nan)], 1)
    mask = torch.tensor([[True, True, False, False]] * 2)
    for clip, frame_mask in ((image[:, None], None), (static, None), (padded, mask)):
        torch.testing.assert_close(model(clip, frame_mask=frame_mask).feature, feature, rtol=1e-4, atol=1e-5)


def test_a_clip_is_the_mean_of_its_valid_frames_embeddings() -> None:
    model = small()
    clip = torch.randn(1, 3, 3, 32, 16)
    mask = torch.tensor([[True, False, True]])
    each = model(clip[0]).embedding
    torch.testing.assert_close(model(clip, frame_mask=mask).embedding[0], each[[0, 2]].mean(0), rtol=1e-4, atol=1e-5)


def test_feature_is_the_bnneck_of_the_embedding() -> None:
    model = small()
    output = model(torch.randn(3, 3, 32, 16))
    assert torch.equal(output.feature, model.neck(output.embedding))
    assert not torch.allclose(output.feature, output.embedding)


def test_the_embedding_is_the_backbones_class_token() -> None:
    model = small()
    images = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(model(images).embedding, model.backbone(images)[:, 0], rtol=1e-4, atol=1e-5)


def test_an_unknown_camera_is_the_zero_vector() -> None:
    model = small(num_cameras=2)
    images = torch.randn(3, 3, 32, 16)
    without = model(images).feature
    for unknown in (-1, 2):
        torch.testing.assert_close(model(images, torch.full((3,), unknown)).feature, without)
    assert not torch.allclose(model(images, torch.tensor([0, 0, 0])).feature, without)
    mixed = model(images, torch.tensor([1, -1, 0])).feature
    torch.testing.assert_close(mixed[1], without[1], rtol=1e-4, atol=1e-5)


def test_camera_labels_change_nothing_without_camera_embeddings() -> None:
    model = small()
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(model(images, torch.tensor([0, 1])).feature, model(images).feature)


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    rates = [block.drop_path.probability for block in small(drop_path=0.3).backbone.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_layers_are_numbered_from_embedding_to_head() -> None:
    model = small()
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert layers["backbone.cls_token"] == layers["backbone.patch_embed.proj.weight"] == 0
    assert layers["backbone.blocks.0.attn.qkv.weight"] == 1
    assert layers["backbone.blocks.3.mlp.fc2.bias"] == 4
    assert layers["backbone.norm.weight"] == layers["neck.weight"] == model.num_layers - 1 == 5


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 16, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(1, 3, 16, 32), ValueError, r"\(B, 3, 32, 16\)"),
        (torch.zeros(3, 32, 16), ValueError, r"\(3, 32, 16\)"),
    ],
)
def test_images_that_do_not_fit_are_named(images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        small()(images)


def test_a_frame_mask_needs_a_clip() -> None:
    with pytest.raises(ValueError, match="frame_mask"):
        small()(torch.zeros(1, 3, 32, 16), frame_mask=torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "huge"}, "nano, tiny, small, base"),
        ({"image_size": (130, 64)}, "not divisible by patch 8"),
        ({"stride": 9}, "stride 9 and patch 8"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"image_size": (4, 4), "stride": 2}, "smaller than a patch"),
    ],
)
def test_contradictory_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitReIDConfig(**fields)


def test_registry_names_the_nearest_model() -> None:
    assert "vit_reid" in model_names()
    assert config_class("vit_reid") is VitReIDConfig
    with pytest.raises(ValueError, match="did you mean 'vit_reid'"):
        build_model("vit_ried")


def test_initialisation_is_a_function_of_the_seed() -> None:
    torch.manual_seed(3)
    first = VitReID(VitReIDConfig(**SMALL)).state_dict()
    torch.manual_seed(3)
    second = VitReID(VitReIDConfig(**SMALL)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    weight = first["backbone.blocks.0.mlp.fc1.weight"]
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_timm_weights_load_with_resized_positions(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "vit.safetensors")
    model = small()
    report = load_pretrained(model, tmp_path / "vit.safetensors")
    backbone = model.backbone.state_dict()
    assert report.resized == ["pos_embed: 14x14 -> 4x2"]
    assert report.missing == []
    assert report.unexpected == ["head.bias", "head.weight"]
    assert len(report.matched) == len(backbone) - 1
    for name in report.matched:
        assert torch.equal(backbone[name], state[name]), name
    assert torch.equal(backbone["pos_embed"][:, 0], state["pos_embed"][:, 0])


def test_resizing_keeps_a_position_embedding_that_is_linear_in_place(tmp_path: Path) -> None:
    # Bilinear interpolation reproduces linear functions away from the border, so the values are known.
    state = timm_state(grid=(8, 8))
    rows = (torch.arange(8) + 0.5) / 8
    state["pos_embed"][:, 1:] = rows.repeat_interleave(8)[None, :, None]
    save_file(state, tmp_path / "vit.safetensors")
    model = small()
    load_pretrained(model, tmp_path / "vit.safetensors")
    resized = model.backbone.pos_embed[0, 1:, 0].reshape(4, 2)
    torch.testing.assert_close(resized, ((torch.arange(4) + 0.5) / 4)[:, None].expand(4, 2))


def test_transreid_checkpoints_load_through_their_prefix(tmp_path: Path) -> None:
    state = timm_state(grid=(8, 4))
    wrapped = {f"module.base.{name}": value for name, value in state.items() if not name.startswith("head")}
    wrapped |= {"module.classifier.weight": torch.randn(751, 96), "module.bottleneck.weight": torch.ones(96)}
    torch.save({"state_dict": wrapped}, tmp_path / "transreid.pth")
    model = small()
    report = load_pretrained(model, tmp_path / "transreid.pth")
    assert report.resized == ["pos_embed: 8x4 -> 4x2"]
    assert report.unexpected == ["bottleneck.weight", "classifier.weight"]
    assert torch.equal(model.backbone.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])


def test_own_weights_load_and_camera_embeddings_may_be_missing(tmp_path: Path) -> None:
    source = small()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = small(num_cameras=3)
    torch.nn.init.zeros_(model.backbone.cls_token)
    report = load_pretrained(model, tmp_path)
    assert report.missing == ["camera_embed"]
    assert torch.equal(model.backbone.cls_token, source.backbone.cls_token)
    assert "1 missing (camera_embed)" in str(report)


def test_a_name_beside_the_backbone_is_not_taken_for_the_backbones(tmp_path: Path) -> None:
    source = {name: tensor for name, tensor in timm_state(grid=(4, 2)).items() if not name.startswith("head")}
    state = {f"backbone.{name}": tensor for name, tensor in source.items()} | {"norm.weight": torch.zeros(96)}
    save_file(state, tmp_path / "model.safetensors")
    for order in (sorted(state), sorted(state, reverse=True)):
        torch.save({name: state[name] for name in order}, tmp_path / "model.pth")
        model = small()
        assert load_pretrained(model, tmp_path / "model.pth").unexpected == ["norm.weight"]
        assert torch.equal(model.backbone.norm.weight, source["norm.weight"])


def test_a_transposed_matrix_and_layer_scale_are_refused(tmp_path: Path) -> None:
    state = timm_state()
    turned = state | {"blocks.1.mlp.fc1.weight": state["blocks.1.mlp.fc1.weight"].T.contiguous()}
    save_file(turned, tmp_path / "turned.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1\.weight has shape \(96, 384\), this network needs \(384, 96\)"):
        load_pretrained(small(), tmp_path / "turned.safetensors")
    save_file(state | {"blocks.1.ls1.gamma": torch.ones(96)}, tmp_path / "scaled.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ls1\.gamma, with which this network cannot compute"):
        load_pretrained(small(), tmp_path / "scaled.safetensors")


def test_a_patch_projection_kept_as_a_matrix_loads(tmp_path: Path) -> None:
    state = timm_state()
    flat = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    save_file(flat, tmp_path / "vit.safetensors")
    model = small()
    load_pretrained(model, tmp_path / "vit.safetensors")
    assert torch.equal(model.backbone.patch_embed.proj.weight, state["patch_embed.proj.weight"])


def test_a_deeper_files_last_blocks_are_left_out_and_reported(tmp_path: Path) -> None:
    save_file(timm_state(depth=5), tmp_path / "deep.safetensors")
    report = load_pretrained(small(), tmp_path / "deep.safetensors")
    assert "blocks.4.attn.qkv.weight" in report.unexpected


def test_motar_fuse_takes_a_public_vit_and_keeps_its_adapters(tmp_path: Path) -> None:
    state = timm_state(grid=(4, 2))
    save_file(state, tmp_path / "vit.safetensors")
    model: Any = build_model("motar_fuse", **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_pretrained(model, tmp_path / "vit.safetensors")
    assert report.missing == sorted(
        name.removeprefix("backbone.") for name in before if name.startswith("backbone.adapters.")
    )
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix("backbone.")
        kept = not name.startswith("backbone.") or inner in report.missing
        assert torch.equal(tensor, before[name] if kept else state[inner]), name


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    content = (tmp_path / "vit.safetensors").read_bytes()
    for path, part in ((tmp_path / "cut.safetensors", content[:-1000]), (tmp_path / "empty.safetensors", b"")):
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match=rf"{path.name} is truncated"):
            load_pretrained(small(), path)
    torch.save(timm_state(), tmp_path / "vit.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "vit.pth").read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        load_pretrained(small(), tmp_path / "cut.pth")


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.mark,))  # type: ignore[return-value]


def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    torch.save({"model": timm_state(), "extra": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_pretrained(small(), tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_a_wrong_width_is_named_and_the_model_is_untouched(tmp_path: Path) -> None:
    save_file(timm_state(dim=192), tmp_path / "wide.safetensors")
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"has shape .*192.*, this network needs .*96"):
        load_pretrained(model, tmp_path / "wide.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_shallower_network_and_a_foreign_file_say_what_is_missing(tmp_path: Path) -> None:
    save_file(timm_state(depth=3), tmp_path / "shallow.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 12 of the backbone's .* blocks\.3\."):
        load_pretrained(small(), tmp_path / "shallow.safetensors")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        load_pretrained(small(), tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match="no weight file"):
        load_pretrained(small(), tmp_path / "nothing.safetensors")


def test_compiled_whole_graph_gives_the_same_features() -> None:
    model = small()
    images = torch.randn(2, 3, 32, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images).feature, model(images).feature, rtol=1e-4, atol=1e-5)


def test_exported_forward_takes_any_batch_and_gives_the_same_features() -> None:
    model = small()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 16),), dynamic_shapes={"images": {0: batch}})
    images = torch.randn(5, 3, 32, 16)
    torch.testing.assert_close(program.module()(images).feature, model(images).feature, rtol=1e-4, atol=1e-5)
