"""From a folder of tracklets to scores: training that resumes, evaluation by policy, extraction with names."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motarfuse.cli.main import main
from motarfuse.data import Clip, ClipSampling, ClipStore, EvalTransform, load_video_dataset
from motarfuse.engine.checkpoint import load_model
from motarfuse.engine.evaluator import evaluate_checkpoint
from motarfuse.engine.extractor import encode_tracklets, extract
from motarfuse.engine.logs import read_log
from motarfuse.engine.shards import merge_shards, shard_folder
from motarfuse.engine.trainer import train
from motarfuse.errors import DataError
from motarfuse.retrieval.feature_folder import read_features
from tests.engine.people import small_config
from tests.engine.test_trainer import assert_equal_runs, last_step, start_training, timeless

MOTION = ("model.name=motar_fuse", "model.num_parts=2", "copy.share=0.5", "clip.frames=3")


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MARS without tables: 4 identities train, 3 test, a tracklet a camera of 1 to 7 frames, one frame missing."""
    root = tmp_path_factory.mktemp("walks")
    random = np.random.default_rng(0)
    queries = []
    for pid in range(1, 8):
        folder = root / ("bbox_train" if pid < 5 else "bbox_test") / f"{pid:04d}"
        folder.mkdir(parents=True)
        shirt, trousers = random.integers(0, 256, (2, 3))
        for camera in (1, 2):
            name = f"{pid:04d}C{camera}T0001"
            if pid >= 5 and camera == 1:
                queries.append(name)
            for frame in range(1, 2 + int(random.integers(2, 7))):
                if frame == 2:
                    continue
                pixels = np.empty((32, 16, 3))
                pixels[:16], pixels[16:] = shirt, trousers
                pixels = np.clip(np.roll(pixels, frame, 0) + random.normal(0, 20, pixels.shape), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}F{frame:03d}.png")
    (root / "info").mkdir()
    (root / "info/query.txt").write_text("\n".join(queries) + "\n")
    return root


@pytest.fixture(scope="module")
def run(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small_config(walks, folder, *MOTION))
    return folder


