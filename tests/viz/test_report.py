"""The report of a run: complete, self-contained, robust, and readable on a phone."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from motarfuse.data import EvalTransform
from motarfuse.data.images import read_image
from motarfuse.engine import save_checkpoint
from motarfuse.errors import DataError, OutputError
from motarfuse.models import build_model
from motarfuse.ops import cell_centers, motion_warp
from motarfuse.viz import write_report
from motarfuse.viz.part_panels import draw_warped, fit_height
from tests.viz.fake_run import write_evaluation, write_log, write_run

VOID = {"meta", "link", "img", "br", "hr", "input", "line", "circle", "path", "polygon"}


class Page(HTMLParser):
    """Collects what a page consists of, and fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def having(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """Attributes of the elements of this name and these attribute values."""
        return [a for name, a in self.tags if name == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo <nano>")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_anywhere(text: str) -> None:
    page = Page(text)
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r'"data:[^"]*"', "", text), re.IGNORECASE) == []
    assert page.having("script") == []
    assert "@import" not in text
    assert "url(" not in text
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "xlink:href", "data", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, name)


def test_every_section_is_there_and_linked(text: str) -> None:
    page = Page(text)
    anchors = ["results", "cmc", "training", "rank-lists", "protocol", "config", "files"]
    assert [a["id"] for a in page.having("h2")] == anchors
    assert [a["href"] for a in page.having("a")] == [f"#{anchor}" for anchor in anchors]
    for part in (
        "Finished: 300 training steps",
        "holistic",
        "occluded",
        "70.0",
        "Rank-1",
        "mINP",
        "480 of 500 queries",
    ):
        assert part in page.words
    assert len(page.having("svg", role="img")) == 6  # CMC; loss, learning rate, throughput; mAP, Rank-1
    assert len(page.having("figure")) == 6 + 2 * 24


def test_a_run_without_parts_shows_none(text: str, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "run", sets=("holistic",))
    save_network(plain, build_model("vit_reid", size="nano"), "vit_reid")
    for page in (Page(text), Page(write_report(plain).read_text())):
        assert "Parts and motion" not in page.words
        assert "Motion consistency" not in page.words
        assert "Determinants" not in page.words


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("motar_fuse", size="nano").eval()


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> Path:
    """A run of a network with parts."""
    run = write_run(tmp_path_factory.mktemp("moving") / "run")
    save_network(run, network, "motar_fuse")
    log_health(run)
    return run


def save_network(run: Path, model: nn.Module, name: str) -> None:
    """Replaces the run's checkpoint."""
    shutil.rmtree(run / "checkpoints")
    save_checkpoint(
        run / "checkpoints", step=300, model=model.state_dict(), model_name=name, model_config={"size": "nano"}
    )


