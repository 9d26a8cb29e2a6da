"""The report's parts and motion: what the run's latest checkpoint sees in people, and what matches between them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from motarfuse.data import EvalTransform
from motarfuse.engine.checkpoint import load_model
from motarfuse.errors import CheckpointError
from motarfuse.models import MotarFuseOutput
from motarfuse.nn import CanonicalPosture
from motarfuse.viz.crops import load_crop
from motarfuse.viz.motion_field import motion_between
from motarfuse.viz.part_panels import (
    FOREGROUND,
    PART_COLOURS,
    PartView,
    arrow_scale,
    draw_keypoints,
    draw_masks,
    draw_motion,
    draw_warped,
    fit_height,
    part_view,
)
from motarfuse.viz.parts import draw_canonical_posture, draw_match_pair, match_parts, similarity_colour
from motarfuse.viz.run_folder import Evaluation, RunFolder

PEOPLE = 8  # over all evaluation sets, at least two and at most six of each
MATCHES = 3
PANEL_PX = 320
_BATCH = 16


@dataclass(frozen=True)
class _Person:
    """An image that an evaluation names, with the camera that it gives."""

    path: Path
    camid: int = -1


@dataclass(frozen=True)
class _Answer:
    """An image that a search found, in words, and whether it shows the query's person."""

    person: _Person
    text: str
    right: bool


@dataclass(frozen=True)
class _Matched:
    """A query with answers that can be read; the title is HTML."""

    title: str
    query: _Person
    answers: list[_Answer]


