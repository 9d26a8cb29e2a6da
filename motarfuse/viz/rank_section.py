"""The report's rank lists: the hardest, middle and easiest queries with what the model answered."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from motarfuse.viz.crops import data_uri, load_crop
from motarfuse.viz.run_folder import Evaluation, number

RESULTS = 10
TICK = '<svg class="mark" viewBox="0 0 18 18" aria-hidden="true"><path d="M5 9.4 8 12.4 13 6"/></svg>'
CROSS = (
    '<svg class="mark" viewBox="0 0 18 18" aria-hidden="true"><path d="M5.8 5.8 12.2 12.2M12.2 5.8 5.8 12.2"/></svg>'
)


def rank_section(evaluations: Sequence[Evaluation]) -> str:
    """HTML of all rank lists, empty where there are none."""
    embedded: dict[Path, str] = {}
    parts = [
        f"<h3>{escape(evaluation.name)}</h3>{_of_set(evaluation, embedded)}"
        for evaluation in evaluations
        if evaluation.rank_lists
    ]
    if not parts:
        return ""
    intro = (
        '<p class="lead">The query is on the left, its best answers follow in order with scores. A tick and a '
        "solid green frame mark the right person, a cross and a dashed red frame somebody else. Gallery images that "
        "the protocol leaves out (the same person from the same camera) are not shown. Identities and cameras have the "
        "numbers that the dataset's loader gives them.</p>"
    )
    missing = sum(not uri for uri in embedded.values())
    if missing:
        intro += f"<p>{missing} of {len(embedded)} images could not be read and are shown as grey cards.</p>"
    return intro + "".join(parts)


def _of_set(evaluation: Evaluation, embedded: dict[Path, str]) -> str:
    lists = evaluation.rank_lists
    if len(lists) < 3:
        return "".join(_figure(evaluation, entry, embedded) for entry in lists)
    third = len(lists) // 3
    groups = (
        ("Hardest queries (lowest average precision)", lists[:third]),
        ("Queries in the middle", lists[third : len(lists) - third]),
        ("Easiest queries (highest average precision)", lists[len(lists) - third :]),
    )
    return "".join(
        f'<details class="group" open><summary>{title}</summary>'
        + "".join(_figure(evaluation, entry, embedded) for entry in entries)
        + "</details>"
        for title, entries in groups
    )


def _figure(evaluation: Evaluation, entry: dict[str, Any], embedded: dict[Path, str]) -> str:
    query = entry.get("query", "")
    who = _who(entry.get("query_pid"), entry.get("query_camid"))
    precision = number(entry, "average_precision", float("nan"))
    headline = "AP not given" if precision != precision else f"AP {100 * precision:.1f} %"
    about = ", ".join(part for part in (f"query {escape(Path(str(query)).name)}", who) if part)
    found = entry.get("entries")
    results = [result for result in found if isinstance(result, dict)][:RESULTS] if isinstance(found, list) else []
    crop = _crop(evaluation.locate(query), f"Query: {who or 'identity not given'}", "", embedded)
    items = "".join(_item(evaluation, rank, result, embedded) for rank, result in enumerate(results, start=1))
    return (
        f'<figure class="ranks"><figcaption><b>{headline}</b>, {about}</figcaption>'
        f'<div>{crop}<span class="under">query</span></div><ol>{items}</ol></figure>'
    )


def _item(evaluation: Evaluation, rank: int, result: dict[str, Any], embedded: dict[Path, str]) -> str:
    match = result.get("match")
    kind, word, mark = (
        ("right", "right", TICK) if match is True else ("wrong", "wrong", CROSS) if match is False else ("", "", "")
    )
    score = number(result, "score", float("nan"))
    who = _who(result.get("pid"), result.get("camid"))
    text = ", ".join(part for part in (f"Rank {rank}", word, who, f"score {score:.3f}") if part)
    crop = _crop(evaluation.locate(result.get("path", "")), text, mark, embedded)
    return f'<li class="{kind}">{crop}<span class="under">{score:.3f}<span>{who}</span></span></li>'


def _crop(path: Path, text: str, mark: str, embedded: dict[Path, str]) -> str:
    if path not in embedded:
        image, _ = load_crop(path)
        embedded[path] = "" if image is None else data_uri(image)
    uri = embedded[path]
    if not uri:
        label = f"{escape(text)}, image missing"
        return (
            f'<span class="crop" role="img" aria-label="{label}"><span class="gone">image missing</span>{mark}</span>'
        )
    return f'<span class="crop"><img src="{uri}" alt="{escape(text)}" loading="lazy" decoding="async">{mark}</span>'


def _who(pid: Any, camid: Any) -> str:
    known = []
    if isinstance(pid, int) and pid != -1:
        known.append(f"id {pid}")
    if isinstance(camid, int) and camid != -1:
        known.append(f"cam {camid}")
    return ", ".join(known)