def log_health(run: Path, parts: int = 8) -> None:
    """Adds to a log what the training of a network with parts writes."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "train":
            terms = {"flow": 0.01, "occ": 0.6, "eq": 0.4, "part": 5.0, "div": 1.5, "motion": 6.5}
            health = {"confidence": 0.07, "foreground": 0.4, "visibility": 0.3, "det_min": 0.7, "det_max": 1.2}
            health |= {f"mass_{part}": 0.01 * (part + 1) for part in range(parts)} | {"mass_min": 0.01, "mass_max": 1}
            event |= {f"loss_{name}": value / event["step"] for name, value in terms.items()}
            event |= {f"health/{name}": value for name, value in health.items()}
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture(scope="module")
def moving_text(moving: Path) -> str:
    return write_report(moving).read_text()


def test_a_run_with_parts_shows_people_posture_and_matches(moving_text: str, moving: Path) -> None:
    page = Page(moving_text)
    anchors = ["results", "cmc", "training", "parts", "rank-lists", "protocol", "config", "files"]
    assert [a["id"] for a in page.having("h2")] == anchors
    alts = [a["alt"] for a in page.having("img")]
    for panel in ("crop", "parts", "keypoints", "motion"):
        assert sum(alt.startswith((f"{panel} of query", f"{panel}: no foreground of query")) for alt in alts) == 8
    assert sum(alt.startswith("The canonical posture: 8 numbered ellipses") for alt in alts) == 1
    assert len(page.having("figure", **{"class": "card matches"})) == 3
    assert "the network of step 300 sees: 8 parts" in page.words
    assert len(page.having("ul", **{"class": "bars"})) == 8


def test_matches_are_the_first_right_and_the_first_wrong_answer(moving_text: str, moving: Path) -> None:
    by_query: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in ("holistic", "occluded"):
        evaluation = json.loads((moving / "evaluations" / f"{name}.json").read_text())
        for entry in evaluation["rank_lists"]:
            by_query.setdefault((name, entry["query"]), []).append(entry)
    figures = re.findall(r'<figure class="card matches">(.*?)</figure>', moving_text)
    assert len(figures) == 3
    for figure in figures:
        name, query = re.findall(r"<figcaption>(\w+), query ([\w.]+)", figure)[0]
        shown = re.findall(r"<b>(Right|Wrong)</b>, rank (\d+), ([\w.]+)", figure)
        expected = []
        for entry in by_query[name, query]:
            matches = [result["match"] for result in entry["entries"]]
            if True in matches and False in matches:
                ranks = [("Right", matches.index(True)), ("Wrong", matches.index(False))]
                expected.append([(word, str(rank + 1), entry["entries"][rank]["path"]) for word, rank in ranks])
        assert shown in expected


def test_the_right_answer_of_each_match_is_warped_to_its_query(
    moving_text: str, moving: Path, network: nn.Module
) -> None:
    found = re.findall(r'<figure class="card matches"><figcaption>([^<]*)</figcaption>.*?</figure>', moving_text)
    section = moving_text[moving_text.index("<h3>Motion between two images</h3>") :]
    figures = re.findall(r'<figure class="card person"><figcaption>([^<]*)</figcaption>(.*?)</figure>', section)
    assert [caption.split("; answer of")[0] for caption, _ in figures] == found
    size: tuple[int, int] = network.image_size  # type: ignore[assignment]
    for caption, panels in figures:
        assert re.findall(r'class="under">([^<]*)<', panels) in [
            ["answer", name, "answer, warped", "query"] for name in ("motion", "motion: no foreground")
        ]
        query, answer = re.findall(r"\d{4}_c\ds1_\d+_\d+\.jpg", caption)
        assert query[:4] == answer[:4]  # one person
        files = [moving.parent / "images" / name for name in (answer, query)]
        inputs = np.stack([read_image(file, size) for file in files])
        with torch.no_grad():
            output = network(EvalTransform()(torch.from_numpy(inputs).permute(0, 3, 1, 2)))
        warp = motion_warp(
            torch.empty(1, 128, 0),
            output.keypoints[:1, 0],
            output.affines[:1, 0],
            output.keypoints[1:, 0],
            output.affines[1:, 0],
            output.part_masks[1:, 0].flatten(2).log(),
            grid=(16, 8),
        )
        displacement = (warp.flow[0] - cell_centers((16, 8), dtype=torch.float32)).view(16, 8, 2).double().numpy()
        crops = [fit_height(Image.fromarray(read_image(file)), 320) for file in files]
        expected = (crops[0], draw_warped(crops[0], displacement, crops[1].size), crops[1])
        shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', panels)
        drawn = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float) for data in shown]
        for picture, wanted in zip((drawn[0], drawn[2], drawn[3]), expected, strict=True):
            assert np.abs(picture - jpeg(wanted)).mean() < 0.1
        assert np.abs(drawn[2] - drawn[0]).mean() > 1


def jpeg(image: Image.Image) -> np.ndarray:
    """What a page's JPEG leaves of it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, subsampling=0)
    return np.asarray(Image.open(file), dtype=float)


def test_bars_say_what_the_network_says_of_the_crop(moving_text: str, moving: Path, network: nn.Module) -> None:
    query = re.findall(r"<figcaption>\w+, query ([\w.]+)", moving_text)[0]
    crop = read_image(moving.parent / "images" / query, network.image_size)  # type: ignore[arg-type]
    with torch.no_grad():
        output = network(EvalTransform()(torch.from_numpy(crop).permute(2, 0, 1)[None]))
    bars = re.findall(r'<ul class="bars"[^>]*>(.*?)</ul>', moving_text)[0]
    assert re.findall(r"<span>([\d.]+)</span>", bars) == [f"{value:.2f}" for value in output.part_visibility[0]]


def test_the_health_of_the_parts_is_drawn(moving_text: str) -> None:
    labels = {a["aria-label"].split(":")[0]: a["aria-label"] for a in Page(moving_text).having("svg", role="img")}
    assert "flow from 0.01 at 1 to 3.333e-5 at 300" in labels["Motion consistency"]
    assert "diversity from" in labels["Motion consistency"]
    assert "reconstruction" not in labels["Motion consistency"]  # not logged
    assert "largest from 1.2 at 1 to 1.2 at 300; smallest from 0.7" in labels["Determinants"]
    assert "foreground from 0.4" in labels["Foreground and confidence"]
    assert "part 1 from 0.01 at 1" in labels["Parts"]
    assert "part 8 from 0.08 at 1" in labels["Parts"]
    assert "part 9" not in labels["Parts"]


