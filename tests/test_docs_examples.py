"""Every Python example of docs/layers.md runs, and its figures and links are there."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from motarfuse import nn

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "layers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SHOWN = (
    "Block", "VisualAdapter", "MotionAttention", "PartDecoder", "FusionEncoder", "GatedFusion", "PartPool",
    "MotionConsistencyLoss", "IdLoss", "TripletLoss", "BNNeck",
)  # fmt: skip


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example_runs(index: int) -> None:
    """Each by itself; what it claims of its results it asserts."""
    assert "assert " in EXAMPLES[index]
    torch.manual_seed(0)
    exec(compile(EXAMPLES[index], f"example {index} of docs/layers.md", "exec"), {})


def test_every_family_has_an_example() -> None:
    code = "\n".join(EXAMPLES)
    assert [name for name in SHOWN if not re.search(rf"nn\.{name}[(.]", code)] == []


def test_every_exported_name_is_in_the_page() -> None:
    assert [name for name in nn.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


def test_pictures_are_there_and_are_well_formed(repository: Path) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE)
    assert pictures
    for picture in pictures:
        path = repository / "docs" / picture
        assert path.is_file()
        if path.suffix == ".svg":
            ElementTree.parse(path)
