"""The entry point: what a user's mistakes and a broken installation look like on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from motarfuse.cli import main as entry
from motarfuse.cli.main import VERBS, main


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        assert f"usage: motarfuse {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["evaluate", "extract"])
@pytest.mark.parametrize("option", ["--batch-size", "--workers"])
def test_a_count_of_zero_is_a_usage_error(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, option, "0"])
    assert stopped.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_package_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file", name="torch._C")

    monkeypatch.setattr(entry.importlib, "import_module", fail)
    assert main(["train"]) == 2
    message = capsys.readouterr().err
    assert "torch cannot be imported" in message
    assert "motarfuse doctor" in message


def test_a_reader_that_stops_reading_is_no_traceback() -> None:
    # As `motarfuse train --help | head -0` does; the help is longer than a pipe's buffer or not, both must be quiet.
    command = f"{sys.executable} -m motarfuse train --show-config | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


def test_only_what_is_required_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "synth"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: OUT\n")


def test_an_interrupted_training_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("motarfuse.cli.train.load_config", interrupted)
    assert main(["train"]) == 130
    assert (
        capsys.readouterr().err == "motarfuse train: interrupted; the same command goes on from the last checkpoint\n"
    )


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["train", "--show-config"], ["doctor", "--brief"]])
def test_output_to_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "motarfuse", *arguments]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"motarfuse {arguments[0]}: cannot write the output: No space left on device\n"


def test_the_demo_refuses_what_it_sets_itself_before_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override in ("data.root=x", "trai.x=1"):
        assert main(["demo", "--out", str(tmp_path / "demo"), override]) == 2
        assert override.partition("=")[0].partition(".")[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_drawing_is_an_error_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("{", "{}", "[]"):
        folder = tmp_path / "synthped"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text(content)
        assert main(["demo", "--out", str(tmp_path)]) == 2
        assert "delete it" in capsys.readouterr().err


def test_an_evaluation_name_that_is_a_path_is_refused_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "no/such/run", "--data", "x", "--name", "../zz"]) == 2
    assert "is no name for a file" in capsys.readouterr().err
