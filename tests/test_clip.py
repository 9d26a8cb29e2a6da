"""CLIP's visual towers under every public naming compute exactly what they did where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from motarfuse.errors import CheckpointError
from motarfuse.models import LoadReport, build_model, load_pretrained

DIM, DEPTH, HEADS, PATCH = 96, 4, 3, 8
GRID = (4, 2)


class PlainTower(nn.Module):
    """The published tower in torch's own layers; parameters are named as OpenAI names them."""

    def __init__(self, grid: tuple[int, int], quick: bool) -> None:
        super().__init__()
        self.quick = quick
        self.conv1 = nn.Conv2d(3, DIM, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(DIM))
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid[0] * grid[1], DIM))
        self.ln_pre = nn.LayerNorm(DIM)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*(self._block() for _ in range(DEPTH)))})
        self.ln_post = nn.LayerNorm(DIM)
        self.proj = nn.Parameter(torch.randn(DIM, 32))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                # Tokens of a tenth, whose variance the epsilon of ln_pre is not small against.
                scale = 0.01 if name.startswith(("conv1", "class", "pos")) else 0.3 if parameter.ndim == 1 else 0.1
                parameter.normal_(0, scale)
                if "ln" in name and name.endswith("weight"):
                    parameter.add_(1)

    @staticmethod
    def _block() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(DIM),
                "attn": nn.MultiheadAttention(DIM, HEADS, batch_first=True),
                "ln_2": nn.LayerNorm(DIM),
                "mlp": nn.ModuleDict({"c_fc": nn.Linear(DIM, 4 * DIM), "c_proj": nn.Linear(4 * DIM, DIM)}),
            }
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The class token after ``ln_post``, before the projection to the space that text shares."""
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(len(x), 1, DIM)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks:
            y = block["ln_1"](x)
            x = x + block["attn"](y, y, y, need_weights=False)[0]
            y = block["mlp"]["c_fc"](block["ln_2"](x))
            y = y * (1 / (1 + torch.exp(-1.702 * y))) if self.quick else F.gelu(y)
            x = x + block["mlp"]["c_proj"](y)
        return self.ln_post(x[:, 0])


def openai(tower: PlainTower) -> dict[str, Tensor]:
    """As OpenAI's and open_clip's whole models: the tower below ``visual.``, the text side at the top."""
    text = {
        "positional_embedding": torch.randn(77, 64),
        "transformer.resblocks.0.attn.in_proj_weight": torch.randn(192, 64),
        "ln_final.weight": torch.ones(64),
        "logit_scale": torch.tensor(4.6),
    }
    return {**{f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, **text}


def hugging_face(tower: PlainTower) -> dict[str, Tensor]:
    """As Hugging Face's CLIPModel, which keeps three projections and a buffer of positions."""
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    state: dict[str, Tensor] = {"vision_model.embeddings.position_ids": torch.arange(9)[None]}
    for name, tensor in tower.state_dict().items():
        new = names.get(name, name)
        new = new.replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm")
        new = new.replace("transformer.resblocks", "encoder.layers")
        for old, changed in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1"), ("c_proj", "fc2")):
            new = new.replace(old, changed)
        if ".attn.in_proj_" in new:
            block, kind = new.split(".attn.in_proj_")
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"vision_model.{block}.self_attn.{key}_proj.{kind}"] = part.clone()
        elif name == "proj":
            state["visual_projection.weight"] = tensor.t().contiguous()
        else:
            state[f"vision_model.{new.replace('.attn.out_proj', '.self_attn.out_proj')}"] = tensor
    state["text_model.encoder.layers.0.self_attn.q_proj.weight"] = torch.randn(64, 64)
    return state


def alone(tower: PlainTower) -> dict[str, Tensor]:
    return dict(tower.state_dict())


def fine_tuned(tower: PlainTower) -> dict[str, Tensor]:
    """As re-identification code saves a network around the tower, wrapped for several devices."""
    state = {f"module.image_encoder.{name}": tensor for name, tensor in tower.state_dict().items()}
    return {**state, "module.classifier.weight": torch.randn(751, DIM), "module.bottleneck.weight": torch.ones(DIM)}


def tower_of(quick: bool, grid: tuple[int, int] = GRID) -> PlainTower:
    torch.manual_seed(11)
    return PlainTower(grid, quick)


