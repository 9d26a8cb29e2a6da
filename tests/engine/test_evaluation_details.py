"""Protocols by a dataset's kind, and what an evaluation tells beside its headline, in records and on the console."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motarfuse.cli.main import main
from motarfuse.data import ReIDDataset, Tracklet, TrackletDataset
from motarfuse.data.any_dataset import AnyDataset, load_any_dataset
from motarfuse.data.published import CUHK03_LABELED, DUKE, MARKET1501, OCCLUDED_DUKE
from motarfuse.data.synthped import SynthPedConfig, write_synthped
from motarfuse.engine import evaluation_details
from motarfuse.engine.checkpoint import save_checkpoint
from motarfuse.engine.config import DataConfig, EvaluationConfig
from motarfuse.engine.evaluation_details import Details
from motarfuse.engine.evaluator import EvaluationSet, evaluate_checkpoint, read_evaluation
from motarfuse.engine.occlusion import hidden_shares
from motarfuse.engine.protocol_choice import choose_protocol, compare_with_published
from motarfuse.engine.split_evaluations import evaluate_splits, with_split
from motarfuse.errors import ConfigError, DataError
from motarfuse.models import build_model
from motarfuse.retrieval import EvaluationResult, Protocol, Reranking, evaluate, rerank
from motarfuse.retrieval.protocols import get_protocol
from tests.engine.people import write_people

PRID_SPLITS = 10


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


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), identities=8)


@pytest.fixture(scope="module")
def synthped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthped") / "small"
    write_synthped(folder, SynthPedConfig(seed=1, train_ids=4, test_ids=8, distractors=4, size=(64, 32)))
    return folder


@pytest.fixture(scope="module")
def prid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PRID2011 of six people with two frames a camera, and ten splits of three and three."""
    root = tmp_path_factory.mktemp("prid2011")
    random = np.random.default_rng(0)
    names = [f"person_{number:04d}" for number in range(1, 7)]
    for name in names:
        shirt = random.integers(100, 156, (2, 1, 3))
        for camera in ("cam_a", "cam_b"):
            folder = root / "multi_shot" / camera / name
            folder.mkdir(parents=True)
            for frame in (1, 2):
                pixels = np.repeat(shirt, 16, axis=0) + random.normal(0, 90, (32, 16, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{frame:04d}.png")
    orders = [random.permutation(names).tolist() for _ in range(PRID_SPLITS)]
    splits = [{"train": order[:3], "test": order[3:]} for order in orders]
    (root / "splits_prid2011.json").write_text(json.dumps(splits))
    return root


def dataset(kind: str, variant: str = "", protocol: str | None = None) -> AnyDataset:
    if protocol is None:
        return ReIDDataset("some", kind, Path("x"), variant, [], [], [])
    return TrackletDataset("some", kind, Path("x"), variant, [], [], [], protocol=protocol)


def test_auto_is_the_protocol_of_the_kind() -> None:
    for kind, protocol in {
        "market1501": "market1501",
        "msmt17": "msmt17",
        "occluded_duke": "occluded-duke",
        "occluded_reid": "occluded-reid",
        "partial_reid": "partial-reid",
        "partial_ilids": "partial-reid",
        "p_duke": "market1501",
        "csv": "market1501",
        "folder": "market1501",
    }.items():
        assert choose_protocol("auto", dataset(kind)) == protocol
    assert choose_protocol("auto", dataset("cuhk03", "CUHK03 labeled, new protocol, ...")) == "cuhk03-np"
    assert choose_protocol("auto", dataset("cuhk03", "CUHK03 labeled, classic protocol, split 3")) == "cuhk03-classic"
    for kind in ("ilids-vid", "prid2011"):
        assert choose_protocol("auto", dataset(kind, protocol="split 0 of 10")) == kind
    assert choose_protocol("auto", dataset("ls-vid", protocol="official")) == "market1501"
    assert choose_protocol("CUHK03_np", dataset("market1501")) == "cuhk03-np"


def test_a_ready_made_set_in_market_s_layout_is_known_by_its_counts() -> None:
    for known, protocol in (
        (OCCLUDED_DUKE, "occluded-duke"),
        (CUHK03_LABELED, "cuhk03-np"),
        (DUKE, "market1501"),
        (MARKET1501, "market1501"),
    ):
        found = replace(dataset("market1501"), published=known)
        assert choose_protocol("auto", found) == protocol


def test_mars_has_a_protocol_for_each_of_its_galleries(tmp_path: Path) -> None:
    for camera in (1, 2):
        folder = tmp_path / "bbox_test" / "0005"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"0005C{camera}T0001F001.jpg").touch()
    (tmp_path / "info").mkdir()
    (tmp_path / "info/query.txt").write_text("0005C1T0001\n")
    assert choose_protocol("auto", load_any_dataset(tmp_path)) == "mars-official"
    without = load_any_dataset(tmp_path, "mars:queries_in_gallery=false")
    assert choose_protocol("auto", without) == "mars-torchreid"


def test_counts_are_compared_where_the_dataset_is_a_published_one() -> None:
    result = evaluate(np.eye(3), np.eye(3), [1, 2, 3], [1, 2, 3], [0] * 3, [1] * 3)
    assert compare_with_published(result, dataset("market1501")) == []
    known = replace(dataset("market1501"), published=MARKET1501)
    assert compare_with_published(result, known)[0] == "3 queries, Market-1501 was published with 3,368"


def test_details_are_in_the_record_and_leave_the_headline_alone(checkpoint: Path, people: Path, tmp_path: Path) -> None:
    plain = evaluate_checkpoint(checkpoint, people, device="cpu")
    details = Details(by=("camera-pairs",), roc=True, confidence=0.9)
    found = evaluate_checkpoint(checkpoint, people, details=details, out=tmp_path, device="cpu")
    record = json.loads((tmp_path / "evaluations/test.json").read_text())
    assert record == found.record
    assert {"by", "verification", "confidence"} & plain.record.keys() == set()
    assert {key: record[key] for key in plain.record} == plain.record
    intervals = record["confidence"]["intervals"]
    assert intervals["mAP"]["value"] == pytest.approx(record["metrics"]["mAP"])
    assert intervals["mAP"]["low"] <= intervals["mAP"]["value"] <= intervals["mAP"]["high"]
    assert (record["confidence"]["level"], intervals["rank1"]["identities"]) == (0.9, 8)
    pairs = {(one["query_camera"], one["gallery_camera"]): one for one in record["by"]["camera-pairs"]}
    assert set(pairs) == {(0, 0), (0, 1)}  # all queries are of camera 0
    assert pairs[0, 0]["mAP"] is None
    assert pairs[0, 1]["num_valid"] == record["metrics"]["num_valid"] == 8
    verification = record["verification"]
    assert verification["num_positive_pairs"] == 8 * 2
    assert verification["num_negative_pairs"] == 8 * 7 * 3
    assert 0.5 < verification["auc"] <= 1
    assert verification["points"][0]["tpr"] is not None


def test_details_that_do_not_exist_are_refused() -> None:
    for wrong, message in (
        ({"by": ("weather",)}, "breakdown 'weather' is unknown; supported are camera-pairs, occlusion"),
        ({"confidence": 95.0}, "confidence must lie in"),
        ({"average_precision": "area"}, "must be step or trapezoid"),
        ({"rerank": "zhong"}, "must be one of zhong2017, torchreid, fastreid, boxmot, transreid, got 'zhong'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Details(**wrong)


def test_re_ranked_numbers_stand_beside_the_headline(
    checkpoint: Path, people: Path, prid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, seen_protocols = [], []
    evaluation = Reranking.evaluate

    def keep(query: torch.Tensor, gallery: torch.Tensor, **how: object) -> Reranking:
        seen.append(rerank(query, gallery, **how))  # type: ignore[arg-type]
        return seen[-1]

    def note(self: Reranking, *labels: object, protocol: Protocol) -> EvaluationResult:
        seen_protocols.append(protocol.average_precision)
        return evaluation(self, *labels, protocol=protocol)

    monkeypatch.setattr(evaluation_details, "rerank", keep)
    monkeypatch.setattr(Reranking, "evaluate", note)
    plain = evaluate_checkpoint(checkpoint, people, device="cpu").record
    details = Details(rerank="fastreid", average_precision="trapezoid")
    record = evaluate_checkpoint(checkpoint, people, details=details, device="cpu").record
    found = record["rerank"]
    assert "rerank" not in plain
    assert (found["variant"], found["k1"], found["k2"], found["lambda"]) == ("fastreid", 20, 6, 0.3)
    pids, cameras = [np.repeat(np.arange(8), count) for count in (1, 3)], [np.zeros(8, int), np.tile([0, 1, 1], 8)]
    assert found["metrics"]["num_valid"] == record["metrics"]["num_valid"]
    [ours] = seen
    assert ours.shape == (len(pids[0]), len(pids[1]))
    monkeypatch.undo()
    wanted = ours.evaluate(*pids, *cameras, protocol=get_protocol("market1501", "trapezoid"))
    assert found["metrics"] == wanted.metrics
    assert seen_protocols == ["trapezoid"]
    with pytest.raises(DataError, match="re-ranking compares 20 neighbours"):
        evaluate_checkpoint(checkpoint, prid, kind="prid2011", details=details, device="cpu")


def test_a_trapezoid_is_not_taken_for_the_run_s_own_evaluation(
    checkpoint: Path, synthped: Path, tmp_path: Path
) -> None:
    people = synthped / "occluded"
    subject = EvaluationSet("test", load_any_dataset(people), (32, 16), DataConfig())
    step = evaluate_checkpoint(checkpoint, people, out=tmp_path, device="cpu")
    for protocol in ("auto", "market1501"):
        assert read_evaluation(tmp_path, subject, EvaluationConfig(protocol=protocol), 3) is not None
    assert read_evaluation(tmp_path, subject, EvaluationConfig(protocol="msmt17"), 3) is None
    details = Details(average_precision="trapezoid")
    trapezoid = evaluate_checkpoint(checkpoint, people, details=details, out=tmp_path, device="cpu")
    assert trapezoid.metrics["mAP"] < step.metrics["mAP"]
    assert trapezoid.record["manifest"]["protocol"]["average_precision"] == "trapezoid"
    assert read_evaluation(tmp_path, subject, EvaluationConfig(), 3) is None


def test_queries_of_synthped_are_grouped_by_what_its_ground_truth_hides(checkpoint: Path, synthped: Path) -> None:
    root = synthped / "occluded"
    found = load_any_dataset(root)
    shares = np.array(hidden_shares(found, found.query), dtype=float)
    with np.load(synthped / "ground_truth/query_occluded.npz") as truth:
        place = {str(name): index for index, name in enumerate(truth["names"])}
        rows = [place[record.path.name] for record in found.query]
        expected = 1 - truth["in_frame"][rows] * (1 - truth["occluded_share"][rows])
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert shares.min() >= 0.09
    holistic = load_any_dataset(synthped / "holistic")
    assert np.mean(hidden_shares(holistic, holistic.query)) < shares.mean()  # type: ignore[arg-type]
    record = evaluate_checkpoint(checkpoint, root, details=Details(by=("occlusion",)), device="cpu").record
    bands = record["by"]["occlusion"]
    assert len(bands) > 1
    assert sum(band["num_query"] for band in bands) == len(found.query)
    weighted = sum(band["mAP"] * band["num_valid"] for band in bands) / record["metrics"]["num_valid"]
    assert weighted == pytest.approx(record["metrics"]["mAP"])


def test_tracklets_tell_what_is_hidden_themselves(prid: Path) -> None:
    found = load_any_dataset(prid)
    first, *others = found.query
    assert isinstance(first, Tracklet)
    shares = hidden_shares(found, [replace(first, visibility=(0.5, 0.9)), *others])
    assert shares == [pytest.approx(0.3), None, None]


def test_a_dataset_without_visibilities_has_no_breakdown_by_occlusion(people: Path) -> None:
    found = load_any_dataset(people)
    with pytest.raises(DataError, match="nothing says how much of its queries is hidden"):
        hidden_shares(found, found.query)


def test_all_splits_are_evaluated_and_their_means_written(checkpoint: Path, prid: Path, tmp_path: Path) -> None:
    found = evaluate_splits(checkpoint, prid, name="prid", out=tmp_path, device="cpu")
    alone = [evaluate_checkpoint(checkpoint, prid, kind=f"prid2011:split={split}", device="cpu") for split in range(10)]
    assert [one.metrics for one in found.evaluations] == [one.metrics for one in alone]
    values = [one.metrics["mAP"] for one in alone]
    assert len(set(values)) > 1
    record = json.loads((tmp_path / "evaluations/prid.json").read_text())
    assert record == found.record
    assert record["metrics"]["mAP"] == pytest.approx(np.mean(values))
    assert record["deviation"]["mAP"] == pytest.approx(np.std(values, ddof=1))
    assert record["manifest"]["protocol"]["name"] == "prid2011"
    assert record["manifest"]["num_splits"] == len(record["splits"]) == PRID_SPLITS
    assert (tmp_path / "evaluations/prid-split09.json").is_file()
    assert main(["report", str(tmp_path)]) == 0  # which shows the means as an evaluation


def test_a_dataset_of_one_division_has_no_splits(checkpoint: Path, people: Path) -> None:
    with pytest.raises(ConfigError, match="one division of its people"):
        evaluate_splits(checkpoint, people)


def test_a_split_follows_the_other_options_of_a_kind() -> None:
    assert with_split("auto", 3) == "auto:split=3"
    assert with_split("cuhk03:protocol=classic", 0) == "cuhk03:protocol=classic,split=0"


def test_the_command_line_prints_what_was_asked_for(
    checkpoint: Path, people: Path, synthped: Path, prid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(data: Path, *options: str) -> str:
        given = ["evaluate", str(checkpoint), "--data", str(data), "--out", str(tmp_path), "--device", "cpu", *options]
        assert main(given) == 0
        return " ".join(capsys.readouterr().out.split())

    said = run(people, "--by", "camera-pairs", "--confidence", "--roc")
    assert "protocol market1501 (auto, kind market1501)" in said
    for title in (
        "by camera of query and gallery",
        "95 % intervals over identities",
        "equal error rate",
        "FPR at most",
    ):
        assert title in said
    assert "below 1 in 168, the negative pairs there are" in said
    said = run(synthped / "occluded", "--by", "occlusion", "--average-precision", "trapezoid", "--protocol", "msmt17")
    assert "by the hidden share of the query" in said
    assert "protocol msmt17" in said
    assert "(auto" not in said
    said = run(people, "--rerank")
    assert "re-ranked by zhong2017 (k1 20, k2 6, lambda 0.3): mAP" in said
    record = json.loads((tmp_path / f"evaluations/{people.name}.json").read_text())
    before, after = (100 * of["mAP"] for of in (record["scores"]["feature"], record["rerank"]["metrics"]))
    assert f"mAP {before:.1f} -> {after:.1f}" in said
    said = run(prid, "--split", "all", "--name", "all")
    assert "protocol prid2011 (auto, kind prid2011)" in said
    assert "3 queries, PRID2011 was published with 89" in said
    assert "mean of 10 splits" in said
    assert "all-split09" in said
    assert "mean of" not in run(prid, "--split", "9")
    record = json.loads((tmp_path / f"evaluations/{prid.name}.json").read_text())
    assert "split 9 of 10" in record["manifest"]["dataset"]["protocol"]
    assert main(["evaluate", str(checkpoint), "--data", str(prid), "--split", "last", "--out", str(tmp_path)]) == 2
    assert "--split must be all or a number from 0, got 'last'" in " ".join(capsys.readouterr().err.split())