def test_without_a_checkpoint_a_run_with_parts_says_so(tmp_path: Path, network: nn.Module) -> None:
    write_log(tmp_path / "run", steps=20)
    log_health(tmp_path / "run")
    assert "There are no pictures of the parts" in Page(write_report(tmp_path / "run").read_text()).words
    run = write_run(tmp_path / "other", sets=("holistic",))
    log_health(run)
    save_network(run, network, "motar_fuse")
    (run / "checkpoints" / "step-00000300" / "model.safetensors").write_bytes(b"cut off")
    page = Page(write_report(run).read_text())
    assert "is truncated: 7 bytes" in page.words
    assert len(page.having("figure", **{"class": "ranks"})) == 24


def test_a_diverged_network_gives_a_sentence_instead_of_pictures(tmp_path: Path, network: nn.Module) -> None:
    run = write_run(tmp_path / "run", sets=("holistic",))
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.get_parameter("decoder.queries").fill_(float("nan"))
    save_network(run, broken, "motar_fuse")
    page = Page(write_report(run).read_text())
    assert "There are no pictures of the parts: the network's output is not finite" in page.words


def test_without_images_the_posture_is_left(tmp_path: Path, network: nn.Module) -> None:
    run = write_run(tmp_path / "run", sets=("holistic",))
    save_network(run, network, "motar_fuse")
    images = sorted((tmp_path / "images").glob("*.jpg"))
    for file in images[1::2]:
        file.unlink()
    some = Page(write_report(run).read_text())
    assert re.search(r"\d+ of \d+ images could not be read and are left out", some.words)
    assert some.having("ul", **{"class": "bars"})
    for file in images[::2]:
        file.unlink()
    page = Page(write_report(run).read_text())
    assert "None of the query images can be read" in page.words
    assert any(a["alt"].startswith("The canonical posture") for a in page.having("img"))
    assert page.having("figure", **{"class": "card matches"}) == []
    shutil.rmtree(run / "evaluations")
    assert "no people are shown" in Page(write_report(run).read_text()).words


def test_headings_descend_one_level_at_a_time(text: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(text).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_right_and_wrong_are_marked_by_shape_and_in_words(text: str, run: Path) -> None:
    evaluation = json.loads((run / "evaluations" / "holistic.json").read_text())
    other = json.loads((run / "evaluations" / "occluded.json").read_text())
    matches = [e["match"] for v in (evaluation, other) for lists in v["rank_lists"] for e in lists["entries"]]
    assert text.count('<li class="right">') == sum(matches) == text.count("M5 9.4")
    assert text.count('<li class="wrong">') == len(matches) - sum(matches) == text.count("M5.8 5.8")
    alts = [a["alt"] for a in Page(text).having("img")]
    assert sum(", right, " in alt for alt in alts) == sum(matches)
    assert all(alts)


def test_queries_stand_from_hardest_to_easiest(text: str) -> None:
    found = [float(value) for value in re.findall(r"<b>AP ([\d.]+) %</b>", text)]
    assert found[:24] == sorted(found[:24])
    assert found[24:] == sorted(found[24:])
    words = Page(text).words
    assert words.index("Hardest queries") < words.index("in the middle") < words.index("Easiest queries")


def test_names_from_files_are_text_not_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    run = write_run(tmp_path / "run", sets=("holistic",))
    file = run / "evaluations" / "holistic.json"
    values = json.loads(file.read_text())
    values["name"] = evil
    values["manifest"][evil] = evil
    values["rank_lists"][0]["query"] = f"{evil}.jpg"
    values["rank_lists"][0]["query_pid"] = evil
    values["rank_lists"][0]["entries"][0]["pid"] = evil
    file.write_text(json.dumps(values))
    (run / "config.yaml").write_text(f"note: '{evil}'\n")
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "evaluation", "step": 300, "name": evil, "mAP": 0.5}) + "\n")
    text = write_report(run).read_text()
    assert Page(text).having("script") == []
    assert text.count(html.escape(evil)) >= 4


