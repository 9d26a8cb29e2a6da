"""Features with parts through the engine and the command line: encoded, kept, joined, evaluated, searched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from motarfuse.cli.main import main
from motarfuse.data import EvalTransform, load_dataset, read_image
from motarfuse.engine.checkpoint import load_model, save_checkpoint
from motarfuse.engine.config import DataConfig, EvaluationConfig
from motarfuse.engine.evaluator import EvaluationSet, evaluate_checkpoint, read_evaluation
from motarfuse.engine.extractor import encode, extract
from motarfuse.engine.shards import merge_shards, shard_folder
from motarfuse.errors import CheckpointError, ConfigError
from motarfuse.models import ReIDOutput, build_model
from motarfuse.retrieval import SCORES, PersonFeatures, evaluate, rank_lists, search
from motarfuse.retrieval.feature_folder import read_features
from tests.engine.people import write_people

SIZE = (32, 16)
TENSORS = ("feature", "part_features", "part_visibility")


def save(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    model = build_model(name, size="nano", image_size=SIZE)
    return save_checkpoint(
        folder / "checkpoints",
        step=3,
        model=model.state_dict(),
        model_name=name,
        model_config={"size": "nano", "image_size": list(SIZE)},
    )


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People who are hard to tell apart, so that different scores make different mistakes."""
    root, random = write_people(tmp_path_factory.mktemp("people"), identities=8), np.random.default_rng(0)
    for path in sorted(root.rglob("*.png")):
        pixels = np.asarray(Image.open(path)) * 0.3 + random.integers(0, 180, (4, 2, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run"), "motar_fuse")


@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), "vit_reid")


