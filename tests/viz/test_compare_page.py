"""The page of a comparison: self-contained, complete, and open about what was not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from motarfuse.engine.compare import Comparison, load_comparison
from motarfuse.engine.compare_results import Results
from motarfuse.viz.compare_page import render_page, write_page
from motarfuse.viz.interval_chart import Interval, interval_chart
from tests.engine.fake_compare import FILE, finish, write_file
from tests.viz.test_report import Page


def render(comparison: Comparison) -> str:
    results = Results(comparison)
    return render_page(results, {study: results.differences(study) for study in comparison.studies})


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    text = FILE.replace("drawn:", "'drawn <people>':")
    return load_comparison(write_file(tmp_path, text), tmp_path / "out")


@pytest.fixture
def page(comparison: Comparison) -> Page:
    for run in comparison.runs:
        if run.study == "real" and run.row != "wide":
            finish(comparison, run, quality=0.7 if run.row == "tuned" else 0.6)
    return Page(render(comparison))


def test_the_page_asks_for_nothing_and_is_well_formed(page: Page, comparison: Comparison) -> None:
    assert not page.having("script")
    assert not [attrs for _, attrs in page.tags if attrs.get("src", "").startswith(("http", "//"))]
    assert [attrs["href"] for _, attrs in page.tags if "href" in attrs and not attrs["href"].startswith("#")] == [
        "data:,"
    ]
    anchors = {attrs["href"][1:] for attrs in page.having("a")}
    assert anchors <= {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    results = Results(comparison)
    path = write_page(results, {study: results.differences(study) for study in comparison.studies})
    assert path == comparison.out / "compare.html"
    assert "4 of 10 runs are done." in path.read_text()


def test_it_shows_values_differences_curves_and_what_was_not_run(page: Page, comparison: Comparison) -> None:
    words, results = page.words, Results(comparison)
    for row in ("tuned", "default"):
        value = results.cell("real", row, "covered-30-50", "mAP").value
        assert f"{100 * (value or 0):.1f}" in words
    assert "drawn <people>" in words
    assert "Not run yet." in words
    assert "not run: wide" in words
    labels = [attrs["aria-label"] for attrs in page.having("svg", role="img")]
    for start in (
        "plain, equal steps: mAP of tuned minus that of the row named: default +",
        "plain, equal wall time: ",
        "covered-30-50, equal steps: ",
        "mAP against the covered share: tuned from",
        "mAP on plain: tuned from",
    ):
        assert any(label.startswith(start) for label in labels), (start, labels)
    assert "at 40" in next(label for label in labels if label.startswith("mAP against"))
    assert "seconds of training" in words


def test_a_comparison_of_which_nothing_was_run_has_a_page(comparison: Comparison) -> None:
    words = Page(render(comparison)).words
    assert "0 of 10 runs are done." in words
    assert words.count("Not run yet.") == 2


def test_more_rows_than_line_styles_get_further_charts_with_the_first_row_in_each(tmp_path: Path) -> None:
    from motarfuse.viz.charts import DASHES

    count = len(DASHES) + 2
    rows = "".join(f"  row {index}: {{}}\n" for index in range(count))
    text = f"rows:\n{rows}studies:\n  one: {{data: {{root: x}}}}\n"
    comparison = load_comparison(write_file(tmp_path, text), tmp_path / "out")
    for run in comparison.runs:
        finish(comparison, run)
    labels = [attrs["aria-label"] for attrs in Page(render(comparison)).having("svg", role="img")]
    charts = [label for label in labels if label.startswith("mAP on plain")]
    assert len(charts) == 4
    drawn = set()
    for label in charts:
        names = re.findall(r"row \d+(?= from)", label)
        assert names[0] == "row 0"
        assert len(names) <= len(DASHES)
        drawn |= set(names)
    assert len(drawn) == count


def test_an_interval_off_zero_is_filled_and_coloured_and_one_across_it_is_not() -> None:
    chart = interval_chart(
        [
            Interval("up", 0.02, 0.01, 0.03, "better"),
            Interval("down", -0.02, -0.03, -0.01, "worse"),
            Interval("across", 0.001, -0.01, 0.01, "no difference shown"),
            Interval("few", 0.02, note="4 identities"),
        ],
        label="mAP",
    )
    marks = re.findall(r'<circle cx="([\d.]+)" [^>]*style="fill:([^;]+);stroke:([^;]+);', chart)
    assert [mark[1] for mark in marks] == ["var(--right)", "var(--wrong)", "var(--card)", "var(--card)"]
    zero = float(re.findall(r'x1="([\d.]+)"[^>]*style="stroke:var\(--soft\)"', chart)[0])
    sides = [float(mark[0]) - zero for mark in marks]
    assert sides[0] > 0 > sides[1]
    assert sides[0] == pytest.approx(-sides[1])
    assert "few +2.0, 4 identities" in chart
    assert "up +2.0 [+1.0, +3.0]" in chart
    # Three whiskers of a bar and two ends each; none for what has no interval.
    assert chart.count('stroke-width:2"/><line') + chart.count('stroke-width:2"/><circle') == 9
    assert "<p" in interval_chart([Interval("none", None, note="not run")], label="mAP")
