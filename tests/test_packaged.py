"""Packaged networks: half the bytes, the same features, and a card that says what they have seen."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from motarfuse.cli.main import main
from motarfuse.engine import save_checkpoint, train
from motarfuse.engine.checkpoint import find_checkpoint
from motarfuse.errors import CheckpointError
from motarfuse.models import MotarFuse, build_model, load_pretrained, packaged
from tests.engine.people import small_config, write_people
from tools import package_weights

CONFIG: dict[str, Any] = {"size": "nano", "image_size": [32, 16]}
NOTICE = "small was trained on drawn people only (SynthPed); on photographs expect less: fine-tune or train your own"
CLASSES = {"VitReID": "vit_reid", "MotarFuse": "motar_fuse"}


def network(name: str, seed: int = 0, **fields: Any) -> nn.Module:
    """A random network whose buffers are those of some training."""
    torch.manual_seed(seed)
    model = build_model(name, size="nano", image_size=(32, 16), **fields)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "adapters" in key:
                parameter.normal_(0, 0.02)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 16))
    return model.eval()


def write_run(root: Path, model: nn.Module, name: str, *, step: int = 7, data: Path | None = None) -> Path:
    """A run's folder with a checkpoint and two evaluations, one of them of an earlier step."""
    save_checkpoint(
        root / "checkpoints",
        step=step,
        model=model.state_dict(),
        model_name=name,
        model_config=CONFIG,
        config={"data": {"root": str(data) if data else None}, "train": {"pretrained": None, "initial": None}},
    )
    (root / "evaluations").mkdir()
    for set_name, at in (("holistic", step), ("occluded", step - 1)):
        record = {"name": set_name, "dataset": set_name, "root": "/secret/place", "step": at, "metrics": {"mAP": 0.5}}
        (root / "evaluations" / f"{set_name}.json").write_text(json.dumps(record))
    return root


@pytest.fixture(scope="module")
def synthped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tells that a folder is a SynthPed benchmark, and one of its protocols."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "occluded").mkdir()
    (root / "manifest.json").write_text(json.dumps({"dataset": "SynthPed"}))
    return root / "occluded"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["vit_reid", "motar_fuse"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, synthped: Path
) -> tuple[nn.Module, Path]:
    """A network, and the folder with its run and with ``package``, in which the tool has put it as ``small``."""
    root = tmp_path_factory.mktemp(request.param)
    model = network(request.param)
    write_run(root / "run", model, request.param, data=synthped)
    assert package_weights.main([str(root / "run"), "small", "--out", str(root / "package")]) == 0
    return model, root


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the package's, in a process that has announced nothing yet."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(packaged, "WEIGHTS", folder)
    monkeypatch.setattr(packaged, "_announced", set())
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def small(made: tuple[nn.Module, Path], weights: Path) -> nn.Module:
    """The network that is packaged as ``small``."""
    shutil.copytree(made[1] / "package", weights, dirs_exist_ok=True)
    return made[0]


def cosine(first: nn.Module, second: nn.Module) -> Tensor:
    images = torch.randn(16, 3, 32, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return F.cosine_similarity(first(images).feature, second(images).feature).min()


def test_features_survive_half_precision(small: nn.Module) -> None:
    model = packaged.load_packaged("small")
    assert not model.training
    assert 0.9999 < cosine(model, small) < 1 - 1e-9
    assert cosine(network(CLASSES[type(small).__name__], seed=1), small) < 0.9


def test_parameters_are_halves_and_buffers_as_they_were(small: nn.Module, weights: Path) -> None:
    stored = load_file(weights / "small.safetensors")
    state = small.state_dict()
    assert stored.keys() == state.keys()
    parameters = {name for name, _ in small.named_parameters()}
    assert any(not tensor.is_floating_point() for tensor in state.values())
    for name, tensor in state.items():
        if name in parameters:
            assert stored[name].dtype == torch.float16, name
        else:
            assert torch.equal(stored[name], tensor), name
    loaded = packaged.load_packaged("small").state_dict()
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in state.items()}


