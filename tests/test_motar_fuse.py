"""The network: images and clips agree, every switch changes the computation, weights round-trip, export and compile."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motarfuse.models import (
    SIZES,
    MotarFuse,
    MotarFuseConfig,
    MotarFuseOutput,
    VitReID,
    VitReIDConfig,
    build_model,
    load_pretrained,
)

SMALL: dict[str, Any] = {"image_size": (32, 16), "patch": 8}  # a grid of 4 x 2
SCOPES = ("frame", "clip")
VALUES = [field.name for field in fields(MotarFuseOutput) if field.name != "states"]


def network(seed: int = 0, **options: Any) -> MotarFuse:
    """A nano network away from the special starts, where zeros would hide what is wired wrongly."""
    torch.manual_seed(seed)
    model = MotarFuse(MotarFuseConfig(size="nano", **{**SMALL, **options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("alpha"):
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("canonical.keypoints", "canonical.affines", "running_mean")):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.eval()


def images(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 16, generator=torch.Generator().manual_seed(seed))


def assert_same(found: MotarFuseOutput, expected: MotarFuseOutput, there: Tensor) -> None:
    """Per-person values agree, and per-frame values in the frames that are there (expected has one frame)."""
    frames = there.shape[1]
    for name in VALUES:
        got, want = getattr(found, name), getattr(expected, name)
        if name in ("feature", "embedding", "part_features", "part_embeddings", "part_visibility", "class_feature"):
            torch.testing.assert_close(got, want, msg=f"{name} differs")
        else:
            want = want.expand(-1, frames, *want.shape[2:])
            torch.testing.assert_close(got[there], want[there], msg=f"{name} differs")


@pytest.mark.parametrize("scope", SCOPES)
@torch.no_grad()
def test_an_image_is_its_one_frame_its_static_and_its_padded_clip(scope: str) -> None:
    model, pictures = network(scope=scope).double(), images().double()
    expected = model(pictures)
    assert expected.keypoints.shape == (2, 1, 8, 2)
    one, static = pictures[:, None], pictures[:, None].expand(-1, 3, -1, -1, -1)
    assert_same(model(one), expected, torch.ones(2, 1, dtype=torch.bool))
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert_same(model(static), expected, everything)
    assert_same(model(static, frame_index=torch.tensor([[3, 5, 9], [0, 1, 2]])), expected, everything)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    padded = torch.where(mask[:, :, None, None, None], static, torch.nan)
    assert_same(model(padded, frame_mask=mask), expected, mask)
    mixed = model(padded, frame_mask=mask, frame_index=torch.tensor([[4, 0, 0], [7, 8, 11]]))
    assert_same(mixed, expected, mask)


@pytest.mark.parametrize("scope", SCOPES)
@torch.no_grad()
def test_a_moving_clip_is_not_its_first_frame_and_time_counts(scope: str) -> None:
    model = network(scope=scope)
    clip = torch.stack((images(seed=1), images(seed=2)), 1)
    moving, first = model(clip), model(clip[:, 0])
    assert (moving.feature - first.feature).abs().max() > 1e-3
    later = model(clip, frame_index=torch.tensor([[0, 9], [0, 9]]))
    assert (later.feature - moving.feature).abs().max() > 1e-6  # displacements are per frame of time
    backward = model(clip.flip(1))
    assert (backward.feature - moving.feature).abs().max() > 1e-6


@torch.no_grad()
def test_frames_of_a_long_recording_are_told_apart() -> None:
    model = network(scope="clip")
    clip = torch.stack((images(seed=1), images(seed=2), images(seed=3)), 1)
    index = torch.tensor([[0, 1, 2], [0, 3, 9]])
    expected = model(clip, frame_index=index).feature
    torch.testing.assert_close(model(clip, frame_index=index + 1_700_000_000).feature, expected)


@torch.no_grad()
def test_a_batch_does_not_mix_people_and_does_not_depend_on_its_padding() -> None:
    model = network().double()
    clip = torch.stack((images(seed=1), images(seed=2)), 1).double()
    together = model(clip)
    for person in range(2):
        alone = model(clip[person : person + 1])
        torch.testing.assert_close(alone.feature[0], together.feature[person])
    longer = torch.cat((clip, torch.full_like(clip[:, :1], torch.inf)), 1)
    mask = torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(model(longer, frame_mask=mask).feature, together.feature)


@torch.no_grad()
def test_the_network_starts_as_its_class_token_with_a_tenth_of_the_hybrid() -> None:
    torch.manual_seed(0)
    model = MotarFuse(MotarFuseConfig(size="nano", **SMALL)).eval()
    plain = VitReID(VitReIDConfig(size="nano", **SMALL)).eval()
    # Adapters start as the identity: what a plain ViT of the same weights sees is the class token.
    plain.backbone.load_state_dict(model.backbone.state_dict(), strict=False)
    class_token = plain(images()).embedding
    assert model.alpha is not None
    assert model.alpha.item() == pytest.approx(0.1)
    model.alpha.zero_()
    torch.testing.assert_close(model(images()).embedding, class_token)


@torch.no_grad()
def test_seed_and_weights_of_the_encoder_do_not_depend_on_the_switches() -> None:
    def weight(**options: Any) -> Tensor:
        torch.manual_seed(3)
        model = MotarFuse(MotarFuseConfig(size="nano", **SMALL, **options))
        return model.state_dict()["backbone.blocks.2.mlp.fc1.weight"]

    assert torch.equal(weight(), weight(adapter=False))
    assert torch.equal(weight(), weight(fusion_encoder=False))
    assert torch.equal(weight(), weight(local_appearance=False))


@torch.no_grad()
def test_what_the_heads_are_told_of_appearance_does_not_know_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    told: list[Tensor] = []
    decoder = model.decoder.forward

    def listening(*args: Any, **options: Any) -> Any:
        told.append(options["appearance"])
        return decoder(*args, **options)

    monkeypatch.setattr(model.decoder, "forward", listening)
    people = images()
    model(people)
    model.backbone.pos_embed.normal_()
    model(people)
    assert torch.equal(told[0], told[1])
    patch = model.backbone.patch_embed.proj.kernel_size[0]
    model(people.roll(patch, dims=2))
    rows, columns = model.backbone.grid
    here, there = (tensor.unflatten(2, (rows, columns)) for tensor in (told[0], told[2]))
    # Two convolutions see two cells around; what came around by rolling is left out, borders look alike in width.
    torch.testing.assert_close(there[:, :, 3 : rows - 2], here[:, :, 2 : rows - 3])


SWITCHES: list[tuple[dict[str, Any], Callable[[MotarFuse], bool]]] = [
    ({"adapter": False}, lambda model: model.backbone.adapters is None),
    ({"fusion_encoder": False}, lambda model: model.fusion is None and model.alpha is None),
    ({"local_appearance": False}, lambda model: not any(name.startswith("appearance") for name in model.state_dict())),
    (
        {"motion_attention": False},
        lambda model: not any("motion_bias" in name for name, _ in model.named_parameters()),
    ),
    ({"gated_fusion": False}, lambda model: not any("fusion.gate.motion" in n for n, _ in model.named_parameters())),
    ({"parts": False}, lambda model: model(images()).part_features.shape == (2, 0, 96)),
    ({"num_parts": 3}, lambda model: model(images()).keypoints.shape == (2, 1, 3, 2)),
    ({"scope": "clip"}, lambda model: any("raw_time" in name for name, _ in model.named_parameters())),
    ({"fusion_layers": 1}, lambda model: model.fusion is not None and len(model.fusion.blocks) == 0),
    ({"decoder_layers": 1}, lambda model: len(model.decoder.layers) == 1),
]


@pytest.mark.parametrize(("options", "holds"), SWITCHES, ids=[str(options) for options, _ in SWITCHES])
@torch.no_grad()
def test_each_switch_removes_what_it_names_and_changes_the_feature(
    options: dict[str, Any], holds: Callable[[MotarFuse], bool]
) -> None:
    whole, changed = network(), network(**options)
    assert holds(changed)
    assert not holds(whole)
    # What both have is made equal, so that only the switch makes a difference.
    known = changed.state_dict()
    shared = {name: value for name, value in whole.state_dict().items() if name in known}
    changed.load_state_dict({n: v for n, v in shared.items() if known[n].shape == v.shape}, strict=False)
    clip = torch.stack((images(seed=1), images(seed=2)), 1)
    assert (changed(clip).feature - whole(clip).feature).abs().max() > 1e-5


@pytest.mark.parametrize("scope", SCOPES)
def test_every_parameter_learns(scope: str) -> None:
    model = network(scope=scope).train()
    output = model(torch.stack((images(3, seed=1), images(3, seed=2)), 1))
    assert len(output.states) == 2
    weight = torch.randn(output.feature.shape, generator=torch.Generator().manual_seed(0))
    total = (output.feature * weight).sum() + (output.class_feature * weight).sum()
    total = (
        total
        + output.part_features.square().sum()
        + sum(s.confidence.sum() + s.visibility.sum() for s in output.states)
    )
    total.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_frames_with_visible_parts_weigh_more() -> None:
    model = network()
    summary = torch.randn(1, 3, 96)
    visibility = torch.tensor([[[0.2] * 8, [0.6] * 8, [0.9] * 8]])
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        model.frame_weight.zero_()
        weight = model._frame_weights(summary, visibility, mask)[0, :, 0]
        torch.testing.assert_close(weight, torch.tensor([0.25, 0.75, 0.0]), rtol=1e-4, atol=1e-6)
        model.frame_weight.copy_(summary[0, 0] / summary[0, 0].square().sum() * 5)
        shifted = model._frame_weights(summary, visibility, mask)[0, :, 0]
    other = float(summary[0, 1] @ summary[0, 0] / summary[0, 0].square().sum()) * 5
    expected = 0.2 * math.exp(5) / (0.2 * math.exp(5) + 0.6 * math.exp(other))
    assert shifted[0].item() == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_parts_of_a_clip_are_weighted_by_visibility_over_its_frames() -> None:
    model = network()
    tokens = torch.randn(1, 2, 8, 96)
    logits = torch.randn(2, 9, 8)
    visibility = torch.rand(1, 2, 8)
    assert model.part_neck is not None
    model.part_neck.running_mean.zero_()  # type: ignore[union-attr]
    model.part_neck.running_var.fill_(1 - model.part_neck.eps)  # type: ignore[union-attr]
    model.part_neck.weight.data.fill_(2.0)
    model.part_neck.bias.data.zero_()
    features, embeddings, seen = model._parts(tokens, logits, visibility, torch.ones(1, 2, dtype=torch.bool))
    masks = logits.softmax(1)[:, 1:]
    for part in range(8):
        frames = [(masks[t, part, :, None] * tokens[0, t]).sum(0) / masks[t, part].sum() for t in range(2)]
        share = visibility[0, :, part] / visibility[0, :, part].sum()
        expected = share[0] * frames[0] + share[1] * frames[1]
        torch.testing.assert_close(embeddings[0, part], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features[0, part], 2 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen, visibility.mean(1))


def test_copies_leave_posture_and_statistics_alone() -> None:
    model = network().train()
    pictures = images(4)
    other = copy.deepcopy(model)
    counted = torch.tensor([True, True, False, False])
    model(pictures, counted=counted)
    spoilt = pictures.clone()
    spoilt[2:] *= -3
    other(spoilt, counted=counted)
    assert torch.equal(model.decoder.canonical.keypoints, other.decoder.canonical.keypoints)
    assert torch.equal(model.decoder.scale.square, other.decoder.scale.square)
    third = copy.deepcopy(other)
    third(spoilt)
    assert not torch.equal(third.decoder.canonical.keypoints, other.decoder.canonical.keypoints)


@torch.no_grad()
def test_weights_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    from motarfuse.engine import load_model, save_checkpoint
    from motarfuse.engine.settings import to_mapping

    model = network(num_parts=5, scope="clip")
    save_checkpoint(
        tmp_path, step=1, model=model.state_dict(), model_name="motar_fuse", model_config=to_mapping(model.config)
    )
    loaded, _ = load_model(tmp_path)
    assert loaded.config == model.config
    clip = torch.stack((images(seed=1), images(seed=2)), 1)
    first, second = model(clip), loaded(clip)
    for name in VALUES:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@torch.no_grad()
def test_the_encoder_takes_a_plain_vits_weights(tmp_path: Path) -> None:
    plain = VitReID(VitReIDConfig(size="nano", **SMALL)).eval()
    path = tmp_path / "plain.pth"
    torch.save(plain.state_dict(), path)
    torch.manual_seed(1)
    model = MotarFuse(MotarFuseConfig(size="nano", **SMALL)).eval()
    report = load_pretrained(model, path)
    assert report.missing
    assert all(name.startswith("adapters.") for name in report.missing)
    assert model.alpha is not None
    model.alpha.zero_()
    torch.testing.assert_close(model(images()).embedding, plain(images()).embedding)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_size_computes(size: str) -> None:
    model = build_model("motar_fuse", size=size).eval()
    height, width = SIZES[size].image_size
    output = model(torch.randn(1, 3, height, width))
    rows, columns = (height // SIZES[size].patch, width // SIZES[size].patch)
    assert output.feature.shape == (1, SIZES[size].dim)
    assert output.part_masks.shape == (1, 1, 9, rows, columns)
    torch.testing.assert_close(output.part_masks.sum(2), torch.ones(1, 1, rows, columns))
    assert all(getattr(output, name).isfinite().all() for name in VALUES)


@torch.no_grad()
def test_overlapping_patches_give_the_published_grids() -> None:
    for stride, tokens in ((16, 128), (12, 210), (11, 242)):
        config = MotarFuseConfig(size="base", stride=stride)
        assert config.grid[0] * config.grid[1] == tokens


@torch.no_grad()
def test_known_cameras_change_the_feature_and_unknown_ones_are_the_zero_vector() -> None:
    model, blind = network(num_cameras=3), network(num_cameras=3)
    clip = torch.stack((images(seed=1), images(seed=2)), 1)
    without = model(clip).feature
    assert torch.equal(model(clip, torch.tensor([-1, 7])).feature, without)
    assert (model(clip, torch.tensor([0, 2])).feature - without).abs().max() > 1e-3
    assert blind.backbone.camera_embed is not None


@torch.no_grad()
def test_torch_export_of_inference_takes_any_batch(tmp_path: Path) -> None:
    model = network()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(3),), dynamic_shapes={"images": {0: batch}})
    for count in (1, 5):
        expected, found = model(images(count)), program.module()(images(count))
        for name in VALUES:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(loaded(images(2)).feature, model(images(2)).feature, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_torch_export_of_clips_reads_mask_and_times() -> None:
    model = network(scope="clip")
    clip = torch.stack((images(seed=1), images(seed=2), images(seed=3)), 1)
    index = torch.tensor([[0, 1, 2], [3, 5, 9]])
    masks = torch.tensor([[[True, True, True], [True, True, False]], [[True, False, True], [True, True, True]]])
    program = torch.export.export(model, (clip,), {"frame_mask": masks[0], "frame_index": index}).module()
    for mask, times in ((masks[0], index), (masks[1], 2 * index)):
        expected = model(clip, frame_mask=mask, frame_index=times)
        found = program(clip, frame_mask=mask, frame_index=times)
        for name in VALUES:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_torch_compile_of_inference_has_one_graph_and_agrees() -> None:
    model = network()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 5, 2):
        expected, found = model(images(count)), compiled(images(count))
        for name in VALUES:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_refused() -> None:
    model = network()
    with pytest.raises(TypeError, match="images must be normalised floating point"):
        model(torch.zeros(1, 3, 32, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 16\)"):
        model(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="frame_mask must be"):
        model(images(), frame_mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"frame_mask must be bool, .*got torch\.int64"):
        model(images()[:, None], frame_mask=torch.ones(2, 1).long())
    for camids in (torch.zeros(2, 1).long(), torch.zeros(3).long(), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"camids must be \(2,\) integers"):
            model(images(), camids)
    with pytest.raises(ValueError, match=r"counted must be \(2,\) bool"):
        model(images(), counted=torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"frame_index must be \(2, 1\)"):
        model(images()[:, None], frame_index=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num_parts must be at least 1, got 0"):
        MotarFuseConfig(num_parts=0)
    with pytest.raises(ValueError, match="scope must be frame or clip, got 'video'"):
        MotarFuseConfig(scope="video")  # type: ignore[arg-type]


def test_similar_people_stay_similar_under_autocast() -> None:
    model = network()
    with torch.no_grad():
        full = model(images(8)).feature
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images(8))
    assert half.keypoints.dtype == torch.float32
    assert F.cosine_similarity(half.feature.float(), full).min() > 0.99
