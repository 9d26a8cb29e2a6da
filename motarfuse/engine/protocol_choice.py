"""Which protocol a dataset is evaluated by when nobody names one, and whether the counts are the published ones."""

from __future__ import annotations

from motarfuse.data import TrackletDataset
from motarfuse.data.any_dataset import AnyDataset
from motarfuse.retrieval import EvaluationResult
from motarfuse.retrieval.protocols import PROTOCOLS, protocol_name

AUTO = "auto"
# Kinds of one protocol whose name is not their own.
_OF_KIND = {"partial_ilids": "partial-reid"}
# Ready-made in the layout of Market-1501: what the counts or the folder's name tell.
_OF_DATASET = {"Occluded-Duke": "occluded-duke", "CUHK03-NP detected": "cuhk03-np", "CUHK03-NP labeled": "cuhk03-np"}
_ACROSS_CAMERAS = "market1501"


def choose_protocol(name: str, dataset: AnyDataset) -> str:
    """The protocol that ``auto`` stands for; any other name is spelled as ``PROTOCOLS`` spells it.

    A dataset's kind has its own protocol, MARS and CUHK03 one for each of their options. Kinds without one (tables,
    folders, LS-VID, ...) are evaluated as Market-1501: same identity and camera do not count.
    """
    if name != AUTO:
        return protocol_name(name)
    if dataset.kind == "mars" and isinstance(dataset, TrackletDataset):
        return "mars-torchreid" if dataset.protocol.startswith("MARS without the queries") else "mars-official"
    if dataset.kind == "cuhk03":
        return "cuhk03-classic" if "classic protocol" in dataset.variant else "cuhk03-np"
    if dataset.published is not None and dataset.published.name in _OF_DATASET:
        return _OF_DATASET[dataset.published.name]
    found = _OF_KIND.get(dataset.kind, protocol_name(dataset.kind))
    return found if found in PROTOCOLS else _ACROSS_CAMERAS


def compare_with_published(result: EvaluationResult, dataset: AnyDataset) -> list[str]:
    """What to say of the counts: the differences, that all agree, or nothing where none are known."""
    name = dataset.name if dataset.published is None else dataset.published.name
    if name not in {sizes.name for sizes in result.protocol.published}:
        return []
    differences = result.published_differences(name)
    return differences or [f"queries, gallery and queries with a match are as published for {name}"]