def test_the_card_says_what_it_is_and_names_no_place(small: nn.Module, weights: Path) -> None:
    content = (weights / "small.safetensors").read_bytes()
    card = json.loads((weights / "small.json").read_text())
    assert card["file"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert card["model"] == {"name": CLASSES[type(small).__name__], "config": CONFIG}
    assert card["training_data"] == "drawn people only (SynthPed)"
    assert card["licence"] == "Apache-2.0"
    assert card["step"] == 7
    assert card["metrics"] == {"holistic": {"dataset": "holistic", "mAP": 0.5}}  # the other is of an earlier step
    with safe_open(weights / "small.safetensors", "pt") as file:
        inner = json.loads(file.metadata()["motarfuse"])
    assert inner == {key: value for key, value in card.items() if key != "file"}
    assert b"secret" not in content
    assert "/" not in json.dumps({**card, "training_data": ""})


def test_packaging_twice_gives_the_same_bytes(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    assert package_weights.main([str(made[1] / "run"), "small", "--out", str(tmp_path / "again")]) == 0
    for name in ("small.safetensors", "small.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made[1] / "package" / name).read_bytes()


def test_what_it_was_trained_on_is_said_once(small: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    packaged.load_packaged("small", announce=False)
    assert capsys.readouterr().out == ""
    packaged.load_packaged("small")
    assert capsys.readouterr().out == NOTICE + "\n"
    packaged.load_packaged("small")
    assert capsys.readouterr().out == ""


def test_damaged_files_are_named(small: nn.Module, weights: Path) -> None:
    path = weights / "small.safetensors"
    good = path.read_bytes()
    for bad in (good[:-7], good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"small\.safetensors is damaged"):
            packaged.load_packaged("small")
        with pytest.raises(CheckpointError, match=r"small\.safetensors is damaged"):
            load_pretrained(small, "small")
    path.write_bytes(good)
    card = json.loads((weights / "small.json").read_text())
    for change, message in (
        ({"training_data": "everything"}, r"small\.json differs from the card within"),
        ({"format": 9}, "format 9, this version reads format 1"),
    ):
        (weights / "small.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(CheckpointError, match=message):
            packaged.load_packaged("small")
    (weights / "small.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"small\.json is damaged"):
        packaged.load_packaged("small")
    (weights / "small.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*small\.json"):
        packaged.load_packaged("small")


def test_a_network_that_this_version_cannot_build_is_named(weights: Path) -> None:
    model = network("vit_reid")
    for name, config in (("newer", {**CONFIG, "wings": 2}), ("wider", {**CONFIG, "size": "tiny"})):
        files = packaged.pack(model, name, model_name="vit_reid", model_config=config, step=1, training_data="x")
        for suffix, content in zip((".safetensors", ".json"), files, strict=True):
            (weights / f"{name}{suffix}").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors was written by motarfuse .* does not fit"):
            packaged.load_packaged(name)


def test_an_unknown_name_lists_the_known_ones(small: nn.Module) -> None:
    assert packaged.packaged_names() == ["small"]
    with pytest.raises(CheckpointError, match=r"no packaged network is named 'smal'; packaged are: small"):
        packaged.load_packaged("smal")


def test_from_pretrained_gives_a_motar_fuse_and_nothing_else(small: nn.Module) -> None:
    if isinstance(small, MotarFuse):
        model = MotarFuse.from_pretrained("small")
        assert cosine(model, small) > 0.9999
    else:
        with pytest.raises(CheckpointError, match="small is a VitReID"):
            MotarFuse.from_pretrained("small")


def test_the_backbone_starts_another_training(small: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    other: Any = network(CLASSES[type(small).__name__], seed=3)
    capsys.readouterr()
    report = load_pretrained(other, "small")
    assert report.missing == []
    assert capsys.readouterr().out == NOTICE + "\n"
    weight = small.state_dict()["backbone.blocks.1.mlp.fc1.weight"]
    assert torch.equal(other.backbone.blocks[1].mlp.fc1.weight, weight.half().float())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert package_weights.main(arguments) == 2
    return capsys.readouterr().err


def test_the_tool_claims_nothing_that_it_does_not_see(
    tmp_path: Path, weights: Path, synthped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network("vit_reid")
    unknown = write_run(tmp_path / "unknown", model, "vit_reid", data=tmp_path)
    assert "say with --training-data" in refused([str(unknown), "small"], capsys)
    tuned = write_run(tmp_path / "tuned", model, "vit_reid", data=synthped)
    index = find_checkpoint(tuned) / "checkpoint.json"
    index.write_text(index.read_text().replace('"initial": null', '"initial": "runs/photographs"'))
    assert "say with --training-data" in refused([str(tuned), "small"], capsys)
    assert not list(weights.iterdir())
    assert (
        package_weights.main([str(tuned), "small", "--out", str(weights), "--training-data", "some photographs"]) == 0
    )
    packaged.load_packaged("small")
    assert "small was trained on some photographs\n" in capsys.readouterr().out


def test_the_tool_refuses_what_is_too_large_for_a_package_or_for_halves(
    tmp_path: Path, weights: Path, synthped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = network("vit_reid")
    run = write_run(tmp_path / "run", model, "vit_reid", data=synthped)
    assert "'Small' is no name" in refused([str(run), "Small", "--out", str(weights)], capsys)
    monkeypatch.setattr(packaged, "MAX_BYTES", 900_000)
    assert "small takes 0.9 MB, at most 0.9 are supported" in refused(
        [str(run), "small", "--out", str(weights)], capsys
    )
    monkeypatch.undo()
    model.backbone.norm.weight.data[3] = 7e4
    run = write_run(tmp_path / "second", model, "vit_reid", data=synthped)
    message = refused([str(run), "small", "--out", str(weights)], capsys)
    assert "backbone.norm.weight reaches 70000; fp16 holds finite values up to 65504" in message
    assert not list(weights.iterdir())


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people", identities=3)


def test_extract_and_search_work_by_name(
    small: nn.Module, people: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["extract", "small", str(people), "features", "--device", "cpu"]) == 0
    assert NOTICE in capsys.readouterr().out
    manifest = json.loads((tmp_path / "features/manifest.json").read_text())
    assert manifest["checkpoint"]["packaged"] == "small"
    assert manifest["checkpoint"]["sha256"] == hashlib.sha256((weights / "small.safetensors").read_bytes()).hexdigest()
    query = sorted((people / "query").iterdir())[0]
    packaged._announced.clear()
    assert main(["search", str(query), "features", "-k", "2", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]  # nothing but JSON, although the network is loaded
    assert found[0]["is_query"]
    assert main(["search", str(query), "features", "-k", "2", "--device", "cpu"]) == 0
    assert NOTICE in capsys.readouterr().out


def test_features_are_searchable_where_the_package_has_moved_and_a_folder_has_its_name(
    small: nn.Module, people: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["extract", "small", str(people), "features", "--device", "cpu"]) == 0
    moved = Path(shutil.move(weights, tmp_path / "elsewhere"))
    monkeypatch.setattr(packaged, "WEIGHTS", moved)
    (tmp_path / "small").mkdir()
    query = sorted((people / "query").iterdir())[0]
    assert main(["search", str(query), "features", "--device", "cpu"]) == 0


def test_evaluate_works_by_name_and_writes_beside_the_runs(
    small: nn.Module, people: Path, tmp_path: Path, weights: Path
) -> None:
    before = set(weights.iterdir())
    assert main(["evaluate", "small", "--data", str(people), "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "runs/small/evaluations/people.json").read_text())
    assert record["step"] == 7
    assert set(weights.iterdir()) == before


def test_training_starts_from_all_of_it(small: nn.Module, people: Path, tmp_path: Path) -> None:
    options = (
        f"model.name={CLASSES[type(small).__name__]}",
        "train.initial=small",
        "train.steps=1",
        "train.batch_size=4",
        "optim.lr=1e-9",
    )
    train(small_config(people, tmp_path / "tuned", *options))
    state = load_file(find_checkpoint(tmp_path / "tuned") / "model.safetensors")
    for name, parameter in small.named_parameters():
        assert torch.allclose(state[name], parameter.half().float(), rtol=0, atol=1e-6), name


def test_what_is_in_the_package_is_intact_small_and_documented() -> None:
    readme = (packaged.WEIGHTS / "README.md").read_text(encoding="utf-8")
    for name in packaged.packaged_names():
        model = packaged.load_packaged(name, announce=False)
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
        files = [packaged.WEIGHTS / f"{name}{suffix}" for suffix in (".safetensors", ".json")]
        assert sum(path.stat().st_size for path in files) <= 5_000_000
        assert f"## {name}" in readme


def test_weights_are_part_of_wheel_and_source_distribution(repository: Path) -> None:
    setup = (repository / "setup.py").read_text()
    manifest = (repository / "MANIFEST.in").read_text().splitlines()
    assert 'WEIGHTS: ["*.safetensors", "*.json", "*.md"]' in setup
    assert "recursive-include motarfuse/models/weights *.safetensors *.json *.md" in manifest