@dataclass
class _Reader:
    """Runs the network over images, and keeps crops and parts of those that can be read."""

    model: nn.Module
    crops: dict[_Person, Image.Image] = field(default_factory=dict)
    views: dict[_Person, PartView] = field(default_factory=dict)
    asked: set[_Person] = field(default_factory=set)

    def read(self, people: Sequence[_Person]) -> None:
        """Adds people.

        Raises:
            CheckpointError: The network's output is not finite.
        """
        new = [person for person in dict.fromkeys(people) if person not in self.asked]
        self.asked.update(new)
        for person in new:
            crop, _ = load_crop(person.path)
            if crop is not None:
                self.crops[person] = crop
        there = [person for person in new if person in self.crops]
        for start in range(0, len(there), _BATCH):
            batch = there[start : start + _BATCH]
            output = self._run([self.crops[person] for person in batch], [person.camid for person in batch])
            self.views.update((person, part_view(output, index)) for index, person in enumerate(batch))

    @torch.inference_mode()
    def _run(self, crops: Sequence[Image.Image], camids: Sequence[int]) -> MotarFuseOutput:
        height, width = self.model.image_size  # type: ignore[misc]
        pixels = [np.array(crop.resize((width, height), Image.Resampling.BILINEAR)) for crop in crops]
        images = EvalTransform()(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        output: MotarFuseOutput = self.model(images, torch.tensor(camids))
        drawn = (output.part_features, output.part_visibility, output.keypoints, output.affines, output.motion)
        if not all(bool(values.isfinite().all()) for values in drawn):
            raise CheckpointError("the network's output is not finite; its weights are damaged or diverged")
        return output


def part_section(run: RunFolder) -> str:
    """HTML of the section; empty for a run whose network has no parts. What is missing is said, never an error."""
    try:
        model, metadata = load_model(run.path)
    except CheckpointError as error:
        # Only the log tells then whether there is anything that the reader would miss.
        return _sentence(f"There are no pictures of the parts: {error}.") if run.has_parts else ""
    canonical = next((module for module in model.modules() if isinstance(module, CanonicalPosture)), None)
    if canonical is None:
        return ""
    parts = len(canonical.keypoints)
    if parts > len(PART_COLOURS):
        return _sentence(f"The network has {parts} parts; pictures show up to {len(PART_COLOURS)}.")
    lead = (
        f'<p class="lead">What the network of step {metadata["step"]:,} sees: {parts} parts that it found by itself. '
        "Nobody named them; a part has the same number and colour in all pictures.</p>"
    )
    try:
        reader = _Reader(model)
        people = _people(run.evaluations, reader)
        matched = _matched(run.evaluations, reader)
        body = people + _posture(canonical) + _matches(matched, reader) + _motions(matched, reader)
    except CheckpointError as error:
        return _sentence(f"There are no pictures of the parts: {error}.")
    missing = len(reader.asked) - len(reader.crops)
    if missing:
        lead += f"<p>{missing} of {len(reader.asked)} images could not be read and are left out.</p>"
    return lead + body


def _people(evaluations: Sequence[Evaluation], reader: _Reader) -> str:
    sets = [(evaluation, _spread(evaluation.rank_lists, len(evaluations))) for evaluation in evaluations]
    shown = [(each, _query(each, entry), entry) for each, entries in sets for entry in entries]
    if not shown:
        return _sentence("No evaluation with rank lists is there yet, so that no people are shown.")
    reader.read([person for _, person, _ in shown])
    found = [(each, person, entry) for each, person, entry in shown if person in reader.views]
    if not found:
        return _sentence("None of the query images can be read, so that no people are shown.")
    scale = arrow_scale([reader.views[person] for _, person, _ in found])
    figures = "".join(_person(each, person, entry, reader, scale) for each, person, entry in found)
    return (
        "<h3>People</h3>"
        '<dl class="keys"><dt>Parts</dt><dd>The strongest part of each cell, the more opaque the larger its share.</dd>'
        "<dt>Keypoints</dt><dd>A circle under the part's affine, with a line that points upwards in the part; hardly "
        "visible ones are faint.</dd>"
        "<dt>Motion</dt><dd>Where each foreground cell would go to reach the canonical posture, once the person is "
        f"moved and scaled onto it; arrows are {_longer(scale)}.</dd>"
        "<dt>Bars</dt><dd>Visibility: how clearly each part is seen, from 0 to 1.</dd></dl>"
        f'<div class="people">{figures}</div>'
    )


def _person(evaluation: Evaluation, person: _Person, entry: dict[str, Any], reader: _Reader, scale: float) -> str:
    view, crop = reader.views[person], fit_height(reader.crops[person], PANEL_PX)
    who = f"query {person.path.name}"
    panels = (
        ("crop", crop),
        ("parts", draw_masks(crop, view)),
        ("keypoints", draw_keypoints(crop, view)),
        (_moving(view), draw_motion(crop, view, scale)),
    )
    bars = "".join(
        f'<li>{_number(part)}<span class="track"><i style="width:{100 * value:.0f}%;background:{PART_COLOURS[part]}">'
        f"</i></span><span>{value:.2f}</span></li>"
        for part, value in enumerate(view.visibility)
    )
    return (
        f'<figure class="card person"><figcaption>{escape(evaluation.name)}, {escape(who)}{_identity(entry)}'
        f'</figcaption>{_panels(panels, who)}<ul class="bars" aria-label="visibility">{bars}</ul></figure>'
    )


def _panels(panels: Sequence[tuple[str, Image.Image]], who: str) -> str:
    items = "".join(
        f'<li><img src="{_embed(picture)}" alt="{escape(f"{name} of {who}")}" width="{picture.width}" '
        f'height="{picture.height}" loading="lazy" decoding="async"><span class="under">{name}</span></li>'
        for name, picture in panels
    )
    return f'<ul class="panels">{items}</ul>'


def _moving(view: PartView) -> str:
    return "motion" if (view.foreground > FOREGROUND).any() else "motion: no foreground"


def _longer(scale: float) -> str:
    return "as long as the displacement" if scale == 1 else f"{scale:g} times as long as the displacement"


def _posture(canonical: CanonicalPosture) -> str:
    picture = draw_canonical_posture(canonical.keypoints, canonical.affines, height_px=480)
    return (
        '<h3>Canonical posture</h3><figure class="card posture">'
        f'<img src="{_embed(picture)}" alt="The canonical posture: {len(canonical.keypoints)} numbered ellipses" '
        f'width="{picture.width}" height="{picture.height}">'
        "<figcaption>The mean posture of all training images, weighted by visibility: what a single image is compared "
        "with, so that it has a motion. An ellipse that is no circle, or whose line leans, is a part that is "
        "usually deformed in the crops.</figcaption></figure>"
    )


def _matched(evaluations: Sequence[Evaluation], reader: _Reader) -> list[_Matched]:
    """A few queries, taken from the sets in turn, with the first right and the first wrong answer that can be read."""
    found: list[_Matched] = []
    for evaluation, entry in _in_turn(evaluations):
        if len(found) == MATCHES:
            break
        query = _query(evaluation, entry)
        answers = _answers(evaluation, entry)
        reader.read([query, *(answer.person for answer in answers)])
        answers = [answer for answer in answers if answer.person in reader.views]
        if query in reader.views and answers:
            title = f"{escape(f'{evaluation.name}, query {query.path.name}')}{_identity(entry)}"
            found.append(_Matched(title, query, answers))
    return found


def _matches(matched: Sequence[_Matched], reader: _Reader) -> str:
    if not matched:
        return ""
    figures = "".join(
        f'<figure class="card matches"><figcaption>{each.title}</figcaption>'
        f'<div class="pairs">{"".join(_pair(reader, each.query, answer) for answer in each.answers)}</div></figure>'
        for each in matched
    )
    return (
        "<h3>Part by part</h3>"
        "<p>Query left, answer right. A line joins the two keypoints of a part: the wider the more visible the part is "
        "in both (the weight, v<sub>q</sub> v<sub>g</sub>); its colour is the cosine of the two part features, from "
        f"orange (0) over grey (0.5) to blue (1).</p>{figures}"
    )


def _motions(matched: Sequence[_Matched], reader: _Reader) -> str:
    """How the query stands as against the right answer, for those of the matches that have one."""
    pairs = [(each, answer) for each in matched for answer in each.answers if answer.right]
    if not pairs:
        return ""
    views = [motion_between(reader.views[answer.person], reader.views[each.query]).view for each, answer in pairs]
    scale = arrow_scale(views)
    figures = []
    for (each, answer), view in zip(pairs, views, strict=True):
        query, crop = (fit_height(reader.crops[person], PANEL_PX) for person in (each.query, answer.person))
        panels = (
            ("answer", crop),
            (_moving(view), draw_motion(query, view, scale)),
            ("answer, warped", draw_warped(crop, view.displacement, query.size)),
            ("query", query),
        )
        pair = f"the pair {each.query.path.name}, {answer.person.path.name}"
        figures.append(
            f'<figure class="card person"><figcaption>{each.title}; answer of {escape(answer.text)}</figcaption>'
            f"{_panels(panels, pair)}</figure>"
        )
    return (
        "<h3>Motion between two images</h3>"
        "<p>The right answers above, moved towards the posture of their queries by the keypoints, affines and masks of "
        f"the two. Arrows, {_longer(scale)}, point from each foreground cell of the query to where the answer has what "
        "belongs there. The warped answer is read at these places; the more of a cell is background, the less it "
        "moves. The better the parts, the more it stands as the query does. Features and scores need no second "
        "image.</p>"
        f'<div class="people">{"".join(figures)}</div>'
    )


def _pair(reader: _Reader, query: _Person, answer: _Answer) -> str:
    views = [reader.views[person] for person in (query, answer.person)]
    crops = [fit_height(reader.crops[person], PANEL_PX) for person in (query, answer.person)]
    right, text = answer.right, answer.text
    match = match_parts(views[0], views[1])
    picture = draw_match_pair(crops[0], views[0], crops[1], views[1], radius_px=12)
    rows = "".join(
        f'<tr><th scope="row">{_number(part)}</th><td><i class="chip" style="background:{_css(cosine)}"></i>'
        f"{cosine:.2f}</td><td>{weight:.2f}</td></tr>"
        for part, (cosine, weight) in enumerate(zip(match.similarity, match.weight, strict=True))
    )
    return (
        f'<div class="pair {"right" if right else "wrong"}"><p class="answer"><b>{"Right" if right else "Wrong"}</b>, '
        f'{escape(text)}</p><img src="{_embed(picture)}" alt="{escape(f"Parts of the query and of {text}")}" '
        f'width="{picture.width}" height="{picture.height}" loading="lazy" decoding="async">'
        f'<table class="values"><thead><tr><th scope="col">part</th><th scope="col">cosine</th><th scope="col">weight'
        f'</th></tr></thead><tbody>{rows}<tr class="sum"><th scope="row">all</th><td>{match.score:.2f}</td>'
        f"<td>{match.weight.sum():.2f}</td></tr></tbody></table></div>"
    )


def _spread(entries: Sequence[dict[str, Any]], sets: int) -> list[dict[str, Any]]:
    """A few queries of a set, evenly from the hardest to the easiest."""
    count = min(len(entries), max(2, min(6, PEOPLE // sets)))
    return [entries[round(place)] for place in np.linspace(0, len(entries) - 1, count)] if count else []


def _in_turn(evaluations: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, dict[str, Any]]]:
    """Queries from the middle of each set outwards, those that have a right and a wrong answer first."""
    queues = []
    for evaluation in evaluations:
        lists = evaluation.rank_lists
        order = sorted(range(len(lists)), key=lambda place: abs(place - len(lists) // 2))
        queues.append([(evaluation, lists[place]) for place in order])
    queries = [query for query in chain.from_iterable(zip_longest(*queues)) if query is not None]
    return iter(sorted(queries, key=lambda query: -len(_answers(*query))))


def _answers(evaluation: Evaluation, entry: dict[str, Any]) -> list[_Answer]:
    """The first right and the first wrong answer, where there are such."""
    found = entry.get("entries")
    results = [result for result in found if isinstance(result, dict)] if isinstance(found, list) else []
    answers = []
    for wanted in (True, False):
        for rank, result in enumerate(results, start=1):
            if result.get("match") is wanted:
                person = _Person(evaluation.locate(result.get("path", "")), _camera(result.get("camid")))
                answers.append(_Answer(person, f"rank {rank}, {person.path.name}", wanted))
                break
    return answers


def _query(evaluation: Evaluation, entry: dict[str, Any]) -> _Person:
    return _Person(evaluation.locate(entry.get("query", "")), _camera(entry.get("query_camid")))


def _identity(entry: dict[str, Any]) -> str:
    pid = entry.get("query_pid")
    return f" (id&nbsp;{pid})" if isinstance(pid, int) and pid != -1 else ""


def _camera(camid: Any) -> int:
    return camid if isinstance(camid, int) else -1


def _number(part: int) -> str:
    return f'<b class="part" style="background:{PART_COLOURS[part]}">{part + 1}</b>'


def _css(similarity: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*similarity_colour(similarity))


def _embed(image: Image.Image) -> str:
    """A JPEG with full colour resolution, for thin coloured lines, as a ``data:`` address; 10 to 25 kB a panel."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _sentence(text: str) -> str:
    return f'<p class="empty">{escape(text)}</p>'
