"""Search, ranking metrics and re-ranking of features: exact, a tile of scores at a time, on any device.

``search`` finds the nearest gallery entries, ``evaluate`` gives mAP, CMC and mINP under a named protocol, ``verify``
the ROC of all pairs, ``camera_pairs`` the numbers of each pair of cameras, ``mean_of_splits`` those of several results,
``rank_lists`` the first results of chosen queries for a report. ``PersonFeatures`` carries body parts beside the
features.
"""

from motarfuse.retrieval.bootstrap import Interval
from motarfuse.retrieval.breakdowns import CameraPair, camera_pairs
from motarfuse.retrieval.features import PersonFeatures
from motarfuse.retrieval.metrics import evaluate
from motarfuse.retrieval.protocols import PROTOCOLS, Protocol
from motarfuse.retrieval.query_expansion import augment_gallery, expand_queries
from motarfuse.retrieval.rerank import Reranking, rerank
from motarfuse.retrieval.result import EvaluationResult, GroupNumbers
from motarfuse.retrieval.roc import OperatingPoint, VerificationResult, verify
from motarfuse.retrieval.scores import METRICS, SCORES, choose_score
from motarfuse.retrieval.search import RankList, rank_lists, search, select_queries
from motarfuse.retrieval.splits import SplitsResult, mean_of_splits
from motarfuse.retrieval.storage import StorageChanges, storage_changes
from motarfuse.retrieval.where import Labels, Where

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "SCORES",
    "CameraPair",
    "EvaluationResult",
    "GroupNumbers",
    "Interval",
    "Labels",
    "OperatingPoint",
    "PersonFeatures",
    "Protocol",
    "RankList",
    "Reranking",
    "SplitsResult",
    "StorageChanges",
    "VerificationResult",
    "Where",
    "augment_gallery",
    "camera_pairs",
    "choose_score",
    "evaluate",
    "expand_queries",
    "mean_of_splits",
    "rank_lists",
    "rerank",
    "search",
    "select_queries",
    "storage_changes",
    "verify",
]
