"""An evaluation's rank lists and single queries as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motarfuse.data import ImageRecord, Tracklet
from motarfuse.retrieval import EvaluationResult, RankList


def per_query(result: EvaluationResult) -> dict[str, list[int] | list[float]]:
    """What was found for each valid query, in the queries' order."""
    valid = result.first_rank > 0
    return {
        "pid": result.query_pids[valid].tolist(),
        "average_precision": [round(value, 6) for value in result.average_precision[valid].tolist()],
        "inp": [round(value, 6) for value in result.inp[valid].tolist()],
        "first_rank": result.first_rank[valid].tolist(),
    }


def rank_list_records(
    lists: Sequence[RankList],
    result: EvaluationResult,
    query_records: Sequence[ImageRecord | Tracklet],
    gallery_records: Sequence[ImageRecord | Tracklet],
    root: Path,
) -> list[dict[str, Any]]:
    """Rank lists with the files and labels of their entries; paths start at ``root``."""
    return [
        {
            "query": _path(query_records[found.query], root),
            "query_pid": query_records[found.query].pid,
            "query_camid": query_records[found.query].camid,
            "average_precision": float(result.average_precision[found.query]),
            "entries": [
                {
                    "path": _path(gallery_records[index], root),
                    "pid": gallery_records[index].pid,
                    "camid": gallery_records[index].camid,
                    "score": float(score),
                    "match": bool(match),
                }
                for index, score, match in zip(found.indices, found.scores, found.matches, strict=True)
            ],
        }
        for found in lists
    ]


def _path(record: ImageRecord | Tracklet, root: Path) -> str:
    """The image's path below the dataset's root where it is, else absolute; always with slashes."""
    inside = record.path.is_relative_to(root)
    return (record.path.relative_to(root) if inside else record.path.resolve()).as_posix()