@pytest.fixture(scope="module")
def features(checkpoint: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery, extracted."""
    out = tmp_path_factory.mktemp("features") / "gallery"
    extract(checkpoint, people, out, split="gallery", batch_size=5, device="cpu")
    return out


def one_by_one(checkpoint: Path, paths: list[Path]) -> dict[str, torch.Tensor]:
    """Features by the shortest way: one image at a time."""
    model, _ = load_model(checkpoint)
    images = [torch.from_numpy(read_image(path, SIZE)).permute(2, 0, 1)[None] for path in paths]
    with torch.no_grad():
        outputs = [model(EvalTransform()(image)) for image in images]
    return {name: torch.cat([getattr(output, name) for output in outputs]) for name in TENSORS}


def test_parts_are_kept_beside_the_features_row_by_row(checkpoint: Path, people: Path, features: Path) -> None:
    kept, folder = load_file(features / "features.safetensors"), read_features(features)
    expected = one_by_one(checkpoint, folder.paths)
    assert kept.keys() == expected.keys() == folder.features.tensors.keys()
    for name, tensor in expected.items():
        assert kept[name].dtype == torch.float32
        assert torch.equal(kept[name], folder.features.tensors[name])
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=1e-4)
    assert folder.manifest["parts"] == {"count": 8, "width": 96}


def test_unreadable_images_leave_no_gap_in_the_parts(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    paths = sorted((people / "query").iterdir())[:4]
    (tmp_path / "broken.png").write_bytes(b"")
    found, kept = encode(load_model(checkpoint)[0], [*paths[:2], tmp_path / "broken.png", *paths[2:]], batch_size=2)
    assert kept == [0, 1, 3, 4]
    for name, tensor in one_by_one(checkpoint, paths).items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_flip_averages_the_feature_and_leaves_the_parts_alone(checkpoint: Path, people: Path) -> None:
    model, _ = load_model(checkpoint)
    paths = sorted((people / "query").iterdir())[:3]
    plain, flipped = (encode(model, paths, flip=flip)[0] for flip in (False, True))
    assert not torch.allclose(plain.feature, flipped.feature, rtol=1e-3, atol=1e-4)
    for name in TENSORS[1:]:
        assert torch.equal(plain.tensors[name], flipped.tensors[name])


def test_a_network_whose_parts_are_empty_has_none(people: Path) -> None:
    class Partless(nn.Module):
        image_size = SIZE

        def forward(self, images: torch.Tensor, camids: torch.Tensor) -> ReIDOutput:
            output: Any = ReIDOutput(images.mean((2, 3)), images.mean((2, 3)))
            output.part_features, output.part_visibility = images.new_empty(len(images), 0, 3), images.new_empty(0, 0)
            return output

    assert not encode(Partless(), sorted((people / "query").iterdir()))[0].has_parts


def test_shards_are_joined_with_their_parts(checkpoint: Path, people: Path, features: Path, tmp_path: Path) -> None:
    for index in (2, 0, 1):
        out = shard_folder(tmp_path / "joined", index, 3)
        extract(checkpoint, people, out, split="gallery", shard=(index, 3), device="cpu")
    assert merge_shards(tmp_path / "joined").count == 24
    joined, whole = (load_file(folder / "features.safetensors") for folder in (tmp_path / "joined", features))
    assert joined.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(joined[name], tensor, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "joined/manifest.json").read_bytes() == (features / "manifest.json").read_bytes()
    file = shard_folder(tmp_path / "joined", 1, 3) / "features.safetensors"
    tensors = load_file(file)
    for spoilt, message in (
        ({**tensors, "part_features": tensors["part_features"][:-1]}, "7 rows of part_features for 8 lines"),
        ({"feature": tensors["feature"]}, "disagree about parts"),
        ({name: tensors[name] for name in TENSORS[:2]}, "got part_features alone"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in spoilt.items()}, file)
        with pytest.raises(CheckpointError, match=message):
            merge_shards(tmp_path / "joined")


def test_an_evaluation_holds_all_three_scores(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    evaluation = evaluate_checkpoint(checkpoint, people, name="held-out", out=tmp_path, device="cpu")
    record = json.loads((tmp_path / "evaluations/held-out.json").read_text())
    assert record == evaluation.record
    sides = [sorted((people / name).iterdir()) for name in ("query", "bounding_box_test")]
    query, gallery = (encode(load_model(checkpoint)[0], paths)[0] for paths in sides)
    pids, cameras = ([[int(path.name[part]) for path in paths] for paths in sides] for part in (slice(4), 6))
    for score in SCORES:
        expected = evaluate(query, gallery, *pids, *cameras, score=score)
        assert record["scores"][score] == {**expected.metrics, "cmc": expected.cmc.tolist()}
        assert record["queries"][score] == {
            "pid": pids[0],
            "average_precision": expected.average_precision.round(6).tolist(),
            "inp": expected.inp.round(6).tolist(),
            "first_rank": expected.first_rank.tolist(),
        }
    assert len({tuple(values["average_precision"]) for values in record["queries"].values()}) == 3
    assert record["score"] == record["manifest"]["score"] == "sum"
    assert record["metrics"] == {key: record["scores"]["sum"][key] for key in record["metrics"]}
    expected_lists = {
        sides[0][found.query].name: found.scores.tolist()
        for found in rank_lists(query, gallery, *pids, *cameras, score="sum")
    }
    assert len(record["rank_lists"]) == len(expected_lists)
    for listed in record["rank_lists"]:
        shown = [entry["score"] for entry in listed["entries"]]
        assert shown == pytest.approx(expected_lists[Path(listed["query"]).name], abs=1e-5)
    assert str(evaluation).startswith("held-out by sum: mAP")


def test_the_headline_is_of_the_score_that_is_asked_for(checkpoint: Path, people: Path) -> None:
    for score in SCORES:
        evaluation = evaluate_checkpoint(checkpoint, people, score=score, device="cpu")  # type: ignore[arg-type]
        record = evaluation.record
        assert evaluation.metrics == {key: record["scores"][score][key] for key in evaluation.metrics}
        assert record["manifest"]["score"] == evaluation.score == next(iter(evaluation.scores)) == score
        lists = {listed["query"]: listed["average_precision"] for listed in record["rank_lists"]}
        assert sorted(round(value, 6) for value in lists.values()) == sorted(
            record["queries"][score]["average_precision"]
        )
    euclidean = evaluate_checkpoint(checkpoint, people, metric="euclidean", device="cpu")
    assert list(euclidean.scores) == ["feature"]
    with pytest.raises(ConfigError, match=r"evaluation\.score is sum and evaluation\.metric euclidean"):
        evaluate_checkpoint(checkpoint, people, metric="euclidean", score="sum")


def test_an_evaluation_by_another_score_is_made_anew(
    checkpoint: Path, plain_checkpoint: Path, people: Path, tmp_path: Path
) -> None:
    subject = EvaluationSet("test", load_dataset(people), SIZE, DataConfig())

    def found(run: str, score: Any) -> bool:
        return read_evaluation(tmp_path / run, subject, EvaluationConfig(score=score), 3) is not None

    evaluate_checkpoint(checkpoint, people, out=tmp_path / "sum", device="cpu")
    evaluate_checkpoint(checkpoint, people, score="feature", out=tmp_path / "feature", device="cpu")
    evaluate_checkpoint(plain_checkpoint, people, out=tmp_path / "plain", device="cpu")
    wanted = ("auto", *SCORES)
    assert [found("sum", score) for score in wanted] == [True, False, False, True]
    assert [found("feature", score) for score in wanted] == [False, True, False, False]
    assert [found("plain", score) for score in wanted] == [True, True, False, False]
    file = tmp_path / "plain/evaluations/test.json"
    record = json.loads(file.read_text())
    del record["scores"]
    file.write_text(json.dumps(record))
    assert not found("plain", "auto")


def test_evaluate_prints_every_score(
    checkpoint: Path, plain_checkpoint: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(checkpoint), "--data", str(people), "--name", "x", "--out", str(tmp_path)]
    assert main([*command, "--score", "parts", "--device", "cpu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    titles, first, second, third = (row for row in rows if {"set", *SCORES} & set(row))
    assert titles[:3] == ["set", "score", "mAP"]
    assert (first[:2], second[0], third[0]) == (["x", "parts"], "feature", "sum")
    scores = json.loads((tmp_path / "evaluations/x.json").read_text())["scores"]
    for row in (first[1:], second, third):
        assert row[1] == f"{100 * scores[row[0]]['mAP']:.1f}"
    command[1] = str(plain_checkpoint)
    assert main([*command, "--device", "cpu"]) == 0
    assert "score" not in capsys.readouterr().out


@pytest.mark.parametrize("score", ["auto", *SCORES])
def test_search_orders_by_the_score_and_shows_the_others(
    score: str, checkpoint: Path, people: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = sorted((people / "query").iterdir())[0]
    assert main(["search", str(query), str(features), "-k", "24", "--score", score, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    folder, chosen = read_features(features), "sum" if score == "auto" else score
    person = encode(load_model(checkpoint)[0], [query])[0]
    expected = {name: search(person, folder.features, 24, score=name) for name in SCORES}
    assert answer["score"] == chosen
    assert [result["path"] for result in answer["results"]] == [
        str(folder.paths[index]) for index in expected[chosen][1][0].tolist()
    ]
    for name, (values, indices) in expected.items():
        by_path = {str(folder.paths[i]): v for i, v in zip(indices[0].tolist(), values[0].tolist(), strict=True)}
        for result in answer["results"]:
            assert result["scores"][name] == pytest.approx(by_path[result["path"]], abs=1e-5)
    assert all(result["score"] == result["scores"][chosen] for result in answer["results"])


def test_search_prints_the_three_scores(
    people: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = sorted((people / "query").iterdir())[0]
    command = ["search", str(query), str(features), "-k", "2", "--out", str(tmp_path / "rank.png")]
    assert main([*command, "--score", "parts"]) == 0
    titles, *rows = (
        line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["rank"], ["1"], ["2"])
    )
    assert titles[:4] == ["rank", "parts", "feature", "sum"]
    for row in rows:
        assert 3 * float(row[1]) + float(row[2]) == pytest.approx(float(row[3]), abs=3e-4)


def test_parts_that_are_not_there_are_no_score(
    plain_checkpoint: Path, people: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = sorted((people / "query").iterdir())[0]
    extract(plain_checkpoint, people, tmp_path / "plain", split="gallery", device="cpu")
    for score in ("parts", "sum"):
        assert main(["search", str(query), str(tmp_path / "plain"), "--score", score, "--json"]) == 2
        assert f"--score {score}: {tmp_path / 'plain'} holds no parts; use --score feature" in capsys.readouterr().err
    assert main(["search", str(query), str(tmp_path / "plain"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == "feature"
    assert main(["search", str(query), str(features), "--score", "sum", "--metric", "euclidean"]) == 2
    assert "parts are compared by cosine only" in capsys.readouterr().err


def test_damaged_parts_are_named(features: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(features, tmp_path / "features"))
    tensors = load_file(folder / "features.safetensors")
    for spoilt, message in (
        ({"feature": tensors["feature"]}, "names parts, features.safetensors says otherwise"),
        ({name: tensors[name] for name in TENSORS[:2]}, "alone or with `part_features`"),
        ({**tensors, "part_visibility": tensors["part_visibility"][:, 1:]}, "alone or with `part_features`"),
        ({**tensors, "part_features": tensors["part_features"].half()}, "alone or with `part_features`"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in spoilt.items()}, folder / "features.safetensors")
        with pytest.raises(CheckpointError, match=message):
            read_features(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "parts": None}))
    save_file({"feature": tensors["feature"]}, folder / "features.safetensors")
    assert isinstance(read_features(folder).features, PersonFeatures)
