"""Tables of what ``motarfuse evaluate`` found beside the headline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from motarfuse.retrieval.splits import SplitsResult

_SHARES = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}


def detail_tables(record: dict[str, Any]) -> Iterator[Table]:
    """The tables of a record's details, in the order in which they are read."""
    if "confidence" in record:
        yield _confidence_table(record["confidence"])
    by = record.get("by", {})
    if "camera-pairs" in by:
        yield _camera_table(by["camera-pairs"])
    if "occlusion" in by:
        yield _occlusion_table(by["occlusion"])
    if "verification" in record:
        yield _verification_table(record["verification"])


def splits_table(means: SplitsResult) -> Table:
    """Mean and standard deviation over splits, in per cent."""
    table = _table(f"mean of {means.num_splits} splits", "", *_SHARES.values(), "queries", "gallery")
    counts = [f"{means.mean[key]:,.0f}" for key in ("num_valid", "num_gallery")]
    table.add_row("mean", *(_percent(means.mean[key]) for key in _SHARES), *counts)
    table.add_row("deviation", *(_percent(means.deviation[key]) for key in _SHARES), "", "")
    return table


def _confidence_table(found: dict[str, Any]) -> Table:
    table = _table(f"{100 * found['level']:g} % intervals over identities", "", "value", "from", "to", "identities")
    for key, title in _SHARES.items():
        one = found["intervals"].get(key)
        if one is not None:
            ends = [_percent(one[end]) for end in ("value", "low", "high")]
            table.add_row(title, *ends, f"{one['identities']:,}")
    return table


def _camera_table(pairs: list[dict[str, Any]]) -> Table:
    table = _table(
        "by camera of query and gallery",
        "query camera",
        "gallery camera",
        "mAP",
        "Rank-1",
        "mINP",
        "queries",
        "gallery",
    )
    for pair in pairs:
        if pair["num_valid"]:
            shares = [_percent(pair[key]) for key in ("mAP", "rank1", "mINP")]
            counts = [f"{pair[key]:,}" for key in ("num_valid", "num_gallery")]
            table.add_row(str(pair["query_camera"]), str(pair["gallery_camera"]), *shares, *counts)
    return table


def _occlusion_table(bands: list[dict[str, Any]]) -> Table:
    table = _table("by the hidden share of the query", "hidden", *_SHARES.values(), "queries")
    for band in bands:
        queries = f"{band['num_valid']:,}"
        if band["num_valid"] != band["num_query"]:
            queries += f" of {band['num_query']:,}"
        table.add_row(band["hidden"], *(_percent(band[key]) for key in _SHARES), queries)
    return table


def _verification_table(found: dict[str, Any]) -> Table:
    title = (
        f"verification of {found['num_positive_pairs']:,} pairs of one person and {found['num_negative_pairs']:,} of "
        f"two: AUC {found['auc']:.4f}, equal error rate {_percent(found['eer'])} at {found['eer_threshold']:.4f}"
    )
    table = _table(title, "FPR at most", "TPR", "threshold", "")
    for point in found["points"]:
        threshold = "-" if point["threshold"] is None else f"{point['threshold']:.4f}"
        table.add_row(f"{point['max_fpr']:g}", _percent(point["tpr"]), threshold, point["reason"])
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="left" if not column or column in ("hidden",) else "right")
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None or share != share else f"{100 * share:.1f}"
