"""Pictures and pages: ``write_report`` makes one HTML page of a run, ``draw_rank_list`` one picture of a search."""

from motarfuse.viz.rank_list import RankEntry, draw_rank_list
from motarfuse.viz.report import write_report

__all__ = ["RankEntry", "draw_rank_list", "write_report"]