def test_missing_images_are_grey_cards_and_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sets=("holistic",))
    for file in sorted((tmp_path / "images").glob("*.jpg"))[::2]:
        file.unlink()
    page = Page(write_report(run).read_text())
    assert "18 of 36 images could not be read" in page.words
    assert "image missing" in page.words
    assert any("image missing" in a.get("aria-label", "") for a in page.having("span", role="img"))


def test_a_run_that_is_still_going_shows_how_far_it_is(tmp_path: Path) -> None:
    write_log(tmp_path / "run", steps=120)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"event": "train", "step": 121, "lo')
    page = Page(write_report(tmp_path / "run").read_text())
    assert "In progress or interrupted: step 120 of 300" in page.words
    assert "Nothing has been evaluated yet." in page.words
    assert page.having("div", role="note") == []
    assert len(page.having("svg", role="img")) == 5


def test_broken_lines_and_files_are_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sets=("holistic",))
    log = run / "log.jsonl"
    lines = log.read_text().splitlines()
    lines[5], lines[7], lines[9] = '{"event": "train"', "[]", '{"event": "train", "step": "9"}'
    log.write_text("\n".join(lines) + "\n")
    (run / "evaluations" / "other.json").write_text("{")
    (run / "evaluations" / "third.json").write_text("3")
    (run / "evaluations" / "bare.json").write_text('{"rank_lists": [3, {}], "metrics": 7, "cmc": "x"}')
    page = Page(write_report(run).read_text())
    assert "3 lines of log.jsonl cannot be read" in page.words
    assert "evaluations/other.json is not valid JSON" in page.words
    assert "evaluations/third.json holds no evaluation" in page.words
    assert "not given" in page.words
    assert "70.0" in page.words


def test_a_single_evaluation_is_no_curve(tmp_path: Path) -> None:
    write_log(tmp_path / "once", steps=60)
    write_log(tmp_path / "twice", steps=120)
    assert "mAP while training" not in Page(write_report(tmp_path / "once").read_text()).words
    assert "mAP while training" in Page(write_report(tmp_path / "twice").read_text()).words


def test_a_step_logged_twice_counts_once_with_its_last_values(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(
            json.dumps({"event": "train", "step": step, "loss": loss}) + "\n"
            for step, loss in ((10, 5.0), (20, 9.0), (20, 4.0), (30, 3.0))
        )
    )
    page = Page(write_report(tmp_path).read_text())
    (chart,) = page.having("svg", role="img")
    assert chart["aria-label"] == "Loss: total from 5 at 10 to 3 at 30"
    assert "30 training steps." in page.words


def test_a_diverged_loss_does_not_break_the_page(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 1.0, float("nan"), float("nan")]
    lines = [{"event": "train", "step": step, "loss": loss, "lr": 1e-3} for step, loss in enumerate(losses)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(tmp_path).read_text()
    assert not re.search(r'(?:points|d|cx|cy|y1)="[^"]*nan', text)


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    write_log(tmp_path / "run", steps=20_000)
    assert write_report(tmp_path / "run").stat().st_size < 200_000


def test_the_page_goes_where_it_is_told(tmp_path: Path) -> None:
    write_log(tmp_path / "run", steps=10)
    assert write_report(tmp_path / "run", tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_a_folder_that_is_no_run_and_a_place_that_is_no_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(DataError, match=r"is not a run: it has none of config\.yaml"):
        write_report(tmp_path)
    write_log(tmp_path / "run", steps=10)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_report(tmp_path / "run", tmp_path / "file" / "page.html")


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium or chrome on this machine")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_at_this_width(browser: str, moving: Path, width: int, tmp_path: Path) -> None:
    run = moving
    write_evaluation(run, "a-set-whose-name-goes-on-and-on-" + "x" * 60, run.parent / "images")
    text = write_report(run, tmp_path / "report.html").read_text()
    text = text.replace("<details>", "<details open>")
    # A headless window cannot be as narrow as a phone; a frame can, and its media queries see the frame's width.
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        '<p id="answer"></p><script>onload = () => {const d = document.getElementById("f").contentDocument;'
        "const wide = [...d.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > "
        f"{width} + 1 && !e.closest('.crop')).map(e => e.outerHTML.slice(0, 80));"
        'document.getElementById("answer").textContent = JSON.stringify('
        "{scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth, wide})}</script>"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        "--window-size=1400,900",
        "--virtual-time-budget=3000",
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    answer = re.search(r'<p id="answer">(.*?)</p>', dom)
    assert answer is not None
    found = json.loads(html.unescape(answer[1]))
    assert found["client"] >= width - 20
    assert found["scroll"] <= found["client"], found
    assert found["wide"] == []
