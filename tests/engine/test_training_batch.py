"""What a training step sees of clips: drawn frames, copies as images of their own, pairs, padding without influence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motarfuse.data import ClipStore, PKSampler, Tracklet
from motarfuse.engine.config import Config, load_config
from motarfuse.engine.criterion import ReIDCriterion
from motarfuse.engine.training_batch import Batch, Batches, StepInput, Varier, run_network
from motarfuse.models import MotarFuse, MotarFuseOutput, build_model

CPU = torch.device("cpu")
LENGTHS = (6, 1, 3, 8)


def _config(*overrides: str) -> Config:
    return load_config(
        None,
        [
            "model.name=motar_fuse",
            "model.size=nano",
            "model.image_size=[32,16]",
            "model.num_parts=2",
            "augment.pad_px=2",
            "train.batch_size=4",
            "train.instances=2",
            "clip.frames=4",
            "copy.share=0.5",
            *overrides,
        ],
    )


@pytest.fixture
def tracklets(tmp_path: Path) -> list[Tracklet]:
    random = np.random.default_rng(0)
    found = []
    for number, length in enumerate(LENGTHS):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = tuple(f"{frame}.png" for frame in range(length))
        for name in files:
            Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(folder / name)
        found.append(Tracklet(f"t{number}", number // 2, number % 2, folder, files, tuple(range(length))))
    return found


def _batches(tracklets: list[Tracklet], config: Config) -> Batches:
    store = ClipStore(tracklets, (32, 16))
    sampler = PKSampler(store.labels, store.camids, identities=2, instances=2, seed=config.train.seed)
    return Batches(store, sampler, config)


def _varied(tracklets: list[Tracklet], config: Config) -> tuple[Batch, StepInput]:
    batches = _batches(tracklets, config)
    batch = next(batches.read(range(1)))
    labels, camids = (torch.tensor(values)[batch.indices] for values in (batches.store.labels, batches.store.camids))
    return batch, Varier(config, (4, 2), CPU)(batch, labels, camids, step=3, number=0)


def test_a_batch_is_a_function_of_seed_and_number(tracklets: list[Tracklet]) -> None:
    config = _config()
    first, second = _batches(tracklets, config), _batches(tracklets, config)
    whole = list(first.read(range(6)))
    again = list(second.read(range(4, 6)))
    for one, other in zip(whole[4:], again, strict=True):
        assert one.indices == other.indices
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.frame_index, other.frame_index)  # type: ignore[arg-type]
    assert any(not torch.equal(whole[0].pixels, batch.pixels) for batch in whole[1:] if batch.pixels.shape[1] == 4)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 1, 1), (1.0, 0, 0)])
def test_image_share_cuts_clips_to_one_frame(
    tracklets: list[Tracklet], share: float, least: float, most: float
) -> None:
    batches = list(_batches(tracklets, _config(f"clip.image_share={share}")).read(range(8)))
    long = [
        int(mask.sum()) > 1
        for batch in batches
        for index, mask in zip(batch.indices, batch.frame_mask, strict=True)  # type: ignore[arg-type]
        if LENGTHS[index] > 1
    ]
    assert least <= sum(long) / len(long) <= most


def test_a_copy_shows_one_frame_of_its_clip_and_is_an_image_of_its_own(tracklets: list[Tracklet]) -> None:
    still = (
        "copy.rotation_degrees=0",
        "copy.scale=1",
        "copy.shift=0",
        "copy.bend=0",
        "copy.occluder_probability=0",
        "clip.image_share=0",
    )
    batch, varied = _varied(tracklets, _config(*still))
    assert batch.frame_mask is not None
    assert varied.copies is not None
    assert varied.copied is not None
    flat = varied.images.flatten(0, 1)
    assert torch.allclose(varied.copied, flat[varied.copies.frames], atol=1e-5)
    assert batch.frame_mask.flatten()[varied.copies.frames].all()
    assert torch.equal(varied.copies.frames // varied.images.shape[1], varied.copies.originals)
    assert torch.equal(varied.labels[4:], varied.labels[varied.copies.originals])


def test_pairs_are_two_frames_of_one_clip_that_are_there(tracklets: list[Tracklet]) -> None:
    batch, varied = _varied(tracklets, _config("clip.image_share=0"))
    assert batch.frame_mask is not None
    assert varied.frames is not None
    length = batch.frame_mask.shape[1]
    source, target = varied.frames.source, varied.frames.target
    assert (source // length).tolist() == [
        row for row, count in enumerate(batch.frame_mask.sum(1).tolist()) if count > 1
    ]
    assert torch.equal(source // length, target // length)
    assert (source != target).all()
    assert batch.frame_mask.flatten()[torch.cat((source, target))].all()
    assert torch.equal(varied.frames.source_images, varied.images.flatten(0, 1)[source])
    there = batch.frame_mask.flatten().nonzero().squeeze(1).tolist()
    copies = [batch.frame_mask.numel() + number for number in range(2)]
    assert varied.frames.there.tolist() == there + copies


def test_without_reconstruction_no_pairs_are_drawn(tracklets: list[Tracklet]) -> None:
    _, varied = _varied(tracklets, _config("loss.rec_weight=0", "clip.image_share=0"))
    assert varied.frames is not None
    assert len(varied.frames.source) == 0


def test_the_network_sees_clips_and_copies_apart_and_the_loss_reads_both(tracklets: list[Tracklet]) -> None:
    _, varied = _varied(tracklets, _config("clip.image_share=0"))
    torch.manual_seed(0)
    model = build_model("motar_fuse", _config().model).eval()
    assert isinstance(model, MotarFuse)
    output = run_network(model, varied)
    clips = model(varied.images, varied.camids[:4], varied.frame_mask, varied.frame_index)
    copies = model(varied.copied, varied.camids[4:])
    for name in ("feature", "embedding", "class_feature", "part_features", "part_visibility"):
        expected = torch.cat((getattr(clips, name), getattr(copies, name)))
        assert torch.equal(getattr(output, name), expected), name
    model.train()
    trained = run_network(model, varied)
    assert isinstance(trained, MotarFuseOutput)
    states = trained.states
    assert all(len(state.masks) == varied.images.shape[0] * varied.images.shape[1] + 2 for state in states)
    assert len(states[0].posture.keypoints) == len(states[0].masks)


def test_copies_of_clips_leave_the_canonical_posture_alone(tracklets: list[Tracklet]) -> None:
    _, varied = _varied(tracklets, _config("clip.image_share=0"))
    buffers = []
    for given in (varied, varied._replace(copied=None)):
        torch.manual_seed(0)
        model = build_model("motar_fuse", _config().model).train()
        run_network(model, given)
        buffers.append({name: value for name, value in model.named_buffers() if "decoder" in name})
    assert buffers[0].keys() == buffers[1].keys()
    assert len(buffers[0]) > 2
    for name, value in buffers[0].items():
        assert torch.equal(value, buffers[1][name]), name


def test_what_padding_holds_changes_neither_loss_nor_gradient(tracklets: list[Tracklet]) -> None:
    config = _config("clip.image_share=0", "model.scope=clip", "loss.triplet_weight=1")
    batch, varied = _varied(tracklets, config)
    assert batch.frame_mask is not None
    assert not batch.frame_mask.all()
    found = []
    for filling in (0.0, 3.0):
        images = torch.where(batch.frame_mask[:, :, None, None, None], varied.images, filling)
        torch.manual_seed(0)
        model = build_model("motar_fuse", config.model).train()
        criterion = ReIDCriterion(model, 2, config.loss)
        given = varied._replace(images=images)
        output = run_network(model, given)
        loss, terms = criterion(output, given.labels, given.copies, 1.0, given.frames)
        assert {"loss_rec", "loss_flow", "loss_part", "loss_div"} <= terms.keys()
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append((loss.detach(), terms, gradients))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    assert all(torch.equal(one, other) for one, other in zip(found[0][2], found[1][2], strict=True))


def test_copies_of_clips_are_not_in_the_running_statistics_of_the_necks(tracklets: list[Tracklet]) -> None:
    _, varied = _varied(tracklets, _config("clip.image_share=0"))
    states = []
    for given in (varied, varied._replace(copied=None)):
        torch.manual_seed(0)
        model = build_model("motar_fuse", _config().model).train()
        run_network(model, given)
        assert isinstance(model, MotarFuse)
        assert model.neck.momentum == 0.1
        states.append({name: value for name, value in model.named_buffers() if "neck" in name and "running" in name})
    assert len(states[0]) == 6
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_share_of_one_copy_is_two_of_clips(tracklets: list[Tracklet]) -> None:
    _, varied = _varied(tracklets, _config("copy.share=0.25", "clip.image_share=0"))
    assert varied.copied is not None
    assert len(varied.copied) == 2
    model = build_model("motar_fuse", _config().model).train()
    assert len(run_network(model, varied).feature) == len(varied.labels) == 6
