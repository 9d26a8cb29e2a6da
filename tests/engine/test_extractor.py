"""Extraction and evaluation: right rows, counted skips, nothing half-written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from motarfuse.data import EvalTransform, read_image
from motarfuse.engine.checkpoint import load_model, save_checkpoint
from motarfuse.engine.evaluator import evaluate_checkpoint
from motarfuse.engine.extractor import encode, extract
from motarfuse.engine.shards import merge_shards, shard_folder
from motarfuse.errors import CheckpointError, ConfigError, DataError, OutputError
from motarfuse.models import build_model
from motarfuse.retrieval import evaluate
from tests.engine.people import write_people


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model("vit_reid", size="nano", image_size=(32, 16))
    return save_checkpoint(
        tmp_path_factory.mktemp("run") / "checkpoints",
        step=3,
        model=model.state_dict(),
        model_name="vit_reid",
        model_config={"size": "nano", "image_size": [32, 16]},
    )


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def one_by_one(checkpoint: Path, paths: list[Path]) -> torch.Tensor:
    """Features by the shortest way: one image at a time."""
    model, _ = load_model(checkpoint)
    images = [torch.from_numpy(read_image(path, (32, 16))).permute(2, 0, 1)[None] for path in paths]
    with torch.no_grad():
        return torch.cat([model(EvalTransform()(image)).feature for image in images])


def test_every_row_belongs_to_its_line_of_the_table(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    result = extract(checkpoint, people, tmp_path / "out", batch_size=5, device="cpu")
    features = load_file(tmp_path / "out/features.safetensors")["feature"]
    rows = table(tmp_path / "out")
    assert len(rows) == len(features) == result.count == 48
    torch.testing.assert_close(
        features, one_by_one(checkpoint, [people / row["path"] for row in rows]), rtol=1e-4, atol=1e-5
    )
    assert all(int(row["pid"]) == int(Path(row["path"]).name[:4]) for row in rows)
    assert {row["camid"] for row in rows} == {"0", "1"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["source"] == str(people.resolve())
    assert manifest["checkpoint"]["step"] == 3
    assert manifest["num_images"] == 48
    assert manifest["parts"] is None


def test_plain_folders_are_read_recursively_without_labels(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "a.png"):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 20, 3), len(name), np.uint8)).save(path)
    (tmp_path / "crops/b/notes.txt").write_text("no image")
    (tmp_path / "crops/broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "crops/empty.png").write_bytes(b"")
    result = extract(checkpoint, tmp_path / "crops", tmp_path / "out", device="cpu")
    rows = table(tmp_path / "out")
    assert [row["path"] for row in rows] == ["a.png", "b/9.png", "b/10.png"]
    assert {(row["pid"], row["camid"]) for row in rows} == {("-1", "-1")}
    assert {item.path.name for item in result.skipped} == {"broken.jpg", "empty.png"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["num_skipped"] == 2
    assert {item["path"] for item in manifest["skipped"]} == {"broken.jpg", "empty.png"}
    assert all(item["reason"] for item in manifest["skipped"])


def test_shards_are_the_whole_in_order(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    extract(checkpoint, people, tmp_path / "whole", device="cpu")
    for index in (3, 0, 4, 2, 1):
        extract(checkpoint, people, shard_folder(tmp_path / "joined", index, 5), shard=(index, 5), device="cpu")
    assert merge_shards(tmp_path / "joined").count == 48
    joined, whole = (load_file(tmp_path / name / "features.safetensors")["feature"] for name in ("joined", "whole"))
    torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-5)
    for name in ("table.csv", "manifest.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_that_do_not_fit_together_are_named(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no parts of .*out found"):
        merge_shards(out)
    extract(checkpoint, people, shard_folder(out, 0, 2), shard=(0, 2), device="cpu")
    with pytest.raises(DataError, match=r"part 1 of 2 is missing; run extract with --shard 1/2"):
        merge_shards(out)
    extract(checkpoint, people, shard_folder(out, 1, 2), shard=(1, 2), flip=True, device="cpu")
    with pytest.raises(DataError, match="differ in checkpoint, source or options"):
        merge_shards(out)
    extract(checkpoint, people, shard_folder(out, 1, 2), shard=(1, 2), device="cpu")
    features = shard_folder(out, 1, 2) / "features.safetensors"
    features.write_bytes(features.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"shard-1-of-2/features\.safetensors is truncated"):
        merge_shards(out)
    assert not out.exists()


def test_a_split_is_extracted_alone(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    extract(checkpoint, people, tmp_path / "out", split="query", device="cpu")
    assert all(row["path"].startswith("query/") for row in table(tmp_path / "out"))
    assert len(table(tmp_path / "out")) == 6


def test_flip_makes_features_of_mirror_images_equal(checkpoint: Path, people: Path) -> None:
    model, _ = load_model(checkpoint)
    path = sorted((people / "query").iterdir())[0]
    mirrored = path.parent.parent / "mirrored.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    features, kept = encode(model, [path, mirrored], flip=True)
    assert kept == [0, 1]
    torch.testing.assert_close(features.feature[0], features.feature[1], rtol=1e-4, atol=1e-5)
    plain, _ = encode(model, [path, mirrored])
    assert not torch.allclose(plain.feature[0], plain.feature[1], rtol=1e-4, atol=1e-5)


def test_encode_gives_the_model_back_in_its_mode(checkpoint: Path, people: Path) -> None:
    model: Any = load_model(checkpoint)[0]
    model.train()
    before = model.neck.running_mean.clone()
    features, _ = encode(model, sorted((people / "query").iterdir()))
    assert model.training
    assert torch.equal(model.neck.running_mean, before)
    assert features.feature.requires_grad is False


def test_other_files_are_never_replaced(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("x")
    with pytest.raises(DataError, match="holds other files than an extraction's"):
        extract(checkpoint, people, tmp_path / "out", device="cpu")
    # Datasets and web pages have a manifest.json of their own.
    (tmp_path / "out/manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is not replaced"):
        extract(checkpoint, people, tmp_path / "out", device="cpu")
    assert (tmp_path / "out/precious.txt").read_text() == "x"
    with pytest.raises(OutputError, match="a file"):
        extract(checkpoint, people, tmp_path / "out/precious.txt", device="cpu")
    # An earlier extraction is replaced.
    extract(checkpoint, people, tmp_path / "again", device="cpu")
    extract(checkpoint, people, tmp_path / "again", split="query", device="cpu")
    assert len(table(tmp_path / "again")) == 6


def test_what_cannot_be_read_is_named(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[tuple[tuple[Path, Path], dict[str, Any], type[Exception], str]] = [
        ((tmp_path / "none", people), {}, CheckpointError, "does not exist"),
        ((checkpoint, tmp_path / "empty"), {}, DataError, "no images found"),
        ((checkpoint, tmp_path / "nowhere"), {}, DataError, "no such file or folder"),
        ((checkpoint, people / "query"), {"split": "query"}, DataError, "plain images"),
        ((checkpoint, people), {"device": "cuda:9"}, ConfigError, "torch sees"),
    ]
    for (weights, source), options, error, message in cases:
        with pytest.raises(error, match=message):
            extract(weights, source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ""])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name for a file"):
        evaluate_checkpoint(tmp_path / "none", tmp_path / "none", name=name, out=tmp_path)


@pytest.mark.parametrize("argument", ["batch_size", "workers"])
def test_counts_below_one_are_named(argument: str, checkpoint: Path, people: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {argument: 0}
    message = f"{argument} must be at least 1, got 0"
    with pytest.raises(ConfigError, match=message):
        evaluate_checkpoint(checkpoint, people, **options)
    with pytest.raises(ConfigError, match=message):
        extract(checkpoint, people, tmp_path / "out", **options)


def test_unreadable_files_are_named_in_one_warning(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(tmp_path / "crops/good.png")
    for index in range(7):
        (tmp_path / f"crops/{index}.png").write_bytes(b"")
    extract(checkpoint, tmp_path / "crops", tmp_path / "out", batch_size=2, device="cpu")
    warning = " ".join(capsys.readouterr().err.split())
    assert warning.count("warning") == 1
    assert "7 of 8 images cannot be read and are left out" in warning
    assert warning.count("the file is empty") == 5
    assert "and 2 more" in warning


def test_evaluation_record_is_what_retrieval_says_of_the_features(
    checkpoint: Path, people: Path, tmp_path: Path
) -> None:
    evaluation = evaluate_checkpoint(checkpoint, people, name="held-out", out=tmp_path, device="cpu")
    record = json.loads((tmp_path / "evaluations/held-out.json").read_text())
    assert record == evaluation.record
    query, gallery = (sorted((people / name).iterdir()) for name in ("query", "bounding_box_test"))
    features = [one_by_one(checkpoint, paths) for paths in (query, gallery)]
    pids = [[int(path.name[:4]) for path in paths] for paths in (query, gallery)]
    cameras = [[int(path.name[6]) for path in paths] for paths in (query, gallery)]
    expected = evaluate(*features, *pids, *cameras)
    assert record["metrics"]["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
    assert record["cmc"] == pytest.approx(expected.cmc.tolist())
    assert record["score"] == record["manifest"]["score"] == "feature"
    assert record["scores"] == {"feature": {**record["metrics"], "cmc": record["cmc"]}}
    assert record["queries"] == {
        "feature": {
            "pid": pids[0],
            "average_precision": expected.average_precision.round(6).tolist(),
            "inp": expected.inp.round(6).tolist(),
            "first_rank": expected.first_rank.tolist(),
        }
    }
    assert record["manifest"]["protocol"]["name"] == "market1501"
    assert record["step"] == 3
    assert record["root"] == str(people.resolve())
    assert len(record["rank_lists"]) == 6
    for listed in record["rank_lists"]:
        assert (people / listed["query"]).is_file()
        scores = [entry["score"] for entry in listed["entries"]]
        assert scores == sorted(scores, reverse=True)
        for entry in listed["entries"]:
            assert (people / entry["path"]).is_file()
            assert entry["match"] == (entry["pid"] == listed["query_pid"])
            assert (entry["pid"], entry["camid"]) != (listed["query_pid"], listed["query_camid"])


def test_evaluation_without_query_or_with_an_unknown_protocol_is_refused(
    checkpoint: Path, people: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.protocol must be one of"):
        evaluate_checkpoint(checkpoint, people, protocol="mars9")
    with pytest.raises(ConfigError, match=r"evaluation\.score must be one of auto, feature, parts, sum, got 'limbs'"):
        evaluate_checkpoint(checkpoint, people, score="limbs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"evaluation\.score is sum, but this network has no parts"):
        evaluate_checkpoint(checkpoint, people, score="sum")
    alone = write_people(tmp_path / "alone")
    for path in (alone / "query").iterdir():
        path.unlink()
    with pytest.raises(DataError):
        evaluate_checkpoint(checkpoint, alone)