def test_a_run_on_tracklets_logs_the_motion_between_frames_and_scores_tracklets(run: Path) -> None:
    events = read_log(run / "log.jsonl")
    steps = [event for event in events if event["event"] == "train"]
    assert any("loss_rec" in event for event in steps)
    assert all({"loss_flow", "loss_part", "health/foreground"} <= event.keys() for event in steps)
    record = json.loads((run / "evaluations/test.json").read_text())
    assert record["metrics"]["num_valid"] == record["metrics"]["num_query"] == 3
    assert record["metrics"]["num_gallery"] == 6  # the queries too, which is the official protocol
    assert record["manifest"]["features"]["clips"] == {"policy": "all", "frames": 8}


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_killed_run_on_tracklets_ends_as_one_that_was_not(walks: Path, run: Path, tmp_path: Path, cache: str) -> None:
    config = small_config(walks, tmp_path / "run", *MOTION, f"data.cache={cache}")
    process = start_training(walks, tmp_path / "run", (*MOTION, f"data.cache={cache}"))
    deadline = time.monotonic() + 240
    while last_step(tmp_path / "run") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(config)
    assert_equal_runs(run, tmp_path / "run")
    assert [event["step"] for event in timeless(tmp_path / "run") if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_plain_transformer_trains_on_tracklets_too(walks: Path, tmp_path: Path) -> None:
    result = train(small_config(walks, tmp_path / "run", "train.steps=2", "clip.frames=2"))
    assert "3 queries, 6 gallery tracklets" in str(result.evaluations["test"])


def test_a_tracklet_s_feature_is_the_mean_over_its_clips_weighted_by_their_frames(walks: Path, run: Path) -> None:
    model, _ = load_model(run)
    model.eval()
    records = load_video_dataset(walks).gallery
    sampling = ClipSampling("all", 2)
    with ClipStore(records, (32, 16)) as store:
        found, kept = encode_tracklets(model, store, sampling)
        assert kept == list(range(len(records)))
        for number, record in enumerate(records):
            feature, parts, seen, frames = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
            for places in sampling.clips(len(record)):
                batch = store.batch([Clip(number, places)])
                with torch.no_grad():
                    output = model(EvalTransform()(batch.images), None, batch.frame_mask, batch.frame_index)
                weight = len(places) * output.part_visibility[0]
                feature = feature + len(places) * output.feature[0]
                parts = parts + weight[:, None] * output.part_features[0]
                seen, frames = seen + weight, frames + len(places)
            assert torch.allclose(found.feature[number], feature / frames, atol=1e-5)
            assert found.part_features is not None
            assert found.part_visibility is not None
            assert torch.allclose(found.part_features[number], parts / seen[:, None], atol=1e-4)
            assert torch.allclose(found.part_visibility[number], seen / frames, atol=1e-6)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_features_of_tracklets_do_not_depend_on_the_batch(walks: Path, run: Path, cache: str) -> None:
    model, _ = load_model(run)
    with ClipStore(load_video_dataset(walks).gallery, (32, 16), cache=cache) as store:
        one, many = (encode_tracklets(model, store, ClipSampling("all", 3), batch_size=size)[0] for size in (1, 64))
    for name, tensor in one.tensors.items():
        assert torch.allclose(tensor, many.tensors[name], atol=1e-5), name


def test_the_policy_decides_what_is_evaluated_and_is_written_down(walks: Path, run: Path) -> None:
    whole = evaluate_checkpoint(run, walks, device="cpu")
    single = evaluate_checkpoint(run, walks, device="cpu", sampling=ClipSampling("evenly", 1))
    assert whole.record["manifest"]["features"]["clips"] == {"policy": "all", "frames": 8}
    assert single.record["manifest"]["features"]["clips"] == {"policy": "evenly", "frames": 1}
    assert whole.record["rank_lists"][0]["entries"] != single.record["rank_lists"][0]["entries"]


def test_tracklets_are_extracted_a_row_each_and_in_parts_alike(walks: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    result = extract(run, walks, out, split="gallery", device="cpu")
    records = load_video_dataset(walks).gallery
    assert (result.count, result.num_images) == (len(records), sum(map(len, records)))
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tracklet"] for row in rows] == [record.name for record in records]
    assert [int(row["frames"]) for row in rows] == [len(record) for record in records]
    folder = read_features(out)
    assert folder.paths == [record.path for record in records]
    for index in range(2):
        extract(run, walks, shard_folder(tmp_path / "parts", index, 2), split="gallery", device="cpu", shard=(index, 2))
    merged = merge_shards(tmp_path / "parts")
    assert (merged.count, merged.num_images) == (result.count, result.num_images)
    assert torch.allclose(read_features(tmp_path / "parts").features.feature, folder.features.feature, atol=1e-5)
    assert (tmp_path / "parts/table.csv").read_bytes() == (out / "table.csv").read_bytes()


def test_the_command_line_evaluates_single_frames_of_tracklets(
    walks: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", str(run), "--data", str(walks), "--out", str(tmp_path), "--name", "one", "--device", "cpu"]
    assert main([*given, "--frames", "evenly", "--clip-length", "1"]) == 0
    record = json.loads((tmp_path / "evaluations/one.json").read_text())
    assert record["manifest"]["features"]["clips"] == {"policy": "evenly", "frames": 1}
    capsys.readouterr()


def test_too_few_identities_are_named_before_anything_is_read(walks: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="identities a batch, the data has 4"):
        train(small_config(walks, tmp_path / "run", *MOTION, "train.batch_size=16"))
    assert not (tmp_path / "run").exists()


def test_the_protocol_of_the_splits_is_written_down(walks: Path, run: Path) -> None:
    official = evaluate_checkpoint(run, walks, device="cpu")
    other = evaluate_checkpoint(run, walks, kind="mars:queries_in_gallery=false", device="cpu")
    found = [one.record["manifest"]["dataset"]["protocol"] for one in (official, other)]
    assert all(found)
    assert found[0] != found[1]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_tracklet_of_which_nothing_can_be_read_is_left_out_and_named(
    walks: Path, run: Path, tmp_path: Path, cache: str
) -> None:
    damaged = shutil.copytree(walks, tmp_path / "walks")
    gone, partly = load_video_dataset(damaged).gallery[:2]
    for path in gone.paths:
        path.write_bytes(b"")
    partly.paths[0].write_bytes(b"")
    result = extract(run, damaged, tmp_path / "features", split="gallery", device="cpu")
    records = load_video_dataset(damaged).gallery
    assert (result.count, len(result.skipped)) == (len(records) - 1, len(gone) + 1)
    assert result.num_images == sum(map(len, records)) - len(gone) - 1
    with (tmp_path / "features/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["tracklet"] for row in rows] == [record.name for record in records[1:]]
    assert int(rows[0]["frames"]) == len(partly) - 1
    model, _ = load_model(run)
    with ClipStore(records, (32, 16), cache=cache) as store:
        _, kept = encode_tracklets(model, store, ClipSampling("all", 3))
        assert [store.records[index].name for index in kept] == [record.name for record in records[1:]]
        whole = [record for record in records if record.name not in (gone.name, partly.name)]
        with ClipStore([partly.select(range(1, len(partly))), *whole], (32, 16)) as clean:
            expected, _ = encode_tracklets(model, clean, ClipSampling("all", 8))
        again, _ = encode_tracklets(model, store, ClipSampling("all", 8))
        assert torch.allclose(again.feature, expected.feature, atol=1e-5)
    assert evaluate_checkpoint(run, damaged, device="cpu").metrics["num_query"] == 2
