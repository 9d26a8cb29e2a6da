"""``motarfuse search`` on features that ``extract`` wrote with a small untrained model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from motarfuse.cli.main import main
from motarfuse.engine import extract, save_checkpoint
from motarfuse.models import build_model, config_class
from tests.viz.fake_run import draw_person, write_images

CONFIG = {"size": "nano", "image_size": (32, 16), "patch": 8}


def checkpoint(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = build_model("vit_reid", config_class("vit_reid")(**CONFIG))
    return save_checkpoint(folder, step=1, model=model.state_dict(), model_name="vit_reid", model_config=CONFIG)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, ``crops`` (12 people, 3 cameras, Market-1501 names) and their ``features``."""
    root = tmp_path_factory.mktemp("search")
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(root / "crops" / split)
    checkpoint(root / "run" / "checkpoints", seed=0)
    extract(root / "run", root / "crops", root / "features", kind="market1501", split="gallery", device="cpu")
    return root


@pytest.fixture
def query(work: Path, tmp_path: Path) -> Path:
    """A copy of the first gallery image, so that it is not one of the gallery's own files."""
    shutil.copy(work / "crops" / "bounding_box_test" / "0001_c1s1_000001_00.jpg", tmp_path / "somebody.jpg")
    return tmp_path / "somebody.jpg"


@pytest.fixture
def features(work: Path, tmp_path: Path) -> Path:
    """The features, to be spoilt."""
    return Path(shutil.copytree(work / "features", tmp_path / "features"))


def test_it_finds_the_same_image_first_and_draws_the_picture(
    work: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "rank.png"
    assert main(["search", str(query), str(work / "features"), "-k", "3", "--out", str(picture)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    _, score, pid, camera, path = lines[0]
    assert (pid, camera) == ("1", "0")
    assert float(score) == pytest.approx(1.0, abs=1e-3)
    assert Path(path).name == "0001_c1s1_000001_00.jpg"
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 600


def test_json_holds_the_same_and_draws_nothing_unasked(
    work: Path, query: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main(["search", str(query), str(work / "features"), "--metric", "euclidean", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["metric"] == "euclidean"
    assert [result["rank"] for result in answer["results"]] == list(range(1, 11))
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores)
    assert answer["results"][0]["match"] is None
    assert set(tmp_path.iterdir()) == before


def test_a_query_from_the_gallery_marks_right_and_wrong(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    own = work / "crops" / "bounding_box_test" / "0005_c2s1_000001_00.jpg"
    assert main(["search", str(own), str(work / "features"), "-k", "36", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["match"] for result in results] == [result["pid"] == 5 for result in results]
    assert sum(result["match"] for result in results) == 3
    assert [result["is_query"] for result in results] == [Path(result["path"]) == own for result in results]
    assert main(["search", str(own), str(work / "features"), "-k", "36"]) == 0
    table = capsys.readouterr().out
    assert (table.count("the query"), table.count("right"), table.count("wrong")) == (1, 2, 33)
    assert (tmp_path / "rank.png").is_file()


def test_a_result_whose_file_is_gone_is_drawn_grey_and_said(
    work: Path, query: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((features / "manifest.json").read_text())
    (features / "manifest.json").write_text(json.dumps({**manifest, "source": str(tmp_path / "moved")}))
    assert main(["search", str(query), str(features), "-k", "2", "--out", str(tmp_path / "rank.jpg")]) == 0
    assert "no such file; drawn as a grey card" in capsys.readouterr().err
    assert (tmp_path / "rank.jpg").is_file()


def test_cameras_are_chosen_and_left_out(work: Path, query: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (work / "features" / "table.csv").open(newline="") as lines:
        size = len(list(csv.DictReader(lines)))

    def found(*arguments: str) -> list[dict[str, int]]:
        assert main(["search", str(query), str(work / "features"), "-k", str(size), "--json", *arguments]) == 0
        results: list[dict[str, int]] = json.loads(capsys.readouterr().out)["results"]
        return results

    everything = found()
    assert {result["camid"] for result in everything} == {0, 1, 2}
    for arguments, wanted in (
        (("--camera", "1"), {1}),
        (("--camera", "0", "2"), {0, 2}),
        (("--not-camera", "0"), {1, 2}),
    ):
        expected = [result["path"] for result in everything if result["camid"] in wanted]
        results = found(*arguments)
        assert [result["path"] for result in results] == expected
        assert [result["rank"] for result in results] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--camera", "9"), "--camera 9: "),
        (("--not-camera", "7"), "--not-camera 7: "),
        (("--not-camera", "0", "1", "2"), "holds images of these cameras only"),
    ],
)
def test_cameras_that_leave_nothing_are_an_error(
    work: Path, query: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(query), str(work / "features"), "--json", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_features_of_another_model_are_an_error(
    work: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = checkpoint(tmp_path / "other", seed=1)
    assert main(["search", str(query), str(work / "features"), "--checkpoint", str(other)]) == 2
    assert "features of another model" in capsys.readouterr().err


def test_a_model_that_moved_is_asked_for_and_taken(
    work: Path, query: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((features / "manifest.json").read_text())
    manifest["checkpoint"]["path"] = str(tmp_path / "elsewhere")
    (features / "manifest.json").write_text(json.dumps(manifest))
    assert main(["search", str(query), str(features), "--json"]) == 2
    assert "say where it is with --checkpoint" in capsys.readouterr().err
    assert main(["search", str(query), str(features), "--json", "--checkpoint", str(work / "run")]) == 0


def cut(name: str) -> Callable[[Path], None]:
    def spoil(features: Path) -> None:
        file = features / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def shorten_table(features: Path) -> None:
    lines = (features / "table.csv").read_text().splitlines()
    (features / "table.csv").write_text("\n".join(lines[:-1]) + "\n")


def spoil_row(features: Path) -> None:
    with (features / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[3][1] = "someone"
    (features / "table.csv").write_text("".join(",".join(row) + "\n" for row in rows))


def put_nan(features: Path) -> None:
    tensor = safetensors.torch.load_file(features / "features.safetensors")["feature"]
    tensor[4, 0] = torch.nan
    safetensors.torch.save_file({"feature": tensor}, features / "features.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda features: shutil.rmtree(features), "holds no features"),
        (lambda features: (features / "table.csv").unlink(), r"table.csv not found"),
        (cut("features.safetensors"), "truncated or damaged"),
        (cut("manifest.json"), "manifest.json is damaged"),
        (
            lambda features: (features / "manifest.json").write_text('{"checkpoint": {}}'),
            "does not name its checkpoint",
        ),
        (shorten_table, "36 features but 35 images"),
        (spoil_row, "table.csv is damaged at image 3"),
        (put_nan, "1 of 36 rows hold NaN"),
    ],
)
def test_damaged_features_are_named(
    spoil: Callable[[Path], None], message: str, query: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(features)
    assert main(["search", str(query), str(features), "--json"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "37"], "-k 37: "),
        (["-k", "0"], "supported are 1 to 36"),
        (["--out", "rank.html"], "the name's ending chooses the format"),
        (["--device", "tpu"], "unknown device"),
    ],
)
def test_impossible_requests_are_one_line(
    arguments: list[str], message: str, work: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(query), str(work / "features"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_query_that_is_no_image_is_named(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(tmp_path / "absent.jpg"), str(work / "features")]) == 2
    assert "no such file" in capsys.readouterr().err
    draw_person(1, 0, 0).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:60])
    assert main(["search", str(tmp_path / "cut.jpg"), str(work / "features")]) == 2
    assert "cut.jpg" in capsys.readouterr().err