def network(encoder: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return build_model("vit_reid", size="nano", image_size=(32, 16), encoder=encoder, **fields).eval()


def loaded(tmp_path: Path, state: dict[str, Tensor], model: nn.Module) -> LoadReport:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    return load_pretrained(model, tmp_path / "clip.safetensors")


NAMINGS = [openai, hugging_face, alone, fine_tuned]


@pytest.mark.parametrize(("encoder", "quick"), [("clip_quickgelu", True), ("clip", False)])
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_class_token_is_the_towers(tmp_path: Path, naming: Any, encoder: str, quick: bool) -> None:
    tower, model = tower_of(quick), network(encoder)
    report = loaded(tmp_path, naming(tower), model)
    assert report.missing == []
    assert report.resized == []
    images = torch.randn(5, 3, 32, 16)
    token = tower(images)
    error = (model(images).embedding - token).abs().max()
    assert error < 1e-5 * token.abs().max()


def test_activation_and_epsilon_matter_to_this_bound(tmp_path: Path) -> None:
    tower, model = tower_of(quick=True), network("clip")
    loaded(tmp_path, openai(tower), model)
    images = torch.randn(5, 3, 32, 16)
    token = tower(images)
    assert (model(images).embedding - token).abs().max() > 1e-3 * token.abs().max()
    model = network("clip_quickgelu")
    loaded(tmp_path, openai(tower), model)
    model.backbone.norm_pre.eps = 1e-6
    assert (model(images).embedding - token).abs().max() > 1e-3 * token.abs().max()


def test_what_is_no_tensor_of_the_tower_is_unexpected_by_the_files_name(tmp_path: Path) -> None:
    report = loaded(tmp_path, openai(tower_of(True)), network("clip_quickgelu"))
    text = ["ln_final.weight", "logit_scale", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight"]
    assert report.unexpected == [*text, "visual.proj"]
    report = loaded(tmp_path, hugging_face(tower_of(True)), network("clip_quickgelu"))
    assert report.unexpected == [
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_model.embeddings.position_ids",
        "visual_projection.weight",
    ]


@pytest.mark.parametrize("naming", NAMINGS)
def test_positions_of_a_square_tower_are_resized(tmp_path: Path, naming: Any) -> None:
    tower, model = tower_of(True, (6, 6)), network("clip_quickgelu")
    assert loaded(tmp_path, naming(tower), model).resized == ["pos_embed: 6x6 -> 4x2"]
    positions = tower.positional_embedding.detach()
    expected = F.interpolate(positions[1:].T.reshape(1, DIM, 6, 6), (4, 2), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.backbone.pos_embed[0, 1:], expected[0].flatten(1).T)
    assert torch.equal(model.backbone.pos_embed[0, 0], positions[0])


def test_half_precision_files_load_into_fp32(tmp_path: Path) -> None:
    tower, model = tower_of(True).half(), network("clip_quickgelu")
    loaded(tmp_path, openai(tower), model)
    assert model.backbone.pos_embed.dtype == torch.float32
    assert torch.equal(
        model.backbone.blocks[1].mlp.fc1.weight, tower.state_dict()["transformer.resblocks.1.mlp.c_fc.weight"].float()
    )


def test_timms_naming_of_clip_loads_as_it_is(tmp_path: Path) -> None:
    tower, model = tower_of(False), network("clip")
    loaded(tmp_path, alone(tower), model)
    again = network("clip")
    torch.nn.init.zeros_(again.backbone.pos_embed)
    report = loaded(tmp_path, dict(model.backbone.state_dict()), again)
    assert (report.missing, report.unexpected) == ([], [])
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(again(images).embedding, model(images).embedding)


def test_a_network_of_the_other_kind_is_refused_with_the_option_to_set(tmp_path: Path) -> None:
    model = network("vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"CLIP.*model\.encoder=clip_quickgelu .*model\.encoder=clip "):
        loaded(tmp_path, openai(tower_of(True)), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"plain ViT.*model\.encoder=vit"):
        loaded(tmp_path, dict(network("vit").backbone.state_dict()), network("clip"))
    with pytest.raises(ValueError, match="encoder must be vit, clip or clip_quickgelu, got 'openai'"):
        network("openai")


def test_an_incomplete_or_richer_tower_is_refused(tmp_path: Path) -> None:
    state = hugging_face(tower_of(True))
    state.pop("vision_model.encoder.layers.2.self_attn.k_proj.bias")
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.qkv\.bias needs q, k and v of one shape"):
        loaded(tmp_path, state, network("clip_quickgelu"))
    state = openai(tower_of(False)) | {"visual.transformer.resblocks.1.ls_1.gamma": torch.ones(DIM)}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ls_1\.gamma, with which this network cannot compute"):
        loaded(tmp_path, state, network("clip"))


def test_a_tower_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape .*96.*, this network needs .*192"):
        loaded(tmp_path, openai(tower_of(True)), build_model("vit_reid", size="tiny", encoder="clip_quickgelu"))


def test_motar_fuse_takes_the_tower_and_keeps_its_adapters(tmp_path: Path) -> None:
    tower = tower_of(True)
    model: Any = build_model("motar_fuse", size="nano", image_size=(32, 16), encoder="clip_quickgelu").eval()
    report = loaded(tmp_path, openai(tower), model)
    assert report.missing
    assert all(name.startswith("adapters.") for name in report.missing)
    images = torch.randn(3, 3, 32, 16)
    token = tower(images)
    # Adapters start as the identity, so that the backbone is still the tower.
    assert (model.backbone(images)[:, 0] - token).abs().max() < 1e-5 * token.abs().max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the writer, torch.jit.trace
def test_a_torchscript_archive_is_named_and_not_run(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(CheckpointError, match="TorchScript archive, a program that would run"):
        load_pretrained(network("vit"), tmp_path / "ViT-B-16.pt")
