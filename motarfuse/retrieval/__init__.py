"""Search and ranking metrics over features: exact, in blocks of queries, on any device.

``search`` finds the nearest gallery entries, ``evaluate`` gives mAP, CMC and mINP under a named protocol,
``rank_lists`` the first results of chosen queries for a report. ``PersonFeatures`` carries body
parts beside the features.
"""

from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.metrics import EvaluationResult, evaluate
from motarfuse.retrieval.protocols import PROTOCOLS, Protocol
from motarfuse.retrieval.scores import METRICS, SCORES, choose_score
from motarfuse.retrieval.search import RankList, rank_lists, search, select_queries
from motarfuse.retrieval.storage import StorageChanges, storage_changes
from motarfuse.retrieval.where import Labels, Where

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "SCORES",
    "EvaluationResult",
    "Labels",
    "PersonFeatures",
    "Protocol",
    "RankList",
    "StorageChanges",
    "Where",
    "choose_score",
    "evaluate",
    "rank_lists",
    "search",
    "select_queries",
    "storage_changes",
]
