"""Comparisons: what a file means, the data it makes, and which runs are done, missing or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from motarfuse.data import load_dataset
from motarfuse.data.covered import cover
from motarfuse.engine import compare_runs
from motarfuse.engine.compare import Comparison, Run, load_comparison
from motarfuse.engine.compare_runs import check_unchanged, estimate_seconds, execute, run_state
from motarfuse.engine.compare_sets import draw_split, prepare_sets
from motarfuse.engine.config import Config
from motarfuse.errors import ConfigError, DataError, OutputError, TrainingError
from tests.engine.fake_compare import FILE, finish, write_file
from tests.engine.people import write_people

PRETRAINED = FILE.replace(
    "    data: {root: crops.csv, kind: csv}", "    data: {root: crops.csv}\n    pretrained_from: drawn"
)


def load(tmp_path: Path, text: str = FILE, *arguments: str, order: tuple[str, ...] = ()) -> Comparison:
    return load_comparison(write_file(tmp_path, text), tmp_path / "out", arguments, order)


def names(runs: list[Run]) -> list[str]:
    return [run.name for run in runs]


def write_crops(folder: Path, *, identities: int = 8, each: int = 3) -> Path:
    """A csv dataset with queries under camera 2 and the gallery under camera 1; the last half is for testing."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["path,pid,camid,split"]
    for pid in range(1, identities + 1):
        for camid in (1, 2):
            for index in range(each):
                name = f"images/{pid:03d}_{camid:02d}_{index}.png"
                Image.fromarray(random.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(folder / name)
                split = "train" if pid <= identities // 2 else "query" if camid == 2 else "gallery"
                lines.append(f"{name},{pid},{camid},{split}")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    return folder


# The file


def test_later_changes_win_and_rows_win_over_the_command_line(tmp_path: Path) -> None:
    text = """
    base: {optim: {lr: 1e-3}, train.steps: 200, train: {batch_size: 32}}
    rows: {a: {optim.lr: 5e-3}, b: {}}
    studies: {one: {data: {root: x}, overrides: {train.steps: 300}}, two: {data: {root: y}}}
    """
    runs = {run.name: run.config for run in load(tmp_path, text, "train.batch_size=16", "optim.lr=2e-3").runs}
    assert {name: config.optim.lr for name, config in runs.items()} == {
        "one/a/0": 5e-3,
        "one/b/0": 2e-3,
        "two/a/0": 5e-3,
        "two/b/0": 2e-3,
    }
    assert [runs[name].train.steps for name in ("one/a/0", "two/a/0")] == [300, 200]
    assert {config.train.batch_size for config in runs.values()} == {16}
    assert {config.train.evaluate_every for config in runs.values()} == {50}
    assert load(tmp_path, text, "train.steps=20").runs[0].config.train.steps == 20


def test_a_run_has_its_seed_data_sets_and_folder(tmp_path: Path) -> None:
    comparison = load(tmp_path, PRETRAINED)
    run = next(run for run in comparison.runs if run.name == "real/tuned/1")
    assert run.config.train.seed == 1
    assert run.folder == tmp_path / "out/real/tuned/1"
    assert run.config.output.run_dir == str(run.folder)
    assert run.config.data.root == "crops.csv"
    assert run.config.evaluation.sets == {
        "plain": "crops.csv",
        "covered-30-50": str(tmp_path / "out/data/real/given-covered-30-50"),
    }
    assert comparison.studies["real"].curve == {0: "plain", 0.2: "covered-20", 0.4: "covered-40"}
    assert run.source is not None
    assert run.source.name == "drawn/tuned/1"
    assert run.config.train.initial == str(tmp_path / "out/drawn/tuned/1/checkpoints/step-00000300")
    assert names(comparison.of("drawn", "wide")) == ["drawn/wide/0"]


def test_order_puts_patterns_first_seeds_together_and_sources_before_those_who_need_them(tmp_path: Path) -> None:
    assert names(load(tmp_path).runs)[:3] == ["drawn/tuned/0", "drawn/default/0", "drawn/wide/0"]
    text = PRETRAINED + "order: [[real/tuned, real/default], '*/wide']\n"
    assert names(load(tmp_path, text).runs) == [
        *("drawn/tuned/0", "real/tuned/0", "drawn/default/0", "real/default/0"),
        *("drawn/tuned/1", "real/tuned/1", "drawn/default/1", "real/default/1"),
        *("drawn/wide/0", "real/wide/0"),
    ]
    assert names(load(tmp_path, text, order=("*/*/1",)).runs)[0] == "drawn/tuned/1"


def test_variables_come_from_the_file_or_the_command_line(tmp_path: Path) -> None:
    text = "variables: {data: here}\nrows: {a: {}}\nstudies: {one: {data: {root: '${data}/x'}}}\n"
    assert load(tmp_path, text).studies["one"].root == "here/x"
    assert load(tmp_path, text, "data=/there").studies["one"].root == "/there/x"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (FILE.replace("rows:", "rowz:"), (), "unknown key rowz; did you mean rows?"),
        (FILE.replace("optim.lr", "optim.lrr"), (), r"row 'tuned' of study 'drawn': .*did you mean optim.lr\?"),
        (FILE.replace("    data: {root: people}", "    dta: {root: people}"), (), "did you mean studies.drawn.data"),
        (FILE + "compare: [[tuned, defaul]]\n", (), "there is no 'defaul'; did you mean 'default'?"),
        (FILE + "compare: [[tuned]]\n", (), r"a pair is \[A, B\]"),
        (FILE.replace("{}", "{data.root: x}"), (), "data.root is set by the comparison itself"),
        (FILE.replace("default: {}", "Tuned: {}"), (), "'Tuned' and 'tuned' would share the folder tuned"),
        (FILE.replace("kind: csv}", "kind: csv}\n    split: other"), (), "must be given or random:SEED"),
        (FILE.replace("max: 0.5", "max: 0.2"), (), "studies.real.covered must be shares"),
        (FILE.replace("0.2, 0.4]", "0.95]"), (), "covered_curve must be shares above 0, at most 0.9"),
        (PRETRAINED.replace("from: drawn", "from: real"), (), "in a circle: real from real"),
        (PRETRAINED.replace("from: drawn", "from: drwn"), (), "did you mean 'drawn'?"),
        (FILE.replace("root: people", "root: '${people}'"), (), r"\$\{people\} has no value"),
        (FILE, ("peopel=x",), "sets no variable of this file"),
        (FILE, ("train.stepz=3",), "did you mean train.steps?"),
        (FILE.replace("seeds: [0, 1]", "seeds: [0, 0]"), (), "different numbers from 0"),
        (FILE + "order: [nowhere/*]\n", (), "order: no run fits 'nowhere/"),
        ("rows: [a]", (), r"rows: expected"),
        ("- a", (), "a comparison has the keys rows and studies"),
        ("rows: {a: {}}", (), "studies is empty"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        load(tmp_path, text, *arguments)
    assert str(found.value).startswith(str(tmp_path / "rows.yaml"))


def test_the_committed_comparisons_are_valid(repository: Path, tmp_path: Path) -> None:
    for path in sorted((repository / "configs").glob("compare_*.yaml")):
        comparison = load_comparison(path, tmp_path)
        core, first = comparison.rows[:5], comparison.runs[:15]
        assert {(run.study, run.row) for run in first} == {("synthped", row) for row in core}
        assert len(comparison.of("pku", core[0])) == 3
        assert len(comparison.of("pku", comparison.rows[-1])) == 1


# Splits and covered queries


def test_a_random_split_draws_all_identities_and_keeps_the_cameras_roles(tmp_path: Path) -> None:
    dataset = load_dataset(write_crops(tmp_path))
    drawn = [draw_split(dataset, seed) for seed in (1, 1, 2)]
    tested = [{record.pid for record in one.query} for one in drawn]
    assert tested[0] == tested[1] != tested[2]
    assert set.union(*({r.pid for r in draw_split(dataset, seed).query} for seed in range(9))) == set(range(1, 9))
    for one in drawn:
        training = {record.pid for record in one.train}
        assert len(training) == 4
        assert not training & {record.pid for record in [*one.query, *one.gallery]}
        assert {record.camid for record in one.query} == {2}
        assert {record.camid for record in one.gallery} == {1}
        assert len(one.train) == 4 * 6
        assert len(one.query) == len(one.gallery) == 4 * 3
    with pytest.raises(DataError, match="cameras that hold queries only"):
        draw_split(load_dataset(write_people(tmp_path / "people")), 1)


@pytest.mark.real_data
def test_a_random_split_of_photographs_has_the_sizes_of_the_given_one(real_data: Path) -> None:
    given = load_dataset(real_data / "pku-reid")
    for seed in (1, 2):
        drawn = draw_split(given, seed)
        assert [len(drawn.subset(name)) for name in ("train", "query", "gallery")] == [608, 96, 96]
        assert (drawn.num_train_ids, len({record.pid for record in drawn.query})) == (38, 12)
        assert {record.camid for record in drawn.query} == {record.camid for record in given.query}
        assert {record.pid for record in drawn.query} != {record.pid for record in given.query}


def test_covered_sets_hold_the_same_people_with_covered_queries_and_the_gallery_unchanged(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops")
    text = FILE.replace("crops.csv", str(crops)).replace("kind: csv}", "kind: csv}\n    split: random:1")
    study = load(tmp_path, text).studies["real"]
    prepare_sets(study)
    plain = load_dataset(study.root, study.kind)
    plain.require_training()
    shares = []
    for one in study.covered:
        dataset = load_dataset(one.folder, "csv")
        assert dataset.gallery == plain.gallery
        assert [(r.pid, r.camid) for r in dataset.query] == [(r.pid, r.camid) for r in plain.query]
        for record, source in zip(dataset.query, plain.query, strict=True):
            pixels = np.array(Image.open(record.path))
            original = np.array(Image.open(source.path))
            changed = (pixels != original).any(-1)
            shares.append(changed.mean())
            assert one.low - 0.02 <= shares[-1] <= one.high + 0.02
            mask = cover(original, one.low, seed=0, name=source.path.name)[1]
            if one.low == one.high:
                assert not (changed & ~mask).any()
    assert len(shares) == 3 * 12
    assert np.ptp(shares[24:]) > 0.1  # 30 to 50 %: every query its own


def test_sets_are_written_once_again_where_the_data_moved_and_never_over_other_data(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops")
    study = load(tmp_path, FILE.replace("crops.csv", str(crops))).studies["real"]
    prepare_sets(study)
    table = study.covered[0].folder / "split.csv"
    written = table.stat().st_mtime_ns
    prepare_sets(study)
    assert table.stat().st_mtime_ns == written
    crops.rename(tmp_path / "moved")
    moved = load(tmp_path, FILE.replace("crops.csv", str(tmp_path / "moved"))).studies["real"]
    prepare_sets(moved)
    assert str(tmp_path / "moved") in table.read_text()
    other = tmp_path / "moved/split.csv"
    other.write_text(other.read_text().replace(",8,", ",9,"))
    with pytest.raises(OutputError, match="made from other data"):
        prepare_sets(moved)


# Running


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a comparison without training; returns the names of the runs that were 'trained', in order."""
    monkeypatch.setattr(compare_runs, "prepare_sets", lambda study: None)

    def go(comparison: Comparison, fail: str = "", stop: str = "", **options: Any) -> Any:
        calls: list[str] = []

        def train(config: Config) -> Any:
            run = next(run for run in comparison.runs if str(run.folder) == config.output.run_dir)
            calls.append(run.name)
            if run.name == stop:
                raise KeyboardInterrupt
            if run.name == fail:
                raise TrainingError("the loss is not finite")
            (run.folder / "compare.json").unlink()
            finish(comparison, run)

        monkeypatch.setattr(compare_runs, "train", train)
        try:
            progress = execute(comparison, **options)
        except KeyboardInterrupt:
            progress = None
        return calls, progress

    return go


def test_interrupted_at_any_run_the_same_command_goes_on_and_repeats_nothing(tmp_path: Path, trained: Any) -> None:
    comparison = load(tmp_path)
    everything = names(comparison.runs)
    calls, _ = trained(comparison, stop=everything[3])
    assert calls == everything[:4]
    calls, progress = trained(comparison)
    assert calls == everything[3:]
    assert names(progress.finished) == calls
    assert trained(comparison)[0] == []


def test_a_pattern_selects_runs_and_what_needs_another_one_waits(tmp_path: Path, trained: Any) -> None:
    comparison = load(tmp_path, PRETRAINED)
    calls, progress = trained(comparison, only=["real/*/0"])
    assert calls == []
    assert names(progress.waiting) == ["real/tuned/0", "real/default/0", "real/wide/0"]
    assert trained(comparison, only=["*/tuned/0", "drawn/wide"])[0] == ["drawn/tuned/0", "drawn/wide/0", "real/tuned/0"]
    with pytest.raises(ConfigError, match="no run fits 'nothing'"):
        execute(comparison, only=["nothing"])


def test_a_training_that_diverges_stops_what_starts_from_it_and_nothing_else(tmp_path: Path, trained: Any) -> None:
    comparison = load(tmp_path, PRETRAINED)
    calls, progress = trained(comparison, fail="drawn/tuned/0")
    assert progress.failed == {"drawn/tuned/0": "the loss is not finite"}
    assert names(progress.waiting) == ["real/tuned/0"]
    assert len(calls) == len(comparison.runs) - 1


def test_time_is_estimated_from_the_nearest_relatives_and_no_run_is_started_beyond_it(
    tmp_path: Path, trained: Any
) -> None:
    comparison = load(tmp_path)
    runs = {run.name: run for run in comparison.runs}

    def needed(name: str) -> float | None:
        return estimate_seconds(comparison, runs[name], run_state(comparison, runs[name]))

    assert needed("drawn/tuned/1") is None
    finish(comparison, runs["drawn/tuned/0"], seconds_per_step=0.8)  # with evaluation: 1.0 a step
    assert needed("drawn/tuned/1") == pytest.approx(300)
    assert needed("real/default/0") == pytest.approx(300)
    finish(comparison, runs["real/default/0"], seconds_per_step=1.6)
    assert needed("real/default/1") == pytest.approx(600)
    assert needed("drawn/default/1") == pytest.approx(600)  # the same row elsewhere, before another row here
    finish(comparison, runs["real/default/1"], step=100)
    assert needed("real/default/1") == pytest.approx(400)
    calls, progress = trained(comparison, only=["drawn/tuned/1"], minutes=4.9)
    assert calls == []
    assert "stopped before drawn/tuned/1, which would take about 5 min" in progress.stopped
    assert trained(comparison, only=["drawn/tuned/1"], minutes=5.1)[0] == ["drawn/tuned/1"]


def test_a_run_is_done_when_it_is_trained_and_evaluated_on_every_set(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    run = comparison.select(["real/tuned/0"])[0]
    assert run_state(comparison, run).status == "not run"
    finish(comparison, run)
    assert run_state(comparison, run).status == "done"
    (run.folder / "evaluations/covered-40.json").unlink()
    state = run_state(comparison, run)
    assert (state.status, state.step, state.missing) == ("interrupted", 300, ("covered-40",))
    part = comparison.select(["drawn/tuned/0"])[0]
    finish(comparison, part, step=100)
    assert run_state(comparison, part) == compare_runs.RunState("interrupted", 100, ("plain",))
    (part.folder / "failed-step-00000110.safetensors").touch()
    assert run_state(comparison, part).status == "failed"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optim.lr: 2e-3", "optim.lr: 3e-3", r"row 'tuned' has changed .*optim.lr was 0.002, now 0.003"),
        ("steps: 300", "steps: 200", "train.steps was 300, now 200"),
        ("kind: csv}", "kind: csv}\n    split: random:1", "split was given, now random:1"),
        ("kind: csv}", "kind: csv}\n    pretrained_from: drawn", "initial was none, now drawn/tuned/0"),
        ("steps: 300}", "steps: 300}\n  evaluation: {flip: yes}", "evaluation.flip was no, now yes"),
    ],
)
def test_a_changed_row_is_an_error_that_names_it(tmp_path: Path, old: str, new: str, message: str) -> None:
    comparison = load(tmp_path)
    finish(comparison, comparison.select(["real/tuned/0"])[0])
    check_unchanged(comparison)
    with pytest.raises(ConfigError, match=message):
        check_unchanged(load(tmp_path, FILE.replace(old, new)))


def test_what_cannot_change_a_number_may_change(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    finish(comparison, comparison.select(["real/tuned/0"])[0])
    moved = FILE.replace("crops.csv", "moved.csv").replace(
        "steps: 300}", "steps: 300, log_every: 5}\n  data.workers: 1"
    )
    check_unchanged(load(tmp_path, moved))
