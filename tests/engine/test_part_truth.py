"""Scoring parts against SynthPed: networks whose parts are known, nothing fitted on the people who are scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from motarfuse.cli.main import main
from motarfuse.data import EvalTransform, read_images
from motarfuse.data.synthped import KEYPOINTS, SETS, SynthPedConfig, write_synthped
from motarfuse.data.synthped.reading import WrittenSet, read_written_set
from motarfuse.engine.checkpoint import save_checkpoint
from motarfuse.engine.part_measures import GROUPINGS, area_shares, group_labels
from motarfuse.engine.part_truth import ROWS, UNTRAINED, fresh_network, score_parts
from motarfuse.errors import CheckpointError, DataError
from motarfuse.models import build_model

SIZE, GRID = (64, 32), (16, 8)
SMALL = SynthPedConfig(
    train_ids=10, test_ids=4, cameras=2, images_per_camera=3, gallery_per_camera=1, distractors=2, confusers=1
)
TESTS = list(SETS[1:])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthped(tmp_path_factory.mktemp("synthped") / "set", SMALL, image_format="png", workers=1)


Parts = Callable[[WrittenSet], tuple[Tensor, Tensor]]


class Answers(nn.Module):
    """A stand-in that recognises each image and answers with parts that were made from its ground truth."""

    image_size = SIZE

    def __init__(self, root: Path, parts: Parts, test_parts: Parts | None = None) -> None:
        super().__init__()
        self.known: dict[bytes, tuple[Tensor, Tensor]] = {}
        for name in SETS:
            written = read_written_set(root, name)
            pixels, _, _ = read_images(list(written.paths), SIZE)
            answer = (test_parts if test_parts and name != "train" else parts)(written)
            for image, *values in zip(EvalTransform()(pixels), *answer, strict=True):
                self.known[image.numpy().tobytes()] = (values[0], values[1])

    def forward(self, images: Tensor, camids: Tensor) -> Any:
        assert not self.training
        masks, keypoints = zip(*(self.known[image.numpy().tobytes()] for image in images), strict=True)
        points = torch.stack(keypoints)[:, None]
        affines = torch.eye(2).expand(*points.shape, 2)
        return SimpleNamespace(part_masks=torch.stack(masks)[:, None], keypoints=points, affines=affines)


def one_hot(labels: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, count).movedim(-1, 1).float()


def drawn_masks(written: WrittenSet, order: tuple[int, ...] = (0, 3, 1, 6, 2, 5, 4, 7)) -> Tensor:
    """The drawn groups on the grid, in an order of their own."""
    return one_hot(torch.tensor(order)[group_labels(area_shares(written.truth.parts, written.truth.amodal, GRID))], 8)


def drawn_points(written: WrittenSet) -> Tensor:
    """The drawn keypoints in [-1, 1], shifted and in reverse order."""
    return (torch.from_numpy(written.truth.keypoints) / torch.tensor([32, 64]) - 1.2).flip(1)


def truth(written: WrittenSet) -> tuple[Tensor, Tensor]:
    return drawn_masks(written), drawn_points(written)


def amodal(written: WrittenSet) -> tuple[Tensor, Tensor]:
    """Blind to occluders: the body as if none were there."""
    shares = area_shares(written.truth.amodal, written.truth.amodal, GRID)
    return one_hot(group_labels(shares), 8), drawn_points(written)


def standing_still(written: WrittenSet) -> tuple[Tensor, Tensor]:
    """The same in every image: everything foreground, one part a quarter."""
    rows = (torch.arange(16) // 4 + 1)[:, None].expand(16, 8)
    return one_hot(rows.expand(len(written), 16, 8), 5), torch.full((len(written), 4, 2), 0.25)


def noise(written: WrittenSet) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(written))
    return drawn_masks(written), torch.rand(len(written), 17, 2, generator=generator) * 2 - 1


def row(scores: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in scores["rows"] if row["name"] == name)
    return found


def test_a_network_that_knows_the_truth_gets_all_that_the_grid_allows(root: Path) -> None:
    scores = score_parts(Answers(root, truth), root)
    assert scores["grid"] == [16, 8]
    assert scores["num_parts"] == 7
    assert scores["train"] == {"images": 60, "identities": 10}
    assert {name: size["images"] for name, size in scores["sets"].items()} == dict.fromkeys(TESTS, 8) | {"gallery": 10}
    network, bound = row(scores, "network"), row(scores, "drawn parts")
    assert network["matching"]["6"][:6] == ["torso", "thighs", "head", "feet", "shanks", "arms"]  # then the bag
    for name in TESTS:
        for key in ("iou", "foreground_iou", "mass", "claimed"):
            assert network["sets"][name][key] == bound["sets"][name][key], (name, key)
        for kind in ("visible", "behind self"):
            assert network["sets"][name]["keypoints"][kind]["error_px"] < 0.05
        others = [row(scores, other)["sets"][name] for other in ("stripes", "mean posture", "network, striped")]
        for other in others:
            assert other["iou"]["6"]["mean"] < network["sets"][name]["iou"]["6"]["mean"]
        assert others[1]["keypoints"]["visible"]["error_px"] > 3
    hidden = network["sets"]["query_occluded"]["keypoints"]["behind occluder"]
    assert hidden["count"] > 10
    assert hidden["error_px"] < 0.05


def test_striping_the_foreground_keeps_it_and_changes_the_parts(root: Path) -> None:
    scores = score_parts(Answers(root, truth), root, sets=["query_holistic"])
    network, striped, body = (
        row(scores, name)["sets"]["query_holistic"] for name in ("network", "network, striped", "body, striped")
    )
    for key in ("foreground_iou", "foreground_iou_soft", "mass", "claimed"):
        assert striped[key] == pytest.approx(network[key])
    # The truth's own foreground, so that the two kinds of stripes are the same.
    assert striped["iou"] == body["iou"]
    assert "keypoints" not in striped


def test_parts_that_look_at_nothing_score_as_stripes_and_as_the_mean_posture(root: Path) -> None:
    scores = score_parts(Answers(root, standing_still), root)
    for name in TESTS:
        network, stripes, mean = (row(scores, one)["sets"][name] for one in ("network", "stripes", "mean posture"))
        for key in ("iou", "foreground_iou", "mass", "claimed"):
            assert network[key] == stripes[key]
        for kind, values in mean["keypoints"].items():
            assert network["keypoints"][kind] == pytest.approx(values)
            assert stripes["keypoints"][kind] == pytest.approx(values)
    everything = row(scores, "stripes")["sets"]["query_occluded"]
    assert everything["claimed"] == {"body": 1, "occluder": 1, "background": 1, "hidden body": 1}


def test_the_mean_posture_is_the_mean_of_the_training_people(root: Path) -> None:
    scores = score_parts(Answers(root, truth), root, sets=["query_partial"])
    train, test = read_written_set(root, "train").truth, read_written_set(root, "query_partial").truth
    mean = [train.keypoints[train.visibility[:, j] > 0, j].mean(0) for j in range(len(KEYPOINTS))]
    distance = np.linalg.norm(test.keypoints - np.stack(mean), axis=-1)
    errors = row(scores, "mean posture")["sets"]["query_partial"]["keypoints"]
    assert errors["visible"]["error_px"] == pytest.approx(distance[test.visibility == 3].mean(), rel=1e-4)
    body = area_shares(train.parts, train.amodal, GRID)[:, 1:19].mean(0).sum(0) > 0.5
    shares = area_shares(test.parts, test.amodal, GRID)[:, 1:19].sum(1)
    expected = shares[:, body].sum() / (body.sum() * len(shares) + shares[:, ~body].sum())
    assert row(scores, "mean posture")["sets"]["query_partial"]["foreground_iou"] == pytest.approx(float(expected))


def test_a_network_that_is_blind_to_occluders_is_found_out(root: Path) -> None:
    scores = {parts.__name__: score_parts(Answers(root, parts), root, sets=TESTS[1:3]) for parts in (truth, amodal)}
    seeing, blind = (row(scores[name], "network")["sets"] for name in ("truth", "amodal"))
    for key in ("foreground_iou", "mass", "claimed", "keypoints"):
        assert blind["query_holistic"][key] == seeing["query_holistic"][key]
    occluded = blind["query_occluded"], seeing["query_occluded"]
    assert occluded[0]["mass"]["occluder"] > 0.1 > 4 * occluded[1]["mass"]["occluder"]
    assert occluded[0]["claimed"]["hidden body"] == pytest.approx(occluded[0]["claimed"]["body"], abs=0.1)
    assert occluded[1]["claimed"]["hidden body"] < 0.2
    assert occluded[0]["iou"]["4"]["mean"] < occluded[1]["iou"]["4"]["mean"]


def test_nothing_is_fitted_on_the_people_who_are_scored(root: Path) -> None:
    def swapped(written: WrittenSet) -> tuple[Tensor, Tensor]:
        return drawn_masks(written, (0, 1, 2, 3, 4, 6, 5, 7)), drawn_points(written)

    honest = score_parts(Answers(root, noise), root)
    # Perfect on test people, but not by what holds on training people: a fit that saw test people would use it.
    other = score_parts(Answers(root, noise, swapped), root)
    for one, same in zip(honest["rows"], other["rows"], strict=True):
        assert (one["matching"], one["ridge_penalty"]) == (same["matching"], same["ridge_penalty"])
    for name in TESTS:
        scored, mean = (row(other, one)["sets"][name] for one in ("network", "mean posture"))
        assert scored["iou"]["6"]["mean"] < 0.1 * row(honest, "network")["sets"][name]["iou"]["6"]["mean"]
        assert scored["keypoints"]["visible"]["error"] > 0.8 * mean["keypoints"]["visible"]["error"]


def test_a_set_scores_the_same_alone_in_other_batches_and_beside_an_untrained_network(root: Path) -> None:
    network = Answers(root, amodal).train()
    whole = score_parts(network, root)
    assert network.training
    part = score_parts(network, root, sets=["gallery"], batch_size=7, untrained=Answers(root, noise))
    assert [one["name"] for one in part["rows"]] == list(ROWS)
    assert [one["name"] for one in whole["rows"]] == [name for name in ROWS if name != UNTRAINED]
    for one in whole["rows"]:
        same = row(part, one["name"])
        assert same["matching"] == one["matching"]
        flat, flat_same = (json.dumps(_rounded(values["sets"]["gallery"])) for values in (one, same))
        assert flat == flat_same


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return float(f"{values:.5g}") if isinstance(values, float) else values


def test_files_that_cannot_be_read_are_left_out_and_the_rest_stays_in_step(root: Path, tmp_path: Path) -> None:
    network = Answers(root, truth)
    copy = shutil.copytree(root, tmp_path / "copy")
    for name, broken in (("train", 4), ("query_holistic", 2)):
        read_written_set(copy, name).paths[broken].write_bytes(b"no image")
    scores = score_parts(network, copy, sets=["query_holistic"])
    assert (scores["train"]["images"], scores["sets"]["query_holistic"]["images"]) == (59, 7)
    scored = row(scores, "network")["sets"]["query_holistic"]
    assert scored["keypoints"]["in frame"]["error_px"] < 0.05
    assert scored["iou"] == row(scores, "drawn parts")["sets"]["query_holistic"]["iou"]


def test_training_people_are_not_scored(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "ground_truth" / "gallery.npz"
    arrays = dict(np.load(path))
    arrays["pids"][3] = 2
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="identity 2 is in the training set and in gallery"):
        score_parts(Answers(root, truth), copy)
    with pytest.raises(DataError, match=r"no test set 'train'; there are gallery, query_holistic"):
        score_parts(Answers(root, truth), root, sets=["train"])


def test_networks_without_parts_or_with_broken_ones_are_refused(root: Path) -> None:
    plain = build_model("vit_reid", size="nano", image_size=SIZE)
    with pytest.raises(CheckpointError, match=r"has no parts to score .*give a checkpoint of motar_fuse"):
        score_parts(plain, root)

    def broken(written: WrittenSet) -> tuple[Tensor, Tensor]:
        masks, points = truth(written)
        return masks, points * torch.nan

    with pytest.raises(CheckpointError, match="not finite"):
        score_parts(Answers(root, broken), root)


def test_fresh_networks_depend_on_the_seed_alone(root: Path) -> None:
    metadata = {"name": "motar_fuse", "config": {"size": "nano", "image_size": list(SIZE)}}
    torch.manual_seed(5)
    first = fresh_network(metadata, 0).state_dict()
    before = torch.get_rng_state()
    second, third = fresh_network(metadata, 0).state_dict(), fresh_network(metadata, 1).state_dict()
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_the_verb_prints_both_tables_and_writes_the_rest(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"size": "nano", "image_size": list(SIZE), "num_parts": 4}
    torch.manual_seed(0)
    network = build_model("motar_fuse", size="nano", image_size=SIZE, num_parts=4)
    save_checkpoint(
        tmp_path / "run" / "checkpoints",
        step=0,
        model=network.state_dict(),
        model_name="motar_fuse",
        model_config=config,
    )
    out = tmp_path / "new" / "parts.json"
    command = ["parts", str(tmp_path / "run"), str(root), "--untrained", "--most", "20", "--set", "query_occluded"]
    assert main([*command, "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "matched and fitted on 20 images of 10 training identities" in printed
    written = json.loads(out.read_text())
    assert [one["name"] for one in written["rows"]] == list(ROWS)
    assert written["model"]["config"]["num_parts"] == written["num_parts"] == 4
    assert written["grid"] == [8, 4]
    for one in written["rows"]:
        values = one["sets"]["query_occluded"]
        for line in (line for line in printed.splitlines() if line.strip().startswith(f"{one['name']} ")):
            numbers = [float(word) for word in line.split() if word.replace(".", "").isdigit()]
            iou, error = values["iou"]["2"]["mean"], values.get("keypoints", {}).get("visible", {}).get("error", -1)
            assert numbers[0] in (round(100 * iou, 1), round(100 * error, 1))
    assert set(GROUPINGS) == set(written["groups"])

    assert main(["parts", str(tmp_path / "run"), str(root / "occluded")]) == 2
    assert "one protocol of a SynthPed benchmark" in capsys.readouterr().err
