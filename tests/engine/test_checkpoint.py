"""Checkpoints and outputs: atomic, checked, and honest about what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from motarfuse.engine import outputs
from motarfuse.engine.checkpoint import (
    INDEX,
    MODEL,
    TRAINING,
    describe_checkpoint,
    file_sha256,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_model,
    locate_checkpoint,
    save_checkpoint,
)
from motarfuse.engine.outputs import PARTIAL, atomic_folder, make_folder, remove_partial, write_bytes, write_json
from motarfuse.errors import CheckpointError, OutputError
from motarfuse.models import build_model, packaged


def save(folder: Path, step: int, **options: Any) -> Path:
    torch.manual_seed(step)
    model = build_model("vit_reid", size="nano", image_size=(32, 16))
    return save_checkpoint(
        folder,
        step=step,
        model=model.state_dict(),
        model_name="vit_reid",
        model_config={"size": "nano", "image_size": [32, 16]},
        training={"optimizer/a": torch.arange(3.0)},
        config={"train": {"steps": 5}},
        state={"x": [0.1, 1e-300]},
        **options,
    )


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 7)
    assert path.name == "step-00000007"
    loaded = load_checkpoint(tmp_path)
    torch.manual_seed(7)
    expected = build_model("vit_reid", size="nano", image_size=(32, 16)).state_dict()
    assert loaded.model.keys() == expected.keys()
    assert all(torch.equal(loaded.model[name], expected[name]) for name in expected)
    assert torch.equal(loaded.training["optimizer/a"], torch.arange(3.0))
    assert loaded.metadata["state"] == {"x": [0.1, 1e-300]}
    assert loaded.metadata["step"] == 7


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.manual_seed(1)
    original = build_model("vit_reid", size="nano", image_size=(32, 16)).eval()
    model, metadata = load_model(path)
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(model(images).feature, original(images).feature)
    assert not model.training
    assert metadata["model"]["name"] == "vit_reid"


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("name", [MODEL, TRAINING])
@pytest.mark.parametrize("damage", ["truncated", "damaged"])
def test_broken_files_are_named_with_the_intact_checkpoint_before(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-5]
    else:
        content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is {damage}.*step-00000001 beside it is intact: delete"):
        load_checkpoint(tmp_path)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (path / INDEX).write_text((path / INDEX).read_text()[:40])
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is truncated or damaged.*There is no intact"):
        load_checkpoint(path)
    (path / INDEX).write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads format 1"):
        load_checkpoint(path)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    index = json.loads((path / INDEX).read_text())
    index["model"]["config"]["size"] = "tiny"
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has shape .*96.*192.* is needed"):
        load_model(path)
    index["model"]["config"] = {"sise": "tiny"}
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.sise"):
        load_model(path)


def test_a_place_without_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint; give the folder of a run"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nothing")


@pytest.fixture
def packaged_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged network named small, whose weight file is returned; the working folder is empty."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(packaged, "WEIGHTS", folder)
    model, metadata = load_model(save(tmp_path / "source", 5))
    config = metadata["model"]["config"]
    weights, card = packaged.pack(
        model, "small", model_name="vit_reid", model_config=config, step=5, training_data="random numbers"
    )
    (folder / "small.safetensors").write_bytes(weights)
    (folder / "small.json").write_bytes(card)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder / "small.safetensors"


def test_a_packaged_name_stands_for_its_network(packaged_small: Path) -> None:
    assert find_checkpoint("small") == packaged_small
    assert find_checkpoint(packaged_small) == packaged_small
    model, metadata = load_model("small")
    assert not model.training
    assert metadata["step"] == 5
    assert metadata["model"]["name"] == "vit_reid"
    again, _ = load_model(packaged_small)
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(again(images).feature, model(images).feature)
    loaded = load_checkpoint("small", training=False)
    assert loaded.training == {}
    assert all(torch.equal(loaded.model[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"holds no state of its training.*train\.initial=small"):
        load_checkpoint("small")


def test_an_existing_path_comes_before_a_packaged_name(packaged_small: Path) -> None:
    path = save(Path("small/checkpoints"), 9)
    assert find_checkpoint("small") == path
    assert load_model("small")[1]["step"] == 9
    shutil.rmtree("small/checkpoints")
    with pytest.raises(CheckpointError, match="small holds no checkpoint"):
        find_checkpoint("small")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint("elsewhere/small")


def test_a_wrong_path_lists_the_packaged_names(packaged_small: Path) -> None:
    with pytest.raises(CheckpointError, match=r"smal does not exist; give .*\(packaged are: small\)"):
        find_checkpoint("smal")


def test_a_manifests_entry_leads_back_to_the_checkpoint(packaged_small: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "run/checkpoints", 4)
    entry = describe_checkpoint(tmp_path / "run", 4)
    assert entry == {"path": str(path), "sha256": file_sha256(path / MODEL), "step": 4}
    assert locate_checkpoint(entry) == path
    entry = describe_checkpoint("small", 5)
    assert entry["packaged"] == "small"
    assert entry["sha256"] == file_sha256(packaged_small)
    Path("small").mkdir()  # whatever is called so here and now is not what the features came from
    assert locate_checkpoint({**entry, "path": "/gone/small.safetensors"}) == packaged_small
    with pytest.raises(CheckpointError, match="no packaged network is named 'large'"):
        locate_checkpoint({**entry, "packaged": "large"})
    (path / MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        describe_checkpoint(path, 4)


def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from motarfuse.engine import checkpoint, outputs\n"
        "import torch\n"
        "written = []\n"
        "real = checkpoint.write_synced\n"
        "def kill(path, content):\n"
        "    real(path, content[: len(content) // 2])\n"
        "    if path.name == 'training.safetensors': os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.write_synced = kill\n"
        "model = {'a': torch.zeros(9)}\n"
        "checkpoint.save_checkpoint(Path(sys.argv[1]), step=2, model=model, model_name='x', model_config={})\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert process.returncode == -9
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(tmp_path).metadata["step"] == 1
    (left,) = remove_partial(tmp_path)
    assert left.startswith(PARTIAL)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def full_disk(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr("motarfuse.engine.checkpoint.write_synced", full_disk)
    monkeypatch.setattr(outputs, "write_synced", full_disk)
    with pytest.raises(OutputError, match=r"step-00000002: the disk is full; free some space"):
        save(tmp_path, 2)
    with pytest.raises(OutputError, match="the disk is full"):
        write_json(tmp_path / "a.json", {"new": 1})
    assert (tmp_path / "a.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "step-00000001"]


def test_a_write_that_the_system_cuts_short_leaves_no_trace(tmp_path: Path) -> None:
    # A real refusal in the middle of a write: files of this process may not grow beyond 100 kB.
    save(tmp_path, 1)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "import torch\n"
        "from motarfuse.engine.checkpoint import save_checkpoint\n"
        "from motarfuse.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "model = {'a': torch.zeros(90_000)}\n"
        "try:\n"
        "    save_checkpoint(Path(sys.argv[1]), step=2, model=model, model_name='x', model_config={})\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "the file would exceed the size allowed here" in process.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="part of the path is a file"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match="file of that name is in the way"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be created there; choose another folder"):
        make_folder(Path("/proc/motarfuse-run"))  # a file system that takes no files, also not root's
    with pytest.raises(OutputError, match="in the way"), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_link_is_written_through_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("old", "new"):  # the second link points to nothing yet
        link = tmp_path / name
        link.symlink_to(tmp_path / "real" / name)
        (tmp_path / "real/old").write_text("x")
        write_bytes(link, b"content")
        assert link.is_symlink()
        assert (tmp_path / "real" / name).read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a pipe, not a file"):
        write_bytes(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()
    for folder in (tmp_path / "real", Path()):
        with pytest.raises(OutputError, match="is a folder, not a file"):
            write_bytes(folder, b"content")
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["new", "old"]


def test_an_atomic_folder_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(ValueError, match="invalid literal"), atomic_folder(target) as partial:
        (partial / "b").write_text(str(int("x")))
    assert [path.name for path in target.iterdir()] == ["a"]
    with atomic_folder(target) as partial:
        (partial / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_atomic_folder_behind_a_link_replaces_its_target(tmp_path: Path) -> None:
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "disk/real/a").write_text("1")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk/real")
    with atomic_folder(link) as partial:
        (partial / "b").write_text("2")
    assert link.is_symlink()
    assert [path.name for path in link.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_json_refuses_nan_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tied_tensors_are_saved(tmp_path: Path) -> None:
    tensor = torch.arange(4.0)
    content = outputs.tensor_bytes({"a": tensor, "b": tensor, "c": tensor.view(2, 2)})
    write_bytes(tmp_path / "t.safetensors", content)
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "t.safetensors")
    assert torch.equal(loaded["a"], loaded["b"])
    assert torch.equal(loaded["c"], tensor.view(2, 2))
