"""What is read from a comparison's runs: means, paired differences, equal wall time, and what was not run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from motarfuse.engine.bootstrap import paired_bootstrap
from motarfuse.engine.compare import Comparison, load_comparison
from motarfuse.engine.compare_results import Basis, Results
from motarfuse.engine.compare_tables import markdown, study_tables, write_tables
from motarfuse.errors import DataError
from tests.engine.fake_compare import finish, write_file


def load(tmp_path: Path) -> Comparison:
    return load_comparison(write_file(tmp_path), tmp_path / "out")


def test_equal_wall_time_reads_each_row_at_its_last_evaluation_within_the_fastest_rows_training(
    tmp_path: Path,
) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        # tuned takes 1 s a step, default 0.5 (150 s in all), wide 0.99: 150 s are its step 151.
        finish(comparison, run, seconds_per_step={"tuned": 1.0, "default": 0.5, "wide": 0.99}[run.row])
    results = Results(comparison)
    budget = results.budget("drawn", comparison.rows, "plain")
    assert budget == (150.0, {"tuned": 150, "default": 300, "wide": 150})
    assert results.budget("drawn", ["tuned", "wide"], "plain") == (297.0, {"tuned": 250, "wide": 300})
    one = next(one for one in results.differences("drawn") if one.basis == "time" and one.second == "default")
    assert (one.steps, one.seconds) == ((150, 300), (150.0, 150.0))
    assert one.found is not None
    first, second = (
        [results.runs[f"drawn/{row}/{seed}"].readings["plain"][step].queries["feature"]["mAP"] for seed in (0, 1)]
        for row, step in (("tuned", 150), ("default", 300))
    )
    assert one.found.difference == pytest.approx(np.mean(np.array(first) - np.array(second)))
    assert one.found.verdict == "worse"


def test_a_row_without_any_evaluation_in_time_says_so(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run, seconds_per_step=10.0 if run.row == "tuned" else 0.5)
    results = Results(comparison)
    budget = results.budget("drawn", comparison.rows, "plain")
    assert budget is not None
    assert budget[1]["tuned"] is None
    reasons = {one.reason for one in results.differences("drawn") if one.basis == "time"}
    assert reasons == {"no evaluation within the time of the faster row"}
    tables = {table.caption: table for table in study_tables(results, "drawn", results.differences("drawn"))}
    assert tables["Equal wall time"].rows[0][1] == "none in time"


def test_a_set_that_joined_later_leaves_the_others_their_wall_time(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    late = list(comparison.studies["real"].trained)[-1]
    for run in comparison.of("real"):
        finish(comparison, run, seconds_per_step=1.0 if run.row == "tuned" else 0.5)
        path = run.folder / "evaluations" / "history.jsonl"
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["name"] != late]
        path.write_text("".join(line + "\n" for line in kept))
    results = Results(comparison)
    plain, joined = (results.budget("real", ["tuned", "default"], name) for name in ("plain", late))
    assert plain == (150.0, {"tuned": 150, "default": 300})
    assert joined == (150.0, {"tuned": None, "default": 300})
    tables = {table.caption: table for table in study_tables(results, "real", results.differences("real"))}
    rows = {row[0]: row for row in tables["Equal wall time"].rows}
    assert rows["tuned"][1] != "none in time"
    assert rows["tuned"][2:4] == ["none in time", "150"]


def test_differences_are_paired_over_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run, quality=0.7 if run.row == "tuned" else 0.6)
    found = {(one.second, one.metric): one for one in Results(comparison).differences("drawn") if one.basis == "steps"}
    assert found["default", "mAP"].seeds == (0, 1)
    assert found["wide", "mAP"].seeds == (0,)
    one = found["default", "mAP"].found
    assert one is not None
    records = {
        (row, seed): json.loads((tmp_path / f"out/drawn/{row}/{seed}/evaluations/plain.json").read_text())["queries"]
        for row in ("tuned", "default")
        for seed in (0, 1)
    }
    values = [
        np.array([records[row, seed]["feature"]["average_precision"] for seed in (0, 1)])
        for row in ("tuned", "default")
    ]
    assert one == paired_bootstrap(values[0], values[1], records["tuned", 0]["feature"]["pid"])
    assert one.verdict == "better"


def test_other_queries_are_not_compared(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run, identities=12 if run.row == "tuned" else 11)
    assert {one.reason for one in Results(comparison).differences("drawn")} == {
        "the two were evaluated on different queries"
    }


def test_the_headline_is_the_configured_score_and_auto_the_sum_where_there_are_parts(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run, scores={"feature": 0.0, "parts": -0.1, "sum": 0.1} if run.row == "tuned" else None)
    results = Results(comparison)
    assert results.runs["drawn/tuned/0"].score == "sum"
    assert results.runs["drawn/default/0"].score == "feature"
    tuned, default = (results.cell("drawn", row, "plain", "mAP").value for row in ("tuned", "default"))
    assert tuned is not None
    assert default is not None
    assert tuned - default > 0.07
    comparison.runs[0].config.evaluation.score = "parts"
    assert results.runs[comparison.runs[0].name].score == "parts"


def test_rows_with_other_scores_are_compared_by_the_feature_alone_as_well(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run, scores={"feature": 0.0, "parts": -0.1, "sum": 0.1} if run.row == "tuned" else None)
    results = Results(comparison)
    found = {
        one.basis: one.found for one in results.differences("drawn") if (one.second, one.metric) == ("default", "mAP")
    }
    assert set(found) == {"steps", "time", "feature"}
    readings = [results.runs[f"drawn/{row}/0"].readings["plain"][300] for row in ("tuned", "default")]
    scores: dict[Basis, str] = {"steps": "sum", "feature": "feature"}
    for basis, score in scores.items():
        one = found[basis]
        assert one is not None
        assert one.per_seed[0] == pytest.approx(readings[0].value(score, "mAP") - readings[1].value("feature", "mAP"))
    tables = {table.caption for table in study_tables(results, "drawn", results.differences("drawn"))}
    assert "Differences at equal steps, by the feature alone" in tables


def test_rows_scored_by_the_feature_are_compared_once(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.of("drawn"):
        finish(comparison, run)
    results = Results(comparison)
    assert {one.basis for one in results.differences("drawn")} == {"steps", "time"}
    tables = {table.caption for table in study_tables(results, "drawn", results.differences("drawn"))}
    assert "Differences at equal steps, by the feature alone" not in tables


def test_tables_hold_every_value_and_say_what_was_not_run(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    for run in comparison.select(["drawn/tuned", "drawn/default/0", "real/tuned/0"]):
        finish(comparison, run)
    finish(comparison, comparison.select(["drawn/default/1"])[0], step=100)
    results = Results(comparison)
    differences = {study: results.differences(study) for study in comparison.studies}
    write_tables(results, differences)
    with (comparison.out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    chosen = [line for line in lines if line["row"] == "tuned" and line["study"] == "drawn" and line["metric"] == "mAP"]
    assert [(line["seed"], line["step"]) for line in chosen][:6] == [("0", str(step)) for step in range(50, 301, 50)]
    assert chosen[5]["seconds"] == "150.000"
    record = json.loads((tmp_path / "out/drawn/tuned/0/evaluations/plain.json").read_text())
    assert float(chosen[5]["value"]) == pytest.approx(
        np.mean(record["queries"]["feature"]["average_precision"]), abs=1e-6
    )
    # An unfinished run is in the file of all values, and in no mean.
    assert [line["step"] for line in lines if (line["row"], line["seed"]) == ("default", "1")][::3] == ["50", "100"]
    text = markdown(results, differences)
    assert "4 of 10 runs are done." in text
    assert "| default | 0 (1 interrupted) | not run |" in text
    assert "| wide | not run | not run |" in text
    row = next(
        line
        for line in text.splitlines()
        if line.startswith("| default | ") and line.endswith(" | 0 (1 interrupted) |")
    )
    assert row.split(" | ")[1] == f"{100 * float(results.cell('drawn', 'default', 'plain', 'mAP').value or 0):.1f}"
    assert "| wide | not run | not run | not run | not run |" in text
    assert "Not run: tuned - wide." in text
    assert "| tuned | default | plain |" in text
    curve = next(line for line in text.splitlines() if "0 % | 20 % | 40 %" in line)
    assert curve == "| row | 0 % | 20 % | 40 % |"
    with (comparison.out / "differences.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {line["reason"] for line in found if line["second"] == "wide"} == {"not run"}
    assert {line["seeds"] for line in found if line["second"] == "default" and line["study"] == "drawn"} == {"0"}


def test_a_run_without_the_queries_own_values_is_named(tmp_path: Path) -> None:
    comparison = load(tmp_path)
    run = comparison.select(["drawn/tuned/0"])[0]
    finish(comparison, run)
    path = run.folder / "evaluations/plain.json"
    (run.folder / "evaluations/history.jsonl").unlink()
    path.write_text(json.dumps({"step": 300, "name": "plain"}))
    with pytest.raises(DataError, match="holds no values of single queries"):
        Results(comparison)
