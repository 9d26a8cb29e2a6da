"""Python examples of the pages on layers and on accelerate run; the former have their figures and links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import torch

from motarfuse import nn

DOCS = Path(__file__).resolve().parent.parent / "docs"
INDEX = DOCS / "layers.md"
FAMILIES = sorted((DOCS / "layers").glob("*.md"))
LAYERS = [INDEX, *FAMILIES]
FENCED = re.compile(r"```(\w*)\n(.*?)```", flags=re.DOTALL)
# What the page on accelerate shows speaks for itself: it prints.
WITHOUT_ASSERTION = {"accelerate.md"}
SHOWN = (
    "Block", "Attention", "Mlp", "DropPath", "LayerScale", "PendingSum", "VisualAdapter", "MotionAttention",
    "MotionCrossAttention", "TokenMotion", "PartDecoder", "PartHeads", "LocalAppearance", "CanonicalPosture",
    "MotionScale", "FusionEncoder", "GatedFusion", "PartPool", "MotionConsistencyLoss", "CopyPair", "FramePair",
    "IdLoss", "TripletLoss", "BNNeck", "PartLoss",
)  # fmt: skip


class Example(NamedTuple):
    """A block of Python, and where it is from."""

    page: Path
    number: int
    code: str


def examples(page: Path) -> list[Example]:
    blocks = [code for language, code in FENCED.findall(page.read_text(encoding="utf-8")) if language == "python"]
    return [Example(page, index, code) for index, code in enumerate(blocks)]


def name(value: Path | Example) -> str:
    page, number = (value.page, f"-{value.number}") if isinstance(value, Example) else (value, "")
    return page.relative_to(DOCS).as_posix() + number


def prose(page: Path) -> str:
    """Without what is fenced."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def targets(page: Path) -> list[str]:
    """Where links and pictures of a page lead, but for other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'(?:src|href)="([^"]+)"', prose(page))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


EXAMPLES = [example for page in [*LAYERS, DOCS / "accelerate.md"] for example in examples(page)]


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_example_runs(example: Example) -> None:
    """Each by itself; what it claims of its results it asserts."""
    assert "assert " in example.code or example.page.name in WITHOUT_ASSERTION
    torch.manual_seed(0)
    exec(compile(example.code, f"example {name(example)}", "exec"), {})


def test_every_family_has_an_example() -> None:
    code = "\n".join(example.code for example in EXAMPLES if example.page in LAYERS)
    assert [one for one in SHOWN if not re.search(rf"nn\.{one}[(.]", code)] == []
    assert [page for page in [*LAYERS, DOCS / "accelerate.md"] if not examples(page)] == []


@pytest.mark.parametrize("pages", [[INDEX], FAMILIES], ids=["index", "families"])
def test_every_exported_name_is_in_the_pages(pages: list[Path]) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert [one for one in nn.__all__ if not re.search(rf"\b{one}\b", text)] == []


@pytest.mark.parametrize("page", LAYERS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", FAMILIES, ids=name)
def test_a_family_has_a_picture_and_is_linked_from_the_index(page: Path) -> None:
    pictures = [target for target in targets(page) if Path(target).suffix in (".png", ".svg")]
    assert pictures
    for picture in pictures:
        if Path(picture).suffix == ".svg":
            ElementTree.parse(page.parent / picture)
    assert f"layers/{page.name}" in targets(INDEX)
    assert {"../layers.md", "../network.md"} <= {target.partition("#")[0] for target in targets(page)}
